"""The data of the book's explorable figures, `book/_static/figures/NAME.json`.

    python tests/benchmarks/figure_data.py [NAME ...]

Those of `DERIVED` come from recorded results in seconds, and `tests/benchmarks/pages.py` writes them too. Those of
`MEASURED` run a shipped model. `tests/benchmarks/stills.py` draws the stills.
"""

import argparse
import functools
import json
from collections.abc import Callable
from pathlib import Path

import answers
import figure_models
import numpy as np
import recording
import svg

from tamp.evaluation import figures, results

FOLDER = recording.ROOT / "book" / "_static" / "figures"
LABELS = {
    "dense": "not pruned",
    "magnitude": "magnitude",
    "wanda": "Wanda",
    "sparsegpt": "SparseGPT",
    "text": "text tokens",
    "owl": "OWL",
    "alphapruning": "AlphaPruning",
    "ecoflap": "ECoFLaP",
    "das": "DAS",
    "atv": "ATV",
    "amia": "AMIA",
    "tamp": "TAMP",
    "repair": "repair",
}


def shown(text: str, most: int = 16) -> str:
    """Shorten what a model wrote to one short line."""
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 1] + "…"


def key(method: str) -> str:
    """Return the short name of a method."""
    return "repair" if method == answers.REPAIR else method


def drag_to_prune() -> dict:
    """Return one picture's questions, what each method answers at each level, and which answers are right.

    Words come from the record of the answers; right and wrong from the grid, which has every level. A right answer is the
    known one, word for word; a wrong one that is not recorded is None.
    """
    recorded, grid = results.recorded("answers"), results.recorded("smol_quality")
    levels = sorted(answers.LEVELS)
    said, right, accuracy = {}, {}, {}
    for method in ("dense", *answers.METHODS):
        said[key(method)], right[key(method)], accuracy[key(method)] = [], [], []
        for level in levels if method != "dense" else [0.0]:
            given = answers.answers_of(recorded, method, level)
            cells = results.cells_of(grid, method, level)
            own = [cell for cell in cells if cell["calibration_seed"] == recorded["calibration_seed"]]
            flags = (
                results.unpack(own[0])[: len(recorded["questions"])]
                if own
                else given and answers.right(recorded, given)
            )
            if given is None and flags is not None:
                given = [each["answer"] if flag else None for each, flag in zip(recorded["questions"], flags)]
            right[key(method)].append(None if flags is None else [*map(int, flags)])
            said[key(method)].append(given and [text if text is None else shown(text) for text in given])
            accuracy[key(method)].append(round(100 * results.mean(cells, "accuracy"), 1) if cells else None)
    return {
        "picture": svg.picture_uri(answers.asked(1)[0].images[0]),
        "alt": "The picture: a purple ring, the word bow, the number 81, a cyan ring, a cyan diamond and a blue circle.",
        "questions": [each["question"] for each in recorded["questions"]],
        "levels": [round(100 * level) for level in levels],
        "methods": {
            key(method): {"label": LABELS[key(method)], "color": figures.METHODS[key(method)]}
            for method in answers.METHODS
        },
        "answers": said,
        "right": right,
        "accuracy": accuracy,
        "n_questions": grid["n_questions"],
        "start": {"method": "tamp", "level": 50},
    }


COLUMNS = {"mini_quality": 0.7, "smol_quality": 0.5, "smol_av_quality": 0.4}
"""Grid to the level that the ranking shows of it: where methods differ most and few answer nothing right."""
DRAWS = 1000


def ranks(grid: dict, level: float, names: list[str]) -> np.ndarray:
    """Rank methods by accuracy, the best 1, on resampled questions and calibration sets; the first row is not resampled.

    Returns:
        (DRAWS + 1, methods).
    """
    rng = np.random.default_rng(0)
    right = [np.stack([results.unpack(cell) for cell in results.cells_of(grid, name, level)]) for name in names]
    seeds, n = max(map(len, right)), right[0].shape[1]
    found = []
    for draw in range(DRAWS + 1):
        which = rng.integers(seeds, size=seeds) if draw else np.arange(seeds)
        asked = rng.integers(n, size=n) if draw else np.arange(n)
        share = np.array([(each[which] if len(each) > 1 else each)[:, asked].mean() for each in right])
        found.append((-share).argsort(kind="stable").argsort() + 1)
    return np.array(found)


def ranking() -> dict:
    """Return every method's place on three models, with the places that resampling gives it."""
    grids = {name: results.recorded(name) for name in COLUMNS}
    names = [name for name in results.methods(grids["mini_quality"]) if name in LABELS]
    places = {name: ranks(grid, COLUMNS[name], names) for name, grid in grids.items()}
    gains = {
        name: {row["method"]: row for row in grid["differences"] if row["level"] == COLUMNS[name]}
        for name, grid in grids.items()
    }

    def gain(grid: str, method: str) -> list[float]:
        row = gains[grid].get(method, {"points": 0, "low": 0, "high": 0})  # the baseline has no row
        return [round(row[part], 1) for part in ("points", "low", "high")]

    return {
        "columns": [
            {"name": grid["model"], "level": f"{COLUMNS[name]:.0%}".replace("%", " %")} for name, grid in grids.items()
        ],
        "baseline": "wanda",
        "start": "tamp",
        "methods": {
            method: {
                "label": LABELS[method],
                "color": figures.METHODS[method],
                "ranks": [int(places[name][0, number]) for name in COLUMNS],
                "low": [int(np.percentile(places[name][1:, number], 2.5)) for name in COLUMNS],
                "high": [int(np.percentile(places[name][1:, number], 97.5)) for name in COLUMNS],
                "accuracy": [
                    round(100 * results.mean(results.cells_of(grid, method, COLUMNS[name]), "accuracy"), 1)
                    for name, grid in grids.items()
                ],
                "gains": [gain(name, method) for name in COLUMNS],
            }
            for number, method in enumerate(names)
        },
    }


DERIVED: dict[str, Callable[[], dict]] = {"drag-to-prune": drag_to_prune, "ranking": ranking}
"""Name to what makes its data from recorded results."""

MEASURED: dict[str, Callable[[], dict]] = {
    "who-votes": lambda: figure_models.who_votes(seen()),
    "step-through-picks": lambda: figure_models.step_through_picks(seen()),
    "one-row": lambda: figure_models.one_row(seen()),
    "plan-sliders": figure_models.plan_sliders,
    "clip-picks": figure_models.clip_picks,
}
"""Name to what makes its data with a model."""

seen = functools.cache(figure_models.look)


def packed(data: dict) -> str:
    """Write data as one line of JSON, as short as it goes."""
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")) + "\n"


def read(name: str) -> dict:
    """Read the data of a figure."""
    return json.loads((FOLDER / f"{name}.json").read_text())


def write(name: str, folder: Path = FOLDER) -> None:
    """Make the data of a figure, and write them."""
    (folder / f"{name}.json").write_text(packed({**DERIVED, **MEASURED}[name]()))


def main(arguments: list[str] | None = None) -> None:
    """Write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "names", nargs="*", default=list(DERIVED), metavar="NAME", help="figures; those of DERIVED if none"
    )
    for name in parser.parse_args(arguments).names:
        write(name)


if __name__ == "__main__":
    main()
