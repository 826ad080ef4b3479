"""Files of samples and questions: records, the pictures, videos and sounds beside their words, and their messages."""

import contextlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from tamp import media
from tamp.errors import UserError, unknown

KINDS = ("image", "video", "audio")
"""What can stand beside text: keys of a record, as are their plurals, and marks in LLaVA's turns, such as ``<image>``."""

_MARK = re.compile(f"<({'|'.join(KINDS)})>")


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question about one picture or a pair, or about videos or sounds.

    Attributes:
        task: What kind of question it is; scores are averaged per task.
        images: The pictures, in prompt order; questions about the same pictures share the tuple itself.
        text: The question.
        answer: The right answer; one of `choices`.
        choices: The answers that make sense; chance is one over their number.
        videos: Paths of videos, after the pictures in the prompt.
        audios: Paths of sounds, after the videos.
    """

    task: str
    images: tuple[Image.Image, ...]
    text: str
    answer: str
    choices: tuple[str, ...]
    videos: tuple[str | Path, ...] = ()
    audios: tuple[str | Path, ...] = ()

    @property
    def media(self) -> dict[str, tuple]:
        """What the question is about, as keyword arguments of :func:`dialogue`."""
        return {"images": self.images, "videos": self.videos, "audios": self.audios}


def read(source: str | Path, kind: str, known: Iterable[str] = ()) -> list[dict[str, Any]]:
    """Read the records of a file or a ``datasets`` folder, each with its ``_number`` and without what is None in it.

    Args:
        source: a ``.jsonl`` or ``.json`` file or a folder.
        kind: what it should be, such as ``"benchmark"``, to say so in an error.
        known: names that would have worked instead, to be offered in an error.

    Raises:
        UserError: if it does not exist, is empty, or is not in one of the known formats.
    """
    path = Path(source)
    if path.is_dir():
        import datasets

        try:
            found = datasets.load_from_disk(str(path))
        except (FileNotFoundError, ValueError) as error:
            raise UserError(f"{path} is not a folder saved by datasets: {error}") from error
        if isinstance(found, datasets.DatasetDict):
            raise UserError(f"{path} holds the splits {', '.join(found)}; give the folder of one of them.")
        records = list(found)
    elif not path.is_file():
        raise unknown(kind, str(source), known, "A .jsonl or .json file or a datasets folder works too.")
    else:
        try:
            text = path.read_text(encoding="utf-8")
            records = (
                json.loads(text)
                if path.suffix == ".json"
                else [json.loads(line) for line in text.splitlines() if line.strip()]
            )
        except ValueError as error:
            raise UserError(f"{path} is not readable as {path.suffix or 'JSONL'}: {error}") from error
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise UserError(f"{path} must hold a list of records.")
    if not records:
        raise UserError(f"The {kind} {path} is empty.")
    # datasets fills the columns that a record does not have with None
    return [
        {**{key: value for key, value in record.items() if value is not None}, "_number": number}
        for number, record in enumerate(records)
    ]


@contextlib.contextmanager
def numbered(number: int) -> Iterator[None]:
    """Prefix errors with the number of the record they are in."""
    try:
        yield
    except UserError as error:
        raise UserError(f"Record {number}: {error}") from error


def named(record: dict[str, Any]) -> dict[str, list]:
    """List the media that a record names, by kind: what stands under ``images``, or under ``image``, and so on."""
    given = {kind: record.get(f"{kind}s") or record.get(kind, []) for kind in KINDS}
    return {kind: each if isinstance(each, list) else [each] for kind, each in given.items()}


def opened(record: dict[str, Any], source: Path) -> dict[str, tuple]:
    """Open the pictures of a record, and look whether its videos and sounds can be read.

    Args:
        record: from :func:`read`.
        source: where it was read from; paths are relative to the file, or to the folder itself.

    Returns:
        ``{"images": pictures, "videos": paths, "audios": paths}``, a tuple of each.

    Raises:
        UserError: naming record and file, if one is missing or cannot be read.
    """
    folder = source if source.is_dir() else source.parent

    def open_one(kind: str, given: Any) -> Any:
        if kind == "image":
            return given if isinstance(given, Image.Image) else open_image(folder / given, record["_number"])
        if not isinstance(given, str):
            raise UserError(f"Record {record['_number']}: {kind} is the path of a file, not {type(given).__name__}.")
        path = str(folder / given)
        with numbered(record["_number"]):
            media.check(path, kind)
        return path

    return {f"{kind}s": tuple(open_one(kind, each) for each in given) for kind, given in named(record).items()}


def open_image(path: Path, number: int) -> Image.Image:
    """Read a picture.

    Raises:
        UserError: naming record and file, if it is missing or corrupt.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except FileNotFoundError as error:
        raise UserError(f"Record {number}: there is no image {path}.") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"Record {number}: {path} is not a readable image: {error}") from error


