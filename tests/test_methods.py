"""Method tables: options stated once, and functions of one's own in the place of names."""

import json

import pytest
import tiny
import torch

import tamp
from tamp import criteria, models, scores, selection
from tamp.errors import UserError
from tamp.recipe import METHODS, PRESETS, Recipe, options


def magnitude_again(weight, mean_square):
    return weight.float().abs()


def last_half(row):
    mask = row.codes >= 0
    mask[: len(mask) // 2] = False
    return mask


def by_size(step):
    return {name: float(linear.weight.float().norm()) for name, linear in step.linears.items()}


def by_output(step):
    totals = dict.fromkeys(step.linears, 0.0)
    for row in step:
        for name, output in row.outputs.items():
            totals[name] += output.float().square().mean().item()
    return totals


def prune(family="llava_next", **recipe):
    model, samples = tiny.build(family)
    report = tamp.prune(model, samples, Recipe(**{"sparsity": 0.5, **recipe}), progress=False)
    return model, report


def zeros(model):
    return {name: linear.weight == 0 for name, linear in models.all_linears(model).items()}


def test_a_criterion_of_ones_own_gives_the_masks_of_the_same_criterion_by_name():
    named, _ = prune(allocation="uniform", tokens="all", criterion="magnitude")
    own, report = prune(allocation="uniform", tokens="all", criterion=magnitude_again)
    assert all(torch.equal(mask, zeros(named)[name]) for name, mask in zeros(own).items())
    assert "test_methods.magnitude_again" in str(report)


def test_tokens_of_ones_own_are_the_ones_that_count():
    _, report = prune(allocation="uniform", tokens=last_half)
    model, samples = tiny.build("llava_next")
    expected = sum(len(each["input_ids"][0]) - len(each["input_ids"][0]) // 2 for each in samples) / len(samples)
    assert (report.table["kept"] == expected).all()
    everything, _ = prune(allocation="uniform", tokens="all")
    other, _ = prune(allocation="uniform", tokens=last_half)
    assert any(not torch.equal(mask, zeros(everything)[name]) for name, mask in zeros(other).items())


@pytest.mark.parametrize("allocation", [by_size, by_output])
def test_an_allocation_of_ones_own_keeps_more_where_its_score_is_higher(allocation):
    _, report = prune(allocation=allocation, tokens="all")
    assert report.sparsity == 0.5
    for _, same in report.table.groupby("weights"):
        assert same.sort_values("score")["got"].is_monotonic_decreasing
    assert report.plan.allocation == f"test_methods.{allocation.__name__}"


def test_functions_go_by_their_qualified_names_in_plan_manifest_and_report(tmp_path):
    model, report = prune(allocation=by_size, tokens=last_half, criterion=magnitude_again)
    tamp.save(model, None, tmp_path / "pruned", report=report)
    recipe = json.loads((tmp_path / "pruned" / "tamp.json").read_text())["report"]["recipe"]
    assert recipe["allocation"] == "test_methods.by_size"
    assert recipe["tokens"] == "test_methods.last_half"
    assert recipe["criterion"] == "test_methods.magnitude_again"
    plan = tamp.Plan.read(report.plan.write(tmp_path / "plan.json"))
    assert plan.allocation == "test_methods.by_size"
    again, samples = tiny.build("llava_next")
    under = tamp.prune(again, samples, Recipe(sparsity=0.5, tokens="all"), progress=False, plan=plan)
    assert "test_methods.by_size + all + wanda" in str(under)


def test_a_function_takes_the_options_of_what_it_stands_for():
    assert Recipe(allocation=by_size, das_cap=0.2).options["das_cap"] == 0.2
    with pytest.raises(UserError, match="das_similarity has no effect with allocation='test_methods.by_size'"):
        Recipe(allocation=by_size, das_similarity="positive")


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"criterion": lambda weight, square: weight[0]}, "return one number per weight"),
        ({"criterion": lambda weight, square: weight * float("nan")}, "gives NaN"),
        ({"allocation": lambda step: {}}, "return a number for every name in step.linears"),
        ({"tokens": lambda row: row.codes < -1}, "selected none in any sample"),
        ({"allocation": lambda step: dict.fromkeys(step.linears, float("nan"))}, "finite"),
    ],
)
def test_a_function_that_returns_something_else_is_named(recipe, message):
    with pytest.raises((UserError, ValueError), match=message):
        prune(**{"allocation": "uniform", "tokens": "all", **recipe})


