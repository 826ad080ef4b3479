"""Files and folders: where data lies, and writing that is finished or leaves nothing."""

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from tamp.errors import UserError


def data_folder() -> Path:
    """Return the folder of shipped data: ``data/`` of the repository, or the copy inside an installed wheel."""
    package = Path(__file__).parent
    return next(
        (path for path in (package.parent / "data", package / "data") if (path / "README.md").is_file()),
        package.parent / "data",
    )


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
        UserError: if it exists and is not empty, unless ``overwrite`` is given; or if nothing can be written there.
    """
    folder = Path(folder).expanduser().resolve()
    if folder.exists() and not overwrite and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"{folder} exists; choose another folder, or overwrite it (overwrite=True, --overwrite).")
    there = next(path for path in folder.parents if path.exists())
    try:
        tempfile.TemporaryDirectory(dir=there).cleanup()
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror} ({there}). Choose another folder.") from error
    return folder


@contextlib.contextmanager
def finished(folder: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary folder that replaces ``folder`` on success.

    After a crash or on a full disk there is no ``folder``, or the old one.

    Args:
        folder: where to; must not exist unless ``overwrite``.
        overwrite: replace the folder.

    Raises:
        UserError: if the folder exists, or writing fails.
    """
    folder = check_free(folder, overwrite)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise UserError(f"Cannot write beside {folder}: {error}") from error
    try:
        yield beside
        beside.chmod(0o755)
        if folder.exists():
            old = beside.with_name(beside.name + ".old")
            os.replace(folder, old)
            os.replace(beside, folder)
            shutil.rmtree(old) if old.is_dir() else old.unlink()
        else:
            os.replace(beside, folder)
    except BaseException as error:
        shutil.rmtree(beside, ignore_errors=True)
        if isinstance(error, Exception):  # safetensors reports a full disk with an error of its own
            raise UserError(f"Could not save to {folder}: {error}. Nothing was left there.") from error
        raise


def made_once(name: str, make: Callable[[Path, Path], None]) -> Path:
    """Return a model's folder in the cache, making it if it is not there.

    Two processes that start at once both succeed: each makes a folder of its own, and the first to finish renames it. A
    process that fails leaves nothing behind.

    Args:
        name: of the folder in the cache.
        make: called with a temporary folder and the folder to write the model to.

    Raises:
        UserError: if the cache cannot be written to.
    """
    target = cache_folder() / name
    if (target / "config.json").is_file():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=target.parent) as scratch:
            made = Path(scratch) / "made"
            make(Path(scratch), made)
            try:
                os.replace(made, target)
            except OSError:  # another process was first
                if not (target / "config.json").is_file():
                    raise
    except OSError as error:
        raise UserError(
            f"Could not write {name} into {target.parent}: {error}. TAMP_CACHE names another place."
        ) from error
    return target
