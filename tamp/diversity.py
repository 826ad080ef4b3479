"""Token similarity within and across modalities, the quantity behind Diversity-Aware Sparsity.

``similarity(A, B)`` is the mean cosine similarity between tokens of modality A and tokens of modality B; within one
modality, over unordered pairs of different tokens. Modalities are whole numbers; a negative number marks padding, which
is ignored. A token that is all zeros has cosine 0 with every other.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Within = Literal["mean", "positive"]

CHUNK = 2**24
"""Entries of a matrix of similarities that are copied at a time: 64 MiB."""


def check(within: str) -> None:
    """Check that a way of averaging exists.

    Raises:
        ValueError: if ``within`` is neither ``"mean"`` nor ``"positive"``.
    """
    if within not in ("mean", "positive"):
        raise ValueError(f"within is 'mean' or 'positive', not {within!r}")


def unit(outputs: Tensor) -> Tensor:
    """L2-normalise tokens, (..., T, d) to (..., T, d) float32; zero vectors stay zero."""
    return torch.nn.functional.normalize(outputs.float(), dim=-1)


def pairs_of(modality: Tensor) -> list[tuple[int, int]]:
    """List the terms a token sequence can have: ``(a, a)`` and ``(a, b)`` with a < b, of the modalities present."""
    present = sorted(code for code in modality.unique().tolist() if code >= 0)
    return list(itertools.combinations_with_replacement(present, 2))


def membership(modality: Tensor, pairs: list[tuple[int, int]]) -> Tensor:
    """Return which tokens belong to each modality of ``pairs``, in order: (T,) to (M, T) float64."""
    return torch.stack([modality == code for code in sorted({code for pair in pairs for code in pair})]).double()


def mean_similarities(outputs: Sequence[Tensor], member: Tensor) -> Tensor:
    """Average the cosine over all pairs, in closed form: O(T d), no T x T matrix, and no normalised copy of the tokens.

    With u the tokens at length one, the mean over pairs of a modality is ``(||sum u||^2 - sum ||u||^2) / (T (T - 1))``,
    across two it is ``<mean u_A, mean u_B>``.

    Args:
        outputs: L tensors (T, d_l).
        member: (M, T), from :func:`membership`.

    Returns:
        (L, terms) float32 in the order of :func:`pairs_of`, NaN where a term has no pair of tokens.
    """
    sums = []  # of the cosines over ordered pairs of different tokens, (M, M) float64 each
    for output in outputs:
        tokens = output.float()
        scale = tokens.square().sum(-1).rsqrt()  # (T,)
        scale = scale.masked_fill(scale.isinf(), 0)
        totals = ((member * scale).float() @ tokens).double()  # (M, d)
        sums.append(totals @ totals.mT - (member @ (scale > 0).double()).diag())
    count = member.sum(1)
    number = count[:, None] * count - count.diag()
    upper = torch.ones_like(number, dtype=torch.bool).triu()
    return torch.where(number > 0, torch.stack(sums) / number, math.nan)[..., upper].float()


def positive_similarities(cosine: Tensor, modality: Tensor, pairs: list[tuple[int, int]]) -> Tensor:
    """Average the cosine as the authors' code does: within a modality only over pairs with positive cosine.

    Args:
        cosine: (..., T, T), symmetric; its diagonal is not looked at.
        modality: (T,), whole numbers, negative = padding.
        pairs: the terms wanted; across modalities all pairs count, whatever their sign.

    Returns:
        (..., terms) float32, NaN where a term has no pair. Beside ``cosine``, about 3 x 4 ``CHUNK`` bytes are held, however
        the modalities take turns.
    """
    index = {code: (modality == code).nonzero().flatten() for code in {code for pair in pairs for code in pair}}
    terms = []
    for a, b in pairs:
        shape = *cosine.shape[:-2], len(index[a]), len(index[b])
        parts = ((rows.start, block_of(cosine, index[a][rows], index[b])) for rows in chunks(shape))
        if a == b:
            sums = [_positive(part, start) for start, part in parts]
            total, count = (torch.cat(each, -1).sum(-1, dtype=torch.float64) for each in zip(*sums))
            terms.append(total / count)  # every pair stands twice in both sums
        else:
            total = torch.cat([part.sum(-1) for _, part in parts], -1).sum(-1, dtype=torch.float64)
            terms.append(total / (shape[-2] * shape[-1] or math.nan))
    return torch.stack(terms, -1).float()


def chunks(shape: Sequence[int]) -> list[slice]:
    """Divide the rows of (..., R, C) so that each part has about ``CHUNK`` entries."""
    *batch, rows, columns = shape
    each = max(1, CHUNK // max(1, math.prod(batch) * columns))
    return [slice(start, start + each) for start in range(0, max(1, rows), each)]


def _positive(part: Tensor, start: int) -> tuple[Tensor, Tensor]:
    """Sum and count the positive entries in rows of (..., T, T) from ``start`` on, its diagonal aside: (..., rows) each."""
    positive = part.clamp(min=0)
    positive.diagonal(start, -2, -1).zero_()
    return positive.sum(-1), positive.sign_().sum(-1)


def grand_sum(matrix: Tensor) -> Tensor:
    """Sum (..., R, C) to (...) float64: rows in float32, which is fast, then the row sums exactly enough."""
    return matrix.sum(-1).sum(-1, dtype=torch.float64)


def block_of(matrix: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Take rows and columns of (..., T, T), as a view where both are runs, as modalities mostly are."""

    def narrow(part: Tensor, dim: int, index: Tensor) -> Tensor:
        if len(index) and int(index[-1] - index[0]) == len(index) - 1:
            return part.narrow(dim, int(index[0]), len(index))
        return part.index_select(dim, index)

    return narrow(narrow(matrix, -2, rows), -1, columns)


def similarities(outputs: Tensor, modality: Tensor, within: Within = "mean") -> dict[tuple[int, int], float]:
    """Measure the similarity of tokens within and across modalities.

    Args:
        outputs: (T, d), output tokens of a linear, any float type.
        modality: (T,), a whole number per token, negative = padding.
        within: ``"mean"`` averages over all pairs (the paper), ``"positive"`` within a modality over the pairs with
            positive cosine (the authors' code).

    Returns:
        ``{(a, b): mean cosine}`` with a <= b; a term without any pair of tokens is left out.

    Raises:
        ValueError: if the shapes do not fit or ``within`` is unknown.
    """
    if outputs.ndim != 2 or modality.shape != outputs.shape[:1]:
        raise ValueError(
            f"outputs are (T, d) and modality (T,), not {tuple(outputs.shape)} and {tuple(modality.shape)}"
        )
    check(within)
    pairs = pairs_of(modality)
    if not pairs:
        return {}
    valid = modality >= 0
    outputs, modality = outputs[valid], modality[valid]
    if within == "mean":
        (values,) = mean_similarities([outputs], membership(modality, pairs))
    else:
        units = unit(outputs)
        values = positive_similarities(units @ units.T, modality, pairs)
    return {pair: value for pair, value in zip(pairs, values.tolist()) if not math.isnan(value)}


def diversity(similarities: dict[tuple[int, int], float], terms: int = 3) -> float:
    """Score a linear: the mean of ``1 - similarity`` over the defined terms, times their nominal number.

    Args:
        similarities: from :func:`similarities`.
        terms: the nominal number of terms, 3 for two modalities and 6 for three; samples in which some are undefined
            stay on the same scale.

    Returns:
        The score, NaN if no term is defined.
    """
    defined = [1 - value for value in similarities.values()]
    return terms * sum(defined) / len(defined) if defined else math.nan
