"""Files of samples and questions: records, the pictures, videos and sounds beside their words, and their messages."""

import contextlib
import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from tamp import media
from tamp.errors import UserError, unknown

KINDS = ("image", "video", "audio")
"""What can stand beside text: keys of a record, as are their plurals, and marks in LLaVA's turns, such as ``<image>``."""

_MARK = re.compile(f"<({'|'.join(KINDS)})>")
_ORIENTATION = 0x0112  # EXIF's tag


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question about one picture or a pair, or about videos or sounds.

    Blanks around the answer and the choices are taken off.

    Attributes:
        task: What kind of question it is; scores are averaged per task.
        images: The pictures, in prompt order; questions about the same pictures share the tuple itself.
        text: The question.
        answer: The right answer; one of `choices`.
        choices: The answers that make sense; chance is one over their number. None at all for an open question.
        videos: Paths of videos, after the pictures in the prompt.
        audios: Paths of sounds, after the videos.
        marked: Whether the text has a mark such as ``<image>`` where each of them stands.

    Raises:
        UserError: if the answer or a choice is empty or is not text, a choice occurs twice, or the answer is not among the
            choices.
    """

    task: str
    images: tuple[Image.Image, ...]
    text: str
    answer: str
    choices: tuple[str, ...]
    videos: tuple[str | Path, ...] = ()
    audios: tuple[str | Path, ...] = ()
    marked: bool = False

    def __post_init__(self):
        answer = _text(self.answer, "An answer").strip()
        choices = tuple(_text(choice, "A choice").strip() for choice in self.choices)
        object.__setattr__(self, "answer", answer)
        object.__setattr__(self, "choices", choices)
        if not answer:
            raise UserError("The answer is empty: write what the model should say.")
        if "" in choices:
            raise UserError(
                f"Choice {choices.index('') + 1} of {len(choices)} is empty: write it out, or leave it out."
            )
        if twice := next((choice for choice in choices if choices.count(choice) > 1), None):
            raise UserError(f"The choice {twice!r} occurs twice: leave one out.")
        if choices and answer not in choices:
            raise UserError(
                f"The answer {answer!r} is not among its choices ({', '.join(map(repr, choices))}): write it as one of them."
            )

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
        records = _read_folder(path)
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


def _read_folder(path: Path) -> list[dict[str, Any]]:
    """Read a folder saved by ``datasets``; pictures in a column of their own stay undecoded, for :func:`picture`."""
    try:
        import datasets
    except ImportError as error:
        raise UserError(f"{path} is a folder, and reading one needs datasets: pip install datasets.") from error
    try:
        found = datasets.load_from_disk(str(path))
        if isinstance(found, datasets.DatasetDict):
            raise UserError(f"{path} holds the splits {', '.join(found)}; give the folder of one of them.")
        for name, feature in found.features.items():
            if isinstance(feature, datasets.Image):
                found = found.cast_column(name, datasets.Image(decode=False))
        return list(found)
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a folder saved by datasets: {error}") from error


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
            return picture(given, folder)
        if not isinstance(given, str):
            raise UserError(f"{kind} is the path of a file, not {type(given).__name__}.")
        path = str(folder / given)
        media.check(path, kind)
        return path

    with numbered(record["_number"]):
        return {f"{kind}s": tuple(open_one(kind, each) for each in given) for kind, given in named(record).items()}


def picture(given: Any, folder: str | Path = "") -> Image.Image:
    """Return a picture as every part of tamp sees it: upright, opaque, in 8-bit RGB.

    A picture gives the same pixels as a file, as its bytes and as a PIL object. The orientation in its EXIF data is applied.
    What is transparent shows white. Grey levels of 16 bits, and those that PIL keeps as whole (I) or real numbers (F), are
    scaled to 8 bits, see :func:`_grey`. Every other mode (CMYK, palette, 1 bit, ...) is converted by PIL. For opaque 8-bit
    pictures these are the pixels of transformers' ``load_image``, for transparent ones those of its image processors.

    Args:
        given: the path of a file, a PIL picture, or ``{"bytes": ..., "path": ...}``, as ``datasets`` keeps one.
        folder: what the path is relative to.

    Raises:
        UserError: if it is none of these, or is missing, damaged or larger than PIL opens.
    """
    source, name = given, "The picture"
    if isinstance(given, dict):
        source = given["bytes"] if isinstance(given.get("bytes"), bytes) else given.get("path")
    if isinstance(source, str | Path):
        source = name = Path(folder) / source
    elif isinstance(source, bytes):
        source = io.BytesIO(source)
    elif not isinstance(source, Image.Image):
        kind = type(given).__name__
        raise UserError(f"An image is the path of a file, a PIL picture or {{'bytes': ..., 'path': ...}}, not {kind}.")
    try:
        if isinstance(source, Image.Image):
            return _rgb(source)
        with Image.open(source) as image:
            return _rgb(image)
    except FileNotFoundError as error:
        raise UserError(f"There is no image {name}.") from error
    except Exception as error:  # damaged files make PIL raise a dozen kinds
        raise UserError(f"{name} is not a readable image: {error}") from error


def _rgb(image: Image.Image) -> Image.Image:
    """Turn a picture upright and convert it to RGB; one that is both already is returned as it is."""
    image.load()  # TIFF's orientation is applied here
    if image.getexif().get(_ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _grey(image).convert("RGB")
    if image.has_transparency_data:
        opaque = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", opaque.size, "white"), opaque).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _grey(image: Image.Image) -> Image.Image:
    """Scale grey levels to 8 bits.

    Of 16 bits the upper 8 are kept, which is what PIL keeps of 16-bit colour. Levels in the modes I and F count from the
    smallest of these ranges that holds them all: 0 to 1 (F alone), 0 to 255, 0 to 65535, which counts as 16 bits. What fits
    into none of them is stretched: the lowest level becomes black, the highest white.

    Args:
        image: in the mode I, F or one of I;16.

    Returns:
        The picture in the mode L.

    Raises:
        ValueError: if a level is not finite.
    """
    levels = np.asarray(image).astype(np.float64)  # (H, W)
    if not np.isfinite(levels).all():
        raise ValueError("it has levels that are not finite")
    low, high = levels.min(), levels.max()
    ranges = {"I": (255, 65535), "F": (1, 255, 65535)}.get(image.mode, (65535,))
    top = next((top for top in ranges if low >= 0 and high <= top), None)
    if top is None:
        grey = np.rint((levels - low) / (high - low) * 255) if high > low else np.zeros_like(levels)
    else:
        grey = levels // 256 if top == 65535 else np.rint(levels * (255 / top))
    if isinstance(see_through := image.info.get("transparency"), int):
        grey[levels == see_through] = 255
    return Image.fromarray(grey.astype(np.uint8))


def _text(value: Any, what: str) -> str:
    """Return a text, or a number as text.

    Raises:
        UserError: if it is neither.
    """
    if isinstance(value, bool) or not isinstance(value, str | Real):
        raise UserError(f"{what} is a text or a number, not {value!r:.60}; write it as text.")
    return str(value)


def _answer(record: dict[str, Any]) -> str:
    """Return the answer of a record: of several people's, in a list, the most frequent, the first of those in a tie.

    Raises:
        UserError: if it is neither text nor number nor a list of them.
    """
    given = record["answer"] if "answer" in record else record["answers"]
    if not isinstance(given, list | tuple):
        return _text(given, "An answer")
    each = [one.get("answer") if isinstance(one, dict) else one for one in given]  # VQA v2 writes who gave it beside it
    answers = [text for one in each if (text := _text(one, "An answer").strip())]
    return max(answers, key=answers.count, default="")


def question(record: dict[str, Any], task: str, found: dict[str, tuple]) -> Question:
    """Make the question of a record.

    Args:
        record: from :func:`read`, with ``question``, ``answer`` or ``answers`` (a text, a number, or a list of these: the
            most frequent counts, the first in a tie) and perhaps ``task`` and ``choices``.
        task: what kind of question it is, if the record does not say.
        found: its media, from :func:`opened`.

    Raises:
        UserError: naming the record, if something is missing, empty, of another type, or the answer is not a choice.
    """
    with numbered(record["_number"]):
        if "question" not in record or not {"answer", "answers"} & record.keys():
            raise UserError("It needs 'question' and 'answer'.")
        choices = record.get("choices", [])
        if not isinstance(choices, list | tuple):
            raise UserError(f"'choices' is a list of answers, not {choices!r:.60}.")
        return Question(
            task=str(record.get("task", task)),
            text=_text(record["question"], "A question"),
            answer=_answer(record),
            choices=tuple(choices),
            **found,
        )


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
                ({"human": "user", "gpt": "assistant"}[turn["from"]], _text(turn["value"], "What a turn says"))
                for turn in record["conversations"]
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
    if "question" in record and {"answer", "answers"} & record.keys():
        asked = question(record, "", found)
        return dialogue(asked.text, asked.answer, **asked.media)
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
    marked: bool = False,
) -> list[dict[str, Any]]:
    """Write one question as chat messages, with its answer unless that is None.

    Pictures, videos and sounds come first, or if ``marked`` where the question has marks such as ``<image>``.
    """
    given = dict(zip(KINDS, (images, videos, audios)))
    if marked:
        content = _parts(question, {kind: iter(every) for kind, every in given.items()})
    else:
        content = [{"type": kind, kind: each} for kind, every in given.items() for each in every]
        content.append({"type": "text", "text": question})
    messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
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
