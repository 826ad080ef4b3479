"""Mask packs: which weights of a model are dropped, one bit each, in a file that fits any model of the same shapes."""

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor, nn

from tamp import files, models
from tamp.errors import UserError, unknown

log = logging.getLogger(__name__)

FORMAT = "tamp-masks-1"


@dataclass(frozen=True, kw_only=True, eq=False)
class Pack:
    """Masks of a model's matrices by name, eight weights to a byte; ``pack[name]`` unpacks one.

    Attributes:
        bits: (ceil(out * in / 8),) uint8 per matrix, row after row, True = dropped.
        shapes: (out, in) of each.
        model: name or path of the model that they were taken from.
        dense: fingerprint of the model before it was pruned (:func:`tamp.models.fingerprint`), empty if not known.
    """

    bits: dict[str, np.ndarray]
    shapes: dict[str, tuple[int, int]]
    model: str = ""
    dense: str = ""

    def __getitem__(self, name: str) -> Tensor:
        """Return the mask of a matrix, (out, in) bool, True = dropped."""
        out, width = self.shapes[name]
        flat = np.unpackbits(self.bits[name], count=out * width)
        return torch.from_numpy(flat.view(bool)).reshape(out, width)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    @property
    def sparsity(self) -> float:
        """Share of all weights dropped."""
        return sum(int(self[name].sum()) for name in self) / max(
            1, sum(out * width for out, width in self.shapes.values())
        )

    @property
    def fingerprint(self) -> str:
        """SHA-256 over names and shapes, in hexadecimal: the same for packs that fit the same models."""
        said = "".join(f"{name} {tuple(shape)}" for name, shape in self.shapes.items())
        return hashlib.sha256(said.encode()).hexdigest()


def pack(dropped: Iterable[tuple[str, Tensor]], model: str = "", dense: str = "") -> Pack:
    """Pack masks one by one: names, and (out, in) bool, True = dropped."""
    bits, shapes = {}, {}
    for name, mask in dropped:
        bits[name] = np.packbits(mask.cpu().numpy())
        shapes[name] = tuple(mask.shape)
    return Pack(bits=bits, shapes=shapes, model=model, dense=dense)


def export(model: nn.Module, dense: str = "") -> Pack:
    """Pack the zeros of the matrices of a model's decoder blocks, experts included.

    Args:
        model: pruned.
        dense: fingerprint of the model before it was pruned, ``report.plan.fingerprint``, if known.
    """
    zeros = ((name, linear.weight == 0) for name, linear in models.all_linears(model).items())
    return pack(zeros, models.name_of(model), dense)


def apply(model: nn.Module, pack: Pack) -> None:
    """Set to zero, in place, the weights of a model that a pack says are dropped. Other weights stay as they are.

    Raises:
        UserError: if the pack was made for other matrices, before any weight is touched.
    """
    linears = models.all_linears(model)
    check(pack, {name: linear.weight.shape for name, linear in linears.items()}, models.name_of(model))
    if pack.dense and pack.dense != models.fingerprint(model):
        log.warning("The masks were made for other weights (%s) than those of this model.", pack.model or "not named")
    drop({name: linear.weight for name, linear in linears.items()}, pack)


def verify(model: nn.Module, pack: Pack) -> dict[str, int]:
    """Count the weights of a model that are not zero though a pack says so.

    Returns:
        ``{name: count}`` of the matrices with any; empty if all zeros are there.

    Raises:
        UserError: if the pack was made for other matrices.
    """
    linears = models.all_linears(model)
    check(pack, {name: linear.weight.shape for name, linear in linears.items()}, models.name_of(model))
    return left({name: linear.weight for name, linear in linears.items()}, pack)


def iou(first: Pack, second: Pack) -> float:
    """Return the share of the weights dropped by either of two packs that both drop; 1 if neither drops any.

    Raises:
        UserError: if they are for different matrices.
    """
    check(second, first.shapes, first.model)
    return overlap(first, second)


def union(first: Pack, second: Pack) -> Pack:
    """Return a pack that drops what either of two packs drops.

    Raises:
        UserError: if they are for different matrices.
    """
    check(second, first.shapes, first.model)
    dense = first.dense if first.dense == second.dense else ""
    return pack(((name, first[name] | second[name]) for name in first), first.model, dense)


