"""Reading a recorded grid of runs: means, 95 % intervals, and paired differences on the same questions.

A grid is what ``data/results/*_quality.json`` holds: ``cells``, one per method, level (a sparsity, or a pattern such as
"2:4") and calibration seed, each with its scores and, packed into hexadecimal, which of the same questions it got right.
"""

from typing import Any

import numpy as np
import pandas as pd

DRAWS = 2000
"""Bootstrap samples of an interval."""


def pack(correct: pd.Series) -> str:
    """Write right and wrong answers as hexadecimal, the first question in the highest bit."""
    return np.packbits(correct.to_numpy(bool)).tobytes().hex()


def unpack(cell: dict[str, Any]) -> np.ndarray:
    """Read a cell's right and wrong answers, (questions,) bool."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(cell["correct"]), np.uint8))[: cell["n"]].astype(bool)


def cells_of(grid: dict[str, Any], method: str, level: float | str) -> list[dict]:
    """Pick a method's cells at one level, one per calibration seed."""
    return [cell for cell in grid["cells"] if cell["method"] == method and cell["sparsity"] == level]


def methods(grid: dict[str, Any]) -> list[str]:
    """List the methods of a grid in order, without the dense model."""
    return list(dict.fromkeys(cell["method"] for cell in grid["cells"] if cell["method"] != "dense"))


def levels(grid: dict[str, Any]) -> list[float | str]:
    """List the levels of a grid: sparsities, then patterns."""
    found = {cell["sparsity"] for cell in grid["cells"] if cell["method"] != "dense"}
    return sorted(found, key=lambda level: (isinstance(level, str), level))


def mean(cells: list[dict], key: str) -> float:
    """Average a score over calibration seeds."""
    return sum(cell[key] for cell in cells) / len(cells)


def interval(cells: list[dict], base: list[dict] | None = None, draws: int = DRAWS) -> tuple[float, float, float]:
    """Average accuracy in per cent over seeds, with a 95 % bootstrap interval over questions and seeds.

    Args:
        cells: one per calibration seed, over the same questions.
        base: subtract these, on the same questions drawn.
        draws: bootstrap samples.

    Returns:
        (mean, low, high), in per cent or, with a base, percentage points.
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


def differences(grid: dict[str, Any], to: str = "wanda") -> pd.DataFrame:
    """Compare every method with one of them on the same questions.

    Returns:
        A row per method and level: method, sparsity, points (difference in accuracy), low and high (its 95 % interval).
    """
    rows = []
    for level in levels(grid):
        base = cells_of(grid, to, level)
        for method in methods(grid):
            if method != to and base and (cells := cells_of(grid, method, level)):
                points, low, high = (round(value, 1) for value in interval(cells, base))
                rows.append({"method": method, "sparsity": level, "points": points, "low": low, "high": high})
    return pd.DataFrame(rows)


def retention(grid: dict[str, Any]) -> pd.DataFrame:
    """Tell how much of the dense model's accuracy each method keeps, in per cent: methods by levels, NaN if not run."""
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
