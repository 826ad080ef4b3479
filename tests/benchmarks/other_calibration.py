"""Does an update still hold when the calibration set is larger, or from another world than the questions?

    python tests/benchmarks/other_calibration.py prose half n64

An update fits weights to the calibration set, and a shipped model's questions come from the same simple world as its
calibration set. Here that set is prose without pictures, half prose and half pictures, or larger; the model is
smol-llava-next, and questions and seeds are those of the confirmation, so that its cells are the comparison.
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

MODEL = "smol-llava-next"
WINDOW = 256
"""Tokens of a sample of prose."""

VARIANTS = {
    "prose": ({"calibration": "prose"}, 0.5),
    "half": ({"calibration": "half"}, 0.5),
    "n64": ({"n_samples": 64}, 0.6),
    "n128": ({"n_samples": 128}, 0.6),
}
"""Name to (changes to the confirmation's settings, level)."""


def main(arguments: list[str] | None = None) -> None:
    """Run the cells that are missing of the variants that were named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("variants", nargs="+", choices=VARIANTS)
    options = parser.parse_args(arguments)
    methods = ("sparsegpt", update_search.confirmed()[-1])
    known = calibration.calibration_set
    with mock.patch.object(calibration, "calibration_set", lambda *given: samples(known, *given)):
        for name in options.variants:
            changes, level = VARIANTS[name]
            usual, *_ = quality.GRIDS[MODEL]
            asked = {field: update_search.CONFIRM[field] for field in ("n_questions", "question_seed")}
            torch.set_num_threads(1)
            tamp.compare(
                dataclasses.replace(usual, **asked, **changes),
                methods,
                (level,),
                update_search.CONFIRM["calibration_seeds"],
                out=recording.RESULTS / f"{quality.name(MODEL, f'update_{name}')}.json",
                baseline="sparsegpt",
                device="cpu",
            )


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
    pictures = known(conversations.OWN_SETS[MODEL], processor, n // 2, seed)
    return [each for pair in zip(pictures, texts) for each in pair]


def table(grids: dict[str, dict], confirmed: dict) -> str:
    """Write accuracy, likelihood and perplexity of documentation per calibration set, and the difference to SparseGPT."""
    lines = [
        "| calibrated on | level | method | accuracy | NLL | perplexity | less SparseGPT |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, grid in grids.items():
        for level in results.levels(grid):
            for title, each in ((NAMES[name], grid), (NAMES["usual"], confirmed)):
                for method in results.methods(grid):
                    cells = results.cells_of(each, method, level)
                    points, low, high = update_search.difference(each, method, level)
                    apart = "" if method == "sparsegpt" else f"{points:+.1f} [{low:+.1f}, {high:+.1f}]"
                    means = [results.mean(cells, field) for field in ("accuracy", "nll", "documentation")]
                    lines.append(
                        f"| {title} | {results.level_name(level)} | `{method}` | {100 * means[0]:.1f} | {means[1]:.2f} | "
                        f"{means[2]:.0f} | {apart} |"
                    )
    return "\n".join(lines)


NAMES = {
    "usual": "16 questions about pictures",
    "prose": "16 windows of prose",
    "half": "8 questions about pictures, 8 windows of prose",
    "n64": "64 questions about pictures",
    "n128": "128 questions about pictures",
}

if __name__ == "__main__":
    main()
