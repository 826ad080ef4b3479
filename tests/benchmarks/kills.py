"""Kill what writes, with SIGKILL at random moments, look at what is left, and run it again.

python tests/benchmarks/kills.py

Each try is a process of its own, forked from one that has loaded everything, so that the moments fall on the work and not on
imports. After the kill nothing that looks finished may be unfinished. The next run must succeed, give what an uninterrupted
one gives, and leave nothing beside it.
"""

import argparse
import copy
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import recording
import torch
import tqdm.auto

sys.path.append(str(Path(__file__).parents[1]))

import tiny
import tiny_videollama2

import tamp
from tamp import cache, files
from tamp.errors import UserError
from tamp.evaluation import compare
from tamp.loading import load
from tamp.videollama2.convert import convert

MARGIN = 1.1
"""Moments are drawn up to this multiple of the time that an uninterrupted run takes."""


@dataclass(frozen=True)
class Command:
    """Something that writes.

    Attributes:
        what: how a page calls it.
        out: name of what it writes in a folder.
        run: writes into a folder.
        whole: returns what a finished result holds, to compare; raises if it is not whole.
        old: writes what is there before, if anything is.
        once: refuses to replace what is there.
    """

    what: str
    out: str
    run: Callable[[Path], object]
    whole: Callable[[Path], object]
    old: Callable[[Path], object] | None = None
    once: bool = False


def child(run: Callable[[Path], object], folder: Path, moment: float | None = None) -> tuple[int, float]:
    """Run something in a process of its own, and kill it at a moment, seconds after its start.

    Returns:
        (exit status, negative for a signal; seconds it ran).
    """
    start = time.perf_counter()
    pid = os.fork()
    if not pid:
        status = 1
        try:
            for kind in (
                tqdm.tqdm,
                tqdm.auto.tqdm,
            ):  # their locks are shared among forks, and a killed one may hold them
                kind.set_lock(threading.RLock())
            run(folder)
            status = 0
        except UserError:
            status = 2
        finally:
            os._exit(status)
    if moment is not None:
        while time.perf_counter() - start < moment:
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                break
            time.sleep(0.001)
        os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), time.perf_counter() - start


def hidden(folder: Path) -> list[str]:
    """List what lies hidden in a folder and below it."""
    return sorted(path.name for path in folder.rglob(".*"))


def saved(folder: Path) -> dict:
    """Check a saved folder and return the fingerprints of its weights."""
    return {name: value for name, value in tamp.verify(folder)["files"].items() if name.endswith(".safetensors")}


def loads(folder: Path) -> dict:
    """Load a folder and return a fingerprint of its weights."""
    model, _ = load(folder, device="cpu")
    return {name: float(tensor.double().sum()) for name, tensor in model.state_dict().items()}


def recorded(path: Path) -> list:
    """Read a comparison and return its cells without what differs from run to run."""
    cells = json.loads(path.read_text())["cells"]
    return [{name: value for name, value in cell.items() if name not in ("seconds", "peak_memory")} for cell in cells]


