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


@pytest.mark.parametrize("damping", [0.0, 0.01])
def test_steps_from_the_optimum_stay_there(damping):
    inputs, weight, mask = problem(rows=128, width=64, tokens=400)
    hessian = inputs.T @ inputs
    best = updates.least_squares(weight, mask, hessian, damping=damping, steps=60, tolerance=1e-7)
    found = updates.least_squares(weight, mask, hessian, damping=damping, steps=4, start=best)
    assert (inputs @ (found - best).T).norm() < 1e-3 * (inputs @ (best - weight).T).norm()


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


def test_admm_solves_its_three_equations_in_turn():
    """An oracle in float64 and in a loop, from the formulas: solve, choose, pull."""
    inputs, weight, _ = problem()
    hessian = inputs.T @ inputs / len(inputs)
    scale = hessian.diagonal().double().sqrt()
    matrix = hessian.double() / scale / scale[:, None] + 0.1 * torch.eye(len(scale), dtype=torch.float64)
    dense = weight.double() * scale
    solved, dual = dense.clone(), torch.zeros_like(dense)
    for step in range(1, 9):
        if step in (1, 3, 5, 6):
            drop = round(30 * (1 - (1 - step / 6) ** 3))
            order = ((solved + dual) / scale).abs().flatten().argsort()
            mask = torch.zeros(weight.numel(), dtype=torch.bool)
            mask[order[:drop]] = True
            mask = mask.reshape(weight.shape)
        kept = (solved + dual) * ~mask
        dual = dual + solved - kept
        right = dense @ matrix + 0.5 * (kept - dual)
        solved = torch.linalg.solve(matrix + 0.5 * torch.eye(len(scale), dtype=torch.float64), right.T).T

    def choose(current, share):
        found = torch.zeros(current.numel(), dtype=torch.bool)
        found[current.abs().flatten().argsort()[: round(30 * share)]] = True
        return found.reshape(current.shape)

    found, start = updates.admm(weight, choose, hessian, damping=0.1, penalty=0.5, steps=8)
    assert torch.equal(found, mask) and mask.sum() == 30
    torch.testing.assert_close(start.double(), (solved * ~mask / scale), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("changes", [{"sparsity": 0.6}, {"pattern": "2:4"}, {"pattern": "4:8", "allocation": "das"}])
def test_a_mask_chosen_while_the_others_adapt_loses_less_than_a_fixed_one(changes):
    errors = {}
    for update in ("least_squares", "admm"):
        model, samples = tiny.build("llava_next")
        report = tamp.prune(model, samples, Recipe.preset("text", update=update, **changes), progress=False)
        errors[update] = report.table["error"].mean()
        assert report.sparsity == pytest.approx(report.recipe.sparsity, abs=1e-3)
        if changes == {"pattern": "2:4"}:
            for matrix in (each for block in models.blocks(model).values() for each in models.linears(block).values()):
                assert (matrix.weight.unflatten(1, (-1, 4)) == 0).sum(-1).eq(2).all()
    assert errors["admm"] < errors["least_squares"]


def test_a_singular_hessian_does_not_stop_admm():
    inputs, weight, _ = problem()
    inputs[:, 0] = 0
    for tokens in (0, 3):
        hessian = inputs[:tokens].T @ inputs[:tokens]
        mask, _ = updates.admm(weight, lambda w, share: masks.unstructured(w.abs(), drop=round(36 * share)), hessian)
        assert mask.sum() == 36


def test_sparsegpt_keeps_the_choice_of_its_mask():
    with pytest.raises(UserError, match="chooses its mask column by column"):
        Recipe.preset("sparsegpt", update="admm")


@pytest.mark.parametrize("mass", [None, torch.linspace(0.5, 1.5, 40)])
def test_the_covariance_is_that_of_the_inputs_less_their_mean(mass):
    inputs, weight, mask = problem()
    inputs = inputs + torch.arange(12.0)
    found = criteria.Covariance(12)
    found.add(inputs[:15], None if mass is None else mass[:15])
    found.add(inputs[15:], None if mass is None else mass[15:])
    weights = torch.ones(40) if mass is None else mass
    mean = (inputs * weights[:, None]).double().sum(0) / 40
    second = (inputs * weights[:, None]).double().T @ inputs.double() / 40
    torch.testing.assert_close(found.value(), (second - mean[:, None] * mean).float(), rtol=1e-4, atol=1e-3)
    if mass is None:
        torch.testing.assert_close(
            found.value(), torch.cov(inputs.double().T, correction=0).float(), rtol=1e-4, atol=1e-3
        )


@pytest.mark.parametrize("spelled", ["sparsegpt:criterion=whisper", "wanda:update=least_squares_centred"])
def test_the_covariance_form_differs_and_meets_its_budget(spelled):
    outcomes = []
    for method in (spelled, spelled.replace("whisper", "sparsegpt").replace("_centred", "")):
        model, samples = tiny.build("llava_next")
        report = tamp.prune(model, samples, Recipe.spelled(method, 0.5), progress=False)
        assert report.sparsity == pytest.approx(0.5, abs=1e-3)
        outcomes.append(torch.cat([each.weight.flatten() for each in models.all_linears(model).values()]))
    assert not torch.equal(*outcomes)


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
    assert every["all"] is None and torch.equal(every["text"], words)
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


def test_an_expert_that_no_token_reached_is_updated_by_what_all_experts_saw():
    """A router made to send every token to the same experts: the others use the Hessian of all."""
    import families

    model, samples = families.build("qwen3_moe")
    expert = "mlp.experts.down_proj"
    for block in models.blocks(model).values():
        if hasattr(block.mlp, "gate"):
            block.mlp.gate.weight.data.zero_()  # all alike: the first ones are taken
    dense = {name: matrix.weight.clone() for name, matrix in models.all_linears(model).items()}
    recipe = Recipe.preset("magnitude", update="least_squares", sparsity=0.5)
    report = tamp.prune(model, samples, recipe, progress=False)
    assert report.pooled
    for name in report.pooled:
        if expert in name:
            after = models.all_linears(model)[name].weight
            kept = after != 0
            assert not torch.equal(after[kept], dense[name][kept]), name


@pytest.mark.parametrize("steps", [0, -1, 2.5, float("nan"), True])
def test_admm_needs_a_step(steps):
    with pytest.raises(ValueError, match="whole number of steps, at least one"):
        updates.admm(torch.ones(2, 4), lambda weight, share: weight > 2, torch.eye(4), steps=steps)
