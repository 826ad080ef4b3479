"""What pruning does to answers: every method, sparsity and calibration seed on the shipped model, on fresh questions.

    python tests/benchmarks/quality.py [--limit 1000] [--n 64] [--share 0/2]

Finished cells are not run again, so the command can be stopped and given again; ``--share i/k`` does every k-th cell, for k
processes side by side. `tests/benchmarks/pages.py` writes table and figure of what was recorded.
"""

import argparse
import copy
import fcntl
import json

import numpy as np
import pandas as pd
import recording
import torch

import tamp
from tamp import evaluation

METHOD_NAMES = ("magnitude", "wanda", "sparsegpt", "text", "das", "amia", "tamp")
SPARSITIES = (0.5, 0.6, 0.7, 0.8)
SEEDS = (0, 1, 2)
EVALUATION_SEED = 7
NAME = "mini_quality"


def pack(correct: pd.Series) -> str:
    """Write right and wrong answers as hexadecimal, the first question in the highest bit."""
    return np.packbits(correct.to_numpy(bool)).tobytes().hex()


def unpack(cell: dict) -> np.ndarray:
    """Read them back, (questions,) bool."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(cell["correct"]), np.uint8))[: cell["n"]].astype(bool)


def score(scored: pd.DataFrame) -> dict:
    """Condense question scores to what is recorded of a cell."""
    return {
        "n": len(scored),
        "accuracy": round(scored["correct"].mean(), 4),
        "choice_accuracy": round(scored["choice_correct"].mean(), 4),
        "nll": round(scored["nll"].mean(), 4),
        "tasks": scored.groupby("task", sort=False)["correct"].mean().round(4).to_dict(),
        "correct": pack(scored["correct"]),
    }


def store(folder, cell: dict, settings: dict) -> None:
    """Add one cell to the recorded file, which other processes may be writing too."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f".{NAME}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        recorded = load(folder, settings)
        recording.write(NAME, {**settings, "cells": [*recorded, cell]}, folder)


def load(folder, settings: dict) -> list[dict]:
    """Read the cells recorded so far; those of other settings do not count."""
    path = folder / f"{NAME}.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    return found["cells"] if all(found.get(key) == value for key, value in settings.items()) else []


def key(cell: dict) -> tuple:
    """Name a cell."""
    return cell["method"], cell["sparsity"], cell["seed"]


def interval(cells: list[dict], base: list[dict] | None = None, draws: int = 2000) -> tuple[float, float, float]:
    """Average accuracy in per cent over seeds, with a 95 % bootstrap interval over questions and seeds.

    Args:
        cells: one per calibration seed, over the same questions.
        base: subtract these, on the same questions drawn.
        draws: bootstrap samples.
    """
    random = np.random.default_rng(0)
    right = np.stack([unpack(cell) for cell in cells]).astype(float)  # (seeds, questions)
    minus = np.stack([unpack(cell) for cell in base]).astype(float) if base else np.zeros_like(right[:1])
    drawn = []
    for _ in range(draws):
        questions = random.integers(right.shape[1], size=right.shape[1])
        some = random.integers(len(right), size=len(right))
        other = random.integers(len(minus), size=len(minus))
        drawn.append(right[np.ix_(some, questions)].mean() - minus[np.ix_(other, questions)].mean())
    low, high = np.percentile(drawn, [2.5, 97.5])
    return 100 * (right.mean() - minus.mean()), 100 * low, 100 * high


def differences(recorded: dict, to: str = "wanda") -> pd.DataFrame:
    """Compare every method with one of them on the same questions: difference in accuracy points, with its interval."""

    def of(method: str, sparsity: float) -> list[dict]:
        return [cell for cell in recorded["cells"] if cell["method"] == method and cell["sparsity"] == sparsity]

    rows = [
        {
            "method": method,
            "sparsity": sparsity,
            **dict(
                zip(
                    ("points", "low", "high"),
                    (round(value, 1) for value in interval(of(method, sparsity), of(to, sparsity))),
                )
            ),
        }
        for sparsity in SPARSITIES
        for method in METHOD_NAMES
        if method != to
    ]
    return pd.DataFrame(rows)


def main(arguments: list[str] | None = None) -> None:
    """Run the cells that are missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=int, default=1000)
    parser.add_argument("--n", type=int, default=64)
    parser.add_argument("--share", default="0/1")
    parser.add_argument("--out", default=recording.RESULTS, type=recording.Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    settings = {
        "model": "mini-llava-next",
        "benchmark": "mini-vqa",
        "questions": options.limit,
        "evaluation_seed": EVALUATION_SEED,
        "calibration_samples": options.n,
    }
    model, processor = tamp.load("mini-llava-next", device="cpu")
    ready = evaluation.prepare(processor, "mini-vqa", options.limit, EVALUATION_SEED)
    wanted = [("dense", 0.0, 0)] + [
        (method, sparsity, seed)
        for sparsity in SPARSITIES
        for seed in SEEDS
        for method in METHOD_NAMES
        if method != "magnitude" or seed == SEEDS[0]  # it looks at no sample
    ]
    place, of = map(int, options.share.split("/"))
    samples = {seed: tamp.calibration_set("mini-vqa", processor, options.n, seed) for seed in SEEDS}
    for method, sparsity, seed in wanted[place::of]:
        if (method, sparsity, seed) in map(key, load(options.out, settings)):
            continue
        pruned = copy.deepcopy(model)
        cell = {"method": method, "sparsity": sparsity, "seed": seed}
        if method != "dense":
            report = tamp.prune(pruned, samples[seed], tamp.Recipe.preset(method, sparsity=sparsity), progress=False)
            cell |= {
                "exact_sparsity": report.sparsity,
                "seconds": round(sum(report.seconds.values()), 2),
                "tokens_kept": round(float(report.table["kept"].mean()), 2) if method != "magnitude" else None,
            }
        cell |= score(evaluation.answers(pruned, processor, ready, progress=False))
        store(options.out, cell, settings)
    if set(wanted) <= set(map(key, load(options.out, settings))):
        recorded = json.loads((options.out / f"{NAME}.json").read_text())
        recorded["cells"].sort(key=lambda cell: wanted.index(key(cell)))
        recorded["differences_to_wanda"] = differences(recorded).to_dict("records")
        recording.write(NAME, {name: value for name, value in recorded.items() if name != "made_with"}, options.out)


if __name__ == "__main__":
    main()
