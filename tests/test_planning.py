"""From the dense model to a plan: DAS and OWL score what the formulas say, and the plan follows the scores."""

import pytest
import tiny
import torch
from test_pruning import EVERY, run

from tamp import allocation, calibration, diversity, models, planning, pruning
from tamp.recipe import Recipe


@EVERY
def test_das_scores_are_the_diversity_of_dense_outputs(family):
    model, samples = tiny.build(family)
    seen: dict[str, list] = {}
    handles = [
        linear.register_forward_hook(lambda m, i, o, name=name: seen.setdefault(name, []).append(o[0]))
        for prefix, block in models.blocks(model).items()
        for name, linear in ((f"{prefix}.{name}", linear) for name, linear in models.linears(block).items())
    ]
    with torch.no_grad():
        for each in samples:
            model(**each, use_cache=False)
    for handle in handles:
        handle.remove()
    report = pruning.prune(model, samples, Recipe.preset("das"), progress=False)
    codes = [models.modality(model, each)[0] for each in samples]
    terms = 1 if family == "llama" else 3
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
    sizes = dict.fromkeys(("0.a", "1.a", "1.b", "1.c", "2.a"), 100)
    recipe = Recipe(sparsity=0.5, das_granularity="block")
    plan = planning.make_plan(sizes, [1, 3, 1], [1.0, 2.0, 3.0, 4.0, 1.0], recipe)
    first, *middle, last = plan.drops
    assert max(middle) - min(middle) <= 1
    assert abs(first - last) <= 1
    assert sum(plan.drops) == 250


def test_higher_diversity_keeps_more_and_the_cap_holds():
    _, report = run(allocation="das", tokens="all", sparsity=0.5, das_cap=0.05)
    table = report.table
    assert table["got"].max() <= 0.55
    for _, same in table.groupby("weights"):
        ordered = same.sort_values("score")
        assert ordered["got"].is_monotonic_decreasing


def test_owl_counts_the_outliers_of_a_constructed_block():
    """Inputs and weights of a block are set so that the outliers of Wanda's metric can be counted by hand."""
    block = torch.nn.Module()
    block.one, block.two = torch.nn.Linear(4, 2, bias=False), torch.nn.Linear(4, 1, bias=False)
    block.forward = lambda hidden: (block.one(hidden), block.two(hidden), hidden)[2]
    with torch.no_grad():
        block.one.weight.copy_(torch.tensor([[1.0, 1, 1, 1], [1, -100, 1, 1]]))
        block.two.weight.copy_(torch.tensor([[1.0, 1, 50, 0.1]]))
    hidden = torch.tensor(
        [[[1.0, -1, 1, 1], [-1, 1, 1, -1], [9, 9, 9, 9]]]
    )  # every channel's norm is 1 but for padding
    sample = calibration.Captured(hidden, [{}, {}], torch.tensor([[0, 2, -1]]))
    recipe = Recipe.preset("owl")  # mean |W| over 12 entries is 13.26: above 66.3 is one entry, above 2 x 13.26 two
    with torch.no_grad():
        assert planning.owl_scores([block], [sample], recipe, progress=False) == [1 / 12] * 2
        looser = Recipe.preset("owl", owl_threshold=2.0)
        assert planning.owl_scores([block], [sample], looser, progress=False) == [2 / 12] * 2


def test_owl_drops_less_where_outliers_are_and_stays_in_its_band():
    drops = allocation.banded([0.02, 0.05, 0.02, 0.03], [1000] * 4, 0.6)
    scaled = [0.0, 1.0, 0.0, 1 / 3]  # min-max; their mean is 1/3
    assert drops == pytest.approx([1000 * (0.6 - 0.16 * (place - 1 / 3)) for place in scaled], abs=1)
    assert sum(drops) == 2400


def test_a_band_that_does_not_fit_becomes_narrower_and_equal_scores_are_uniform():
    assert allocation.banded([0.0, 1.0], [100, 100], 0.04) == [8, 0]
    assert allocation.banded([0.0, 1.0], [100, 100], 0.95) == [100, 90]
    assert allocation.banded([3.0, 3.0], [100, 300], 0.5) == [50, 150]
    for scores, half_width in (([1.0, float("nan")], 0.08), ([1.0], 0.08), ([1.0, 2.0], -1)):
        with pytest.raises(ValueError):
            allocation.banded(scores, [10, 10], 0.5, half_width)


@EVERY
def test_owl_prunes_blocks_evenly_within_and_exactly_in_all(family):
    model, report = run(family, allocation="owl", tokens="all", sparsity=0.5)
    assert report.sparsity == pytest.approx(0.5, abs=1e-5)
    scores, sparsities = [], []
    for _, rows in report.table.groupby("block"):
        assert ((rows["got"] - rows["got"].iloc[0]).abs() * rows["weights"] <= 1.001).all()
        scores.append(rows["score"].iloc[0])
        sparsities.append(rows["got"].iloc[0])
    assert max(sparsities) - min(sparsities) <= 0.16 + 1e-3
    assert sparsities[scores.index(max(scores))] == min(sparsities)
