"""Pruning criteria: how much a weight counts, and, for SparseGPT, how the others make up for it.

Weights are ``(out, in)``, inputs ``(tokens, in)``. Whatever the type of a weight, everything is computed in float32, with
float64 where a sum or a factorisation would otherwise lose small parts or depend on the number of threads.
"""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from tamp import masks
from tamp.accumulators import FEW, STRIP, Covariance, Hessian, MeanSquare, Variance, add, add_shared, exact_type, pool
from tamp.methods import Criterion, Option

__all__ = ["CRITERIA", "FEW", "Covariance", "Hessian", "MeanSquare", "Variance", "add", "add_shared", "pool"]


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
    hessian: Tensor | tuple[Tensor, Tensor],
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
        hessian: (in, in), on any scale, from :class:`Hessian`; or what :func:`spreading` gives for one.
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
    given = isinstance(hessian, tuple)
    shape = (hessian[0] if given else hessian).shape
    if shape != (columns, columns):
        raise ValueError(
            f"a weight with {columns} inputs needs a Hessian of shape {(columns, columns)}, not {tuple(shape)}"
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

    if not torch.stack(weight.aminmax()).isfinite().all():
        raise ValueError("the weight holds NaN or infinity")
    factor, dead = hessian if given else spreading(hessian, damping)
    updated = weight.to(torch.float32, copy=True)
    zero = updated == 0
    alive = (~zero).sum(0).cumsum(0).tolist()  # (in,), up to and with each column
    fresh = max((drop or 0) - rows * columns + alive[-1], 0)  # to drop beyond the zeros
    updated[:, dead] = 0
    dropped = 0
    for start in range(0, columns, block):
        stop = min(start + block, columns)
        part = updated[:, start:stop]  # (out, block), a view
        spread, gone = factor[start:stop, start:stop], zero[:, start:stop]
        if drop is not None:
            due = rows * stop - alive[stop - 1] + fresh * alive[stop - 1] // max(alive[-1], 1) - dropped
            dropped += due
            smallest = (part / spread.diagonal()).square().masked_fill(gone, -1).flatten().argsort(stable=True)[:due]
            mask = torch.zeros(part.numel(), dtype=torch.bool, device=part.device)
            mask[smallest] = True
            mask = mask.reshape(part.shape)
        else:
            mask = torch.zeros_like(part, dtype=torch.bool)
        errors = _take_columns(part, spread, mask, gone, None if pattern is None else (n, m))
        updated[:, stop:] -= errors @ factor[start:stop, stop:]
    return updated.to(weight.dtype)


def _take_columns(part: Tensor, spread: Tensor, mask: Tensor, gone: Tensor, pattern: tuple[int, int] | None) -> Tensor:
    """Drop what the mask says, column by column, and let the columns to the right absorb it; return their errors.

    Everything is (out, block), but the factor ``spread``, (block, block), on whose scale the errors are. With a pattern,
    (n, m), the mask is chosen here, beside what was zero before.
    """
    scale = spread.diagonal()
    errors = torch.zeros_like(part)
    for j in range(part.shape[1]):
        if pattern and j % pattern[1] == 0:  # the group's weights have absorbed the errors of those before it
            at = slice(j, j + pattern[1])
            group = (part[:, at] / scale[at]).square().masked_fill(gone[:, at], -1)
            mask[:, at] = masks.n_of_m(group, *pattern) | gone[:, at]
        column = part[:, j].clone()
        kept = column.masked_fill(mask[:, j], 0)
        errors[:, j] = (column - kept) / scale[j]
        part[:, j:] -= errors[:, j : j + 1] * spread[j, j:]
        part[:, j] = kept
    return errors


def spreading(hessian: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """Factor the inverse of a damped Hessian, (in, in): row j of the factor says how column j's error spreads to the right.

    Returns:
        The factor, (in, in) float32, upper triangular, and which inputs are always zero, (in,) bool.

    Raises:
        ValueError: if the Hessian is not finite, or not positive definite.
    """
    if not torch.stack(hessian.aminmax()).isfinite().all():
        raise ValueError("the Hessian holds NaN or infinity")
    dead = hessian.diagonal() == 0
    for dtype in dict.fromkeys((exact_type(hessian.device), torch.float64)):
        matrix = hessian.to(torch.float32, copy=True)
        diagonal = matrix.diagonal()
        if not dead.all():
            matrix /= diagonal[~dead].mean()  # the 1 that dead inputs get is then on the scale of the others
        diagonal[dead] = 1
        diagonal += damping * diagonal.mean()
        matrix = matrix.to(dtype)
        if hessian.device.type == "cpu":
            lower, failed = torch.linalg.cholesky_ex(matrix)
            matrix, failed_too = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
        else:
            failed, failed_too = _factor(matrix), 0
        if ((failed + failed_too == 0) & matrix.sum().isfinite()).item():
            return matrix.float(), dead
    raise ValueError(f"the Hessian is not positive definite: use more tokens or a damping above {damping}")


def _factor(matrix: Tensor) -> Tensor:
    """Put into the place of H, (n, n), the upper triangular U with ``U^T U`` its inverse; return 0 if H has one.

    In strips: ``H = R R^T`` from the last column to the first, and then the inverse of R, which is U. A strip is all that is
    needed beside H; two factorisations and an inverse would take three matrices of its size.
    """
    strips = [slice(start, min(start + STRIP, len(matrix))) for start in range(0, len(matrix), STRIP)]
    failed = torch.zeros((), dtype=torch.int32, device=matrix.device)
    for at in reversed(strips):
        before, after = slice(0, at.start), slice(at.stop, None)
        strip = matrix[: at.stop, at] - matrix[: at.stop, after] @ matrix[at, after].T
        lower, code = torch.linalg.cholesky_ex(strip[at].flip(0, 1))
        failed += code
        matrix[at, at] = corner = lower.flip(0, 1)
        matrix[before, at] = torch.linalg.solve_triangular(corner.T, strip[before], upper=False, left=False)
        matrix[after, at] = 0
    for at in strips:
        before, width = slice(0, at.start), at.stop - at.start
        corner = torch.linalg.solve_triangular(
            matrix[at, at], torch.eye(width, device=matrix.device).to(matrix), upper=True
        )
        matrix[before, at] = matrix[before, before] @ (matrix[before, at] @ -corner)
        matrix[at, at] = corner
    return failed


def _sparsegpt(weight: Tensor, statistic: Hessian, drop: int, pattern: str | None, options: Mapping) -> Tensor:
    asked = {"pattern": pattern} if pattern else {"drop": drop}
    made = statistic.give(partial(spreading, damping=options["damping"]))
    return sparsegpt(weight, made, block=options["block_size"], **asked)


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
