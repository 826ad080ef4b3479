"""Where samples come from: shipped sets and files become conversations, conversations become processor outputs."""

import json
import logging
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tamp.checkpoint import MANIFEST
from tamp.errors import UserError, unknown
from tamp.shipped import facts, pictures
from tamp.shipped.pictures import Question

SETS = (*pictures.SIZES, "facts")
"""Shipped sets, any number of fresh questions from a seed: about pictures in the words of the mini model, about larger
pictures in plain English, and about facts, without pictures."""

OWN_SETS = {"mini-llava-next": "mini-vqa", "smol-llava-next": "smol-vqa", "smollm2-135m-instruct": "facts"}
"""Model to the shipped set made for it."""

log = logging.getLogger(__name__)


def calibration_set(source: str | Path | Sequence[dict], processor, n: int = 128, seed: int = 42) -> list[dict]:
    """Make calibration samples: conversations with their answers, as the processor's outputs.

    Args:
        source: a shipped set, one of ``SETS``; a ``.jsonl`` or ``.json`` file; a folder saved by ``datasets``; or a list of
            processor outputs, which is taken as it is. A record of a file holds either ``conversations`` (LLaVA's format,
            turns ``{"from": "human" | "gpt", "value": ...}``) or ``question`` and ``answer``, with ``image`` or ``images``
            beside them (paths relative to the file), or just ``text``.
        processor: of the model to prune.
        n: how many samples to draw; all of them if there are fewer.
        seed: of the draw; shipped sets make other questions for another seed.

    Returns:
        A list of processor outputs with tensors, one conversation each.

    Raises:
        UserError: if there is no such set, it is empty, or a record, an image or ``n`` is not right.
    """
    if n < 1:
        raise UserError(f"A calibration set needs at least one sample, not n={n}.")
    if not isinstance(source, str | Path):
        samples = list(source)[:n]
        if not samples:
            raise UserError("The calibration set is empty.")
        return samples
    if source in SETS:
        asked = _shipped(source, n, seed, "calibration")
        records = [dialogue(question.text, question.answer, question.images) for question in asked]
    else:
        made = read(source)
        order = np.random.default_rng([zlib.crc32(b"calibration"), seed]).permutation(len(made))[:n]
        if len(made) < n:
            log.warning("%s holds %d samples, fewer than the %d asked for: all are used", source, len(made), n)
        records = [conversation(made[i], Path(source)) for i in order]
    return [process(processor, messages) for messages in records]


def questions(source: str | Path, n: int | None = None, seed: int = 0) -> list[Question]:
    """Make or read benchmark questions.

    Args:
        source: a shipped set, or a ``.jsonl`` or ``.json`` file whose records hold ``question``, ``answer`` and, if they
            like, ``task``, ``choices`` and ``image`` or ``images``.
        n: how many; for a file None means all of it, for a shipped set 1000.
        seed: of shipped sets; a file's questions come in its own order.

    Raises:
        UserError: if there is no such benchmark, or a record or image is not right.
    """
    if n is not None and n < 1:
        raise UserError(f"A benchmark needs at least one question, not {n}.")
    if source in SETS:
        return _shipped(source, n or 1000, seed, "evaluation")
    made, loaded = [], {}
    for record in read(source, kind="benchmark")[:n]:
        if not {"question", "answer"} <= record.keys():
            raise UserError(f"{source}, record {record['_number']}: a benchmark record needs 'question' and 'answer'.")
        paths = tuple(_paths(record))
        if paths not in loaded:  # questions about one picture share it
            loaded[paths] = tuple(open_image(Path(source).parent / path, record["_number"]) for path in paths)
        answer = str(record["answer"])
        choices = tuple(str(choice) for choice in record.get("choices", ()))
        if choices and answer not in choices:
            raise UserError(f"{source}, record {record['_number']}: the answer {answer!r} is not among its choices.")
        made.append(
            Question(
                task=str(record.get("task", Path(source).stem)),
                images=loaded[paths],
                text=str(record["question"]),
                answer=answer,
                choices=choices,
            )
        )
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
    if name == "facts":
        return facts.questions(n, seed=seed, stream=stream)
    return pictures.questions(n, seed=seed, stream=stream, name=name)


