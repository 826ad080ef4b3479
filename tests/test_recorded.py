"""What was recorded is complete, meets its bounds, and is what the pages show."""

import dataclasses
import json
import subprocess
from pathlib import Path

import chapters
import pages
import pytest
import quality
import repeatability
import senses
import sizes
import trained_experts

from tamp import Recipe
from tamp.evaluation import compare, results
from tamp.worlds import clips

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("model", quality.GRIDS)
def test_the_recorded_grids_are_complete(model):
    settings, methods, levels = quality.GRIDS[model]
    result, settings = results.recorded(quality.name(model)), dataclasses.asdict(settings)
    assert list(map(compare.key, result["cells"])) == compare.cells(methods, levels, quality.CALIBRATION_SEEDS)
    assert {name: result[name] for name in settings} == settings
    assert results.differences(result, result["baseline"]).to_dict("records") == result["differences"]


def test_the_recorded_speeds_meet_their_bounds():
    """Ratios measured side by side, recorded by the scripts; a slower change fails here once it is recorded."""
    selection = results.recorded("selection_speed")
    assert selection["amia_over_floor"] <= 1.3 and selection["same_picks"]
    assert selection["released_over_picking"] >= 100
    pruning = results.recorded("pruning_speed")
    assert pruning["over_wanda"]["tamp"] <= 2.2 and pruning["over_wanda"]["amia"] <= 1.6
    passes = pruning["allocation_over_forward"]
    assert max(passes["das"], passes["owl"]) <= 1.2


def test_compact_files_are_recorded_as_smaller_than_those_of_zstd():
    """At every level, by more than a tenth; and for every level that the script asks for."""
    rows = results.recorded("sizes")["rows"]
    asked = [
        (model, dtype, level) for model, types in sizes.MODELS.items() for dtype in types for level in types[dtype]
    ]
    assert [(row["model"], row["dtype"], row["level"]) for row in rows] == asked
    for row in rows:
        others = [row[name]["bytes"] for name in ("zstd -3", "zstd -19") if name in row]
        assert row["compact"]["bytes"] < 0.9 * min(*others, row["bitmask"]), row


def test_the_default_number_of_allocation_samples_is_where_the_recorded_curve_flattens():
    result = results.recorded("allocation_convergence")
    default = Recipe().allocation_samples
    row = next(row for row in result["curve"] if row["n_samples"] == default)
    assert row["distance_max"] <= 0.06 * result["uniform_distance"]


@pytest.mark.parametrize("model", repeatability.ASKED)
def test_recorded_masks_are_the_same_when_run_again(model):
    found = results.recorded("repeatability")["models"][model]
    for row in found["rows"]:
        assert row["same_run_again"] == row["picked_one_sample_at_a_time"] == 0
        assert model != "mini-llava-next" or sum(row["other_threads"]) < 1e-6 * sum(found["weights"]), row


@pytest.mark.parametrize("chapter", chapters.QUESTIONS)
def test_the_chapters_were_recorded_with_the_parameters_of_their_script(chapter):
    found = results.recorded(f"chapters/{chapter}")["parameters"]
    assert (found["model"], found["sparsity"], found["n_samples"]) == tuple(chapters.PARAMETERS.values())
    assert found.get("n_questions", chapters.QUESTIONS[chapter]) == chapters.QUESTIONS[chapter]


def test_tasks_about_a_sense_are_at_chance_without_it():
    """Every task is far over chance on whole clips; without frames or sound, the tasks about them are at chance."""
    conditions = results.recorded("senses")["conditions"]
    assert list(conditions) == list(senses.CONDITIONS)
    for name, needed in ((f"without {part}", tasks) for part, tasks in clips.WITHOUT.items()):
        for task, row in conditions[name].items():
            whole = conditions["whole"][task]
            assert whole["low"] > row["chance"] + 0.2
            assert row["high"] < whole["low"] if task in needed else row["high"] >= whole["low"]
        over = [conditions[name][task]["accuracy"] - conditions[name][task]["chance"] for task in needed]
        assert sum(over) / len(over) < 0.05, name


