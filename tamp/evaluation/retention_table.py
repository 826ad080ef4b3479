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

import pandas as pd

from tamp import calibration, loading, pruning
from tamp.errors import UserError, unknown
from tamp.evaluation import benchmarks, compare, paired, results
from tamp.evaluation.benchmarks import running
from tamp.evaluation.compare import DENSE, Cell
from tamp.evaluation.pages import write_html
from tamp.recipe import Recipe

KEPT = ["configuration", "number", "score", "choice_correct", "empty", "unparsable"]
"""Columns of the answers that a cell's file keeps."""


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
    for name in names:
        running.row(name)
    protocols = {protocol: None for name in names for protocol in benchmarks.TABLE[name].protocols}
    if settings.protocol and settings.protocol not in protocols:
        raise unknown("protocol", settings.protocol, protocols)
    if settings.frames is not None and not any(benchmarks.TABLE[name].kind == "video" for name in names):
        raise UserError(f"frames={settings.frames} has no effect: none of these benchmarks shows videos. Leave it out.")
    folder = _folder(out, settings)
    todo = {cell: [name for name in names if not _path(folder, cell, name).is_file()] for cell in wanted}
    samples = None
    for cell, missing in todo.items():
        if not missing:
            continue
        method, level, seed = cell
        model, processor = loading.load(settings.model, device, settings.dtype)
        for name in names:
            benchmarks.check(processor, name, _protocol(settings, name), _frames(settings, name))
        made = {"method": method, "level": level}
        if cell != DENSE:
            recipe = Recipe.spelled(method, level)
            if recipe.needs_samples and samples is None:
                samples = calibration.calibration_set(
                    settings.calibration, processor, settings.n_samples, seed, **settings.chosen
                )
            done = pruning.prune(model, samples if recipe.needs_samples else None, recipe, progress=progress)
            made |= {"sparsity": done.sparsity, "seconds": round(sum(done.seconds.values()), 2)}
        for name in missing:
            where = Path(data) / name if data is not None and (Path(data) / name).is_dir() else data
            slug = _path(folder, cell, name).stem
            scored = benchmarks.answers(
                model,
                processor,
                name,
                settings.limit,
                data=where,
                protocol=_protocol(settings, name),
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
        over questions), and why there is none where it is NaN.
    """
    found = []
    read = {(cell, name): _read(_path(folder, cell, name)) for cell in wanted for name in names}
    for cell in wanted:
        couples = []
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
                    **dict(zip(("retention", "low", "high"), kept)),
                    "why": why,
                }
            )
        whole = len(names) > 1 and len(couples) == len(names)
        kept = paired.mean_retention(couples) if whole else (math.nan,) * 3
        if len(names) > 1:
            of_all = {"method": cell[0], "level": cell[1], "benchmark": "mean"}
            found.append({**of_all, **dict(zip(("retention", "low", "high"), kept)), "why": ""})
    return pd.DataFrame(found)


def wide(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table for reading: a row per method and level, a column per benchmark; the dense model's are its scores."""
    shown: dict[tuple, dict[str, str]] = {}
    for row in table.to_dict("records"):
        line = shown.setdefault((row["method"], row["level"]), {})
        if row["method"] == "dense":
            line[row["benchmark"]] = "" if row["benchmark"] == "mean" else f"{row['score']:.1f}"
        elif math.isnan(row["retention"]):
            line[row["benchmark"]] = "–"
        else:
            line[row["benchmark"]] = f"{row['retention']:.1f} [{row['low']:.1f}, {row['high']:.1f}]"
    named = {
        (f"{method}" if method == "dense" else f"{method}, {results.level_name(level)}"): line
        for (method, level), line in shown.items()
    }
    return pd.DataFrame(named).T.rename_axis("method")


def notes(table: pd.DataFrame) -> list[str]:
    """Say what a table shows, and why cells are empty."""
    said = ["Dense: the published metric in per cent. Others: per cent of it that is kept, with 95 % intervals."]
    for row in table[table["why"] != ""].to_dict("records"):
        said.append(f"{row['method']}, {results.level_name(row['level'])}, {row['benchmark']}: {row['why']}")
    return said


def _write(folder: Path, settings: Settings, table: pd.DataFrame, names: Sequence[str]) -> None:
    """Write a table in three forms."""
    shown, said = wide(table), notes(table)
    lines = [f"| method | {' | '.join(shown.columns)} |", "|---" * (len(shown.columns) + 1) + "|"]
    lines += [f"| {name} | {' | '.join(line)} |" for name, line in zip(shown.index, shown.to_numpy())]
    (folder / "table.md").write_text("\n".join([*lines, "", *(f"* {note}" for note in said), ""]), encoding="utf-8")
    details = table.drop(columns="why").round(2)
    parts = [("Retention", shown), ("", " ".join(said)), ("Every cell", details)]
    write_html(folder / "table.html", f"tamp: {settings.model}", parts)
    plain = table.astype(object).where(table.notna(), None).to_dict("records")
    results.write_result(
        folder / "table.json", {"settings": asdict(settings), "benchmarks": list(names), "rows": plain}
    )


def _protocol(settings: Settings, name: str) -> str | None:
    """Return the protocol of a benchmark: the one that was asked for, where the benchmark has it."""
    return settings.protocol if settings.protocol in benchmarks.TABLE[name].protocols else None


def _frames(settings: Settings, name: str) -> int | None:
    """Return how many frames of a benchmark's videos are shown, if it has any."""
    return settings.frames if benchmarks.TABLE[name].kind == "video" else None


def _path(folder: Path, cell: Cell, name: str) -> Path:
    """Return where a finished cell is kept."""
    said = f"dense-{name}" if cell == DENSE else f"{cell[0]}-{cell[1]}-{name}"
    return folder / "cells" / f"{re.sub(r'[^A-Za-z0-9.-]', '_', said)}.json"


def _read(path: Path) -> pd.DataFrame:
    """Read a finished cell's answers."""
    found = json.loads(path.read_text())
    scored = pd.DataFrame(found["answers"])
    scored["configuration"] = scored["configuration"].fillna("")
    scored.attrs["benchmark"] = found["benchmark"]
    return scored


def _folder(out: str | Path, settings: Settings) -> Path:
    """Return a table's folder, new or of the same settings.

    Raises:
        UserError: if it holds something else, or a table with other settings.
    """
    folder, asked = Path(out).expanduser().resolve(), json.loads(json.dumps(asdict(settings)))
    path = folder / "settings.json"
    if folder.exists() and not path.is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and does not hold a table; choose another folder.")
    if not path.is_file():
        results.write_result(path, {"settings": asked})
    there = json.loads(path.read_text())["settings"]
    if different := next((name for name in asked if there.get(name) != asked[name]), None):
        raise UserError(
            f"{folder} holds a table with {different}={there.get(different)!r}, not {asked[different]!r}: choose another "
            "folder, or give the same settings to go on."
        )
    return folder
