"""The rhythm of the notebooks: short cells, one short set-up, questions with answers, exercises that a cell checks."""

import re
import statistics
from pathlib import Path

import nbformat
import needs
import pandas as pd
import pytest
import refresh_notebooks
import update_search

from tamp import estimate
from tamp.evaluation import results
from tamp.recipe import Recipe

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
        if any(refresh_notebooks.DRAWING in output.get("data", {}) for output in cell.outputs):
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


def gain(grid: str, level: float, method: str, base: str) -> tuple[float, float]:
    """Return the interval of a difference in accuracy."""
    cells = [results.cells_of(results.recorded(grid), name, level) for name in (method, base)]
    return results.interval(*cells)[1:]


@pytest.mark.parametrize(
    ("grid", "level", "better", "worse"),
    [
        ("smol_quality", 0.5, "tamp", "wanda"),
        ("smol_quality", 0.5, "tamp", "magnitude"),
        ("smol_quality", 0.5, "sparsegpt", "tamp"),
        ("smol_quality", 0.5, "amia", "wanda"),
        ("smol_quality", 0.5, "atv", "amia"),
        ("mini_quality", 0.7, "magnitude", "tamp"),
        ("mini_quality", 0.7, "amia", "wanda"),
        ("mini_quality", 0.7, "atv", "amia"),
        ("mini_quality", 0.7, "text", "amia"),
        ("smol_quality", 0.5, "text", "tamp"),
        ("smol_quality", 0.5, "atv", "tamp"),
        ("mini_quality", 0.7, "sparsegpt", "tamp"),
        ("smol_av_quality", 0.4, "sparsegpt", "tamp"),
        ("smol_av_quality", 0.4, "text", "tamp"),
        ("smol_av_quality", 0.4, "atv", "tamp"),
        ("smol_av_quality", 0.4, "tamp", "wanda"),
        ("smol_av_quality", 0.4, "amia", "wanda"),
        ("smol_av_quality", 0.5, "ecoflap", "wanda"),
        ("smol_av_quality", 0.5, "wanda", "owl"),
        ("smol_av_quality", 0.5, "wanda", "alphapruning"),
    ],
)
def test_where_a_chapter_says_better_the_interval_is_above_zero(grid, level, better, worse):
    assert gain(grid, level, better, worse)[0] > 0


def test_what_the_chapters_say_of_other_records_holds():
    low, high = gain("smol_quality", 0.5, "text", "amia")
    assert low < 0 < high  # chapter 3: inconclusive
    nll = results.recorded("chapters/01_token_diversity")["nll"]
    assert nll["visual"] > nll["all"] > nll["text"]  # chapter 1: patches are the worst judges
    votes = results.recorded("votes")["models"]
    for found in votes.values():
        normal = [found["vote"][f"{name}_proj"] for name in ("q", "k", "v", "gate", "up")]
        assert normal == pytest.approx([found["words"]] * 5, rel=0.1)
    smol = votes["smol-llava-next"]
    assert 0.35 < smol["first"]["down_proj"] / smol["vote"]["down_proj"] < 0.45  # two fifths
    assert 0.4 < smol["words_picked"]["amia"] < 0.5 and 0.18 < votes["mini-llava-next"]["words_picked"]["amia"] < 0.24
    rows = pd.DataFrame(results.recorded("das_control")["rows"])
    rows = rows[rows["granularity"].isna() | (rows["granularity"] == "linear")]
    table = rows.pivot(index="scores", columns="level", values="accuracy")
    assert (table.loc["diversity"] - table.loc["equal"]).abs()[[0.6, 0.7]].max() <= 0.005  # chapter 2: half a point
    assert table[0.8]["diversity"] > table[0.8]["equal"] > table[0.8]["reversed"]
    cap = results.recorded("chapters/02_sparsity_allocation")["cap"]
    nll = dict(zip(cap["room"], cap["nll"]))
    assert nll[0.0] > nll[0.05] > nll[0.1] < nll[0.2] < nll[0.3] and nll[0.3] > nll[0.0]


def test_the_ranking_turns_over_as_chapter_5_says():
    for name, level, place in (("mini_quality", 0.7, 1), ("smol_quality", 0.5, 10), ("smol_av_quality", 0.4, 10)):
        grid = results.recorded(name)
        methods = results.methods(results.recorded("mini_quality"))
        right = {method: results.mean(results.cells_of(grid, method, level), "accuracy") for method in methods}
        order = sorted(methods, key=right.get, reverse=True)
        assert order[0] == "sparsegpt" and right["magnitude"] == right[order[place]]
        low, high = gain(name, level, "tamp", "amia")
        assert low > 0 if name == "mini_quality" else low < 0 < high  # a plan on top of tokens


