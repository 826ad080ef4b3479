"""Which experts can a trained model lose? Answers of a small LLaVA-NeXT with eight experts per block, some of them dropped.

    python tests/benchmarks/trained_experts.py [--model build/mini-experts]

The model is trained first, in under an hour on one core, unless its folder holds one that is. Finished cells are not run
again.
"""

import argparse
import copy
import functools
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import recording
import torch
from tqdm.auto import tqdm

sys.path.insert(0, str(recording.ROOT / "data"))

from training import experts as training

import tamp
from tamp import conversations, experts, records, shrinking
from tamp.evaluation import compare, results, scoring
from tamp.files import sha256

SET = "mini-vqa"
CHOICES = ("all", "text", "atv", "amia", "balanced")
METHODS = {
    **{name: f"REAP, `{name}`" for name in CHOICES},
    "words": "REAP, `all`, questions without pictures",
    "count": "most tokens",
    "random": "random",
}
"""What decides which experts go, as the table names it; calibration is on pictures unless it says otherwise."""

KEPT = (6, 4, 2)
SEEDS = (0, 1, 2, 3, 4, 5)
QUESTIONS = {"n_questions": 500, "question_seed": 7}
N_SAMPLES = 64
TWICE = 2.0
"""An expert leans to a modality if its share of that modality's tokens is this many times its share of the other's."""


def calibration(processor, n: int, seed: int, pictures: bool = True) -> list[dict]:
    """Make calibration samples of the set, with or without their pictures."""
    if pictures:
        return tamp.calibration_set(SET, processor, n, seed)
    asked = conversations.shipped(SET, n, seed, "calibration")
    return [conversations.process(processor, records.dialogue(each.text, each.answer)) for each in asked]


def look(dense, tokens: str, samples: list[dict]) -> pd.DataFrame:
    """Score all experts, and count the tokens routed to each by modality."""
    return tamp.drop_experts(copy.deepcopy(dense), samples, 0.5, tokens, progress=False).table


def by_layer(table: pd.DataFrame, scores: pd.Series) -> list[torch.Tensor]:
    """Split the scores of all experts into those of every layer, (experts,) each."""
    return [torch.tensor(layer.to_numpy()) for _, layer in scores.groupby(table["block"])]


def cut(dense, scores: list[torch.Tensor], number: int) -> tuple:
    """Return a copy of the model with the experts of the highest scores, and which they are in every layer."""
    model = copy.deepcopy(dense)
    found, rest = shrinking.plan(model, shrinking.pools(model), number)
    kept = [experts.best(each, number) for each in scores]
    shrinking.finish(model, found, rest, kept)
    return model, [each.tolist() for each in kept]


