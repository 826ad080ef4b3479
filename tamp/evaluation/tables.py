"""Tables of benchmark scores: question scores averaged per task, over all tasks, in per cent, with their intervals."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

COLUMNS = ("task", "n", "accuracy", "low", "high", "choice_accuracy", "nll", "chance")


def summarise(scored: pd.DataFrame, by: str = "task") -> pd.DataFrame:
    """Average question scores from :func:`answers` per task, in order of appearance, to the table of :func:`evaluate`."""
    table = (
        scored.groupby(by, sort=False)
        .agg(
            n=("correct", "size"),
            accuracy=("correct", "mean"),
            choice_accuracy=("choice_correct", "mean"),
            nll=("nll", lambda each: each.mean(skipna=False)),  # a NaN must show
            chance=("chance", "mean"),
        )
        .reset_index()
    )
    table["low"], table["high"] = wilson(table["accuracy"], table["n"])
    table = table[list(COLUMNS)]
    table.attrs = dict(scored.attrs)
    return table


def overall(scores: pd.DataFrame, always: Sequence[str] = ("accuracy", "nll")) -> pd.DataFrame:
    """Return one row over all tasks of a table from :func:`evaluate`, every question counting the same.

    Args:
        scores: the table.
        always: columns that every task has, in which a NaN must show. The others are those of the tasks that have them,
            such as choices; NaN if none has.
    """
    n = scores["n"].sum()
    row: dict[str, object] = {"task": "all", "n": n}
    for name in scores.columns.drop(["task", "n", "low", "high"]):
        there = scores if name in always else scores[scores[name].notna()]
        row[name] = (there[name] * there["n"]).sum(skipna=False) / there["n"].sum() if len(there) else math.nan
    row["low"], row["high"] = wilson(row["accuracy"], n)
    return pd.DataFrame([row])[list(scores.columns)]


def in_per_cent(scores: pd.DataFrame) -> pd.DataFrame:
    """Return a table of :func:`evaluate` for reading: a last row over all tasks, shares in per cent, rounded."""
    return rounded(pd.concat([scores, overall(scores)]))


def rounded(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table with its shares in per cent, rounded."""
    shares = table.columns.drop(["task", "n", "nll"])
    return table.assign(**{name: (100 * table[name]).round(1) for name in shares}, nll=table["nll"].round(3))


def wilson(share, n, z: float = 1.959964):
    """Return the 95 % score interval of a share of n (Wilson 1927), (low, high)."""
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return np.clip(centre - half, 0, 1), np.clip(centre + half, 0, 1)
