"""Where calibration records come from by name: data sets on the hub, local copies of them, and mixtures, drawn by a seed.

A hub's data set is streamed. Its records go through a buffer from which the next one is drawn, so drawing n of them reads
about ``BUFFER`` + n records that pass the filter, and never the whole set.
"""

import fnmatch
import hashlib
import logging
import os
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from tamp import reading, records
from tamp.errors import UserError, unknown
from tamp.files import cache_folder, whole
from tamp.reading import Skipped, place_of, told

PAPER = {
    "tamp-llava-next": ("lmms-lab/LLaVA-NeXT-Data", {"data_source": "sharegpt4v*"}),
    "tamp-videollama2": (None, {}),
}
"""Settings of the paper by name: data set on the hub (None: there is none, a local copy must be given) and filter."""

BUFFER, BUFFER_BYTES = 1000, 2**29
"""Records in the buffer of a streamed set, and the bytes of their media at which it counts as full."""

_SAVED = ("state.json", "dataset_dict.json")  # what a folder saved by `datasets` holds
_VIDEOS = (".mp4", ".mkv", ".webm", ".avi", ".mov")

log = logging.getLogger(__name__)


def shares(parts: Mapping[str, float], n: int) -> dict[str, int]:
    """Divide n samples among sources by largest remainder; the first of equal remainders goes first.

    Raises:
        UserError: if a share is not a positive number, or the shares do not sum to 1.
    """
    exact = {}
    for name, share in parts.items():
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
            raise UserError(f"The share of {name!r} is {share!r}: give a number above 0 and up to 1.")
        exact[name] = n * Fraction(str(share))
    if abs(sum(exact.values()) - n) > Fraction(n, 10**6):
        raise UserError(f"The shares of a mix sum to 1, not {float(sum(exact.values()) / n):g}: change one of them.")
    counts = {name: int(part) for name, part in exact.items()}
    by_rest = sorted(exact, key=lambda name: counts[name] - exact[name])  # stable
    for name in by_rest[: n - sum(counts.values())]:
        counts[name] += 1
    return counts


def interleave(made: Mapping[str, list], seed: int) -> list:
    """Put the samples of several sources into one seeded order; those of one source keep theirs."""
    turns = [name for name, samples in made.items() for _ in samples]
    rest = {name: iter(samples) for name, samples in made.items()}
    return [next(rest[turns[place]]) for place in _random(b"mix", seed).permutation(len(turns))]


def kind(record: dict[str, Any]) -> str:
    """Return the media of a record: ``"text"`` if it has none, ``"image"``, or several such as ``"video+audio"``."""
    media = [name for name, given in records.named(record).items() if given]
    if "video_id" in record:  # which takes the place of video and sound
        media = [*(name for name in media if name == "image"), "video"]
    return "+".join(media) or "text"


class Shares:
    """How many records of each kind are still wanted.

    Attributes:
        parts: kind to the number wanted in all; empty if kinds do not matter.
        left: kind to the number that is not drawn yet.
    """

    def __init__(self, kinds: Sequence[str], n: int):
        """Divide n records among kinds.

        Raises:
            UserError: if there is no such kind, or one is named twice.
        """
        kinds = [kinds] if isinstance(kinds, str) else list(kinds)
        for place, given in enumerate(kinds):
            each = str(given).split("+")
            kinds[place] = "+".join(sorted(each, key=lambda name: (*records.KINDS, name).index(name)))
            if each != ["text"] and not (set(each) <= set(records.KINDS) and len(set(each)) == len(each)):
                raise unknown("kind of records", str(given), ("text", *records.KINDS), "Or several, as video+audio.")
            if kinds[place] in kinds[:place]:
                raise UserError(f"The kind {given!r} is to be balanced with itself: name it once.")
        self.parts = shares(dict.fromkeys(kinds, 1 / len(kinds)), n) if kinds else {}
        self.left = dict(self.parts)

    def take(self, record: dict[str, Any]) -> bool:
        """Count a record as drawn; return whether one of its kind is wanted."""
        if self.parts and not self.left.get(kind(record)):
            return False
        self.give_back(record, -1)
        return True

    def give_back(self, record: dict[str, Any], number: int = 1) -> None:
        """Count a record that was drawn as not drawn: it cannot be used."""
        if self.parts:
            self.left[kind(record)] += number

    def check(self, source: Any) -> None:
        """Check that there is an equal part of each kind.

        Raises:
            UserError: saying how many there are.
        """
        if any(self.left.values()):
            found = ", ".join(
                f"{wanted - self.left[name]} of {wanted} of the kind {name}" for name, wanted in self.parts.items()
            )
            raise UserError(
                f"{source} holds too few records that can be used for an equal part of each kind: {found}. Lower n."
            )


