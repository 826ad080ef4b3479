"""Recorded results: JSON files in data/results/ with everything needed to read them later."""

import json
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import torch

from tamp.evaluation.results import write_result
from tamp.report import versions

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "data" / "results"


def write(name: str, result: dict, folder: Path = RESULTS) -> Path:
    """Write a result beside versions, device and commit, completely or not at all."""
    return write_result(folder / f"{name}.json", {"made_with": surroundings(), **result})


def cells(path: Path) -> list[dict]:
    """Return the cells that a file holds already; none if there is no such file."""
    return json.loads(path.read_text())["cells"] if path.exists() else []


def surroundings() -> dict:
    """Describe what a result was made with."""
    try:
        asked = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
        commit = asked.stdout.strip()
    except FileNotFoundError:  # a machine without git
        commit = ""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()} CPU"
    return {**versions(), "device": device, "threads": torch.get_num_threads(), "commit": commit}


def filled(text: str, mark: str, content: str) -> str:
    """Return a page with generated content between ``<!-- mark -->`` and ``<!-- end -->``.

    Raises:
        ValueError: if the page has no such place.
    """
    made, places = re.subn(
        rf"(<!-- {mark} -->\n).*?(<!-- end -->)", lambda m: f"{m[1]}{content}\n{m[2]}", text, count=1, flags=re.S
    )
    if not places:
        raise ValueError(f"the page has no place for {mark}")
    return made


def seconds(call: Callable[[], object]) -> float:
    """Time one call, to the end of the device's work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def side_by_side(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Time calls in turn, round after round, so that a drift of the machine affects all alike; one round to warm up."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            spent = seconds(call)
            if turn:
                times[name].append(spent)
    return times


def ratio(times: dict[str, list[float]], name: str, to: str) -> float:
    """Return the median over rounds of one call's time in units of another's."""
    return round(statistics.median(a / b for a, b in zip(times[name], times[to])), 3)
