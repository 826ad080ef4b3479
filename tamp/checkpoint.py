"""Saving a pruned model: a folder that looks finished is finished."""

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from tamp.errors import UserError
from tamp.files import finished, sha256
from tamp.report import Report

MANIFEST = "tamp.json"
SPEAKERS = "spk_dict.pt"  # the voices of a Qwen2.5-Omni, which save_pretrained leaves out
CHUNK = 2**24  # elements of a written tensor that are read at a time


def save(
    model: nn.Module, processor, folder: str | Path, report: Report | None = None, overwrite: bool = False
) -> Path:
    """Save a model and its processor so that ``from_pretrained`` loads them, all of it or nothing.

    Weights are written in the type they were loaded from: half precision that :func:`tamp.load` widened on a CPU is
    rounded back, which keeps zeros and untouched weights exactly. What was written is read again and counted: it must hold
    all weights of the model, and all its zeros.

    Args:
        model: the model, pruned or not.
        processor: its processor or tokenizer; None to leave it out.
        folder: where to; must not exist unless ``overwrite``.
        report: of :func:`tamp.prune` or :func:`tamp.drop_experts`, recorded in ``tamp.json`` and ``tamp.csv``.
        overwrite: replace the folder.

    Returns:
        The folder.

    Raises:
        UserError: if the folder exists, writing fails, the model carries a PEFT adapter, or its files lack weights or zeros
            that the model has.
    """
    _check_adapters(model)
    with finished(folder, overwrite) as beside:
        state = _as_stored(model)
        held = _held(model, state or model.state_dict())  # now, since save_pretrained empties the dictionary
        model.save_pretrained(beside, state_dict=state)
        _check_written(beside, type(model).__name__, held)
        _declare_dtype(beside, model)
        if speakers := getattr(model, "speaker_map", None):
            torch.save(speakers, beside / SPEAKERS)
        if processor is not None:
            processor.save_pretrained(beside)
        if report is not None:
            report.table.to_csv(beside / "tamp.csv", index=False)
        manifest = {
            "report": report.summary() if report else None,
            "files": {path.name: sha256(path) for path in sorted(beside.glob("*.safetensors"))},
        }
        (beside / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    return Path(folder)


def _check_adapters(model: nn.Module) -> None:
    """Check that a model carries no adapter of PEFT, which ``save_pretrained`` would write alone.

    Raises:
        UserError: with the way to take it off.
    """
    wrapper = hasattr(model, "peft_config") and hasattr(model, "get_base_model")
    layers = any(hasattr(module, "base_layer") for module in model.modules())
    if not (wrapper or layers or getattr(model, "_hf_peft_config_loaded", False)):
        return
    way = "Prune and save the model without the adapter, and add the adapter afterwards."
    if wrapper:
        way = (
            "Save the adapter with model.save_pretrained(...) and the pruned model with "
            f"tamp.save(model.{'unload' if layers else 'get_base_model'}(), ...); merge_and_unload() would fill the zeros."
        )
    raise UserError(
        f"This {type(model).__name__} carries a PEFT adapter: only the adapter would be saved, and the pruned weights would "
        f"be lost. {way}"
    )


def _held(model: nn.Module, state: dict[str, Tensor]) -> tuple[int, int]:
    """Count what ``save_pretrained`` should write, weights with two names once: (elements, zeros)."""
    left_out = getattr(model, "_keys_to_ignore_on_save", None) or ()
    held = {
        (tensor.data_ptr(), tensor.shape, tensor.stride()): tensor
        for name, tensor in state.items()
        if isinstance(tensor, Tensor) and name not in left_out
    }
    return _count(held.values())


def _check_written(folder: Path, kind: str, held: tuple[int, int]) -> None:
    """Check that a folder's files hold all of a model, under whatever names and in whatever pieces.

    Args:
        folder: where the model was written to.
        kind: its class.
        held: what it has, (elements, zeros).

    Raises:
        UserError: if elements or zeros are missing.
    """
    written = _count(piece for path in sorted(folder.glob("*.safetensors")) for piece in _pieces(path))
    if written[0] < held[0] or written[1] < held[1]:
        raise UserError(
            f"save_pretrained of {kind} wrote {written[0]:,} weights, {written[1]:,} of them zero, but the model has "
            f"{held[0]:,}, {held[1]:,} of them zero; save the plain transformers model, without a wrapper"
        )


def _count(tensors: Iterable[Tensor]) -> tuple[int, int]:
    """Count elements, and zeros among those that are floating point and not off-loaded."""
    elements = zeros = 0
    for tensor in tensors:
        elements += tensor.numel()
        if tensor.is_floating_point() and not tensor.is_meta:
            wide = tensor.float() if tensor.itemsize == 1 else tensor  # torch cannot count in 8 bit
            zeros += tensor.numel() - int(torch.count_nonzero(wide))
    return elements, zeros


def _pieces(path: Path) -> Iterator[Tensor]:
    """Read the tensors of a safetensors file, in pieces of about ``CHUNK`` elements."""
    with safe_open(path, framework="pt") as opened:
        for name in opened.keys():  # noqa: SIM118  it is not a dictionary
            part = opened.get_slice(name)
            shape = part.get_shape()
            rows = CHUNK // max(1, math.prod(shape[1:])) + 1
            yield from (part[at : at + rows] for at in range(0, shape[0], rows)) if shape else [opened.get_tensor(name)]


def _as_stored(model: nn.Module) -> dict[str, Tensor] | None:
    """Return the weights in the types they were stored in if :func:`tamp.load` widened them, else None: as they are."""
    stored = getattr(model, "stored_dtypes", None)
    if stored is None:
        return None
    narrowed: dict[tuple, Tensor] = {}  # one copy of a weight that has two names
    state = {}
    for name, tensor in model.state_dict().items():
        key = (tensor.data_ptr(), tensor.shape, tensor.stride())
        if key not in narrowed:
            narrowed[key] = tensor.to(stored.get(name, tensor.dtype))
        state[name] = narrowed[key]
    return state


def _declare_dtype(folder: Path, model: nn.Module) -> None:
    """Write the stored type into a saved configuration, which transformers fills with the type the model has now."""
    stored = getattr(model, "stored_dtypes", None)
    if stored is not None:
        main = next(dtype for dtype in stored.values() if dtype.is_floating_point)
        path = folder / "config.json"
        config = json.loads(path.read_text())
        path.write_text(json.dumps({**config, "dtype": str(main).removeprefix("torch.")}, indent=2) + "\n")


def verify(folder: str | Path) -> dict:
    """Check a saved folder's weights against its manifest.

    Returns:
        The manifest.

    Raises:
        UserError: if there is no manifest, or a file is missing or was changed.
    """
    folder = Path(folder)
    if not (folder / MANIFEST).is_file():
        raise UserError(f"{folder} has no {MANIFEST}: it was not saved by tamp.save, or not completely.")
    manifest = json.loads((folder / MANIFEST).read_text())
    for name, expected in manifest["files"].items():
        if not (folder / name).is_file():
            raise UserError(f"{folder / name} is missing.")
        if sha256(folder / name) != expected:
            raise UserError(f"{folder / name} is not what was saved: its sha256 differs from {MANIFEST}.")
    return manifest
