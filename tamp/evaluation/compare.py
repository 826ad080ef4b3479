"""Comparing methods: every method, level and calibration seed on one benchmark, run once and recorded cell by cell.

A cell is one pruning of the model with its scores, on questions that are the same in every cell.
:mod:`tamp.evaluation.results` reads what was recorded.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn
from tqdm.auto import tqdm

from tamp import calibration, files, loading, models, planning, pruning, schema, streaming
from tamp.errors import UserError, unknown, whole
from tamp.evaluation import identity, results, scoring, sweeps
from tamp.recipe import Recipe
from tamp.worlds import prose

Cell = tuple[str, float | str, int]
"""(method, level, calibration seed); the dense model is ``("dense", 0.0, 0)``."""

DENSE: Cell = ("dense", 0.0, 0)
TEXT_WINDOWS, TEXT_WINDOW, FACTS = 6, 256, 100


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What all cells of a comparison share.

    Attributes:
        model: a shipped name, a folder or a hub id.
        benchmark: set of questions, for measuring.
        calibration: set of samples, for pruning.
        n_questions: number of questions.
        question_seed: random seed for drawing the questions.
        n_samples: number of calibration samples.
        dtype: see :func:`tamp.load`.
        text: whether to measure the language model too: perplexity of two texts that come with Python, and the choice among
            answers about facts.
    """

    model: str
    benchmark: str
    calibration: str
    n_questions: int
    question_seed: int = 0
    n_samples: int = 128
    dtype: str = "auto"
    text: bool = False

    def __post_init__(self):
        for name, least in (("n_questions", 1), ("n_samples", 1), ("question_seed", 0)):
            number = whole(given := getattr(self, name))
            if number is None or number < least:
                raise UserError(f"{name} is a whole number of at least {least}, not {given!r}.")
            object.__setattr__(self, name, number)  # which JSON can write, whatever type it came in


def cells(methods: Sequence[str], levels: Sequence[float | str], calibration_seeds: Sequence[int]) -> list[Cell]:
    """List what is to be run: the dense model, and every method at every level, all methods at a level and seed together.

    A method without calibration is run for the first seed only.

    Raises:
        UserError: if a method, level or seed means nothing; see :meth:`tamp.Recipe.spelled`.
    """
    if not (len(methods) and len(levels) and len(calibration_seeds)):
        raise UserError("A comparison needs at least one method, one level and one calibration seed.")
    if strange := [seed for seed in calibration_seeds if whole(seed) is None or seed < 0]:
        raise UserError(f"A calibration seed is a whole number from 0 on, not {strange[0]!r}.")
    calibration_seeds = [whole(seed) for seed in calibration_seeds]
    levels = [float(level) if isinstance(level, Real) and 0 <= level < 1 else level for level in levels]
    made = [
        (method, level, seed)
        for level in levels
        for seed in calibration_seeds
        for method in methods
        if Recipe.spelled(method, level).needs_samples or seed == calibration_seeds[0]
    ]
    return list(dict.fromkeys([DENSE, *made]))


def compare(
    settings: Settings,
    methods: Sequence[str],
    levels: Sequence[float | str],
    calibration_seeds: Sequence[int] = (0, 1, 2),
    *,
    out: str | Path,
    baseline: str | None = None,
    device: str = "auto",
    progress: bool = True,
    on: str | None = None,
) -> dict[str, Any]:
    """Run what is missing of a comparison, and record every cell as it is finished.

    Stopping it loses the unfinished cell only; the same call goes on. A later call may ask for more methods, levels or
    seeds: what the file holds already stays.

    Args:
        settings: what all cells share.
        methods: each a preset, perhaps with changes, see :meth:`tamp.Recipe.spelled`.
        levels: sparsities in [0, 1), and patterns such as ``"2:4"`` or ``"dense|2:4@0.3"``.
        calibration_seeds: random seeds for drawing calibration samples, a run each.
        out: JSON file to record in.
        baseline: method that the others are compared with, question by question; Wanda by default, or the first where it
            is not among them.
        device: see :func:`tamp.load`.
        progress: show a bar, with the time that is left.
        on: run every cell as a job of its own elsewhere, see :func:`tamp.evaluation.sweeps.check`.

    Returns:
        What the file holds: the settings, ``cells``, and ``differences`` (see :func:`tamp.evaluation.results.differences`).

    Raises:
        UserError: if a method, level or seed means nothing, the file cannot be written, another process is recording in it,
            or it holds something else or a comparison with other settings, another model or other sets.
    """
    wanted = cells(methods, levels, calibration_seeds)
    baseline = baseline or ("wanda" if "wanda" in methods else methods[0])
    if baseline not in methods:
        raise unknown("baseline", baseline, methods, "The baseline is one of the methods that are compared.")
    shared = asdict(settings)
    if on is not None:
        sweeps.check(on)
    recorded, measured = _read(Path(out), settings)
    if missing := _missing(wanted, recorded):
        out = files.check_file(out)
        with _alone(out):
            recorded, measured = _read(out, settings)  # another process may have just ended
            missing = _missing(wanted, recorded)
            if on is None:
                finished = map(Runner(settings, str(loading.resolve_device(device))), missing)
                if measured:  # a model of the hub is here now
                    measured["fingerprints"]["model"] = identity.of_model(settings.model)
            else:
                finished = sweeps.run(run_cell, settings, missing, device, on, out.with_name(f"{out.stem}_jobs"))
            for made in tqdm(finished, desc="compare", total=len(missing), disable=not progress):
                recorded.append(made)
                results.write_result(out, {**shared, **measured, "cells": recorded})
            made = _made(settings, wanted, recorded, measured, baseline)
            results.write_result(out, made)
            return made
    for path in (Path(out), _marker(Path(out))):  # a run may have been killed at its very end
        files.sweep(path)
    return _made(settings, wanted, recorded, measured, baseline)


