"""Where a benchmark's records and files are read from: its repository on the hub, or a local copy of it.

Both are file systems with the same layout, read the same way: parquet by row groups, so that a limit reads no more than it
needs, and single files out of zip archives without unpacking these. Media stay undecoded bytes until they are used.
"""

import contextlib
import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

from tamp import files
from tamp.errors import UserError
from tamp.evaluation.benchmarks.table import Published

ROWS = 4
"""Records that are decoded from a row group at once."""

TABLES = (".parquet", ".json", ".jsonl")
VIDEOS = (".mp4", ".mkv", ".avi", ".webm", ".mov", ".gif")


class Source:
    """The files of a benchmark's repository, or of a local copy.

    Args:
        name: of the benchmark.
        row: its row of the table.
        data: a folder laid out like the repository, or one parquet, JSON or JSONL file; None for the hub. A folder of videos
            alone, such as those that lmms-eval unpacks, gives the videos; then the records are the hub's.

    Attributes:
        files: every file, as a path from the root.

    Raises:
        UserError: if the folder does not exist, or the hub cannot be reached.
    """

    def __init__(self, name: str, row: Published, data: str | Path | None = None):
        self.name, self.row, self.hub = name, row, data is None
        self.said = str(data) if data is not None else f"the hub repository {row.hub}"
        if data is None:
            import huggingface_hub

            self.system, self.root = huggingface_hub.HfFileSystem(), f"datasets/{row.hub}"
            if row.revision != "main":
                self.root += f"@{row.revision}"
        else:
            import fsspec

            path = Path(os.path.abspath(os.path.expanduser(data)))
            if not os.path.exists(path):
                raise UserError(f"There is no folder {data!s:.200} with a copy of {row.hub}.")
            self.system, self.root = fsspec.filesystem("file"), path.as_posix()
        self.alone = data is not None and path.is_file()
        with self._reached():
            listed = [self.root] if self.alone else self.system.find(self.root)
        root = PurePosixPath(self.root).parent if self.alone else PurePosixPath(self.root)
        self.root = root.as_posix()
        self.files = sorted(PurePosixPath(path).relative_to(root).as_posix() for path in listed)
        self._places: dict[str, list[tuple[str, str]]] | None = None
        self.asked = self  # where the records are
        endings = {PurePosixPath(path).suffix.lower() for path in self.files}
        if not self.hub and not endings.intersection(TABLES) and endings.intersection((".zip", *VIDEOS)):
            self.asked = Source(name, row)

    @contextlib.contextmanager
    def _reached(self) -> Iterator[None]:
        """Report what the hub or the disk refuses in a sentence."""
        try:
            yield
        except (UserError, MemoryError):
            raise
        except Exception as error:  # huggingface_hub, httpx, pyarrow and zipfile raise a dozen kinds
            first = next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")
            copy = f"hf download {self.row.hub} --repo-type dataset --revision {self.row.revision} --local-dir DIR"
            hint = (
                f"Try again, or make a copy ({copy}) and give it with data=, --data." if self.hub else "Copy it again."
            )
            raise UserError(f"{self.row.title} cannot be read from {self.said}: {first}. {hint}") from error

    def tables(self, configuration: str | None) -> list[str]:
        """List the files that hold a configuration's records.

        Raises:
            UserError: if there are none.
        """
        if self.asked is not self:
            return self.asked.tables(configuration)
        found = [path for path in self.files if path.endswith(TABLES)]
        if not self.alone:
            split = self.row.split

            def holds(path: str) -> bool:
                parts = PurePosixPath(path).parts
                stem = PurePosixPath(path).stem
                of_split = stem == split or stem.startswith(f"{split}-")
                if configuration is None:
                    return of_split and not set(parts[:-1]) - {"data", "default"}
                return stem == configuration or (of_split and configuration in parts[:-1])

            found = [path for path in found if holds(path)]
        if not found:
            what = f"{configuration}, " if configuration else ""
            raise UserError(
                f"{self.said} holds no records of {self.row.title} ({what}split {self.row.split}): expected the layout of "
                f"{self.row.hub}, such as {f'{configuration}/' if configuration else 'data/'}{self.row.split}-*.parquet."
            )
        return found

    def count(self, configuration: str | None) -> int | None:
        """Return how many records a local copy holds, by the footers of its parquet files; None where they do not tell."""
        paths = self.tables(configuration)
        if self.asked.hub or not all(path.endswith(".parquet") for path in paths):
            return None
        with self._reached():
            from pyarrow import parquet

            return sum(parquet.read_metadata(f"{self.root}/{path}").num_rows for path in paths)

    def records(self, configuration: str | None, first: int | None = None) -> Iterator[dict[str, Any]]:
        """Yield a configuration's records in order, each with its ``_number``; no more than needed is read.

        Args:
            configuration: one of the row's; None for a repository with one.
            first: how many; None for all.
        """
        number = 0
        source = self.asked
        for path in source.tables(configuration):
            if number == first:
                return
            rows = source._parquet(path) if path.endswith(".parquet") else source._json(path)
            left = None if first is None else first - number
            with contextlib.closing(rows):
                for record in islice(rows, left):
                    yield {**record, "_number": number}
                    number += 1

    def _parquet(self, path: str) -> Iterator[dict]:
        try:
            from pyarrow import parquet
        except ImportError as error:
            raise UserError(f"{path} is parquet, and reading it needs pyarrow: pip install pyarrow.") from error
        with self._reached(), self.system.open(f"{self.root}/{path}", "rb") as file:
            whole = parquet.ParquetFile(file)
            for group in range(whole.num_row_groups):  # of several at once, all would be fetched at the beginning
                for batch in whole.iter_batches(batch_size=ROWS, row_groups=[group]):
                    yield from batch.to_pylist()

    def _json(self, path: str) -> Iterator[dict]:
        with self._reached(), self.system.open(f"{self.root}/{path}", "rb") as file:
            text = file.read().decode("utf-8-sig")
            if path.endswith(".jsonl"):
                yield from (json.loads(line) for line in text.split("\n") if line.strip())
            else:
                yield from json.loads(text)

    def video(self, name: str) -> Path | None:
        """Return a video as a local file, taken out of its archive or fetched if need be.

        Args:
            name: the end of its path, with or without its ending.

        Returns:
            The file; None if there is none of this name. Fetched files stay in the cache.
        """
        if self._places is None:
            with self._reached():
                self._places = self._found()
        wanted = name.lower()
        stem = PurePosixPath(wanted)
        stem = stem.name.removesuffix(stem.suffix) if stem.suffix in VIDEOS else stem.name
        for archive, path in self._places.get(stem, []):
            whole = f"/{path.lower()}"
            if whole.endswith(f"/{wanted}") or any(whole.endswith(f"/{wanted}{ending}") for ending in VIDEOS):
                with self._reached():
                    return self._fetched(archive, path)
        return None

    def _found(self) -> dict[str, list[tuple[str, str]]]:
        """List every video: name without ending to its archive, if it is in one, and its path."""
        found: dict[str, list[tuple[str, str]]] = {}

        def add(archive: str, path: str) -> None:
            pure = PurePosixPath(path)
            if pure.suffix.lower() in VIDEOS:
                found.setdefault(pure.stem.lower(), []).append((archive, path))

        for path in self.files:
            add("", path)
        for archive in (path for path in self.files if path.endswith(".zip")):
            with self.system.open(f"{self.root}/{archive}", "rb") as file, zipfile.ZipFile(file) as opened:
                for path in opened.namelist():
                    add(archive, path)
        return found

    def _fetched(self, archive: str, path: str) -> Path:
        here = Path(self.root) / path
        if not archive and here.is_file():
            return here
        copy = hashlib.sha256(f"{self.root}/{archive}".encode()).hexdigest()[:12]
        inside = [part for part in PurePosixPath(path).parts if part not in ("..", "/")]
        target = files.cache_folder().joinpath("benchmarks", self.name, copy, *inside)
        if target.is_file():
            return target
        with files.whole(target) as made, contextlib.ExitStack() as stack:
            file = stack.enter_context(self.system.open(f"{self.root}/{archive or path}", "rb"))
            if archive:
                file = stack.enter_context(stack.enter_context(zipfile.ZipFile(file)).open(path))
            with made.open("wb") as out:
                shutil.copyfileobj(file, out, 1 << 20)
        return target
