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


ENTRIES = 2**22  # of a matrix, whose rows are looked at together: finding the smallest takes 20 bytes for each
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
    each, extra = divmod(drop, max(rows, 1))
    mask, nexts = torch.empty(metric.shape, dtype=torch.bool, device=metric.device), []
    for part, into in zip(*(whole.split(max(1, ENTRIES // max(columns, 1))) for whole in (metric, mask))):
        into.copy_(_smallest(part, each))
        if extra:
            least = part.masked_fill(into, torch.inf).min(1, keepdim=True).values  # each row's next
            places = torch.where((part == least) & ~into, torch.arange(columns, device=metric.device), columns)
            nexts.append((least.flatten(), places.min(1).values))  # and the first place of it
    if extra:
        least, candidate = map(torch.cat, zip(*nexts))  # (out,)
        rows_extra = least.argsort(stable=True)[:extra]
        mask[rows_extra, candidate[rows_extra]] = True
    return mask


def _smallest(metric: Tensor, count: int) -> Tensor:
    """Find the smallest entries of every row, of equals the first, without sorting them: (out, in) bool."""
    if count == 0:
        return torch.zeros_like(metric, dtype=torch.bool)
    if torch.are_deterministic_algorithms_enabled():  # under which CUDA has no kthvalue
        largest = metric.sort(dim=1).values[:, count - 1 : count]
    else:
        largest = metric.kthvalue(count, dim=1, keepdim=True).values  # (out, 1), of those that are found
    mask = metric < largest
    equal = metric == largest
    return mask | (equal & (equal.cumsum(1, dtype=torch.int32) <= count - mask.sum(1, keepdim=True, dtype=torch.int32)))


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
    rank = torch.zeros_like(groups, dtype=torch.int16)  # how many of the group are smaller, or equal and before it
    for place in range(m):
        other = groups[..., place : place + 1]
        rank[..., :place] += other < groups[..., :place]
        rank[..., place + 1 :] += other <= groups[..., place + 1 :]
    return (rank < n).reshape(rows, columns)
