"""Every matrix dense or 2:4, whoever shares out, updates, moves weights about, or starts again."""

import dataclasses

import families
import pretend
import pytest
import tiny
import torch
from test_compare import SETTINGS

import tamp
from tamp import models, scores
from tamp.errors import UserError
from tamp.evaluation import compare
from tamp.recipe import Recipe

PATTERN = "dense|2:4"
SPARSITY = 0.3


def recipe(preset: str = "wanda", **changes) -> Recipe:
    return Recipe.preset(preset, pattern=PATTERN, sparsity=SPARSITY, **changes)


def pruned(family: str, asked: Recipe, **changes) -> tuple[dict, dict, tamp.Report]:
    """Prune a tiny model, and return its matrices before and after."""
    model, samples = families.build(family)
    before = {name: linear.weight.clone() for name, linear in models.all_linears(model).items()}
    report = tamp.prune(model, samples, asked, progress=False, **changes)
    return before, {name: linear.weight.detach() for name, linear in models.all_linears(model).items()}, report


def groups(weight: torch.Tensor, m: int = 4) -> torch.Tensor:
    """Count the zeros of every group of inputs of a row, (out, in / m)."""
    return (weight.unflatten(-1, (-1, m)) == 0).sum(-1)


def check(before: dict, after: dict, report: tamp.Report) -> None:
    """Check that every matrix is as it was or 2:4, that some are either, and that the exact share is what is reported."""
    dropped = dict(zip(report.plan.linears, report.plan.drops))
    patterned = {name for name in after if (groups(after[name]) == 2).all()}
    assert patterned and patterned == {name for name, count in dropped.items() if count}
    for name in dropped.keys() - patterned:
        assert torch.equal(before[name], after[name]), name
    zeros = sum(int((after[name] == 0).sum()) for name in dropped)
    assert report.sparsity == zeros / sum(after[name].numel() for name in dropped)
    sizes = [after[name].numel() for name in dropped]
    assert abs(zeros - SPARSITY * sum(sizes)) <= max(sizes) / 4


@pytest.mark.parametrize("allocation", [*scores.ALLOCATIONS, "das:block"])
def test_every_allocation_leaves_each_matrix_dense_or_patterned(allocation):
    name, _, granularity = allocation.partition(":")
    changes = {"das_granularity": granularity} if granularity else {}
    check(*pruned("llava_next", recipe(allocation=name, **changes)))


@pytest.mark.parametrize("preset", ["sparsegpt", "repair", "admm"])
def test_an_update_changes_what_stays_of_the_patterned_and_nothing_of_the_dense(preset):
    changes = {"update": "admm"} if preset == "admm" else {}
    before, after, report = pruned("llava_next", recipe("wanda" if changes else preset, **changes))
    check(before, after, report)
    stays = {name: weight != 0 for name, weight in after.items() if (weight == 0).any()}
    assert any(not torch.equal(before[name][stay], after[name][stay]) for name, stay in stays.items())


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
def test_experts_in_one_tensor_are_dense_or_patterned_one_by_one(family):
    """They are the matrices of the plan; in gpt_oss they are stored transposed."""
    check(*pruned(family, recipe("tamp")))


def test_heights_that_no_group_divides_do_not_matter():
    model, samples = tiny.build("llama")
    block = models.blocks(model)["model.layers.0"].mlp
    assert block.down_proj.in_features == 48
    for name in ("gate_proj", "up_proj"):
        narrow = torch.nn.Linear(32, 44, bias=False)
        setattr(block, name, narrow)
    block.down_proj = torch.nn.Linear(44, 32, bias=False)
    before = {name: linear.weight.clone() for name, linear in models.all_linears(model).items()}
    report = tamp.prune(model, samples, recipe(), progress=False)
    check(before, {name: linear.weight.detach() for name, linear in models.all_linears(model).items()}, report)


