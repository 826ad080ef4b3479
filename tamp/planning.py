"""Pass 1: from the dense model and a recipe to a plan, how many weights each matrix drops."""

import contextlib
import itertools
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction

import torch
from torch import Tensor, nn

from tamp import allocation, masks, matrices, models, onloading, passes, plans, walk
from tamp.errors import UserError
from tamp.methods import name_of
from tamp.recipe import Recipe, check

MOST_MISSED = 0.01
"""Share of the decoder's weights that pruning may miss without being told that this is meant."""


@torch.no_grad()
def plan(
    model: nn.Module,
    samples: Sequence[dict] | None,
    recipe: Recipe,
    progress: bool = True,
    allow_partial: bool = False,
    *,
    device: str | torch.device | None = None,
    states: str = "auto",
) -> plans.Plan:
    """Decide how many weights each matrix of a dense model drops; the model stays as it is.

    Args:
        model: see :func:`tamp.prune`.
        samples: see :func:`tamp.prune`; an allocation that does not look at activations needs none.
        recipe: its allocation, sparsity and pattern count, its tokens and criterion do not.
        progress: show bars.
        allow_partial: see :func:`tamp.prune`.
        device: see :func:`tamp.prune`.
        states: see :func:`tamp.prune`.

    Returns:
        The plan, to be looked at, written (:meth:`tamp.Plan.write`), edited, and given to :func:`tamp.prune`.

    Raises:
        UserError: if a sample or a width does not fit.
    """
    check(recipe)
    check_model(model, allow_partial)
    samples = None if samples is None else list(samples)
    seen = samples[slice(recipe.allocation_samples)] if samples and recipe.allocation_needs_samples else []
    if recipe.allocation_needs_samples and not seen:
        raise UserError(
            f"The allocation {name_of(recipe.allocation)!r} needs calibration samples and got none; "
            "make some with tamp.calibration_set(...)."
        )
    with passes.undisturbed(model):
        place = onloading.Place(model, device, states, seen)
        captured = walk.capture(model, seen, progress, place) if seen else []
        scores = score(model, captured, recipe, progress, place) if recipe.plans else None
        return make_plan(model, scores, recipe, captured)


def check_model(model: nn.Module, allow_partial: bool = False) -> dict[str, tuple[int, str]]:
    """Check that the weights of a model are numbers in memory, and are all of the decoder's.

    Returns:
        What stays dense, from :func:`tamp.models.left_out`.

    Raises:
        UserError: naming the matrix, if one does not; or if pruning would miss more than ``MOST_MISSED`` of the decoder.
    """
    found = models.all_linears(model)
    for name, linear in found.items():
        _check_weight(name, linear)
    _check_shared(model, found)
    for name, parameter in model.named_parameters():  # also those that no calibration sample meets
        known = parameter.is_floating_point() and parameter.itemsize > 1 and not parameter.is_meta
        if known and parameter.numel() and not torch.stack(parameter.detach().aminmax()).isfinite().all():
            raise UserError(f"{name} holds NaN or infinity: load the model again, or in bfloat16 or float32.")
    left = models.left_out(model)
    missed = {name: size for name, (size, reason) in left.items() if reason not in matrices.BY_RULE}
    reached = sum(linear.weight.numel() for linear in found.values())
    share = sum(missed.values()) / (sum(missed.values()) + reached)
    if share > MOST_MISSED and not allow_partial:
        largest = max(missed, key=missed.get)
        raise UserError(
            f"{share:.1%} of the decoder's weights in {type(model).__name__} are in something that tamp does not prune "
            f"({len(missed)} tensors, such as {largest}: {left[largest][1]}). Pass allow_partial=True (--allow-partial) to "
            "prune the rest alone."
        )
    return left


def check_pattern(found: Mapping[str, matrices.Matrix], pattern: str | None) -> None:
    """Check that the widths of matrices are whole numbers of groups.

    Raises:
        UserError: naming the matrix whose width is not.
    """
    m = masks.parse_pattern(pattern)[1] if pattern else 1
    for name, linear in found.items():
        if linear.in_features % m:
            raise UserError(f"Pattern {pattern} needs widths divisible by {m}; {name} has {linear.in_features} inputs.")


def _check_weight(name: str, linear: matrices.Matrix) -> None:
    """Check that a weight can be written: a plain parameter in memory, in floating point of at least 16 bits."""
    if linear.parameter not in linear.module._parameters:
        raise UserError(
            f"The weight of {name} is computed from other tensors (a parametrization, or a mask of torch.nn.utils.prune), "
            "so what pruning writes into it would be lost. Make it permanent first: torch.nn.utils.prune.remove or "
            "torch.nn.utils.parametrize.remove_parametrizations."
        )
    weight = linear.module._parameters[linear.parameter]
    if weight.is_inference():
        raise UserError(
            f"The weight of {name} was made under torch.inference_mode and cannot be written to: build or load the model "
            "outside of it."
        )
    if weight.is_meta:
        raise UserError(f"The weight of {name} is not in memory (meta device); load the model onto one device.")
    if not weight.is_floating_point() or weight.itemsize < 2 or type(weight.data) is not Tensor:
        kind = weight.dtype if type(weight.data) is Tensor else type(weight.data).__name__
        raise UserError(f"The weight of {name} is {kind}: prune before quantizing.")


