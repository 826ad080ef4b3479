"""The notebooks: clean files, solutions that run, sound results under other parameters, and that a changed method shows."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import chapters
import nbformat
import papermill
import pytest
import refresh_notebooks

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
CHAPTERS = [path.stem for path in NOTEBOOKS]
PARAMETERS = {"MODEL", "SPARSITY", "N_SAMPLES", "CALIBRATION_SEED", "DEVICE"}
RECORDED = {"model", "sparsity", "n_samples", "n_questions", "calibration_seed"}
FAST = ("mini-llava-next", "smol-videollama2")  # shipped, and quick on a CPU
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=CHAPTERS)


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def code(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tagged(notebook: nbformat.NotebookNode, tag: str) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if tag in cell.metadata.get("tags", [])]


class TestFiles:
    """What a reader, or the next writer, finds in the files."""

    @each
    def test_stored_outputs_are_clean(self, path):
        notebook = read(path)
        assert path.stat().st_size < 1_000_000
        assert notebook.metadata == refresh_notebooks.METADATA
        assert [cell.execution_count for cell in code(notebook)] == list(range(1, len(code(notebook)) + 1))
        for cell in code(notebook):
            assert not cell.source.rstrip().endswith(";"), cell.id
            for output in cell.outputs:
                assert output.output_type != "error" and output.get("name") != "stderr", cell.id
                data = output.get("data", {})
                assert refresh_notebooks.WIDGET not in data and "image/png" not in data, cell.id
                drawing = data.get(refresh_notebooks.DRAWING, "")
                assert len(re.sub('base64,[^"]*', "", drawing)) < 110_000 and "\n" not in drawing, cell.id
                text = json.dumps({key: value for key, value in data.items() if "image" not in key})
                text += output.get("text", "")
                assert not re.search(r"/(root|home|work|tmp|Users)/|site-packages|np\.float64", text), cell.id

    @each
    def test_a_chapter_has_its_parts(self, path):
        notebook = read(path)
        first, (parameters,) = notebook.cells[0].source, tagged(notebook, "parameters")
        assert first.startswith("# ") and f"notebooks/{path.name})" in first and "**In this chapter**" in first
        assert len(notebook.cells) <= 56 and len({cell.id for cell in notebook.cells}) == len(notebook.cells)
        names = {line.targets[0].id: ast.literal_eval(line.value) for line in ast.parse(parameters.source).body}
        assert names.keys() >= PARAMETERS and names["MODEL"] in FAST
        told = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
        assert "## In plain words" in told and "## Exercises" in told and told.count("<summary>Solution</summary>") == 2
        assert any(f"results/{path.stem}.json" in cell.source for cell in code(notebook))

    @each
    def test_each_figure_has_a_number_under_it(self, path):
        for cell in code(read(path)):
            if any(
                refresh_notebooks.DRAWING in output.get("data", {}) for output in cell.outputs
            ) and not refresh_notebooks.ignored(cell):
                assert cell.outputs[-1].output_type in ("stream", "execute_result"), f"{cell.id}: nothing printed below"

    def test_the_colab_cell_is_the_same_everywhere_and_hidden(self):
        cells = [next(cell for cell in read(path).cells if cell.id == "colab") for path in NOTEBOOKS]
        assert all("remove-cell" in cell.metadata.tags for cell in cells)
        assert len({cell.source for cell in cells}) == 1

    @pytest.mark.slow
    def test_running_again_gives_the_very_same_file(self, tmp_path):
        """On one machine: the last bits of a figure's pixels depend on the processor."""
        notebook = read(ROOT / "notebooks" / "03_token_selection.ipynb")
        tagged(notebook, "parameters")[0].source += "\nN_SAMPLES = 2"
        once = refresh_notebooks.refreshed(notebook, tmp_path)
        again = refresh_notebooks.refreshed(once, tmp_path)
        assert nbformat.writes(again, version=4) == nbformat.writes(once, version=4)


COUNTING = """
import copy, gc, json, weakref
import torch, transformers, tamp
_held, _most, _plain, _load = weakref.WeakSet(), [0], copy.deepcopy, tamp.load
def _counted(made):
    if isinstance(made, transformers.PreTrainedModel):
        _held.add(made), gc.collect()
        _most[0] = max(_most[0], len(_held))
    return made
copy.deepcopy = lambda *given: _counted(_plain(*given))
tamp.load = lambda *given, **how: (lambda model, processor: (_counted(model), processor))(*_load(*given, **how))
"""
"""Counts the models that are alive whenever one more is loaded or copied."""

ALIVE: dict[str, int] = {}
"""Models alive at most, where that is more than one and a pruned copy; this should become empty."""


