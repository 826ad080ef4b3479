"""The table of a pruning paper: methods by published benchmarks, what each keeps of the dense model, cell by cell.

A cell is one method at one level on one benchmark. Every answer is recorded as it is given, and every finished cell is a
file, so that a stopped table goes on. One model is in memory at a time: each method starts from the weights on the disk.
"""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tamp import calibration, files, loading, pruning, schema
from tamp.errors import UserError
from tamp.evaluation import benchmarks, compare, paired, results
from tamp.evaluation.benchmarks import running
from tamp.evaluation.compare import DENSE, Cell
from tamp.evaluation.pages import write_html
from tamp.recipe import Recipe

KEPT = ["configuration", "number", "score", "choice_correct", "empty", "unparsable"]
"""Columns of the answers that a cell's file keeps."""

SCORE = ("retention", "low", "high")
CHOICE = ("choice_retention", "choice_low", "choice_high")
"""Columns of a table with a retention and its interval: of the published metric, and of the choice by likelihood."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What all cells of a table share.

    Attributes:
        model: a shipped name, a folder or a hub id.
        calibration: source of calibration samples, see :func:`tamp.calibration_set`.
        chosen: its further options there.
        n_samples: number of calibration samples.
        calibration_seed: random seed for drawing them.
        limit: questions per benchmark; None for all.
        protocol: see :func:`tamp.evaluation.benchmarks.answers`; None for each benchmark's first.
        frames: show so many frames of a video as pictures.
        likelihood: also compare options by likelihood.
        dtype: see :func:`tamp.load`.
    """

    model: str
    calibration: Any
    chosen: dict[str, Any]
    n_samples: int = 128
    calibration_seed: int = 42
    limit: int | None = None
    protocol: str | None = None
    frames: int | None = None
    likelihood: bool = True
    dtype: str = "auto"


def make(
    settings: Settings,
    methods: Sequence[str],
    levels: Sequence[float | str],
    names: Sequence[str],
    *,
    out: str | Path,
    data: str | Path | None = None,
    batch_size: int = 8,
    device: str = "auto",
    progress: bool = True,
) -> pd.DataFrame:
    """Run what is missing of a table and write it as ``table.md``, ``table.html`` and ``table.json`` into a folder.

    Args:
        settings: what all cells share.
        methods: each a preset, perhaps with changes, see :meth:`tamp.Recipe.spelled`; the dense model is always run.
        levels: sparsities in [0, 1), and patterns such as ``"2:4"``.
        names: published benchmarks, keys of :data:`tamp.evaluation.benchmarks.TABLE`.
        out: the folder; what it holds of the same settings is not run again.
        data: folder with a local copy of each benchmark under its name; None for the hub.
        batch_size: questions answered at once.
        device: see :func:`tamp.load`.
        progress: show bars.

    Returns:
        See :func:`rows`.

    Raises:
        UserError: if a method, level or benchmark means nothing, the model does not take what a benchmark asks about, the
            folder holds another table, or what :func:`tamp.prune` and the benchmarks raise.
    """
    methods = [method for method in methods if method != "dense"]
    wanted = compare.cells(methods, levels, [settings.calibration_seed]) if methods else [DENSE]
    if not names or len(set(names)) < len(names):
        raise UserError("A table needs at least one benchmark, and each once.")
    protocols = running.chosen(names, settings.protocol)
    if settings.frames is not None and not any(benchmarks.TABLE[name].kind == "video" for name in names):
        raise UserError(f"frames={settings.frames} has no effect: none of these benchmarks shows videos. Leave it out.")
    folder = _folder(out, settings)
    todo = {cell: [name for name in names if not _path(folder, cell, name).is_file()] for cell in wanted}
    samples = None
    for cell, missing in todo.items():
        if not missing:
            continue
        method, level, seed = cell
        away = cell != DENSE and loading.resolve_device(device).type == "cuda"  # one block at a time while it is pruned
        model, processor = loading.load(settings.model, device, settings.dtype, away)
        for name in names:
            benchmarks.check(processor, name, protocols[name], _frames(settings, name))
        made = {"method": method, "level": level}
        if cell != DENSE:
            recipe = Recipe.spelled(method, level)
            if recipe.needs_samples and samples is None:
                samples = calibration.calibration_set(
                    settings.calibration, processor, settings.n_samples, seed, **settings.chosen
                )
            done = pruning.prune(model, samples if recipe.needs_samples else None, recipe, progress=progress)
            made |= {"sparsity": done.sparsity, "seconds": round(sum(done.seconds.values()), 2)}
        if away:
            loading.settle(model)
        for name in missing:
            where = Path(data) / name if data is not None and (Path(data) / name).is_dir() else data
            slug = _path(folder, cell, name).stem
            scored = benchmarks.answers(
                model,
                processor,
                name,
                settings.limit,
                data=where,
                protocol=protocols[name],
                batch_size=batch_size,
                recorded=folder / "answers" / f"{slug}-{running.fingerprint(model)}.jsonl",
                likelihood=settings.likelihood,
                frames=_frames(settings, name),
                progress=progress,
            )
            kept = scored[KEPT].astype(object).where(scored[KEPT].notna(), None).to_dict("list")
            found = {**made, "benchmark": name, "protocol": scored.attrs["protocol"], "answers": kept}
            results.write_result(_path(folder, cell, name), found)
        del model
    table = rows(folder, wanted, names)
    _write(folder, settings, table, names)
    return table


