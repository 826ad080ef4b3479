"""Least-squares updates: the optimum that a direct solution gives, exact zeros, and every method that they go with."""

import pytest
import tiny
import torch

import tamp
from tamp import criteria, masks, models, updates
from tamp.errors import UserError
from tamp.recipe import Recipe


def problem(rows=6, width=12, tokens=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(tokens, width, generator=generator) @ torch.randn(width, width, generator=generator)
    weight = torch.randn(rows, width, generator=generator)
    mask = masks.unstructured(weight.abs(), drop=rows * width // 2)
    return inputs, weight, mask


def solved(weight, mask, hessian, damping):
    """Solve every row's normal equations in float64; inputs scaled to unit squares, damping towards the dense weights."""
    scale = hessian.diagonal().double().sqrt()
    matrix = hessian.double() / scale / scale[:, None] + damping * torch.eye(len(scale), dtype=torch.float64)
    found = torch.zeros_like(weight, dtype=torch.float64)
    for row, (dense, dropped) in enumerate(zip(weight.double() * scale, mask)):
        kept = ~dropped
        right = matrix[kept][:, dropped] @ dense[dropped]  # what the dropped weights did to the kept ones' equations
        found[row, kept] = dense[kept] + torch.linalg.solve(matrix[kept][:, kept], right)
    return found / scale


@pytest.mark.parametrize("damping", [0.0, 0.01, 0.1, 1.0])
def test_enough_steps_give_the_direct_solution(damping):
    inputs, weight, mask = problem()
    hessian = inputs.T @ inputs / len(inputs)
    found = updates.least_squares(weight, mask, hessian, damping=damping, steps=60, tolerance=0)
    torch.testing.assert_close(found.double(), solved(weight, mask, hessian, damping), rtol=2e-3, atol=2e-3)
    assert (found[mask] == 0).all()


def test_every_step_lowers_the_error_of_the_outputs():
    inputs, weight, mask = problem(rows=20, width=32, tokens=200)
    hessian = inputs.T @ inputs
    errors = [(inputs @ (weight.masked_fill(mask, 0) - weight).T).norm().item()]
    for steps in (1, 2, 5, 10, 20):
        moved = updates.least_squares(weight, mask, hessian, damping=0, steps=steps)
        errors.append((inputs @ (moved - weight).T).norm().item())
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.75 * errors[0]


@pytest.mark.parametrize("tokens", [3, 0])
def test_a_singular_hessian_leaves_nothing_worse_than_the_mask_alone(tokens):
    inputs, weight, mask = problem(tokens=40)
    inputs = inputs[:tokens]
    inputs[:, 0] = 0  # an input that is always zero
    hessian = inputs.T @ inputs
    for damping in (0.0, 0.1):
        found = updates.least_squares(weight, mask, hessian, damping=damping, steps=30)
        assert found.isfinite().all() and (found[mask] == 0).all()
        alone = weight.masked_fill(mask, 0)
        assert (inputs @ (found - weight).T).norm() <= (inputs @ (alone - weight).T).norm() * (1 + 1e-5)
        assert torch.equal(found[:, 0], alone[:, 0]), "what reads nothing stays"


def test_half_precision_keeps_its_type_and_exact_zeros():
    inputs, weight, mask = problem()
    found = updates.least_squares(weight.bfloat16(), mask, inputs.T @ inputs)
    assert found.dtype == torch.bfloat16 and (found[mask] == 0).all()
    with pytest.raises(ValueError, match="needs a mask of that shape"):
        updates.least_squares(weight, mask[:, :4], inputs.T @ inputs)


@pytest.mark.parametrize("preset", ["magnitude", "wanda", "text", "atv", "tamp", "sparsegpt"])
@pytest.mark.parametrize("changes", [{"sparsity": 0.6}, {"pattern": "2:4"}])
def test_the_mask_is_the_one_without_an_update_and_the_block_is_nearer_to_the_dense_one(preset, changes):
    if preset == "sparsegpt":
        changes = {**changes, "damping": 0.1}
    reports, models_ = [], []
    for update in ("none", "least_squares"):
        model, samples = tiny.build("llava_next")
        recipe = Recipe.preset(preset, update=update, **changes)
        reports.append(tamp.prune(model, samples, recipe, progress=False))
        models_.append(model)
    first = models.blocks(models_[0])
    name = next(iter(first))
    for one, other in zip(*(models.linears(models.blocks(model)[name]).values() for model in models_)):
        assert torch.equal(one.weight == 0, other.weight == 0), "before the first replay nothing else differs"
    assert reports[0].sparsity == pytest.approx(reports[1].sparsity, abs=1e-4)
    if preset not in ("sparsegpt", "magnitude"):  # the one has an update of its own, the other looked at no sample
        errors = [report.table["error"].iloc[0] for report in reports]
        assert errors[1] < errors[0]
    assert reports[1].summary()["recipe"]["update"] == "least_squares"


def test_matrices_with_one_input_share_one_hessian():
    statistics: dict = {}
    tokens = torch.randn(5, 4)
    inputs = {"q": tokens, "k": tokens, "o": torch.randn(5, 4)}
    every = torch.ones(5, dtype=torch.bool)
    for _ in range(2):
        criteria.add_shared(statistics, criteria.Hessian, inputs, dict.fromkeys(inputs, every))
    assert statistics["q"] is statistics["k"] is not statistics["o"]
    assert statistics["q"].count == 10
    torch.testing.assert_close(statistics["q"].value(), tokens.T @ tokens / 5)


def test_the_tokens_an_update_looks_at():
    model, samples = tiny.build("llava_next")
    captured = tamp.walk.capture(model, samples, progress=False)
    row = next(iter(next(tamp.walk.walk(model, captured))))
    every = {
        name: updates.tokens(row, {"update_tokens": name})["self_attn.q_proj"] for name in ("all", "text", "quarter")
    }
    words = row.codes == models.TEXT
    assert every["all"].all() and torch.equal(every["text"], words)
    assert (every["quarter"] & words).sum() == words.sum() and (every["quarter"] & ~words).sum() == -(
        -int((~words).sum()) // 4
    )


def test_bad_choices_are_named():
    with pytest.raises(UserError, match="least_sqares"):
        Recipe(update="least_sqares")
    with pytest.raises(UserError, match="update_steps has no effect with update='none'"):
        Recipe(update_steps=5)
    assert Recipe.preset("magnitude", update="least_squares").needs_samples
    with pytest.raises(UserError, match="needs calibration samples"):
        tamp.prune(tiny.build("llama")[0], None, Recipe.preset("magnitude", update="least_squares"), progress=False)


def test_experts_are_updated_by_their_own_tokens():
    import families

    errors = []
    for update in ("none", "least_squares"):
        model, samples = families.build("qwen3_vl_moe")
        report = tamp.prune(model, samples, Recipe.preset("wanda", update=update, sparsity=0.6), progress=False)
        assert report.sparsity == pytest.approx(0.6, abs=2e-3)
        errors.append(report.table["error"].iloc[-1])
    assert errors[1] < errors[0]
