"""Do weights that adapt to a mask which tokens chose beat SparseGPT? Candidates and rules, fixed before anything was run.

    python tests/benchmarks/update_search.py choose --model smol-llava-next
    python tests/benchmarks/update_search.py confirm --model smol-llava-next
    python tests/benchmarks/update_search.py choose --model smol-llava-next --of admm
    python tests/benchmarks/update_search.py levels

Every candidate is a mask of the package under ``update="least_squares"``. They are compared once, on the seeds and
questions of `CHOOSE`, and one is chosen per model: of those that take at most `COST` times the seconds of SparseGPT in the
same run, the one with the lowest mean answer NLL. It is then compared once more with the references, on the seeds and
questions of `CONFIRM`, which played no part in the choice. It is above SparseGPT at a level if the paired 95 % interval of
its accuracy there is above zero, and beside it if the interval holds zero; it keeps the language if its mean perplexity
of documentation is not above SparseGPT's.

A second search, ``--of admm``, asks the same of masks that are chosen while the other weights adapt, where a fixed mask
falls short: 2:4, and the highest level of the first. Seeds, questions and rule are the same; the cost allowed is larger.

What both searches confirmed on smol-llava-next is then run at the levels of `LEVELS`, on the same samples and questions. No
choice is made there. A third search, ``--of steps``, asks whether fewer steps do, at a lower cost.
"""

import argparse
import statistics
from typing import NamedTuple

import quality
import recording
import search

from tamp.evaluation import results
from tamp.recipe import PRESETS, Recipe

REFERENCES = ("sparsegpt", "tamp", "atv", "text")
CHOOSE = {"n_questions": 100, "question_seed": 21, "calibration_seeds": (30,)}
CONFIRM = {"n_questions": 500, "question_seed": 22, "calibration_seeds": (40, 41, 42)}

LEVELS = (0.4, 0.5, 0.6, "2:4")
TWO = ("least_squares", "admm")


class Search(NamedTuple):
    """What is compared, where, and what it may cost.

    Attributes:
        candidates: methods.
        cost: seconds allowed, in units of SparseGPT's in the same run.
        levels: per model.
        records: last parts of the names of the recorded files.
        references: what the chosen one is confirmed against.
    """

    candidates: tuple[str, ...]
    cost: float
    levels: dict[str, tuple]
    records: dict[str, str]
    references: tuple[str, ...] = REFERENCES


SEARCHES = {
    "least_squares": Search(
        candidates=(
            "magnitude:update=least_squares",  # a mask that looked at no sample
            "wanda:update=least_squares",
            "text:update=least_squares",
            "atv:update=least_squares",
            "amia:update=least_squares",
            "tamp:update=least_squares",
            "text:update=least_squares,update_tokens=quarter",
            "text:update=least_squares,update_tokens=text",
            "text:update=least_squares,update_damping=0.01",
        ),
        cost=1.0,
        levels={
            "mini-llava-next": (0.6, 0.7, 0.8),
            "smol-llava-next": (0.5, 0.6),
            "smol-videollama2": (0.4, 0.5),
        },
        records={"choose": "update_choice", "confirm": "update_confirmation"},
    ),
    "admm": Search(
        candidates=(
            "text:update=admm",
            "atv:update=admm",
            "text:update=admm,update_damping=0.01",
            "atv:update=admm,update_damping=0.01",
            "text:update=least_squares",  # the fixed mask, for comparison
        ),
        cost=2.0,
        levels={"mini-llava-next": (0.7, 0.8, "2:4"), "smol-llava-next": (0.6, "2:4")},
        records={"choose": "admm_choice", "confirm": "admm_confirmation"},
        references=("sparsegpt",),  # the first confirmation has the others
    ),
    "steps": Search(
        candidates=tuple(f"atv:update=admm,update_damping=0.01,admm_steps={steps}" for steps in (8, 12, 16)),
        cost=1.25,
        levels={"smol-llava-next": (0.6, "2:4")},
        records={"choose": "steps_choice", "confirm": "steps_confirmation"},
        references=("sparsegpt",),
    ),
}


