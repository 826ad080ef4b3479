"""Perplexity of a pretrained language model after pruning: SmolLM2-135M-Instruct on text that ships with Python.

    python tests/benchmarks/real_lm.py [--sparsities 0.4 0.5 0.6]

Calibrated on one part of Python's documentation, measured on another part of it and on Python's licence. Text only: AMIA and
DAS have one modality. Finished cells are not run again.
"""

import argparse
import copy
import json

import recording
import torch

import tamp
from tamp.evaluation import scoring
from tamp.worlds import prose

NAME = "smollm2_text"
METHODS = ("magnitude", "wanda", "sparsegpt", "das", "das per block", "amia", "tamp")


def main(arguments: list[str] | None = None, load=tamp.load) -> dict:
    """Run the cells that are missing, and return everything recorded."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.4, 0.5, 0.6])
    parser.add_argument("--n-samples", type=int, default=16)
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--windows", type=int, default=16, help="windows measured per text")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", default=recording.RESULTS, type=recording.Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    model, tokenizer = load(options.model, device="cpu", dtype="float32")
    read = prose.texts()
    ids = tokenizer(read["calibration"], add_special_tokens=False, return_tensors="pt")["input_ids"][0]
    samples = [
        {"input_ids": part[None], "attention_mask": torch.ones_like(part[None])}
        for part in ids[: options.n_samples * options.window].split(options.window)
    ]
    settings = {"model": options.model, "n_samples": len(samples), "window": options.window, "windows": options.windows}
    path = options.out / f"{NAME}.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    cells = found.get("cells", []) if all(found.get(key) == value for key, value in settings.items()) else []
    done = {(cell["method"], cell["level"]) for cell in cells}
    result = {**settings, "cells": cells}
    for method, level in [("dense", 0.0), *((method, level) for level in options.sparsities for method in METHODS)]:
        if (method, level) in done:
            continue
        pruned, seconds = copy.deepcopy(model), 0.0
        if method != "dense":
            changes = {"das_granularity": "block"} if method == "das per block" else {}
            recipe = tamp.Recipe.preset(method.split()[0], sparsity=level, **changes)
            seconds = sum(tamp.prune(pruned, samples, recipe, progress=False).seconds.values())
        scores = {
            name: round(
                scoring.perplexity(pruned, tokenizer, read[name], options.window, options.windows, progress=False), 2
            )
            for name in ("documentation", "licence")
        }
        cells.append({"method": method, "level": level, **scores, "seconds": round(seconds, 1)})
        recording.write(NAME, result, options.out)
    return result


if __name__ == "__main__":
    print(*main()["cells"], sep="\n")
