"""Mutate every kind of file that tamp reads, and class what its reader does: accept, refuse in a sentence, or fail.

python tests/benchmarks/fuzz.py

Writes ``data/results/fuzz.json``. Nothing but a sentence (:class:`tamp.UserError`) may come out of a file that cannot be
used, within a limit of CPU time; what is accepted is checked; and reading must leave the folder as it was.
"""

import argparse
import contextlib
import copy
import io
import json
import logging
import random
import shutil
import signal
import struct
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import recording
import tiny
import tiny_folders
import torch
import transformers
from PIL import Image

import tamp
from tamp import checkpoint, conversations, plans, records, schema, verifying
from tamp.errors import UserError
from tamp.evaluation import results
from tamp.videollama2 import convert

OUTCOMES = ("accepted", "refused", "raised", "hung", "wrong")
LIMIT = 10  # seconds of CPU time
JUNK = (
    None,
    True,
    -1,
    0,
    1.5,
    1e308,
    -1e30,
    float("nan"),
    float("inf"),
    10**30,
    10**400,
    "",
    " ",
    "x",
    "x" * 5000,
    "\ud800",
)
JUNK += ([], {}, [None], [[]], {"a": None}, ["x"] * 300, "\u2028", "a\0b", "<image>", "../..", "/", "2:4", "9" * 30)
DEEP = 100_000  # levels of nesting


class Target(NamedTuple):
    """A kind of file.

    Attributes:
        file: its place in the folder.
        count: how many mutations are tried.
        read: ``(folder) -> what was read``.
        sound: ``(what was read) -> bool``, whether what was accepted holds together.
        binary: it is not text.
    """

    file: str
    count: int
    read: Callable[[Path], Any]
    sound: Callable[[Any], bool] = bool
    binary: bool = False


