"""Plans as files: written, read, edited, compared, and followed by any method."""

import json

import pytest
import tiny
import torch
from test_pruning import zeros

import tamp
from tamp import models, plans
from tamp.errors import UserError
from tamp.recipe import PRESETS, Recipe


def made(family="llava_next", **recipe) -> tuple[torch.nn.Module, list[dict], plans.Plan]:
    model, samples = tiny.build(family)
    return model, samples, tamp.plan(model, samples, Recipe(**recipe), progress=False)


def edited(path, change) -> None:
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))


@pytest.mark.parametrize("recipe", [{}, {"allocation": "uniform"}, {"pattern": "2:4"}, {"allocation": "owl"}])
def test_a_written_plan_reads_as_it_was_and_a_line_is_a_linear(recipe, tmp_path):
    _, _, plan = made(**recipe)
    path = plan.write(tmp_path / "plan.json")
    assert plans.Plan.read(path) == plan
    assert path.read_text().count('"dropped"') == len(plan.linears) == sum("dropped" in x for x in path.open())
    assert sum(plan.drops) == round(sum(plan.sizes) * plan.target)
    assert str(plan).startswith(f"{plan.allocation} for {plan.model}: 50.0000%")


@pytest.mark.parametrize("pattern", [None, "4:8"])
def test_planning_apart_gives_what_pruning_plans_itself(pattern):
    model, samples, plan = made(pattern=pattern)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    again = tamp.plan(model, samples, Recipe(pattern=pattern), progress=False)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    alone, _ = tiny.build("llava_next")
    report = tamp.prune(alone, samples, Recipe(pattern=pattern), progress=False)
    assert report.plan == plan == again
    tamp.prune(model, samples, Recipe(pattern=pattern, allocation="uniform"), progress=False, plan=plan)
    assert all(torch.equal(mask, zeros(alone)[name]) for name, mask in zeros(model).items())


@pytest.mark.parametrize("preset", PRESETS)
def test_any_method_runs_under_any_plan(preset):
    model, samples, plan = made(das_cap=0.3)
    report = tamp.prune(model, samples, Recipe.preset(preset), progress=False, plan=plan)
    assert tuple(int(mask.sum()) for mask in zeros(model).values()) == plan.drops
    assert report.recipe.allocation == "das" and report.table["score"].notna().all()


def test_pruning_follows_an_edited_plan(tmp_path):
    model, samples, plan = made()
    path = plan.write(tmp_path / "plan.json")
    first, second = plan.linears[:2]

    def swap(found):
        found["linears"][first]["dropped"] += 7
        found["linears"][second]["dropped"] -= 7

    edited(path, swap)
    tamp.prune(model, samples, Recipe(), progress=False, plan=plans.Plan.read(path))
    mask = zeros(model)
    assert int(mask[first].sum()) == plan.drops[0] + 7 and int(mask[second].sum()) == plan.drops[1] - 7


def linear(number=0, **changes):
    return lambda found: list(found["linears"].values())[number].update(changes)


@pytest.mark.parametrize(
    ("recipe", "change", "message"),
    [
        ({}, linear(dropped=0), r"drop \d+ more, or set the target to 0\.4"),
        ({}, lambda f: f.update(target=0.4), r"fewer, or set the target to 0\.5"),
        ({}, linear(dropped=10**6), "cannot drop 1000000 of 1024 weights"),
        ({}, linear(dropped=-1), "q_proj cannot drop -1"),
        ({}, linear(dropped=1.5), "give a whole number"),
        ({}, linear(score=None), "the score of .* is None"),
        ({}, linear(score=float("nan")), "the score of .* is nan"),
        ({}, linear(dropped=1000), r"97\.66% of its weights, above the cap of 60\.00%"),
        ({}, lambda f: f.update(target=2), r"\[0, 1\)"),
        ({"pattern": "2:4"}, linear(dropped=513), "not a whole number per group of 4 inputs"),
        (
            {"pattern": "2:4"},
            lambda f: [row.update(dropped=0) for row in f["linears"].values()],
            "drop 0 weights together",
        ),
        ({"pattern": "2:4"}, lambda f: f.update(pattern="four"), "a pattern is 'n:m'"),
        ({}, lambda f: f.pop("target"), "has no 'target'"),
        ({}, lambda f: f["linears"].update(extra={"weights": 3}), "has no 'dropped'"),
        ({}, lambda f: f.update(linears=[]), "is not a plan"),
    ],
)
def test_a_plan_that_does_not_add_up_is_refused_when_it_is_read(recipe, change, message, tmp_path):
    path = made(**recipe)[2].write(tmp_path / "plan.json")
    edited(path, change)
    with pytest.raises(UserError, match=message) as error:
        plans.Plan.read(path)
    assert "plan.json" in str(error.value)


