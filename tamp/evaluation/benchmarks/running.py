"""Running a published benchmark: records are read, answered and recorded batch by batch, and a stopped run goes on."""

import hashlib
import importlib.util
import json
import logging
import tempfile
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from PIL import Image
from torch import nn
from tqdm.auto import tqdm

from tamp import conversations, files, media, onloading, passes, records
from tamp.errors import UserError, unknown, whole
from tamp.evaluation import scoring
from tamp.evaluation.benchmarks import rules
from tamp.evaluation.benchmarks.asking import Asked
from tamp.evaluation.benchmarks.generating import Generator
from tamp.evaluation.benchmarks.source import Source
from tamp.evaluation.benchmarks.table import TABLE, Protocol, Published
from tamp.records import Question

log = logging.getLogger(__name__)


def row(name: str) -> Published:
    """Return a benchmark's row of the table.

    Raises:
        UserError: if there is none of this name.
    """
    if name not in TABLE:
        raise unknown("published benchmark", name, TABLE)
    return TABLE[name]


def check(processor, name: str, protocol: str | None = None, frames: int | None = None) -> Protocol:
    """Check, before any work, that a model takes what a benchmark asks about.

    Returns:
        The protocol: the one that is named, or the benchmark's first.

    Raises:
        UserError: if the benchmark or the protocol does not exist, or the model's processor does not take its media.
    """
    known = row(name)
    protocol = protocol or next(iter(known.protocols))
    if protocol not in known.protocols:
        raise unknown(f"protocol of {known.title}", protocol, known.protocols)
    if frames is not None and known.kind != "video":
        raise UserError(f"frames={frames} has no effect on {known.title}, which shows no videos: leave it out.")
    if frames is not None and (whole(frames) or 0) < 1:
        raise UserError(f"frames is a whole number of at least 1, not {frames!r}.")
    kind = "image" if known.kind == "video" and frames else known.kind
    conversations.render(processor, records.dialogue("?", None, **{f"{kind}s": ("",)}), prompt=True)
    return known.protocols[protocol]


def chosen(names: Sequence[str], protocol: str | None) -> dict[str, str | None]:
    """Return the protocol of each benchmark: the one that was asked for where it has it, else None, its first.

    Raises:
        UserError: if no benchmark has the one that was asked for.
    """
    known = {each: None for name in names for each in row(name).protocols}
    if protocol and known and protocol not in known:
        raise unknown("protocol", protocol, known)
    return {name: protocol if protocol in TABLE[name].protocols else None for name in names}


def parts(known: Published, limit: int | None) -> list[tuple[str | None, int | None]]:
    """Divide a limit among a benchmark's configurations: ``(configuration, how many)``, the first ones get one more."""
    names = known.configurations or (None,)
    if limit is None:
        return [(name, None) for name in names]
    each, more = divmod(limit, len(names))
    return [(name, each + (number < more)) for number, name in enumerate(names) if each + (number < more)]


