"""Does an update still hold when the calibration set is larger, or from another world than the questions?

    python tests/benchmarks/other_calibration.py prose half n64

An update fits weights to the calibration set, and a shipped model's questions come from the same simple world as its
calibration set. Here that set is prose without pictures, half prose and half pictures, smaller or larger. Questions and
seeds are those of the confirmations, so that their cells are the comparison.
"""

import argparse
import dataclasses
from unittest import mock

import quality
import recording
import torch
import update_search

import tamp
from tamp import calibration, conversations
from tamp.evaluation import results
from tamp.worlds import prose

SMOL, MINI = "smol-llava-next", "mini-llava-next"
WINDOW = 256
"""Tokens of a sample of prose."""

VARIANTS = {
    "prose": (SMOL, {"calibration": "prose"}, 0.5),
    "half": (SMOL, {"calibration": "half"}, 0.5),
    "n64": (SMOL, {"n_samples": 64}, 0.6),
    "n128": (SMOL, {"n_samples": 128}, 0.6),
    "mini_n16": (MINI, {"n_samples": 16}, 0.8),
    "mini_n128": (MINI, {"n_samples": 128}, 0.8),
}
"""Name to (model, changes to the confirmation's settings, level)."""


def main(arguments: list[str] | None = None) -> None:
    """Run the cells that are missing of the variants that were named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("variants", nargs="+", choices=VARIANTS)
    parser.add_argument("--calibration-seeds", nargs="+", type=int, default=update_search.CONFIRM["calibration_seeds"])
    options = parser.parse_args(arguments)
    methods = ("sparsegpt", update_search.confirmed()[-1])
    known = calibration.calibration_set
    with mock.patch.object(calibration, "calibration_set", lambda *given: samples(known, *given)):
        for name in options.variants:
            model, changes, level = VARIANTS[name]
            usual, *_ = quality.GRIDS[model]
            asked = {field: update_search.CONFIRM[field] for field in ("n_questions", "question_seed")}
            torch.set_num_threads(1)
            tamp.compare(
                dataclasses.replace(usual, **asked, **changes),
                methods,
                (level,),
                options.calibration_seeds,
                out=recording.RESULTS / record(name),
                baseline="sparsegpt",
                device="cpu",
            )


def record(name: str) -> str:
    """Return the name of a variant's recorded file."""
    return quality.name(VARIANTS[name][0], f"update_{name.removeprefix('mini_')}.json")


def samples(known, source: str, processor, n: int, seed: int) -> list[dict]:
    """Draw calibration samples: ``prose``, ``half`` prose and half pictures, or a set that the package knows."""
    if source not in ("prose", "half"):
        return known(source, processor, n, seed)
    ids = processor.tokenizer(prose.texts()["calibration"], add_special_tokens=False, return_tensors="pt")["input_ids"]
    windows = ids[0, : ids.shape[1] // WINDOW * WINDOW].split(WINDOW)
    chosen = torch.randperm(len(windows), generator=torch.Generator().manual_seed(seed))
    texts = [{"input_ids": windows[i][None], "attention_mask": torch.ones(1, WINDOW, dtype=torch.long)} for i in chosen]
    if source == "prose":
        return texts[:n]
    pictures = known(conversations.OWN_SETS[SMOL], processor, n // 2, seed)
    return [each for pair in zip(pictures, texts) for each in pair]


def recorded_table() -> str:
    """Write the table of all variants that are recorded."""
    found = {
        name: results.recorded(record(name).removesuffix(".json"))
        for name in VARIANTS
        if (recording.RESULTS / record(name)).exists()
    }
    usual = {SMOL: results.recorded("smol_update_levels"), MINI: results.recorded("mini_admm_confirmation")}
    return table(found, usual)


def table(grids: dict[str, dict], confirmed: dict[str, dict]) -> str:
    """Write accuracy, likelihood and perplexity of documentation per calibration set, and the difference to SparseGPT.

    Args:
        grids: what was recorded, by variant.
        confirmed: per model, the same methods on the usual calibration set.
    """
    lines = ["| model | calibrated on | method | accuracy | less SparseGPT | NLL | perplexity |", "|---" * 7 + "|"]
    shown = set()
    for name, grid in grids.items():
        model, _, level = VARIANTS[name]
        usual = [] if (model, level) in shown else [(USUAL[model], confirmed[model])]
        shown.add((model, level))
        for title, each in (*usual, (NAMES[name], grid)):
            for method in results.methods(grid):
                cells = results.cells_of(each, method, level)
                points, low, high = update_search.difference(each, method, level)
                apart = "–" if method == "sparsegpt" else f"{points:+.1f} [{low:+.1f}, {high:+.1f}]"
                text = f"{results.mean(cells, 'documentation'):.0f}" if "documentation" in cells[0] else "–"
                lines.append(
                    f"| `{model}`, {results.level_name(level)} | {title} | `{update_search.called(method)}` | "
                    f"{100 * results.mean(cells, 'accuracy'):.1f} | {apart} | {results.mean(cells, 'nll'):.2f} | {text} |"
                )
    return "\n".join(lines)


USUAL = {SMOL: "16 questions about pictures", MINI: "64 questions about pictures"}
NAMES = {
    "prose": "16 windows of prose",
    "half": "8 questions about pictures, 8 windows of prose",
    "n64": "64 questions about pictures",
    "n128": "128 questions about pictures",
    "mini_n16": "16 questions about pictures",
    "mini_n128": "128 questions about pictures",
}

if __name__ == "__main__":
    main()
