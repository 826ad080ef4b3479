"""The measuring scripts run, scaled down."""

import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import block_reconstruction
import convergence
import cpu_speed
import das_control
import export_zeros
import full_scale
import other_calibration
import outliers
import pandas as pd
import pruning_speed
import pytest
import quality
import real_lm
import recovery
import repeatability
import retention
import rounding
import search
import selection_speed
import sizes
import tiny
import torch
import update_cost
import update_search
import votes

import tamp
from tamp import Recipe, criteria, updates
from tamp.evaluation import results


def test_selection_speed_compares_like_with_like(tmp_path):
    result = selection_speed.main(["--tokens", "200", "--width", "32", "--rounds", "1", "--out", str(tmp_path)])
    assert result["same_picks"] and result["same_picks_at_the_stopping_rule"]
    assert result["picked"]["forced"] == 40
    assert json.loads((tmp_path / "selection_speed.json").read_text())["made_with"]["torch"]


def test_full_scale_runs_scaled_down_and_survives_what_does_not_fit(tmp_path, monkeypatch):
    prune = tamp.prune

    def tight(model, samples, recipe, **options):
        if recipe.criterion == "sparsegpt":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")
        return prune(model, samples, recipe, **options)

    monkeypatch.setattr(tamp, "prune", tight, raising=False)
    tiny_run = [
        "--scale",
        "tiny",
        "--n",
        "2",
        "--rounds",
        "1",
        "--device",
        "cpu",
        "--methods",
        "wanda",
        "tamp",
        "sparsegpt",
    ]
    result = full_scale.main([*tiny_run, "--out", str(tmp_path)])
    assert set(result["over_wanda"]) == {"wanda", "tamp"} and list(result["out_of_memory"]) == ["sparsegpt"]
    assert set(result["phases"]["tamp"]) == {"capture", "allocate", "calibrate", "prune", "replay"}
    assert json.loads((tmp_path / "gpu_full_scale.json").read_text())["seconds"] == result["seconds"]


