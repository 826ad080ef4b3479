"""How much of each matrix to keep: scores of the dense model, and the table of allocations that are made from them.

An allocation scores the matrices of one block at a time (:class:`tamp.walk.Step`). Scores are rounded, so that the last bits
of a sum, which depend on the number of threads, do not decide about weights.
"""

import math
import zlib
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from tamp import allocation, choices, criteria, diversity, models, passes, walk
from tamp.errors import UserError
from tamp.methods import Allocation, Option


def das(step: walk.Step, options: Mapping) -> dict[str, float]:
    """Score every matrix by the diversity of its output tokens (section 3.2 of the paper).

    Args:
        step: a block of the dense model.
        options: ``das_similarity`` says how cosines are averaged within a modality.

    Returns:
        A score per matrix, averaged over samples.

    Raises:
        UserError: if no sample has two tokens to compare.
    """
    pairs = diversity.pairs_of(torch.tensor(step.modalities))

    def terms(outputs: list[Tensor], codes: Tensor) -> Tensor:
        if options["das_similarity"] == "mean":
            return diversity.mean_similarities(outputs, diversity.membership(codes, pairs))
        host = codes.cpu()
        return torch.stack(
            [diversity.positive_similarities(diversity.cosines(each), codes, pairs, host) for each in outputs]
        )

    values: dict[str, list[Tensor]] = {name: [] for name in step.linears}  # per matrix: a number per row that has one
    for row in step:
        for names, places in row.groups():
            outputs, codes = [row.outputs[name] for name in names], row.codes_at(places)
            if row.padded:
                outputs, codes = [output[codes >= 0] for output in outputs], codes[codes >= 0]
            diverse = 1 - terms(outputs, codes)  # (matrices, terms)
            # the mean over defined terms, times their nominal number
            for name, value in zip(names, (diverse.nanmean(-1) * len(pairs)).unbind()):
                values[name].append(value)
    means = [torch.stack(found).double().nanmean() for found in values.values() if found]
    means = iter(torch.stack(means).tolist() if means else ())  # one wait for all
    scores = {name: max(round(next(means), 6), 0.0) if found else math.nan for name, found in values.items()}
    return filled(scores)


def filled(scores: dict[str, float]) -> dict[str, float]:
    """Give matrices without a score of their own, such as experts that no token reached, the mean of their likes.

    These are the experts in the same tensor, or else all matrices of the block.

    Raises:
        UserError: if no matrix of the block has a score.
    """
    known = {name: score for name, score in scores.items() if not math.isnan(score)}
    if not known:
        raise UserError("DAS compares tokens with each other, and no calibration sample has two of them.")
    found = {}
    for name in scores:
        tensor = name.partition("[")[0]
        like = [score for other, score in known.items() if "[" in name and other.partition("[")[0] == tensor]
        like = like or list(known.values())
        found[name] = known.get(name, round(sum(like) / len(like), 6))
    return found


def owl(step: walk.Step, options: Mapping) -> dict[str, float]:
    """Score a block by its outliers (OWL, equation 2).

    The score is the share of the entries of Wanda's metric, over all matrices of the block, that exceed ``owl_threshold``
    times the mean over the block. All tokens count.

    Returns:
        A score per matrix, the same for all of the block.
    """
    squares = {
        name: criteria.MeanSquare(linear.in_features, linear.weight.device) for name, linear in step.linears.items()
    }
    for row in step:
        criteria.add(squares, row.inputs, choices.by_matrix(row, choices.everything(row.codes) if row.padded else None))
    criteria.pool(squares)
    metrics = [criteria.wanda(linear.weight, squares[name].value()) for name, linear in step.linears.items()]
    entries = sum(metric.numel() for metric in metrics)
    bound = options["owl_threshold"] * sum(metric.sum(dtype=torch.float64) for metric in metrics) / entries
    outliers = sum((metric > bound).sum() for metric in metrics)
    return dict.fromkeys(step.linears, outliers.item() / entries)


def alphapruning(step: walk.Step, options: Mapping) -> dict[str, float]:
    """Score every matrix by the exponent of its spectrum's tail (AlphaPruning); see :func:`heavy_tail`."""
    return {name: heavy_tail(linear.weight) for name, linear in step.linears.items()}


