"""Where samples come from: shipped sets and files become conversations, conversations become processor outputs."""

import ctypes
import hashlib
import importlib
import inspect
import logging
import os
import threading
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image

from tamp import records
from tamp.checkpoint import MANIFEST, read_manifest
from tamp.errors import UserError, whole
from tamp.reading import Saved, Skipped, place_of, told
from tamp.records import Question, dialogue
from tamp.zoo import MODELS

__all__ = ["OWN_SETS", "SETS", "dialogue", "own_set", "process", "questions", "render", "shipped"]

SETS = {"mini-vqa": "pictures", "smol-vqa": "pictures", "facts": "facts", "smol-avqa": "clips"}
"""Shipped sets and the modules of :mod:`tamp.worlds` that make them, any number of fresh questions from a seed: about
pictures in the words of the mini model, about larger pictures in plain English, about facts, without pictures, and about
clips with sound, written into the cache."""

OWN_SETS = {name: known.questions for name, known in MODELS.items()}
"""Model to the shipped set made for it."""

_PARTS = {
    "images": ("image_processor",),
    "videos": ("video_processor",),
    "audios": ("audio_processor", "feature_extractor"),
}
"""What a processor of transformers has if it takes them."""

TEMPLATE_SECONDS = 60
"""How long a chat template may take for one conversation; usual ones take a millisecond."""

log = logging.getLogger(__name__)


def questions(
    source: str | Path | Sequence[dict], n: int | None = None, seed: int = 0, skipped: list[Skipped] | None = None
) -> list[Question]:
    """Make or read benchmark questions.

    Args:
        source: a shipped set, a ``.jsonl`` or ``.json`` file, a folder saved by ``datasets``, or a list of records. Records
            hold ``question``, ``answer`` and, if they like, ``task``, ``choices``, and ``image``, ``video`` and ``audio``,
            or several of each: ``images`` and so on. Several answers to one question, in a list (``answer`` or
            ``answers``), count as the most frequent of them, the first in a tie. Blanks around answers and choices are
            taken off; a number counts as text, a whole one without decimals.
        n: how many; for a file None means all of it, for a shipped set 1000.
        seed: of shipped sets; a file's questions come in its own order.
        skipped: where records that cannot be used are noted; without it they raise.

    Raises:
        UserError: if there is no such benchmark, or a record, picture, video or sound is not right: naming the record, if
            its answer or a choice is empty, a choice occurs twice, or the answer is not among the choices.
    """
    if n is not None and (whole(n) or 0) < 1:
        raise UserError(f"A benchmark needs at least one question, not {n}.")
    if whole(seed) is None or seed < 0:
        raise UserError(f"A seed is a whole number from 0 on, not {seed}.")
    if isinstance(source, str | Path) and source in SETS:
        return shipped(source, 1000 if n is None else whole(n), whole(seed), "evaluation")
    stem = Path(source).stem if isinstance(source, str | Path) else "questions"
    made, opened = [], {}
    found = records.read(source, "benchmark", SETS, skipped)
    for record in found:
        with told(place_of(record, source), skipped):
            names = tuple((kind, *map(_name, each)) for kind, each in records.named(record).items())
            if names not in opened:  # questions about one picture share it
                again = partial(found.__getitem__, record["_number"]) if isinstance(found, Saved) else None
                opened[names] = records.checked(record, source, again)
            made.append(records.question(record, stem, opened[names], source))
        if len(made) == n:  # before another record is read
            break
    return made


def _name(given: Any) -> Hashable:
    """Return what tells a picture, video or sound from others: a path, a digest of bytes, or the object itself."""
    if isinstance(given, dict):
        return tuple((key, _name(value)) for key, value in given.items())
    if isinstance(given, bytes):
        return hashlib.sha256(given).digest()
    return given if isinstance(given, str | Path) else id(given)


def own_set(model: str | Path, given: str | None, option: str) -> str:
    """Return the set that was given, or else the one made for a model or for what a saved folder was pruned from.

    Raises:
        UserError: naming the option to give one with, if there is none.
    """
    if given is not None:
        return given
    name = str(model)
    if os.path.isfile(Path(model) / MANIFEST):
        name = (read_manifest(model)["report"] or {"model": name})["model"]
    if name not in OWN_SETS:
        raise UserError(
            f"No set of questions is made for {str(model)!r}: name one with {option} ({', '.join(SETS)}, or a file)."
        )
    return OWN_SETS[name]


def shipped(name: str, n: int, seed: int, stream: str) -> list[Question]:
    """Make n questions of a shipped set; those for calibration and for evaluation, its streams, have nothing in common."""
    world = importlib.import_module(f"tamp.worlds.{SETS[name]}")
    which = {"name": name} if SETS[name] == "pictures" else {}
    return world.questions(n, seed=seed, stream=stream, **which)


