"""Recorded comparisons: reading and writing them, means, 95 % intervals, and differences on the same questions and samples.

A grid is what :func:`tamp.compare` records: ``cells``, one per method, level (a sparsity, or a pattern such as "2:4") and
calibration seed, each with its scores and, packed into hexadecimal, which of the same questions it got right and which of
some weights, the same in every cell, it dropped.
"""

import functools
import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tamp import schema
from tamp.errors import UserError, unknown
from tamp.evaluation.paired import DRAWS
from tamp.files import data_folder, write_text
from tamp.recipe import Recipe
from tamp.report import versions
from tamp.schema import Range

SAMPLED = 8192
"""Weights whose masks are recorded, the same in every cell: enough to know the overlap of two masks to about a point."""

TEXT_SCORES = ("documentation", "licence", "facts")
"""Of the language model: perplexity of two texts, and the share of facts answered."""

_SHARE = Range(0.0, 1.0)
CELL = {
    "method": str,
    "level": (str, _SHARE),
    "calibration_seed": Range(0),
    "n_questions": Range(1),
    "accuracy": _SHARE,
    "choice_accuracy": float,
    "nll": float,
    "tasks": {...: _SHARE},
    "correct": str,
    "exact_sparsity?": _SHARE,
    "seconds?": Range(0.0),
    "peak_memory?": Range(0),
    "tokens_kept?": (None, float),
    "sparsity_of?": {...: _SHARE},
    "mask?": str,
    **{f"{name}?": float for name in TEXT_SCORES},
}
"""What a recorded cell holds, see :func:`tamp.schema.misfit`."""


HINT = "It does not hold a comparison; choose another file."


def check_cells(path: str | Path, cells: list) -> None:
    """Check the cells read from a file: each by itself, and that all are about the same questions and weights.

    Raises:
        UserError: naming the file, the cell and what is wrong with it.
    """
    said, seen = schema.misfit(cells, [CELL], "cells"), set()
    for number, cell in enumerate([] if said else cells):
        fault = "is there twice" if _key(cell) in seen else _fault(cell, cells[0])
        seen.add(_key(cell))
        if fault:
            said = f"cell {number} ({cell['method']:.60}) {fault}"
            break
    if said:
        raise UserError(f"{path} is not a comparison: {said}. {HINT}")


def _key(cell: dict) -> tuple:
    return cell["method"], cell["level"], cell["calibration_seed"]


def _fault(cell: dict, first: dict) -> str:
    """Say what does not fit in a cell, by itself or with the first one of its grid."""
    if cell["n_questions"] != first["n_questions"]:
        return f"has {cell['n_questions']} questions and the first one {first['n_questions']}"
    digits = {"correct": 2 * -(-cell["n_questions"] // 8)}
    if "mask" in cell:
        digits["mask"] = 2 * SAMPLED // 8
    for name, length in digits.items():
        if len(cell[name]) != length or re.search("[^0-9a-f]", cell[name]):
            return f"has not {length} hexadecimal digits in {name!r}"
    if cell["method"] != "dense" and "seconds" not in cell:
        return "has no 'seconds'"
    if lacking := [name for name in TEXT_SCORES if (name in cell) != (name in first)]:
        return f"and the first one do not both have {lacking[0]!r}"
    if isinstance(cell["level"], str):
        try:
            Recipe.spelled("wanda", cell["level"])
        except UserError as error:
            return f"has a level that is not one: {error!s:.200}"
    return ""


def pack(correct: pd.Series) -> str:
    """Write right and wrong answers as hexadecimal, the first question in the highest bit."""
    return np.packbits(correct.to_numpy(bool)).tobytes().hex()


def unpack(cell: dict[str, Any], key: str = "correct") -> np.ndarray:
    """Read a cell's right and wrong answers, (n_questions,) bool; or its ``"mask"``, filled up to whole bytes."""
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(cell[key]), np.uint8)).astype(bool)
    return bits[: cell["n_questions"]] if key == "correct" else bits


def cells_of(grid: dict[str, Any], method: str, level: float | str) -> list[dict]:
    """Return a method's cells at one level, one per calibration seed."""
    return [cell for cell in grid["cells"] if cell["method"] == method and cell["level"] == level]


