"""Token similarity within and across modalities, the quantity behind Diversity-Aware Sparsity.

``similarity(A, B)`` is the mean cosine similarity between tokens of modality A and tokens of modality B; within one
modality, over unordered pairs of different tokens. Modalities are whole numbers; a negative number marks padding, which
is ignored. A token that is all zeros has cosine 0 with every other.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor

from tamp.accumulators import product

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


def cosines(outputs: Tensor, out: Tensor | None = None) -> Tensor:
    """Compute the cosines of all pairs of tokens, (T, d) to (T, T) float32.

    Tokens of half precision are multiplied as they are on a GPU, exactly, and the products added up in float32. Their norms
    are then on the diagonal, and nothing of their size is copied.
    """
    if outputs.device.type == "cpu" or outputs.dtype not in (torch.float16, torch.bfloat16):
        units = unit(outputs)
        return torch.mm(units, units.T, out=out)
    cosine = product(outputs, outputs.T, out)
    scale = cosine.diagonal().rsqrt()
    scale = scale.masked_fill(scale.isinf(), 0)  # (T,)
    return cosine.mul_(scale).mul_(scale[:, None])


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
    means = torch.where(number > 0, torch.stack(sums) / number, math.nan)
    upper = itertools.combinations_with_replacement(range(len(member)), 2)
    return torch.stack([means[:, a, b] for a, b in upper], -1).float()


def positive_similarities(
    cosine: Tensor, modality: Tensor, pairs: list[tuple[int, int]], host: Tensor | None = None
) -> Tensor:
    """Average the cosine as the authors' code does: within a modality only over pairs with positive cosine.

    Args:
        cosine: (..., T, T), symmetric; its diagonal is not looked at.
        modality: (T,), whole numbers, negative = padding.
        pairs: the terms wanted; across modalities all pairs count, whatever their sign.
        host: ``modality`` on the CPU, if it is there already.

    Returns:
        (..., terms) float32, NaN where a term has no pair. Beside ``cosine``, about 3 x 4 ``CHUNK`` bytes are held, however
        the modalities take turns.
    """
    index = places_of(modality, {code for pair in pairs for code in pair}, host)
    terms = []
    for a, b in pairs:
        shape = *cosine.shape[:-2], index[a][0], index[b][0]
        parts = ((rows.start, block_of(cosine, index[a], index[b], rows)) for rows in chunks(shape))
        if a == b:
            sums = [_positive(part, start) for start, part in parts]
            total, count = (torch.cat(each, -1).sum(-1, dtype=torch.float64) for each in zip(*sums))
            terms.append(total / count)  # every pair stands twice in both sums
        else:
            total = torch.cat([part.sum(-1) for _, part in parts], -1).sum(-1, dtype=torch.float64)
            terms.append(total / (shape[-2] * shape[-1] or math.nan))
    return torch.stack(terms, -1).float()


def places_of(
    modality: Tensor, codes: Iterable[int], host: Tensor | None = None
) -> dict[int, tuple[int, int | Tensor]]:
    """Find the tokens of modalities, with one look at the device at most.

    Args:
        modality: (T,), whole numbers.
        codes: those asked for.
        host: ``modality`` on the CPU, if it is there already.

    Returns:
        Per code the number of its tokens n, and where they are: the first position if they stand in a run, else all (n,).
    """
    host, found = modality.cpu() if host is None else host, {}
    for code in codes:
        index = (host == code).nonzero().flatten()
        if len(index) and int(index[-1] - index[0]) == len(index) - 1:
            found[code] = len(index), int(index[0])
        elif modality.device.type == "cpu":
            found[code] = len(index), index
        else:
            found[code] = len(index), (modality != code).byte().argsort(stable=True)[: len(index)]
    return found


def chunks(shape: Sequence[int], entries: int | None = None) -> list[slice]:
    """Divide the rows of (..., R, C) so that each part has about ``entries`` entries, ``CHUNK`` if None."""
    *batch, rows, columns = shape
    each = max(1, (entries or CHUNK) // max(1, math.prod(batch) * columns))
    return [slice(start, min(start + each, rows)) for start in range(0, max(1, rows), each)]


def _positive(part: Tensor, start: int) -> tuple[Tensor, Tensor]:
    """Sum and count the positive entries in rows of (..., T, T) from ``start`` on, its diagonal aside: (..., rows) each."""
    positive = part.clamp(min=0)
    positive.diagonal(start, -2, -1).zero_()
    return positive.sum(-1), positive.sign_().sum(-1)


def block_of(matrix: Tensor, rows: tuple[int, int | Tensor], columns: tuple[int, int | Tensor], part: slice) -> Tensor:
    """Take some of the rows and all columns of two modalities of (..., T, T), as a view where both are runs.

    Args:
        matrix: (..., T, T).
        rows: number and places, from :func:`places_of`.
        columns: number and places.
        part: which of the rows.
    """
    (_, start), (size, first) = rows, columns
    if isinstance(start, int):
        matrix = matrix.narrow(-2, start + part.start, part.stop - part.start)
    else:
        matrix = matrix.index_select(-2, start[part])
    return matrix.narrow(-1, first, size) if isinstance(first, int) else matrix.index_select(-1, first)


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
        values = positive_similarities(cosines(outputs), modality, pairs)
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
