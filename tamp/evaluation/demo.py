"""The demo: a shipped model pruned by four methods, evaluated before and after, and a page about it."""

import copy
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from tamp import calibration, files, loading, pruning, zoo
from tamp.evaluation import figures, pages, results, scoring
from tamp.recipe import Recipe
from tamp.report import Report

METHODS = ("magnitude", "wanda", "tamp", "repair")
CLAIMS = (("repair", "tamp"), ("tamp", "wanda"), ("wanda", "magnitude"))
"""(better, worse): what the papers of TAMP and of Wanda claim, and what was measured here of the preset ``repair``."""


def run(
    name: str,
    *,
    sparsity: float | None = None,
    n_questions: int | None = None,
    n_samples: int | None = None,
    out: str | Path = "demo.html",
    device: str = "auto",
    dtype: str = "auto",
    progress: bool = True,
    say: Callable[[str], None] = print,
) -> Path:
    """Prune a shipped model by four methods, evaluate it before and after, and write a page.

    Args:
        name: a model of :data:`tamp.zoo.MODELS` that has a demo.
        sparsity: share of weights to drop; by default, as with the next two, what the table says for the model.
        n_questions: number of questions.
        n_samples: number of calibration samples.
        out: page to write.
        device: see :func:`tamp.load`.
        dtype: see :func:`tamp.load`.
        progress: show bars.
        say: called with every line for the user: what is done, with the seconds since the start, and the result.

    Returns:
        The page.
    """
    start = time.perf_counter()

    def stage(text: str) -> None:
        say(f"{time.perf_counter() - start:4.0f} s  {text}")

    known = zoo.MODELS[name]
    usual = known.demo
    sparsity = usual.sparsity if sparsity is None else sparsity
    n_questions = usual.n_questions if n_questions is None else n_questions
    n_samples = usual.n_samples if n_samples is None else n_samples
    files.check_file(out)
    recipes = {method: Recipe.preset(method, sparsity=sparsity) for method in METHODS}
    stage(f"loading {name}")
    model, processor = loading.load(name, device, dtype)
    stage(f"preparing {n_questions} questions and {n_samples} calibration samples")
    benchmark = scoring.prepare(processor, known.questions, n_questions)
    samples = calibration.calibration_set(known.questions, processor, n_samples)
    stage("evaluating the dense model")
    answered = {"dense": scoring.answers(model, processor, benchmark, progress=progress)}
    reports: dict[str, Report] = {}
    for method, recipe in recipes.items():
        pruned = copy.deepcopy(model)
        stage(f"pruning by {method}")
        reports[method] = pruning.prune(pruned, samples, recipe, progress)
        stage(f"evaluating the model pruned by {method}")
        answered[method] = scoring.answers(pruned, processor, benchmark, progress=progress)
    stage(f"writing {out}\n")
    scores = {method: scoring.summarise(scored) for method, scored in answered.items()}
    totals = _totals(scores, {method: report.sparsity for method, report in reports.items()})
    found = claims(answered)
    say(f"{totals.round(2).to_string()}\n\n{found.to_string(index=False)}")
    grid = results.recorded(usual.recorded)
    page = pages.write_html(
        out,
        f"tamp: {name} at {sparsity:.0%} sparsity",
        [
            ("Before and after", totals.round(3)),
            ("Which keeps more, on these questions (points of accuracy, 95 % interval)", found),
            ("Accuracy per task (%)", _tasks(scores)),
            ("", figures.accuracy_figure(scores)),
            (f"Every method, as recorded on {grid['n_questions']:,} other questions", figures.grid_figure(grid)),
            (
                "Recorded accuracy, in per cent of the dense model's",
                results.retention(grid).rename(columns=results.level_name).round(1),
            ),
            *((f"How {method} pruned", report) for method, report in reports.items()),
        ],
    )
    say(f"{time.perf_counter() - start:.0f} s; figures and details: {page.resolve()}")
    return page


def _totals(scores: dict[str, pd.DataFrame], sparsities: dict[str, float]) -> pd.DataFrame:
    """Return a row per model over all tasks, with its sparsity, in per cent."""
    every = pd.concat([scoring.in_per_cent(table).tail(1) for table in scores.values()])
    totals = every.drop(columns="task").set_index(pd.Index(list(scores), name="model"))
    totals.insert(0, "sparsity", [100 * sparsities.get(name, 0.0) for name in scores])
    return totals


def _tasks(scores: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Return accuracy in per cent, tasks by models."""
    return (100 * pd.DataFrame({name: table.set_index("task")["accuracy"] for name, table in scores.items()})).round(1)


def claims(answered: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Compare what is claimed of the methods with the answers of a demo, question by question.

    Args:
        answered: tables of :func:`tamp.evaluation.answers` by method, over the same questions.

    Returns:
        A row per claim: claim, points (difference in accuracy), low and high (its 95 % interval), verdict: confirmed or
        contradicted if the interval excludes zero, else inconclusive.
    """
    cells = {
        name: [{"n_questions": len(scored), "correct": results.pack(scored["correct"])}]
        for name, scored in answered.items()
    }
    rows = []
    for better, worse in CLAIMS:
        points, low, high = (round(value, 1) for value in results.interval(cells[better], cells[worse]))
        verdict = "confirmed" if low > 0 else "contradicted" if high < 0 else "inconclusive"
        rows.append((f"{better} keeps more than {worse}", points, low, high, verdict))
    return pd.DataFrame(rows, columns=["claim", "points", "low", "high", "verdict"])