def test_all_that_wants_a_gpu_can_be_rehearsed_without_one(tmp_path):
    script = Path(__file__).parent / "benchmarks" / "gpu.sh"
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["bash", script, "--rehearse", tmp_path], capture_output=True, text=True, env=environment, timeout=500
    )
    assert done.returncode == 0, done.stdout + done.stderr
    records = {path.name: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    assert set(records) == {f"gpu_{part}.json" for part in ("tests", "full_scale", "semi_structured", "updates")}
    assert (
        records["gpu_tests.json"]["tests"]["test_a_preset_finds_nearly_the_masks_of_the_cpu[wanda-llama]"] == "passed"
    )
    assert len(records["gpu_semi_structured.json"]["rows"]) == 8
    assert set(records["gpu_updates.json"]["updates"]) == {"least_squares", "admm", "sparsegpt"}


def test_a_part_that_fails_does_not_stop_the_next(tmp_path):
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$1" >> "$(dirname "$0")/began"\n[ "$1" != tests/benchmarks/full_scale.py ]\n')
    python.chmod(0o755)
    script = Path(__file__).parent / "benchmarks" / "gpu.sh"
    done = subprocess.run(["bash", script, tmp_path / "out"], env={**os.environ, "PYTHON": str(python)})
    assert done.returncode == 1 and len((tmp_path / "began").read_text().splitlines()) == 4


def test_full_scale_is_the_published_architecture():
    """Its decoder has the 6.98 thousand million weights of Llama 3 8B's linears, counted without building it."""
    text, _, _ = full_scale.SCALES["8b"]
    width, inner, depth = text["hidden_size"], text["intermediate_size"], text["num_hidden_layers"]
    shared = width * text["num_key_value_heads"] // text["num_attention_heads"]
    assert depth * (2 * width * width + 2 * width * shared + 3 * width * inner) == 6_979_321_856


@pytest.mark.skipif(not shutil.which("zstd"), reason="the program zstd is not installed")
def test_sizes_are_measured_and_recorded_ones_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(sizes, "MODELS", {"mini-llava-next": {"bfloat16": (0.5,)}})
    result = sizes.main(["--models", "mini-llava-next", "--out", str(tmp_path)])
    (row,) = result["rows"]
    assert row["weights"] == 3_538_944 and row["bitmask"] == row["weights"] // 8 + row["weights"]
    assert row["compact"]["bytes"] < row["zstd -19"]["bytes"] < row["zstd -3"]["bytes"] < row["plain"]
    assert "| `mini-llava-next`, bfloat16, 50% |" in sizes.table(result)
    monkeypatch.setattr(sizes, "measure", lambda *ignored: pytest.fail("what is recorded was measured again"))
    assert sizes.main(["--models", "mini-llava-next", "--out", str(tmp_path)]) == result


def test_pruning_speed_runs(tmp_path):
    result = pruning_speed.main(["--n-samples", "2", "--rounds", "1", "--out", str(tmp_path)])
    assert result["over_wanda"]["wanda"] == 1
    assert set(result["allocation_over_forward"]) == set(pruning_speed.ALLOCATIONS)


def test_convergence_runs_and_more_samples_come_closer(tmp_path):
    result = convergence.main(["--n-samples", "16", "--n-seeds", "2", "--out", str(tmp_path)])
    curve = [row["distance_mean"] for row in result["curve"]]
    assert curve[-1] < curve[0]


def test_the_control_of_das_compares_scores_that_give_different_models(tmp_path):
    small = ["--n-questions", "10", "--n-samples", "2", "--levels", "0.7"]
    result = das_control.main([*small, "--out", str(tmp_path)])
    assert len({row["nll"] for row in result["rows"]}) == len(das_control.VARIANTS)
    assert das_control.reverse_ranks([3.0, 1.0, 2.0]) == [1.0, 3.0, 2.0]


def test_repeatability_counts_no_difference_between_two_equal_runs(tmp_path):
    small = ["--models", "mini-llava-next", "--n-samples", "1", "--n-questions", "5"]
    found = repeatability.main([*small, "--threads", "1", "--out", str(tmp_path)])["models"]["mini-llava-next"]
    for row in found["rows"]:
        assert row["same_run_again"] == row["picked_one_sample_at_a_time"] == 0
        assert row["other_threads"] == [0] * len(found["weights"]) and len(set(row["nll"])) == 1


def test_a_weight_that_only_one_of_two_models_has_is_counted_in_its_block():
    model, _ = tiny.build("llama")
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.model.layers[1].mlp.up_proj.weight[0, :3] = 0
        model.model.layers[1].mlp.up_proj.weight[0, 2:4] = 0
    assert repeatability.differing(model, other) == [0, 3, *[0] * (len(model.model.layers) - 2)]


def test_the_quality_grid_has_its_methods_and_runs_the_cells_that_were_asked_for(tmp_path):
    for _, methods, levels in quality.GRIDS.values():
        assert all(Recipe.spelled(method, level) for method in methods for level in levels)
    _, methods, levels = quality.GRIDS["smol-llava-next"]
    assert set(quality.METHODS) <= set(methods) and {0.3, 0.4, 0.5, 0.6, "2:4", "4:8"} <= set(levels)
    arguments = ["--model", "mini-llava-next", "--n-questions", "10", "--n-samples", "2", "--out", str(tmp_path)]
    made = quality.main([*arguments, "--levels", "0.7", "--methods", "wanda", "magnitude", "--calibration-seeds", "0"])
    assert [cell["method"] for cell in made["cells"]] == ["dense", "wanda", "magnitude"]
    assert json.loads((tmp_path / "mini_quality.json").read_text())["n_questions"] == 10


def found(method: str, level: float, seed: int, right: int, nll: float, seconds: float) -> dict:
    """Make a cell of a search: the first so many of 200 questions right."""
    correct = results.pack(pd.Series([place < right for place in range(200)]))
    cell = {"method": method, "level": level, "calibration_seed": seed, "n_questions": 200, "correct": correct}
    return cell | {"nll": nll, "seconds": seconds, "accuracy": right / 200}


def test_the_search_chooses_by_likelihood_among_what_costs_no_more():
    cells = []
    for level in (0.5, 0.6):
        for seed in (0, 1):
            cells.append(found("tamp", level, seed, 100, 1.0, 10.0))
            for number, method in enumerate(search.CANDIDATES):
                cells.append(found(method, level, seed, 100, 2.0 - 0.1 * number, 12.0 if number < 5 else 13.0))
    assert search.chosen({"cells": cells}) == search.CANDIDATES[4]
    with pytest.raises(ValueError, match=f"lacks cells of {search.CANDIDATES[-1]}"):
        search.chosen({"cells": cells[:-1]})


@pytest.mark.parametrize(
    ("right", "strictly", "otherwise"), [(150, True, True), (100, False, True), (60, False, False)]
)
def test_the_search_confirms_only_what_is_clearly_better(right, strictly, otherwise):
    cells = [
        found(method, level, seed, {"new": right}.get(method, 100), 1.0, 1.0)
        for method in (*search.REFERENCES, "new")
        for level in (0.5, 0.6)
        for seed in range(3)
    ]
    assert search.holds({"cells": cells}, "new") is strictly
    assert search.holds({"cells": cells}, "new", strictly=False) is otherwise


@pytest.mark.parametrize(("right", "verdict"), [(150, "above"), (100, "beside"), (60, "below")])
def test_an_update_is_above_beside_or_below_sparsegpt(right, verdict):
    cells = [
        found(method, level, seed, {"new": right}.get(method, 100), 1.0, 1.0)
        for method in ("sparsegpt", "new")
        for level in (0.5, 0.6)
        for seed in range(3)
    ]
    assert update_search.verdicts({"cells": cells}, "new") == {0.5: verdict, 0.6: verdict}
    said = update_search.line({"cells": cells, "model": "m"}, "new")
    assert said.count(f"{verdict} SparseGPT at") == 2 and said.startswith("* `m`, `new`: ")


@torch.no_grad()
def test_block_reconstruction_keeps_zeros_and_brings_the_block_nearer_to_the_dense_one():
    (dense, samples), (pruned, _) = tiny.build("llava_next"), tiny.build("llava_next")
    tamp.prune(pruned, samples, Recipe.preset("wanda", sparsity=0.6), progress=False)
    (name, whole), *_ = tamp.models.blocks(dense).items()
    block = tamp.models.blocks(pruned)[name]
    calls = block_reconstruction.calls_of(dense, whole, samples)
    targets = [whole(*given, **keywords) for given, keywords in calls]

    def off():
        return sum((block(*given, **keywords) - target).norm() for (given, keywords), target in zip(calls, targets))

    zeros = [matrix.weight == 0 for matrix in tamp.models.linears(block).values()]
    before = off()
    block_reconstruction.reconstruct(block, calls, targets, epochs=20, rate=1e-3)
    assert off() < 0.8 * before
    assert all(torch.equal(m.weight == 0, z) for m, z in zip(tamp.models.linears(block).values(), zeros))


def test_block_reconstruction_runs(tmp_path):
    arguments = "--model mini-llava-next --method wanda --level 0.7 --n-questions 4 --n-samples 2 --epochs 1"
    made = block_reconstruction.main([*arguments.split(), "--out", str(tmp_path)])
    assert made["exact_sparsity"] == pytest.approx(0.7, abs=1e-4)
    assert [cell["step"] for cell in made["cells"]] == ["update", "reconstruction"]


def test_the_rounding_script_exchanges_the_types_of_both_sums_and_puts_them_back(monkeypatch):
    seen = {}

    def run(model, stage, methods, *rest, **changes):
        rows = criteria.CRITERIA["sparsegpt"], updates.UPDATES["least_squares"]
        seen["types"] = [row.statistic(3, "cpu").total.dtype for row in rows]
        seen["methods"] = methods
        return {}

    monkeypatch.setattr(rounding.search, "run", run)
    rounding.main()
    assert seen["types"] == [torch.float32, torch.float64] and seen["methods"][0] == "sparsegpt"
    assert criteria.CRITERIA["sparsegpt"].statistic is criteria.Hessian


@pytest.mark.parametrize(("source", "visual"), [("prose", 0), ("half", 2), ("mini-vqa", 4)])
def test_calibration_sets_from_another_world(source, visual, processor, monkeypatch):
    monkeypatch.setattr(other_calibration, "SMOL", "mini-llava-next")
    drawn = other_calibration.samples(tamp.calibration_set, source, processor, 4, 3)
    assert len(drawn) == 4 and sum("pixel_values" in each for each in drawn) == visual
    again = other_calibration.samples(tamp.calibration_set, source, processor, 4, 3)
    assert all(torch.equal(one["input_ids"], other["input_ids"]) for one, other in zip(drawn, again))


def test_the_real_language_model_script_runs_on_a_stand_in_and_goes_on(tmp_path, processor, monkeypatch):
    arguments = [
        "--sparsities",
        "0.5",
        "--n-samples",
        "2",
        "--window",
        "16",
        "--windows",
        "2",
        "--threads",
        "1",
        "--out",
        str(tmp_path),
    ]

    def load(*ignored, **settings):
        return tiny.build("llama")[0], processor.tokenizer

    first = real_lm.main(arguments, load)
    assert [cell["method"] for cell in first["cells"]] == ["dense", *real_lm.METHODS]
    assert all(cell["documentation"] > 1 and cell["licence"] > 1 for cell in first["cells"])
    monkeypatch.setattr(real_lm.tamp, "prune", lambda *a, **k: pytest.fail("a finished cell was run again"))
    assert real_lm.main(arguments, load) == first


def test_votes_are_measured(tmp_path):
    """Words have their share of what is normalised, and a choice of text alone is all words."""
    found = votes.main(["--models", "mini-llava-next", "--n-samples", "2", "--out", str(tmp_path)])["models"]
    (found,) = found.values()
    assert found["vote"]["q_proj"] == pytest.approx(found["words"], rel=0.1)
    assert (
        found["vote"]["down_proj"] > 1.5 * found["words"]
        and 0 < found["first"]["down_proj"] < found["vote"]["down_proj"]
    )
    assert found["picked"]["text"] == found["words"] and found["words_picked"]["text"] == 1
    assert found["words"] < found["words_picked"]["amia"] < 1 and len(found["by_block"]) == 8
    assert results.recorded("votes")["models"]["mini-llava-next"].keys() == found.keys()


def test_outliers_are_measured_and_drawn(tmp_path):
    result = outliers.main(["--models", "mini-llava-next", "--n-samples", "2", "--out", str(tmp_path)])
    found = result["models"]["mini-llava-next"]
    assert {len(values) for values in (found["first_norm"], *found["linears"].values())} == {8}
    assert all(0 <= share <= 1 for share in found["first_attention"])
    assert (tmp_path / "outliers.png").stat().st_size > 10_000


def test_an_activation_outlier_and_an_attention_sink_are_found(tmp_path):
    """One channel of the embeddings made a hundred times as loud shows in the linears that read it."""
    model, samples = tiny.build("llama")
    plain = outliers.measure(model, samples)
    with torch.no_grad():
        model.model.layers[0].input_layernorm.weight[3] *= 100
    loud = outliers.measure(model, samples)
    assert loud["linears"]["q_proj"][0] > 20 * plain["linears"]["q_proj"][0]


def test_cpu_speed_compares_every_sparsity_with_both_dense_types(tmp_path):
    result = cpu_speed.main(["--size", "64", "--rounds", "1", "--out", str(tmp_path)])
    assert len(result["rows"]) == len(cpu_speed.TOKENS) * (3 + len(cpu_speed.SPARSITIES))
    assert all(row["milliseconds"] > 0 for row in result["rows"])
    assert "| dense bfloat16 |" in cpu_speed.table(result)


def test_zeros_are_counted_in_what_a_format_reads_back(tmp_path):
    pytest.importorskip("gguf")
    result = export_zeros.main(["--formats", "gguf", "--types", "Q8_0", "Q4_1", "--out", str(tmp_path)])
    kept, lost = result["rows"]
    assert kept["share"] == 1 and lost["share"] < 0.5 and kept["zeros"] == lost["zeros"] > 10**6


def test_recovery_trains_answers_alone_keeps_zeros_and_goes_on_where_it_stopped(tmp_path, monkeypatch, processor):
    setup = recovery.SETUPS["mini-llava-next"]
    lesson = recovery.lessons(setup, 1, 0)[0]
    sample = recovery.labelled(processor, lesson)
    answered = sample["labels"][sample["labels"] != recovery.IGNORED]
    assert processor.tokenizer.decode(answered).split() == [*lesson[0].answer.split(), "<eos>"]
    small = [
        "--models",
        "mini-llava-next",
        "--steps",
        "1",
        "--n-questions",
        "20",
        "--n-samples",
        "4",
        "--out",
        str(tmp_path),
    ]
    result = recovery.main([*small, "--seeds", "0"])
    cell = result["models"]["mini-llava-next"]["cells"][0]
    assert cell["zeros"]["pruned"] == cell["zeros"]["tuned"] and cell["tuned"]["nll"] < cell["pruned"]["nll"]
    assert "| 70.00% |" in recovery.table(result)
    monkeypatch.delattr(recovery, "run")
    assert recovery.main([*small, "--seeds", "0"]) == result


def test_an_update_takes_as_many_launches_whatever_the_width_and_sparsegpt_some_per_column():
    recorded = results.recorded("update_cost")["methods"]
    for method in ("least_squares", "admm"):
        counts = [update_cost.run(method, 8, width)[0] for width in (64, 160)]  # ties are settled in a few more
        assert counts == pytest.approx([recorded[method]["launches"]] * 2, abs=20)
        assert update_cost.products(method, 16, 64) == pytest.approx(recorded[method]["products"])
    few, many = (update_cost.run("sparsegpt", 8, width)[0] for width in (128, 256))
    assert (many - few) / 128 == pytest.approx(recorded["sparsegpt"]["launches_per_column"], abs=0.5)


def test_retentions_are_recorded_as_tamp_table_makes_them(tmp_path):
    few = ["--methods", "magnitude", "--limit", "1", "--work", str(tmp_path / "work"), "--out", str(tmp_path)]
    made = retention.main(few)
    assert {(row["method"], row["benchmark"]) for row in made["rows"]} == {
        (method, name) for method in ("dense", "magnitude") for name in (*retention.BENCHMARKS, "mean")
    }
    assert json.loads((tmp_path / "retention.json").read_text())["rows"] == made["rows"]
    assert retention.table(made).startswith("| method | textvqa | blink | pope | mean |")