def rows(folder: Path, wanted: Sequence[Cell], names: Sequence[str]) -> pd.DataFrame:
    """Read a table's cells.

    Returns:
        A row per cell, and one per method over all benchmarks, ``"mean"``: method, level, benchmark, n, score (the published
        metric, in per cent), choice (accuracy by likelihood of the options, in per cent), lost (answers that are empty or
        unparsable, in per cent), retention (per cent of the dense model's score) with low and high (95 %, paired bootstrap
        over questions), why there is none where it is NaN, and choice_retention with choice_low and choice_high (the same of
        the choice, over the benchmarks with options; it needs no readable answers).
    """
    found = []
    read = {(cell, name): _read(_path(folder, cell, name)) for cell in wanted for name in names}
    for cell in wanted:
        couples, chosen = [], []
        for name in names:
            scored, dense = read[cell, name], read[DENSE, name]
            why = benchmarks.refusal(scored) or benchmarks.refusal(dense)
            both = scored.merge(dense, on=["configuration", "number"], suffixes=("", "_dense"))
            if not why and len(both) < max(len(scored), len(dense)):
                why = "Not the same questions could be asked of both models: complete the copy of the benchmark."
            if not why and not both["score_dense"].sum():
                why = "The dense model has no point: there is nothing to keep."
            couple = (both["score"].to_numpy(float), both["score_dense"].to_numpy(float))
            couples += [] if why else [couple]
            kept = (math.nan,) * 3 if why else paired.retention(*couple)
            choices = tuple(pd.to_numeric(both[f"choice_correct{of}"]).to_numpy(float) for of in ("", "_dense"))
            known = len(both) == len(dense) == len(scored) and not np.isnan(choices).any() and choices[1].sum() > 0
            chosen += [choices] if known else []
            lost = (scored["empty"] | scored["unparsable"]).astype(bool)
            found.append(
                {
                    "method": cell[0],
                    "level": cell[1],
                    "benchmark": name,
                    "n": len(scored),
                    "score": 100 * scored["score"].astype(float).mean(),
                    "choice": 100 * pd.to_numeric(scored["choice_correct"]).astype(float).mean(),
                    "lost": 100 * lost.mean(),
                    **dict(zip(SCORE, kept)),
                    "why": why,
                    **dict(zip(CHOICE, paired.retention(*choices) if known else (math.nan,) * 3)),
                }
            )
        if len(names) > 1:
            of_all = {"method": cell[0], "level": cell[1], "benchmark": "mean", "why": ""}
            optional = sum(read[DENSE, name]["choice_correct"].notna().any() for name in names)
            for columns, every, number in ((SCORE, couples, len(names)), (CHOICE, chosen, max(optional, 1))):
                of_all |= zip(columns, paired.mean_retention(every) if len(every) == number else (math.nan,) * 3)
            found.append(of_all)
    return pd.DataFrame(found)


def wide(table: pd.DataFrame, columns: Sequence[str] = SCORE) -> pd.DataFrame:
    """Return a table for reading: a row per method and level, a column per benchmark; the dense model's are its scores.

    Args:
        table: from :func:`rows`.
        columns: :data:`SCORE`, or :data:`CHOICE` for the choice by likelihood.
    """
    score = "choice" if columns == CHOICE else "score"
    shown: dict[tuple, dict[str, str]] = {}
    for row in table.to_dict("records"):
        line = shown.setdefault((row["method"], row["level"]), {})
        if row["method"] == "dense":
            line[row["benchmark"]] = _share(row[score], "" if row["benchmark"] == "mean" else "–")
        else:
            kept, low, high = (row[column] for column in columns)
            line[row["benchmark"]] = "–" if _none(kept) else f"{kept:.1f} [{low:.1f}, {high:.1f}]"
    named = {
        (method if method == "dense" else f"{method}, {results.level_name(level)}"): line
        for (method, level), line in shown.items()
    }
    made = pd.DataFrame(named).T.rename_axis("method")
    return made.loc[:, [not made[name].eq("–").all() for name in made]] if columns == CHOICE else made


