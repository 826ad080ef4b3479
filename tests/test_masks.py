"""Masks from a metric, row by row or n of m, and their packing into bits."""

import math

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tamp import masks

checked = settings(deadline=None, derandomize=True, max_examples=200)
sparsities = st.integers(0, 99).map(lambda percent: percent / 100)
seeds = st.integers(0, 2**31)


def metric_of(seed: int, rows: int, columns: int, levels: int | None = None) -> torch.Tensor:
    """Draw a metric; with `levels` it takes few values, so that ties abound."""
    chance = torch.Generator().manual_seed(seed)
    if levels:
        return torch.randint(levels, (rows, columns), generator=chance).float()
    return torch.rand(rows, columns, generator=chance)


def same(mask: torch.Tensor, expected: np.ndarray) -> bool:
    assert mask.dtype == torch.bool and tuple(mask.shape) == expected.shape
    return bool((mask.numpy() == expected).all())


# Unstructured ---------------------------------------------------------------------------------------------------------


@checked
@given(seeds, st.integers(1, 6), st.integers(1, 40), sparsities, st.sampled_from([None, 1, 3]))
def test_every_row_drops_its_smallest(seed, rows, columns, sparsity, levels):
    metric = metric_of(seed, rows, columns, levels)
    assert same(masks.unstructured(metric, sparsity), oracles.unstructured(metric, sparsity))


@checked
@given(seeds, st.integers(1, 6), st.integers(1, 20), st.floats(0, 1), st.sampled_from([None, 1, 3]))
def test_an_exact_count_drops_one_more_where_the_next_is_least(seed, rows, columns, share, levels):
    metric = metric_of(seed, rows, columns, levels)
    drop = round(rows * columns * share)
    mask = masks.unstructured(metric, drop=drop)
    assert mask.sum() == drop
    assert same(mask, oracles.unstructured_count(metric, drop))


def test_the_sparsity_is_the_decimal_it_prints_as():
    metric = metric_of(0, 1, 100)
    for percent in range(100):
        assert masks.unstructured(metric, percent / 100).sum() == percent
    assert masks.unstructured(metric, np.float64(0.29)).sum() == 29


def test_ties_drop_the_lower_column_first():
    mask = masks.unstructured(torch.ones(2, 5), 0.4)
    assert mask.tolist() == [[True, True, False, False, False]] * 2


def test_ties_between_rows_drop_in_the_lower_row_first():
    mask = masks.unstructured(torch.ones(3, 2), drop=4)
    assert mask.tolist() == [[True, True], [True, False], [True, False]]


def test_wide_rows_with_ties_keep_their_order():
    metric = metric_of(1, 4, 5000, levels=3)
    assert same(masks.unstructured(metric, 0.5), oracles.unstructured(metric, 0.5))
    assert same(masks.unstructured(metric, drop=9999), oracles.unstructured_count(metric, 9999))


def test_nothing_and_everything_can_be_dropped():
    metric = metric_of(2, 3, 4)
    assert masks.unstructured(metric, 0.0).sum() == 0
    assert masks.unstructured(metric, drop=0).sum() == 0
    assert masks.unstructured(metric, drop=12).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_metrics_give_the_mask_of_their_values(dtype):
    metric = metric_of(3, 5, 200).to(dtype)  # rounding makes ties
    assert same(masks.unstructured(metric, 0.5), oracles.unstructured(metric, 0.5))
    assert same(masks.unstructured(metric, drop=501), oracles.unstructured_count(metric, 501))
    assert same(masks.n_of_m(metric, 2, 4), oracles.n_of_m(metric, 2, 4))


@pytest.mark.parametrize("layout", ["transposed", "strided"])
def test_the_memory_layout_of_a_metric_is_no_matter(layout):
    metric = metric_of(4, 8, 8, levels=4)
    view = metric.T.contiguous().T if layout == "transposed" else torch.stack([metric, metric], -1)[..., 0]
    assert not view.is_contiguous()
    assert same(masks.unstructured(view, 0.5), oracles.unstructured(metric, 0.5))
    assert same(masks.unstructured(view, drop=33), oracles.unstructured_count(metric, 33))
    assert same(masks.n_of_m(view, 2, 4), oracles.n_of_m(metric, 2, 4))


