"""What pruning takes before it is done: memory, disk and time from the shapes of a model alone.

Nothing here is measured but the sizes of files. Memory counts what is held: weights, hidden states of the samples, and, for
one block and one sample, what its matrices saw and what the method makes of it. Time counts operations and bytes, at half of
what a card's data sheet promises.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from tamp import masks, models, pruning, selection
from tamp.recipe import Recipe


@dataclass(frozen=True)
class Card:
    """What a data sheet says of a GPU.

    Attributes:
        memory: bytes.
        half: operations per second in half precision, dense, with tensor cores.
        single: operations per second in single precision, without them.
        bandwidth: bytes per second of its memory.
        bus: bytes per second from the host, one way.
        source: the data sheet.
    """

    memory: float
    half: float
    single: float
    bandwidth: float
    bus: float
    source: str


SHEETS = "https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center"
CARDS = {
    "T4": Card(16e9, 65e12, 8.1e12, 300e9, 16e9, f"{SHEETS}/tesla-t4/t4-tensor-core-datasheet-951643.pdf"),
    "L4": Card(24e9, 121e12, 30.3e12, 300e9, 32e9, "https://www.nvidia.com/en-us/data-center/l4/"),
    "A100": Card(80e9, 312e12, 19.5e12, 2039e9, 32e9, "https://www.nvidia.com/en-us/data-center/a100/"),
    "H100": Card(80e9, 989e12, 67e12, 3350e9, 64e9, "https://www.nvidia.com/en-us/data-center/h100/"),
}
"""A100 and H100 are those with SXM and 80 GB. The sheets of L4 and H100 give twice ``half``: for 2:4 sparse matrices."""

ATTAINED = 0.5
"""Share of a data sheet's numbers that is counted on."""

ROOM = 1e9
"""Bytes of a device that are left alone: the driver's, and what torch keeps in pieces."""

PER_WEIGHT, PER_WEIGHT_ADMM = 12, 40
"""Bytes per weight of a matrix while it is pruned: metric and masks, or SparseGPT's update; or ADMM's variables."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What the estimates need to know of a model.

    Attributes:
        name: of the model.
        parameters: of the whole model.
        shapes: (out, in) of every matrix that is pruned, block by block.
        weights: bytes of all parameters and buffers, as loaded.
        block: bytes of the largest block.
        outside: bytes of everything but the blocks.
        width: of the hidden states.
        head: width of an attention head.
        dtype: of the hidden states.
        left_out: what stays dense, ``{name: (weights, reason)}``.
    """

    name: str
    parameters: int
    shapes: tuple[tuple[tuple[int, int], ...], ...]
    weights: int
    block: int
    outside: int
    width: int
    head: int
    dtype: torch.dtype
    left_out: Mapping[str, tuple[int, str]]

    @classmethod
    def of(cls, model: nn.Module) -> "Sizes":
        """Read the sizes off a model, which may be without weights (on the device ``"meta"``)."""

        def held(module: nn.Module) -> int:
            return sum(each.nbytes for each in (*module.parameters(), *module.buffers()))

        config = models.text_config(model)
        stack = models.blocks(model).values()
        blocks = [held(block) for block in stack]
        shapes = tuple(tuple(tuple(each.weight.shape) for each in models.linears(block).values()) for block in stack)
        return cls(
            name=models.name_of(model),
            parameters=sum(each.numel() for each in model.parameters()),
            shapes=shapes,
            weights=held(model),
            block=max(blocks),
            outside=held(model) - sum(blocks),
            width=config.hidden_size,
            head=getattr(config, "head_dim", None)
            or config.hidden_size // (getattr(config, "num_attention_heads", 0) or 1),
            dtype=model.dtype,
            left_out=models.left_out(model),
        )

    @property
    def itemsize(self) -> int:
        """Bytes of a number in the hidden states."""
        return self.dtype.itemsize

    @property
    def pruned(self) -> int:
        """Number of weights in the matrices that are pruned."""
        return sum(out * width for block in self.shapes for out, width in block)

    @property
    def matrices(self) -> int:
        """Number of matrices that are pruned."""
        return sum(map(len, self.shapes))


