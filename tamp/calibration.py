"""Calibration sets: conversations with their answers, from any source, as the processor's outputs."""

import itertools
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tamp import calibration_sources, reading, records
from tamp.conversations import SETS, process, render, shipped
from tamp.errors import UserError, whole
from tamp.reading import Place, Skipped, place_of, told

log = logging.getLogger(__name__)


class Samples(list):
    """Calibration samples.

    Attributes:
        skipped: the records that could not be used, :class:`tamp.reading.Skipped` each; empty unless they are to be skipped.
    """

    skipped: Sequence[Skipped] = ()


def calibration_set(
    source: str | Path | Mapping[str, float] | Sequence[dict],
    processor,
    n: int = 128,
    seed: int = 42,
    on_error: str = "raise",
    *,
    filter: Mapping[str, str] | None = None,
    balance: Sequence[str] = (),
    min_tokens: int = 0,
    max_tokens: int | None = None,
    media: str | Path | None = None,
) -> Samples:
    """Make calibration samples: conversations with their answers, as the processor's outputs.

    Args:
        source: a shipped set, one of ``SETS``; a data set of the hub (``"lmms-lab/LLaVA-NeXT-Data"``), which is streamed,
            or the folder of a local copy; a setting of the paper (``calibration_sources.PAPER``); a ``.jsonl`` or
            ``.json`` file, or a folder of these; a folder saved by ``datasets``; a mix of these, ``{source: share}``; a
            list of records; or a list of processor outputs, which is taken as it is. A record holds either
            ``conversations`` (LLaVA's format, turns ``{"from": "human" | "gpt" | "system", "value": ...}``, with a mark such
            as ``<video>`` where something belongs; ``user`` and ``assistant``, ``role`` and ``content`` are known too) or
            ``question`` and ``answer``, as in :func:`tamp.conversations.questions`; beside them ``image``, ``video`` and
            ``audio``, or ``images``, ``videos`` and ``audios`` (paths relative to the file; for pictures what
            :func:`tamp.pixels.picture` takes), or ``video_id``, the name of a video below ``media``. Or it holds just
            ``text``. A mark in an answer, or in prose without such media, is text.
        processor: of the model to prune.
        n: how many samples to draw; all of them if there are fewer. A mix has exactly its shares of them, by largest
            remainder.
        seed: of the draw; shipped sets make other questions for another seed.
        on_error: what to do with a record that cannot be used: ``"raise"`` its error, or ``"skip"`` it, draw another, and
            warn at the end.
        filter: column to the value that a record must have there; ``*`` stands for anything.
        balance: kinds of records of which there are to be equally many, see :func:`tamp.calibration_sources.kind`.
        min_tokens: leave out samples that are shorter.
        max_tokens: leave out samples that are longer.
        media: folder that holds pictures, videos and sounds, if they do not lie beside the records.

    Returns:
        A list of processor outputs with tensors, one conversation each; its ``skipped`` names the records left out.

    Raises:
        UserError: if there is no such set, it is empty, a record, a picture, a video, a sound, ``n``, ``seed`` or another
            option is not right, or the model does not take what is in it.
    """
    skipped = reading.skips(on_error)
    if (whole(n) or 0) < 1:
        raise UserError(f"A calibration set needs at least one sample, not n={n}.")
    if whole(seed) is None or seed < 0:
        raise UserError(f"A seed is a whole number from 0 on, not {seed}.")
    n, seed = whole(n), whole(seed)
    for name, number in (("min_tokens", min_tokens), ("max_tokens", max_tokens)):
        if not (number is None and name == "max_tokens") and (whole(number) is None or number < 0):
            raise UserError(f"{name} is a whole number of tokens, not {number!r}.")
    if max_tokens is not None and max_tokens < max(min_tokens, 1):
        raise UserError(f"No sample has at least {min_tokens} and at most {max_tokens} tokens: change one of them.")
    parts = calibration_sources.Shares(balance, n)
    chosen = {"filter": filter, "balance": balance, "media": media}
    limits = {"min_tokens": min_tokens, "max_tokens": max_tokens}
    if isinstance(source, Mapping):
        return _mixed(source, processor, n, seed, on_error, **chosen, **limits)
    ours = isinstance(source, str) and source in SETS
    ready = False
    if not isinstance(source, str | Path):
        source = list(source)
        if not source:
            raise UserError("The calibration set is empty.")
        ready = all(
            isinstance(each, Mapping) and ("input_ids" in each or not isinstance(each, dict)) for each in source
        )
    given = {**chosen, **limits, "on_error": on_error != "raise"}
    if (ready or ours) and (idle := next((name for name, value in given.items() if value), "")):
        raise UserError(f"{idle} has no effect on {'samples' if ready else 'a shipped set'}: leave it out.")
    if ready:
        return Samples(source[:n])
    if ours:
        asked = shipped(source, n, seed, "calibration")
        return Samples(process(processor, records.dialogue(each.text, each.answer, **each.media)) for each in asked)
    drawn = calibration_sources.drawn(source, seed, SETS, filter, parts, media, skipped)
    usable = _usable(drawn, source, processor, skipped, parts)
    samples = Samples()
    # many at a time, to look at all before one is decoded; kinds one by one if some may be left out, so that none is missed
    alone = balance and (skipped is not None or min_tokens or max_tokens)
    while part := list(itertools.islice(usable, min(1, n - len(samples)) if alone else n - len(samples))):
        for place, record, messages in part:
            before = len(samples)
            with told(place, skipped):
                sample = process(processor, messages)
                if min_tokens <= sample["input_ids"].shape[1] <= (max_tokens or math.inf):
                    samples.append(sample)
            if len(samples) == before:
                parts.give_back(record)
    reading.warn(skipped, "sample", len(samples))
    source = reading.said(source)
    parts.check(source)
    if not samples:
        raise UserError(
            f"{source} holds no sample of {min_tokens} to {max_tokens or 'any number of'} tokens: change these."
        )
    if len(samples) < n:
        log.warning("%s holds %d samples, fewer than the %d asked for: all are used", source, len(samples), n)
    samples.skipped = tuple(skipped or ())
    return samples


def _mixed(parts: Mapping[str, float], processor, n: int, seed: int, on_error: str, **options) -> Samples:
    """Make the samples of every part of a mix, and put them into one order."""
    counts = calibration_sources.shares(parts, n)
    made = {
        name: calibration_set(name, processor, count, seed, "raise" if name in SETS else on_error, **options)
        for name, count in counts.items()
        if count
    }
    samples = Samples(calibration_sources.interleave(made, seed))
    samples.skipped = tuple(each for part in made.values() for each in part.skipped)
    return samples


def _usable(
    drawn: Iterator[tuple[dict, Any]], source: Any, processor, skipped: list[Skipped] | None, parts
) -> Iterator[tuple[Place, dict, list[dict] | str]]:
    """Yield the records whose media are there and whose conversation the model takes, before a video is decoded."""
    for record, where in drawn:
        place = place_of(record, source)
        taken = []
        with told(place, skipped):
            messages = records.conversation(record, where)
            render(processor, messages)
            taken = [(place, record, messages)]
        yield from taken
        if not taken:
            parts.give_back(record)
