"""Pruning criteria: how much a weight counts, and, for SparseGPT, how the others make up for it.

Weights are ``(out, in)``, inputs ``(tokens, in)``. Whatever the type of a weight, everything is computed in float32, with
float64 where a sum or a factorisation would otherwise lose small parts or depend on the number of threads.
"""

import dataclasses
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from tamp import masks
from tamp.accumulators import FEW, Covariance, Hessian, MeanSquare, Variance, add, add_shared, exact_type, pool
from tamp.methods import Criterion, Option

__all__ = [
    "CRITERIA",
    "FEW",
    "Covariance",
    "Hessian",
    "MeanSquare",
    "Variance",
    "add",
    "add_shared",
    "magnitude",
    "pool",
]


def magnitude(weight: Tensor) -> Tensor:
    """Score weights by their absolute value, (out, in) float32."""
    return weight.float().abs()


def wanda(weight: Tensor, mean_square: Tensor) -> Tensor:
    """Score weights by ``|W| * sqrt(mean square of their input)`` (Sun et al. 2023, arXiv 2306.11695, eq. 1).

    Args:
        weight: (out, in).
        mean_square: (in,), from :class:`MeanSquare`.

    Returns:
        (out, in) float32 metric.

    Raises:
        ValueError: if the shapes do not fit.
    """
    if mean_square.shape != weight.shape[1:]:
        raise ValueError(
            f"a weight of shape {tuple(weight.shape)} has {weight.shape[1]} inputs, "
            f"the statistic has shape {tuple(mean_square.shape)}"
        )
    return weight.float().abs() * mean_square.float().sqrt()  # (out, in)


def ria(weight: Tensor, mean_square: Tensor) -> Tensor:
    """Score weights by their share of their row and of their column, times the root of the norm of their input.

    Zhang et al. 2024 (RIA, ICLR), with its exponent 0.5.

    Args:
        weight: (out, in).
        mean_square: (in,), from :class:`MeanSquare`.

    Returns:
        (out, in) float32 metric.
    """
    size = weight.float().abs()
    tiny = torch.finfo(torch.float32).tiny
    shares = size / size.sum(0).clamp(min=tiny) + size / size.sum(1, keepdim=True).clamp(min=tiny)  # (out, in)
    return shares * mean_square.float().pow(0.25)


