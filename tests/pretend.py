"""A pretended GPU: tensors that say they are on ``cuda:0`` while their numbers are on the CPU, or nowhere.

Inside :func:`device`, what would mix devices on CUDA raises as there, and every wait of the host, every kernel and every
byte is counted with the file and line that asked for it. With ``numbers=False`` tensors have shapes alone (PyTorch's meta
device), so that a model of full size costs nothing; what the host reads is then zero, or true.
"""

import contextlib
import functools
import sys
import weakref
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

ROOT = Path(__file__).parents[1]
CUDA = torch.device("cuda", 0)
WAITS = {
    "_local_scalar_dense": "item",
    "nonzero": "nonzero",
    "masked_select": "masked_select",
    "equal": "equal",
    "_unique2": "unique",
    "unique_dim": "unique",
    "unique_consecutive": "unique",
    "_linalg_check_errors": "the error code of a factorisation",
    "repeat_interleave": "repeat_interleave",
}
"""Operations whose result, or its size, the host waits for."""


class Mix(RuntimeError):
    """Tensors of two devices met."""


class Pretended(Tensor):
    """A tensor on the pretended device; its numbers are in ``held``."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor):
        return Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device="meta",  # PyTorch without CUDA runs no code for it; what Python asks is answered below
        )

    def __init__(self, held: Tensor):
        self.held = held

    __torch_function__ = torch._C._disabled_torch_function_impl
    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_meta = property(lambda self: False)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _now[-1].run(func, args, kwargs or {})

    def data_ptr(self) -> int:
        return self.held.untyped_storage()._cdata + self.held.storage_offset() * self.held.itemsize

    def tolist(self):
        return self.cpu().tolist()

    def numpy(self, *ignored, **by_name):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    __array__ = numpy

    def __format__(self, form: str) -> str:
        return format(self.item(), form) if form else repr(self)

    def __repr__(self, **ignored) -> str:
        return f"Pretended({tuple(self.shape)}, {self.dtype})"


class _Generator(torch.Generator):
    """A random generator that may say it is on the device."""

    def __new__(cls, device="cpu"):
        made = super().__new__(cls)
        made.on_device = torch.device(device).type == "cuda"
        return made


@dataclass(frozen=True)
class Launch:
    """One kernel: its name, the line that asked for it, and the tensors that it reads and writes."""

    name: str
    where: str
    read: tuple[Tensor, ...]
    written: tuple[Tensor, ...]

    @property
    def nbytes(self) -> int:
        """Bytes read and written."""
        return sum(map(nbytes, (*self.read, *self.written)))


def nbytes(tensor: Tensor) -> int:
    """Count the bytes of a tensor, those that are repeated once."""
    sizes = [size for size, stride in zip(tensor.shape, tensor.stride()) if stride]
    return torch.Size(sizes).numel() * tensor.itemsize


@dataclass
class Recorder:
    """What happened on the pretended device.

    Attributes:
        waits: ``{(line, why the host waited): how often}``.
        launches: every kernel, in order; operands as meta tensors.
        held: bytes of tensors alive now.
        peak: most bytes alive at once since :meth:`reset`.
        moved: addresses of tensors of the host that were copied to the device, in order.
    """

    numbers: bool = True
    waits: Counter = field(default_factory=Counter)
    launches: list[Launch] = field(default_factory=list)
    moved: list[int] = field(default_factory=list)
    held: int = 0
    peak: int = 0
    peak_where: str = ""
    _alive: set = field(default_factory=set)

    def reset(self) -> None:
        """Forget what happened; what is alive stays."""
        self.waits.clear()
        self.launches.clear()
        self.moved.clear()
        self.peak = self.held

    def n_waits(self, *files: str) -> int:
        """Count waits, all or those asked for by some files."""
        return sum(times for (where, _), times in self.waits.items() if not files or where.startswith(files))

    def run(self, func, args: tuple, kwargs: dict):
        """Carry out one operation of PyTorch as the device would, on the tensors behind the pretended ones."""
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        here = [tensor for tensor in tensors if isinstance(tensor, Pretended)]
        target = kwargs.get("device")
        target = None if target is None else torch.device(target).type
        if not here and target not in ("cuda", "meta"):
            return func(*args, **kwargs)
        name = func.overloadpacket.__name__
        indices = [i for i in args[1] if isinstance(i, Tensor)] if "index" in name and type(args[1]) is list else []
        self._check(name, tensors, indices)
        away = bool(here) and target == "cpu"
        crosses = name == "copy_" and len(here) == 1 and args[1].ndim > 0
        if (tensors and not here) or (crosses and args[0] is here[0]):
            self.moved.append(args[1 if crosses else 0].data_ptr())
        if away or (tensors and not here) or crosses:
            self._wait("to the host" if away or (crosses and args[0] is not here[0]) else "to the device")
        elif name in WAITS:
            self._wait(WAITS[name])
        elif any(index.dtype == torch.bool for index in indices) and not _filled(name, args, indices):
            self._wait("a mask as index")
        if name == "equal" and not self.numbers:
            return True
        if target is not None:
            kwargs = kwargs | {"device": "cpu" if self.numbers or tensors or away else "meta"}
        known = {id(tensor.held): tensor for tensor in here}
        before = {id(tensor): tensor for tensor in here}
        args, kwargs = tree_map(_held, (args, kwargs))
        if not self.numbers and any(tensor.is_meta for tensor in tree_leaves((args, kwargs)) if _is(tensor)):
            if name == "_local_scalar_dense":
                return True if args[0].dtype == torch.bool else 0
            if indices and any(index.dtype == torch.bool for index in map(_held, indices)):
                args = (args[0], _as_numbers(args[1]), *args[2:])
            args, kwargs = tree_map(lambda leaf: leaf.to("meta") if _is(leaf) else leaf, (args, kwargs))
            if func._schema.is_mutable and isinstance(args[0], Tensor):
                for tensor in before.values():
                    tensor.held = tensor.held.to("meta")
            if away:
                return torch.ones(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        if (
            name == "mm" and func is not torch.ops.aten.mm.default and len(args) > 2
        ):  # a type for the result: on CUDA alone
            out = torch.mm(args[0].to(args[2]), args[1].to(args[2]), **kwargs)
        else:
            out = func(*args, **kwargs)
        if away or not _leaves(out):
            return out
        self._count(func, name, [tensor.held for tensor in here], _leaves(out))
        if func._schema.is_mutable and not self.numbers and here and isinstance(out, Tensor):
            return here[0] if here[0].shape == out.shape else self.wrap(out)
        return tree_map(lambda leaf: known.get(id(leaf), self.wrap(leaf)) if _is(leaf) else leaf, out)

    def _check(self, name: str, tensors: list[Tensor], indices: list[Tensor]) -> None:
        """Raise where CUDA would: where numbers, and not single ones, are on the other device."""
        wrong = [tensor for tensor in tensors if not isinstance(tensor, Pretended) and tensor.ndim]
        if name not in ("copy_", "_to_copy", "to") and any(isinstance(tensor, Pretended) for tensor in tensors):
            outside = [tensor for tensor in wrong if not any(tensor is index for index in indices)]
            if outside:
                raise Mix(
                    f"Expected all tensors to be on the same device, but found cuda:0 and cpu ({name}, {_line()}; of the "
                    f"CPU: {[tuple(tensor.shape) for tensor in outside]})"
                )
            if wrong:
                self._wait("an index of the host")

    def _wait(self, why: str) -> None:
        self.waits[_line(), why] += 1

    def _count(self, func, name: str, read: list[Tensor], out: list[Tensor]) -> None:
        """Count a kernel, unless the operation only looks at memory in another way or claims some."""
        storages = {tensor.untyped_storage()._cdata for tensor in read}
        new = [tensor for tensor in out if tensor.untyped_storage()._cdata not in storages]
        if "empty" in name or not (new or func._schema.is_mutable):
            return
        if name in (
            "gather",
            "index",
            "index_select",
            "take",
            "embedding",
        ):  # what is read of the first is what comes out
            read = [*read[1:], *out]
        self.launches.append(Launch(name, _line(), tuple(map(_shape, read)), tuple(map(_shape, out))))

    def wrap(self, held: Tensor) -> Pretended:
        """Put a tensor on the device."""
        storage = held.untyped_storage()
        key = storage._cdata
        if key not in self._alive:
            self._alive.add(key)
            self.held += storage.nbytes()
            if self.held > self.peak:
                self.peak, self.peak_where = self.held, _line()
            weakref.finalize(storage, self._gone, key, storage.nbytes())
        return Pretended(held)

    def _gone(self, key: int, nbytes: int) -> None:
        self._alive.discard(key)
        self.held -= nbytes


_now = [Recorder()]


def _is(leaf) -> bool:
    return isinstance(leaf, Tensor)


def _number(leaf):
    return leaf.item() if isinstance(leaf, Pretended) else leaf


def _held(leaf):
    return leaf.held if isinstance(leaf, Pretended) else leaf


def _leaves(out) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]


def _shape(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def _filled(name: str, args: tuple, indices: list[Tensor]) -> bool:
    """Say whether a mask as index only sets entries to a single number of the host, which needs no look at it."""
    return "put" in name and len(indices) == 1 and args[2].numel() == 1 and not isinstance(args[2], Pretended)


def _as_numbers(indices: list) -> list:
    """Replace masks by the places that they hold; all of them where that is not known."""
    replaced = []
    for index in map(_held, indices):
        if isinstance(index, Tensor) and index.dtype == torch.bool:
            known = torch.ones(index.shape, dtype=torch.bool) if index.is_meta else index
            replaced += known.nonzero(as_tuple=True)
        else:
            replaced.append(index)
    return replaced


@functools.cache
def _ours(name: str) -> str:
    """Return the path inside the project of a file's name; empty for this file and those of others."""
    ours = name.startswith(f"{ROOT}/") and name != __file__ and "site-packages" not in name
    return str(Path(name).relative_to(ROOT)) if ours else ""