def test_what_is_no_plan_at_all_is_refused(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        plans.Plan.read(tmp_path / "plan.json")
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(UserError, match="is not a plan: .*`tamp plan` writes one"):
        plans.Plan.read(tmp_path / "plan.json")


def rename(plan: plans.Plan, old: str, new: str) -> plans.Plan:
    from dataclasses import replace

    return replace(plan, linears=tuple(name.replace(old, new) for name in plan.linears))


def test_a_plan_for_another_model_is_refused_before_anything_happens():
    model, samples, plan = made()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    other = made("llama")[2]
    for wrong, message in (
        (other, "There is no linear 'model.layers.0.self_attn.q_proj'"),
        (rename(plan, "k_proj", "key_proj"), "Did you mean '.*k_proj'"),
        (
            plans.Plan(linears=plan.linears[:-2], sizes=plan.sizes, drops=plan.drops, target=0.5),
            "lacks .* and 1",
        ),
        (
            plans.Plan(linears=plan.linears, sizes=(5,) * 21, drops=plan.drops, target=0.5),
            "1024 weights, and 5 in the plan",
        ),
    ):
        with pytest.raises(UserError, match=message):
            tamp.prune(model, samples, Recipe(), progress=False, plan=wrong)
    for recipe in (Recipe(sparsity=0.6), Recipe(pattern="2:4")):
        with pytest.raises(UserError, match=r"The plan is for a sparsity of 0\.5 and the recipe asks for"):
            tamp.prune(model, samples, recipe, progress=False, plan=plan)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_plan_for_other_weights_of_the_same_shape_is_reported(caplog):
    model, samples, plan = made()
    tamp.prune(model, samples, Recipe(), progress=False, plan=plan)
    assert not caplog.messages
    tamp.prune(model, samples, Recipe(), progress=False, plan=plan)  # pruned by now
    assert "made for other weights" in caplog.text


def test_a_fingerprint_is_the_model_s_not_its_device_s_or_type_s():
    model = tiny.build("llava_next", dtype=torch.bfloat16)[0]
    assert models.fingerprint(model) == models.fingerprint(model.float())
    assert models.fingerprint(model) != models.fingerprint(tiny.build("llava_next")[0])


def test_differences_of_two_plans_per_linear_and_in_total():
    _, samples, plan = made()
    model, *_ = made()
    even = tamp.plan(model, samples, Recipe(allocation="uniform"), progress=False)
    table = plans.differences(even, plan)
    assert list(table["first"]) == pytest.approx([0.5] * len(table), abs=1e-3)
    assert table["points"].abs().max() == pytest.approx(100 * (table["second"] - 0.5).abs().max(), abs=0.1)
    moved = sum(max(0, a - b) for a, b in zip(plan.drops, even.drops))
    assert plans.distance(plan.drops, even.drops) == pytest.approx(moved / sum(plan.drops))
    with pytest.raises(UserError, match="There is no linear"):
        plans.differences(plan, made("llama")[2])


def test_an_allocation_that_looks_at_activations_needs_samples():
    model, _ = tiny.build("llava_next")
    assert tamp.plan(model, None, Recipe(allocation="alphapruning"), progress=False).scores
    for allocation in ("das", "owl", "ecoflap"):
        with pytest.raises(UserError, match=f"{allocation!r} needs calibration samples"):
            tamp.plan(model, None, Recipe(allocation=allocation), progress=False)


def taken(plan) -> list[int]:
    """Return the places of the linears that drop something."""
    return [i for i, drop in enumerate(plan.drops) if drop]


@pytest.mark.parametrize("preset", ["wanda", "sparsegpt", "owl", "tamp"])
@pytest.mark.parametrize("sparsity", [0.0, 0.07, 0.3, 0.5])
def test_under_dense_or_a_pattern_every_linear_is_one_or_the_other(preset, sparsity):
    model, samples = tiny.build("llava_next")
    recipe = Recipe.preset(preset, pattern="dense|2:4", sparsity=sparsity)
    report = tamp.prune(model, samples, recipe, progress=False)
    for mask, drop in zip(zeros(model).values(), report.plan.drops):
        assert (mask.reshape(-1, 4).sum(1) == (2 if drop else 0)).all()
    sizes, drops = report.plan.sizes, report.plan.drops
    missed = abs(sum(drops) - round(sum(sizes) * sparsity))
    assert missed <= max(sizes) / 4
    assert report.sparsity == sum(drops) / sum(sizes) and (report.plan.cap, report.plan.target) == (None, sparsity)


def test_the_linears_that_the_allocation_prunes_hardest_take_the_pattern():
    _, _, plan = made(allocation="alphapruning", sparsity=0.3)
    _, _, either = made(allocation="alphapruning", sparsity=0.3, pattern="dense|2:4")
    shares = [drop / size for drop, size in zip(plan.drops, plan.sizes)]
    within = [i for i, size in enumerate(plan.sizes) if size == max(plan.sizes)]  # of one size, the share decides alone
    patterned = set(taken(either)) & set(within)
    assert patterned and patterned != set(within)
    assert min(shares[i] for i in patterned) >= max(shares[i] for i in set(within) - patterned)


def test_equal_shares_take_the_pattern_in_order():
    _, _, plan = made(allocation="uniform", sparsity=0.25, pattern="dense|2:4")
    places = taken(plan)
    assert places[0] == 0 and places[-1] < len(plan.sizes) - 1


def test_a_plan_of_dense_or_a_pattern_is_read_followed_and_checked(tmp_path):
    model, samples, plan = made(sparsity=0.3, pattern="dense|2:4")
    path = plan.write(tmp_path / "plan.json")
    assert plans.Plan.read(path) == plan
    recipe = Recipe(sparsity=0.3, pattern="dense|2:4", allocation="uniform", tokens="all")
    report = tamp.prune(model, samples, recipe, progress=False, plan=plan)
    assert tuple(int(mask.sum()) for mask in zeros(model).values()) == plan.drops
    assert report.recipe.allocation == "das" and report.recipe.pattern == "dense|2:4"
    edited(path, lambda found: found["linears"][plan.linears[taken(plan)[0]]].update(dropped=plan.sizes[0] // 4))
    with pytest.raises(UserError, match=r"give 0 or \d+ under dense\|2:4"):
        plans.Plan.read(path)
    plan.write(path)
    edited(path, lambda found: [row.update(dropped=0) for row in found["linears"].values()])
    with pytest.raises(UserError, match="more"):
        plans.Plan.read(path)


def test_a_level_of_dense_or_a_pattern_has_its_sparsity():
    recipe = Recipe.spelled("tamp", "dense|2:4@0.3")
    assert (recipe.pattern, recipe.sparsity) == ("dense|2:4", 0.3)
    for wrong in ("dense|2:4", "dense|2:4@0.6", "dense|2:4@x", "dense|4:2@0.3", "2:4@0.3", "dense@0.3"):
        with pytest.raises(UserError, match=r"needs a sparsity too|n:m|2:4 is a sparsity of 0.5|sparsity is a share"):
            Recipe.spelled("tamp", wrong)