def main(arguments: list[str] | None = None) -> dict:
    """Run the cells that are missing, and return what is recorded."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("build/mini-experts"))
    parser.add_argument("--n-questions", type=int, default=QUESTIONS["n_questions"])
    parser.add_argument("--n-samples", type=int, default=N_SAMPLES)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--kept", nargs="+", type=int, default=KEPT)
    parser.add_argument("--calibration-seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--out", default=recording.RESULTS, type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    record = options.model / "training.json"
    if not record.is_file() or json.loads(record.read_text())["held_out"] is None:
        training.main(["--out", str(options.model)])
    trained = json.loads(record.read_text())
    model, processor = tamp.load(str(options.model), device="cpu", dtype="float32")
    ready = scoring.prepare(processor, SET, options.n_questions, QUESTIONS["question_seed"])
    path = options.out / "trained_experts.json"
    cells = recording.cells(path)

    @functools.cache
    def looked(tokens: str, pictures: bool, seed: int) -> pd.DataFrame:
        return look(model, tokens, calibration(processor, options.n_samples, seed, pictures))

    def scores(method: str, seed: int) -> list[torch.Tensor]:
        table = looked(method if method in CHOICES else "all", method != "words", seed)
        if method == "random":
            return by_layer(table, pd.Series(np.random.default_rng(seed).random(len(table))))
        return by_layer(table, table["visual"] + table["text"] if method == "count" else table["score"])

    found = {
        "benchmark": SET,
        **QUESTIONS | {"n_questions": options.n_questions},
        "n_samples": options.n_samples,
        "model": {
            "weights_sha256": sha256(options.model / "model.safetensors"),
            "bytes": (options.model / "model.safetensors").stat().st_size,
            "experts": [training.EXPERTS, training.CHOSEN, training.WIDTH],
            **{name: trained[name] for name in ("seed", "parameters", "seconds", "held_out")},
        },
        "routed": looked("all", True, options.calibration_seeds[0])[["block", "expert", "visual", "text"]].to_dict(
            "records"
        ),
        "cells": cells,
    }
    wanted = [("dense", training.EXPERTS, 0)]
    wanted += [
        (method, number, seed)
        for number in options.kept
        for method in options.methods
        for seed in options.calibration_seeds
    ]
    done = {compare.key(cell) for cell in cells}
    for method, number, seed in tqdm([cell for cell in wanted if cell not in done]):
        smaller, kept = (model, None) if method == "dense" else cut(model, scores(method, seed), number)
        answers = compare.score(scoring.answers(smaller, processor, ready, progress=False))
        cells.append({"method": method, "level": number, "calibration_seed": seed, "kept": kept, **answers})
        recording.write("trained_experts", found, options.out)
    return found


def leaning(rows: list[dict]) -> pd.DataFrame:
    """Return, per block and expert, the expert's share of the block's visual and of its text tokens."""
    table = pd.DataFrame(rows)
    shares = table[["visual", "text"]] / table.groupby("block")[["visual", "text"]].transform("sum")
    return table.assign(visual=shares["visual"], text=shares["text"])


def accuracy(recorded: dict, method: str, number: int) -> str:
    """Write the mean accuracy of a method, its range, and a star if it surely differs from that of REAP with all tokens."""
    cells, base = (results.cells_of(recorded, name, number) for name in (method, "all"))
    points = [100 * cell["accuracy"] for cell in cells]
    _, low, high = results.interval(cells, base)
    star = "\\*" if method != "all" and (low > 0 or high < 0) else ""
    return f"{sum(points) / len(points):.1f}{star} ({min(points):.0f}–{max(points):.0f})"


def table(recorded: dict) -> str:
    """Write the accuracy of every method by the number of experts kept, and which experts take which tokens."""
    dense = results.cells_of(recorded, "dense", training.EXPERTS)
    whole = [100 * results.mean(dense, key) for key in ("accuracy", "choice_accuracy")]
    numbers = sorted({cell["level"] for cell in recorded["cells"]} - {training.EXPERTS}, reverse=True)
    names = [f"{number} of {training.EXPERTS}" for number in numbers]
    names += [f"among choices, {number} of {training.EXPERTS}" for number in numbers[1:]]
    lines = ["| experts that stay | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for method in results.methods(recorded):
        row = [accuracy(recorded, method, number) for number in numbers]
        row += [
            f"{100 * results.mean(results.cells_of(recorded, method, number), 'choice_accuracy'):.1f}"
            for number in numbers[1:]
        ]
        lines.append(f"| {METHODS[method]} | {' | '.join(row)} |")
    shares = leaning(recorded["routed"])
    visual, text = shares["visual"] >= TWICE * shares["text"], shares["text"] >= TWICE * shares["visual"]
    used = shares[["visual", "text"]]
    model = recorded["model"]
    return "\n".join(
        [
            *lines,
            "",
            f"Accuracy in %: exact match, mean and range over {len(results.cells_of(recorded, 'all', numbers[0]))} "
            f"calibration sets of {recorded['n_samples']} samples, then accuracy among the choices. "
            f"{recorded['n_questions']} questions, the same everywhere; with all experts {whole[0]:.1f} and {whole[1]:.1f}. "
            "\\* The 95 % interval of the difference from REAP with `all` excludes 0. "
            f"The model has {model['parameters']:,} parameters ({model['bytes'] / 1e6:.0f} MB) and was trained "
            f"for {sum(model['seconds'].values()) / 60:.0f} minutes on one core.",
            "",
            f"Of its {len(shares)} experts, {visual.sum()} take at least {TWICE:.0f} times as large a share of the visual "
            f"tokens as of the text tokens, and {text.sum()} the other way round. An expert takes "
            f"{100 * used['visual'].min():.0f} to {100 * used['visual'].max():.0f} % of its block's visual tokens and "
            f"{100 * used['text'].min():.0f} to {100 * used['text'].max():.0f} % of its text tokens; "
            f"{100 / training.EXPERTS:.1f} % would be even.",
        ]
    )


if __name__ == "__main__":
    print(table(main()))