def commands(base: Path) -> list[Command]:
    """Make everything that commands need, and list them.

    Args:
        base: a folder for what they read.
    """
    model, samples = tiny.build("llama")
    model.save_pretrained(dense := base / "dense")
    mini, processor = tamp.load("mini-llava-next", device="cpu")
    published = tiny_videollama2.publish(base / "published")
    compare.loading.load = lambda *arguments: (mini, processor)  # once, not in every try
    settings = tamp.Settings(
        model="mini-llava-next", benchmark="mini-vqa", calibration="mini-vqa", n_questions=2, n_samples=2
    )
    questions = compare.scoring.prepare(processor, "mini-vqa", 2)
    compare.scoring.prepare = lambda *arguments: questions

    def prune(folder: Path, sparsity: float = 0.5, overwrite: bool = False) -> None:
        pruned = copy.deepcopy(model)
        report = tamp.prune(pruned, None, tamp.Recipe.preset("magnitude", sparsity=sparsity), progress=False)
        tamp.save(pruned, None, folder / "out", report=report, overwrite=overwrite)

    def streamed(folder: Path) -> None:
        recipe = tamp.Recipe.preset("tamp", sparsity=0.5)
        tamp.prune(copy.deepcopy(model), samples, recipe, progress=False, out=folder / "out", resume=True)

    def cached(folder: Path) -> None:
        os.environ["TAMP_CACHE"] = str(folder)
        cache.made_once("model", lambda scratch, made: shutil.copytree(dense, made))

    def compared(folder: Path) -> None:
        tamp.compare(
            settings, ["magnitude", "wanda"], [0.5], (0,), out=folder / "out.json", device="cpu", progress=False
        )

    def cached_whole(folder: Path) -> dict:
        if not cache.whole(folder):
            raise ValueError(f"{folder} is not whole")
        return {path.name: files.sha256(path) for path in folder.iterdir()}

    return [
        Command("a model made in the cache", "model", cached, cached_whole),
        Command("`tamp prune --out`", "out", prune, saved, once=True),
        Command(
            "`tamp prune --out --overwrite`",
            "out",
            lambda folder: prune(folder, 0.5, True),
            saved,
            lambda folder: prune(folder, 0.25),
        ),
        Command("`tamp compare`", "out.json", compared, recorded),
        Command(
            "`tamp convert-videollama2`",
            "out",
            lambda folder: convert(published, folder / "out", **tiny_videollama2.TOWERS),
            loads,
            once=True,
        ),
        Command("`tamp prune --out --resume`", "out", streamed, saved, once=True),
    ]


def tries(command: Command, number: int, chance: random.Random) -> dict:
    """Kill a command at some moments, and count what came of it.

    Returns:
        tries; killed (before it was done); unfinished (results that looked finished and were not); lost (old results that
        were gone); left (tries that left something hidden); failed (next runs that failed, or gave something else); stale
        (next runs that left something hidden); seconds of an uninterrupted run.
    """
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        status, seconds = child(command.run, folder)
        assert status == 0, f"{command.what} does not run: {status}"
        right = command.whole(folder / command.out)
    before = None
    counts = dict.fromkeys(("killed", "unfinished", "lost", "left", "failed", "stale"), 0)
    for _ in range(number):
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            if command.old:
                child(command.old, folder)
                before = command.whole(folder / command.out)
            status, _ = child(command.run, folder, chance.uniform(0, MARGIN * seconds))
            counts["killed"] += status == -signal.SIGKILL
            counts["left"] += bool(hidden(folder))
            result = files.recovered(folder / command.out)
            if result.exists():
                try:
                    found = command.whole(result)
                    parts = isinstance(found, list) and all(cell in right for cell in found)  # of a comparison
                    counts["unfinished"] += not (found in (right, before) or parts)
                except Exception:
                    counts["unfinished"] += 1
            else:
                counts["lost"] += before is not None
            if command.once and result.exists():
                shutil.rmtree(result)
            status, _ = child(command.run, folder)
            try:
                counts["failed"] += status != 0 or command.whole(folder / command.out) != right
            except Exception:
                counts["failed"] += 1
            counts["stale"] += bool(hidden(folder))
    return {"command": command.what, "tries": number, **counts, "seconds": round(seconds, 2)}


def main(arguments: list[str] | None = None) -> dict:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tries", type=int, default=50, help="moments per command")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--only", type=int, nargs="+", help="numbers of the commands, from 0 on; others stay as recorded"
    )
    parser.add_argument("--out", type=Path, default=recording.RESULTS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # threads do not survive a fork
    prepare = compare.scoring.prepare
    cached = os.environ.get("TAMP_CACHE")
    rows = {}
    if options.only is not None and (options.out / "kills.json").is_file():  # the others stay as they are recorded
        rows = {row["command"]: row for row in json.loads((options.out / "kills.json").read_text())["commands"]}
    made = {"seed": options.seed, "commands": []}
    try:
        with tempfile.TemporaryDirectory() as base:
            known = commands(Path(base))
            for number, command in enumerate(known):
                if options.only is None or number in options.only:
                    chance = random.Random(f"{options.seed} {command.what}")
                    rows[command.what] = tries(command, options.tries, chance)
                    made["commands"] = [rows[each.what] for each in known if each.what in rows]
                    recording.write("kills", made, options.out)
    finally:
        compare.loading.load, compare.scoring.prepare = load, prepare
        if cached is not None:
            os.environ["TAMP_CACHE"] = cached
    return made


if __name__ == "__main__":
    main()