def conversation(record: dict[str, Any], source: Path) -> list[dict[str, Any]] | str:
    """Convert a record to chat messages with their media, or to plain text.

    Raises:
        UserError: naming the record, if it has none of the known shapes or a picture, video or sound cannot be read.
    """
    where = f"{source}, record {record['_number']}"
    found = opened(record, source)
    if "conversations" in record:
        try:
            turns = [
                ({"human": "user", "gpt": "assistant"}[turn["from"]], turn["value"]) for turn in record["conversations"]
            ]
        except (KeyError, TypeError) as error:
            raise UserError(
                f"{where}: turns are {{'from': 'human' or 'gpt', 'value': text}}; {error} is not."
            ) from error
        for kind in KINDS:
            marks, given = sum(text.count(f"<{kind}>") for _, text in turns), len(found[f"{kind}s"])
            if marks != given:
                raise UserError(f"{where}: its text has {marks} <{kind}> marks for {given} {kind}s.")
        rest = {kind: iter(found[f"{kind}s"]) for kind in KINDS}
        return [{"role": role, "content": _parts(text, rest)} for role, text in turns]
    if {"question", "answer"} <= record.keys():
        return dialogue(str(record["question"]), str(record["answer"]), **found)
    if "text" in record and not any(found.values()):
        return str(record["text"])
    raise UserError(
        f"{where}: needs 'conversations', or 'question' and 'answer', or 'text'; it has "
        f"{', '.join(key for key in record if key != '_number') or 'nothing'}."
    )


def _parts(text: str, rest: dict) -> list[dict[str, Any]]:
    """Split a turn at its marks, and put the next of each kind in their place."""
    parts: list[dict[str, Any]] = []
    for place, piece in enumerate(_MARK.split(text)):
        if place % 2:
            parts.append({"type": piece, piece: next(rest[piece])})
        elif piece.strip():
            parts.append({"type": "text", "text": piece.strip()})
    return parts


def dialogue(
    question: str,
    answer: str | None,
    images: Sequence[Image.Image] = (),
    videos: Sequence[str | Path] = (),
    audios: Sequence[str | Path] = (),
) -> list[dict[str, Any]]:
    """Write one question as chat messages, pictures, videos and sounds first, with its answer unless that is None."""
    given = zip(KINDS, (images, videos, audios))
    content: list[dict[str, Any]] = [{"type": kind, kind: each} for kind, every in given for each in every]
    messages = [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]
    if answer is not None:
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    return messages


def parts_of(messages: list[dict[str, Any]] | str) -> list[dict[str, Any]]:
    """List the parts of chat messages in order; plain text has none."""
    contents = [] if isinstance(messages, str) else [message["content"] for message in messages]
    return [part for content in contents if not isinstance(content, str) for part in content]


def media_of(messages: list[dict[str, Any]] | str) -> dict[str, list]:
    """List the media of chat messages in order, ``{"images": ..., "videos": ..., "audios": ...}``."""
    return {f"{kind}s": [part[kind] for part in parts_of(messages) if part["type"] == kind] for kind in KINDS}