@dataclass(frozen=True)
class Need:
    """What pruning by one recipe takes, bytes.

    Attributes:
        states: hidden states of all samples, what entered a block and what left it, and rotary embeddings.
        transient: for one block and one sample, beside weights and states.
        resident: device, with the model and the states on it.
        onloaded: device, with one block on it, the next one coming, and the states on it.
        least: device, with one block on it, the next one coming, and the states on the host.
        host: the host's own memory, with states on it: two blocks beside them. Mapped weights are not counted.
        disk: the result and the finished blocks beside it.
    """

    states: int
    transient: int
    resident: int
    onloaded: int
    least: int
    host: int
    disk: int


def need(sizes: Sizes, recipe: Recipe, lengths: Sequence[int]) -> Need:
    """Compute what pruning takes.

    Args:
        sizes: of the model.
        recipe: what would be done.
        lengths: tokens of every calibration sample.
    """
    samples = recipe.needs_samples
    longest = max(lengths, default=0) if samples else 0
    states = 2 * sum(lengths) * sizes.width * sizes.itemsize if samples else 0
    transient = max(_transient(sizes, recipe, block, longest) for block in sizes.shapes)
    rotary = 2 * sum(lengths) * sizes.head * sizes.itemsize if samples else 0  # what blocks are called with besides
    states += rotary
    at_work = 2 * sizes.block + transient
    capture = sizes.outside + 2 * sizes.block
    return Need(
        states=states,
        transient=transient,
        resident=sizes.weights + states + transient,
        onloaded=max(at_work, capture) + states,
        least=max(at_work, capture),
        host=states + 2 * sizes.block,
        disk=2 * sizes.weights - sizes.outside,
    )


def _transient(sizes: Sizes, recipe: Recipe, block: Sequence[tuple[int, int]], tokens: int) -> int:
    """Return bytes of one block and one sample: what its matrices saw and the sums over it, or a matrix that is pruned.

    Sums are freed matrix by matrix. What a Hessian is turned into stands beside it once.
    """
    _, rule, criterion, update = recipe.rules
    widest = max(width for _, width in block)
    seen = tokens * sizes.itemsize * sum(2 * out + width for out, width in block)  # outputs twice: what becomes of them
    rows = [row.statistic for row in (criterion, update) if row.statistic is not None]
    sums = [sum(_statistic_bytes(statistic, width) for statistic in rows) for _, width in block]
    if rows:
        seen += 4 * tokens * widest  # in single precision, squared
    if rule.together and tokens:
        seen += pruning.LOCK_STEP + 3 * 4 * max(selection.ENTRIES, tokens**2)
    admm = recipe.update == "admm"

    def pruned(place: int, out: int, width: int) -> int:
        made = (PER_WEIGHT_ADMM if admm else PER_WEIGHT) * out * width + 20 * min(out * width, masks.ENTRIES)
        return sum(sums[place:]) + (made + sums[place] if admm else max(made, sums[place]))

    most = max(pruned(place, *shape) for place, shape in enumerate(block))
    return max(seen + sum(sums), most) + 4 * tokens * sizes.width * sizes.itemsize


def _statistic_bytes(statistic, width: int) -> int:
    """Return bytes of the tensors that an accumulator for inputs of a width holds."""
    made = statistic(width, torch.device("meta"))
    return sum(each.nbytes for each in vars(made).values() if isinstance(each, torch.Tensor))