@pytest.mark.parametrize(
    ("name", "mean", "weakest"),
    [("mini-llava-next", 0.85, 0.65), ("smol-llava-next", 0.9, 0.75), ("smol-videollama2", 0.93, 0.8)],
)
def test_what_is_shipped_is_small_and_met_its_bar(name, mean, weakest):
    """Size, and the training record's final table on fresh questions."""
    folder = ROOT / "data" / name
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 25e6
    assert list(folder.glob("*.safetensors")) and not list(folder.glob("*.bin"))
    final = json.loads((folder / "training.json").read_text())["held_out"]
    accuracy = {task: row["accuracy"] for task, row in final["tasks"].items()}
    assert sum(row["n"] for row in final["tasks"].values()) >= 1000
    assert sum(accuracy.values()) / len(accuracy) >= mean
    assert min(accuracy.values()) >= weakest


def test_recorded_experts_of_a_trained_model_are_lost_as_the_page_says():
    """`book/experts.md`: which experts stay matters from half of them on, and differently for the two accuracies."""
    found = results.recorded("trained_experts")
    wanted = {(name, number) for name in trained_experts.METHODS for number in trained_experts.KEPT}
    for name, number in wanted:
        cells = results.cells_of(found, name, number)
        assert sorted(cell["calibration_seed"] for cell in cells) == list(trained_experts.SEEDS)

    def side(one: str, other: str, number: int) -> int:
        """Say whether one is surely above (1) or below (-1) another in exact match."""
        _, low, high = results.interval(*(results.cells_of(found, name, number) for name in (one, other)))
        return int(low > 0) - int(high < 0)

    def among(name: str, number: int) -> float:
        return results.mean(results.cells_of(found, name, number), "choice_accuracy")

    (dense,) = results.cells_of(found, "dense", 8)
    for name in trained_experts.CHOICES:
        assert results.mean(results.cells_of(found, name, 6), "accuracy") > dense["accuracy"] - 0.01
        assert side(name, "count", 6) == 1
    exact = {name: results.mean(results.cells_of(found, name, 4), "accuracy") for name in trained_experts.CHOICES}
    assert (
        side("all", "random", 4) == -1 and max(exact, key=exact.get) == "balanced" and side("balanced", "all", 4) == 1
    )
    assert side("balanced", "random", 4) == 0 and side("words", "all", 4) == side("words", "all", 2) == 1
    assert all(side(name, "random", 2) < 1 for name in trained_experts.METHODS if name != "random")
    for number in (4, 2):
        assert among("words", number) < among("balanced", number)
        assert among("words", number) < among("all", number)
    assert among("all", 4) > dense["choice_accuracy"] - 0.02
    shares = trained_experts.leaning(found["routed"])[["visual", "text"]]
    assert (shares > 0.005).all(axis=None) and ((shares.max(axis=1) > 2 * shares.min(axis=1)).mean() > 0.5)


def test_recorded_fine_tuning_kept_every_zero_and_raised_accuracy():
    for found in results.recorded("recovery")["models"].values():
        for cell in found["cells"]:
            assert cell["zeros"]["tuned"] == cell["zeros"]["pruned"] >= found["setup"]["sparsity"] - 1e-6
            assert cell["tuned"]["accuracy"] > cell["pruned"]["accuracy"]


MOVING = {"Q4_1", "Q5_1", "Q2_K", "Q4_K", "Q5_K", "IQ4_XS"}
"""Types of GGUF with a minimum per block, or without a level at zero."""


def test_recorded_formats_without_a_minimum_kept_every_zero():
    shares = {row["type"]: row["share"] for row in results.recorded("export_zeros")["rows"]}
    assert all((share == 1) == (name not in MOVING) for name, share in shares.items())
    assert shares.keys() >= MOVING


def tracked() -> list[Path]:
    """Return every file of the project that git lists."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()]


@pytest.mark.parametrize("page", pages.PAGES)
def test_pages_show_what_was_recorded_and_shipped(page):
    assert (ROOT / page).read_text() == pages.refreshed(page), "run python tests/benchmarks/pages.py"


def test_every_shipped_file_is_on_the_data_page():
    page = (ROOT / "data/README.md").read_text()
    for path in tracked():
        parts = path.relative_to(ROOT).parts
        if parts[0] == "data" and not {"training", "chapters"} & set(parts) and path.name != "README.md":
            assert path.name in page, f"{path} is not on data/README.md"