def sparsegpt(
    weight: Tensor,
    hessian: Tensor,
    sparsity: float | None = None,
    pattern: str | None = None,
    *,
    drop: int | None = None,
    damping: float = 0.01,
    block: int = 128,
) -> Tensor:
    """Prune a weight column by column and let the columns to the right absorb the error.

    Frantar and Alistarh 2023, arXiv 2301.00774, algorithm 1. Columns are taken in blocks; in each the entries with the
    smallest ``w^2 / u^2`` are dropped, u being the diagonal of the Cholesky factor of the inverse Hessian. Unstructured
    pruning takes one pool per block over all rows; after each block exactly ``floor(drop * columns so far / in)`` weights
    are gone, or more if more than that read inputs that are always zero: those weights always go. Weights that are zero
    stay zero and count as dropped; what is dropped beyond them is spread over the columns in proportion to the others.

    Args:
        weight: (out, in).
        hessian: (in, in), on any scale, from :class:`Hessian`.
        sparsity: share of weights to drop, in [0, 1).
        pattern: instead, ``"n:m"``.
        drop: instead, the exact number of weights to drop.
        damping: what to add to the Hessian's diagonal, as a share of its mean.
        block: columns per block; with a pattern, rounded up to a multiple of m.

    Returns:
        (out, in), the pruned and updated weight in the type of ``weight``.

    Raises:
        ValueError: if not exactly one of sparsity, pattern and drop is given, one is out of range, or shapes do not fit.
    """
    if (sparsity is not None) + (pattern is not None) + (drop is not None) != 1:
        raise ValueError("give exactly one of sparsity, pattern and drop")
    rows, columns = weight.shape
    if hessian.shape != (columns, columns):
        raise ValueError(
            f"a weight with {columns} inputs needs a Hessian of shape {(columns, columns)}, not {tuple(hessian.shape)}"
        )
    if block < 1 or not damping >= 0:
        raise ValueError(f"block must be at least 1 and damping at least 0, not {block} and {damping}")
    if pattern is not None:
        n, m = masks.parse_pattern(pattern)
        if columns % m:
            raise ValueError(f"a width of {columns} inputs is not divisible by m = {m}")
        block = -(-block // m) * m
    elif drop is None:
        drop = round(rows * columns * masks.exact(sparsity))
    if drop is not None and not 0 <= drop <= rows * columns:
        raise ValueError(f"cannot drop {drop} of {rows * columns} weights")

    updated = weight.float().clone()
    hessian = hessian.float().clone()
    if not (updated.isfinite().all() and hessian.isfinite().all()):
        raise ValueError("the weight or the Hessian holds NaN or infinity")
    zero = updated == 0
    alive = (~zero).sum(0).cumsum(0).tolist()  # (in,), up to and with each column
    fresh = max((drop or 0) - rows * columns + alive[-1], 0)  # to drop beyond the zeros
    diagonal = hessian.diagonal()
    dead = diagonal == 0
    if not dead.all():
        hessian /= diagonal[~dead].mean()  # the 1 that dead inputs get is then on the scale of the others
    diagonal[dead] = 1
    updated[:, dead] = 0
    diagonal += damping * diagonal.mean()
    for dtype in dict.fromkeys((exact_type(hessian.device), torch.float64)):
        factor = _spreading(hessian.to(dtype))
        if factor is not None:
            break
    else:
        raise ValueError(f"the Hessian is not positive definite: use more tokens or a damping above {damping}")

    dropped = 0
    for start in range(0, columns, block):
        stop = min(start + block, columns)
        part = updated[:, start:stop]  # (out, block), a view
        spread = factor[start:stop, start:stop]
        scale = spread.diagonal()
        gone = zero[:, start:stop]
        if drop is not None:
            due = rows * stop - alive[stop - 1] + fresh * alive[stop - 1] // max(alive[-1], 1) - dropped
            dropped += due
            smallest = (part / scale).square().masked_fill(gone, -1).flatten().argsort(stable=True)[:due]
            mask = torch.zeros(part.numel(), dtype=torch.bool, device=part.device)
            mask[smallest] = True
            mask = mask.reshape(part.shape)
        else:
            mask = torch.zeros_like(part, dtype=torch.bool)
        errors = torch.zeros_like(part)
        for j in range(stop - start):
            if drop is None and j % m == 0:  # the group's weights have absorbed the errors of the columns before it
                group, old = (part[:, j : j + m] / scale[j : j + m]).square(), gone[:, j : j + m]
                mask[:, j : j + m] = masks.n_of_m(group.masked_fill(old, -1), n, m) | old
            column = part[:, j].clone()
            kept = column.masked_fill(mask[:, j], 0)
            errors[:, j] = (column - kept) / scale[j]
            part[:, j:] -= errors[:, j : j + 1] * spread[j, j:]
            part[:, j] = kept
        updated[:, stop:] -= errors @ factor[start:stop, stop:]
    return updated.to(weight.dtype)


def _spreading(hessian: Tensor) -> Tensor | None:
    """Factor the inverse of a Hessian, (in, in): row j says how column j's error spreads to the right; None if it fails."""
    lower, failed = torch.linalg.cholesky_ex(hessian)
    upper, failed_too = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
    return None if (failed | failed_too | ~upper.sum().isfinite()).item() else upper.float()


def _sparsegpt(weight: Tensor, statistic: Hessian, drop: int, pattern: str | None, options: Mapping) -> Tensor:
    asked = {"pattern": pattern} if pattern else {"drop": drop}
    return sparsegpt(weight, statistic.value(), damping=options["damping"], block=options["block_size"], **asked)


CRITERIA = {
    "magnitude": Criterion(
        metric=lambda weight, statistic: magnitude(weight),
        summary="absolute value; needs no calibration",
    ),
    "wanda": Criterion(
        metric=lambda weight, statistic: wanda(weight, statistic.value()),
        statistic=MeanSquare,
        summary="absolute value times the norm of the input",
        source="Sun et al. 2023, arXiv 2306.11695",
    ),
    "ria": Criterion(
        metric=lambda weight, statistic: ria(weight, statistic.value()),
        statistic=MeanSquare,
        summary="share of its row and column, times the root of the norm of the input",
        source="Zhang et al. 2024, ICLR",
    ),
    "stade": Criterion(
        metric=lambda weight, statistic: wanda(weight, statistic.value()),
        statistic=Variance,
        summary="absolute value times the standard deviation of the input",
        source="arXiv 2503.22451",
    ),
    "sparsegpt": Criterion(
        update=_sparsegpt,
        statistic=Hessian,
        options={
            "damping": Option(0.01, "added to the Hessian's diagonal, as a share of its mean", least=0),
            "block_size": Option(128, "columns pruned at a time", least=1),
        },
        summary="second-order pruning with a weight update",
        source="Frantar and Alistarh 2023, arXiv 2301.00774",
    ),
}
"""Criteria by name. A function ``f(weight, mean_square) -> metric`` may stand in: (out, in) and (in,) to (out, in)."""

CRITERIA["whisper"] = dataclasses.replace(
    CRITERIA["sparsegpt"],
    statistic=Covariance,
    summary="SparseGPT with the covariance of the inputs in place of their second moment",
    source="arXiv 2608.06630",
)


def rule(method: str | Callable) -> Criterion:
    """Return the row of a criterion; a function is a metric of weights and the mean square of their inputs."""
    if isinstance(method, str):
        return CRITERIA[method]
    return Criterion(metric=lambda weight, statistic: method(weight, statistic.value()), statistic=MeanSquare)