def methods(grid: dict[str, Any]) -> list[str]:
    """List the methods of a grid in order, without the dense model."""
    return list(dict.fromkeys(cell["method"] for cell in grid["cells"] if cell["method"] != "dense"))


def levels(grid: dict[str, Any]) -> list[float | str]:
    """List the levels of a grid: sparsities, then patterns."""
    found = {cell["level"] for cell in grid["cells"] if cell["method"] != "dense"}
    return sorted(found, key=lambda level: (isinstance(level, str), level))


def level_name(level: float | str) -> str:
    """Write a level: a sparsity in per cent, a pattern as it is."""
    return level if isinstance(level, str) else f"{100 * level:.0f} %"


def mean(cells: list[dict], key: str) -> float:
    """Average a score over calibration seeds."""
    return sum(cell[key] for cell in cells) / len(cells)


def pairs(cells: list[dict], base: list[dict]) -> list[tuple[dict, dict]]:
    """Return the pairs of cells of two methods with the same calibration samples.

    A method with one cell only, such as one without calibration, is paired with every cell of the other.
    """
    alone = 1 in (len(cells), len(base))
    seed = "calibration_seed"
    return [(cell, other) for cell in cells for other in base if alone or cell[seed] == other[seed]]


def interval(cells: list[dict], base: list[dict] | None = None, draws: int = DRAWS) -> tuple[float, float, float]:
    """Average accuracy in per cent over seeds, with a 95 % bootstrap interval over questions and calibration seeds.

    With three seeds the interval is a rough one.

    Args:
        cells: one per calibration seed, over the same questions.
        base: subtract these, question by question and seed by seed (:func:`pairs`).
        draws: bootstrap samples.

    Returns:
        (mean, low, high), in per cent or, with a base, percentage points; NaN if no seed is common to both.
    """
    if base is None:
        found = [unpack(cell).astype(float) for cell in cells]
    else:
        found = [unpack(cell).astype(float) - unpack(other) for cell, other in pairs(cells, base)]
    if not found:
        return np.nan, np.nan, np.nan
    points = 100 * np.stack(found)  # (seeds, questions)
    seeds, questions = _shares(points.shape, draws)
    drawn = (seeds @ points * questions).sum(axis=1)
    return points.mean(), *np.percentile(drawn, [2.5, 97.5])


@functools.lru_cache(maxsize=4)
def _shares(counts: tuple[int, ...], draws: int) -> list[np.ndarray]:
    """Draw how often each of n things counts in each bootstrap sample, as shares, (draws, n) for every count n."""
    random = np.random.default_rng(0)
    return [random.multinomial(n, np.full(n, 1 / n), draws) / n for n in counts]


def differences(grid: dict[str, Any], baseline: str = "wanda") -> pd.DataFrame:
    """Compare every method with a baseline on the same questions and calibration sets.

    Returns:
        A row per method and level, where method and baseline have a calibration seed in common: method, level, points
        (difference in accuracy), low and high (its 95 % interval).
    """
    rows = []
    for level in levels(grid):
        base = cells_of(grid, baseline, level)
        for method in methods(grid):
            if method != baseline and pairs(cells := cells_of(grid, method, level), base):
                points, low, high = (round(value, 1) for value in interval(cells, base))
                rows.append((method, level, points, low, high))
    return pd.DataFrame(rows, columns=["method", "level", "points", "low", "high"])


def scores(grid: dict[str, Any]) -> pd.DataFrame:
    """Average every method's scores at every level.

    Returns:
        A row per method and level, the dense model first: method, level, n_seeds, accuracy with low and high (in per cent,
        a 95 % interval), choice_accuracy (in per cent), nll (nats per token), retention (in per cent of dense), seconds,
        memory (bytes, the most of any seed), and those of `TEXT_SCORES` that were measured; NaN where a score was not
        recorded.
    """
    dense = cells_of(grid, "dense", 0.0)
    rows = []
    for level in [0.0, *levels(grid)]:
        for method in ["dense"] if level == 0.0 else methods(grid):
            if not (cells := cells_of(grid, method, level)):
                continue
            points, low, high = interval(cells)
            rows.append(
                {
                    "method": method,
                    "level": level,
                    "n_seeds": len(cells),
                    "accuracy": points,
                    "low": low,
                    "high": high,
                    "choice_accuracy": 100 * mean(cells, "choice_accuracy"),
                    "nll": mean(cells, "nll"),
                    "retention": points / mean(dense, "accuracy") if dense and mean(dense, "accuracy") else np.nan,
                    "seconds": mean(cells, "seconds") if method != "dense" else np.nan,
                    "memory": max(cell.get("peak_memory", np.nan) for cell in cells),
                    **{name: mean(cells, name) for name in TEXT_SCORES if name in cells[0]},
                }
            )
    return pd.DataFrame(rows)


