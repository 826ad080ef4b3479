"""Answers of pruned models: every method, level and calibration seed on a shipped model, on fresh questions.

    python tests/benchmarks/quality.py [--model smol-llava-next] [--levels 0.5 2:4]

Finished cells are not run again, so the command can be stopped and given again. `tests/benchmarks/pages.py` writes tables
and figures of what was recorded.
"""

import argparse
import dataclasses

import recording
import torch

import tamp

QUESTION_SEED = 7
CALIBRATION_SEEDS = (0, 1, 2)
METHODS = (
    "magnitude",
    "wanda",
    "sparsegpt",
    "text",
    "owl",
    "alphapruning",
    "ecoflap",
    "das",
    "atv",
    "amia",
    "tamp",
)
"""What the recorded grids hold; a new preset does not change them."""
PER_BLOCK = ("das:das_granularity=block", "tamp:das_granularity=block")
PRETRAINED = {
    "n_questions": 500,
    "question_seed": QUESTION_SEED,
    "n_samples": 16,
    "dtype": "bfloat16",  # as the 7B models run
    "text": True,
}
GRIDS = {
    "mini-llava-next": (
        tamp.Settings(
            model="mini-llava-next",
            benchmark="mini-vqa",
            calibration="mini-vqa",
            n_questions=1000,
            question_seed=QUESTION_SEED,
            n_samples=64,
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
"""Model to the first part of the names of its recorded files."""


def name(model: str, what: str = "quality") -> str:
    """Return the name of a recorded file of a model, such as that of its grid."""
    return f"{SHORT[model]}_{what}"


def main(arguments: list[str] | None = None) -> dict:
    """Run the cells that are missing, and return the grid."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smol-llava-next", choices=GRIDS)
    parser.add_argument("--levels", nargs="+", help="these only")
    parser.add_argument("--methods", nargs="+", help="these only")
    parser.add_argument("--calibration-seeds", nargs="+", type=int, default=CALIBRATION_SEEDS, help="a run each")
    parser.add_argument("--n-questions", type=int, help="number of questions")
    parser.add_argument("--n-samples", type=int, help="number of calibration samples")
    parser.add_argument("--out", default=recording.RESULTS, type=recording.Path)
    options = parser.parse_args(arguments)
    settings, methods, levels = GRIDS[options.model]
    changes = {"n_questions": options.n_questions, "n_samples": options.n_samples}
    torch.set_num_threads(1)  # the recorded seconds are those of one core
    return tamp.compare(
        dataclasses.replace(settings, **{field: value for field, value in changes.items() if value}),
        options.methods or methods,
        [level for level in levels if not options.levels or str(level) in options.levels],
        options.calibration_seeds,
        out=options.out / f"{name(options.model)}.json",
        device="cpu",
    )


if __name__ == "__main__":
    main()