def drawn(
    source: str | Path,
    seed: int,
    known: Iterable[str] = (),
    filter: Mapping[str, str] | None = None,
    parts: Shares | None = None,
    media: str | Path | None = None,
    skipped: list[Skipped] | None = None,
) -> Iterator[tuple[dict[str, Any], Any]]:
    """Yield the records of a source in the order of a draw, from which the caller takes as many as it needs.

    Args:
        source: see :func:`tamp.calibration_set`.
        seed: random seed of the draw. A file's records are drawn without replacement from all of them, a stream's through
            the buffer.
        known: shipped names, to be offered in an error.
        filter: column to the value that a record must have there; ``*`` stands for anything.
        parts: how many of each kind are wanted; no others are yielded.
        media: folder of the pictures, videos and sounds, or of the local copy of a setting in ``PAPER``.
        skipped: where records that cannot be used are noted; without it they raise.

    Yields:
        (record, what its media are relative to: a folder, a file, or a list of records).

    Raises:
        UserError: if there is no such source, it cannot be read, or no record passes the filter.
    """
    filter, media = dict(filter or {}), media if media is None else os.path.expanduser(media)
    source = os.path.expanduser(source) if isinstance(source, str | Path) else source
    if isinstance(source, str) and source in PAPER:
        hub, usual = PAPER[source]
        if hub is None and media is None:
            raise UserError(
                f"{source!r} has no copy on the hub that tamp can stream: download its JSON lists and its videos into one "
                "folder and name it with media (--media)."
            )
        filter = {**usual, **filter}
        source = hub if media is None else media
    where = source if media is None else media
    every, streamed = _records(source, seed, known, skipped)
    matching = _matching(every, filter, source)
    if streamed:
        order = _buffered((record for _, record in matching), seed)
    else:
        order = _permuted(every, [place for place, _ in matching] if filter else range(len(every)), seed)
    parts = parts or Shares((), 0)
    for record in order:
        taken, found = False, None
        with told(place_of(record, source), skipped):
            taken = parts.take(record)
            found = _with_files(record, where) if taken else None
        if found is not None:
            yield found, where
        elif taken:
            parts.give_back(record)


def _records(
    source: str | Path | list, seed: int, known: Iterable[str], skipped: list[Skipped] | None
) -> tuple[Any, bool]:
    """Return a source's records and whether they are a stream, which has no length."""
    if not isinstance(source, str | Path):
        return reading.read(source, "calibration set", skipped=skipped), False
    path = Path(source)
    if not os.path.exists(path):  # which takes a name that is too long
        if str(source).count("/") == 1 and not path.suffix and not str(source).startswith((".", "/")):
            return _stream(str(source), seed), True
        options = [*known, *PAPER]
        raise unknown(
            "calibration set",
            f"{source!s:.200}",
            options,
            "A .jsonl or .json file, a folder, or a data set of the hub such as 'owner/name' works too.",
        )
    if path.is_dir() and not any((path / name).exists() for name in _SAVED):
        if any(path.rglob("*.parquet")):
            return _stream(str(path), seed), True
        if lists := sorted([*path.glob("*.json"), *path.glob("*.jsonl")]):
            every = [record for each in lists for record in reading.read(each, "calibration set", skipped=skipped)]
            return [{**record, "_number": number} for number, record in enumerate(every)], False
    return reading.read(source, "calibration set", known, skipped), False


def _stream(name: str, seed: int) -> Iterator[dict[str, Any]]:
    """Yield the records of a data set as they arrive, its files in a drawn order, pictures, videos and sounds undecoded."""
    try:
        import datasets
    except ImportError as error:
        raise UserError(f"Streaming {name} needs datasets: pip install datasets.") from error
    try:
        stream = datasets.load_dataset(name, split="train", streaming=True)
        for column, feature in (stream.features or {}).items():
            if type(feature).__name__ in ("Image", "Audio", "Video"):
                stream = stream.cast_column(column, type(feature)(decode=False))
        stream = stream.shuffle(seed=seed, buffer_size=1)  # of one: only its files change places
        for number, record in enumerate(stream):
            yield {**{key: value for key, value in record.items() if value is not None}, "_number": number}
    except Exception as error:  # of datasets, huggingface_hub, fsspec, pyarrow and the network
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(
            f"Could not stream {name}: {first.rstrip('.')}. Check the name and the network, or give a local copy."
        ) from error


def _value(record: dict[str, Any], column: str) -> Any:
    """Return a record's value; LLaVA's raw lists say the source of data by the first folder of the picture alone."""
    if column == "data_source" and column not in record and isinstance(record.get("image"), str):
        return Path(record["image"]).parts[0]
    return record.get(column)


