"""Writing that is finished or leaves nothing.

What is being written has a hidden name, ``.NAME.RANDOM.tamp``, and is locked as long as its process lives. Whoever writes
to the same name next removes what has no lock: the rest of a run that was killed.
"""

import contextlib
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tamp.errors import UserError

try:
    import fcntl
except ImportError:  # Windows: nothing is locked, and nothing swept
    fcntl = None


class Kept(UserError):
    """A result that could not be saved where it should; the message says where it is instead."""


def write_text(path: str | Path, text: str) -> Path:
    """Write a text file in UTF-8, all of it or nothing: until it is whole, the old file stays.

    Returns:
        The path as it was given.

    Raises:
        Kept: if it cannot be written there: the text is in the temporary folder.
    """
    target = Path(path)
    try:
        target = target.expanduser()
        if target.exists() and not target.is_file() and not target.is_dir():
            target.write_text(text, encoding="utf-8", errors="backslashreplace")
            return Path(path)
        target = target.resolve()
        with whole(target) as made:
            made.write_text(text, encoding="utf-8", errors="backslashreplace")
    except (OSError, ValueError, RuntimeError) as error:
        said = f"Could not write {path!s:.200}: {getattr(error, 'strerror', None) or error}."
        for name in filter(None, (target.name, "result")):
            with contextlib.suppress(OSError, ValueError):
                kept = Path(tempfile.mkdtemp(prefix="tamp-")) / name
                kept.write_text(text, encoding="utf-8", errors="backslashreplace")
                said += f" It was written to {kept} instead."
                break
        raise Kept(said) from error
    return Path(path)


@contextlib.contextmanager
def whole(target: Path) -> Iterator[Path]:
    """Yield a path for a file that takes the place of ``target`` when it is whole and on disk.

    Raises:
        OSError: if it cannot be written.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with scratch(target) as beside:
        made = beside / target.name
        yield made
        _settle(made)
        there = target.is_file()  # whose mode it keeps; safetensors makes its files private
        made.chmod((target if there else beside).stat().st_mode & (0o777 if there else 0o666))
        os.replace(made, target)
        _settle(target.parent)


@contextlib.contextmanager
def scratch(target: Path) -> Iterator[Path]:
    """Yield a temporary folder beside a path, and remove it on leaving; first remove those of runs that were killed.

    Raises:
        OSError: if it cannot be made.
    """
    sweep(target)
    while True:
        beside = target.with_name(f".{target.name}.{secrets.token_hex(6)}.tamp")
        beside.mkdir()
        with locked(beside, wait=60):
            if not beside.exists():  # swept before it was locked
                continue
            try:
                yield beside
            finally:
                _remove(beside)
            return


def sweep(target: Path) -> None:
    """Remove what killed runs have left beside a path."""
    for path in (*hidden(target, ".tamp"), *(hidden(target, ".tamp.old") if target.exists() else ())):
        with locked(path) as free:
            if free:
                _remove(path)


def hidden(target: Path, ending: str) -> list[Path]:
    """List what is beside a path under its hidden names."""
    name = re.compile(rf"\.{re.escape(target.name)}\.[0-9a-f]{{12}}{re.escape(ending)}")
    return sorted(path for path in target.parent.glob(".*") if name.fullmatch(path.name))


@contextlib.contextmanager
def locked(path: Path, wait: float = 0) -> Iterator[bool]:
    """Lock a file or folder among processes until leaving, and yield whether it worked; a dead process holds no lock.

    Args:
        path: what to lock.
        wait: seconds to wait for another process.
    """
    opened, end, got = None, time.monotonic() + wait, False
    with contextlib.suppress(OSError):
        opened = os.open(path, os.O_RDONLY | os.O_NOFOLLOW) if fcntl else None
        while opened is not None and not got:
            try:
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
                got = True
            except BlockingIOError:
                if time.monotonic() >= end:
                    break
                time.sleep(0.02)
    try:
        yield got
    finally:
        if opened is not None:
            os.close(opened)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def _settle(path: Path) -> None:
    """Wait until a file or a folder's list of names is on disk."""
    with contextlib.suppress(OSError) if path.is_dir() else contextlib.nullcontext():  # some systems cannot for folders
        opened = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)
