"""What a comparison was measured with, as fingerprints of files: a name does not say what lies under it."""

import hashlib
import os
from pathlib import Path

import transformers

from tamp import zoo
from tamp.files import data_folder

PIECE, PIECES = 2**12, 256
"""Bytes that are read at a time, and how often, of a file that is larger than all of them together."""

OF_MODELS = (".safetensors", ".json", ".jinja", ".model")
"""Endings of the files that make a model."""


def of_model(name: str | Path) -> str | None:
    """Return the fingerprint of a model's files; None if it is on the hub and was not fetched yet."""
    folder = data_folder() / name if name in zoo.MODELS else Path(os.path.expanduser(name))
    if not os.path.isdir(folder):
        if name in zoo.MODELS:
            return name
        try:
            config = transformers.utils.cached_file(str(name), "config.json", local_files_only=True)
        except (OSError, ValueError):
            return None
        folder = Path(config).parent
    return of_files(path for path in folder.iterdir() if path.suffix in OF_MODELS)


def of_set(name: str | Path) -> str | None:
    """Return the fingerprint of a file of records or a folder saved by ``datasets``; None for a name.

    Pictures, videos and sounds that a file names are not looked at.
    """
    path = Path(os.path.expanduser(name))
    if os.path.isfile(path):  # which takes a name that is too long
        return of_files([path])
    return of_files(each for each in path.rglob("*") if each.is_file()) if os.path.isdir(path) else None


def of_files(paths) -> str:
    """Condense files to a fingerprint: their names and sizes, all of small files, and pieces of large ones.

    Returns:
        SHA-256, in hexadecimal.
    """
    condensed = hashlib.sha256()
    for path in sorted(paths):
        size = path.stat().st_size
        condensed.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            if size <= PIECE * PIECES:
                condensed.update(file.read())
            else:
                for number in range(PIECES):
                    file.seek(number * (size - PIECE) // (PIECES - 1))
                    condensed.update(file.read(PIECE))
    return condensed.hexdigest()
