"""Comparing methods: every method, level and calibration seed on one benchmark, run once and recorded cell by cell.

A cell is one pruned copy of the model with its scores, on questions that are the same in every cell. What was recorded is
read by :mod:`tamp.comparison`.
"""

import copy
import json
import multiprocessing
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn
from tqdm.auto import tqdm

from tamp import comparison, conversations, evaluation, models, planning, pruning, report
from tamp.errors import UserError, unknown
from tamp.recipe import Recipe
from tamp.shipped import prose

Cell = tuple[str, float | str, int]
"""(method, sparsity or pattern, calibration seed); the dense model is ``("dense", 0.0, 0)``."""

DENSE: Cell = ("dense", 0.0, 0)
SAMPLED = 8192
"""Weights whose masks are recorded, the same in every cell: enough to know the overlap of two masks to about a point."""

TEXT_WINDOWS, TEXT_WINDOW, FACTS = 6, 256, 100


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What all cells of a comparison share.

    Attributes:
        model: a shipped name, a folder or a hub id.
        benchmark: set of questions, for measuring.
        calibration: set of samples, for pruning.
        questions: how many.
        evaluation_seed: of the questions.
        calibration_samples: how many.
        dtype: see :func:`tamp.load`.
        text: whether to measure the language model too: perplexity of two texts that come with Python, and the choice among
            answers about facts.
    """

    model: str
    benchmark: str
    calibration: str
    questions: int
    evaluation_seed: int = 0
    calibration_samples: int = 128
    dtype: str = "auto"
    text: bool = False


def cells(methods: Sequence[str], levels: Sequence[float | str], seeds: Sequence[int]) -> list[Cell]:
    """List what is to be run: the dense model, and every method at every level, all methods at a level and seed together.

    A method that looks at no sample is run for the first seed only.

    Raises:
        UserError: if a method, level or seed means nothing; see :meth:`tamp.Recipe.spelled`.
    """
    if not (methods and levels and seeds):
        raise UserError("A comparison needs at least one method, one level and one calibration seed.")
    made = [
        (method, level, seed)
        for level in levels
        for seed in seeds
        for method in methods
        if Recipe.spelled(method, level).needs_samples or seed == seeds[0]
    ]
    return list(dict.fromkeys([DENSE, *made]))


def compare(
    settings: Settings,
    methods: Sequence[str],
    levels: Sequence[float | str],
    seeds: Sequence[int] = (0, 1, 2),
    *,
    out: str | Path,
    to: str | None = None,
    workers: int | None = None,
    device: str = "auto",
    progress: bool = True,
) -> dict[str, Any]:
    """Run what is missing of a comparison, and record every cell as it is finished.

    Stopping it loses the unfinished cells only; the same call goes on. A later call may ask for more methods, levels or
    seeds: what the file holds already stays.

    Args:
        settings: what all cells share.
        methods: each a preset, perhaps with changes, see :meth:`tamp.Recipe.spelled`.
        levels: sparsities in [0, 1), and patterns such as ``"2:4"``.
        seeds: of the calibration samples.
        out: JSON file to record in.
        to: method that the others are compared with, question by question; Wanda by default, or the first where it is not
            among them.
        workers: processes side by side, each with its own model and its share of the cores; by default one on a GPU and one
            or two, but not more than there are cores, on a CPU.
        device: see :func:`tamp.load`.
        progress: show a bar, with the time that is left.

    Returns:
        What the file holds: the settings, ``cells``, and ``differences`` (see :func:`tamp.comparison.differences`).

    Raises:
        UserError: if a method, level or seed means nothing, or the file holds a comparison with other settings.
    """
    wanted = cells(methods, levels, seeds)
    to = to or ("wanda" if "wanda" in methods else methods[0])
    if to not in methods:
        raise unknown("method to compare with", to, methods)
    shared = asdict(settings)
    recorded = _read(Path(out), shared)
    finished = set(map(key, recorded))
    missing = [cell for cell in wanted if cell not in finished]
    place = models.resolve_device(device)
    if workers is None:
        workers = 1 if place.type == "cuda" else min(2, os.cpu_count() or 1)
    if workers < 1:
        raise UserError(f"A comparison needs at least one worker, not {workers}.")
    workers = max(1, min(workers, len(missing)))
    results = _run(missing, workers, (settings, str(place), max(1, torch.get_num_threads() // workers)))
    for cell in tqdm(results, total=len(missing), desc="compare", disable=not progress):
        recorded.append(cell)
        report.write_result(out, {**shared, "cells": recorded})
    order = {cell: number for number, cell in enumerate(wanted)}
    recorded.sort(key=lambda cell: order.get(key(cell), len(order)))  # stable: what was not asked for stays behind
    made = {**shared, "cells": recorded, "compared_to": to}
    made["differences"] = comparison.differences(made, to).to_dict("records")
    if missing or not Path(out).exists():
        report.write_result(out, made)
    return made


def key(cell: dict) -> Cell:
    """Name a recorded cell."""
    return cell["method"], cell["sparsity"], cell["seed"]


def _read(path: Path, shared: dict) -> list[dict]:
    """Read the cells recorded so far.

    Raises:
        UserError: if the file holds something else, or a comparison with other settings.
    """
    if not path.exists():
        return []
    try:
        found = json.loads(path.read_text())
        recorded = found["cells"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is there and holds no comparison; choose another file.") from error
    for name, value in shared.items():
        if found.get(name) != value:
            raise UserError(
                f"{path} holds a comparison with {name}={found.get(name)!r}, not {value!r}: choose another file, or give "
                "the same settings to go on."
            )
    return recorded


def _run(missing: list[Cell], workers: int, start: tuple) -> Iterator[dict]:
    """Run cells, here or in other processes, and hand over each when it is finished."""
    if not missing:
        return
    if workers == 1:
        work = Worker(*start[:2])
        yield from map(work, missing)
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _begin, start) as pool:
        running = [pool.submit(_work, cell) for cell in missing]
        try:
            for done in as_completed(running):
                yield done.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


class Worker:
    """A model with its questions, that runs one cell after another."""

    def __init__(self, settings: Settings, device: str):
        self.settings = settings
        self.model, self.processor = models.load(settings.model, device, settings.dtype)
        self.ready = evaluation.prepare(
            self.processor, settings.benchmark, settings.questions, settings.evaluation_seed
        )
        self.samples: dict[int, list[dict]] = {}
        self.scored: dict[tuple, tuple[list[float], float]] = {}  # what allocations looked at: scores, seconds

    def __call__(self, cell: Cell) -> dict:
        """Prune a copy of the model as a cell says, evaluate it, and return what is recorded."""
        method, level, seed = cell
        made = {"method": method, "sparsity": level, "seed": seed}
        pruned = self.model
        if cell != DENSE:
            pruned = copy.deepcopy(self.model)
            recipe = Recipe.spelled(method, level)
            made |= self._prune(pruned, recipe, seed)
        made |= score(evaluation.answers(pruned, self.processor, self.ready, progress=False))
        return made | (text_scores(pruned, self.processor) if self.settings.text else {})

    def _prune(self, pruned: nn.Module, recipe: Recipe, seed: int) -> dict:
        asked = self.settings
        if recipe.needs_samples and seed not in self.samples:
            self.samples[seed] = conversations.calibration_set(
                asked.calibration, self.processor, asked.calibration_samples, seed
            )
        # An allocation's scores do not depend on the level: they are computed once, and their time is every cell's.
        looked = (seed, *(getattr(recipe, field) for field in planning.SCORED_BY)) if recipe.plans else None
        plan, spared = None, 0.0
        if looked in self.scored:
            scores, spared = self.scored[looked]
            plan = planning.make_plan(pruned, scores, recipe)
        done = pruning.prune(pruned, self.samples.get(seed), recipe, progress=False, plan=plan)
        if looked and plan is None:
            self.scored[looked] = done.plan.scores, done.seconds["allocate"]
        kinds = done.table["linear"].str.split(".").str[-1]
        return {
            "exact_sparsity": done.sparsity,
            "seconds": round(sum(done.seconds.values()) + spared, 2),
            "peak_memory": done.peak_memory,
            "tokens_kept": round(float(done.table["kept"].mean()), 2) if recipe.criterion != "magnitude" else None,
            "sparsity_of": done.table["got"].groupby(kinds, sort=False).mean().round(4).to_dict(),
            "mask": comparison.pack(sampled_mask(pruned)),
        }


_worker: Worker | None = None


def _begin(settings: Settings, device: str, threads: int) -> None:
    """Load the model once per process."""
    global _worker
    import transformers

    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    transformers.utils.logging.disable_progress_bar()
    _worker = Worker(settings, device)


def _end_with_parent() -> None:
    """Stop this process when the one that started it is gone, killed perhaps: nobody would take what it computes."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _work(cell: Cell) -> dict:
    return _worker(cell)