def test_what_chapter_7_says_of_repairs_holds():
    grid = results.recorded("smol_update_levels")
    first, meanwhile = "atv:update=least_squares", "atv:update=admm,update_damping=0.01"
    assert update_search.verdicts(grid, first) == {0.4: "beside", 0.5: "beside", 0.6: "beside", "2:4": "below"}
    assert update_search.verdicts(grid, meanwhile) == {0.4: "beside", 0.5: "beside", 0.6: "above", "2:4": "beside"}
    for level in (0.4, 0.5, 0.6):
        text = {m: results.mean(results.cells_of(grid, m, level), "documentation") for m in results.methods(grid)}
        assert max(text[first], text[meanwhile]) < text["sparsegpt"]
    alone = results.recorded("smol_update_confirmation")
    assert all(results.mean(results.cells_of(alone, name, 0.6), "accuracy") < 0.01 for name in ("tamp", "atv", "text"))


def test_what_chapter_8_says_of_records_holds():
    rows = pd.DataFrame(results.recorded("cpu_speed")["rows"])
    for _, time in rows.groupby("tokens"):
        time = time.set_index("what")["over_float32"]
        assert time["dense float32, 50% zeros"] == pytest.approx(1, abs=0.1)
        assert time["sparse 0.5"] > time["sparse 0.6"] > 1.2 and time["sparse 0.9"] < 1
        assert time["sparse 0.95"] < time["dense bfloat16"] < time["sparse 0.8"]
    models = results.recorded("recovery")["models"]
    for name, found in models.items():
        dense = found["dense"]["accuracy"]
        for cell in found["cells"]:
            pruned, tuned = (cell[part]["accuracy"] for part in ("pruned", "tuned"))
            back = (tuned - pruned) / (dense - pruned)
            assert back > (0.85 if name == "mini-llava-next" else 0.5), (name, cell["seed"])


def test_what_chapter_9_says_of_memory_and_minutes_holds():
    """Of the configurations that the table of the page has."""
    tokens, gb = [needs.TOKENS] * needs.N_SAMPLES, 1e9
    sizes = {name: needs.sizes_of(config) for name, config in zip(("0.5B", "7B", "8B"), needs.MODELS)}
    tamp = {name: estimate.need(each, Recipe.preset("tamp"), tokens) for name, each in sizes.items()}
    path = ROOT / "notebooks" / "09_full_size.ipynb"
    (figure,) = [cell for cell in cells(path) if cell.id == "memory-figure"]
    lines = [
        f"{name}: {need.resident / gb:.1f}, {need.onloaded / gb:.1f}, {need.least / gb:.1f} GB"
        for name, need in tamp.items()
    ]
    assert figure.outputs[-1].text.splitlines() == lines
    room = estimate.ROOM
    assert tamp["7B"].resident + room < 24 * gb < tamp["8B"].resident and room == gb
    for name in ("7B", "8B"):
        assert tamp[name].resident > 20 * gb and tamp[name].least < 4 * gb
        assert tamp[name].states < tamp[name].onloaded < min(16 * gb - room, 2 * tamp[name].states, 10 * gb)
    methods = {name: Recipe.preset(name) for name in ("wanda", "tamp", "sparsegpt")}
    large = sizes["8B"]
    need = {name: estimate.need(large, recipe, tokens) for name, recipe in methods.items()}
    assert max(each.transient for each in need.values()) < large.outside == pytest.approx(2.8 * gb, abs=0.05 * gb)
    assert need["tamp"].resident == pytest.approx(25 * gb, abs=0.1 * gb)
    assert need["tamp"].least == pytest.approx(3.6 * gb, abs=0.05 * gb)
    each_sample = (need["tamp"].onloaded - need["tamp"].least) / needs.N_SAMPLES
    assert each_sample == pytest.approx(49e6, abs=5e5)
    for card in estimate.CARDS.values():
        offload = estimate.choose(need["tamp"], card.memory).offload
        took = {name: estimate.seconds(large, recipe, tokens, card, offload) for name, recipe in methods.items()}
        assert took["tamp"] / took["wanda"] == pytest.approx(4 / 3, abs=0.05) and took["sparsegpt"] > took["tamp"]
    host = results.recorded("host_memory")
    assert host["beside_masks"] < 2 * host["block"] + host["states"]
    assert results.recorded("rehearsal")["steps"]["prune"]["memory"] == pytest.approx(8.5 * gb, abs=0.05 * gb)
