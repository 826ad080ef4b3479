"""Where samples come from: shipped sets and files become conversations, conversations become processor outputs."""

import importlib
import inspect
import itertools
import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image

from tamp import calibration_sources, records
from tamp.checkpoint import MANIFEST
from tamp.errors import UserError
from tamp.records import Question, dialogue
from tamp.zoo import MODELS

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

log = logging.getLogger(__name__)


def calibration_set(
    source: str | Path | Mapping[str, float] | Sequence[dict],
    processor,
    n: int = 128,
    seed: int = 42,
    *,
    filter: Mapping[str, str] | None = None,
    balance: Sequence[str] = (),
    min_tokens: int = 0,
    max_tokens: int | None = None,
    media: str | Path | None = None,
) -> list[dict]:
    """Make calibration samples: conversations with their answers, as the processor's outputs.

    Args:
        source: a shipped set, one of ``SETS``; a data set of the hub (``"lmms-lab/LLaVA-NeXT-Data"``), which is streamed,
            or the folder of a local copy; a setting of the paper (``calibration_sources.PAPER``); a ``.jsonl`` or
            ``.json`` file, or a folder of these; a folder saved by ``datasets``; a mix of these, ``{source: share}``; or a
            list of processor outputs, which is taken as it is. A record holds either ``conversations`` (LLaVA's format,
            turns ``{"from": "human" | "gpt", "value": ...}``, with a mark such as ``<video>`` where something belongs) or
            ``question`` and ``answer``, as in :func:`questions`; beside them ``image``, ``video`` and ``audio``, or
            ``images``, ``videos`` and ``audios`` (paths relative to the file; for pictures what :func:`tamp.records.picture`
            takes), or ``video_id``, the name of a video below ``media``. Or it holds just ``text``.
        processor: of the model to prune.
        n: how many samples to draw; all of them if there are fewer. A mix has exactly its shares of them, by largest
            remainder.
        seed: of the draw; shipped sets make other questions for another seed.
        filter: column to the value that a record must have there; ``*`` stands for anything.
        balance: kinds of records of which there are to be equally many, see :func:`tamp.calibration_sources.kind`.
        min_tokens: leave out samples that are shorter.
        max_tokens: leave out samples that are longer.
        media: folder that holds pictures, videos and sounds, if they do not lie beside the records.

    Returns:
        A list of processor outputs with tensors, one conversation each.

    Raises:
        UserError: if there is no such set, it is empty, a record, a picture, a video, a sound, ``n``, ``seed`` or another
            option is not right, or the model does not take what is in it.
    """
    if n < 1:
        raise UserError(f"A calibration set needs at least one sample, not n={n}.")
    if seed < 0:
        raise UserError(f"A seed is a whole number from 0 on, not {seed}.")
    if max_tokens is not None and max_tokens < max(min_tokens, 1):
        raise UserError(f"No sample has at least {min_tokens} and at most {max_tokens} tokens: change one of them.")
    chosen = {"filter": filter, "balance": balance, "media": media}
    limits = {"min_tokens": min_tokens, "max_tokens": max_tokens}
    if isinstance(source, Mapping):
        counts = calibration_sources.shares(source, n)
        made = {
            name: calibration_set(name, processor, count, seed, **chosen, **limits)
            for name, count in counts.items()
            if count
        }
        return calibration_sources.interleave(made, seed)
    ready = not isinstance(source, str | Path)
    if (ready or source in SETS) and (
        idle := next((name for name, given in {**chosen, **limits}.items() if given), "")
    ):
        raise UserError(f"{idle} has no effect on {'samples' if ready else 'a shipped set'}: leave it out.")
    if ready:
        samples = list(source)[:n]
        if not samples:
            raise UserError("The calibration set is empty.")
        return samples
    if source in SETS:
        asked = _shipped(source, n, seed, "calibration")
        return [process(processor, dialogue(each.text, each.answer, **each.media)) for each in asked]
    drawn = calibration_sources.drawn(source, n, seed, SETS, **chosen)
    made = ((record["_number"], records.conversation(record, where)) for record, where in drawn)
    if not min_tokens and max_tokens is None:
        made = list(itertools.islice(made, n))
        for number, messages in made:
            with records.numbered(number):
                render(processor, messages)  # which refuses what the model does not take, before a video is decoded
    samples = []
    for number, messages in made:
        with records.numbered(number):
            sample = process(processor, messages)
        if min_tokens <= sample["input_ids"].shape[1] <= (max_tokens or math.inf):
            samples.append(sample)
        if len(samples) == n:
            return samples
    if not samples:
        raise UserError(
            f"{source} holds no sample of {min_tokens} to {max_tokens or 'any number of'} tokens: change these."
        )
    log.warning("%s holds %d samples, fewer than the %d asked for: all are used", source, len(samples), n)
    return samples


