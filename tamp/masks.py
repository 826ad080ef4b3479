"""Masks from a metric: which weights of a linear to drop.

A metric has the shape of the weight, ``(out, in)``; the smaller an entry, the sooner its weight goes. Masks are
boolean and True means *drop*. Equal entries are dropped in the order of their columns.
"""

import math
from fractions import Fraction
from numbers import Real

import torch
from torch import Tensor


def exact(sparsity: float) -> Fraction:
    """Read a sparsity as the decimal it prints as, so that 29 % of 100 is 29 and not 28.999.

    Raises:
        ValueError: if it is not a number in [0, 1).
    """
    if not isinstance(sparsity, Real) or not 0 <= sparsity < 1:  # NaN fails too
        raise ValueError(f"sparsity is a share of weights in [0, 1), not {sparsity!r}")
    return Fraction(str(float(sparsity)))


DENSE = "dense|"
"""What a pattern begins with under which every matrix is dense or n:m, and nothing else."""


def parse_pattern(pattern: str) -> tuple[int, int]:
    """Read ``"n:m"`` or ``"dense|n:m"``: of m consecutive inputs, n are dropped.

    Raises:
        ValueError: if the text is not two whole numbers with 0 < n < m.
    """
    n, colon, m = str(pattern).removeprefix(DENSE).partition(":")
    if not (colon and n.isdecimal() and m.isdecimal() and 0 < int(n) < int(m)):
        raise ValueError(
            f"a pattern is 'n:m', n of every m weights dropped and 0 < n < m, such as '2:4', not {pattern!r}"
        )
    return int(n), int(m)


def unstructured(metric: Tensor, sparsity: float | None = None, *, drop: int | None = None) -> Tensor:
    """Drop the smallest entries of every row.

    Args:
        metric: (out, in), any float type.
        sparsity: share of each row to drop, in [0, 1): ``floor(in * sparsity)`` entries, as Wanda does.
        drop: instead, how many entries of the whole matrix to drop. Each row drops ``drop // out``; the remainder goes to
            the rows whose next candidate is smallest, so that a budget is met to one weight.

    Returns:
        (out, in) bool, True = drop.

    Raises:
        ValueError: if not exactly one of the two is given, or it is out of range.
    """
    if metric.ndim != 2:
        raise ValueError(f"a metric is a matrix (out, in), not of shape {tuple(metric.shape)}")
    if (sparsity is None) == (drop is None):
        raise ValueError("give either a sparsity or a number of weights to drop")
    rows, columns = metric.shape
    if drop is None:
        drop = math.floor(columns * exact(sparsity)) * rows
    if not 0 <= drop <= metric.numel():
        raise ValueError(f"cannot drop {drop} of {metric.numel()} weights")
    each, extra = divmod(drop, rows)
    order = metric.argsort(dim=1, stable=True)  # (out, in)
    mask = torch.zeros_like(metric, dtype=torch.bool)
    mask.scatter_(1, order[:, :each], True)
    if extra:
        candidate = order[:, each : each + 1]  # (out, 1)
        rows_extra = metric.gather(1, candidate).flatten().argsort(stable=True)[:extra]
        mask[rows_extra, candidate[rows_extra, 0]] = True
    return mask


def n_of_m(metric: Tensor, n: int, m: int) -> Tensor:
    """Drop the n smallest of every m consecutive inputs of a row (2:4 drops 2 of 4).

    Args:
        metric: (out, in), ``in`` divisible by m.
        n: how many of each group to drop, 0 to m.
        m: the size of a group.

    Returns:
        (out, in) bool, True = drop.

    Raises:
        ValueError: if n is not between 0 and m, or the width is not divisible by m.
    """
    if metric.ndim != 2:
        raise ValueError(f"a metric is a matrix (out, in), not of shape {tuple(metric.shape)}")
    if m < 1 or not 0 <= n <= m:
        raise ValueError(f"cannot drop {n} of every {m} weights: n must lie between 0 and m")
    rows, columns = metric.shape
    if columns % m:
        raise ValueError(f"a width of {columns} inputs is not divisible by m = {m}")
    groups = metric.reshape(rows, columns // m, m)
    smallest = groups.argsort(dim=2, stable=True)[..., :n]
    return torch.zeros_like(groups, dtype=torch.bool).scatter_(2, smallest, True).reshape(rows, columns)
