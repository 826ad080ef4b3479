"""Comparing methods: cells run once and are recorded as they finish."""

import dataclasses
import json

import pandas as pd
import pytest
import torch

import tamp
from tamp import models, planning
from tamp.errors import UserError
from tamp.evaluation import compare, results, scoring

SETTINGS = tamp.Settings(
    model="mini-llava-next", benchmark="mini-vqa", calibration="mini-vqa", n_questions=20, n_samples=2
)
METHODS = ("magnitude", "wanda", "das:tokens=text")


def run(out, methods=METHODS, levels=(0.7,), seeds=(0, 1), **changes):
    settings = dataclasses.replace(SETTINGS, **changes)
    return tamp.compare(settings, methods, levels, seeds, out=out, device="cpu", progress=False)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    path = tmp_path_factory.mktemp("grid") / "grid.json"
    return run(path), path


def test_a_cell_is_what_pruning_and_evaluating_by_hand_give(made, mini):
    model, processor = mini
    recipe = tamp.Recipe.preset("das", tokens="text", sparsity=0.7)
    report = tamp.prune(model, tamp.calibration_set("mini-vqa", processor, 2, seed=1), recipe, progress=False)
    scored = scoring.answers(model, processor, "mini-vqa", 20, progress=False)
    (cell,) = (cell for cell in made[0]["cells"] if compare.key(cell) == ("das:tokens=text", 0.7, 1))
    assert cell["accuracy"] == pytest.approx(scored["correct"].mean(), abs=1e-4)
    assert cell["nll"] == pytest.approx(scored["nll"].mean(), abs=1e-3)
    assert list(results.unpack(cell)) == list(scored["correct"])
    assert cell["exact_sparsity"] == report.sparsity and cell["peak_memory"] > 50e6
    assert list(results.unpack(cell, "mask")) == list(compare.sampled_mask(model))


def test_scores_of_an_allocation_are_computed_once_for_all_levels(monkeypatch):
    scored, original = [], planning.score
    monkeypatch.setattr(planning, "score", lambda *given: scored.append(given) or original(*given))
    cells = [("das:tokens=text", 0.7, 0), ("das", 0.5, 0), ("das", "2:4", 0)]
    runner = compare.Runner(SETTINGS, "cpu")
    again = [runner(cell) for cell in cells]
    assert len(scored) == 1
    alone = [runner.scored.clear() or runner(cell) for cell in cells]
    assert len(scored) == 1 + len(cells)
    assert [cell["mask"] for cell in again] == [cell["mask"] for cell in alone]
    for cell in (("das", 0.5, 1), ("das:das_similarity=positive", 0.5, 0), ("tamp", 0.5, 0)):
        runner(cell)
    assert len(scored) == 3 + len(cells), "other samples and other scores are computed, TAMP's are those of DAS"


def test_one_model_is_held_and_made_dense_again(monkeypatch):
    pruned, original = [], compare.pruning.prune
    monkeypatch.setattr(
        compare.pruning, "prune", lambda model, *a, **k: pruned.append(model) or original(model, *a, **k)
    )
    runner = compare.Runner(SETTINGS, "cpu")
    before = {name: tensor.clone() for name, tensor in runner.model.state_dict().items()}
    dense = runner(compare.DENSE)
    assert runner.dense is None, "nothing is written before something is pruned"
    runner(("magnitude", 0.5, 0))
    assert all(model is runner.model for model in pruned)
    assert any(not torch.equal(tensor, before[name]) for name, tensor in runner.model.state_dict().items())
    assert runner(compare.DENSE) == dense
    assert all(torch.equal(tensor, before[name]) for name, tensor in runner.model.state_dict().items())
    blocks = [name for name in before if ".layers." in name and "language_model" in name]
    assert sorted(runner.dense) == sorted(blocks)


def test_the_file_holds_what_is_returned_and_magnitude_runs_for_one_seed(made):
    found, path = made
    assert json.loads(path.read_text()) | {"made_with": 0} == found | {"made_with": 0}
    assert [compare.key(cell) for cell in found["cells"]] == [
        compare.DENSE,
        *((method, 0.7, 0) for method in METHODS),
        *((method, 0.7, 1) for method in METHODS[1:]),
    ]
    assert [row["method"] for row in found["differences"]] == ["magnitude", "das:tokens=text"]


def test_finished_cells_are_not_run_again_and_more_may_be_asked_for(made, tmp_path, monkeypatch):
    path = tmp_path / "grid.json"
    path.write_text(made[1].read_text())
    monkeypatch.setattr(compare, "Runner", lambda *a: pytest.fail("a finished cell was run again"))
    assert run(path)["cells"] == made[0]["cells"]
    monkeypatch.undo()
    more = run(path, ("wanda", "text"), seeds=(0,))
    assert [compare.key(cell)[0] for cell in more["cells"][:3]] == ["dense", "wanda", "text"]
    assert len(more["cells"]) == len(made[0]["cells"]) + 1, "what was not asked for again stays"


def test_stopping_loses_the_unfinished_cell_only(tmp_path, monkeypatch):
    original, calls = compare.Runner.__call__, []

    def interrupt(self, cell):
        calls.append(cell)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(self, cell)

    monkeypatch.setattr(compare.Runner, "__call__", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "grid.json")
    stored = json.loads((tmp_path / "grid.json").read_text())["cells"]
    assert list(map(compare.key, stored)) == calls[:2]


