"""From the dense model to a plan: every allocation scores what its formula says, and the plan follows the scores."""

import math

import pytest
import tiny
import torch
from test_pruning import EVERY, run

from tamp import allocation, diversity, matrices, models, passes, planning, pruning, scores, walk
from tamp.recipe import Recipe


@EVERY
def test_das_scores_are_the_diversity_of_dense_outputs(family):
    model, samples = tiny.build(family)
    seen: dict[str, list] = {}
    handles = [
        linear.module.register_forward_hook(lambda m, i, o, name=name: seen.setdefault(name, []).append(o[0]))
        for name, linear in models.all_linears(model).items()
    ]
    with torch.no_grad():
        for each in samples:
            model(**each, use_cache=False)
    for handle in handles:
        handle.remove()
    report = pruning.prune(model, samples, Recipe.preset("das"), progress=False)
    codes = [models.modality(model, each)[0] for each in samples]
    terms = {1: 1, 2: 3, 3: 6}[tiny.MODALITIES.get(family, 2)]
    for name, score in zip(report.plan.linears, report.plan.scores):
        each = [
            diversity.diversity(diversity.similarities(outputs, code), terms)
            for outputs, code in zip(seen[name], codes)
        ]
        assert score == pytest.approx(sum(each) / len(each), abs=2e-6)


def test_block_granularity_gives_the_linears_of_a_block_one_sparsity():
    _, report = run(das_granularity="block", sparsity=0.5)
    for _, rows in report.table.groupby("block"):
        assert ((rows["got"] - rows["got"].iloc[0]).abs() * rows["weights"] <= 1.001).all()
    assert report.table["got"].nunique() > 1
    assert report.sparsity == 0.5


def test_blocks_with_different_numbers_of_linears_are_pooled_as_they_are():
    recipe = Recipe(sparsity=0.5, das_granularity="block")
    drops = planning.share_out([100] * 5, [1, 3, 1], [1.0, 2.0, 3.0, 4.0, 1.0], recipe)
    first, *middle, last = drops
    assert max(middle) - min(middle) <= 1
    assert abs(first - last) <= 1
    assert sum(drops) == 250


def test_higher_diversity_keeps_more_and_the_cap_holds():
    _, report = run(allocation="das", tokens="all", sparsity=0.5, das_cap=0.05)
    table = report.table
    assert table["got"].max() <= 0.55
    for _, same in table.groupby("weights"):
        ordered = same.sort_values("score")
        assert ordered["got"].is_monotonic_decreasing


def test_owl_counts_the_outliers_of_a_constructed_block(monkeypatch):
    """Inputs and weights of a block are set so that the outliers of Wanda's metric can be counted by hand."""
    monkeypatch.setattr(matrices, "NARROW", 1)
    block = torch.nn.Module()
    block.one, block.two = torch.nn.Linear(4, 2, bias=False), torch.nn.Linear(4, 2, bias=False)
    block.forward = lambda hidden: (block.one(hidden), block.two(hidden), hidden)[2]
    with torch.no_grad():
        block.one.weight.copy_(torch.tensor([[1.0, 1, 1, 1], [1, -100, 1, 1]]))
        block.two.weight.copy_(torch.tensor([[1.0, 1, 50, 0.1], [1, 1, 1, 1]]))
    hidden = torch.tensor(
        [[[1.0, -1, 1, 1], [-1, 1, 1, -1], [9, 9, 9, 9]]]
    )  # every channel's norm is 1 but for padding
    model = torch.nn.Module()
    model.block = block

    def step():
        sample = walk.Captured(hidden, [((), {})], torch.tensor([[0, 2, -1]]), source={}, padded=True)
        return walk.Step(model, 0, "block", [sample], attention=False, keep=False)

    recipe = Recipe.preset("owl")  # mean |W| over 16 entries is 10.19: above 51.0 is one entry, above 2 x 10.19 two
    with torch.no_grad():
        assert scores.owl(step(), recipe.options) == {"one": 1 / 16, "two": 1 / 16}
        looser = Recipe.preset("owl", owl_threshold=2.0)
        assert scores.owl(step(), looser.options) == {"one": 2 / 16, "two": 2 / 16}