def test_the_metric_is_left_as_it_was():
    metric = metric_of(5, 4, 8)
    before = metric.clone()
    masks.unstructured(metric, 0.5), masks.unstructured(metric, drop=7), masks.n_of_m(metric, 2, 4)
    assert torch.equal(metric, before)


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 1.5, math.nan, math.inf])
def test_a_sparsity_outside_zero_to_one_is_refused(sparsity):
    with pytest.raises(ValueError, match="sparsity"):
        masks.unstructured(torch.ones(2, 4), sparsity)


@pytest.mark.parametrize("drop", [-1, 9])
def test_a_count_outside_the_matrix_is_refused(drop):
    with pytest.raises(ValueError, match="drop"):
        masks.unstructured(torch.ones(2, 4), drop=drop)


def test_exactly_one_of_sparsity_and_count_must_be_given():
    with pytest.raises(ValueError, match="sparsity.*drop|drop.*sparsity"):
        masks.unstructured(torch.ones(2, 4))
    with pytest.raises(ValueError, match="sparsity.*drop|drop.*sparsity"):
        masks.unstructured(torch.ones(2, 4), 0.5, drop=4)


# N of M ---------------------------------------------------------------------------------------------------------------


@checked
@given(seeds, st.integers(1, 5), st.integers(1, 6), st.integers(1, 8), st.data(), st.sampled_from([None, 1, 3]))
def test_every_run_of_m_drops_its_n_smallest(seed, rows, runs, m, data, levels):
    n = data.draw(st.integers(0, m))
    metric = metric_of(seed, rows, runs * m, levels)
    mask = masks.n_of_m(metric, n, m)
    assert (mask.reshape(rows, runs, m).sum(-1) == n).all()
    assert same(mask, oracles.n_of_m(metric, n, m))


def test_two_of_four_by_hand():
    mask = masks.n_of_m(torch.tensor([[4.0, 3, 2, 1, 0, 0, 0, 5]]), 2, 4)
    assert mask.tolist() == [[False, False, True, True, True, True, False, False]]


@pytest.mark.parametrize(("n", "m", "wrong"), [(5, 4, "5"), (-1, 4, "-1"), (0, 0, "0"), (1, -2, "-2"), (1, 3, "3")])
def test_a_pattern_that_does_not_fit_is_refused(n, m, wrong):
    with pytest.raises(ValueError, match=wrong):
        masks.n_of_m(torch.ones(2, 8), n, m)


# Packing --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0, 0)])
def test_a_matrix_without_rows_or_columns_has_a_mask_of_its_shape(shape):
    metric = torch.zeros(shape)
    for mask in (masks.unstructured(metric, 0.5), masks.unstructured(metric, drop=0), masks.n_of_m(metric, 2, 4)):
        assert mask.shape == shape and mask.dtype == torch.bool
    with pytest.raises(ValueError, match="cannot drop 1 of 0"):
        masks.unstructured(metric, drop=1)


def test_deterministic_algorithms_give_the_same_masks(monkeypatch):
    """On CUDA kthvalue then raises, which is played here; ties, infinities and NaN are as always."""
    metric = torch.randint(0, 9, (64, 40), generator=torch.Generator().manual_seed(0)).float()
    metric[3, 5], metric[4, 6], metric[5] = torch.inf, torch.nan, 1.0
    wanted = [masks.unstructured(metric, share) for share in (0.1, 0.5, 0.9)]

    def refuse(*given, **more):
        raise RuntimeError("kthvalue CUDA does not have a deterministic implementation")

    monkeypatch.setattr(torch.Tensor, "kthvalue", refuse)
    torch.use_deterministic_algorithms(True)
    try:
        found = [masks.unstructured(metric, share) for share in (0.1, 0.5, 0.9)]
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(one, other) for one, other in zip(found, wanted))


def test_rows_that_are_looked_at_apart_give_the_same_mask(monkeypatch):
    metric = torch.randint(0, 9, (23, 12), generator=torch.Generator().manual_seed(0)).float()  # with ties
    whole = [masks.unstructured(metric, drop=drop) for drop in range(0, metric.numel() + 1, 7)]
    monkeypatch.setattr(masks, "ENTRIES", 40)
    for mask, drop in zip(whole, range(0, metric.numel() + 1, 7)):
        assert mask.sum() == drop and torch.equal(masks.unstructured(metric, drop=drop), mask)