def heavy_tail(weight: Tensor) -> float:
    """Estimate the exponent of the power law in the tail of a weight's spectrum (AlphaPruning, arXiv 2410.10912).

    Hill's estimate over the upper half of the eigenvalues of ``W W^T``: the smaller, the heavier the tail, which the paper
    takes as a sign of better training.

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


def ecoflap(step: walk.Step, options: Mapping) -> dict[str, float]:
    """Score a block by its projected gradients, without backpropagation (ECoFLaP, arXiv 2310.02998).

    For every sample the matrices of this block alone are moved by ``ecoflap_step`` along a seeded Gaussian direction and
    back along it; the score is the mean over samples of the absolute difference quotient of the loss. The weights are put
    back bit for bit. The blocks before, which nothing has moved, are not computed again.

    Returns:
        A score per matrix, the same for all of the block.
    """
    before = list(models.blocks(step.model).values())[: step.position]
    weights = {f"{step.name}.{name}": linear.weight for name, linear in step.linears.items()}
    slopes = []
    for number, sample in enumerate(step.samples):
        with passes.replaced(before, lambda *_, returned=sample.returned: returned):
            quotient = slope(step.model, sample.source, weights, options["ecoflap_step"], (step.position, number))
        slopes.append(abs(quotient))
    return dict.fromkeys(step.linears, float(f"{sum(slopes) / len(slopes):.6g}"))


@torch.no_grad()
def slope(model: nn.Module, sample: dict, weights: dict[str, Tensor], step: float, seed: tuple[int, int]) -> float:
    """Estimate how the loss changes along a random direction of some weights, from two evaluations.

    Args:
        model: the model that has the weights.
        sample: processor output.
        weights: moved, and put back; by name.
        step: how far to move, in both senses.
        seed: of the direction, see :func:`direction`.
    """
    before = [weight.clone() for weight in weights.values()]
    host = all(weight.device.type == "cpu" for weight in weights.values())  # a GPU rather draws than holds them
    parts = list(direction(weights, seed)) if host else None
    losses = []
    try:
        for sign in (1, -1):
            for weight, original, part in zip(weights.values(), before, parts or direction(weights, seed)):
                weight.copy_(original.float() + sign * step * part)
            losses.append(text_loss(model, sample).item())
    finally:
        for weight, original in zip(weights.values(), before):
            weight.copy_(original)
    return (losses[0] - losses[1]) / (2 * step)


def direction(weights: dict[str, Tensor], seed: tuple[int, int]) -> Iterator[Tensor]:
    """Draw a Gaussian direction, a float32 tensor per weight, by (block, sample), and on a GPU, there, by its name."""
    random = torch.Generator(next(iter(weights.values())).device).manual_seed(1_000_003 * seed[0] + seed[1])
    for name, weight in weights.items():
        if weight.device.type != "cpu":
            random.manual_seed(zlib.crc32(f"{name} {seed[0]} {seed[1]}".encode()))
        yield torch.randn(weight.shape, generator=random, device=weight.device)


def text_loss(model: nn.Module, sample: dict) -> Tensor:
    """Return the mean negative log-likelihood of a sample's text tokens, given all tokens before them, in nats."""
    batch = models.to_model(model, sample)
    codes = models.modality(model, batch)
    asked = (codes[:, 1:] == models.TEXT) & (codes[:, :-1] >= 0)  # (B, T - 1)
    if not asked.any():
        raise UserError("ECoFLaP needs text to predict, and a calibration sample has none.")
    asking = nn.functional.pad(asked, (0, 1))  # (B, T), the tokens before those: no other logits are computed
    head = models.speaker(model).get_output_embeddings()
    with passes.hooks(head.register_forward_pre_hook(lambda module, args: (args[0][asking],))):
        logits = models.speaker(model)(**batch, use_cache=False).logits.float()  # (asked, vocabulary)
    return nn.functional.cross_entropy(logits, batch["input_ids"][:, 1:][asked])


def _capped(scores: list[float], sizes: list[int], sparsity: float, options: Mapping) -> list[int]:
    """Keep in proportion to the scores, no matrix or block more than ``das_cap`` above the target."""
    return allocation.allocate(scores, sizes, sparsity, min(1.0, sparsity + options["das_cap"]))


def _owl_band(scores: list[float], sizes: list[int], sparsity: float, options: Mapping) -> list[int]:
    return allocation.banded(scores, sizes, sparsity, options["owl_band"])


def _lightest_first(scores: list[float], sizes: list[int], sparsity: float, options: Mapping) -> list[int]:
    """Drop more where the tail is lighter."""
    lightest = max((score for score in scores if math.isfinite(score)), default=1.0)
    lightness = [-min(score, lightest) for score in scores]
    return allocation.banded(lightness, sizes, sparsity, options["alpha_band"] * sparsity)


CAP = Option(0.1, "how far above the sparsity any matrix may go", least=0)
ALLOCATIONS = {
    "uniform": Allocation(score=None, looks_at="nothing", summary="the same share everywhere"),
    "das": Allocation(
        score=das,
        share=_capped,
        by_block=lambda options: options["das_granularity"] == "block",
        options={
            "das_cap": CAP,
            "das_granularity": Option(
                "linear", "a budget per matrix (the paper) or per block", choices=("linear", "block")
            ),
            "das_similarity": Option(
                "mean",
                "how cosines are averaged within a modality: over all pairs (the paper) or over those with positive cosine "
                "(as released)",
                choices=("mean", "positive"),
            ),
        },
        summary="matrices with diverse output tokens keep more",
        source="Lee et al. 2025, arXiv 2504.09897",
    ),
    "owl": Allocation(
        score=owl,
        share=_owl_band,
        by_block=lambda options: True,
        options={
            "owl_threshold": Option(5.0, "an entry this many times the block's mean is an outlier", least=0),
            "owl_band": Option(0.08, "how far from the sparsity a block may go", least=0),
        },
        summary="blocks with many activation outliers keep more",
        source="Yin et al. 2023, arXiv 2310.05175",
    ),
    "alphapruning": Allocation(
        score=alphapruning,
        share=_lightest_first,
        looks_at="weights",
        options={"alpha_band": Option(0.3, "how far a matrix may go, as a share of the sparsity", least=0)},
        summary="matrices with a heavy-tailed spectrum keep more",
        source="Lu et al. 2024, arXiv 2410.10912",
    ),
    "ecoflap": Allocation(
        score=ecoflap,
        share=_capped,
        by_block=lambda options: True,
        looks_at="loss",
        options={"das_cap": CAP, "ecoflap_step": Option(1e-3, "size of the perturbation", least=1e-12)},
        summary="blocks that the loss depends on keep more, measured without gradients",
        source="Sung et al. 2023, arXiv 2310.02998",
    ),
}
"""Allocations by name. A function ``f(step) -> {matrix: score}`` may stand in; a higher score keeps more."""


def rule(method: str | Callable) -> Allocation:
    """Return the row of an allocation; a function's scores are shared out as those of DAS are."""
    if isinstance(method, str):
        return ALLOCATIONS[method]
    return Allocation(score=lambda step, options: method(step), share=_capped, options={"das_cap": CAP})
