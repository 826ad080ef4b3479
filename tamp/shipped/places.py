"""Where shipped and fetched models lie, and how a folder is made once."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from tamp.errors import UserError


def data_folder() -> Path:
    """Return the folder of shipped data: ``data/`` of the repository, or the copy inside an installed wheel."""
    package = Path(__file__).parents[1]
    return next(
        (path for path in (package.parent / "data", package / "data") if (path / "README.md").is_file()),
        package.parent / "data",
    )


def cache_folder() -> Path:
    """Return where fetched models are kept: ``TAMP_CACHE``, or ``tamp`` in the user's cache folder."""
    usual = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "tamp"
    return Path(os.environ.get("TAMP_CACHE") or usual).expanduser()


def made_once(name: str, make: Callable[[Path, Path], None]) -> Path:
    """Return a model's folder in the cache, making it if it is not there.

    Two processes that start at once both succeed: each makes a folder of its own, and the first to finish renames it. What
    breaks off leaves nothing behind.

    Args:
        name: of the folder in the cache.
        make: called with a scratch folder and the folder to write the model to.

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
