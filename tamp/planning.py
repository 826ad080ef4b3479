"""Pass 1: from the dense model and a recipe to a plan, how many weights each linear drops."""

import itertools
import math

import torch
from torch import Tensor, nn

from tamp import allocation, calibration, criteria, diversity, models
from tamp.errors import UserError
from tamp.recipe import Recipe


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
    walkers = [calibration.Captured(batch.hidden, batch.kwargs, batch.modality) for batch in captured]
    present = sorted({code for batch in captured for code in batch.modality.unique().tolist() if code >= 0})
    pairs = diversity.pairs_of(torch.tensor(present))
    padded = [bool((batch.modality < 0).any()) for batch in captured]

    def terms(units: Tensor, codes: Tensor) -> Tensor:
        if recipe.das_similarity == "mean":
            return diversity.mean_similarities(units, diversity.membership(codes, pairs))
        return diversity.positive_similarities(units @ units.T, codes, pairs)

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
                    values.append(torch.stack([terms(diversity.unit(output), codes) for output in outputs]))
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
    walkers = [calibration.Captured(batch.hidden, batch.kwargs, batch.modality) for batch in captured]
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
                for name, (inputs, _) in tokens.items():
                    squares[name].add(inputs[batch.modality >= 0])
                batch.hidden = hidden
        metrics = [criteria.wanda(linear.weight, squares[name].value()) for name, linear in linears.items()]
        entries = sum(metric.numel() for metric in metrics)
        bound = recipe.owl_threshold * sum(metric.sum(dtype=torch.float64) for metric in metrics) / entries
        outliers = sum((metric > bound).sum() for metric in metrics)
        scores += [outliers.item() / entries] * len(metrics)
    return scores


SCORES = {"das": das_scores, "owl": owl_scores}
"""Allocation to what scores its linears."""


def make_plan(
    sizes: dict[str, int], per_block: list[int], scores: list[float] | None, recipe: Recipe
) -> allocation.Plan:
    """Turn scores into weights to drop per linear.

    Args:
        sizes: weights per linear, in the order of the blocks.
        per_block: number of linears in every block; blocks may differ.
        scores: one per linear, or None for the same share everywhere.
        recipe: target, cap and granularity.
    """
    counts = list(sizes.values())
    cap = min(1.0, recipe.sparsity + recipe.das_cap)
    if scores is None:
        drops = allocation.uniform(counts, recipe.sparsity)
    elif recipe.allocation == "das" and recipe.das_granularity == "linear":
        drops = allocation.allocate(scores, counts, recipe.sparsity, cap)
    else:
        ends = itertools.accumulate(per_block)
        grouped = [range(end - each, end) for end, each in zip(ends, per_block)]
        totals = [sum(counts[i] for i in group) for group in grouped]
        means = [sum(scores[i] for i in group) / len(group) for group in grouped]
        per_group = (
            allocation.banded(means, totals, recipe.sparsity, recipe.owl_band)
            if recipe.allocation == "owl"
            else allocation.allocate(means, totals, recipe.sparsity, cap)
        )
        drops = []
        for group, drop in zip(grouped, per_group):
            drops += allocation.spread([counts[i] for i in group], drop)
    return allocation.Plan(
        linears=tuple(sizes), sizes=tuple(counts), drops=tuple(drops), scores=None if scores is None else tuple(scores)
    )
