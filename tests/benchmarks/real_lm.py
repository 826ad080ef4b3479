"""What pruning does to a real pretrained language model: perplexity of SmolLM2-135M-Instruct on text that ships with Python.

    python tests/benchmarks/real_lm.py [--sparsities 0.4 0.5 0.6]

Calibrated on one part of Python's documentation, measured on another part of it and on Python's licence. Text only: AMIA and
DAS see one modality. Finished cells are not run again.
"""

import argparse
import copy
import json
import sysconfig
from pathlib import Path
from pydoc_data import topics

import recording
import torch

import tamp
from tamp import evaluation

NAME = "smollm2_text"
METHODS = ("magnitude", "wanda", "sparsegpt", "das", "das per block", "amia", "tamp")


def texts() -> dict[str, str]:
    """Return documentation to calibrate on, other documentation, and licence prose."""
    pages = [topics.topics[name] for name in sorted(topics.topics)]
    licence = next(
        path
        for path in (Path(sysconfig.get_path("stdlib")) / "LICENSE.txt", recording.ROOT / "LICENSE")
        if path.is_file()
    )
    return {
        "calibration": "\n".join(pages[::2]),
        "documentation": "\n".join(pages[1::2]),
        "licence": licence.read_text(),
    }


def main(arguments: list[str] | None = None, load=tamp.load) -> dict:
    """Run the cells that are missing, and return everything recorded."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.4, 0.5, 0.6])
    parser.add_argument("--n", type=int, default=16)
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--windows", type=int, default=16, help="windows measured per text")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", default=recording.RESULTS, type=recording.Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    model, tokenizer = load(options.model, device="cpu", dtype="float32")
    read = texts()

    def cut(text: str, count: int) -> str:
        """Cut a text to so many windows, with a little to spare for tokens that join."""
        ids = tokenizer(text, add_special_tokens=False)["input_ids"][: count * options.window + 8]
        return tokenizer.decode(ids)

    ids = tokenizer(read["calibration"], add_special_tokens=False, return_tensors="pt")["input_ids"][0]
    samples = [
        {"input_ids": part[None], "attention_mask": torch.ones_like(part[None])}
        for part in ids[: options.n * options.window].split(options.window)
    ]
    measured = {name: cut(read[name], options.windows) for name in ("documentation", "licence")}
    settings = {"model": options.model, "samples": len(samples), "window": options.window, "windows": options.windows}
    path = options.out / f"{NAME}.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    cells = found.get("cells", []) if all(found.get(key) == value for key, value in settings.items()) else []
    done = {(cell["method"], cell["sparsity"]) for cell in cells}
    result = {**settings, "cells": cells}
    for method, sparsity in [("dense", 0.0), *((method, level) for level in options.sparsities for method in METHODS)]:
        if (method, sparsity) in done:
            continue
        pruned, seconds = copy.deepcopy(model), 0.0
        if method != "dense":
            changes = {"das_granularity": "block"} if method == "das per block" else {}
            recipe = tamp.Recipe.preset(method.split()[0], sparsity=sparsity, **changes)
            seconds = sum(tamp.prune(pruned, samples, recipe, progress=False).seconds.values())
        scores = {
            name: round(evaluation.perplexity(pruned, tokenizer, text, options.window, progress=False), 2)
            for name, text in measured.items()
        }
        cells.append({"method": method, "sparsity": sparsity, **scores, "seconds": round(seconds, 1)})
        recording.write(NAME, result, options.out)
    return result


if __name__ == "__main__":
    print(*main()["cells"], sep="\n")
