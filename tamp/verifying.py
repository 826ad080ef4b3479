"""Checking a saved folder: that its files are those that were saved, all of them and no others, and as sparse as it says."""

import csv
import os
from pathlib import Path

from tamp import files
from tamp.checkpoint import MANIFEST, count_zeros, read_manifest
from tamp.errors import UserError

READ = (".safetensors", ".bin", ".pt", ".json", ".jinja", ".model", ".py")
"""Endings of files that loading a model may read."""


def verify(folder: str | Path) -> dict:
    """Check a saved folder against its manifest: every file, and the zeros in its weights unless these are compact.

    Returns:
        The manifest.

    Raises:
        UserError: if there is no manifest; a file is missing, was changed or was added; or there are fewer zeros than the
            manifest says.
    """
    folder = files.recovered(folder)
    if not os.path.isfile(folder / MANIFEST):  # which takes a name that is too long
        raise UserError(f"{folder!s:.200} has no {MANIFEST}: it was not saved by tamp.save, or not completely.")
    manifest = read_manifest(folder)
    saved = manifest["files"]
    if not any(name.endswith((".safetensors", ".safetensors.compact")) for name in saved):
        raise UserError(
            f"{folder / MANIFEST} lists no file of weights, so there is nothing to check. Save the model again."
        )
    for name, expected in saved.items():
        if not os.path.isfile(folder / name):  # which takes a name that is too long
            raise UserError(f"{folder / name} is missing.")
        if files.sha256(folder / name) != expected:
            raise UserError(f"{folder / name} is not what was saved: its sha256 differs from {MANIFEST}.")
    whole = "config.json" in saved  # earlier versions listed weights only
    for path in sorted(folder.iterdir()):
        added = path.suffix in READ and path.name not in saved and path.name != MANIFEST
        if added and (whole or path.suffix == ".safetensors"):
            raise UserError(f"{path} was added after saving, and loading would read it: delete it, or save again.")
    if "sparsity" in (manifest["report"] or {}) and any(name.endswith(".safetensors") for name in saved):
        _check_sparsity(folder, manifest["report"])
    return manifest


def _check_sparsity(folder: Path, report: dict) -> None:
    """Check the sparsity that a manifest states against the zeros in the weights, and against the table beside them."""
    stated = report["sparsity"] * report["weights"]
    _, zeros = count_zeros(folder)
    said = ""
    if not 0 <= stated <= zeros + 0.5:
        said = f"there are {zeros:,} zeros in all of the model's weights"
    elif (folder / "tamp.csv").is_file():
        with (folder / "tamp.csv").open(encoding="utf-8", newline="") as table:
            rows = list(csv.DictReader(table))
        counted = sum(round(int(row["weights"]) * float(row["got"])) for row in rows)
        if abs(counted - stated) > 0.5:
            said = f"tamp.csv lists {counted:,} zeros"
    if said:
        raise UserError(
            f"{folder / MANIFEST} says that {report['sparsity']:.4%} of {report['weights']:,} weights are zero, but {said}: "
            "save the model again."
        )
