"""What the kept weights do once a mask is chosen: nothing, or make up for those that are dropped.

A row of a weight predicts one output from many inputs that resemble each other. When some of its weights are dropped, the
others can take over much of what they did; by how much each must change is a least-squares problem per row.
"""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from tamp.choices import by_matrix, everything
from tamp.criteria import Covariance, Hessian
from tamp.errors import whole
from tamp.masks import ENTRIES
from tamp.methods import Option, Update
from tamp.models import TEXT

SAFE = 0.05
"""Damping from which rounding in float32 cannot make a step a wrong one: no eigenvalue is then near what it adds up to."""


def least_squares(
    weight: Tensor,
    mask: Tensor,
    hessian: Tensor | tuple[Tensor, Tensor],
    *,
    damping: float = 0.1,
    steps: int = 10,
    tolerance: float = 1e-3,
    start: Tensor | None = None,
) -> Tensor:
    """Move the kept weights of a matrix so that its outputs change as little as they can.

    For every row, minimise ``(w - w0) H (w - w0)' + damping * |w - w0|^2`` over the weights that the mask keeps, with the
    inputs scaled so that the diagonal of H is one. Conjugate gradients whose residuals are masked (the last step of ALPS,
    Meng et al. 2024, arXiv 2406.07831), all rows at once: a step costs one product with H. Nothing is read back
    between steps, except on a CPU, where they end once every row's residual is below ``tolerance`` of what it was.

    Args:
        weight: (out, in), dense.
        mask: (out, in) bool, True = dropped.
        hessian: (in, in), on any scale, see :class:`tamp.criteria.Hessian`; or what :func:`_scaled` gives for one.
        damping: how much the dense weights are held on to, as a share of an input's own square.
        steps: at most so many.
        tolerance: of the residual, relative.
        start: (out, in), where to begin instead of the dense weights, zero where the mask is true.

    Returns:
        (out, in) in the type of ``weight``, zero where the mask says so; a row that the steps would make worse, which
        rounding can do where H is all but singular, is only masked, or as in ``start``.

    Raises:
        ValueError: if the shapes do not fit.
    """
    given = isinstance(hessian, tuple)
    if mask.shape != weight.shape or (hessian[0] if given else hessian).shape != (weight.shape[1],) * 2:
        raise ValueError(
            f"a weight of shape {tuple(weight.shape)} needs a mask of that shape and a Hessian of "
            f"{(weight.shape[1],) * 2}, not {tuple(mask.shape)} and {tuple((hessian[0] if given else hessian).shape)}"
        )
    matrix, scale = hessian if given else _scaled(hessian.float().clone(), damping)
    if weight.device.type != "cpu" and weight.numel() > ENTRIES:  # on a CPU the steps of all rows end together
        many, how = max(1, ENTRIES // weight.shape[1]), {"damping": damping, "steps": steps}
        parts = [weight.split(many), mask.split(many), [None] * len(weight) if start is None else start.split(many)]
        return torch.cat([least_squares(w, m, (matrix, scale), start=s, **how) for w, m, s in zip(*parts)])
    kept = ~mask
    dense = weight.float() * scale
    change = torch.where(mask, -dense, 0) if start is None else start.float() * scale - dense  # (out, in)
    gradient = change @ matrix
    before = (change * gradient).sum(1)  # (out,), what each row loses before the first step
    residual = -gradient.mul_(kept)
    direction = residual.clone()
    first = square = residual.square().sum(1)  # (out,)
    for _ in range(steps):
        along = (direction @ matrix).mul_(kept)
        bend = (direction * along).sum(1)
        length = torch.where(bend > 0, square / bend, 0)[:, None]
        change += length * direction
        residual -= length * along
        following = residual.square().sum(1)
        direction = residual + torch.where(square > 0, following / square, 0)[:, None] * direction
        square = following
        if square.device.type == "cpu" and bool((square <= tolerance**2 * first).all()):
            break
    if damping < SAFE:
        worse = ~((change * (change @ matrix)).sum(1) <= before)  # NaN counts as worse
    else:
        worse = ~change.isfinite().all(1)
    begun = dense if start is None else start.float() * scale
    moved = torch.where(worse[:, None], begun, dense + change) / scale
    return moved.masked_fill(mask, 0).to(weight.dtype)


def admm(
    weight: Tensor,
    choose: Callable[[Tensor, float], Tensor],
    hessian: Tensor | tuple[Tensor, Tensor],
    *,
    damping: float = 0.1,
    penalty: float = 1.0,
    steps: int = 16,
) -> tuple[Tensor, Tensor]:
    """Choose a mask while the other weights make up for what it drops.

    The alternating direction method of multipliers for the problem of :func:`least_squares` with the mask free (Boza 2024,
    arXiv 2401.02938): the weights are solved for as if none were dropped but pulled to ``kept``, the mask is chosen of what
    comes out, and multipliers add up by how much the two differ. What is dropped grows over the first three quarters of the
    steps, as the cube of what is left of them falls, and is chosen anew in every other of them; then the mask stays. A step
    costs one product with a matrix of H's size.

    Args:
        weight: (out, in), dense.
        choose: ``(weight (out, in), share) -> mask (out, in)``: which weights go when this share of all that are due goes.
        hessian: (in, in), as for :func:`least_squares`.
        damping: as for :func:`least_squares`.
        penalty: how hard the weights are pulled to those that the mask keeps, as a share of an input's own square.
        steps: how many, at least one.

    Returns:
        The mask, (out, in) bool, True = dropped, and the weights, (out, in), zero where it is.
    """
    if (whole(steps) or 0) < 1:
        raise ValueError(f"ADMM takes a whole number of steps, at least one, not {steps!r}")
    given = isinstance(hessian, tuple)
    matrix, scale = (hessian[0].clone(), hessian[1]) if given else _scaled(hessian.float().clone(), damping)
    dense = weight.float() * scale
    target = dense @ matrix
    matrix.diagonal().add_(penalty)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(matrix, out=matrix), out=matrix)
    base = target @ inverse
    solved, multiplier = dense, torch.zeros_like(dense)
    growing = max(3 * steps // 4, 1)
    for step in range(1, steps + 1):
        wanted = solved + multiplier
        if step <= growing and (step % 2 or step == growing):
            mask = choose(wanted / scale, 1 - (1 - step / growing) ** 3)
        kept = torch.where(mask, 0, wanted)
        multiplier = wanted - kept
        solved = torch.addmm(base, kept - multiplier, inverse, alpha=penalty)
    return mask, solved.masked_fill(mask, 0) / scale


def _scaled(matrix: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """Scale the inputs in place so that the diagonal of H is one, and add the damping; return both, (in, in) and (in,)."""
    scale = matrix.diagonal().clamp(min=0).sqrt()
    scale = torch.where(scale > 0, scale, 1)
    matrix /= scale
    matrix /= scale[:, None]
    matrix.diagonal().add_(damping)
    return matrix, scale


def tokens(row, options: Mapping) -> Mapping[str, Tensor | None]:
    """Say which tokens of a row (:class:`tamp.walk.Row`) the update looks at, ``{name: (t,) bool}`` or None for all.

    A quarter of the tokens that are no text says nearly as much about how inputs resemble each other as all of them.
    """
    chosen = everything(row.codes) if row.padded else None
    if options["update_tokens"] != "all":
        words = row.codes == TEXT
        chosen = words
        if options["update_tokens"] == "quarter":
            others = everything(row.codes) & ~words
            chosen = words | (others & (others.cumsum(0) % 4 == 1))
    return by_matrix(row, chosen)


def _least_squares(weight: Tensor, choose: Callable, statistic: Hessian, options: Mapping) -> Tensor:
    damping = options["update_damping"]
    scaled = statistic.give(partial(_scaled, damping=damping))
    return least_squares(weight, choose(weight), scaled, damping=damping, steps=options["update_steps"])


def _admm(weight: Tensor, choose: Callable, statistic: Hessian, options: Mapping) -> Tensor:
    damping = options["update_damping"]
    scaled = statistic.give(partial(_scaled, damping=damping))
    mask, start = admm(weight, choose, scaled, damping=damping, steps=options["admm_steps"])
    return least_squares(weight, mask, scaled, damping=damping, steps=FINISH, start=start)


FINISH = 4  # steps of conjugate gradients after ADMM, which ends near the optimum

_OPTIONS = {
    "update_tokens": Option(
        "all",
        "tokens that the update looks at: all, text, or text and a quarter of the others",
        choices=("all", "text", "quarter"),
    ),
    "update_damping": Option(0.1, "how much the dense weights are held on to", least=0),
}

UPDATES = {
    "none": Update(apply=None, summary="stay as they are"),
    "least_squares": Update(
        apply=_least_squares,
        statistic=partial(Hessian, dtype=torch.float32),
        options=_OPTIONS | {"update_steps": Option(10, "steps of conjugate gradients at most", least=1)},
        summary="make up for the dropped ones by least squares",
        source="Meng et al. 2024, arXiv 2406.07831",
    ),
    "admm": Update(
        apply=_admm,
        statistic=partial(Hessian, dtype=torch.float32),
        options=_OPTIONS
        | {"admm_steps": Option(16, "steps, in the first three quarters of which the mask is chosen", least=4)},
        summary="make up for the dropped ones, and the mask is chosen again while they do",
        source="Boza 2024, arXiv 2401.02938",
    ),
}
"""Updates by name."""

UPDATES["least_squares_centred"] = dataclasses.replace(
    UPDATES["least_squares"],
    statistic=partial(Covariance, dtype=torch.float32),
    summary="the same as least_squares, with the covariance of the inputs in place of their second moment",
    source="arXiv 2608.06630",
)
