"""The rhythm of the notebooks: short cells, one short set-up, questions with answers, exercises that a cell checks."""

import re
import statistics
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LATER: set[str] = set()
"""Chapters that do not keep the rhythm yet; this should become empty."""

each = pytest.mark.parametrize(
    "path", [path for path in NOTEBOOKS if path.stem not in LATER], ids=lambda path: path.stem
)


def lines(source: str) -> int:
    return sum(bool(line.strip()) for line in source.splitlines())


def cells(path: Path, *without: str) -> list[nbformat.NotebookNode]:
    """Return the code cells that have none of some tags."""
    every = nbformat.read(path, as_version=4).cells
    return [
        cell for cell in every if cell.cell_type == "code" and not set(without) & set(cell.metadata.get("tags", []))
    ]


def prose(path: Path) -> str:
    return "\n\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown")


@each
def test_cells_are_short(path):
    seen = {cell.id: lines(cell.source) for cell in cells(path, "hide-input", "remove-cell")}
    assert statistics.median(seen.values()) <= 8, seen
    long = {cell.id: n for cell in cells(path, "by-hand", "remove-cell") if (n := lines(cell.source)) > 25}
    assert not long


@each
def test_the_set_up_is_short(path):
    (imports,) = [cell for cell in cells(path) if cell.id == "imports"]
    assert lines(imports.source) <= 6
    later = [cell.id for cell in cells(path, "remove-cell") if re.search(r"^(import|from) ", cell.source, re.M)]
    assert later == ["imports"]
    (load,) = [cell for cell in cells(path) if cell.id == "load"]
    assert lines(load.source) <= 6


@each
def test_the_chapter_has_its_number_and_says_where_words_are_explained(path):
    text = prose(path)
    assert text.startswith(f"# {int(path.stem[:2])} · ")
    assert "(../book/glossary.md)" in text and "(../book/symbols.md)" in text


@each
def test_five_questions_are_answered_and_two_exercises_checked(path):
    text = prose(path)
    assert text.count("<summary>Answer</summary>") == 5
    assert all(f"**{number}.** " in text.partition("## Five questions")[2] for number in range(1, 6))
    exercises = [cell for cell in cells(path) if "exercise" in cell.metadata.get("tags", [])]
    assert len(exercises) == 2
    for cell in exercises:
        assert cell.outputs[-1].text.startswith("Not filled in yet"), cell.id


@each
def test_plots_are_folded_and_described(path):
    for cell in cells(path):
        if any("image/png" in output.get("data", {}) for output in cell.outputs):
            assert "hide-input" in cell.metadata.tags, cell.id
            assert len(cell.metadata["mystnb"]["image"]["alt"]) > 40, cell.id


@each
def test_figures_and_methods_are_linked(path):
    text = prose(path)
    for block in re.findall(r"<figure.*?</figure>", text, re.S):
        name = re.search(r'id="([\w-]+)"', block)[1]
        assert f'src="../book/_static/figures/{name}.svg"' in block and "<figcaption>" in block
        assert "\n" not in block and len(re.search(r'alt="([^"]+)"', block)[1]) > 40
    for method, link in PAPERS.items():
        if re.search(rf"\b{method}\b", text.partition("## Exercises")[0]):
            assert link in text, f"{method} is not linked to {link}"


PAPERS = {
    "Wanda": "https://arxiv.org/abs/2306.11695",
    "SparseGPT": "https://arxiv.org/abs/2301.00774",
    "OWL": "https://arxiv.org/abs/2310.05175",
    "AlphaPruning": "https://arxiv.org/abs/2410.10912",
    "ECoFLaP": "https://arxiv.org/abs/2310.02998",
    "ATV": "https://arxiv.org/abs/2603.16001",
    "TAMP": "https://aclanthology.org/2025.findings-acl.359/",
}
"""Where each method comes from."""
