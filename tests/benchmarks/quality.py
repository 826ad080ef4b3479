"""What pruning does to answers: every method, level and calibration seed on a model, on fresh questions.

    python tests/benchmarks/quality.py [--model smol-llava-next] [--share 0/2]

Finished cells are not run again, so the command can be stopped and given again; ``--share i/k`` does every k-th cell, for k
processes side by side. `tests/benchmarks/pages.py` writes tables and figures of what was recorded.
"""

import argparse
import copy
import fcntl
import json
from dataclasses import dataclass

import pandas as pd
import recording
import torch

import tamp
from tamp import comparison, evaluation
from tamp.shipped import prose

SEEDS = (0, 1, 2)
EVALUATION_SEED = 7
METHOD_NAMES = ("magnitude", "wanda", "sparsegpt", "text", "das", "amia", "tamp")
PER_BLOCK = " per block"


@dataclass(frozen=True)
class Grid:
    """What is measured on a model.

    Attributes:
        name: of the recorded file.
        benchmark: set of questions, for calibration and for measuring.
        questions: how many.
        samples: of calibration.
        methods: presets, each perhaps with ``PER_BLOCK`` behind it.
        levels: sparsities and patterns.
        text: whether to measure text too: perplexity, and the choice among answers about facts.
    """

    name: str
    benchmark: str
    questions: int
    samples: int
    methods: tuple[str, ...]
    levels: tuple[float | str, ...]
    text: bool


GRIDS = {
    "mini-llava-next": Grid("mini_quality", "mini-vqa", 1000, 64, METHOD_NAMES, (0.5, 0.6, 0.7, 0.8), False),
    "smol-llava-next": Grid(
        "smol_quality",
        "smol-vqa",
        500,
        16,
        (*METHOD_NAMES, "das" + PER_BLOCK, "tamp" + PER_BLOCK),
        (0.3, 0.4, 0.5, 0.6, "2:4"),
        True,
    ),
}
TEXT_WINDOWS, TEXT_WINDOW, FACTS = 6, 256, 100


def recipe(method: str, level: float | str) -> tamp.Recipe | None:
    """Spell a method at a sparsity or pattern; None where it would be another method of the list."""
    preset = method.removesuffix(PER_BLOCK)
    changes = {"das_granularity": "block"} if preset != method else {}
    made = tamp.Recipe.preset(preset, **changes, **{"pattern" if isinstance(level, str) else "sparsity": level})
    return None if made.allocation != "uniform" and not made.plans else made


def cells(grid: Grid) -> list[tuple]:
    """List what is to be run: (method, level, calibration seed)."""
    return [("dense", 0.0, 0)] + [
        (method, level, seed)
        for seed in SEEDS
        for level in grid.levels
        for method in grid.methods
        if recipe(method, level) and (method != "magnitude" or seed == SEEDS[0])  # it looks at no sample
    ]


def score(scored: pd.DataFrame) -> dict:
    """Condense question scores to what is recorded of a cell."""
    return {
        "n": len(scored),
        "accuracy": round(scored["correct"].mean(), 4),
        "choice_accuracy": round(scored["choice_correct"].mean(), 4),
        "nll": round(scored["nll"].mean(), 4),
        "tasks": scored.groupby("task", sort=False)["correct"].mean().round(4).to_dict(),
        "correct": comparison.pack(scored["correct"]),
    }


def text_scores(model, processor) -> dict:
    """Measure what is left of the language model: perplexity of two texts, and the choice among answers about facts."""
    made = {}
    for name in ("documentation", "licence"):
        found = evaluation.perplexity(model, processor, prose.texts()[name], TEXT_WINDOW, TEXT_WINDOWS, progress=False)
        made[name] = round(found, 3)
    facts = evaluation.answers(model, processor, "facts", FACTS, EVALUATION_SEED, progress=False)
    return {**made, "facts": round(facts["choice_correct"].mean(), 4)}


def store(folder, name: str, cell: dict, settings: dict) -> None:
    """Add one cell to the recorded file, which other processes may be writing too."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f".{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        recorded = load(folder, name, settings)
        recording.write(name, {**settings, "cells": [*recorded, cell]}, folder)


def load(folder, name: str, settings: dict) -> list[dict]:
    """Read the cells recorded so far; those of other settings do not count."""
    path = folder / f"{name}.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    return found["cells"] if all(found.get(key) == value for key, value in settings.items()) else []


def key(cell: dict) -> tuple:
    """Name a cell."""
    return cell["method"], cell["sparsity"], cell["seed"]


def main(arguments: list[str] | None = None) -> None:
    """Run the cells that are missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smol-llava-next", choices=GRIDS)
    parser.add_argument("--limit", type=int, help="questions")
    parser.add_argument("--n", type=int, help="calibration samples")
    parser.add_argument("--levels", nargs="+", help="run these levels only, such as 0.5 2:4")
    parser.add_argument("--share", default="0/1")
    parser.add_argument("--out", default=recording.RESULTS, type=recording.Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    grid = GRIDS[options.model]
    settings = {
        "model": options.model,
        "benchmark": grid.benchmark,
        "questions": options.limit or grid.questions,
        "evaluation_seed": EVALUATION_SEED,
        "calibration_samples": options.n or grid.samples,
    }
    model, processor = tamp.load(options.model, device="cpu")
    ready = evaluation.prepare(processor, grid.benchmark, settings["questions"], EVALUATION_SEED)
    wanted = cells(grid)
    place, every = map(int, options.share.split("/"))
    samples = {
        seed: tamp.calibration_set(grid.benchmark, processor, settings["calibration_samples"], seed) for seed in SEEDS
    }
    now = [cell for cell in wanted if not options.levels or cell[0] == "dense" or str(cell[1]) in options.levels]
    for method, level, seed in now[place::every]:
        if (method, level, seed) in map(key, load(options.out, grid.name, settings)):
            continue
        pruned = copy.deepcopy(model)
        cell = {"method": method, "sparsity": level, "seed": seed}
        if method != "dense":
            report = tamp.prune(pruned, samples[seed], recipe(method, level), progress=False)
            cell |= {
                "exact_sparsity": report.sparsity,
                "seconds": round(sum(report.seconds.values()), 2),
                "tokens_kept": round(float(report.table["kept"].mean()), 2) if method != "magnitude" else None,
            }
            if report.plan.scores:
                kinds = report.table["linear"].str.split(".").str[-1]
                cell["sparsity_of"] = report.table["got"].groupby(kinds, sort=False).mean().round(4).to_dict()
        cell |= score(evaluation.answers(pruned, processor, ready, progress=False))
        if grid.text:
            cell |= text_scores(pruned, processor)
        store(options.out, grid.name, cell, settings)
    if set(wanted) <= set(map(key, load(options.out, grid.name, settings))):
        recorded = json.loads((options.out / f"{grid.name}.json").read_text())
        recorded["cells"].sort(key=lambda cell: wanted.index(key(cell)))
        recorded["differences_to_wanda"] = comparison.differences(recorded).to_dict("records")
        recording.write(
            grid.name, {name: value for name, value in recorded.items() if name != "made_with"}, options.out
        )


if __name__ == "__main__":
    main()