def solved(chapter: str) -> nbformat.NotebookNode:
    """Return a chapter that counts its models and goes on with the solutions of its exercises, each with its check."""
    notebook = read(ROOT / "notebooks" / f"{chapter}.ipynb")
    told = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    solutions = re.findall(r"```python\n(.*?)```", told, re.DOTALL)
    exercises = tagged(notebook, "exercise")
    assert solutions and len(exercises) in (0, len(solutions))
    made = (
        [solutions] if not exercises else [solutions, ["\n\n\n".join(e.source.split("\n\n\n")[1:]) for e in exercises]]
    )
    notebook.cells += [nbformat.v4.new_code_cell(source) for pair in zip(*made) for source in pair]
    notebook.cells.insert(0, nbformat.v4.new_code_cell(COUNTING))
    notebook.cells.append(nbformat.v4.new_code_cell("open('alive.json', 'w').write(json.dumps(_most[0]))"))
    return notebook


FEW = {"N_SAMPLES": 8, "N_QUESTIONS": 40}
OTHERS = {"06_audio_video": {"N_SAMPLES": 4, "N_QUESTIONS": 24}, "07_repair": {"N_SAMPLES": 12}}
"""Half of what a chapter takes by itself, or less; repairs need more samples."""


def run(chapter: str, folder: Path, **parameters) -> dict:
    """Run a chapter and the solutions of its exercises under other parameters, and return what the chapter found."""
    path = folder / "solved" / f"{chapter}.ipynb"
    path.parent.mkdir()
    nbformat.write(solved(chapter), path)
    assert {"SPARSITY", "CALIBRATION_SEED"} <= papermill.inspect_notebook(str(path)).keys() & parameters.keys()
    found = json.loads(chapters.run(path, FEW | OTHERS.get(chapter, {}) | parameters, folder).read_text())
    exercises = len(tagged(read(path), "exercise"))
    said = [cell.outputs[0].text for cell in read(folder / path.name).cells[-2 * exercises - 1 : -1][1::2]]
    assert all(text.startswith("Right.") for text in said), said
    assert json.loads((folder / "alive.json").read_text()) <= ALIVE.get(chapter, 2)
    return found


def check(chapter: str, found: dict, sparsity: float) -> None:
    """Check what must hold of a chapter's result under any parameters."""
    assert RECORDED - {"n_questions"} <= found["parameters"].keys() <= RECORDED
    if chapter == "00_quickstart":
        assert found["scores"]["dense"]["accuracy"] >= 0.95
        nll = {name: score["nll"] for name, score in found["scores"].items()}
        assert nll["dense"] < min(nll["wanda"], nll["tamp"])
        assert sparsity < 0.7 or nll["tamp"] < 0.7 * nll["wanda"]
        assert all(got == pytest.approx(sparsity, abs=1e-4) for got in found["sparsity"].values())
    elif chapter == "01_token_diversity":
        assert found["nll"]["text"] < found["nll"]["visual"]
        normal = {kind: share for kind, share in found["vote"].items() if kind not in ("o_proj", "down_proj")}
        assert all(share == pytest.approx(found["words"], rel=0.15) for share in normal.values()) and len(normal) == 5
        assert found["vote"]["down_proj"] > 1.5 * found["words"]
        assert all(found["overlap"]["two halves"][kind] > iou for kind, iou in found["overlap"]["visual, text"].items())
        assert all(-1 <= value <= 1 for pair in ("vv", "ll", "vl") for value in found["similarity"][pair])
    elif chapter == "02_sparsity_allocation":
        assert found["plan_error"] == 0 and len(found["scores"]) == len(found["sizes"]) == 56
        assert found["cap"]["spread"][0] <= 0.1 and found["cap"]["spread"] == sorted(found["cap"]["spread"])
        assert found["explained"] > 0.5
    elif chapter == "03_token_selection":
        assert found["same_as_package"] and 1 <= found["sample"]["picked"] < found["sample"]["tokens"]
        assert sum(found["sample"]["kinds"].values()) == found["sample"]["picked"]
        assert 2 < found["shares"]["picked (%)"]["amia"] < 40 and found["shares"]["words (%)"]["text"] == 100
    elif chapter == "04_pruning":
        assert found["masks_differ"] == 0
        assert found["nll"]["dense"] < min(value for name, value in found["nll"].items() if name != "dense")
        assert found["half"]["free"] < found["half"]["4:8"] < found["half"]["2:4"]
        assert all(
            got == pytest.approx(sparsity, abs=1e-4) for name, got in found["sparsity"].items() if ":" not in name
        )
    elif chapter == "06_audio_video":
        assert found["nll"]["dense"] == min(found["nll"].values())
        assert found["similarity"].keys() == {"vv", "aa", "ll", "va", "vl", "al"}
        assert sum(found["picked"].values()) == pytest.approx(1, abs=1e-3)
        plain, paper = (found["silence"][policy] for policy in ("plain", "paper"))
        assert paper["tokens"]["padding"] == 696 and paper["of the picks (%)"]["padding"] > 50
        assert paper["share picked (%)"]["padding"] > 2 * paper["share picked (%)"]["sound"]
        assert paper["picked"]["text"] > 0.8 * plain["picked"]["text"]  # the words lose no picks
    elif chapter == "07_repair":
        assert (
            found["by_hand"] == {"row": True, "masks_differ": 0}
            and found["row"]["repaired"] < found["row"]["mask alone"]
        )
        for errors in found["matrix"].values():
            assert errors["chosen meanwhile"] < errors["then repaired"] < errors["mask alone"]
        repairs = [found["nll"][name] for name in ("wanda, repaired", "sparsegpt", "repair")]
        assert found["nll"]["dense"] < min(repairs)
        assert max(repairs) < (found["nll"]["wanda"] if sparsity >= 0.7 else 0.2)  # below that Wanda loses little
    elif chapter == "08_what_pruning_buys":
        disk, (before, after) = found["disk"], found["zeros"]
        assert all(found["same"].values()) and after == before == pytest.approx(sparsity, abs=1e-4)
        assert disk["pruned"] == pytest.approx(1, abs=1e-3) and found["experts"] < 0.6
        assert disk["compact"] == pytest.approx(found["estimate"], rel=0.1)  # in 2:4 the mask takes less
        assert 1.1 * found["estimate"] < found["dense_coded"] < 1 and found["pack"] < 1 / 16
    elif chapter == "09_full_size":
        assert all(found["same"].values()) and found["sparsity"] == pytest.approx(sparsity, abs=1e-4)
        assert found["kept"] == 3 and found["scored"] == 5 * 7  # of eight blocks
        for resident, onloaded, least in found["gigabytes"].values():
            assert resident > onloaded > least
    else:
        assert chapter == "05_benchmarks"
        assert found["width"]["paired"] < found["width"]["apart"]
        assert found["nll"]["dense"] < min(found["nll"]["wanda"], found["nll"]["tamp"])
        assert sparsity < 0.7 or found["nll"]["tamp"] < 0.7 * found["nll"]["wanda"]
        assert found["accuracy"]["dense"] >= 0.95


