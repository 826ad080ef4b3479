"""The data of the book's explorable figures, `book/_static/figures/NAME.json`.

    python tests/benchmarks/figure_data.py [NAME ...]

Those of `DERIVED` come from recorded results in seconds, and `tests/benchmarks/pages.py` writes them too. Those of `MEASURED`
run a shipped model. `tests/benchmarks/stills.py` draws the stills.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import answers
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
    """Return one picture's questions, and what each method answers at each level."""
    recorded, grid = results.recorded("answers"), results.recorded("smol_quality")
    levels = sorted({cell["level"] for cell in recorded["cells"]} - {0.0})
    said, accuracy = {"dense": [[*map(shown, answers.answers_of(recorded, "dense", 0.0))]]}, {}
    for method in answers.METHODS:
        found = [answers.answers_of(recorded, method, level) for level in levels]
        said[key(method)] = [given and [*map(shown, given)] for given in found]  # None: not recorded
        cells = {level: results.cells_of(grid, method, level) for level in levels}
        accuracy[key(method)] = {
            f"{100 * level:.0f}": round(100 * results.mean(some, "accuracy"), 1) for level, some in cells.items() if some
        }
    return {
        "picture": svg.picture_uri(answers.asked(1)[0].images[0]),
        "alt": "The picture: a purple ring, the word bow, the number 81, a cyan ring, a cyan diamond and a blue circle.",
        "questions": recorded["questions"],
        "levels": [round(100 * level) for level in levels],
        "methods": {
            key(method): {"label": LABELS[key(method)], "color": figures.METHODS[key(method)]} for method in answers.METHODS
        },
        "answers": said,
        "accuracy": accuracy,
        "n_questions": grid["n_questions"],
        "start": {"method": "tamp", "level": 50},
    }


DERIVED: dict[str, Callable[[], dict]] = {"drag-to-prune": drag_to_prune}
"""Name to what makes its data from recorded results."""

MEASURED: dict[str, Callable[[], dict]] = {}
"""Name to what makes its data with a model."""


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
    parser.add_argument("names", nargs="*", default=list(DERIVED), metavar="NAME", help="figures; those of DERIVED if none")
    for name in parser.parse_args(arguments).names:
        write(name)


if __name__ == "__main__":
    main()