@pytest.mark.parametrize(
    ("pattern", "sparsity", "said"),
    [
        (PATTERN, None, "needs a sparsity too, from 0 to 0.5"),
        (PATTERN, 0.51, "needs a sparsity too, from 0 to 0.5, not 0.51"),
        ("dense|1:4", 0.3, "from 0 to 0.25"),
        ("dense|4:4", 0.3, "0 < n < m"),
        ("dense|", 0.3, "n of every m"),
        ("sparse|2:4", 0.3, "n of every m"),
    ],
)
def test_a_pattern_without_a_sparsity_it_can_reach_is_refused(pattern, sparsity, said):
    with pytest.raises(UserError, match=said):
        Recipe(pattern=pattern, sparsity=sparsity)


def test_a_width_that_is_not_whole_groups_is_refused_before_anything_changes():
    model, samples = tiny.build("llama")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError, match=r"widths divisible by 5; .*q_proj has 32 inputs"):
        tamp.prune(model, samples, Recipe(pattern="dense|2:5", sparsity=0.3), progress=False)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("preset", ["tamp", "sparsegpt"])
def test_weights_that_move_about_end_the_same(preset):
    _, right, report = pruned("llama", recipe(preset))
    with pretend.device():
        _, after, again = pruned("llama", recipe(preset), device="cuda", states="host")
    assert again.plan == report.plan
    for name, weight in right.items():
        assert torch.equal(weight == 0, after[name].cpu() == 0), name
        torch.testing.assert_close(after[name].cpu(), weight)


def test_a_run_to_a_folder_that_was_stopped_goes_on_to_the_same_weights(tmp_path):
    asked, out = recipe("tamp"), tmp_path / "out"
    _, right, report = pruned("llama", asked)
    model, samples = families.build("llama")

    def stop(*_):
        if any((linear.weight == 0).any() for linear in models.all_linears(model).values()):
            raise KeyboardInterrupt

    [*models.blocks(model).values()][2].register_forward_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        tamp.prune(model, samples, asked, progress=False, out=out)
    assert (tmp_path / "out.partial").is_dir() and not out.exists()
    model, samples = families.build("llama")
    with pytest.raises(UserError, match="another sparsity in the recipe"):
        other = Recipe.preset("tamp", pattern=PATTERN, sparsity=0.2)
        tamp.prune(model, samples, other, progress=False, out=out, resume=True)
    again = tamp.prune(model, samples, asked, progress=False, out=out, resume=True)
    assert repr(again.rows) == repr(report.rows)
    assert tamp.verify(out)["report"]["sparsity"] == report.sparsity
    state = model.state_dict()
    assert all(torch.equal(weight, state[f"{name}.weight"]) for name, weight in right.items())


@pytest.mark.parametrize("form", ["plain", "compact"])
def test_a_saved_folder_says_the_pattern_and_the_exact_share(mini, tmp_path, form):
    model, processor = mini
    report = tamp.prune(model, None, recipe("magnitude"), progress=False)
    folder = tamp.save(model, processor, tmp_path / "pruned", report, format=form)
    said = tamp.verify(folder)["report"]
    assert said["recipe"]["pattern"] == PATTERN and said["recipe"]["sparsity"] == SPARSITY
    loaded, _ = tamp.load(folder, device="cpu")
    weights = [linear.weight for linear in models.all_linears(loaded).values()]
    zeros = [int((weight == 0).sum()) for weight in weights]
    assert all(count in (0, weight.numel() // 2) for count, weight in zip(zeros, weights))
    assert said["sparsity"] == sum(zeros) / sum(weight.numel() for weight in weights) != SPARSITY


def test_a_comparison_holds_levels_of_either_kind(tmp_path):
    settings = dataclasses.replace(SETTINGS, n_questions=10)
    level = f"{PATTERN}@{SPARSITY}"
    grid = tamp.compare(
        settings, ("magnitude",), ("2:4", level), (0,), out=tmp_path / "grid.json", device="cpu", progress=False
    )
    dense, whole, either = grid["cells"]
    assert [compare.key(cell)[1] for cell in grid["cells"]] == [0.0, "2:4", level]
    assert whole["exact_sparsity"] == 0.5 and abs(either["exact_sparsity"] - SPARSITY) < 0.02
    assert dense["nll"] < either["nll"]