def seconds(sizes: Sizes, recipe: Recipe, lengths: Sequence[int], card: Card, onloaded: bool) -> float:
    """Compute how long pruning takes on a card, from operations and bytes alone.

    Two passes of all samples through the blocks, dense and pruned, in float16 one more before them, one of a part of them
    for the allocation, and what the methods compute: products of a matrix's outputs with each other for AMIA, of its inputs
    for a Hessian, in the model's own type as a GPU takes it, and factors in single precision. Matrices that share a Hessian
    are counted as if each had its own.

    Args:
        sizes: of the model.
        recipe: what would be done.
        lengths: tokens of every calibration sample.
        card: where.
        onloaded: whether the weights come from the host, once per pass.
    """
    allocation, rule, criterion, update = recipe.rules
    tokens, squares = sum(lengths), sum(each**2 for each in lengths)
    share = min(1.0, (recipe.allocation_samples or len(lengths)) / max(1, len(lengths)))
    collects = 2 if recipe.collects else 0
    passes = collects + (share if recipe.allocation_needs_samples else 0)
    passes += recipe.needs_samples and sizes.dtype == torch.float16  # to find what overflows
    own = passes * (2 * sizes.pruned * tokens + 4 * squares * sizes.width * len(sizes.shapes))
    if allocation.looks_at == "loss":  # two losses per block and sample, over half of the blocks each
        own *= 1 + len(sizes.shapes) * share
    single, moved = 0.0, passes * len(lengths) * sizes.pruned * sizes.itemsize
    for block in sizes.shapes:
        if rule.together:
            own += sum(2 * squares * out for out, _ in block)
            moved += 5 * 4 * squares * len(block)
        if any(_statistic_bytes(row.statistic, 8) >= 4 * 8**2 for row in (criterion, update) if row.statistic):
            own += sum(2 * tokens * width**2 for _, width in block)
            single += sum(2 * width**3 + 2 * out * width**2 for out, width in block)
        moved += PER_WEIGHT * sum(out * width for out, width in block)
    rate = card.half if sizes.itemsize == 2 else card.single
    bus = (collects + 4) * (sizes.weights - sizes.outside) / card.bus if onloaded else 0.0
    return (own / rate + single / card.single + moved / card.bandwidth + bus) / ATTAINED


@dataclass(frozen=True)
class Choice:
    """Where weights and states should be.

    Attributes:
        offload: whether the weights stay on the host.
        states: where the states wait, as :func:`tamp.prune` takes it.
        said: a sentence about it.
        fits: whether the device's memory suffices for it.
    """

    offload: bool
    states: str
    said: str
    fits: bool = True


def choose(need: Need, free: float) -> Choice:
    """Choose the first that fits: all on the device, the states alone, or one block alone.

    Args:
        need: from :func:`need`.
        free: bytes of the device's memory that are free.
    """
    free -= ROOM
    if need.resident <= free:
        return Choice(False, "device", f"The model fits on the device: about {gigabytes(need.resident)} GB.")
    if need.onloaded <= free:
        said = f"The weights stay on the host, one block at a time on the device: about {gigabytes(need.onloaded)} GB."
        return Choice(True, "device", said)
    if need.least <= free:
        said = (
            f"Weights and states stay on the host, one block at a time on the device: about {gigabytes(need.least)} GB."
        )
        return Choice(True, "host", said)
    said = (
        f"About {gigabytes(need.least)} GB of the device's memory are needed, with weights and states on the host, and "
        f"{gigabytes(max(0, free))} GB are free: take fewer or shorter samples, another method, or a larger device."
    )
    return Choice(True, "host", said, False)


def full(need: Need) -> str:
    """Say that a device's memory is full, and what would take less."""
    return (
        f"The device's memory is full: with model and states on it about {gigabytes(need.resident)} GB are needed, with the "
        f"weights on the host (tamp.load(..., offload=True), --offload on) {gigabytes(need.onloaded)}, and with the states "
        f"there too (states='host', --states host) {gigabytes(need.least)}. Fewer or shorter samples take less."
    )


def lengths(samples: Sequence[Mapping] | None) -> list[int]:
    """Return the tokens of every sample."""
    return [sample["input_ids"].numel() for sample in samples or ()]


def gigabytes(size: float) -> str:
    """Write bytes in units of 10^9, with two digits."""
    number = size / 1e9
    return f"{number:.{max(0, 1 - math.floor(math.log10(number)))}f}" if 1e-3 < number < 10 else f"{number:.0f}"
