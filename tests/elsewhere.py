"""A second device over data of the CPU, to see what is moved: tensors say that they are on ``cuda:0``, and do not mix.

Torch has no second device that computes on a machine without a GPU. A tensor that was moved here is of a subclass whose
device is ``cuda:0``; a function that is given such tensors beside ones of the CPU raises, as CUDA's would, and what it makes
is here too.
"""

import contextlib
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("cuda", 0)
ASKS = (Tensor.device.__get__, Tensor.is_cuda.__get__, Tensor.is_cpu.__get__)
MIXES = (
    "copy_",
    "expand",
    "view",
    "reshape",
    "__getitem__",
    "__setitem__",
    "set_",
    "__get__",
)
"""Functions that take tensors of the CPU, as CUDA's do."""


class There(Tensor):
    """A tensor on the other device."""

    @property
    def device(self):
        return DEVICE

    @property
    def is_cuda(self):
        return True

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        return computed(func, args, kwargs or {})


def there(tensor: Tensor) -> Tensor:
    return tensor if isinstance(tensor, There) else tensor.as_subclass(There)


def here(tensor: Tensor) -> Tensor:
    with torch._C.DisableTorchFunctionSubclass():
        return tensor.detach().as_subclass(Tensor).clone()


def moving(tensor: Tensor, device, args: tuple, kwargs: dict) -> Tensor:
    """Move a tensor to a device, copied if it was on the other one."""
    kwargs.pop("non_blocking", None)
    copied = here(tensor) if isinstance(tensor, There) or torch.device(device) == DEVICE else tensor
    with torch._C.DisableTorchFunctionSubclass():
        copied = copied.to(*args, **kwargs) if args or kwargs else copied
    if torch.device(device).type != "cuda":
        return copied
    for watch in WATCHES if not isinstance(tensor, There) else ():
        watch.append(tensor.data_ptr())
    return there(copied)


WATCHES = []
"""Lists of addresses that were moved to the device."""


def computed(func, args: tuple, kwargs: dict):
    """Compute a function of tensors, at least one of them on the device."""
    name = getattr(func, "__name__", "")
    if name in ("cpu", "cuda"):
        return moving(args[0], name, (), {})
    if name == "to":
        (tensor, *rest), kwargs = args, dict(kwargs)
        device = kwargs.pop("device", None)
        if rest and isinstance(rest[0], str | torch.device):
            device = rest.pop(0)
        elif rest and isinstance(rest[0], Tensor):
            device, rest[0] = rest[0].device, rest[0].dtype
        rest = [each for each in rest if each is not None]
        return moving(tensor, tensor.device if device is None else device, tuple(rest), kwargs)
    device = kwargs.get("device")
    if device is not None:
        kwargs = {**kwargs, "device": "cpu"}
    tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
    found = any(isinstance(each, There) for each in tensors)
    left = [each for each in tensors if not isinstance(each, There) and each.ndim]
    if found and left and name not in MIXES:
        raise RuntimeError(f"Expected all tensors to be on the same device, but {name} got cuda:0 and cpu")
    with torch._C.DisableTorchFunctionSubclass():
        made = func(*args, **kwargs)
    if name in ("numpy", "tolist", "item", "requires_grad_", "__get__") and not isinstance(made, Tensor):
        return made
    goes = torch.device(device) == DEVICE if device is not None and torch.device(device).type == "cuda" else found
    if device is not None and torch.device(device).type == "cuda":
        goes = True
    return tree_map(lambda each: there(each) if isinstance(each, Tensor) and goes else each, made)


class Mode(TorchFunctionMode):
    """Sees functions that make a tensor on the device, or move one to it."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in ASKS:
            return func(*args, **kwargs)
        if "device" in kwargs or getattr(func, "__name__", "") in ("to", "cuda", "cpu"):
            return computed(func, args, kwargs)
        return func(*args, **kwargs)


@contextlib.contextmanager
def device():
    """Let ``"cuda"`` be the other device inside, and yield it."""
    absent = {"reset_peak_memory_stats": None, "max_memory_allocated": 0, "synchronize": None}  # without CUDA
    absent["mem_get_info"] = 2**34, 2**34
    with contextlib.ExitStack() as stack:
        for name, value in absent.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, return_value=value))
        stack.enter_context(Mode())
        yield DEVICE


@contextlib.contextmanager
def moves():
    """Yield a list that fills with the addresses of what is moved to the device."""
    WATCHES.append(seen := [])
    try:
        yield seen
    finally:
        WATCHES.remove(seen)
