"""Saving a pruned model: a folder that looks finished is finished."""

import json
from pathlib import Path

from torch import Tensor, nn

from tamp.errors import UserError
from tamp.files import finished, sha256
from tamp.report import Report

MANIFEST = "tamp.json"


def save(
    model: nn.Module, processor, folder: str | Path, report: Report | None = None, overwrite: bool = False
) -> Path:
    """Save a model and its processor so that ``from_pretrained`` loads them, all of it or nothing.

    Weights are written in the type they were loaded from: half precision that :func:`tamp.load` widened on a CPU is
    rounded back, which keeps zeros and untouched weights exactly.

    Args:
        model: the model, pruned or not.
        processor: its processor or tokenizer; None to leave it out.
        folder: where to; must not exist unless ``overwrite``.
        report: from :func:`tamp.prune`, recorded beside the weights in ``tamp.json`` and ``tamp.csv``.
        overwrite: replace the folder.

    Returns:
        The folder.

    Raises:
        UserError: if the folder exists, or writing fails.
    """
    with finished(folder, overwrite) as beside:
        model.save_pretrained(beside, state_dict=_as_stored(model))
        _declare_dtype(beside, model)
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
