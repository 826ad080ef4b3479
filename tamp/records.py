"""Files of samples and questions: records, the pictures, videos and sounds beside their words, and their messages."""

import math
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from PIL import Image

from tamp import media
from tamp.errors import UserError
from tamp.pixels import picture
from tamp.reading import Place, absent, place_of, read, told

KINDS = ("image", "video", "audio")
"""What can stand beside text: keys of a record, as are their plurals, and marks in LLaVA's turns, such as ``<image>``."""

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
"""Who speaks in a turn, in LLaVA's words and in those of chat templates."""

__all__ = [
    "KINDS",
    "Question",
    "conversation",
    "dialogue",
    "media_of",
    "named",
    "opened",
    "parts_of",
    "picture",
    "question",
    "read",
]

_MARK = re.compile(f"<({'|'.join(KINDS)})>")


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question about one picture or a pair, or about videos or sounds.

    Blanks around the answer and the choices are taken off.

    Attributes:
        task: What kind of question it is; scores are averaged per task.
        images: The pictures, in prompt order; questions about the same pictures share the sequence itself.
        text: The question.
        answer: The right answer; one of `choices`.
        choices: The answers that make sense; chance is one over their number. None at all for an open question.
        videos: Paths of videos, after the pictures in the prompt.
        audios: Paths of sounds, after the videos.
        marked: Whether the text has a mark such as ``<image>`` where each of them stands.
        place: Where it was read, for errors; None for a question that was made.

    Raises:
        UserError: if the answer or a choice is empty or is not text, a choice occurs twice, or the answer is not among the
            choices.
    """

    task: str
    images: Sequence[Image.Image]
    text: str
    answer: str
    choices: tuple[str, ...]
    videos: tuple[str | Path, ...] = ()
    audios: tuple[str | Path, ...] = ()
    marked: bool = False
    place: Place | None = field(default=None, compare=False, repr=False)

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
            raise UserError(f"The choice {twice[:80]!r} occurs twice: leave one out.")
        if choices and answer not in choices:
            raise UserError(
                f"The answer {answer[:80]!r} is not among its choices ({', '.join(map(repr, choices)):.300}): write it as "
                "one of them."
            )

    @property
    def media(self) -> dict[str, tuple]:
        """What the question is about, as keyword arguments of :func:`dialogue`."""
        return {"images": self.images, "videos": self.videos, "audios": self.audios}


def named(record: dict[str, Any]) -> dict[str, list]:
    """List the media that a record names, by kind: what stands under ``images``, or under ``image``, and so on.

    An empty text, and a list of nothing but these and None, stands for no media.

    Raises:
        UserError: if some of several are missing.
    """
    found = {}
    for kind in KINDS:
        for given in (record.get(f"{kind}s"), record.get(kind)):
            each = list(given) if isinstance(given, list | tuple) else [given]
            there = [one for one in each if not (absent(one) or (isinstance(one, str) and not one.strip()))]
            if there and len(there) < len(each):
                raise UserError(f"of its {len(each)} {kind}s, {len(each) - len(there)} are empty.")
            found[kind] = there
            if there:
                break
    return found


def opened(record: dict[str, Any], source: Any) -> dict[str, tuple]:
    """Open the pictures of a record, and look whether its videos and sounds can be read.

    Args:
        record: from :func:`read`.
        source: where it was read from; paths are relative to the file, or to the folder itself.

    Returns:
        ``{"images": pictures, "videos": paths, "audios": paths}``, a tuple of each.

    Raises:
        UserError: naming record and file, if one is missing or cannot be read.
    """
    folder = _folder(source)

    def open_one(kind: str, given: Any) -> Any:
        if kind == "image":
            return picture(given, folder)
        if isinstance(given, dict) and isinstance(given.get("path"), str):  # as datasets keeps one
            given = given["path"]
        if not isinstance(given, str | Path):
            raise UserError(f"{kind} is the path of a file, not {type(given).__name__}.")
        path = str(folder / given)
        media.check(path, kind)
        return path

    with told(place_of(record, source)):
        return {f"{kind}s": tuple(open_one(kind, each) for each in given) for kind, given in named(record).items()}


def _folder(source: Any) -> Path:
    """Return what paths in records are relative to."""
    if not isinstance(source, str | Path):
        return Path()
    place = Path(os.path.expanduser(source))
    return place if os.path.isdir(place) else place.parent


class Pictures(Sequence):
    """Pictures that are opened anew at every look, so that the questions of a large file do not hold all of theirs.

    Attributes:
        given: what :func:`tamp.pixels.picture` opens; empty texts in place of bytes that are read anew.
        folder: what paths are relative to.
        again: reads the record anew, where it stands in a folder and its pictures are bytes in it.
    """

    def __init__(self, given: Iterable[Any], folder: Path, again: Callable[[], dict[str, Any]] | None = None):
        self.given, self.folder, self.again = tuple(given), folder, again
        if again is not None:
            self.given = ("",) * len(self.given)

    def __len__(self) -> int:
        return len(self.given)

    def __getitem__(self, place: int) -> Image.Image:
        given = self.given if self.again is None else named(self.again())["image"]
        return picture(given[place], self.folder)


def checked(record: dict[str, Any], source: Any, again: Callable[[], dict] | None = None) -> dict[str, Sequence]:
    """Open the media of a record to see whether they can be read, and return them with its pictures closed again.

    Args:
        record: from :func:`read`.
        source: where it was read from.
        again: reads it anew, from a folder in which pictures may be bytes, which are then not kept.
    """
    found = opened(record, source)
    given = named(record)["image"]
    held = any(isinstance(each, bytes | dict) for each in given)
    return found | {"images": Pictures(given, _folder(source), again if held else None) if given else ()}


def _text(value: Any, what: str) -> str:
    """Return a text, or a number as text: a whole number without decimals.

    Raises:
        UserError: if it is neither, is not finite, or holds half a character.
    """
    if isinstance(value, bool) or not isinstance(value, str | Real):
        raise UserError(f"{what} is a text or a number, not {value!r:.60}; write it as text.")
    if isinstance(value, Integral):
        return str(int(value))
    if isinstance(value, Real):
        if not math.isfinite(value):
            raise UserError(f"{what} is {value}: write a text or a finite number.")
        return str(int(value) if value == int(value) else value)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{what} holds half a character, {value[error.start]!a}: write it anew.") from error
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


def question(record: dict[str, Any], task: str, found: dict[str, tuple], source: Any = ()) -> Question:
    """Make the question of a record.

    Args:
        record: from :func:`read`, with ``question``, ``answer`` or ``answers`` (a text, a number, or a list of these: the
            most frequent counts, the first in a tie) and perhaps ``task`` and ``choices``.
        task: what kind of question it is, if the record does not say.
        found: its media, from :func:`opened`.
        source: where it was read from.

    Raises:
        UserError: naming the record, if something is missing, empty, of another type, or the answer is not a choice.
    """
    place = place_of(record, source)
    with told(place):
        if "question" not in record or not {"answer", "answers"} & record.keys():
            raise UserError("It needs 'question' and 'answer'.")
        choices = record.get("choices", [])
        if not isinstance(choices, list | tuple):
            raise UserError(f"'choices' is a list of answers, not {choices!r:.60}.")
        return Question(
            task=_text(record.get("task", task), "A task"),
            text=_unmarked(_text(record["question"], "A question"), found),
            answer=_answer(record),
            choices=tuple(choices),
            place=place,
            **found,
        )


def _unmarked(text: str, found: dict[str, tuple]) -> str:
    """Take the marks off the beginning of a question, where its media go anyway.

    Raises:
        UserError: if it has marks for its media elsewhere, or others than media.
    """
    lead = re.match(rf"(?:\s*{_MARK.pattern})*", text).group()
    expected = [kind for kind in KINDS for _ in found[f"{kind}s"]]
    if lead and _MARK.findall(lead) == expected:
        text = text.removeprefix(lead).lstrip()
        found = {}
    for kind in KINDS:
        marks, given = text.count(f"<{kind}>"), len(found.get(f"{kind}s", ()))
        if marks and (given or _lost(text, kind)):
            raise UserError(f"its text has {marks} <{kind}> marks for {given} {kind}s: media come before a question.")
    return text


def _lost(text: str, kind: str) -> bool:
    """Return whether a mark stands where only one for media can: in a line of marks, or for a picture at the beginning."""
    lines = [line for line in text.split("\n") if f"<{kind}>" in line and not _MARK.sub("", line).strip()]
    return bool(lines) or (kind == "image" and text.lstrip().startswith("<image>"))


def conversation(record: dict[str, Any], source: Any) -> list[dict[str, Any]] | str:
    """Convert a record to chat messages with their media, or to plain text.

    Raises:
        UserError: naming the record, if it has none of the known shapes or a picture, video or sound cannot be read.
    """
    found = opened(record, source)
    with told(place_of(record, source)):
        if given := record.get("conversations") or record.get("messages"):
            return _placed(_turns(given), found)
        if "question" in record and {"answer", "answers"} & record.keys():
            asked = question(record, "", found, source)
            return dialogue(asked.text, asked.answer, **asked.media)
        if "text" in record and not any(found.values()):
            if not (text := _text(record["text"], "A text")).strip():
                raise UserError("its text is empty: write one, or leave it out.")
            return text
        raise UserError(
            "it needs 'conversations', or 'question' and 'answer', or 'text'; it has "
            f"{', '.join(str(key) for key in record if key != '_number') or 'nothing'}."
        )


def _turns(given: Any) -> list[tuple[str, str]]:
    """Read the turns of a conversation, (role, text) each."""
    if isinstance(given, dict) and all(isinstance(each, list) for each in given.values()):  # as datasets kept them
        given = [dict(zip(given, row)) for row in zip(*given.values())]
    if not isinstance(given, list | tuple):
        raise UserError(f"a conversation is a list of turns, not {given!r:.60}.")
    turns = []
    for turn in given:
        pair = [
            next((turn[key] for key in keys if turn.get(key) is not None), None) if isinstance(turn, dict) else turn
            for keys in (("from", "role"), ("value", "content"))
        ]
        role = ROLES.get(pair[0].strip().lower()) if isinstance(pair[0], str) else None
        if role is None:
            raise UserError(
                f"turns are {{'from': 'human' or 'gpt', 'value': text}}; {pair[0]!r:.60} is not. 'system' is a role too."
            )
        turns.append((role, _text(pair[1], "What a turn says")))
    return turns


def _placed(turns: list[tuple[str, str]], found: dict[str, tuple]) -> list[dict[str, Any]]:
    """Put media in the place of their marks; a mark in an answer, or in prose without such media, is text.

    Raises:
        UserError: if marks and media differ in number.
    """
    if found["videos"] and not found["images"] and not any("<video>" in text for _, text in turns):
        turns = [(role, text.replace("<image>", "<video>")) for role, text in turns]  # as LLaVA-Video writes it
    asked = "\n".join(text for role, text in turns if role != "assistant")
    everything = "\n".join(text for _, text in turns)
    live: dict[str, set[str]] = {"user": set(), "assistant": set()}
    for kind in KINDS:
        given = len(found[f"{kind}s"])
        marks = asked.count(f"<{kind}>")
        if given and marks != given and everything.count(f"<{kind}>") == given:
            live["assistant"].add(kind)
        elif marks != given and (given or any(_lost(text, kind) for role, text in turns if role != "assistant")):
            raise UserError(f"its text has {marks} <{kind}> marks for {given} {kind}s.")
        if given:
            live["user"].add(kind)
    rest = {kind: iter(found[f"{kind}s"]) for kind in KINDS}
    parts = [_parts(text, live["assistant" if role == "assistant" else "user"], rest) for role, text in turns]
    if not any(parts):
        raise UserError("its conversation is empty.")
    return [{"role": role, "content": each} for (role, _), each in zip(turns, parts)]


def _parts(text: str, kinds: set[str], rest: dict) -> list[dict[str, Any]]:
    """Split a turn at its marks of these kinds, and put the next of each kind in their place."""
    parts: list[dict[str, Any]] = []
    pieces = re.split(f"<({'|'.join(kinds)})>", text) if kinds else [text]
    for place, piece in enumerate(pieces):
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
        live = {kind for kind, every in given.items() if every}
        content = _parts(question, live, {kind: iter(given[kind]) for kind in live})
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
