"""Which calibration tokens count: all of them, the text tokens, or those chosen by ATV or AMIA.

Adaptive Multimodal Input Activation (section 3.3 of the paper) picks, for every linear and sample, output tokens that the
last token attends to and that together resemble the whole sequence. :func:`amia` does one linear; :func:`amia_batch` does
many linears of many samples in lock step and gives the same picks, bit for bit.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from tamp import diversity
from tamp.choices import atv, balanced, everything, text
from tamp.graphs import Graph, token_graph
from tamp.methods import Option, Tokens
from tamp.models import TEXT

ENTRIES = 2**26  # cosines (float32) of the sets that are picked together on a CPU: 256 MiB
TOGETHER = 2**20  # on a CPU, cosines of different samples that are picked together: 4 MiB, which caches hold
CHECK_EVERY = 16  # on a GPU, picks between two looks at whether every set is done: each look waits for the device


def lock_step(device: torch.device) -> int:
    """Return the bytes that samples picked together may take: 256 MiB on a CPU, on a GPU a sixteenth of what is free."""
    gpu = device.type == "cuda" and torch.cuda.is_available()
    free = torch.cuda.mem_get_info(device)[0] if gpu else 0
    return max(4 * ENTRIES, free // 16)


def pick(graphs: Sequence[Graph], at_least: int = 0) -> list[Tensor]:
    """Pick tokens greedily in all graphs at once, O(T) per pick, until each one's MMD^2 is below its bound.

    Args:
        graphs: one per sample; samples may differ in their number of tokens and of linears.
        at_least: force that many picks per linear, or all tokens if there are fewer.

    Returns:
        One (L, T) bool per graph, True = picked, at least one per row.
    """
    return [_mask(*picks, graph.gain.shape[1]) for graph, picks in zip(graphs, pick_in_order(graphs, at_least))]


def _mask(order: Tensor, counts: Tensor, tokens: int) -> Tensor:
    """Turn picks (L, P) and whether they count into a mask (L, tokens)."""
    mask = order.new_zeros(len(order), tokens + 1, dtype=torch.bool)
    return mask.scatter_(1, torch.where(counts, order, tokens), True)[:, :tokens]


def pick_in_order(graphs: Sequence[Graph], at_least: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Do what :func:`pick` does; return per graph the picks in order, (L, P) int64, and which of them count, (L, P) bool."""
    lengths = [graph.gain.shape[1] for graph in graphs]
    longest = max(lengths)
    device = graphs[0].gain.device

    width = max(graph.neighbours.shape[2] for graph in graphs)  # below k only for samples of fewer than k + 1 tokens

    def stack(parts: Sequence[Tensor], fill: float = 0) -> Tensor:
        """Pad (L, T) or (L, T, k) parts to the longest sample and put them below each other."""
        if len(parts) == 1:
            return parts[0]
        out = parts[0].new_full((sum(linears), longest, *([width] if parts[0].ndim == 3 else [])), fill)
        for rows, part in zip(out.split(linears), parts):
            rows[tuple(slice(size) for size in part.shape)] = part
        return out

    linears = [len(graph.bound) for graph in graphs]
    length = torch.cat([torch.full((count,), size, device=device) for count, size in zip(linears, lengths)])  # (B,)
    first = torch.arange(len(length), device=device) * longest  # of every set in what is flattened
    origin = (length**2).cumsum(0) - length**2
    # The cosines lie end to end without padding: set b's row i starts at origin[b] + i * length[b]. Reading a row of a short
    # sample as a long one runs into what follows it, zeros at the very end; no picked token ever looks at that.
    matrices = [graph.cosine.flatten() for graph in graphs]
    cosine = matrices[0] if len(graphs) == 1 else torch.cat([*matrices, matrices[0].new_zeros(longest)])
    columns = torch.arange(longest, device=device)
    row_sums = stack([graph.row_sums for graph in graphs])  # (B, T)
    gain = stack([graph.gain for graph in graphs], -math.inf).clone()
    neighbours = stack([graph.neighbours for graph in graphs]).flatten(0, 1)  # (B T, k)
    inhibition = stack([graph.inhibition for graph in graphs]).flatten(0, 1)
    bound = torch.cat([graph.bound for graph in graphs])
    size = length.double()
    whole = torch.cat([graph.row_sums.sum(1, dtype=torch.float64) for graph in graphs]) / size**2  # mean of K

    to_picked = torch.zeros_like(gain)  # sum of K over the picked columns
    among = torch.zeros_like(whole)  # sum of K over picked x picked
    across = torch.zeros_like(whole)  # sum of K over all x picked
    active = torch.ones_like(length, dtype=torch.bool)
    order, counts = [], []
    for count in range(1, longest + 1):
        best, index = gain.max(1)  # (B,)
        active = active & (best > -math.inf)  # something was left to pick
        order.append(index)
        counts.append(active)
        place, column = first + index, index[:, None]
        lost = inhibition[place] * best.clamp(min=0)[:, None]  # (B, k)
        gain.scatter_add_(1, neighbours[place], -lost).scatter_(1, column, -math.inf)
        kernel = cosine.take(torch.addcmul(origin, index, length)[:, None] + columns).sub_(1).exp_()  # (B, T)
        among += 2 * to_picked.take(place) + 1
        to_picked += kernel.scatter_(1, column, 1)
        across += row_sums.take(place)
        discrepancy = torch.addcdiv(whole, across, size, value=-2 / count).add_(among, alpha=count**-2)  # MMD^2
        if count >= at_least:
            active = active & (discrepancy >= bound)
        if (device.type == "cpu" or count % CHECK_EVERY == 0) and (~active).all():
            break
    picks = torch.stack(order, 1).split(linears), torch.stack(counts, 1).split(linears)
    return list(zip(*picks))