def render(processor, messages: list[dict[str, Any]] | str, prompt: bool = False) -> str:
    """Write messages as the text the model was trained on, by the processor's own chat template.

    Args:
        processor: a processor, or a tokenizer for a text-only model.
        messages: chat messages, or plain text, which stays as it is.
        prompt: end where the answer begins.

    Raises:
        UserError: if the processor has no chat template, or it or its template does not take what is in the messages.
    """
    if isinstance(messages, str):
        return _literal(processor, messages)
    if getattr(processor, "chat_template", None) is None:
        raise UserError(
            f"{type(processor).__name__} has no chat template to write conversations with; "
            "set processor.chat_template, or use records with plain 'text'."
        )
    for kind in {part["type"] for part in records.parts_of(messages)}.intersection(records.KINDS):
        _argument(processor, f"{kind}s")
    messages = [{**message, "content": _content(processor, message["content"])} for message in messages]
    try:
        text = _ended(lambda: processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt))
    except Exception as error:  # what a template raises is up to whoever wrote it
        said = str(error) if isinstance(error, jinja2.TemplateError) else f"{type(error).__name__}: {error}"
        raise UserError(f"The chat template does not take the conversation: {said:.300}.") from error
    if any(not isinstance(message["content"], str) and str(message["content"]) in text for message in messages):
        raise UserError(
            "The chat template is made for plain texts and writes a message's parts as a Python list: set "
            "processor.chat_template to one that goes through the parts."
        )
    return text


def _ended(call: Callable[[], str]) -> str:
    """Call a template, and stop it if it does not end: its loops are up to whoever wrote it.

    Raises:
        TimeoutError: after ``TEMPLATE_SECONDS``.
    """
    made: list[Any] = []

    def work() -> None:
        try:
            made.extend((call(), None))
        except BaseException as error:
            made.extend((None, error))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(TEMPLATE_SECONDS)
    if thread.is_alive():
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit))
        raise TimeoutError(f"it does not end within {TEMPLATE_SECONDS} s")
    text, error = made
    if error is not None:
        raise error
    return text


def _content(processor, content: str | list[dict]) -> str | list[dict]:
    """Return what a message says, its texts made literal; for a tokenizer as one text, since it takes nothing else."""
    if isinstance(content, str):
        return _literal(processor, content)
    parts = [{**part, "text": _literal(processor, part["text"])} if "text" in part else part for part in content]
    return parts if hasattr(processor, "tokenizer") else "\n".join(part["text"] for part in parts)


def _literal(processor, text: str) -> str:
    """Break up what a processor would take for a picture, video or sound in a text that only mentions it: ``< image>``."""
    tokenizer = getattr(processor, "tokenizer", processor)
    for kind in records.KINDS:
        number = getattr(processor, f"{kind}_token_id", None)
        tokens = {getattr(processor, f"{kind}_token", None)}
        tokens.add(tokenizer.convert_ids_to_tokens(number) if isinstance(number, int) else None)
        for token in map(str, tokens - {None, ""}):
            text = text.replace(token, f"{token[0]} {token[1:]}")
    return text


def process(processor, messages: list[dict[str, Any]] | str, prompt: bool = False) -> dict:
    """Return the processor's output for one conversation, tensors with a batch of one."""
    return encode(processor, render(processor, messages, prompt), **records.media_of(messages))


def encode(
    processor,
    text: str,
    images: Sequence[Image.Image] = (),
    videos: Sequence[str | Path] = (),
    audios: Sequence[str | Path] = (),
) -> dict:
    """Call the processor on one rendered text and its media, without a second begin-of-text token.

    Pictures go through :func:`tamp.records.picture`, whoever made them.

    Raises:
        UserError: if the processor does not take one of the media, or cannot read it.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    twice = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)
    settings = {"return_tensors": "pt", "add_special_tokens": not twice}
    images = [records.picture(image) for image in images]
    given = {"images": images, "videos": videos, "audios": audios}
    media = {_argument(processor, kind): list(every) for kind, every in given.items() if every}
    try:
        made = processor(text=[text], **media, **settings)
    except UserError:
        raise
    except Exception as error:  # whatever a processor raises for a picture or a setting that it does not expect
        raise UserError(f"{type(processor).__name__} does not take the conversation: {error!s:.300}") from error
    if not made["input_ids"].numel():
        raise UserError(f"{type(processor).__name__} makes no token of the conversation: {text[:60]!r}.")
    return made


def _argument(processor, kind: str) -> str:
    """Name a processor's argument for pictures, videos or sounds: some call what is heard ``audios``, others ``audio``.

    Raises:
        UserError: if it does not take them.
    """
    from transformers import ProcessorMixin  # needs a torchvision that fits torch, if there is one

    call = type(processor).__call__
    parameters = inspect.signature(call).parameters
    name = next((name for name in (kind, kind.removesuffix("s")) if name in parameters), None)
    # the call that transformers' processors inherit takes everything and leaves out what they have no part for
    inherited = call is ProcessorMixin.__call__
    if not name or (inherited and not any(hasattr(processor, part) for part in _PARTS[kind])):
        takes = f"no {kind}" if hasattr(processor, "tokenizer") else "text only"
        raise UserError(
            f"The conversation has {kind} and the model takes {takes} (its processor is a {type(processor).__name__}): "
            "use other records, or another model."
        )
    return name
