"""Pass 1: from the dense model and a recipe to a plan, how many weights each linear drops."""

import copy
import itertools
import math
from collections.abc import Iterator, Sequence
from fractions import Fraction

import torch
from torch import Tensor, nn

from tamp import allocation, calibration, criteria, diversity, masks, models, plans
from tamp.errors import UserError
from tamp.recipe import Recipe

SCORED_BY = ("allocation", "allocation_samples", "das_similarity", "owl_threshold", "ecoflap_step")
"""Fields of a recipe that the scores of :func:`score` depend on; its level is none of them."""


def das_scores(
    stack: list[nn.Module], captured: list[calibration.Captured], recipe: Recipe, progress: bool = True
) -> list[float]:
    """Score every linear by the diversity of its output tokens on the dense model: pass 1.

    Section 3.2 of the paper. Scores are averaged over samples and rounded to six decimals, so that the last bits of a sum,
    which depend on the number of threads, do not decide about weights.

    Args:
        stack: the decoder blocks.
        captured: calibration samples as they enter block 0; left as they are.
        recipe: ``das_similarity`` says how cosines are averaged within a modality.
        progress: show a bar.

    Returns:
        One score per linear, in the order of the blocks.

    Raises:
        UserError: if activations are not finite, or no sample has two tokens to compare.
    """
    walkers = list(map(copy.copy, captured))
    present = sorted({code for batch in captured for code in batch.modality.unique().tolist() if code >= 0})
    pairs = diversity.pairs_of(torch.tensor(present))
    padded = [bool((batch.modality < 0).any()) for batch in captured]

    def terms(outputs: list[Tensor], codes: Tensor) -> Tensor:
        if recipe.das_similarity == "mean":
            return diversity.mean_similarities(outputs, diversity.membership(codes, pairs))
        units = map(diversity.unit, outputs)
        return torch.stack([diversity.positive_similarities(each @ each.T, codes, pairs) for each in units])

    scores = []
    for position, block in enumerate(calibration.steps(stack, "score", progress)):
        values = []  # per row of every sample: (linears, terms)
        with calibration.linear_tokens(models.linears(block)) as tokens:
            for number, batch in enumerate(walkers):
                hidden = batch.run(block, position)
                calibration.finite(position, number, tokens, hidden)
                for row, codes in enumerate(batch.modality):
                    outputs = [output[row] for _, output in tokens.values()]
                    if padded[number]:
                        outputs, codes = [output[codes >= 0] for output in outputs], codes[codes >= 0]
                    values.append(terms(outputs, codes))
                batch.hidden = hidden
        diverse = 1 - torch.stack(values)  # (rows, linears, terms)
        per_row = diverse.nanmean(-1) * len(pairs)  # the mean over defined terms, times their nominal number
        scores += [max(round(score, 6), 0.0) for score in per_row.double().nanmean(0).tolist()]
    if any(math.isnan(score) for score in scores):
        raise UserError("DAS compares tokens with each other, and no calibration sample has two of them.")
    return scores


def owl_scores(
    stack: list[nn.Module], captured: list[calibration.Captured], recipe: Recipe, progress: bool = True
) -> list[float]:
    """Score every block by its outliers on the dense model: pass 1 of OWL (arXiv 2310.05175, equation 2).

    The score is the share of the entries of Wanda's metric, over all linears of the block, that exceed ``owl_threshold``
    times the mean over the block. All tokens count.

    Returns:
        One score per linear, the same for all of a block.
    """
    walkers = list(map(copy.copy, captured))
    scores = []
    for position, block in enumerate(calibration.steps(stack, "score", progress)):
        linears = models.linears(block)
        squares = {
            name: criteria.MeanSquare(linear.in_features, linear.weight.device) for name, linear in linears.items()
        }
        with calibration.linear_tokens(linears) as tokens:
            for number, batch in enumerate(walkers):
                hidden = batch.run(block, position)
                calibration.finite(position, number, tokens, hidden)
                for row, codes in enumerate(batch.modality):
                    inputs = {name: entered[row] for name, (entered, _) in tokens.items()}
                    calibration.add(squares, inputs, [codes >= 0] * len(inputs))
                batch.hidden = hidden
        metrics = [criteria.wanda(linear.weight, squares[name].value()) for name, linear in linears.items()]
        entries = sum(metric.numel() for metric in metrics)
        bound = recipe.owl_threshold * sum(metric.sum(dtype=torch.float64) for metric in metrics) / entries
        outliers = sum((metric > bound).sum() for metric in metrics)
        scores += [outliers.item() / entries] * len(metrics)
    return scores