def _none(value: float | None) -> bool:
    return value is None or math.isnan(value)


def _share(value: float | None, none: str) -> str:
    return none if _none(value) else f"{value:.1f}"


def notes(table: pd.DataFrame) -> list[str]:
    """Say what a table shows, and why cells are empty."""
    said = ["Dense: the published metric in per cent. Others: per cent of it that is kept, with 95 % intervals."]
    for row in table[table["why"] != ""].to_dict("records"):
        said.append(f"{row['method']}, {results.level_name(row['level'])}, {row['benchmark']}: {row['why']}")
    return said


def markdown(table: pd.DataFrame) -> str:
    """Write a table's retentions, those by likelihood where there are some, and its notes as Markdown."""
    blocks = [_lines(wide(table)), [f"* {note}" for note in notes(table)]]
    if table[CHOICE[0]].notna().any():
        blocks += [["By likelihood of the options:"], _lines(wide(table, CHOICE))]
    return "\n\n".join("\n".join(block) for block in blocks) + "\n"


def _lines(shown: pd.DataFrame) -> list[str]:
    """Return the lines of a table in Markdown."""
    lines = [f"| method | {' | '.join(shown.columns)} |", "|---" * (len(shown.columns) + 1) + "|"]
    return lines + [f"| {name} | {' | '.join(line)} |" for name, line in zip(shown.index, shown.to_numpy())]


def _write(folder: Path, settings: Settings, table: pd.DataFrame, names: Sequence[str]) -> None:
    """Write a table in three forms."""
    said = notes(table)
    files.write_text(folder / "table.md", markdown(table))
    parts = [("Retention", wide(table)), ("", " ".join(said))]
    if settings.likelihood:
        parts.append(("By likelihood of the options", wide(table, CHOICE)))
    parts.append(("Every cell", table.drop(columns="why").round(2)))
    write_html(folder / "table.html", f"tamp: {settings.model}", parts)
    plain = table.astype(object).where(table.notna(), None).to_dict("records")
    results.write_result(
        folder / "table.json", {"settings": asdict(settings), "benchmarks": list(names), "rows": plain}
    )


def _frames(settings: Settings, name: str) -> int | None:
    """Return how many frames of a benchmark's videos are shown, if it has any."""
    return settings.frames if benchmarks.TABLE[name].kind == "video" else None


def _path(folder: Path, cell: Cell, name: str) -> Path:
    """Return where a finished cell is kept."""
    said = f"dense-{name}" if cell == DENSE else f"{cell[0]}-{cell[1]}-{name}"
    return folder / "cells" / f"{re.sub(r'[^A-Za-z0-9.-]', '_', said)}.json"


def _read(path: Path) -> pd.DataFrame:
    """Read a finished cell's answers."""
    answers = {"answers": dict.fromkeys(KEPT, list), "benchmark": str}
    found = schema.read(path, answers, "a finished cell", "Delete it, and it is run again.")
    scored = pd.DataFrame(found["answers"])
    scored["configuration"] = scored["configuration"].fillna("")
    scored.attrs["benchmark"] = found["benchmark"]
    return scored


def _folder(out: str | Path, settings: Settings) -> Path:
    """Return a table's folder, new or of the same settings.

    Raises:
        UserError: if it holds something else, or a table with other settings.
    """
    folder, asked = files.located(out), json.loads(json.dumps(asdict(settings)))
    path = folder / "settings.json"
    if folder.exists() and not path.is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and does not hold a table; choose another folder.")
    if not path.is_file():
        results.write_result(path, {"settings": asked})
    there = schema.read(path, {"settings": dict}, "a table's settings", "Choose another folder.")["settings"]
    if different := next((name for name in asked if there.get(name) != asked[name]), None):
        raise UserError(
            f"{folder} holds a table with {different}={there.get(different)!r}, not {asked[different]!r}: choose another "
            "folder, or give the same settings to go on."
        )
    return folder