every = pytest.mark.parametrize("chapter", CHAPTERS)


@pytest.mark.slow
class TestHigherSparsity:
    """Other sparsity, other calibration set."""

    @every
    def test_a_chapter_runs_and_finds_what_it_should(self, chapter, tmp_path):
        sparsity = 0.95 if chapter == "02_sparsity_allocation" else 0.7  # there the cap is above one
        check(chapter, run(chapter, tmp_path, SPARSITY=sparsity, CALIBRATION_SEED=1), sparsity)


@pytest.mark.slow
class TestPattern:
    """A pattern instead of a sparsity, where it matters."""

    @pytest.mark.parametrize("chapter", [chapter for chapter in CHAPTERS if chapter != "03_token_selection"])
    def test_a_chapter_runs_and_finds_what_it_should(self, chapter, tmp_path):
        check(chapter, run(chapter, tmp_path, SPARSITY="2:4", CALIBRATION_SEED=2), 0.5)


MUTATIONS = {
    "the threshold of AMIA": (
        "selection.py",
        "threshold: float = 0.1",
        "threshold: float = 0.2",
        "03_token_selection",
        "pick",
    ),
    "the threshold of AMIA as pruning uses it": (
        "selection.py",
        '"amia_threshold": Option(0.1,',
        '"amia_threshold": Option(0.2,',
        "03_token_selection",
        "everywhere",
    ),
    "AMIA's inhibition": ("graphs.py", "INHIBITION = 0.2", "INHIBITION = 0.3", "03_token_selection", "knobs"),
    "the number of ATV's patches": (
        "selection.py",
        '"atv_alpha": Option(1.0,',
        '"atv_alpha": Option(0.5,',
        "03_token_selection",
        "everywhere",
    ),
    "OWL's threshold": (
        "scores.py",
        '"owl_threshold": Option(5.0,',
        '"owl_threshold": Option(4.0,',
        "02_sparsity_allocation",
        "plans",
    ),
    "the sign of AMIA's inhibition": ("selection.py", "place], -lost)", "place], lost)", "03_token_selection", "pick"),
    "the cap of DAS": ("scores.py", "CAP = Option(0.1,", "CAP = Option(0.2,", "02_sparsity_allocation", "step"),
    "the sign of DAS": ("scores.py", "diverse = 1 - ", "diverse = 1 + ", "02_sparsity_allocation", "scores"),
}


@pytest.mark.slow
class TestMutations:
    """A changed constant or sign of the method makes ``pytest --nbval`` fail, at the cell that looks at it."""

    @pytest.mark.parametrize("name", MUTATIONS)
    def test_a_changed_method_is_noticed(self, name, tmp_path):
        module, old, new, chapter, cell = MUTATIONS[name]
        shutil.copytree(ROOT / "tamp", tmp_path / "tamp", ignore=shutil.ignore_patterns("__pycache__"))
        (tmp_path / "data").symlink_to(ROOT / "data")
        source = (tmp_path / "tamp" / module).read_text()
        assert old in source
        (tmp_path / "tamp" / module).write_text(source.replace(old, new))
        notebook = ROOT / "notebooks" / f"{chapter}.ipynb"
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "--nbval", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", notebook],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(tmp_path), "PYTEST_ADDOPTS": ""},
            capture_output=True,
            text=True,
        )
        place = next(number for number, found in enumerate(code(read(notebook))) if found.id == cell)
        assert done.returncode == 1, done.stdout
        assert f"Cell {place}" in done.stdout.split("short test summary")[-1], done.stdout
