"""Files of records: where each stands, which cannot be used, and how JSON, JSON lines and datasets folders are read."""

import contextlib
import json
import logging
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tamp import schema
from tamp.errors import UserError, unknown

log = logging.getLogger(__name__)


class Place(NamedTuple):
    """Where a record stands: the name of its file (empty for a list), its number from 0 on, and its id if it has one."""

    file: str
    number: int
    id: str = ""

    def __str__(self) -> str:
        return f"{self.file}: " * bool(self.file) + f"Record {self.number}" + f" (id {self.id})" * bool(self.id)


class Skipped(NamedTuple):
    """A record that was left out, and why."""

    place: Place
    reason: str


class RecordError(UserError):
    """An error in one record; it already says which."""


@contextlib.contextmanager
def told(place: Place | None, skipped: list[Skipped] | None = None) -> Iterator[None]:
    """Prefix errors with the record they are in.

    Args:
        place: of the record; None for what was not read from one, whose errors stay as they are.
        skipped: where a record that cannot be used is noted instead.
    """
    try:
        yield
    except UserError as error:
        if place is None or (isinstance(error, RecordError) and skipped is None):
            raise
        if skipped is None:
            raise RecordError(f"{place}: {error}") from error
        skipped.append(Skipped(place, str(error).removeprefix(f"{place}: ")))


def place_of(record: dict[str, Any], source: Any) -> Place:
    """Return where a record from :func:`read` stands."""
    name = record.get("id", record.get("question_id", ""))
    file = Path(source).name if isinstance(source, str | Path) else ""
    return Place(file, record["_number"], repr(name)[:60] if isinstance(name, str | int) and name != "" else "")


def said(source: Any) -> str:
    """Return what a sentence calls a source: its name, or what it is."""
    return f"{source!s:.200}" if isinstance(source, str | Path) else f"The list of {len(source)} records"


def read(
    source: str | Path | Iterable[dict], kind: str, known: Iterable[str] = (), skipped: list[Skipped] | None = None
) -> Sequence[dict[str, Any]]:
    """Read the records of a file or a ``datasets`` folder, each with its ``_number`` and without what is None in it.

    Those of a folder are read when they are asked for, each time anew, and not kept.

    Args:
        source: a ``.jsonl`` or ``.json`` file, a folder, or a list of records.
        kind: what it should be, such as ``"benchmark"``, to say so in an error.
        known: names that would have worked instead, to be offered in an error.
        skipped: where records that are not readable are noted; without it they raise.

    Raises:
        UserError: if it does not exist, is empty, or is not in one of the known formats.
    """
    if isinstance(source, str | Path):
        source = os.path.expanduser(source)
    if not isinstance(source, str):
        source = found = list(source)
    elif os.path.isdir(source):
        found = _read_folder(Path(source))
    elif os.path.isfile(source):
        found = _read_file(Path(source))
    else:
        raise unknown(kind, f"{source!s:.200}", known, "A .jsonl or .json file or a datasets folder works too.")
    if not found:
        raise UserError(f"The {kind} {said(source)} is empty.")
    if isinstance(found, Saved):
        return found
    records = []
    for number, record in enumerate(found):
        with told(place_of({"_number": number}, source), skipped):
            if isinstance(record, Exception):
                raise UserError(f"it is not readable as JSON: {record}")
            if not isinstance(record, dict):
                raise UserError(f"a record is an object with 'question' or the like, not {record!r:.60}.")
            records.append(_numbered(record, number))
    return records


def _numbered(record: dict[str, Any], number: int) -> dict[str, Any]:
    """Return a record with its number, without absent values: datasets fills missing columns with None, pandas with NaN.

    What pandas keeps of a list, an array of one axis, is a list again. Turns in parts are turns with marks.
    """
    there = {key: value for key, value in record.items() if not absent(value)}
    there |= {key: value.tolist() for key, value in there.items() if getattr(value, "ndim", 0) == 1}
    for key in there.keys() & {"conversations", "messages"}:
        carried: dict[str, list] = {}
        if isinstance(there[key], list | tuple):
            there[key] = [_whole_turn(turn, carried) for turn in there[key]]
        there = {**carried, **there}
    return {**there, "_number": number}