def _check_shared(model: nn.Module, found: Mapping[str, matrices.Matrix]) -> None:
    """Check that no two matrices are one and the same weight, nor a matrix and something outside the blocks."""
    owners: dict[tuple, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.ndim >= 2:
            owners.setdefault((parameter.data_ptr(), parameter.shape), []).append(name)
    for name, linear in found.items():
        parameter = linear.module._parameters[linear.parameter]
        own = name.partition("[")[0] if linear.expert is not None else f"{name}.{linear.parameter}"
        others = [other for other in owners[parameter.data_ptr(), parameter.shape] if other != own]
        if others:
            raise UserError(
                f"{own} and {others[0]} are one weight, which would be pruned twice, or beside its purpose; tamp does not "
                "prune models that share the weights of their blocks."
            )


@torch.no_grad()
def score(
    model: nn.Module,
    captured: Sequence[walk.Captured],
    recipe: Recipe,
    progress: bool,
    place: onloading.Place | None = None,
) -> dict[str, float]:
    """Score every matrix as the recipe's allocation says, on the dense model.

    Args:
        model: the dense model.
        captured: calibration samples as they enter block 0; left as they are.
        recipe: its allocation, options and ``allocation_samples``.
        progress: show a bar.
        place: where blocks are computed.

    Returns:
        ``{name inside the model: score}``.

    Raises:
        UserError: if the allocation leaves a matrix without a score.
    """
    rule = recipe.rules[0]
    seen = walk.copies(captured[slice(recipe.allocation_samples)]) if recipe.allocation_needs_samples else []
    place = place or onloading.Place(model)
    scores = {}
    with place.whole() if rule.looks_at == "loss" else contextlib.nullcontext():
        for step in walk.walk(model, seen, progress=progress, description="score", place=place):
            if rule.looks_at == "activations" and seen and not any(sample.calls[step.position] for sample in seen):
                raise step.not_reached()
            found = rule.score(step, recipe.options)
            for name in step.linears:
                if name not in found:
                    raise UserError(
                        f"The allocation {name_of(recipe.allocation)!r} gives {step.name}.{name} no score: return a number "
                        "for every name in step.linears."
                    )
                scores[f"{step.name}.{name}"] = found[name]
    return scores


def make_plan(
    model: nn.Module,
    scores: Mapping[str, float] | None,
    recipe: Recipe,
    captured: Sequence[walk.Captured] = (),
) -> plans.Plan:
    """Make a plan from scores.

    Args:
        model: the dense model.
        scores: ``{name inside the model: score}``, or None for the same share everywhere.
        recipe: sparsity, pattern and the allocation's options.
        captured: calibration samples; matrices that their blocks never call are not in the plan.
    """
    found = walk.reached(model, captured)
    if scores is not None:
        found = {name: linear for name, linear in found.items() if name in scores}
    check_pattern(found, recipe.pattern)
    sizes = {name: linear.weight.numel() for name, linear in found.items()}
    per_block = [sum(name.startswith(f"{block}.") for name in sizes) for block in models.blocks(model)]
    ordered = None if scores is None else [scores[name] for name in sizes]
    cap = None if (recipe.pattern or "").startswith(masks.DENSE) else recipe.options.get("das_cap")
    return plans.Plan(
        linears=tuple(sizes),
        sizes=tuple(sizes.values()),
        drops=tuple(share_out(list(sizes.values()), per_block, ordered, recipe)),
        scores=None if ordered is None else tuple(ordered),
        target=recipe.sparsity,
        pattern=recipe.pattern,
        cap=None if cap is None else min(1.0, round(recipe.sparsity + cap, 12)),
        allocation=name_of(recipe.allocation),
        model=models.name_of(model),
        fingerprint=models.fingerprint(model),
    )


def share_out(sizes: list[int], per_block: list[int], scores: list[float] | None, recipe: Recipe) -> list[int]:
    """Share the weights to drop among matrices.

    Args:
        sizes: weights per matrix, in the order of the blocks.
        per_block: number of matrices in every block; blocks may differ.
        scores: one per matrix, or None for the same share everywhere.
        recipe: sparsity, pattern and the allocation's options.

    Returns:
        Weights to drop per matrix. Under a pattern every matrix drops some n of m inputs; a cap then counts rounded up to a
        whole n, since a lower one would leave nothing but the pattern itself. Under ``"dense|n:m"`` one drops none or n.
    """
    rule, options = recipe.rules[0], recipe.options
    either = (recipe.pattern or "").startswith(masks.DENSE)
    if scores is None:
        drops = allocation.uniform(sizes, recipe.sparsity)
        drops = allocation.spread(sizes, sum(drops), whole=False) if either else drops
    else:
        groups = per_block if rule.by_block(options) else [1] * len(sizes)
        ends = itertools.accumulate(groups)
        parts = [slice(end - each, end) for end, each in zip(ends, groups)]
        parts = [part for part in parts if part.stop > part.start]
        means = [sum(scores[part]) / len(scores[part]) for part in parts]
        totals = [sum(sizes[part]) for part in parts]
        drops = []
        for part, drop in zip(parts, rule.share(means, totals, recipe.sparsity, options)):
            drops += allocation.spread(sizes[part], drop, whole=not either)
    if not recipe.pattern:
        return drops
    n, m = masks.parse_pattern(recipe.pattern)
    if either:
        return allocation.dense_or(drops, sizes, n, m)
    most = None
    if "das_cap" in options:
        most = min(m - 1, math.ceil(m * masks.exact(recipe.sparsity) + m * Fraction(str(options["das_cap"]))))
    return allocation.stepped(drops, sizes, m, most)