def chosen(grid: dict, of: str = "least_squares") -> str:
    """Return the candidate that the rule of the choice gives on a recorded comparison; see :func:`search.chosen`."""
    return search.chosen(grid, SEARCHES[of].candidates, "sparsegpt", SEARCHES[of].cost)


def verdicts(grid: dict, method: str) -> dict:
    """Return what the confirmation found per level: ``"above"``, ``"beside"`` or ``"below"`` SparseGPT."""
    found = {}
    for level in results.levels(grid):
        _, low, high = difference(grid, method, level)
        found[level] = "above" if low > 0 else "below" if high < 0 else "beside"
    return found


def difference(grid: dict, method: str, level: float) -> tuple[float, float, float]:
    """Return a method's accuracy less SparseGPT's, in points, and its paired 95 % interval."""
    return results.interval(results.cells_of(grid, method, level), results.cells_of(grid, "sparsegpt", level))


def confirmed() -> list[str]:
    """Return what the searches chose on smol-llava-next, with SparseGPT first."""
    choices = {of: results.recorded(quality.name("smol-llava-next", SEARCHES[of].records["choose"])) for of in TWO}
    return ["sparsegpt", *(chosen(choice, of) for of, choice in choices.items())]


def called(method: str) -> str:
    """Return the name of the preset that a spelled method is, or what it is spelled."""
    if ":" not in method:
        return method
    recipe = Recipe.spelled(method, 0.5)
    return next((name for name in PRESETS if Recipe.preset(name, sparsity=0.5) == recipe), method)


def at_levels() -> dict:
    """Run what the confirmations lack of `LEVELS`, and return all of it as one comparison."""
    methods = confirmed()
    out = recording.RESULTS / f"{quality.name('smol-llava-next', 'update_levels')}.json"
    if not out.exists():
        made = [
            results.recorded(quality.name("smol-llava-next", each.records["confirm"])) for each in SEARCHES.values()
        ]
        cells = {
            (cell["method"], cell["level"], cell["calibration_seed"]): cell for grid in made for cell in grid["cells"]
        }
        kept = [cell for (method, level, _), cell in cells.items() if method == "dense" or method in methods]
        results.write_result(out, {**made[0], "cells": [cell for cell in kept if cell["level"] in (0.0, *LEVELS)]})
    return search.run("smol-llava-next", CONFIRM, methods, LEVELS, "update_levels", "sparsegpt")


def levels_table(grid: dict) -> str:
    """Write accuracy with its difference to SparseGPT's, likelihood, what is left of the language, and cost."""
    lines = [
        "| | method | accuracy | less SparseGPT | NLL | perplexity | facts % | seconds | memory |",
        "|---" * 9 + "|",
    ]
    for level in results.levels(grid):
        for method in results.methods(grid):
            cells = results.cells_of(grid, method, level)
            points, low, high = difference(grid, method, level)
            apart = "–" if method == "sparsegpt" else f"{points:+.1f} [{low:+.1f}, {high:+.1f}]"
            fields = ("accuracy", "nll", "documentation", "facts", "seconds", "peak_memory")
            accuracy, nll, text, facts, seconds, memory = (results.mean(cells, field) for field in fields)
            name = results.level_name(level)
            lines.append(
                f"| {name} | `{called(method)}` | {100 * accuracy:.1f} | {apart} | {nll:.2f} | {text:.0f} | "
                f"{100 * facts:.0f} | {seconds:.0f} | {memory / 2**30:.1f} GiB |"
            )
    return "\n".join(lines)