def _matching(
    every: Iterable[dict], filter: Mapping[str, str], source: str | Path
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the records that pass the filter, each behind its place.

    Raises:
        UserError: if none does, with the values there are.
    """
    seen = {column: Counter() for column in filter}
    passed = False
    for place, record in enumerate(every):
        values = {column: str(_value(record, column)) for column in filter}
        if all(fnmatch.fnmatchcase(value, str(filter[column])) for column, value in values.items()):
            passed = True
            yield place, record
        elif not passed:
            for column, value in values.items():
                seen[column][value[:60]] += 1
    if not passed and filter:
        said = "; ".join(
            f"{column} is {', '.join(value for value, _ in seen[column].most_common(8))}" for column in filter
        )
        asked = ", ".join(f"{column}={value}" for column, value in filter.items())
        raise UserError(f"No record of {reading.said(source)} has {asked}: there {said}. Change the filter.")


def _random(stream: bytes, seed: int) -> np.random.Generator:
    return np.random.default_rng([zlib.crc32(stream), seed])


def _permuted(every: Sequence[dict], places: Sequence[int], seed: int) -> Iterator[dict[str, Any]]:
    """Yield the records at some places in a drawn order; one that is read from a folder is read when it is drawn."""
    yield from (every[places[place]] for place in _random(b"calibration", seed).permutation(len(places)))


def _buffered(matching: Iterator[dict], seed: int) -> Iterator[dict[str, Any]]:
    """Yield a stream's records in a drawn order: a place of the full buffer is drawn, and the next record takes it."""
    random = _random(b"calibration", seed)
    held: list[dict] = []
    size = 0
    for record in matching:
        if len(held) < BUFFER and size < BUFFER_BYTES:
            held.append(record)
            size += _bytes(record)
            continue
        place = int(random.integers(len(held)))
        size += _bytes(record) - _bytes(held[place])
        taken, held[place] = held[place], record
        yield taken
    yield from (held[place] for place in random.permutation(len(held)))


def _bytes(record: dict[str, Any]) -> int:
    """Count the bytes of media that a record holds itself."""
    given = [each for every in records.named(record).values() for each in every]
    return sum(len(each["bytes"]) for each in given if isinstance(each, dict) and isinstance(each.get("bytes"), bytes))


def _with_files(record: dict[str, Any], where: Any) -> dict[str, Any]:
    """Give a record the paths of its videos and sounds: by ``video_id``, or a file of the bytes that it holds.

    AVinstruct's records name features of their video and sound instead, which only their authors' model reads.
    """
    folder = Path(where) if isinstance(where, str | Path) else Path()
    if "video_id" in record and not _is_file(folder, record.get("video")):
        found = next(
            (
                path
                for name in _VIDEOS
                if folder.is_dir()
                for path in sorted(folder.rglob(f"{record['video_id']}{name}"))
            ),
            None,
        )
        if found is None:
            raise UserError(
                f"There is no video {record['video_id']} ({', '.join(_VIDEOS)}) in {folder}: name the folder of the videos "
                "with media (--media)."
            )
        rest = {key: value for key, value in record.items() if key not in ("video", "videos", "audio", "audios")}
        record = {**rest, "video": found.relative_to(folder).as_posix()}
        turns = record.get("conversations")
        known = isinstance(turns, list) and turns and all(isinstance(turn, dict) for turn in turns)
        if known and not any("<video>" in str(turn.get("value")) for turn in turns):
            record["conversations"] = [{**turns[0], "value": f"<video>\n{turns[0].get('value')}"}, *turns[1:]]
    written = {}
    for name in ("video", "audio"):
        given = records.named(record)[name]
        if any(_undecoded(each) for each in given):
            written[f"{name}s"] = [str(_cached(each, name)) if _undecoded(each) else each for each in given]
    return {key: value for key, value in record.items() if f"{key}s" not in written} | written


def _is_file(folder: Path, given: Any) -> bool:
    return isinstance(given, str) and Path(given).suffix.lower() in _VIDEOS and (folder / given).is_file()


def _undecoded(given: Any) -> bool:
    """Return whether this is how ``datasets`` keeps a file that it does not decode: ``{"bytes": ..., "path": ...}``."""
    return isinstance(given, dict) and (isinstance(given.get("bytes"), bytes) or isinstance(given.get("path"), str))


def _cached(given: dict[str, Any], name: str) -> Path:
    """Return the absolute path of an undecoded video or sound, writing one of which there are only bytes."""
    content, path = given.get("bytes"), given.get("path")
    if not isinstance(content, bytes):
        return Path(path).resolve()
    suffix = Path(str(path or "")).suffix or {"video": ".mp4", "audio": ".wav"}[name]
    target = cache_folder() / "calibration" / f"{hashlib.sha256(content).hexdigest()}{suffix}"
    if not target.is_file():
        with whole(target) as made:
            made.write_bytes(content)
    return target.resolve()
