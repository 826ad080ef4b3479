"""One block on the device at a time: weights wait where the model was loaded, and are computed on another device.

A module that is brought to a device gets copies in place of its parameters and buffers, and these back afterwards.
"""

import contextlib
import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn

from tamp import models, passes
from tamp.errors import UserError, unknown

log = logging.getLogger(__name__)

MOST_FILLED = 0.7
"""Share of a GPU's free memory that weights may fill."""

STATES = ("auto", "device", "host")
"""Where the hidden states of samples wait between two blocks; ``"auto"`` is the host if they would fill half of a GPU."""


def resolve_device(device: str | torch.device) -> torch.device:
    """Return the device of a name, with its number; ``"auto"`` is a GPU if there is one.

    Raises:
        UserError: if torch does not know the name or the device is not available.
    """
    if str(device) == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"Device {str(device)!r} is not available here; 'auto' takes what there is.") from error


def settle(model: nn.Module) -> None:
    """Move a model that waits on the host to where it is computed; leave it, with a warning, if a GPU is too small."""
    device = torch.device(model.computed_on)
    held = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" and torch.cuda.is_available() else math.inf
    if held > MOST_FILLED * free:
        log.warning(
            "The weights of %s, %.1f GB, do not fit %s, which has %.1f GB free: they stay on the host, and one block at a "
            "time is brought there. That gives the same, more slowly.",
            model.config._name_or_path or type(model).__name__,
            held / 1e9,
            device,
            free / 1e9,
        )
    else:
        model.to(device)
        del model.computed_on


def states_bytes(model: nn.Module, samples: Sequence[Mapping]) -> int:
    """Return the bytes of hidden states that pruning holds at most: what entered a block and what left it."""
    tokens = sum(sample["input_ids"].numel() for sample in samples)
    return 2 * tokens * models.text_config(model).hidden_size * model.dtype.itemsize


class Place:
    """Where blocks are computed, and where samples wait between them.

    Attributes:
        device: where blocks are computed.
        states: where hidden states wait; None if where they are computed.
        blocks: the decoder blocks, ``{name inside the model: block}``.
    """

    def __init__(
        self,
        model: nn.Module,
        device: str | torch.device | None = None,
        states: str = "device",
        samples: Sequence[Mapping] = (),
        fresh: bool = False,
    ):
        """Choose the place.

        Args:
            model: its weights stay where they are, but for the block that is computed.
            device: where to compute; None where :func:`tamp.load` was told to, or else where the model is.
            states: one of ``STATES``.
            samples: that will be walked, for ``"auto"``.
            fresh: whether a block that is changed gets new memory even where it is: a mapped file is not written into.

        Raises:
            UserError: if there is no such device or choice.
        """
        if states not in STATES:
            raise unknown("place for states", str(states), STATES)
        self.blocks = models.blocks(model)
        device = getattr(model, "computed_on", None) if device is None else device
        self.device = next(model.parameters()).device if device is None else resolve_device(device)
        self._outside = list(_without(models.speaker(model), {id(block) for block in self.blocks.values()}))
        self._moves = device is not None and any(each.device != self.device for each in _tensors(model.modules()))
        self._fresh = fresh and next(model.parameters()).device.type == "cpu"
        gpu = self.device.type == "cuda" and torch.cuda.is_available()
        self._stream = torch.cuda.Stream(self.device) if gpu and self._moves else None
        self._worker = ThreadPoolExecutor(1) if self._stream else None
        self._ahead: tuple[int, Future] | None = None  # the block that is fetched while another is computed
        if states == "auto" and gpu:
            large = states_bytes(model, samples) > torch.cuda.mem_get_info(self.device)[0] / 2
            states = "host" if large else "device"
        self.states = torch.device("cpu") if states == "host" and self.device.type != "cpu" else None

    def rest(self) -> contextlib.AbstractContextManager:
        """Bring everything but the blocks to the device, in a context."""
        return onloaded(self._outside, self.device) if self._moves else contextlib.nullcontext()

    @contextlib.contextmanager
    def block(self, position: int, change: bool = False) -> Iterator[None]:
        """Bring a block to the device, and begin to fetch the next one.

        With ``change``, what becomes of its weights is kept.
        """
        if not self._moves and not (self._fresh and change):
            yield
            return
        stack = list(self.blocks.values())
        ready = self._fetched(position)
        if self._worker and position + 1 < len(stack) and (self._ahead is None or self._ahead[0] != position + 1):
            self._ahead = position + 1, self._worker.submit(self._fetch, stack[position + 1])
        with onloaded(stack[position].modules(), self.device, change, self._fresh and change, ready):
            yield

    @contextlib.contextmanager
    def whole(self) -> Iterator[None]:
        """Let the model's own forward pass run on the device: every block is there while it runs, the rest all the time."""

        def run(position: int, original, args: tuple, kwargs: dict):
            with self.block(position):
                return original(*args, **kwargs)

        if not self._moves:
            yield
            return
        with self.rest(), passes.replaced(list(self.blocks.values()), run):
            yield

    def _fetch(self, block: nn.Module) -> dict[int, Tensor]:
        """Copy a block's tensors to a GPU through pinned memory, beside what it computes: ``{identity: copy}``."""
        with torch.cuda.stream(self._stream):
            copies = {
                id(each): each.detach().pin_memory().to(self.device, non_blocking=True)
                for each in _tensors(block.modules())
                if each.device.type == "cpu"
            }
            self._stream.synchronize()
        return copies

    def _fetched(self, position: int) -> dict[int, Tensor]:
        """Return what was fetched of a block."""
        if self._ahead is None or self._ahead[0] != position:
            return {}
        copies = self._ahead[1].result()
        self._ahead = None
        for each in copies.values():  # their memory was taken on another stream
            each.record_stream(torch.cuda.current_stream(self.device))
        return copies