def test_text_is_measured_where_it_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "TEXT_WINDOWS", 1)
    monkeypatch.setattr(compare, "FACTS", 2)
    monkeypatch.setattr(
        compare.prose, "texts", lambda: dict.fromkeys(("documentation", "licence"), "red circle ? " * 200)
    )
    found = run(tmp_path / "grid.json", ["magnitude"], n_questions=1, text=True)
    assert all(cell["documentation"] > 1 and 0 <= cell["facts"] <= 1 for cell in found["cells"])


def test_the_sampled_mask_looks_where_it_says(mini):
    model, _ = mini
    weights = [linear.weight.data for linear in models.all_linears(model).values()]
    assert not compare.sampled_mask(model).any()
    weights[3].zero_()
    share = weights[3].numel() / sum(weight.numel() for weight in weights)
    assert compare.sampled_mask(model).mean() == pytest.approx(share, rel=0.3)
    everything = torch.cat([weight.flatten() for weight in weights])
    places = (
        torch.randint(len(everything), (compare.results.SAMPLED,), generator=torch.Generator().manual_seed(0))
        .sort()
        .values
    )
    assert list(compare.sampled_mask(model)) == (everything[places] == 0).tolist()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ["wandas"]}, "Did you mean 'wanda'"),
        ({"methods": ["das:cap=3"]}, "no recipe field 'cap'"),
        ({"methods": ["das:das_cap"]}, "preset:field=value"),
        ({"methods": ["das:das_cap=big"]}, "must be a number"),
        ({"methods": ["wanda:das_cap=0.2"]}, "no effect with allocation='uniform'"),
        ({"levels": [1.5]}, r"\[0, 1\)"),
        ({"levels": ["2/4"]}, "2:4"),
        ({"methods": []}, "at least one method"),
        ({"seeds": []}, "one calibration seed"),
    ],
)
def test_what_means_nothing_is_refused_before_anything_runs(changes, message, tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "Runner", lambda *a: pytest.fail("it should have been refused"))
    with pytest.raises(UserError, match=message):
        run(tmp_path / "grid.json", **changes)
    assert not (tmp_path / "grid.json").exists()


def test_a_file_with_other_settings_is_refused_and_kept(made, tmp_path):
    path = tmp_path / "grid.json"
    path.write_text(made[1].read_text())
    with pytest.raises(UserError, match="n_questions=20, not 30"):
        run(path, n_questions=30)
    assert path.read_text() == made[1].read_text()
    path.write_text("[]")
    with pytest.raises(UserError, match="does not hold a comparison"):
        run(path)
    with pytest.raises(UserError, match="There is no baseline 'tamp'"):
        tamp.compare(SETTINGS, METHODS, [0.5], out=tmp_path / "new.json", baseline="tamp")


def test_a_file_in_the_old_vocabulary_is_refused_with_a_sentence(made, tmp_path):
    old = {"n_questions": "questions", "question_seed": "evaluation_seed", "n_samples": "calibration_samples"}
    old |= {"level": "sparsity", "calibration_seed": "seed", "baseline": "compared_to"}

    def renamed(value):
        if isinstance(value, dict):
            return {old.get(key, key): renamed(each) for key, each in value.items()}
        return [renamed(each) for each in value] if isinstance(value, list) else value

    path = tmp_path / "old.json"
    path.write_text(json.dumps(renamed(made[0])))
    before = path.read_text()
    with pytest.raises(UserError, match="another version of tamp.* Choose another file.$"):
        run(path)
    assert path.read_text() == before


def test_overlaps_are_intersection_over_union():
    def cell(method, seed, dropped):
        bits = pd.Series([place in dropped for place in range(16)])
        return {"method": method, "level": 0.5, "calibration_seed": seed, "mask": results.pack(bits)}

    table = results.overlaps(
        {"cells": [cell("a", 0, {1, 2, 3}), cell("a", 1, {1, 2, 4}), cell("b", 0, {3, 4}), cell("b", 1, {1, 2, 4})]},
        0.5,
    )
    assert table.loc["a", "b"] == table.loc["b", "a"] == pytest.approx((1 / 4 + 1) / 2)
    assert table.loc["a", "a"] == pytest.approx(2 / 4) and table.loc["b", "b"] == pytest.approx(1 / 4)


def test_scores_are_means_with_intervals_and_retention(made):
    table = results.scores(made[0]).set_index("method")
    cells = results.cells_of(made[0], "wanda", 0.7)
    assert table.loc["wanda", "n_seeds"] == 2 and table.loc["magnitude", "n_seeds"] == 1
    assert table.loc["wanda", "nll"] == pytest.approx((cells[0]["nll"] + cells[1]["nll"]) / 2)
    share = table.loc["wanda", "accuracy"] / table.loc["dense", "accuracy"]
    assert table.loc["wanda", "retention"] == pytest.approx(100 * share)
    assert (table["low"] <= table["accuracy"]).all() and (table["accuracy"] <= table["high"]).all()


def test_tasks_are_means_over_seeds_of_the_methods_that_were_run(made):
    table = results.tasks(made[0], 0.7)
    cells = results.cells_of(made[0], "wanda", 0.7)
    assert list(table) == ["dense", *results.methods(made[0])] and list(table.index) == list(cells[0]["tasks"])
    for task, share in table["wanda"].items():
        assert share == pytest.approx(50 * (cells[0]["tasks"][task] + cells[1]["tasks"][task]))
    assert list(results.tasks(made[0], 0.1)) == ["dense"]
