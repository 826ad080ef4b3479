"""What pruning does to answers: every method, level and calibration seed on a shipped model, on fresh questions.

    python tests/benchmarks/quality.py [--model smol-llava-next] [--levels 0.5 2:4] [--workers 2]

Finished cells are not run again, so the command can be stopped and given again. `tests/benchmarks/pages.py` writes tables
and figures of what was recorded.
"""

import argparse
import dataclasses

import recording

import tamp

EVALUATION_SEED = 7
SEEDS = (0, 1, 2)
METHODS = tuple(tamp.PRESETS)
PER_BLOCK = ("das:das_granularity=block", "tamp:das_granularity=block")
PRETRAINED = {
    "questions": 500,
    "evaluation_seed": EVALUATION_SEED,
    "calibration_samples": 16,
    "dtype": "bfloat16",  # as the 7B models run
    "text": True,
}
GRIDS = {
    "mini-llava-next": (
        tamp.Settings(
            model="mini-llava-next",
            benchmark="mini-vqa",
            calibration="mini-vqa",
            questions=1000,
            evaluation_seed=EVALUATION_SEED,
            calibration_samples=64,
            dtype="float32",
        ),
        METHODS,
        (0.5, 0.6, 0.7, 0.8, "2:4", "4:8"),
    ),
    "smol-llava-next": (
        tamp.Settings(model="smol-llava-next", benchmark="smol-vqa", calibration="smol-vqa", **PRETRAINED),
        (*METHODS, *PER_BLOCK),
        (0.5, 0.4, 0.6, 0.3, "2:4", "4:8"),
    ),
    "smol-videollama2": (
        tamp.Settings(model="smol-videollama2", benchmark="smol-avqa", calibration="smol-avqa", **PRETRAINED),
        METHODS,
        (0.5, 0.4),
    ),
}
"""Model to (settings, methods, levels, the most informative first)."""


SHORT = {"mini-llava-next": "mini", "smol-llava-next": "smol", "smol-videollama2": "smol_av"}
"""Shipped model to the first part of the names of its recorded files."""


def name(model: str, what: str = "quality") -> str:
    """Name a recorded file of a model, such as its grid's."""
    return f"{SHORT[model]}_{what}"


def main(arguments: list[str] | None = None) -> dict:
    """Run the cells that are missing, and return the grid."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smol-llava-next", choices=GRIDS)
    parser.add_argument("--levels", nargs="+", help="these only")
    parser.add_argument("--methods", nargs="+", help="these only")
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS, help="of the calibration samples")
    parser.add_argument("--limit", type=int, help="questions")
    parser.add_argument("--n", type=int, help="calibration samples")
    parser.add_argument("--workers", type=int)
    parser.add_argument("--out", default=recording.RESULTS, type=recording.Path)
    options = parser.parse_args(arguments)
    settings, methods, levels = GRIDS[options.model]
    changes = {"questions": options.limit, "calibration_samples": options.n}
    return tamp.compare(
        dataclasses.replace(settings, **{field: value for field, value in changes.items() if value}),
        options.methods or methods,
        [level for level in levels if not options.levels or str(level) in options.levels],
        options.seeds,
        out=options.out / f"{name(options.model)}.json",
        workers=options.workers,
        device="cpu",
    )


if __name__ == "__main__":
    main()