def test_owl_drops_less_where_outliers_are_and_stays_in_its_band():
    drops = allocation.banded([0.02, 0.05, 0.02, 0.03], [1000] * 4, 0.6)
    scaled = [0.0, 1.0, 0.0, 1 / 3]  # min-max; their mean is 1/3
    assert drops == pytest.approx([1000 * (0.6 - 0.16 * (place - 1 / 3)) for place in scaled], abs=1)
    assert sum(drops) == 2400


def test_a_band_that_does_not_fit_becomes_narrower_and_equal_scores_are_uniform():
    assert allocation.banded([0.0, 1.0], [100, 100], 0.04) == [8, 0]
    assert allocation.banded([0.0, 1.0], [100, 100], 0.95) == [100, 90]
    assert allocation.banded([3.0, 3.0], [100, 300], 0.5) == [50, 150]
    for bad, half_width in (([1.0, float("nan")], 0.08), ([1.0], 0.08), ([1.0, 2.0], -1)):
        with pytest.raises(ValueError):
            allocation.banded(bad, [10, 10], 0.5, half_width)


@EVERY
def test_owl_prunes_blocks_evenly_within_and_exactly_in_all(family):
    model, report = run(family, allocation="owl", tokens="all", sparsity=0.5)
    assert report.sparsity == pytest.approx(0.5, abs=1e-5)
    found, sparsities = [], []
    for _, rows in report.table.groupby("block"):
        assert ((rows["got"] - rows["got"].iloc[0]).abs() * rows["weights"] <= 1.001).all()
        found.append(rows["score"].iloc[0])
        sparsities.append(rows["got"].iloc[0])
    assert max(sparsities) - min(sparsities) <= 0.16 + 1e-3
    assert sparsities[found.index(max(found))] == min(sparsities)


def test_the_exponent_of_a_known_power_law_is_found():
    """Eigenvalues at the quantiles of a Pareto law with density exponent 3 give Hill's estimate 3."""
    n, exponent = 400, 3.0
    quantile = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    eigenvalues = quantile ** (-1 / (exponent - 1))  # descending
    rotation = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).Q
    weight = rotation * eigenvalues.sqrt()
    assert scores.heavy_tail(weight) == pytest.approx(exponent, rel=0.02)
    assert scores.heavy_tail(weight.T) == pytest.approx(exponent, rel=0.02)
    assert scores.heavy_tail(1e-3 * weight) == pytest.approx(exponent, rel=0.02)


def test_the_hill_estimate_is_the_formula_on_four_eigenvalues():
    weight = torch.diag(torch.tensor([8.0, 4.0, 2.0, 1.0]))  # eigenvalues 64, 16, 4, 1: the upper half against 4
    assert scores.heavy_tail(weight) == pytest.approx(1 + 2 / (math.log(16) + math.log(4)))
    assert scores.heavy_tail(torch.eye(4)) == math.inf
    assert scores.heavy_tail(torch.zeros(3, 3)) == math.inf


def test_alphapruning_drops_more_where_the_tail_is_lighter_and_is_exact():
    recipe = Recipe(allocation="alphapruning", sparsity=0.5)
    drops = planning.share_out([1000] * 4, [2, 2], [2.0, 4.0, 3.0, math.inf], recipe)
    assert sum(drops) == 2000
    assert drops == pytest.approx([313, 613, 463, 613], abs=1)  # 500 +- 150, centred; infinite as the lightest
    assert planning.share_out([1000] * 4, [2, 2], [math.inf] * 4, recipe) == [500] * 4


