"""Which calibration tokens count: all of them, the text tokens, or those chosen by ATV or AMIA.

Adaptive Multimodal Input Activation (section 3.3 of the paper) picks, for every linear and sample, output tokens that the
last token attends to and that together resemble the whole sequence. :func:`amia` does one linear; :func:`amia_batch` does
many linears of many samples in lock step and gives the same picks, bit for bit.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tamp import diversity
from tamp.choices import atv, balanced, everything, text
from tamp.methods import Option, Tokens
from tamp.models import TEXT

REACH = 1.0  # message passing: exp(-REACH * D)
INHIBITION = 0.2  # after a pick: exp(-INHIBITION * D)
ENTRIES = 2**26  # kernel entries (float32) of the sets that are picked together: 256 MiB
CHECK_EVERY = 16  # on a GPU, picks between two looks at whether every set is done: each look waits for the device


@dataclass(frozen=True)
class Graph:
    """The tokens of L linears of one sample, ready for picking.

    Attributes:
        kernel: (L, T, T) float32, ``exp(-D)`` with ones on the diagonal.
        gain: (L, T), attention after message passing.
        neighbours: (L, T, k) int64, nearest tokens by cosine, the token itself excluded.
        inhibition: (L, T, k), how much of a picked token's gain each neighbour loses.
        bound: (L,), picking stops once MMD^2 falls below it.
    """

    kernel: Tensor
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
) -> Graph:
    """Build the nearest-neighbour graphs of one sample's linears and pass the attention along them.

    Args:
        outputs: L tensors (T, d_l), without padding.
        attention: (T,), attention of the last token.
        modality: (T,), non-negative whole numbers.
        neighbours: k of the graph; T - 1 if there are fewer tokens.
        threshold: MMD^2 must fall below ``threshold * sqrt(1 - rho)``.
        within: how ``rho``, the mean similarity, averages within a modality; see :func:`tamp.diversity.similarities`.
    """
    diversity.check(within)
    if neighbours < 1 or not threshold >= 0:
        raise ValueError(f"neighbours must be at least 1 and threshold at least 0, not {neighbours} and {threshold}")
    tokens = len(attention)
    k = min(neighbours, tokens - 1)
    pairs = diversity.pairs_of(modality)
    cosine = torch.empty(len(outputs), tokens, tokens, device=attention.device)
    for row, output in zip(cosine, outputs):
        units = diversity.unit(output)
        torch.mm(units, units.T, out=row)
    cosine.diagonal(dim1=1, dim2=2).fill_(-math.inf)  # a token is not its own neighbour
    if within == "mean":
        similarity = diversity.mean_similarities(outputs, diversity.membership(modality, pairs))
    else:
        similarity = diversity.positive_similarities(cosine, modality, pairs)
    rho = similarity.nanmean(-1)  # (L,), NaN if no term is defined
    # Undefined, or 1 up to rounding: all tokens are alike, and the first pick is enough.
    bound = torch.where(rho < 1 - 1e-6, threshold * (1 - rho).clamp(min=0).sqrt(), math.inf)
    nearest, index = largest(cosine, k)  # (L, T, k)
    kernel = cosine.sub_(1).exp_()  # exp(-D)
    kernel.diagonal(dim1=1, dim2=2).fill_(1)
    attention = attention.float()
    gain = attention + ((nearest - 1) * REACH).exp().mul(attention[index]).sum(2)
    return Graph(kernel, gain, index, ((nearest - 1) * INHIBITION).exp(), bound)


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


def pick(graphs: Sequence[Graph], at_least: int = 0) -> list[Tensor]:
    """Pick tokens greedily in all graphs at once, O(T) per pick, until each one's MMD^2 is below its bound.

    Args:
        graphs: one per sample; samples may differ in their number of tokens and of linears.
        at_least: force that many picks per linear, or all tokens if there are fewer.

    Returns:
        One (L, T) bool per graph, True = picked, at least one per row.
    """
    lengths = [graph.gain.shape[1] for graph in graphs]
    longest = max(lengths)
    device = graphs[0].gain.device

    width = max(graph.neighbours.shape[2] for graph in graphs)  # below k only for samples of fewer than k + 1 tokens

    def stack(parts: Sequence[Tensor], fill: float = 0) -> Tensor:
        """Pad (L, T) or (L, T, k) parts to the longest sample and put them below each other."""
        if len(parts) == 1:
            return parts[0]
        out = parts[0].new_full((len(sets), longest, *([width] if parts[0].ndim == 3 else [])), fill)
        for rows, part in zip(out.split(linears), parts):
            rows[tuple(slice(size) for size in part.shape)] = part
        return out

    linears = [len(graph.bound) for graph in graphs]
    sets = torch.arange(sum(linears), device=device)
    length = torch.tensor([size for size, count in zip(lengths, linears) for _ in range(count)], device=device)
    # The kernels lie end to end without padding: set b's row i starts at origin[b] + i * length[b]. Reading a row of a short
    # sample as a long one runs into what follows it, zeros at the very end; no picked token ever looks at that.
    kernels = [graph.kernel.flatten() for graph in graphs]
    kernel = kernels[0] if len(graphs) == 1 else torch.cat([*kernels, kernels[0].new_zeros(longest)])
    origin = (length**2).cumsum(0) - length**2
    columns = torch.arange(longest, device=device)
    row_sums = stack([graph.kernel.sum(2) for graph in graphs])  # (B, T)
    gain = stack([graph.gain for graph in graphs], -math.inf).clone()
    neighbours = stack([graph.neighbours for graph in graphs])
    inhibition = stack([graph.inhibition for graph in graphs])
    bound = torch.cat([graph.bound for graph in graphs])
    whole = torch.cat([diversity.grand_sum(graph.kernel) for graph in graphs]) / length**2  # mean of K

    picked = torch.zeros_like(gain, dtype=torch.bool)
    to_picked = torch.zeros_like(gain)  # sum of K over the picked columns
    among = torch.zeros_like(whole)  # sum of K over picked x picked
    across = torch.zeros_like(whole)  # sum of K over all x picked
    done = torch.zeros_like(length, dtype=torch.bool)
    for count in range(1, longest + 1):
        best, index = gain.masked_fill(picked, -math.inf).max(1)  # (B,)
        active = ~done
        picked[sets, index] |= active
        lost = inhibition[sets, index] * (best.clamp(min=0) * active)[:, None]  # (B, k)
        gain.scatter_add_(1, neighbours[sets, index], -lost)
        among += 2 * to_picked[sets, index] + 1
        across += row_sums[sets, index]
        to_picked += kernel.take((origin + index * length)[:, None] + columns)  # (B, T)
        discrepancy = whole + among / count**2 - 2 * across / (length * count)  # MMD^2
        done |= ((discrepancy < bound) & (count >= at_least)) | (count >= length)
        if (device.type == "cpu" or count % CHECK_EVERY == 0 or count == longest) and bool(done.all()):
            break
    return [part[:, :size] for part, size in zip(picked.split(linears), lengths)]


def amia_batch(
    sets: Sequence[tuple[Sequence[Tensor], Tensor, Tensor]], *, at_least: int = 0, **settings
) -> list[Tensor]:
    """Select tokens for many linears of many samples in lock step, as many at a time as have ``ENTRIES`` kernel entries.

    A linear whose kernel is larger, of more than 8,192 tokens, is alone. So at most about ``4 max(ENTRIES, T^2)`` bytes of
    kernels are held, twice that where samples of different lengths are picked together. Everything else of size (T, T)
    goes by rows: about 3 x 4 ``diversity.CHUNK`` bytes. So 16,000 tokens take 1.02 GB and 0.2 GB, below 2 x 4 T^2.

    Args:
        sets: per sample (outputs, attention, modality): L tensors (T, d_l), (T,), (T,); samples may differ in T and L.
        at_least: force that many picks.
        **settings: neighbours, threshold and within of :func:`token_graph`.

    Returns:
        One (L, T) bool per sample. A sample that is all padding has no picks.

    Raises:
        ValueError: if the shapes do not fit.
    """
    for outputs, attention, modality in sets:
        for output in outputs:
            if output.ndim != 2 or not attention.shape == modality.shape == output.shape[:1]:
                raise ValueError(
                    f"outputs are (T, d), attention and modality (T,), not {tuple(output.shape)}, "
                    f"{tuple(attention.shape)} and {tuple(modality.shape)}"
                )
    chosen = [
        torch.zeros(len(outputs), len(modality), dtype=torch.bool, device=modality.device)
        for outputs, _, modality in sets
    ]
    valid = [modality >= 0 for _, _, modality in sets]
    parts = [
        (position, slice(start, start + step), step * int(mask.sum()) ** 2)
        for position, mask in enumerate(valid)
        if mask.any()
        for step in [max(1, ENTRIES // int(mask.sum()) ** 2)]
        for start in range(0, len(sets[position][0]), step)
    ]
    while parts:
        ends = itertools.accumulate(entries for *_, entries in parts)
        now = parts[: max(1, sum(end <= ENTRIES for end in ends))]
        parts = parts[len(now) :]
        graphs = []
        for position, linears, _ in now:
            outputs, attention, modality = sets[position]
            outputs, mask = outputs[linears], valid[position]
            if not mask.all():
                outputs, attention, modality = [o[mask] for o in outputs], attention[mask], modality[mask]
            graphs.append(token_graph(outputs, attention, modality, **settings))
        for (position, linears, _), picks in zip(now, pick(graphs, at_least)):
            chosen[position][linears, valid[position]] = picks
    return chosen


def amia(
    outputs: Tensor,
    attention: Tensor,
    modality: Tensor,
    *,
    neighbours: int = 3,
    threshold: float = 0.1,
    within: diversity.Within = "positive",
    at_least: int = 0,
) -> Tensor:
    """Select the tokens of one sample that count for one matrix.

    Args:
        outputs: (T, d), output tokens of the linear.
        attention: (T,), attention of the last valid token over all tokens.
        modality: (T,), a whole number per token, negative = padding.
        neighbours: k of the nearest-neighbour graph.
        threshold: picking stops once ``MMD^2 < threshold * sqrt(1 - rho)``.
        within: how ``rho`` averages within a modality: ``"positive"`` (as released) or ``"mean"``.
        at_least: force that many picks.

    Returns:
        (T,) bool, True = picked; at least one unless every token is padding.

    Raises:
        ValueError: if the shapes do not fit.
    """
    batch = [([outputs], attention, modality)]
    return amia_batch(batch, neighbours=neighbours, threshold=threshold, within=within, at_least=at_least)[0][0]


def _each(select: Callable) -> Callable:
    """Return the rule for many rows that applies a rule to each."""
    return lambda rows, options: [select(row, options) for row in rows]


def _amia(rows: Sequence, options: Mapping) -> list[Tensor | dict[str, Tensor]]:
    """Choose for every matrix of every row: (matrices, T) bool where all saw the sequence as it is, else a mask for each.

    Where the attention cannot be read, all tokens count, and so does what is not of the sequence.
    """
    chosen: list[Tensor | dict[str, Tensor]] = [{} for _ in rows]
    whole, routed = [], []  # (row, matrices, positions): sets of about the same length are picked together
    for number, row in enumerate(rows):
        for names, places in row.groups():
            if row.attention is None or (places is not None and bool((places < 0).any())):
                chosen[number] |= dict.fromkeys(names, everything(row.codes_at(places)))
            else:
                (whole if places is None else routed).append((number, names, places))
    for sets in filter(None, (whole, routed)):
        asked = []
        for number, names, places in sets:
            row = rows[number]
            attention = row.attention if places is None else row.attention[places]
            asked.append(([row.outputs[name] for name in names], attention, row.codes_at(places)))
        picks = amia_batch(
            asked,
            neighbours=options["amia_neighbours"],
            threshold=options["amia_threshold"],
            within=options["amia_similarity"],
        )
        for (number, names, places), picked in zip(sets, picks):
            if places is None and len(names) == len(rows[number].inputs):
                chosen[number] = picked
            else:
                chosen[number] |= dict(zip(names, picked))
    return chosen


TOKENS = {
    "all": Tokens(choose=_each(lambda row, options: everything(row.codes)), looks_at="modality", summary="every token"),
    "text": Tokens(
        choose=_each(lambda row, options: text(row.codes, TEXT)), looks_at="modality", summary="text tokens"
    ),
    "balanced": Tokens(
        choose=_each(lambda row, options: balanced(row.codes, TEXT, options["text_share"])),
        looks_at="modality",
        options={"text_share": Option(0.5, "share of text tokens in the mean, from 0 to 1", least=0, most=1)},
        summary="every token, text and the others with a fixed share each",
    ),
    "atv": Tokens(
        choose=_each(lambda row, options: atv(row.before, row.after, row.codes, TEXT, options["atv_alpha"])),
        options={"atv_alpha": Option(1.0, "visual tokens taken per unit of drift", least=0)},
        summary="text tokens, and the visual tokens that a block moves most",
        source="arXiv 2603.16001",
    ),
    "amia": Tokens(
        choose=_amia,
        looks_at="attention",
        together=True,
        options={
            "amia_similarity": Option(
                "positive",
                "how the stopping rule averages cosines within a modality: over pairs with positive cosine (as released) "
                "or over all pairs",
                choices=("mean", "positive"),
            ),
            "amia_neighbours": Option(3, "neighbours of a token in the graph", least=1),
            "amia_threshold": Option(0.1, "threshold of the stopping rule", least=0),
        },
        summary="few tokens per matrix, attended to and representative",
        source="Lee et al. 2025, arXiv 2504.09897",
    ),
}
"""Token selections by name. A function ``f(row) -> mask`` may stand in: a :class:`tamp.walk.Row` to (T,) bool."""


def rule(method: str | Callable) -> Tokens:
    """Return the row of a token selection; a function chooses for all matrices of a row at once."""
    return TOKENS[method] if isinstance(method, str) else Tokens(choose=_each(lambda row, options: method(row)))
