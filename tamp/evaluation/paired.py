"""Two models on the same questions: the difference and the ratio of their mean points, with 95 % bootstrap intervals."""

import functools
import math
from collections.abc import Sequence

import numpy as np

DRAWS = 2000
"""Bootstrap samples of an interval."""

MOST_LOST = 0.05
"""Share of empty and unparsable answers above which no retention is given: the score is then not one of answers."""


def difference(points, base) -> tuple[float, float, float]:
    """Return the mean of ``points - base`` over questions, with its interval, in percentage points.

    Args:
        points: (n,) of one model, in [0, 1] per question.
        base: (n,) of the other, for the same questions.
    """
    gains = 100 * (np.asarray(points, float) - np.asarray(base, float))  # (n,)
    return float(gains.mean()), *_interval(_weights(len(gains)) @ gains)


def retention(points, base) -> tuple[float, float, float]:
    """Return the mean of ``points`` in per cent of that of ``base``, with its interval; NaN where base has no point."""
    return mean_retention([(points, base)])


def mean_retention(couples: Sequence[tuple]) -> tuple[float, float, float]:
    """Return the mean of several benchmarks' retentions, with its interval; NaN where a base has no point.

    The questions of a benchmark are drawn together for both models. A draw in which a base has no point does not count.

    Args:
        couples: ``(points, base)`` of each benchmark, (n,) each, in the same order of questions.
    """
    exact, drawn = [], []
    for stream, (points, base) in enumerate(couples):
        points, base = np.asarray(points, float), np.asarray(base, float)
        if not base.sum():
            return math.nan, math.nan, math.nan
        weights = _weights(len(base), stream)
        with np.errstate(divide="ignore", invalid="ignore"):
            drawn.append(100 * (weights @ points) / (weights @ base))  # (DRAWS,)
        exact.append(100 * float(points.sum() / base.sum()))
    ratios = np.mean(drawn, axis=0)
    return float(np.mean(exact)), *_interval(ratios[np.isfinite(ratios)])


@functools.lru_cache(maxsize=4)
def _weights(n: int, stream: int = 0) -> np.ndarray:
    """Draw how often each of n questions counts in each bootstrap sample, as shares, (DRAWS, n)."""
    return np.random.default_rng(stream).multinomial(n, np.full(n, 1 / n), DRAWS) / n


def _interval(drawn: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(low), float(high)
