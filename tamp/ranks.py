"""Several processes, each with its share of the samples, that end with the same model.

Under ``torchrun`` every process walks the whole model over its own samples. What criteria and updates add up is summed over
the processes in the order of their ranks, so that all of them prune alike. Which tokens count is decided per sample, and
needs nobody else. Without a process group everything here does nothing.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from tamp.errors import UserError


def join(device: str) -> str:
    """Join the processes that ``torchrun`` started, and return the device of this one; alone, do nothing.

    Args:
        device: as the user asked, see :func:`tamp.load`.

    Raises:
        UserError: if one device is asked for by name and there are several processes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(device)
    elif device != "cpu":
        raise UserError(
            f"Several processes cannot share the device {device!r}: leave out --device, or give cuda or cpu."
        )
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    return device


def size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process."""
    return dist.get_rank() if size() > 1 else 0


def share(samples: Sequence) -> Sequence:
    """Return the samples of this process: every ``size()``-th.

    Raises:
        UserError: if there are fewer samples than processes.
    """
    if len(samples) < size():
        raise UserError(
            f"{size()} processes have {len(samples)} samples to share: give more samples, or start fewer processes."
        )
    return samples[rank() :: size()]


@contextlib.contextmanager
def _with_all() -> Iterator[None]:
    """Say in a sentence that another process does not answer, as when it was killed."""
    try:
        yield
    except RuntimeError as error:
        said = f"Another process of this run has ended or does not answer ({str(error).splitlines()[0]:.160})"
        raise UserError(f"{said}: see what it said last, and start all of them again.") from error


def told(value) -> list:
    """Return what every process says here, in the order of their ranks."""
    if size() == 1:
        return [value]
    values = [None] * size()
    with _with_all():
        dist.all_gather_object(values, value)
    return values


def summed(tensor: Tensor) -> Tensor:
    """Add up a tensor over all processes in the order of their ranks, in its own type: the same bits on all of them."""
    if size() == 1:
        return tensor
    total = torch.zeros_like(tensor)
    for source in range(size()):
        part = tensor.clone() if source == rank() else torch.empty_like(tensor)
        with _with_all():
            dist.broadcast(part, source)
        total += part
    return total


def add(statistics: dict, empty) -> None:
    """Add up accumulators over all processes, in place.

    Args:
        statistics: accumulator per matrix; matrices may have one together, and some may be missing here.
        empty: ``name -> accumulator`` without tokens, for a matrix that was only reached elsewhere.
    """
    if size() == 1:
        return
    groups: dict[str, tuple[str, ...]] = {}  # matrices with one accumulator on the first process that has any
    for found in told(_groups(statistics)):
        for names in found:
            new = tuple(name for name in names if name not in groups)
            groups |= dict.fromkeys(new, new)
    for names in dict.fromkeys(groups.values()):
        whole = statistics[names[0]] if names[0] in statistics else empty(names[0])
        whole.total = summed(whole.total)
        whole.count = sum(told(whole.count))
        statistics.update(dict.fromkeys(names, whole))


def _groups(statistics: dict) -> list[list[str]]:
    """Return the names of the matrices that have an accumulator together."""
    groups: dict[int, list[str]] = {}
    for name, statistic in statistics.items():
        groups.setdefault(id(statistic), []).append(name)
    return list(groups.values())