class Hung(BaseException):
    """The reader used up its time."""


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise :class:`Hung` when a call has used so much CPU time."""

    def stop(*_):
        raise Hung

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """List the paths to all values inside a JSON value."""
    each = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in each:
        yield (*path, key)
        yield from places(inner, (*path, key))


def mutated_value(value: Any, dice: random.Random) -> Any:
    """Change one or two places of a JSON value: another value, a missing, renamed or doubled entry, or a deep nesting."""
    value = copy.deepcopy(value)
    for _ in range(dice.choice((1, 1, 2))):
        every = list(places(value))
        if not every:
            return dice.choice(JUNK)
        *way, key = dice.choice(every)
        parent = value
        for step in way:
            parent = parent[step]
        change = dice.randrange(8)
        if change == 0:
            del parent[key]
        elif change == 1:
            parent[key] = [parent[key]]
        elif change == 2 and isinstance(parent, dict):
            parent[f"{key}{dice.choice(('', 's', '_', 'é'))}x"] = parent.pop(key)
        elif change == 3 and isinstance(parent, list):
            parent.insert(key, copy.deepcopy(parent[key]))
        elif change == 4:
            *other, last = dice.choice(every)
            with contextlib.suppress(KeyError, IndexError, TypeError):
                source = value
                for step in (*other, last):
                    source = source[step]
                parent[key] = copy.deepcopy(source)
        elif change == 5 and isinstance(parent[key], int | float) and not isinstance(parent[key], bool):
            parent[key] = parent[key] * dice.choice((-1, 2, 10, 1.0001)) + dice.choice((0, 1))
        else:
            parent[key] = copy.deepcopy(dice.choice(JUNK))
    return value


def mutated_bytes(data: bytes, dice: random.Random) -> bytes:
    """Cut, flip, insert, double or nest bytes."""
    at = dice.randrange(len(data))
    change = dice.randrange(6)
    if change == 0:
        return data[:at]
    if change == 1:
        return data[:at] + bytes([data[at] ^ (1 << dice.randrange(8))]) + data[at + 1 :]
    if change == 2:
        return data[:at] + dice.randbytes(dice.randrange(1, 9)) + data[at:]
    if change == 3:
        return data[:at] + data[at + dice.randrange(1, 40) :]
    if change == 4:
        return data[:at] + data[at : at + 50] + data[at:]
    return dice.choice((b"", b"[" * DEEP, b'{"a":' * DEEP, b"\xff\xfe" + data, b"\xef\xbb\xbf" + data, data + data))


def mutated(data: bytes, target: Target, dice: random.Random) -> bytes:
    """Mutate a file by the values in it, or by its bytes."""
    if target.binary and target.file.endswith(".safetensors") and dice.random() < 0.6:
        length = struct.unpack("<Q", data[:8])[0]
        header = json.dumps(mutated_value(json.loads(data[8 : 8 + length]), dice)).encode()
        return struct.pack("<Q", len(header) + dice.choice((0, 0, 0, 1, -1, 2**40))) + header + data[8 + length :]
    if target.binary or target.file.endswith(".jinja") or dice.random() < 0.25:
        return mutated_bytes(data, dice)
    if target.file.endswith(".jsonl"):
        lines = [json.loads(line) for line in data.decode().splitlines()]
        return "\n".join(json.dumps(line) for line in _listed(mutated_value(lines, dice))).encode()
    return json.dumps(mutated_value(json.loads(data), dice)).encode()


def _listed(value: Any) -> list:
    return value if isinstance(value, list) else [value]


def tried(target: Target, folder: Path, data: bytes) -> tuple[str, str]:
    """Read one mutated file, and return the outcome and what was said."""
    path = folder / target.file
    path.write_bytes(data)
    before = sorted(each.relative_to(folder) for each in folder.rglob("*"))
    outcome, said = "accepted", ""
    try:
        with limited(LIMIT):
            made = target.read(folder)
        if not target.sound(made):
            outcome, said = "wrong", repr(made)[:200]
    except UserError as error:
        outcome, said = "refused", str(error)
        if not said.strip() or len(said) > 1500:
            outcome = "wrong"
    except Hung:
        outcome = "hung"
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        ours = [each for each in traceback.extract_tb(error.__traceback__) if "/tamp/" in each.filename][-1:]
        said = f"{type(error).__name__}: {str(error)[:150]} at {last.filename}:{last.lineno}, from {ours}"
        outcome = "raised"
    if sorted(each.relative_to(folder) for each in folder.rglob("*")) != before:
        outcome, said = "wrong", "it changed the folder"
    return outcome, said


def run(targets: dict[str, tuple[Target, Path]], seed: int, share: float = 1.0) -> tuple[dict, list[str]]:
    """Try the mutations of every kind.

    Args:
        targets: ``{kind: (target, folder)}``.
        seed: of the mutations.
        share: of the counts.

    Returns:
        ``{kind: {outcome: count}}``, and a line for each input that is neither accepted nor refused.
    """
    counts, faults = {}, []
    for kind, (target, folder) in targets.items():
        dice = random.Random(f"{kind} {seed}")
        whole = (folder / target.file).read_bytes()
        assert tried(target, folder, whole) == ("accepted", ""), (kind, tried(target, folder, whole))
        found = Counter()
        for number in range(max(1, round(target.count * share))):
            outcome, said = tried(target, folder, mutated(whole, target, dice))
            found[outcome] += 1
            if outcome not in ("accepted", "refused"):
                faults.append(f"{kind} {number}: {outcome}: {said}")
        (folder / target.file).write_bytes(whole)
        counts[kind] = {outcome: found[outcome] for outcome in OUTCOMES}
    return counts, faults


def make(root: Path) -> dict[str, tuple[Target, Path]]:
    """Write a folder of whole files for every kind that tamp reads."""
    torch.manual_seed(0)
    text = {**tiny.TEXT, "num_hidden_layers": 1}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**text)).eval()
    folders = {name: root / name for name in ("plan", "manifest", "compare", "sets", "model", "shards")}
    for folder in folders.values():
        folder.mkdir(parents=True)
    tamp.plan(model, None, tamp.Recipe(allocation="uniform"), progress=False).write(folders["plan"] / "plan.json")
    report = tamp.prune(model, None, tamp.Recipe.preset("magnitude"), progress=False)
    checkpoint.save(model, None, root / "saved", report=report)
    shutil.copytree(root / "saved", folders["manifest"], dirs_exist_ok=True)
    model.save_pretrained(folders["model"])
    tokenizer = tiny_folders.tokenizer([])
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    tokenizer.save_pretrained(folders["model"])
    shutil.copy(folders["model"] / "model.safetensors", folders["shards"])
    (folders["compare"] / "grid.json").write_text(json.dumps(_grid()))
    _sets(folders["sets"])
    return {
        name: (target, folders[where])
        for name, where, target in (
            ("plan", "plan", Target("plan.json", 2000, lambda f: plans.Plan.read(f / "plan.json"), _plan_adds_up)),
            ("manifest", "manifest", Target("tamp.json", 1500, verifying.verify)),
            ("comparison", "compare", Target("grid.json", 1500, _read_grid)),
            ("calibration, JSON", "sets", Target("set.json", 1500, _calibrate("set.json"), _are_messages)),
            ("calibration, JSON lines", "sets", Target("set.jsonl", 1500, _calibrate("set.jsonl"), _are_messages)),
            ("benchmark", "sets", Target("asked.jsonl", 1500, _ask, _are_questions)),
            ("picture", "sets", Target("still.png", 800, _picture, binary=True)),
            ("header of weights", "shards", Target("model.safetensors", 500, _header, binary=True)),
            ("weights", "model", Target("model.safetensors", 100, _load, binary=True)),
            ("config.json", "model", Target("config.json", 150, _load)),
            ("tokenizer.json", "model", Target("tokenizer.json", 100, _load)),
            ("tokenizer_config.json", "model", Target("tokenizer_config.json", 100, _load)),
            ("chat template", "model", Target("chat_template.jinja", 100, _render)),
        )
    }


def _grid() -> dict:
    rows = [("dense", 0.0, 0)] + [(method, level, 0) for level in (0.5, "2:4") for method in ("wanda", "tamp")]
    cells = [
        {
            "method": method,
            "level": level,
            "calibration_seed": seed,
            "exact_sparsity": 0.5,
            "seconds": 1.5,
            "peak_memory": 10**6,
            "tokens_kept": None,
            "sparsity_of": {"q_proj": 0.5},
            "mask": "0f" * (results.SAMPLED // 8),
            "n_questions": 12,
            "accuracy": 0.5,
            "choice_accuracy": 0.5,
            "nll": 1.25,
            "tasks": {"colour": 0.5, "count": 0.5},
            "correct": "a5a0",
        }
        for method, level, seed in rows
    ]
    grid = {"model": "m", "cells": cells, "baseline": "wanda"}
    return {**grid, "differences": results.differences(grid, "wanda").to_dict("records")}


def _sets(folder: Path) -> None:
    Image.new("RGB", (12, 9), "teal").save(folder / "still.png")
    made = [
        {
            "id": "a1",
            "image": "still.png",
            "conversations": [
                {"from": "system", "value": "Be brief."},
                {"from": "human", "value": "<image>\nWhat is a <video> tag?"},
                {"from": "gpt", "value": "An <image> of HTML."},
            ],
        },
        {"images": ["still.png", "still.png"], "question": "Alike?", "answer": ["yes", "no", "yes"]},
        {"image": None, "text": "Words."},
    ]
    (folder / "set.json").write_text(json.dumps(made))
    (folder / "set.jsonl").write_text("\n".join(map(json.dumps, made)))
    asked = [
        {"image": "still.png", "question": "How many?", "answer": 3, "choices": [2, 3], "task": "count"},
        {"question": "Really?", "answers": [{"answer": "yes"}, {"answer": "no"}]},
    ]
    (folder / "asked.jsonl").write_text("\n".join(map(json.dumps, asked)))


def _plan_adds_up(plan: plans.Plan) -> bool:
    whole = all(type(drop) is int and 0 <= drop <= size for drop, size in zip(plan.drops, plan.sizes))
    return whole and 0 <= plan.target < 1 and len(set(plan.linears)) == len(plan.sizes) and bool(str(plan))


def _read_grid(folder: Path) -> dict:
    path = folder / "grid.json"
    grid = schema.read(path, {"cells": list}, "a comparison", results.HINT)
    results.check_cells(path, grid["cells"])
    for level in results.levels(grid):
        results.level_name(level), results.tasks(grid, level), results.overlaps(grid, level)
    for method in results.methods(grid):
        for level in results.levels(grid):
            cells = results.cells_of(grid, method, level)
            results.interval(cells, draws=20) if cells else None
    return grid


class _Words:
    """A processor that only renders, by a template that takes pictures."""

    chat_template = ""
    tokenizer = tiny_folders.tokenizer([])
    image_token, image_token_id = "<image>", None
    image_processor = object()

    def __call__(self, text=None, images=None):
        """Take what processors take."""

    def apply_chat_template(self, messages, **_):
        """Write parts one after the other."""
        return "".join(part.get("text", "<image>") for message in messages for part in message["content"])


def _calibrate(name: str) -> Callable[[Path], list]:
    def read(folder: Path) -> list:
        path = folder / name
        return [
            (messages, conversations.render(_Words(), messages))
            for record in records.read(path, "calibration set")
            for messages in [records.conversation(record, path)]
        ]

    return read


def _are_messages(made: list) -> bool:
    for messages, text in made:
        text.encode()
        pictures = len(records.media_of(messages)["images"])
        if text.count("<image>") != pictures or not text:
            return False
    return bool(made)


def _ask(folder: Path) -> list:
    return conversations.questions(folder / "asked.jsonl")


def _are_questions(asked: list) -> bool:
    texts = (text for each in asked for text in (each.text, each.answer, each.task, *each.choices))
    return bool(asked) and all(isinstance(text, str) and text.encode() is not None for text in texts)


def _picture(folder: Path) -> Image.Image:
    return records.picture("still.png", folder)


def _header(folder: Path) -> tuple:
    return convert._header(folder / "model.safetensors")


def _load(folder: Path) -> tuple:
    return tamp.load(folder, device="cpu")


def _render(folder: Path) -> str:
    tokenizer = _render.tokenizer
    tokenizer.chat_template = (folder / "chat_template.jinja").read_bytes().decode(errors="replace")
    return conversations.render(tokenizer, [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]) + " "


_render.tokenizer = _Words.tokenizer


def main(arguments: list[str] | None = None) -> dict:
    """Try all mutations and record the counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--share", type=float, default=1.0, help="of the usual number of inputs")
    parser.add_argument("--out", type=Path, default=recording.RESULTS)
    options = parser.parse_args(arguments)
    logging.disable(logging.WARNING)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as root, contextlib.redirect_stderr(io.StringIO()):
        counts, faults = run(make(Path(root)), options.seed, options.share)
    for line in faults:
        print(line)
    made = {
        "seed": options.seed,
        "limit_seconds": LIMIT,
        "inputs": sum(map(sum, (c.values() for c in counts.values()))),
    }
    made["kinds"] = counts
    recording.write("fuzz", made, options.out)
    return made


def table(recorded: dict) -> str:
    """Write the counts as a table."""
    lines = [
        "| file | inputs | accepted | a sentence | another exception | hung | wrong |",
        "|---|---|---|---|---|---|---|",
    ]
    total = Counter()
    for kind, counts in recorded["kinds"].items():
        total.update(counts)
        lines.append(_row(kind, counts))
    return "\n".join([*lines, _row("all", total)])


def _row(kind: str, counts: dict) -> str:
    return f"| {kind} | {sum(counts.values()):,} | " + " | ".join(f"{counts[name]:,}" for name in OUTCOMES) + " |"


if __name__ == "__main__":
    print(json.dumps(main(), indent=1))