def sampled_mask(model: nn.Module) -> pd.Series:
    """Look up which of some weights, drawn once for all models of one architecture, are zero: (SAMPLED,) bool."""
    weights = [linear.weight for linear in models.all_linears(model).values()]
    ends = torch.tensor([weight.numel() for weight in weights]).cumsum(0)
    random = torch.Generator().manual_seed(0)
    places = torch.randint(int(ends[-1]), (SAMPLED,), generator=random).sort().values
    owner = torch.searchsorted(ends, places, right=True)
    found = []
    for number, weight in enumerate(weights):
        inside = places[owner == number] - (ends[number] - weight.numel())
        found.append((weight.flatten()[inside.to(weight.device)] == 0).cpu())
    return pd.Series(torch.cat(found).numpy())


def score(scored: pd.DataFrame) -> dict:
    """Condense question scores to what is recorded of a cell."""
    return {
        "n": len(scored),
        "accuracy": round(scored["correct"].mean(), 4),
        "choice_accuracy": round(scored["choice_correct"].mean(), 4),
        "nll": round(scored["nll"].mean(), 4),
        "tasks": scored.groupby("task", sort=False)["correct"].mean().round(4).to_dict(),
        "correct": comparison.pack(scored["correct"]),
    }


def text_scores(model: nn.Module, processor) -> dict:
    """Measure what is left of the language model: perplexity of two texts, and the choice among answers about facts."""
    texts = prose.texts()
    made = {
        name: round(evaluation.perplexity(model, processor, texts[name], TEXT_WINDOW, TEXT_WINDOWS, progress=False), 3)
        for name in ("documentation", "licence")
    }
    facts = evaluation.answers(model, processor, "facts", FACTS, progress=False)
    return {**made, "facts": round(facts["choice_correct"].mean(), 4)}
