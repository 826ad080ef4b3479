"""Files and folders: where data lies, what may be written, and folders that are written whole or not at all."""

import contextlib
import hashlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from tamp.errors import UserError
from tamp.writing import Kept, _remove, _settle, fcntl, hidden, locked, scratch, sweep, whole, write_text

__all__ = ["Kept", "fcntl", "hidden", "locked", "scratch", "sweep", "whole", "write_text"]

LONGEST = 228
"""Bytes of an output's name: its hidden names are longer, and most file systems take 255."""

log = logging.getLogger(__name__)


def data_folder() -> Path:
    """Return the folder of shipped data: ``data/`` of the repository, or the copy inside an installed wheel."""
    package = Path(__file__).parent
    places = (package.parent / "data", package / "data")
    return next((path for path in places if (path / "README.md").is_file()), places[0])


def cache_folder() -> Path:
    """Return where fetched models are kept: ``TAMP_CACHE``, or ``tamp`` in the user's cache folder."""
    usual = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "tamp"
    return Path(os.environ.get("TAMP_CACHE") or usual).expanduser()


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_free(folder: str | Path, overwrite: bool = False) -> Path:
    """Check that an output folder may be written, and can be.

    Returns:
        The folder, ``~`` filled in; where a link leads to, not the link.

    Raises:
        UserError: if it is a file; is not empty, unless ``overwrite`` is given; holds the current or home folder; or nothing
            can be written there.
    """
    folder = recovered(located(folder))
    sweep(folder)
    if os.path.exists(folder) and not folder.is_dir():
        raise UserError(f"{folder} is there and is not a folder. Choose another place.")
    if folder.exists() and not overwrite and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"{folder} exists; choose another folder, or overwrite it (overwrite=True, --overwrite).")
    for name, own in (("current", Path.cwd()), ("home", Path.home())):
        if folder in (own, *own.parents) and any(folder.iterdir()):
            raise UserError(f"{folder} is or holds the {name} folder and is not replaced; name a folder in it.")
    return _check_place(folder)


def located(path: str | Path) -> Path:
    """Return where a path leads to: ``~`` is filled in, links are followed.

    Raises:
        UserError: if it leads nowhere: a name is too long or not valid, a link leads to itself, there is no such ``~user``.
    """
    try:
        os.fsencode(path).decode("utf-8")  # as weights are written; in a locale without UTF-8 its bytes still are
        found = Path(path).expanduser().resolve()
        found.exists()
    except (OSError, ValueError, RuntimeError) as error:
        said = getattr(error, "strerror", None) or str(error).split(" from ")[0]
        raise UserError(f"{str(path)!r:.200} is not a name for a file or folder: {said}. Choose another.") from error
    if len(os.fsencode(found.name)) > LONGEST:
        raise UserError(f"{found.name:.60}... has more than {LONGEST} bytes as a name: choose a shorter one.")
    return found


def check_file(path: str | Path) -> Path:
    """Check that an output file can be written; an existing one will be replaced.

    Returns:
        The file, ``~`` filled in; where a link leads to, not the link. A device, such as ``/dev/stdout``, as it is.

    Raises:
        UserError: if it is a folder, or nothing can be written there.
    """
    located(path)
    path = Path(path).expanduser()
    if path.is_dir():
        raise UserError(f"{path} is a folder; give the name of a file in it.")
    if path.exists() and not os.access(path, os.W_OK):
        raise UserError(f"{path} is there and may not be written to. Choose another file.")
    return path if path.exists() and not path.is_file() else _check_place(path.resolve())


def _check_place(path: Path) -> Path:
    """Check that something can be made in the first folder above a path that is there."""
    there = path
    try:
        there = next(folder for folder in path.parents if folder.exists())
        with scratch(there / "tamp"):
            pass
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror} ({there}). Choose another place.") from error
    return path


@contextlib.contextmanager
def finished(folder: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary folder that replaces ``folder`` on success.

    After a crash or on a full disk there is no ``folder``, or the old one. If another process made it in the meantime, and
    ``overwrite`` is not given, both are kept.

    Args:
        folder: where to; must not exist unless ``overwrite``.
        overwrite: replace the folder.

    Raises:
        UserError: if the folder exists, or writing fails; :class:`Kept` if all was written and only the name is taken.
    """
    folder = check_free(folder, overwrite)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with scratch(folder) as beside:
            yield beside
            for path in (*sorted(beside.rglob("*")), beside):  # safetensors makes its files private
                if path.is_file():
                    path.chmod(beside.stat().st_mode & 0o666)
                _settle(path)
            _take_place(beside, folder, overwrite)
    except Kept:
        raise
    except Exception as error:  # safetensors reports a full disk with an error of its own
        left = ", ".join(str(path) for path in hidden(folder, ".tamp"))
        left = f"Delete what is left of it: {left}." if left else "Nothing was left there."
        raise UserError(f"Could not save to {folder}: {str(error).rstrip('.')}. {left}") from error


def _take_place(beside: Path, folder: Path, overwrite: bool) -> None:
    """Give a finished folder its name.

    Raises:
        Kept: if there is something of that name now that must not be replaced, or cannot be.
    """
    old = beside.with_name(f"{beside.name}.old")
    with locked(folder.parent, wait=60):  # so that nobody takes the old folder for the rest of a killed run
        try:
            if overwrite and folder.exists():
                os.replace(folder, old)
            with contextlib.suppress(OSError):
                folder.rmdir()  # if it is empty
            os.replace(beside, folder)  # which fails if there is a folder that is not
        except OSError as error:
            if old.exists():
                os.replace(old, folder)
            if not folder.exists():
                raise
            names = (folder.with_name(f"{folder.name}-{number}") for number in range(2, 10**6))
            os.replace(beside, other := next(name for name in names if not name.exists()))
            raise Kept(f"{folder} could not be made ({error.strerror}): the result is in {other} instead.") from error
        _settle(folder.parent)
    _remove(old)
    if old.exists():
        log.warning("%s is saved; what it replaced could not be deleted: %s", folder, old)


def recovered(folder: str | Path) -> Path:
    """Return a folder, ``~`` and links followed; one whose replacement was killed half-way is there again."""
    try:
        folder = Path(folder).expanduser().resolve()
    except (OSError, ValueError, RuntimeError):  # it leads nowhere
        return Path(folder)
    if fcntl and not os.path.exists(folder) and os.path.isdir(folder.parent):  # which take a name that is too long
        with locked(folder.parent, wait=60):
            for old in hidden(folder, ".tamp.old"):
                if not os.path.exists(folder):
                    with contextlib.suppress(OSError):
                        os.replace(old, folder)
    return folder