def test_every_option_has_a_meaning_a_default_and_a_bound():
    for name, option in options().items():
        assert option.meaning and (option.choices or option.least is not None), name
        option.check(name, option.default)
        with pytest.raises(UserError, match=name):
            option.check(name, "nonsense" if option.choices else (option.least - 1))


def test_every_method_says_what_it_does_and_all_but_the_plain_ones_where_it_is_from():
    for table in METHODS.values():
        for name, row in table.items():
            assert row.summary, name
            assert bool(row.source) == (name not in ("uniform", "all", "text", "balanced", "magnitude", "none")), name


def test_presets_are_rows_of_the_tables():
    for preset in PRESETS.values():
        assert all(preset.get(axis, "none") in METHODS[axis] for axis in METHODS)
    for name in PRESETS:
        assert all(Recipe.preset(name).summary()[field] == value for field, value in PRESETS[name].items())


def test_a_new_row_is_a_method_everywhere(monkeypatch):
    """Adding a method touches one table: the recipe, its errors and the command line's spelling follow."""
    monkeypatch.setitem(criteria.CRITERIA, "own", criteria.rule(magnitude_again))
    monkeypatch.setitem(selection.TOKENS, "late", selection.rule(last_half))
    monkeypatch.setitem(scores.ALLOCATIONS, "size", scores.rule(by_size))
    recipe = Recipe.spelled("tamp:allocation=size,tokens=late,criterion=own", 0.5)
    model, samples = tiny.build("llava_next")
    assert tamp.prune(model, samples, recipe, progress=False).sparsity == 0.5
    with pytest.raises(UserError, match="size"):
        Recipe(allocation="sizes")


def test_numbers_of_other_libraries_are_taken_and_whole_ones_must_be_whole():
    import numpy as np

    recipe = Recipe(tokens="amia", amia_neighbours=np.int64(5), das_cap=np.float32(0.25), allocation_samples=8.0)
    assert recipe.options["amia_neighbours"] == 5 and type(recipe.options["amia_neighbours"]) is int
    assert recipe.options["das_cap"] == 0.25 and type(recipe.options["das_cap"]) is float
    assert recipe.allocation_samples == 8 and type(recipe.allocation_samples) is int
    for bad in (64.5, float("inf"), float("nan"), "64", True, None):
        with pytest.raises(UserError, match="amia_neighbours must be a whole number of at least 1"):
            Recipe(amia_neighbours=bad)
    with pytest.raises(UserError, match="das_cap must be a number of at least 0"):
        Recipe(das_cap=float("inf"))


def test_ria_is_its_formula():
    weight = torch.tensor([[1.0, -3.0, 0.0], [2.0, 1.0, 0.0]])
    square = torch.tensor([16.0, 1.0, 4.0])
    found = criteria.ria(weight, square)
    for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
        size = weight.abs()
        expected = (size[i, j] / size[:, j].sum() + size[i, j] / size[i].sum()) * square[j].sqrt() ** 0.5
        assert found[i, j].item() == pytest.approx(expected.item(), rel=1e-6)
    assert (found[:, 2] == 0).all(), "an input that no row reads is no division by zero"


def test_the_variance_is_that_of_all_tokens_together():
    tokens = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)) + 3
    statistic = criteria.Variance(4)
    for part in tokens.split(7):
        statistic.add(part)
    torch.testing.assert_close(statistic.value(), tokens.var(0, correction=0))


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_balanced_tokens_give_each_kind_its_share_of_the_mean_square(share):
    modality = torch.tensor([0, 0, 0, 1, 2, 2, -1])
    tokens = torch.arange(1.0, 8.0)[:, None]
    mass = selection.balanced(modality, models.TEXT, share)
    assert mass[-1] == 0 and mass[:6].sum().item() == pytest.approx(6)
    statistics = {"one": criteria.MeanSquare(1)}
    criteria.add(statistics, {"one": tokens}, {"one": mass})
    text, others = tokens[4:6].square().mean(), tokens[:4].square().mean()
    statistic = statistics["one"].total / 6
    assert statistic.item() == pytest.approx((share * text + (1 - share) * others).item(), rel=1e-6)
    assert selection.balanced(torch.tensor([2, 2, -1]), models.TEXT, share).tolist() == [1, 1, 0]
    with pytest.raises(UserError, match="text_share must be a number from 0 to 1"):
        Recipe(tokens="balanced", text_share=1.5)