def heavy_tail(weight: Tensor) -> float:
    """Estimate the exponent of the power law in the tail of a weight's spectrum (AlphaPruning, arXiv 2410.10912).

    Hill's estimate over the upper half of the eigenvalues of ``W W^T``: the smaller, the heavier the tail, and the better,
    it is held, the linear is trained.

    Args:
        weight: (out, in).

    Returns:
        The exponent, at least 1; infinite if all eigenvalues of the upper half are equal.
    """
    values = torch.linalg.svdvals(weight.float()).double().square()  # descending
    count = max(1, len(values) // 2)
    below = values[min(count, len(values) - 1)].clamp(min=torch.finfo(torch.float32).tiny)
    spread = (values[:count].clamp(min=below) / below).log().sum().item()
    return 1 + count / spread if spread else math.inf


def ecoflap_scores(
    model: nn.Module,
    samples: Sequence[dict],
    captured: list[calibration.Captured],
    recipe: Recipe,
    progress: bool = True,
) -> list[float]:
    """Score every block by its projected gradients, without backpropagation (ECoFLaP, arXiv 2310.02998).

    For every block and sample the linears of that block alone are moved by ``ecoflap_step`` along a seeded Gaussian
    direction and back along it; the score is the mean over samples of the absolute difference quotient of the loss. The
    weights are put back bit for bit. The blocks before, which nothing has moved, are not computed again.

    Args:
        model: the dense model.
        samples: processor outputs; the loss is the mean negative log-likelihood of their text tokens.
        captured: the samples as they enter block 0; left as they are.
        recipe: ``ecoflap_step``.
        progress: show a bar.

    Returns:
        One score per linear, the same for all of a block.
    """
    stack = list(models.blocks(model).values())
    walkers = list(map(copy.copy, captured))
    outputs: list = [None] * len(samples)  # what the block before returned
    scores = []
    for position, block in enumerate(calibration.steps(stack, "score", progress)):
        weights = [linear.weight for linear in models.linears(block).values()]
        slopes = []
        for n, (sample, walker) in enumerate(zip(samples, walkers)):
            with calibration.skipped(stack[:position], outputs[n]):
                slopes.append(abs(slope(model, sample, weights, recipe.ecoflap_step, (position, n))))
            outputs[n] = walker.call(block, position)
            walker.hidden = calibration.hidden_of(outputs[n])
        scores += [float(f"{sum(slopes) / len(slopes):.6g}")] * len(weights)
    return scores


@torch.no_grad()
def slope(model: nn.Module, sample: dict, weights: list[Tensor], step: float, seed: tuple[int, int]) -> float:
    """Estimate how the loss changes along a random direction of some weights, from two evaluations.

    Args:
        model: the model that has the weights.
        sample: processor output.
        weights: moved, and put back.
        step: how far to move, in both senses.
        seed: of the direction, see :func:`direction`.
    """
    before = [weight.clone() for weight in weights]
    parts = list(direction(weights, seed))
    losses = []
    try:
        for sign in (1, -1):
            for weight, original, part in zip(weights, before, parts):
                weight.copy_(original.float() + sign * step * part)
            losses.append(text_loss(model, sample).item())
    finally:
        for weight, original in zip(weights, before):
            weight.copy_(original)
    return (losses[0] - losses[1]) / (2 * step)


def direction(weights: list[Tensor], seed: tuple[int, int]) -> Iterator[Tensor]:
    """Draw a Gaussian direction, a float32 tensor per weight; the same for the same (block, sample) on every device."""
    random = torch.Generator().manual_seed(1_000_003 * seed[0] + seed[1])
    for weight in weights:
        yield torch.randn(weight.shape, generator=random).to(weight.device)


def text_loss(model: nn.Module, sample: dict) -> Tensor:
    """Return the mean negative log-likelihood of a sample's text tokens, given all tokens before them, in nats."""
    batch = calibration.to_model(model, sample)
    codes = models.modality(model, batch)
    asked = (codes[:, 1:] == models.TEXT) & (codes[:, :-1] >= 0)  # (B, T - 1)
    if not asked.any():
        raise UserError("ECoFLaP needs text to predict, and a calibration sample has none.")
    asking = nn.functional.pad(asked, (0, 1))  # (B, T), the tokens before those: no other logits are computed
    head = model.get_output_embeddings().register_forward_pre_hook(lambda module, args: (args[0][asking],))
    with calibration.hooks(head):
        logits = model(**batch, use_cache=False).logits.float()  # (asked, vocabulary)
    return nn.functional.cross_entropy(logits, batch["input_ids"][:, 1:][asked])


def score(
    model: nn.Module, samples: Sequence[dict], captured: list[calibration.Captured], recipe: Recipe, progress: bool
) -> list[float]:
    """Score every linear as the recipe's allocation says, on the dense model and the samples that it looks at."""
    some = slice(recipe.allocation_samples)
    samples, captured = samples[some], captured[some]
    stack = list(models.blocks(model).values())
    if recipe.allocation == "ecoflap":
        return ecoflap_scores(model, samples, captured, recipe, progress)
    if recipe.allocation == "alphapruning":
        return [heavy_tail(linear.weight) for linear in models.all_linears(model).values()]
    return {"das": das_scores, "owl": owl_scores}[recipe.allocation](stack, captured, recipe, progress)


@torch.no_grad()
def plan(model: nn.Module, samples: Sequence[dict] | None, recipe: Recipe, progress: bool = True) -> plans.Plan:
    """Decide how many weights each linear of a dense model drops; the model stays as it is.

    Args:
        model: see :func:`tamp.prune`.
        samples: see :func:`tamp.prune`; an allocation that looks at no activation needs none.
        recipe: its allocation, target and pattern count, its tokens and criterion do not.
        progress: show bars.

    Returns:
        The plan, to be looked at, written (`Plan.write`), edited, and given to :func:`tamp.prune`.

    Raises:
        UserError: if a sample or a width does not fit.
    """
    check_model(model, recipe.pattern)
    seen = samples[slice(recipe.allocation_samples)] if samples and recipe.allocation_needs_samples else []
    if recipe.allocation_needs_samples and not seen:
        raise UserError(
            f"The allocation {recipe.allocation!r} needs calibration samples and got none; "
            "make some with tamp.calibration_set(...)."
        )
    with calibration.undisturbed(model):
        captured = calibration.capture(model, seen, progress) if seen else []
        scores = score(model, seen, captured, recipe, progress) if recipe.plans else None
    return make_plan(model, scores, recipe)


def check_model(model: nn.Module, pattern: str | None) -> None:
    """Refuse a model whose weights are not there, are quantized, or do not fit a pattern."""
    for name, linear in models.all_linears(model).items():
        if linear.weight.is_meta:
            raise UserError(f"The weight of {name} is not in memory (meta device); load the model onto one device.")
        if not linear.weight.is_floating_point():
            raise UserError(f"The weight of {name} is {linear.weight.dtype}: prune before quantizing.")
        if pattern and linear.in_features % (m := masks.parse_pattern(pattern)[1]):
            raise UserError(f"Pattern {pattern} needs widths divisible by {m}; {name} has {linear.in_features} inputs.")


def make_plan(model: nn.Module, scores: list[float] | None, recipe: Recipe) -> plans.Plan:
    """Turn scores into weights to drop per linear.

    Args:
        model: the dense model.
        scores: one per linear, or None for the same share everywhere.
        recipe: target, cap, pattern and granularity.
    """
    sizes = {name: linear.weight.numel() for name, linear in models.all_linears(model).items()}
    per_block = [len(models.linears(block)) for block in models.blocks(model).values()]
    return plans.Plan(
        linears=tuple(sizes),
        sizes=tuple(sizes.values()),
        drops=tuple(share_out(list(sizes.values()), per_block, scores, recipe)),
        scores=None if scores is None else tuple(scores),
        target=recipe.sparsity,
        pattern=recipe.pattern,
        cap=min(1.0, round(recipe.sparsity + recipe.das_cap, 12)) if recipe.capped else None,
        allocation=recipe.allocation,
        model=models.name_of(model),
        fingerprint=models.fingerprint(model),
    )


def share_out(counts: list[int], per_block: list[int], scores: list[float] | None, recipe: Recipe) -> list[int]:
    """Share the weights to drop among linears.

    Args:
        counts: weights per linear, in the order of the blocks.
        per_block: number of linears in every block; blocks may differ.
        scores: one per linear, or None for the same share everywhere.
        recipe: target, cap, pattern and granularity.

    Returns:
        Weights to drop per linear. Under a pattern every linear drops some n of m inputs; a cap then counts rounded up to a
        whole n, since a lower one would leave nothing but the pattern itself.
    """
    if scores is None:
        drops = allocation.uniform(counts, recipe.sparsity)
    else:
        by_block = recipe.allocation in ("owl", "ecoflap") or (
            recipe.allocation == "das" and recipe.das_granularity == "block"
        )
        groups = [1] * len(counts) if not by_block else per_block
        ends = itertools.accumulate(groups)
        parts = [slice(end - each, end) for end, each in zip(ends, groups)]
        means = [sum(scores[part]) / len(scores[part]) for part in parts]
        drops = []
        for part, drop in zip(parts, _rule(means, [sum(counts[part]) for part in parts], recipe)):
            drops += allocation.spread(counts[part], drop)
    if not recipe.pattern:
        return drops
    m = masks.parse_pattern(recipe.pattern)[1]
    most = min(m - 1, math.ceil(m * masks.exact(recipe.sparsity) + m * Fraction(str(recipe.das_cap))))
    return allocation.stepped(drops, counts, m, most if recipe.capped else None)


def _rule(scores: list[float], sizes: list[int], recipe: Recipe) -> list[int]:
    """Share the budget as the recipe's allocation does: weights to drop per linear or block."""
    if recipe.allocation == "owl":
        return allocation.banded(scores, sizes, recipe.sparsity, recipe.owl_band)
    if recipe.allocation == "alphapruning":  # a lighter tail drops more
        finite = [score for score in scores if math.isfinite(score)]
        lightest = max(finite, default=1.0)
        lightness = [-min(score, lightest) for score in scores]
        return allocation.banded(lightness, sizes, recipe.sparsity, recipe.alpha_band * recipe.sparsity)
    return allocation.allocate(scores, sizes, recipe.sparsity, min(1.0, recipe.sparsity + recipe.das_cap))