def _select(sets: Sequence[tuple], at_least: int = 0, **settings) -> Iterator[tuple]:
    """Pick in sets as :func:`amia_batch` does, as many at a time as may be held.

    Yields:
        Number of the sample, which of its linears, the positions of its tokens without padding (None without any), and the
        picks among them with whether they count, see :func:`pick_in_order`.
    """
    for outputs, attention, modality in sets:
        for output in outputs:
            if output.ndim != 2 or not attention.shape == modality.shape == output.shape[:1]:
                raise ValueError(
                    f"outputs are (T, d), attention and modality (T,), not {tuple(output.shape)}, "
                    f"{tuple(attention.shape)} and {tuple(modality.shape)}"
                )
    if not sets:
        return
    device = sets[0][2].device
    entries = lock_step(device) // 4
    together = min(entries, TOGETHER) if device.type == "cpu" else entries
    # one wait for what is known of all
    hosts = torch.cat([modality for *_, modality in sets]).cpu().split([len(modality) for *_, modality in sets])
    hosts = [(host, host[host >= 0]) for host in hosts]
    parts = [
        (position, slice(start, start + step), min(step, count - start) * len(valid) ** 2)
        for position, (_, valid) in enumerate(hosts)
        if len(valid)
        for step, count in [(max(1, entries // len(valid) ** 2), len(sets[position][0]))]
        for start in range(0, count, step)
    ]
    while parts:
        ends = itertools.accumulate(entries for *_, entries in parts)
        now = parts[: max(1, sum(end <= together for end in ends))]
        parts = parts[len(now) :]
        graphs, kept = [], []
        for position, linears, _ in now:
            (outputs, attention, modality), (host, valid) = sets[position], hosts[position]
            outputs, places = outputs[linears], None
            if len(valid) < len(host):
                places = (modality < 0).byte().argsort(stable=True)[: len(valid)]  # without a look at the device
                outputs, attention, modality = [o[places] for o in outputs], attention[places], modality[places]
            graphs.append(token_graph(outputs, attention, modality, host=valid, **settings))
            kept.append(places)
        for (position, linears, _), places, (order, counts) in zip(now, kept, pick_in_order(graphs, at_least)):
            yield position, linears, places, order, counts


def amia_batch(
    sets: Sequence[tuple[Sequence[Tensor], Tensor, Tensor]], *, at_least: int = 0, **settings
) -> list[Tensor]:
    """Select tokens for many linears of many samples in lock step, as many at a time as :func:`lock_step` allows.

    A linear with more cosines than that, on a CPU one of more than 8,192 tokens, is alone. So at most about
    ``4 max(ENTRIES, T^2)`` bytes of cosines are held, twice that where samples of different lengths are picked together.
    Everything else of size (T, T) goes by rows: about 3 x 4 ``diversity.CHUNK`` bytes. So 16,000 tokens take 1.02 GB and
    0.2 GB, below 2 x 4 T^2.

    Args:
        sets: per sample (outputs, attention, modality): L tensors (T, d_l), (T,), (T,); samples may differ in T and L.
        at_least: force that many picks.
        **settings: neighbours, threshold and within of :func:`token_graph`.

    Returns:
        One (L, T) bool per sample. A sample that is all padding has no picks.

    Raises:
        ValueError: if the shapes do not fit.
    """
    chosen = [
        torch.zeros(len(outputs), len(modality), dtype=torch.bool, device=modality.device)
        for outputs, _, modality in sets
    ]
    for position, linears, places, order, counts in _select(sets, at_least, **settings):
        if places is not None:
            order = places[order]
        chosen[position][linears] = _mask(order, counts, chosen[position].shape[1])
    return chosen


def amia_places(sets: Sequence[tuple[Sequence[Tensor], Tensor, Tensor]], **settings) -> list[list[Tensor]]:
    """Do what :func:`amia_batch` does; return per sample and linear the positions of the picks, (P,) int64 each.

    A GPU gathers by positions without a wait, where a mask would have to be counted first.
    """
    picked = [(*found, found[-1].sum(1)) for found in _select(sets, **settings)]
    numbers = iter(torch.cat([found[-1] for found in picked]).tolist() if picked else ())
    chosen = [[modality.new_zeros(0, dtype=torch.long)] * len(outputs) for outputs, _, modality in sets]
    for position, linears, places, order, *_ in picked:
        for linear, picks in zip(range(len(chosen[position]))[linears], order):
            picks = picks[: next(numbers)]
            chosen[position][linear] = picks if places is None else places[picks]
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

    On a GPU it is the positions of the picks for each instead of a mask. Where the attention cannot be read, all tokens
    count, and so does what is not of the sequence.
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
        picks = (amia_batch if rows[0].codes.device.type == "cpu" else amia_places)(
            asked,
            neighbours=options["amia_neighbours"],
            threshold=options["amia_threshold"],
            within=options["amia_similarity"],
        )
        for (number, names, places), picked in zip(sets, picks):
            if places is None and len(names) == len(rows[number].inputs) and isinstance(picked, Tensor):
                chosen[number] = picked
            else:
                chosen[number] |= dict(zip(names, picked))
    return chosen


TOKENS = {
    "all": Tokens(
        choose=_each(lambda row, options: everything(row.codes) if row.padded else None),
        looks_at="modality",
        summary="every token",
    ),
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
