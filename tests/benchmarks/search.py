"""Is there a recipe better than `tamp` and `atv` at their cost? Candidates and rules, fixed before anything was run.

    python tests/benchmarks/search.py choose --model mini-llava-next
    python tests/benchmarks/search.py confirm --model mini-llava-next

Every candidate is spelled by options that exist. They are compared once, on the seeds and questions of `CHOOSE`, and one is
chosen per model: of those that take at most `COST` times the seconds of `tamp` in the same run, the one with the lowest mean
answer NLL. It is then compared once more with the references, on the seeds and questions of `CONFIRM`, which played no part
in the choice. It becomes a preset only if its accuracy there is above that of both references at every level of the real
language model, each by a paired 95 % interval without zero, and on the small model not below either.
"""

import argparse
import dataclasses
import statistics

import quality
import recording
import torch

import tamp
from tamp.evaluation import results

REFERENCES = ("tamp", "atv")
CANDIDATES = (
    "text",  # the simplest choice of tokens
    "text:allocation=das,das_granularity=block",
    "atv:allocation=das",
    "atv:allocation=das,das_granularity=block",
    "atv:atv_alpha=4",  # four times the visual tokens
    "tamp:das_granularity=block",
    "tamp:das_cap=0.05",
    "sparsegpt",  # updates, from all tokens
    "sparsegpt:tokens=text",
    "sparsegpt:tokens=atv",
    "sparsegpt:tokens=amia",
    "sparsegpt:allocation=das",
    "sparsegpt:tokens=atv,allocation=das",
)
COST = 1.25
CHOOSE = {"n_questions": 200, "question_seed": 11, "calibration_seeds": (10, 11)}
CONFIRM = {"n_questions": 500, "question_seed": 12, "calibration_seeds": (20, 21, 22)}
RECORDS = {"choose": "choice", "confirm": "confirmation"}
LEVELS = {"mini-llava-next": (0.7, 0.8), "smol-llava-next": (0.5, 0.6)}


def chosen(grid: dict, candidates: tuple[str, ...] = CANDIDATES, baseline: str = "tamp", cost: float = COST) -> str:
    """Return the candidate that the rule of the choice gives on a recorded comparison.

    It is the one with the lowest mean answer NLL among those that take at most ``cost`` times the baseline's seconds.

    Raises:
        ValueError: if a candidate or the baseline is missing at a level or seed.
    """
    levels = results.levels(grid)
    base = [cell for level in levels for cell in results.cells_of(grid, baseline, level)]
    seeds = {cell["calibration_seed"] for cell in base}
    likelihood = {}
    for method in candidates:
        cells = [cell for level in levels for cell in results.cells_of(grid, method, level)]
        if not cells or len(cells) != len(base) or len(base) != len(levels) * len(seeds):
            raise ValueError(f"the comparison lacks cells of {method}")
        if statistics.median(cell["seconds"] / other["seconds"] for cell, other in zip(cells, base)) <= cost:
            likelihood[method] = results.mean(cells, "nll")
    return min(likelihood, key=likelihood.get)


def holds(grid: dict, method: str, strictly: bool = True) -> bool:
    """Check the rule of the confirmation: above both references everywhere, or, not strictly, below neither."""
    for level in results.levels(grid):
        for reference in REFERENCES:
            _, low, high = results.interval(
                results.cells_of(grid, method, level), results.cells_of(grid, reference, level)
            )
            if low <= 0 if strictly else high < 0:
                return False
    return True


def main(arguments: list[str] | None = None) -> dict:
    """Run the cells that are missing of one of the two comparisons, and return it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=("choose", "confirm"))
    parser.add_argument("--model", default="smol-llava-next", choices=LEVELS)
    options = parser.parse_args(arguments)
    if options.stage == "choose":
        stage, methods = CHOOSE, CANDIDATES
    else:
        stage, methods = CONFIRM, (chosen(results.recorded(quality.name(options.model, RECORDS["choose"]))),)
    return run(
        options.model, stage, (*REFERENCES, *methods), LEVELS[options.model], RECORDS[options.stage], "tamp", text=False
    )


def run(model: str, stage: dict, methods: tuple, levels: tuple, record: str, baseline: str, **changes) -> dict:
    """Run what is missing of one comparison of a search on one core.

    Args:
        model: the shipped model.
        stage: its questions and seeds, such as `CHOOSE`.
        methods: what is compared.
        levels: where.
        record: last part of the name of the recorded file.
        baseline: method that the others are compared with.
        **changes: to the settings of the model's grid.
    """
    usual, *_ = quality.GRIDS[model]
    torch.set_num_threads(1)
    asked = {name: stage[name] for name in ("n_questions", "question_seed")}
    return tamp.compare(
        dataclasses.replace(usual, **asked, **changes),
        methods,
        levels,
        stage["calibration_seeds"],
        out=recording.RESULTS / f"{quality.name(model, record)}.json",
        baseline=baseline,
        device="cpu",
    )


if __name__ == "__main__":
    main()