def answers(
    model: nn.Module,
    processor,
    name: str,
    limit: int | None = None,
    *,
    data: str | Path | None = None,
    protocol: str | None = None,
    batch_size: int = 8,
    recorded: str | Path | None = None,
    likelihood: bool = True,
    frames: int | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Answer the questions of a published benchmark.

    Args:
        model: the model.
        processor: its processor.
        name: of the benchmark, a key of :data:`tamp.evaluation.benchmarks.TABLE`.
        limit: how many questions, divided evenly among its configurations; None for all.
        data: a local copy of its repository; None to read from the hub.
        protocol: prompts and rules, a key of the row's ``protocols``; the first by default.
        batch_size: questions answered at once; their media are all that is in memory.
        recorded: JSONL file to record every answer in. If it exists, the run goes on after what it holds. When the run is
            finished, the table is also written beside it as parquet, if pyarrow is installed.
        likelihood: also compare the options by likelihood.
        frames: show so many frames of a video as pictures, for a model that takes no videos.
        progress: show a bar, with the time that is left.

    Returns:
        A row per question, in order: configuration, number (in it), task, said, read (the letter that was read, "" if none),
        score, empty, unparsable, choice, choice_correct, nll, chance. Its ``attrs`` hold ``benchmark``, ``protocol``, and
        ``missing``, the questions left out because a file is missing.

    Raises:
        UserError: if there is no such benchmark or protocol, records or media cannot be read, the model does not take them,
            or the file holds answers of another run.
    """
    known = row(name)
    if limit is not None and (whole(limit) or 0) < 1:
        raise UserError(f"A benchmark needs at least one question, not {limit}.")
    if (whole(batch_size) or 0) < 1:
        raise UserError(f"A batch needs at least one question, not {batch_size}.")
    chosen = check(processor, name, protocol, frames)
    limit, batch_size, frames = (each if each is None else whole(each) for each in (limit, batch_size, frames))
    protocol = protocol or next(iter(known.protocols))
    source = Source(name, known, data)
    shares = parts(known, limit)
    for configuration, _ in shares:
        source.tables(configuration)
    head = {"benchmark": name, "protocol": protocol, "likelihood": likelihood, "frames": frames}
    head |= {"model": fingerprint(model), "source": source.said}
    done = _read(Path(recorded), head) if recorded else []
    finished = {(line["configuration"], line["number"]) for line in done}
    run = _Run(model, processor, known, chosen, source, likelihood, frames)
    counts = [source.count(configuration) for configuration, _ in shares] if progress and not limit else [None]
    total = limit or (known.size if None in counts else sum(counts))
    bar = tqdm(total=total, desc=name, disable=not progress)
    made = list(done)
    with bar, passes.undisturbed(model), onloading.Place(model).whole():
        for batch in _batches(source, shares, finished, batch_size, bar):
            with tempfile.TemporaryDirectory(prefix="tamp-") as scratch:
                lines = run(batch, Path(scratch))
            made += lines
            if recorded:
                _append(Path(recorded), [line for line in lines if "missing" not in line])
            bar.update(len(batch))
    order = {configuration: place for place, (configuration, _) in enumerate(shares)}
    asked = dict(shares)
    made = [
        line
        for line in made
        if line["configuration"] in asked
        and (asked[line["configuration"]] is None or line["number"] < asked[line["configuration"]])
    ]
    made.sort(key=lambda line: (order[line["configuration"]], line["number"]))
    table = _table(made, known, name, protocol)
    if recorded and importlib.util.find_spec("pyarrow"):
        with files.whole(Path(recorded).with_suffix(".parquet")) as part:
            table.to_parquet(part, engine="pyarrow", index=False)
    return table


def _table(made: list[dict], known: Published, name: str, protocol: str) -> pd.DataFrame:
    """Make the table of :func:`answers`.

    Raises:
        UserError: if every question lacks its media.
    """
    missing = [line["missing"] for line in made if line.get("missing")]
    kept = [{key: value for key, value in line.items() if key != "missing"} for line in made if not line.get("missing")]
    if missing:
        log.warning(
            "%s: %d of %d questions are left out because a file is missing: %s",
            known.title,
            len(missing),
            len(made),
            ", ".join(dict.fromkeys(missing[:5])) + (", ..." if len(missing) > 5 else ""),
        )
    if not kept:
        why = f"all {len(missing)} lack their media, such as {missing[0]}" if missing else "there are none"
        raise UserError(f"No question of {known.title} can be asked: {why}. Complete the copy that data= names.")
    table = pd.DataFrame(kept)
    for column in ("choice_correct", "nll", "chance"):
        table[column] = pd.to_numeric(table[column]).astype(float)  # NaN where there are no options
    table.attrs.update(benchmark=name, protocol=protocol, missing=missing, scored="generation")
    return table


def _batches(
    source: Source, shares: list, finished: set, size: int, bar
) -> Iterator[list[tuple[str | None, dict[str, Any]]]]:
    """Yield what is left to ask, batch by batch, with its configuration."""

    def left() -> Iterator[tuple[str | None, dict]]:
        for configuration, first in shares:
            have = {number for name, number in finished if name == configuration}
            if first is not None and have >= set(range(first)):  # nothing of it is read again
                bar.update(first)
                continue
            for record in source.records(configuration, first):
                if record["_number"] in have:
                    bar.update(1)
                else:
                    yield configuration, record

    rest = left()
    while batch := list(islice(rest, size)):
        yield batch


class _Run:
    """A model with a benchmark, that answers one batch after another."""

    def __init__(
        self,
        model: nn.Module,
        processor,
        known: Published,
        protocol: Protocol,
        source: Source,
        likelihood: bool,
        frames: int | None,
    ):
        self.model, self.processor, self.known, self.protocol = model, processor, known, protocol
        self.source, self.likelihood, self.frames = source, likelihood, frames
        self.generate = Generator(model, processor, known.longest)
        self.proofs: dict = {}

    def __call__(self, batch: Sequence[tuple[str | None, dict]], scratch: Path) -> list[dict]:
        """Answer a batch and return what is recorded of it."""
        lines, asked, questions = [], [], []
        for configuration, record in batch:
            line = {"configuration": configuration, "number": record["_number"]}
            where = f"{self.known.title}{f', {configuration}' if configuration else ''}, record {record['_number']}"
            try:
                one = self.known.read(record, configuration or "")
                given, missing = self._media(one, scratch / f"{len(lines)}")
            except (UserError, KeyError, TypeError, ValueError, AttributeError) as error:
                said = f"it has no column {error}" if isinstance(error, KeyError) else str(error)
                raise UserError(f"{where}: {said}") from error
            lines.append(line | {"missing": missing} if missing else line)
            if not missing:
                asked.append((line, one))
                questions.append(self._question(one, given))
        if questions:
            messages = [records.dialogue(each.text, None, **each.media, marked=each.marked) for each in questions]
            prompts = [conversations.process(self.processor, each, prompt=True) for each in messages]
            compared = self._compared(questions)
            for (line, one), said, scores in zip(asked, self.generate(prompts), compared):
                line |= {"task": one.task or self.known.title, "said": said, **self._scored(one, said), **scores}
        return lines

    def _media(self, one: Asked, scratch: Path) -> tuple[dict[str, tuple], str]:
        """Open a question's media; the name of the first file that is missing, or ""."""
        for given in (*one.images, *one.audios):
            if self._held(given) is None:
                return {}, str((given or {}).get("path") or "a file without a name")
        images = [records.picture(self._held(image)) for image in one.images]
        videos = [(name, self.source.video(name)) for name in one.videos]
        if missing := next((name for name, path in videos if path is None), ""):
            return {}, missing
        if self.frames:
            images += [Image.fromarray(frame) for _, path in videos for frame in media.read_video(path, self.frames)]
            videos = []
        audios = []
        for number, sound in enumerate(map(self._held, one.audios)):
            if isinstance(sound, bytes):
                path = scratch.with_name(f"{scratch.name}-{number}{_ending(sound)}")
                path.write_bytes(sound)
                sound = path
            audios.append(str(sound))
        return {"images": tuple(images), "videos": tuple(str(path) for _, path in videos), "audios": tuple(audios)}, ""

    def _held(self, given: dict | None) -> bytes | Path | None:
        """Return the bytes of a picture or sound, or its file in a local copy; None if there is neither."""
        given = given or {}
        if isinstance(given.get("bytes"), bytes):
            return given["bytes"]
        path = Path(self.source.root) / (given.get("path") or "")
        return path if path.is_file() else None

    def _question(self, one: Asked, given: dict[str, tuple]) -> Question:
        """Write a question with its options as answers."""
        known = rules.letters(one.options)
        written = {
            letter: self.protocol.choice.format(letter=letter, option=option, lower=option.lower())
            for letter, option in zip(known, one.options)
        }
        usual = max(one.answers, key=one.answers.count) if one.answers else written[one.right]
        text, marks = self.protocol.prompt(one), [f"<{kind}>" for kind in records.KINDS]
        marked = any(text.count(mark) for mark in marks)
        if marked and any(text.count(mark) != len(every) for mark, every in zip(marks, given.values())):
            marked = False  # they do not say where each stands: all of them come first
            for mark in marks:
                text = text.replace(mark, "")
        choices = tuple(written.values())
        return Question(task=one.task, text=text, answer=usual, choices=choices, marked=marked, **given)

    def _scored(self, one: Asked, said: str) -> dict:
        """Score a generated answer by the benchmark's rule."""
        empty = not said
        if not one.options:
            usual = max(one.answers, key=one.answers.count)
            score = self.protocol.rule(said, one.answers)
            return {"read": said, "right": usual, "score": score, "empty": empty, "unparsable": False}
        letter = None if empty else self.protocol.rule(said, one.options)
        unparsable = letter is None and not empty
        score = float(letter == one.right)
        return {"read": letter or "", "right": one.right, "score": score, "empty": empty, "unparsable": unparsable}

    def _compared(self, questions: list[Question]) -> list[dict]:
        """Compare the options of every question by likelihood."""
        names = ("choice", "choice_correct", "nll", "chance")
        if not self.likelihood:
            return [{"choice": "", "choice_correct": None, "nll": None, "chance": _chance(each)} for each in questions]
        ready = scoring.prepare(self.processor, questions)
        ready.proofs = self.proofs  # what is known of the model holds for every batch
        found = scoring.answers(self.model, self.processor, ready, progress=False)
        rows = found[list(names)].to_dict("records")
        return [{name: None if value != value else value for name, value in each.items()} for each in rows]


def _chance(question: Question) -> float | None:
    return 1 / len(question.choices) if question.choices else None


def _ending(sound: bytes) -> str:
    """Return the ending of a sound file from its first bytes; PyAV reads everything but wav and flac."""
    return {b"RIFF": ".wav", b"fLaC": ".flac", b"OggS": ".ogg"}.get(sound[:4], ".mp3")


def fingerprint(model: nn.Module) -> str:
    """Return what tells two models apart, pruned versions too: a hash over some numbers of every parameter."""
    digest = hashlib.sha256(type(model).__name__.encode())
    for name, parameter in sorted(model.named_parameters()):
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        if parameter.device.type != "meta" and parameter.numel():
            flat = parameter.detach().reshape(-1)
            some = flat[:: max(1, flat.numel() // 256)][:512].to("cpu", torch.float32)
            digest.update(some.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _read(path: Path, head: dict) -> list[dict]:
    """Read the answers recorded so far, and start the file if there is none; a last line that broke off is dropped.

    Raises:
        UserError: if the file holds something else, or answers of another run, or cannot be written.
    """
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(head) + "\n", encoding="utf-8")
            return []
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"Answers cannot be recorded in {path}: {error}. Choose another file.") from error
    whole = text[: text.rfind("\n") + 1]
    try:
        first, *lines = [json.loads(line) for line in whole.split("\n") if line]
        different = next((name for name in head if first.get(name) != head[name]), None)
        lines = [line for line in lines if line["number"] >= 0 and "configuration" in line]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} exists and does not hold recorded answers; choose another file.") from error
    if different:
        raise UserError(
            f"{path} holds answers with {different}={first.get(different)!r}, not {head[different]!r}: choose another file."
        )
    if whole != text:
        path.write_text(whole, encoding="utf-8")
    return lines


def _append(path: Path, lines: list[dict]) -> None:
    """Record a batch."""
    text = "".join(json.dumps(line) + "\n" for line in lines)
    with path.open("a", encoding="utf-8") as file:
        file.write(text)
