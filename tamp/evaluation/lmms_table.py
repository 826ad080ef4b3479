"""A dense model and pruned ones on tasks of lmms-eval, each in a process of its own, compared question by question."""

import json
import math
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from tamp.errors import UserError
from tamp.evaluation import paired

SHOWN = 1500
"""Characters of a failed run's last words that an error repeats."""


def benchmark(
    models: Sequence[str | Path],
    tasks: Sequence[str],
    limit: int | None = None,
    *,
    data: Mapping[str, Mapping[str, str]] | None = None,
    device: str = "auto",
    dtype: str = "auto",
    python: str = sys.executable,
) -> dict[str, Any]:
    """Run lmms-eval's tasks on models, the first of them dense.

    Args:
        models: shipped names, folders or hub ids.
        tasks: names that lmms-eval knows, such as ``"textvqa_val"``.
        limit: the first so many questions of each task; None for all.
        data: task to ``{split: parquet file}`` in place of the task's own data.
        device: see :func:`tamp.load`.
        dtype: see :func:`tamp.load`.
        python: interpreter of an environment with tamp and lmms-eval.

    Returns:
        ``{"models": ..., "tasks": {task: {model: {"metric", "total", "questions": [...]}}}}``.

    Raises:
        UserError: if lmms-eval is missing there, or a run fails: with its last words.
    """
    python = shutil.which(python) or python
    python = str(Path(python).absolute())  # not resolved: a link tells Python its environment
    if subprocess.run([python, "-c", "import lmms_eval, tamp"], capture_output=True).returncode:
        raise UserError(
            f"{python} has no lmms-eval beside tamp: make an environment as the page 'lmms-eval' of the book says, and name "
            "its interpreter with --python."
        )
    found: dict[str, dict] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for number, model in enumerate(map(str, models)):
            model = str(Path(model).resolve()) if Path(model).is_dir() else model
            out = Path(scratch) / f"{number}.json"
            request = {"model": model, "tasks": list(tasks), "limit": limit, "device": device, "dtype": dtype}
            request |= {"data": dict(data or {}), "out": str(out)}
            asked = Path(scratch) / "request.json"
            asked.write_text(json.dumps(request))
            ran = subprocess.run(
                [python, "-m", "tamp.evaluation.lmms_run", str(asked)],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                cwd=scratch,  # some tasks write files where they run
            )
            if ran.returncode or not out.is_file():  # lmms-eval may exit as if it had succeeded
                raise UserError(f"lmms-eval failed on {model}: {ran.stdout.strip()[-SHOWN:]}")
            for task, result in json.loads(out.read_text())["results"].items():
                found.setdefault(task, {})[str(models[number])] = result
    return {"models": list(map(str, models)), "limit": limit, "tasks": found}


def compare(made: dict[str, Any]) -> pd.DataFrame:
    """Compare every model with the first one, task by task, on the questions that both answered (joined by ``doc_id``).

    Returns:
        A row per task and model: task, model, n, lmms_eval (its own total, in the unit of its metric), points (mean over
        questions, in per cent) and dense (the dense model's on the same questions), difference with diff_low and diff_high
        (percentage points), retention with ret_low and ret_high (per cent; NaN where more than ``paired.MOST_LOST`` of
        either model's answers are empty), same (per cent of answers that are the dense model's, letter by letter), empty
        (per cent). NaN where a task gives no points by question.

    Raises:
        UserError: if a model did not answer a task.
    """
    dense, *_ = made["models"]
    rows = []
    for task, by_model in made["tasks"].items():
        base = {each["doc_id"]: each for each in by_model[dense]["questions"]}
        for model in made["models"]:
            if model not in by_model:
                raise UserError(f"{model} did not answer {task}: run the benchmark again.")
            every = {each["doc_id"]: each for each in by_model[model]["questions"]}
            both = [(every[number], base[number]) for number in base if number in every]
            answers = [(one["answer"], other["answer"]) for one, other in both]
            empty = [sum(not said.strip() for said in side) / len(both) for side in zip(*answers)]
            known = all(one["points"] is not None and other["points"] is not None for one, other in both)
            mine, theirs = ([side["points"] for side in sides] for sides in zip(*both))
            nothing = (math.nan,) * 3
            gain = paired.difference(mine, theirs) if known and model != dense else nothing
            kept = known and model != dense and max(empty) <= paired.MOST_LOST
            kept = paired.retention(mine, theirs) if kept else nothing
            rows.append(
                {
                    "task": task,
                    "model": model,
                    "n": len(both),
                    "lmms_eval": by_model[model]["total"],
                    "points": 100 * sum(mine) / len(mine) if known else math.nan,
                    "dense": 100 * sum(theirs) / len(theirs) if known else math.nan,
                    **dict(zip(("difference", "diff_low", "diff_high"), gain)),
                    **dict(zip(("retention", "ret_low", "ret_high"), kept)),
                    "same": 100 * sum(one == other for one, other in answers) / len(both),
                    "empty": 100 * empty[0],
                }
            )
    return pd.DataFrame(rows)
