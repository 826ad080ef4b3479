"""Graphs of calibration tokens: which resemble each other, and what attention says about them (section 3.3 of the paper)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tamp import diversity

REACH = 1.0  # message passing: exp(-REACH * D)
INHIBITION = 0.2  # after a pick: exp(-INHIBITION * D)


@dataclass(frozen=True)
class Graph:
    """The tokens of L linears of one sample, ready for picking.

    Attributes:
        cosine: (L, T, T) float32, its diagonal not of use; the kernel is ``exp(cosine - 1)`` with ones on the diagonal.
        row_sums: (L, T) float32, of the kernel.
        gain: (L, T), attention after message passing.
        neighbours: (L, T, k) int64, nearest tokens by cosine, the token itself excluded.
        inhibition: (L, T, k), how much of a picked token's gain each neighbour loses.
        bound: (L,), picking stops once MMD^2 falls below it.
    """

    cosine: Tensor
    row_sums: Tensor
    gain: Tensor
    neighbours: Tensor
    inhibition: Tensor
    bound: Tensor


def token_graph(
    outputs: Sequence[Tensor],
    attention: Tensor,
    modality: Tensor,
    *,
    neighbours: int = 3,
    threshold: float = 0.1,
    within: diversity.Within = "positive",
    host: Tensor | None = None,
) -> Graph:
    """Build the nearest-neighbour graphs of one sample's linears and pass the attention along them.

    Args:
        outputs: L tensors (T, d_l), without padding.
        attention: (T,), attention of the last token.
        modality: (T,), non-negative whole numbers.
        neighbours: k of the graph; T - 1 if there are fewer tokens.
        threshold: MMD^2 must fall below ``threshold * sqrt(1 - rho)``.
        within: how ``rho``, the mean similarity, averages within a modality; see :func:`tamp.diversity.similarities`.
        host: ``modality`` on the CPU, if it is there already: fetching it waits for a GPU.
    """
    diversity.check(within)
    if neighbours < 1 or not threshold >= 0:
        raise ValueError(f"neighbours must be at least 1 and threshold at least 0, not {neighbours} and {threshold}")
    tokens = len(attention)
    k = min(neighbours, tokens - 1)
    host = modality.cpu() if host is None else host
    pairs = diversity.pairs_of(host)
    cosine = torch.empty(len(outputs), tokens, tokens, device=attention.device)
    for row, output in zip(cosine, outputs):
        diversity.cosines(output, out=row)
    cosine.diagonal(dim1=1, dim2=2).fill_(-math.inf)  # a token is not its own neighbour
    if within == "mean":
        similarity = diversity.mean_similarities(outputs, diversity.membership(modality, pairs))
    else:
        similarity = diversity.positive_similarities(cosine, modality, pairs, host)
    rho = similarity.nanmean(-1)  # (L,), NaN if no term is defined
    # Undefined, or 1 up to rounding: all tokens are alike, and the first pick is enough.
    bound = torch.where(rho < 1 - 1e-6, threshold * (1 - rho).clamp(min=0).sqrt(), math.inf)
    nearest, index = largest(cosine, k)  # (L, T, k)
    attention = attention.float()
    gain = attention + ((nearest - 1) * REACH).exp().mul(attention[index]).sum(2)
    return Graph(cosine, kernel_sums(cosine), gain, index, ((nearest - 1) * INHIBITION).exp(), bound)


def kernel_sums(cosine: Tensor) -> Tensor:
    """Sum the rows of the kernel ``exp(cosine - 1)`` with ones on its diagonal, (L, T, T) to (L, T), a part at a time."""
    sums = []
    for rows in diversity.chunks(cosine.shape, min(diversity.CHUNK, 2**20 if cosine.device.type == "cpu" else 2**24)):
        kernel = (cosine[:, rows] - 1).exp_()
        kernel.diagonal(rows.start, 1, 2).fill_(1)
        sums.append(kernel.sum(2))
    return torch.cat(sums, 1)


def largest(matrix: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Find the k largest entries of every row, (..., T) to values and columns (..., k), first columns first in a tie.

    ``topk`` pays a fixed price per row that k passes of ``argmax`` do not: for short rows they take half the time.
    """
    if k == 0 or matrix.shape[-1] > 512:
        return matrix.topk(k, dim=-1)
    matrix = matrix.clone()
    values, columns = [], []
    for _ in range(k):
        column = matrix.argmax(-1, keepdim=True)
        values.append(matrix.gather(-1, column))
        columns.append(column)
        matrix.scatter_(-1, column, -math.inf)
    return torch.cat(values, -1), torch.cat(columns, -1)