def tasks(grid: dict[str, Any], level: float | str) -> pd.DataFrame:
    """Average accuracy per task over calibration seeds, in per cent: tasks by methods, the dense model first."""
    found = {"dense": cells_of(grid, "dense", 0.0)}
    found |= {method: cells for method in methods(grid) if (cells := cells_of(grid, method, level))}
    return pd.DataFrame(
        {method: 100 * pd.DataFrame([cell["tasks"] for cell in cells]).mean() for method, cells in found.items()}
    )


def overlaps(grid: dict[str, Any], level: float | str) -> pd.DataFrame:
    """Compute the overlap of the weights that methods drop at a level: intersection over union.

    Args:
        grid: the grid; methods without recorded masks are left out.
        level: sparsity or pattern.

    Returns:
        Methods by methods, means over the calibration seeds that both have; on the diagonal the mean over pairs of different
        seeds of the method, NaN if it has only one.
    """
    found = {
        method: cells
        for method in methods(grid)
        if (cells := [cell for cell in cells_of(grid, method, level) if "mask" in cell])
    }

    def overlap(one: str, other: str) -> float:
        couples = itertools.combinations(found[one], 2) if one == other else pairs(found[one], found[other])
        masks = [(unpack(cell, "mask"), unpack(second, "mask")) for cell, second in couples]
        return np.mean([(a & b).sum() / max(1, (a | b).sum()) for a, b in masks]) if masks else np.nan

    return pd.DataFrame({one: {other: overlap(one, other) for other in found} for one in found})


def retention(grid: dict[str, Any]) -> pd.DataFrame:
    """Return how much of the dense model's accuracy each method keeps, in per cent: methods by levels, NaN if not run."""
    dense = mean(cells_of(grid, "dense", 0.0), "accuracy")
    table = {
        level: {
            method: 100 * mean(cells, "accuracy") / dense
            for method in methods(grid)
            if (cells := cells_of(grid, method, level))
        }
        for level in levels(grid)
    }
    return pd.DataFrame(table).reindex(methods(grid))


def tables(grid: dict[str, Any]) -> list[tuple[str, pd.DataFrame]]:
    """Return what is shown of a grid, (heading, table) each: scores, differences, and overlaps at every level."""
    averaged = scores(grid).assign(memory=lambda table: table["memory"] / 2**20)
    gains = pd.DataFrame(grid["differences"])
    made = [
        ("Scores (%, nats per token, s, MiB)", averaged.round(2).set_index("method")),
        (f"Accuracy less that of {grid['baseline']}, on the same questions (points)", gains),
        *((f"Overlap of the dropped weights at {level}", overlaps(grid, level).round(3)) for level in levels(grid)),
    ]
    return [(heading, table) for heading, table in made if len(table)]


def recorded(name: str) -> dict[str, Any]:
    """Read a recorded measurement, a file of ``data/results/`` without its ``.json``.

    Raises:
        UserError: if there is no such file.
    """
    folder = data_folder() / "results"
    path = folder / f"{name}.json"
    if not path.is_file():
        known = sorted(file.relative_to(folder).with_suffix("").as_posix() for file in folder.rglob("*.json"))
        raise unknown("recorded result", name, known)
    return json.loads(path.read_text())


def published() -> list[pd.DataFrame]:
    """Return what others have published (``data/published.json``), tables with title, source and certainty in ``attrs``."""
    found = []
    for table in json.loads((data_folder() / "published.json").read_text())["tables"]:
        found.append(pd.DataFrame(table["rows"]).set_index(table["index"]))
        found[-1].attrs |= {name: table[name] for name in ("title", "source", "certainty")}
    return found


def write_result(path: str | Path, result: dict[str, Any]) -> Path:
    """Write a result as JSON beside the versions it was made with, completely or not at all."""
    return write_text(path, json.dumps({"made_with": versions(), **result}, indent=1) + "\n")