def _whole_turn(turn: Any, carried: dict[str, list]) -> Any:
    """Write a turn whose content is in parts, as chat templates take it, as one text with marks such as ``<image>``.

    Args:
        turn: as it is read; one that is not in parts is returned as it is.
        carried: where media that parts carry are added, under ``images``, ``videos`` and ``audios``.

    Raises:
        UserError: if a part is of no known kind.
    """
    if not isinstance(turn, dict) or not isinstance(turn.get("content"), list | tuple):
        return turn
    pieces = []
    for part in turn["content"]:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            pieces.append(part["text"])
        elif kind in ("image", "video", "audio"):
            pieces.append(f"<{kind}>")
            given = [part[key] for key in (kind, "path", "bytes") if not absent(part.get(key))]
            if given:
                carried.setdefault(f"{kind}s", []).append(given[0])
        else:
            raise UserError(
                f"a part of a turn is {{'type': 'text', 'text': ...}}, an image, a video or an audio, not {part!r:.60}."
            )
    return {**turn, "content": "\n".join(pieces)}


def absent(value: Any) -> bool:
    """Return whether a value stands for none: None, or NaN."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _read_file(path: Path) -> list:
    """Read a list of records, or one per line; what is not JSON in a line is left as the error that it raised."""
    try:
        text = schema.text_of(path)
        if path.suffix.lower() == ".json" or text.lstrip()[:1] == "[":
            try:
                found = json.loads(text)
            except json.JSONDecodeError as error:
                if not error.msg.startswith("Extra data"):  # JSON lines by another name
                    raise
            else:
                if not isinstance(found, list):
                    raise UserError(f"{path} must hold a list of records.")
                return found
    except UserError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not readable as {path.suffix or 'JSONL'}: {error}") from error
    found = []
    for line in filter(str.strip, text.split("\n")):  # str.splitlines would break strings at U+2028
        try:
            found.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            found.append(error)
    if found and all(isinstance(each, Exception) for each in found):
        raise UserError(f"{path} is not readable as {path.suffix or 'JSONL'}: {found[0]}") from found[0]
    return found


class Saved(Sequence):
    """The records of a folder saved by ``datasets``, each read when it is asked for.

    Attributes:
        table: the data set.
        path: its folder.
    """

    def __init__(self, table: Any, path: Path):
        self.table, self.path = table, path

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, number: int) -> dict[str, Any]:
        number = range(len(self))[number]
        with _of_datasets(self.path):
            return _numbered(self.table[number], number)


@contextlib.contextmanager
def _of_datasets(path: Path) -> Iterator[None]:
    """Turn what a damaged folder makes datasets and pyarrow raise, a dozen kinds, into a sentence."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path} is not a folder saved by datasets: {error!s:.200}") from error


def _read_folder(path: Path) -> Saved:
    """Open a folder saved by ``datasets``; pictures, videos and sounds in a column of their own stay undecoded."""
    try:
        import datasets
    except ImportError as error:
        raise UserError(f"{path} is a folder, and reading one needs datasets: pip install datasets.") from error
    with _of_datasets(path):
        found = datasets.load_from_disk(str(path))
        if isinstance(found, datasets.DatasetDict):
            raise UserError(f"{path} holds the splits {', '.join(found)}; give the folder of one of them.")
        for name, feature in found.features.items():
            if isinstance(feature, datasets.Image | datasets.Audio | datasets.Video):
                found = found.cast_column(name, type(feature)(decode=False))
        return Saved(found, path)


def skips(on_error: str) -> list[Skipped] | None:
    """Return where records that cannot be used are noted; None if the first of them is to raise its error.

    Raises:
        UserError: if ``on_error`` is neither ``"raise"`` nor ``"skip"``.
    """
    if on_error not in ("raise", "skip"):
        raise unknown("on_error", str(on_error), ("raise", "skip"))
    return [] if on_error == "skip" else None


def warn(skipped: list[Skipped] | None, kind: str, left: int) -> None:
    """Warn of what was left out, at the end of the work.

    Raises:
        UserError: if nothing is left.
    """
    if not skipped:
        return
    lines = [f"{place}: {reason}" for place, reason in skipped[:20]]
    if not left:
        raise UserError(f"No {kind} can be used: all {len(skipped)} records have a fault, the first {lines[0]}")
    more = f"\nand {len(skipped) - 20} more" if len(skipped) > 20 else ""
    log.warning("%d records were skipped, %d used:\n%s%s", len(skipped), left, "\n".join(lines), more)