@EVERY
def test_ecoflap_measures_the_slope_that_backpropagation_gives(family):
    model, samples = tiny.build(family, dtype=torch.float64)
    block = list(models.blocks(model).values())[0]
    named = {name: linear.weight for name, linear in models.linears(block).items()}
    sample, weights = samples[0], list(named.values())
    before = [weight.clone() for weight in weights]
    measured = scores.slope(model, sample, named, 1e-3, (0, 5))
    assert all(torch.equal(weight, original) for weight, original in zip(weights, before))
    loss = scores.text_loss(model, sample)
    gradients = torch.autograd.grad(loss, weights)
    along = sum((grad * part).sum() for grad, part in zip(gradients, scores.direction(named, (0, 5))))
    assert measured == pytest.approx(along.item(), rel=2e-2, abs=1e-5)


@EVERY
def test_ecoflap_scores_are_the_mean_slopes_of_whole_forward_passes_but_compute_half_of_them(family):
    model, samples = tiny.build(family)
    stack, step = list(models.blocks(model).values()), 1e-2
    recipe = Recipe(allocation="ecoflap", ecoflap_step=step)
    expected, ran = [], []
    with torch.no_grad():
        captured = walk.capture(model, samples, progress=False)
        for position, block in enumerate(stack):
            weights = {name: linear.weight for name, linear in models.linears(block).items()}
            slopes = [
                abs(scores.slope(model, sample, weights, step, (position, n))) for n, sample in enumerate(samples)
            ]
            expected += [float(f"{sum(slopes) / len(slopes):.6g}")] * len(weights)
        firsts = [next(iter(models.linears(block).values())).module for block in stack]
        handles = [
            linear.register_forward_hook(lambda module, *_: ran.append(firsts.index(module))) for linear in firsts
        ]
        with passes.hooks(*handles):
            found = planning.score(model, captured, recipe, progress=False)
    assert list(found.values()) == expected and all(expected)
    for position in range(len(stack)):  # twice per block that is moved up to this one, and once to go on
        assert ran.count(position) == (2 * (position + 1) + 1) * len(samples)
    assert not any("forward" in vars(block) for block in stack)


def test_replaced_blocks_have_their_own_forward_again_after_an_exception():
    model, samples = tiny.build("llama")
    first, second = list(models.blocks(model).values())[:2]
    second.forward = offloaded = second.forward  # an instance's own, as offloading sets it
    with pytest.raises(KeyboardInterrupt), passes.replaced([first, second], lambda *_: torch.zeros(1)):
        assert first(None) == second(None) == 0
        raise KeyboardInterrupt
    assert "forward" not in vars(first) and second.forward is offloaded


def test_the_loss_of_ecoflap_is_that_of_the_text_alone():
    model, samples = tiny.build("llava_next")
    sample = samples[1]
    logits = model(**sample, use_cache=False).logits[0].double().log_softmax(-1)
    codes, ids = models.modality(model, sample)[0], sample["input_ids"][0]
    taken = [-logits[place - 1, ids[place]].item() for place in range(1, len(ids)) if codes[place] == models.TEXT]
    assert scores.text_loss(model, sample).item() == pytest.approx(sum(taken) / len(taken), rel=1e-5)


@pytest.mark.parametrize("allocation_", ["owl", "alphapruning", "ecoflap", "das"])
def test_no_allocation_touches_a_weight(allocation_):
    model, samples = tiny.build("llava_next")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    recipe = Recipe(allocation=allocation_, sparsity=0.5)
    with torch.no_grad():
        captured = walk.capture(model, samples, progress=False)
        found = planning.score(model, captured, recipe, progress=False)
        again = planning.score(model, captured, recipe, progress=False)
    assert found == again and len(found) == sum(map(len, map(models.linears, models.blocks(model).values())))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_alphapruning_by_magnitude_needs_no_samples():
    model, _ = tiny.build("llava_next")
    recipe = Recipe(allocation="alphapruning", tokens="all", criterion="magnitude")
    report = pruning.prune(model, None, recipe, progress=False)
    assert report.sparsity == pytest.approx(0.5, abs=1e-5) and report.table["got"].nunique() > 1