@contextlib.contextmanager
def onloaded(
    modules: Iterable[nn.Module],
    device: torch.device,
    change: bool = False,
    fresh: bool = False,
    ready: Mapping[int, Tensor] | None = None,
) -> Iterator[None]:
    """Let modules compute on a device; their own parameters and buffers wait where they are.

    Args:
        modules: all of them, not only the outermost.
        device: where to.
        change: give their parameters the values that they have on leaving.
        fresh: copy even what is on the device.
        ready: copies that were made before, by the identity of what waits.
    """
    copies: dict[int, Tensor] = {}
    swapped: list[tuple[dict, str, Tensor]] = []
    made: set[int] = set()
    try:
        for module in modules:
            for store in (module._parameters, module._buffers):
                for name, waiting in store.items():
                    if waiting is None or id(waiting) in made or (waiting.device == device and not fresh):
                        continue
                    if id(waiting) not in copies:
                        there = (ready or {}).get(id(waiting))
                        there = waiting.detach().to(device, copy=True) if there is None else there
                        if isinstance(waiting, nn.Parameter):
                            there = nn.Parameter(there, requires_grad=False)
                        copies[id(waiting)] = there
                        made.add(id(there))
                    swapped.append((store, name, waiting))
                    store[name] = copies[id(waiting)]
        yield
    finally:
        for store, name, waiting in swapped:
            now = store[name]  # another tensor if the module replaced it itself, as rotary embeddings may
            store[name] = waiting if now is copies[id(waiting)] else now.to(waiting.device)
        for waiting in {id(waiting): waiting for *_, waiting in swapped}.values():
            if change and isinstance(waiting, nn.Parameter):
                waiting.data = copies[id(waiting)].detach().to(waiting.device)


def moved(value: Any, device: torch.device, known: dict[int, Tensor] | None = None) -> Any:
    """Return lists and tuples with their tensors on a device; mappings, which blocks may fill, stay as they are.

    What is one tensor stays one, also among calls with the same ``known``.
    """
    known = {} if known is None else known
    if isinstance(value, Tensor):
        if id(value) not in known:
            known[id(value)] = away(value, device)
        return known[id(value)]
    return type(value)(moved(each, device, known) for each in value) if type(value) in (list, tuple) else value


def moved_call(call: tuple[tuple, dict], device: torch.device, known: dict[int, Tensor] | None = None):
    """Return the arguments of a call, (positional, by name), on a device; see :func:`moved`."""
    args, kwargs = call
    return moved(args, device, known), {name: moved(value, device, known) for name, value in kwargs.items()}


def away(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device; from a GPU to pinned memory of the host, without waiting for it."""
    if tensor.device.type == "cuda" and device.type == "cpu" and torch.cuda.is_available():
        there = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        return there.copy_(tensor, non_blocking=True)
    return tensor.to(device, non_blocking=True)


def _without(module: nn.Module, blocks: set[int]) -> Iterator[nn.Module]:
    """Yield the modules that are reached without going through a block."""
    if id(module) not in blocks:
        yield module
        for child in module.children():
            yield from _without(child, blocks)


def _tensors(modules: Iterable[nn.Module]) -> Iterator[Tensor]:
    """Yield the parameters and buffers of modules."""
    for module in modules:
        for store in (module._parameters, module._buffers):
            yield from filter(lambda each: each is not None, store.values())
