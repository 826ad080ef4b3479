"""Saving a pruned model: a folder that looks finished is finished."""

import json
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from tamp import models, schema
from tamp.errors import UserError
from tamp.files import finished, sha256
from tamp.report import Report
from tamp.schema import Range

MANIFEST = "tamp.json"
SPEAKERS = "spk_dict.pt"  # the voices of a Qwen2.5-Omni, which save_pretrained leaves out
CHUNK = 2**24  # elements of a written tensor that are read at a time


def save(
    model: nn.Module,
    processor,
    folder: str | Path,
    report: Report | None = None,
    overwrite: bool = False,
    then: Callable[[Path], object] | None = None,
) -> Path:
    """Save a model and its processor so that ``from_pretrained`` loads them, all or nothing.

    Weights are written in the type they were loaded from: half precision that :func:`tamp.load` widened on a CPU is
    rounded back, which keeps zeros and untouched weights exactly. What was written is read again and counted: it must hold
    all weights of the model, and all its zeros.

    Args:
        model: the model, pruned or not.
        processor: its processor or tokenizer; None to leave it out.
        folder: where to; must not exist unless ``overwrite``.
        report: of :func:`tamp.prune` or :func:`tamp.drop_experts`, recorded in ``tamp.json`` and ``tamp.csv``.
        overwrite: replace the folder.
        then: called with the finished temporary folder before it takes its place.

    Returns:
        The folder.

    Raises:
        UserError: if the folder exists, writing fails, a part of the model cannot be saved (:func:`check_savable`), or its
            files lack weights or zeros that the model has.
    """
    check_savable(model, processor)
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
            "files": {path.name: sha256(path) for path in sorted(beside.iterdir()) if path.is_file()},
        }
        (beside / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        if then is not None:
            then(beside)
    return Path(folder)


def check_savable(model: nn.Module, processor) -> None:
    """Check that nothing but its weights keeps a model from being saved, by saving the rest of it for nothing.

    Raises:
        UserError: if the model carries a PEFT adapter, or its configuration, its settings of generation or its processor
            cannot be saved.
    """
    _check_adapters(model)
    models.speaker(model)  # which refuses wrappers
    parts = {"configuration": model.config, "generation_config": getattr(model, "generation_config", None)}
    for name, part in (parts | {"processor": processor}).items():
        try:
            with tempfile.TemporaryDirectory() as folder:
                if part is not None:
                    part.save_pretrained(folder)
        except OSError:  # no place for it here, which says nothing about the part
            continue
        except Exception as error:
            said = " ".join(line.strip() for line in str(error).splitlines() if line.strip())
            raise UserError(
                f"The {name} of this {type(model).__name__} cannot be saved, and so the pruned model could not: {said:.400} "
                "Correct it, in the model's folder or in memory."
            ) from error


def _check_adapters(model: nn.Module) -> None:
    """Check that a model carries no adapter, such as PEFT's, which ``save_pretrained`` would write alone.

    Raises:
        UserError: with the way to take it off.
    """
    wrapper = hasattr(model, "peft_config") and hasattr(model, "get_base_model")
    layers = any(hasattr(module, "base_layer") for module in model.modules())
    if not (wrapper or layers or getattr(model, "_hf_peft_config_loaded", False)):
        return
    way = "Merge a masked LoRA with tamp.merge_lora. Take a PEFT adapter off, save, and add the adapter afterwards."
    if wrapper:
        way = (
            "Save the adapter with model.save_pretrained(...) and the pruned model with "
            f"tamp.save(model.{'unload' if layers else 'get_base_model'}(), ...); merge_and_unload() would fill the zeros."
        )
    raise UserError(
        f"This {type(model).__name__} carries an adapter: only the adapter would be saved, and the pruned weights would "
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
    written = count_zeros(folder)
    if written[0] < held[0] or written[1] < held[1]:
        raise UserError(
            f"save_pretrained of {kind} wrote {written[0]:,} weights, {written[1]:,} of them zero, but the model has "
            f"{held[0]:,}, {held[1]:,} of them zero; save the plain transformers model, without a wrapper"
        )


def count_zeros(folder: Path) -> tuple[int, int]:
    """Count what a folder's files of weights hold: (elements, zeros among those that are floating point)."""
    return _count(piece for path in sorted(folder.glob("*.safetensors")) for piece in _pieces(path))


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


def read_manifest(folder: str | Path) -> dict:
    """Read the manifest of a saved folder.

    Raises:
        UserError: if it is damaged.
    """
    experts = {"model": str, "experts": {"before": Range(0), "now": Range(0)}}
    pruned = {"model": str, "sparsity": Range(0.0, 1.0), "weights": Range(0)}
    wanted = {"report": (None, experts, pruned), "files": {...: str}}
    path = Path(folder) / MANIFEST
    found = schema.read(path, wanted, "a manifest", "Save the model again with tamp.save.")
    if strange := [name for name in found["files"] if Path(name).name != name]:
        raise UserError(f"{path} names the file {strange[0]!r:.60}, which is outside of {folder}.")
    return found