def short_table(grid: dict, mixed: dict) -> str:
    """Write what the README shows of ``repair``: accuracy and perplexity beside SparseGPT's.

    Args:
        grid: from :func:`at_levels`.
        mixed: the same at 50 %, calibrated on pictures and prose.
    """
    lines = ["| `smol-llava-next` | `sparsegpt` | `repair` | difference | perplexity |", "|---|---|---|---|---|"]
    method = confirmed()[-1]
    asked = [(grid, level, results.level_name(level)) for level in results.levels(grid)]
    for each, level, name in [*asked, (mixed, 0.5, "50 %, half of the samples prose")]:
        ours, theirs = (results.cells_of(each, which, level) for which in (method, "sparsegpt"))
        points, low, high = difference(each, method, level)
        accuracy, text = (
            [results.mean(cells, field) for cells in (theirs, ours)] for field in ("accuracy", "documentation")
        )
        lines.append(
            f"| {name} | {100 * accuracy[0]:.1f} | {100 * accuracy[1]:.1f} | {points:+.1f} [{low:+.1f}, {high:+.1f}] | "
            f"{text[0]:.0f}, {text[1]:.0f} |"
        )
    cost = [
        cell["seconds"] / other["seconds"]
        for level in results.levels(grid)
        for cell, other in zip(results.cells_of(grid, method, level), results.cells_of(grid, "sparsegpt", level))
    ]
    note = (
        f"Accuracy in per cent. {grid['n_questions']} questions, {grid['n_samples']} samples drawn three times; it takes "
        f"{statistics.median(cost):.1f} times SparseGPT's seconds on one core."
    )
    return "\n".join([*lines, "", note])


def table(grid: dict) -> str:
    """Write accuracy, likelihood, perplexity and seconds against SparseGPT's, per method and level."""
    levels = results.levels(grid)
    lines = [f"| `{grid['model']}` | {' | '.join(map(results.level_name, levels))} |", "|---" * (len(levels) + 1) + "|"]
    for method in results.methods(grid):
        row = []
        for level in levels:
            cells, base = (results.cells_of(grid, name, level) for name in (method, "sparsegpt"))
            said = f"{100 * results.mean(cells, 'accuracy'):.1f} ({results.mean(cells, 'nll'):.2f}"
            if "documentation" in cells[0]:
                said += f"; {results.mean(cells, 'documentation'):.0f}"
            cost = statistics.median(cell["seconds"] / other["seconds"] for cell, other in zip(cells, base))
            row.append(f"{said}) {cost:.2f} x")
        lines.append(f"| `{called(method)}` | {' | '.join(row)} |")
    text = "; perplexity of documentation" if "documentation" in grid["cells"][0] else ""
    seeds = len({cell["calibration_seed"] for cell in grid["cells"] if cell["level"]})
    note = (
        f"Accuracy in per cent (answer NLL{text}) and seconds in units of SparseGPT's. {grid['n_questions']} questions, "
        f"{grid['n_samples']} calibration samples, {seeds} calibration {'seed' if seeds == 1 else 'seeds'}."
    )
    return "\n".join([*lines, "", note])


def line(grid: dict, method: str) -> str:
    """Return what a confirmation found of the chosen method, as a sentence."""
    said = []
    for level, verdict in verdicts(grid, method).items():
        points, low, high = difference(grid, method, level)
        said.append(
            f"{verdict} SparseGPT at {results.level_name(level)}, {points:+.1f} points [{low:+.1f}, {high:+.1f}]"
        )
    return f"* `{grid['model']}`, `{called(method)}`: {'; '.join(said)}."


def main(arguments: list[str] | None = None) -> dict:
    """Run the cells that are missing of one of the two comparisons, and return it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=("choose", "confirm", "levels"))
    parser.add_argument("--model", default="smol-llava-next", choices=quality.GRIDS)
    parser.add_argument("--of", default="least_squares", choices=SEARCHES, help="which update")
    options = parser.parse_args(arguments)
    sought = SEARCHES[options.of]
    if options.stage == "levels":
        return at_levels()
    if options.stage == "choose":
        stage, methods = CHOOSE, ("sparsegpt", *sought.candidates)
    else:
        choice = results.recorded(quality.name(options.model, sought.records["choose"]))
        stage, methods = CONFIRM, (*sought.references, chosen(choice, options.of))
    levels, record = sought.levels[options.model], sought.records[options.stage]
    return search.run(options.model, stage, methods, levels, record, "sparsegpt")


if __name__ == "__main__":
    main()