@torch.no_grad()
def drop(weights: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> None:
    """Set weights (out, in) to zero in place where the masks of their names say so."""
    for name in masks:
        weights[name].masked_fill_(masks[name].to(weights[name].device), 0)


def left(weights: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> dict[str, int]:
    """Count weights that are not zero although their mask says so, ``{name: count}`` of the matrices with any."""
    counts = {name: int((weights[name][masks[name].to(weights[name].device)] != 0).sum()) for name in masks}
    return {name: count for name, count in counts.items() if count}


def overlap(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> float:
    """Return the share of the weights dropped by either of two sets of masks that both drop; 1 if neither drops any."""
    both = sum(int((first[name] & second[name]).sum()) for name in first)
    either = sum(int((first[name] | second[name]).sum()) for name in first)
    return both / either if either else 1.0


def table(first: Pack, second: Pack):
    """Compare two packs matrix by matrix.

    Returns:
        A DataFrame: linear, weights, first and second (sparsity under each), iou (share of the weights that either drops
        that both drop), agreement (share of all weights that both drop or both keep).

    Raises:
        UserError: if they are for different matrices.
    """
    import pandas

    check(second, first.shapes, first.model)
    rows = []
    for name in first:
        one, other = first[name], second[name]
        rows.append(
            {
                "linear": name,
                "weights": one.numel(),
                "first": one.double().mean().item(),
                "second": other.double().mean().item(),
                "iou": overlap({name: one}, {name: other}),
                "agreement": (one == other).double().mean().item(),
            }
        )
    return pandas.DataFrame(rows)


def check(pack: Pack, shapes: Mapping[str, Sequence[int]], model: str) -> None:
    """Check that a pack is for matrices of these names and shapes.

    Raises:
        UserError: naming the first that differs.
    """
    for name, shape in pack.shapes.items():
        if name not in shapes:
            raise unknown("linear", name, shapes, f"The masks were made for {pack.model or 'another model'}.")
        if shape != tuple(shapes[name]):
            raise UserError(
                f"{name} has the shape {tuple(shapes[name])} in {model!r}, and {shape} in the masks, made for "
                f"{pack.model!r}: use masks of a model with these shapes."
            )
    if missing := [name for name in shapes if name not in pack.shapes]:
        raise UserError(
            f"The masks, made for {pack.model!r}, lack {missing[0]} and {len(missing) - 1} others of {model!r}: use masks "
            "of a model with these matrices."
        )


def write(pack: Pack, path: str | Path) -> Path:
    """Write a pack as a safetensors file, completely or not at all.

    Raises:
        UserError: if it cannot be written.
    """
    target = files.check_file(path)
    if target.exists() and not target.is_file():
        raise UserError(f"{path} is a device, to which no masks can be written. Choose another file.")
    said = {"format": FORMAT, "shapes": json.dumps(pack.shapes), "model": pack.model, "dense": pack.dense}
    try:
        with files.whole(target) as made:
            save_file(pack.bits, made, metadata={**said, "fingerprint": pack.fingerprint})
    except (SafetensorError, OSError) as error:
        raise UserError(f"Cannot write the masks {path}: {error}. Choose another file.") from error
    return Path(path)


def read(path: str | Path) -> Pack:
    """Read a pack.

    Raises:
        UserError: if there is no such file, it is damaged, or does not hold masks.
    """
    path = Path(os.path.expanduser(path))
    if not os.path.isfile(path):
        raise UserError(f"There is no file {path!s:.200}: `tamp mask export` writes one.")
    try:
        with safe_open(path, framework="np") as opened:
            said = opened.metadata() or {}
            bits = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  it is not a dictionary
        if said.get("format") != FORMAT:
            raise UserError(f"{path} does not hold masks of this version: `tamp mask export` writes them.")
        shapes = {name: tuple(shape) for name, shape in json.loads(said["shapes"]).items()}
        found = Pack(
            bits={name: bits[name] for name in shapes}, shapes=shapes, model=said["model"], dense=said["dense"]
        )
        whole = all(bits[name].shape == (-(-out * width // 8),) for name, (out, width) in shapes.items())
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{path} is damaged, or does not hold masks: write it again with `tamp mask export`."
        ) from error
    if not whole or bits.keys() != shapes.keys() or said.get("fingerprint") != found.fingerprint:
        raise UserError(
            f"{path} is damaged: names and shapes do not fit its masks. Write it again with `tamp mask export`."
        )
    return found