def _missing(wanted: list[Cell], recorded: list[dict]) -> list[Cell]:
    finished = set(map(key, recorded))
    return [cell for cell in wanted if cell not in finished]


def _made(
    settings: Settings, wanted: list[Cell], recorded: list[dict], measured: dict, baseline: str
) -> dict[str, Any]:
    """Return what a comparison's file holds."""
    order = {cell: number for number, cell in enumerate(wanted)}
    recorded.sort(key=lambda cell: order.get(key(cell), len(order)))  # stable: what was not asked for stays behind
    made = {**asdict(settings), **measured, "cells": recorded, "baseline": baseline}
    made["differences"] = results.differences(made, baseline).to_dict("records")
    return made


def _marker(out: Path) -> Path:
    return out.with_name(f"{out.name}.running")


@contextlib.contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Keep other processes from recording in the same file, of which one would lose the other's cells.

    Raises:
        UserError: if another one is at it.
    """
    marker = _marker(out)
    with files.scratch(marker) as own:
        if [path for path in files.hidden(marker, ".tamp") if path != own]:
            raise UserError(f"Another process is recording in {out}: wait until it ends, or choose another file.")
        yield


def key(cell: dict) -> Cell:
    """Return method, level and calibration seed of a recorded cell."""
    return cell["method"], cell["level"], cell["calibration_seed"]


def _read(path: Path, settings: Settings) -> tuple[list[dict], dict]:
    """Read the cells recorded so far, and what they were measured with.

    Returns:
        The cells, and ``{"fingerprints": ...}`` of model, benchmark and calibration set; empty for a file of an earlier
        version, which does not say.

    Raises:
        UserError: if the file holds something else, or a comparison with other settings or other files.
    """
    shared = asdict(settings)
    now = {
        "model": identity.of_model(settings.model),
        "benchmark": identity.of_set(settings.benchmark),
        "calibration": identity.of_set(settings.calibration),
    }
    if not os.path.lexists(path):
        return [], {"fingerprints": now}
    found = schema.read(path, {"cells": list, "fingerprints?": {...: (None, str)}}, "a comparison", results.HINT)
    lacking = [name for name in shared if name not in found]
    if lacking:
        raise UserError(
            f"{path} holds a comparison of another version of tamp: it does not say {lacking[0]!r}. Choose another file."
        )
    for name, value in shared.items():
        if found[name] != value:
            raise UserError(
                f"{path} holds a comparison with {name}={found[name]!r}, not {value!r}: choose another file, or give "
                "the same settings to go on."
            )
    results.check_cells(path, found["cells"])
    then = found.get("fingerprints")
    for name, value in (then or {}).items():
        if value and now.get(name) and value != now[name]:
            raise UserError(
                f"{path} holds a comparison with another {name} of the same name: the files of {getattr(settings, name)!r} "
                "have changed since. Choose another file."
            )
    return found["cells"], {} if then is None else {"fingerprints": then}


class Runner:
    """A model with its questions, that runs one cell after another."""

    def __init__(self, settings: Settings, device: str):
        self.settings = settings
        self.model, self.processor = loading.load(settings.model, device, settings.dtype, "auto")
        self.ready = scoring.prepare(self.processor, settings.benchmark, settings.n_questions, settings.question_seed)
        self.facts = scoring.prepare(self.processor, "facts", FACTS) if settings.text else None
        self.samples: dict[int, list[dict]] = {}
        self.scored: dict[tuple, tuple[dict[str, float], float]] = {}  # scores of an allocation, seconds they took
        self.dense: dict[str, torch.Tensor] | None = None  # what is put back into the model once it was pruned

    def __call__(self, cell: Cell) -> dict:
        """Prune the model as a cell says, evaluate it, and return what is recorded."""
        method, level, seed = cell
        made = {"method": method, "level": level, "calibration_seed": seed}
        self._restore()
        if cell != DENSE:
            if self.dense is None:
                self.dense = streaming.mapped_blocks(self.model)
            made |= self._prune(self.model, Recipe.spelled(method, level), seed)
        made |= score(scoring.answers(self.model, self.processor, self.ready, progress=False))
        return made | (text_scores(self.model, self.processor, self.facts) if self.facts else {})

    @torch.no_grad()
    def _restore(self) -> None:
        """Make the model dense again."""
        for name, parameter in self.model.named_parameters() if self.dense else ():
            if name in self.dense:
                parameter.copy_(self.dense[name])

    def _prune(self, pruned: nn.Module, recipe: Recipe, seed: int) -> dict:
        """Prune the model and return what is recorded of it; scores of an allocation do not depend on the level: they are
        computed once, and their time counts in every cell."""
        asked = self.settings
        if recipe.needs_samples and seed not in self.samples:
            self.samples[seed] = calibration.calibration_set(asked.calibration, self.processor, asked.n_samples, seed)
        looked = None
        if recipe.plans:
            chosen = (recipe.options[name] for name in recipe.rules[0].options)
            looked = (seed, recipe.allocation, recipe.allocation_samples, *chosen)
        plan, spared = None, 0.0
        if looked in self.scored:
            scores, spared = self.scored[looked]
            plan = planning.make_plan(pruned, scores, recipe)
        done = pruning.prune(pruned, self.samples.get(seed), recipe, progress=False, plan=plan)
        if looked and plan is None:
            self.scored[looked] = dict(zip(done.plan.linears, done.plan.scores)), done.seconds["allocate"]
        kinds = done.table["linear"].str.split(".").str[-1]
        return {
            "exact_sparsity": done.sparsity,
            "seconds": round(sum(done.seconds.values()) + spared, 2),
            "peak_memory": done.peak_memory,
            "tokens_kept": round(float(done.table["kept"].mean()), 2) if recipe.criterion != "magnitude" else None,
            "sparsity_of": done.table["got"].groupby(kinds, sort=False).mean().round(4).to_dict(),
            "mask": results.pack(sampled_mask(pruned)),
        }


def run_cell(settings: Settings, cell: Cell, device: str) -> dict:
    """Load the model, run one cell, and return what is recorded of it: a job of :mod:`tamp.evaluation.sweeps`."""
    return Runner(settings, str(loading.resolve_device(device)))(cell)


def sampled_mask(model: nn.Module) -> pd.Series:
    """Look up which of some weights, drawn once for all models of one architecture, are zero: (results.SAMPLED,) bool."""
    weights = [linear.weight for linear in models.all_linears(model).values()]
    ends = torch.tensor([weight.numel() for weight in weights]).cumsum(0)
    random = torch.Generator().manual_seed(0)
    places = torch.randint(int(ends[-1]), (results.SAMPLED,), generator=random).sort().values
    owner = torch.searchsorted(ends, places, right=True)
    found = []
    for number, weight in enumerate(weights):
        inside = places[owner == number] - (ends[number] - weight.numel())
        found.append((weight.flatten()[inside.to(weight.device)] == 0).cpu())
    return pd.Series(torch.cat(found).numpy())


def score(scored: pd.DataFrame) -> dict:
    """Return what is recorded of a cell's question scores, from :func:`tamp.evaluation.answers`."""
    return {
        "n_questions": len(scored),
        "accuracy": round(scored["correct"].mean(), 4),
        "choice_accuracy": round(scored["choice_correct"].mean(), 4),
        "nll": round(scored["nll"].mean(skipna=False), 4),
        "tasks": scored.groupby("task", sort=False)["correct"].mean().round(4).to_dict(),
        "correct": results.pack(scored["correct"]),
    }


def text_scores(model: nn.Module, processor, questions: scoring.Benchmark) -> dict:
    """Measure what is left of the language model: perplexity of two texts, and the choice among answers about facts."""
    texts = prose.texts()
    made = {
        name: round(scoring.perplexity(model, processor, texts[name], TEXT_WINDOW, TEXT_WINDOWS, progress=False), 3)
        for name in ("documentation", "licence")
    }
    facts = scoring.answers(model, processor, questions, progress=False)
    return {**made, "facts": round(facts["choice_correct"].mean(), 4)}
