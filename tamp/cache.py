"""The cache of models: each is made once, whole, and made again if it is damaged."""

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from safetensors import SafetensorError, safe_open

from tamp import files
from tamp.errors import UserError

log = logging.getLogger(__name__)


def made_once(name: str, make: Callable[[Path, Path], None]) -> Path:
    """Return a model's folder in the cache, making it if it is not there, or not whole.

    Two processes that start at once both succeed: each makes a folder of its own, and the first to finish renames it. A
    process that fails leaves nothing behind, and what a killed one leaves is removed by the next.

    Args:
        name: of the folder in the cache.
        make: called with a temporary folder and the folder to write the model to.

    Raises:
        UserError: if the cache cannot be written to.
    """
    target = files.cache_folder() / name
    files.sweep(target)
    if whole(target):
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with files.scratch(target) as scratch:
            made = scratch / "made"
            make(scratch, made)
            if target.exists() and not whole(target):
                log.warning("%s is damaged: it is made again", target)
                with contextlib.suppress(FileNotFoundError):  # another process was first
                    os.replace(target, scratch / "damaged")
            try:
                os.replace(made, target)
            except OSError:  # another process was first
                if not whole(target):
                    raise
    except OSError as error:
        raise UserError(
            f"Could not write {name} into {target.parent}: {error}. TAMP_CACHE names another place."
        ) from error
    return target


def whole(folder: Path) -> bool:
    """Return whether a folder holds a configuration and weights, and every file of weights is as long as it says."""
    weights = sorted(folder.glob("*.safetensors"))
    try:
        for path in weights:
            with safe_open(path, framework="pt"):
                pass
    except (SafetensorError, OSError):
        return False
    return bool(weights) and (folder / "config.json").is_file()


@contextlib.contextmanager
def waiting(what: str, seconds: float = 10) -> Iterator[None]:
    """Log what is waited for, if what runs inside takes long."""
    timer = threading.Timer(seconds, log.warning, ("Waiting for %s. Ctrl-C stops it.", what))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