def read(source: str | Path, kind: str = "calibration set") -> list[dict[str, Any]]:
    """Read the records of a file or a ``datasets`` folder, each with its ``_number``.

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
        raise unknown(kind, str(source), SETS, "A .jsonl or .json file or a datasets folder works too.")
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
    return [{**record, "_number": number} for number, record in enumerate(records)]


def conversation(record: dict[str, Any], source: Path) -> list[dict[str, Any]] | str:
    """Turn a record into chat messages with their pictures, or into plain text.

    Raises:
        UserError: naming the record, if it has none of the known shapes or a picture is missing or corrupt.
    """
    where = f"{source}, record {record['_number']}"
    folder = source if source.is_dir() else source.parent
    media = [
        picture if isinstance(picture, Image.Image) else open_image(folder / picture, record["_number"])
        for picture in _paths(record)
    ]
    if "conversations" in record:
        try:
            turns = [
                ({"human": "user", "gpt": "assistant"}[turn["from"]], turn["value"]) for turn in record["conversations"]
            ]
        except (KeyError, TypeError) as error:
            raise UserError(
                f"{where}: turns are {{'from': 'human' or 'gpt', 'value': text}}; {error} is not."
            ) from error
        marks = sum(text.count("<image>") for _, text in turns)
        if marks != len(media):
            raise UserError(f"{where}: its text has {marks} <image> marks for {len(media)} images.")
        rest = iter(media)
        return [{"role": role, "content": _parts(text, rest)} for role, text in turns]
    if {"question", "answer"} <= record.keys():
        return dialogue(str(record["question"]), str(record["answer"]), media)
    if "text" in record and not media:
        return str(record["text"])
    raise UserError(
        f"{where}: needs 'conversations', or 'question' and 'answer', or 'text'; it has "
        f"{', '.join(key for key in record if key != '_number') or 'nothing'}."
    )


def _parts(text: str, media) -> list[dict[str, Any]]:
    """Split a turn at its ``<image>`` marks."""
    parts: list[dict[str, Any]] = []
    for position, piece in enumerate(text.split("<image>")):
        if position:
            parts.append({"type": "image", "image": next(media)})
        if piece.strip():
            parts.append({"type": "text", "text": piece.strip()})
    return parts


def dialogue(question: str, answer: str | None, images: Sequence[Image.Image]) -> list[dict[str, Any]]:
    """Write one question as chat messages, pictures first, with its answer unless that is None."""
    content: list[dict[str, Any]] = [{"type": "image", "image": image} for image in images]
    messages = [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]
    if answer is not None:
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    return messages


def _paths(record: dict[str, Any]) -> list:
    single = record.get("image")
    return list(record.get("images") or ([] if single is None else [single]))


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


def render(processor, messages: list[dict[str, Any]] | str, prompt: bool = False) -> str:
    """Write messages as the text the model was trained on, by the processor's own chat template.

    Args:
        processor: a processor, or a tokenizer for a text-only model.
        messages: chat messages, or plain text, which stays as it is.
        prompt: end where the answer begins.

    Raises:
        UserError: if the processor has no chat template, or the messages have pictures and it takes none.
    """
    if isinstance(messages, str):
        return messages
    if getattr(processor, "chat_template", None) is None:
        raise UserError(
            f"{type(processor).__name__} has no chat template to write conversations with; "
            "set processor.chat_template, or use records with plain 'text'."
        )
    if not hasattr(processor, "tokenizer"):  # tokenizers take plain strings as content
        if any(part["type"] == "image" for message in messages for part in message["content"]):
            raise UserError("The model takes text only and the conversation has a picture.")
        messages = [
            {**message, "content": "\n".join(part["text"] for part in message["content"])} for message in messages
        ]
    return processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)


def process(processor, messages: list[dict[str, Any]] | str, prompt: bool = False) -> dict:
    """Turn one conversation into the processor's output, tensors with a batch of one."""
    text = render(processor, messages, prompt)
    images = [
        part["image"]
        for message in messages
        if not isinstance(messages, str)
        for part in message["content"]
        if part["type"] == "image"
    ]
    return encode(processor, text, images)


def encode(processor, text: str, images: Sequence[Image.Image] = ()) -> dict:
    """Call the processor on one rendered text, without a second begin-of-text token."""
    tokenizer = getattr(processor, "tokenizer", processor)
    twice = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)
    settings = {"return_tensors": "pt", "add_special_tokens": not twice}
    if not hasattr(processor, "tokenizer"):
        return processor([text], **settings)
    return processor(text=[text], images=list(images) or None, **settings)