def questions(source: str | Path, n: int | None = None, seed: int = 0) -> list[Question]:
    """Make or read benchmark questions.

    Args:
        source: a shipped set, a ``.jsonl`` or ``.json`` file, or a folder saved by ``datasets``. Records hold ``question``,
            ``answer`` and, if they like, ``task``, ``choices``, and ``image``, ``video`` and ``audio``, or several of each:
            ``images`` and so on. Several answers to one question, in a list (``answer`` or ``answers``), count as the most
            frequent of them, the first in a tie. Blanks around answers and choices are taken off.
        n: how many; for a file None means all of it, for a shipped set 1000.
        seed: of shipped sets; a file's questions come in its own order.

    Raises:
        UserError: if there is no such benchmark, or a record, picture, video or sound is not right: naming the record, if
            its answer or a choice is empty, a choice occurs twice, or the answer is not among the choices.
    """
    if n is not None and n < 1:
        raise UserError(f"A benchmark needs at least one question, not {n}.")
    if source in SETS:
        return _shipped(source, n or 1000, seed, "evaluation")
    made, opened = [], {}
    for record in records.read(source, "benchmark", SETS)[:n]:
        names = str(records.named(record))
        if names not in opened:  # questions about one picture share it
            opened[names] = records.opened(record, Path(source))
        made.append(records.question(record, Path(source).stem, opened[names]))
    return made


def own_set(model: str | Path, given: str | None, option: str) -> str:
    """Return the set that was given, or else the one made for a model or for what a saved folder was pruned from.

    Raises:
        UserError: naming the option to give one with, if there is none.
    """
    if given is not None:
        return given
    name, manifest = str(model), Path(model) / MANIFEST
    if manifest.is_file():
        name = (json.loads(manifest.read_text())["report"] or {}).get("model", name)
    if name not in OWN_SETS:
        raise UserError(
            f"No set of questions is made for {str(model)!r}: name one with {option} ({', '.join(SETS)}, or a file)."
        )
    return OWN_SETS[name]


def _shipped(name: str, n: int, seed: int, stream: str) -> list[Question]:
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
        return messages
    if getattr(processor, "chat_template", None) is None:
        raise UserError(
            f"{type(processor).__name__} has no chat template to write conversations with; "
            "set processor.chat_template, or use records with plain 'text'."
        )
    for kind in {part["type"] for part in records.parts_of(messages)}.intersection(records.KINDS):
        _argument(processor, f"{kind}s")
    if not hasattr(processor, "tokenizer"):  # tokenizers take plain strings as content
        messages = [
            {**message, "content": "\n".join(part["text"] for part in message["content"])} for message in messages
        ]
    try:
        text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
    except jinja2.TemplateError as error:
        raise UserError(f"The chat template does not take the conversation: {error}.") from error
    if any(not isinstance(message["content"], str) and str(message["content"]) in text for message in messages):
        raise UserError(
            "The chat template is made for plain texts and writes a message's parts as a Python list: set "
            "processor.chat_template to one that goes through the parts."
        )
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
        return processor(text=[text], **media, **settings)
    except UserError:
        raise
    except Exception as error:  # whatever a processor raises for a picture or a setting that it does not expect
        raise UserError(f"{type(processor).__name__} does not take the conversation: {error}") from error


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