def _line() -> str:
    """Name the innermost line of the project, this file aside."""
    frame = sys._getframe(1)
    while frame:
        if name := _ours(frame.f_code.co_filename):
            return f"{name}:{frame.f_lineno}"
        frame = frame.f_back
    return "?"


class _Operations(TorchDispatchMode):
    def __init__(self, recorder: Recorder):
        super().__init__()
        self.recorder = recorder

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return self.recorder.run(func, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """What does not come by as an operation: numbers of Python made into tensors, and devices by name."""

    def __init__(self, recorder: Recorder):
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        here = any(isinstance(leaf, Pretended) for leaf in args) or "cuda" in str(kwargs.get("device"))
        if here and not getattr(kwargs.get("generator"), "on_device", True):
            raise Mix(f"Expected a 'cuda' device type for generator but found 'cpu' ({func.__name__}, {_line()})")
        if func in (torch.tensor, torch.as_tensor) and torch.device(kwargs.get("device") or "cpu").type == "cuda":
            args = args if isinstance(args[0], Tensor) else tree_map(_number, args)
            return func(*args, **kwargs | {"device": "cpu"}).to(CUDA)
        if func is Tensor.__setitem__ and isinstance(args[0], Pretended) and not isinstance(args[2], Tensor):
            args = (*args[:2], torch.tensor(args[2], dtype=args[0].dtype))
        if func is Tensor.to and not isinstance(args[0], Pretended):
            args = [each if isinstance(each, Tensor) or str(each) != "cuda" else CUDA for each in args]
            kwargs = {name: CUDA if str(value) == "cuda" else value for name, value in kwargs.items()}
        elif func is Tensor.to:
            rest = [each for each in args[1:] if each is not None and each not in (CUDA, "cuda")]
            kwargs = {name: value for name, value in kwargs.items() if name != "device" or str(value) == "cpu"}
            if not rest and not kwargs:
                return args[0]
            args = (args[0], *rest)
        return func(*args, **kwargs)


def _attention(recorder: Recorder, original):
    """Return attention as one kernel; PyTorch would choose among those of the device that it thinks a tensor is on."""

    def attend(*args, **kwargs) -> Tensor:
        tensors = _leaves((args, kwargs))
        if not isinstance(args[0], Pretended):
            return original(*args, **kwargs)
        recorder._check("attention", tensors, [])
        parts = tree_map(_held, (args, kwargs))
        shapes = any(tensor.is_meta for tensor in _leaves(parts))
        out = torch.empty_like(parts[0][0]) if shapes else original(*parts[0], **parts[1])
        with _disable_current_modes():  # what is noted is nowhere
            shapes = tuple(map(_shape, map(_held, tensors))), (_shape(out),)
        recorder.launches.append(Launch("attention", _line(), *shapes))
        return recorder.wrap(out)

    return attend


@contextlib.contextmanager
def device(numbers: bool = True, capability: tuple[int, int] = (9, 0)) -> Iterator[Recorder]:
    """Pretend that there is a ``cuda:0``; yield what is recorded on it.

    Args:
        numbers: compute; otherwise tensors made on the device, and models moved to it, have shapes alone.
        capability: of the device, (major, minor).
    """
    recorder = Recorder(numbers)
    _now.append(recorder)
    nothing = dict.fromkeys(("_lazy_init", "synchronize", "reset_peak_memory_stats"), lambda *ignored: None)
    answers = {
        "max_memory_allocated": lambda *ignored: recorder.peak,
        "get_device_capability": lambda *ignored: capability,
        "mem_get_info": lambda *ignored: (2**34, 2**34),
    }
    try:
        with (
            mock.patch.multiple(torch.cuda, **nothing, **answers),
            mock.patch.object(torch, "Generator", _Generator),
            mock.patch.object(
                nn.functional,
                "scaled_dot_product_attention",
                _attention(recorder, nn.functional.scaled_dot_product_attention),
            ),
            _Functions(recorder),
            _Operations(recorder),
        ):
            yield recorder
    finally:
        _now.pop()


def move(model: nn.Module, recorder: Recorder) -> nn.Module:
    """Put a model's parameters and buffers on the pretended device; what is shared stays shared."""
    moved: dict[int, Tensor] = {}
    for module in model.modules():
        for store in (module._parameters, module._buffers):
            for name, tensor in store.items():
                if tensor is None:
                    continue
                if id(tensor) not in moved:
                    held = tensor.detach().clone() if recorder.numbers else tensor.detach().to("meta")
                    moved[id(tensor)] = recorder.wrap(held)
                    if store is module._parameters:
                        moved[id(tensor)] = nn.Parameter(moved[id(tensor)], requires_grad=False)
                store[name] = moved[id(tensor)]
    return model


def direction(weights: dict[str, Tensor], seed: tuple[int, int]) -> Iterator[Tensor]:
    """Draw ECoFLaP's directions on the CPU, where those of a device would be others: in place of tamp.scores.direction."""
    random = torch._C.Generator().manual_seed(1_000_003 * seed[0] + seed[1])
    return (torch.randn(weight.shape, generator=random).to(weight.device) for weight in weights.values())
