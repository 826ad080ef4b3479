"""Magnitude, Wanda and SparseGPT as functions on tensors, and the accumulators that feed them."""

import math
from fractions import Fraction

import oracles
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tamp import criteria

checked = settings(deadline=None, derandomize=True, max_examples=150)
seeds = st.integers(0, 2**31)
HALF = [torch.bfloat16, torch.float16]


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def hessian_of(seed: int, columns: int) -> torch.Tensor:
    """Draw correlated inputs of unequal scale and return the mean of x x^T."""
    inputs = draw(seed, 3 * columns, columns) @ (torch.eye(columns) + 0.3 * draw(seed + 1, columns, columns))
    return inputs.T @ inputs / len(inputs)


def close(got: torch.Tensor, expected, relative: float = 1e-5) -> bool:
    """Compare whole tensors: the largest difference relative to the largest value, and the zeros one by one."""
    expected = torch.as_tensor(expected, dtype=torch.float64)
    assert torch.equal(got == 0, expected == 0)
    return bool((got.double() - expected).abs().max() <= relative * expected.abs().max())


# Magnitude and Wanda --------------------------------------------------------------------------------------------------


def test_magnitude_is_the_absolute_weight():
    assert criteria.magnitude(torch.tensor([[-2.0, 1.0], [0.0, -0.5]])).tolist() == [[2.0, 1.0], [0.0, 0.5]]


def test_wanda_by_hand():
    metric = criteria.wanda(torch.tensor([[-2.0, 1.0], [3.0, -1.0]]), torch.tensor([4.0, 9.0]))
    assert metric.tolist() == [[4.0, 3.0], [6.0, 3.0]]


@checked
@given(seeds, st.integers(1, 8), st.integers(1, 20))
def test_wanda_is_weight_times_input_norm(seed, rows, columns):
    weight, mean_square = draw(seed, rows, columns), draw(seed + 1, columns) ** 2
    metric = criteria.wanda(weight, mean_square)
    for i in range(rows):
        for j in range(columns):
            assert metric[i, j].item() == pytest.approx(abs(weight[i, j].item()) * math.sqrt(mean_square[j].item()))


@pytest.mark.parametrize("dtype", HALF)
def test_metrics_of_half_precision_weights_are_float32(dtype):
    weight, mean_square = draw(0, 4, 8).to(dtype), draw(1, 8) ** 2
    assert criteria.magnitude(weight).dtype == criteria.wanda(weight, mean_square).dtype == torch.float32
    assert torch.equal(criteria.magnitude(weight), weight.float().abs())
    assert torch.allclose(criteria.wanda(weight, mean_square), weight.float().abs() * mean_square.sqrt())
    huge = torch.full((1, 1), 60000.0).to(dtype)
    assert criteria.wanda(huge, torch.tensor([1e8])).item() == pytest.approx(huge.item() * 1e4)


def test_metrics_leave_the_weight_as_it_was():
    weight = draw(2, 3, 4)
    before = weight.clone()
    criteria.magnitude(weight).add_(1), criteria.wanda(weight, torch.ones(4)).add_(1)
    assert torch.equal(weight, before)


# Accumulators ---------------------------------------------------------------------------------------------------------


@checked
@given(seeds, st.integers(1, 10), st.lists(st.integers(0, 7), min_size=1, max_size=5))
def test_statistics_are_means_over_all_tokens(seed, width, batches):
    assume(sum(batches) > 0)
    tokens = draw(seed, sum(batches), width)
    square, hessian = criteria.MeanSquare(width), criteria.Hessian(width)
    for batch in tokens.split(batches):
        square.add(batch)
        hessian.add(batch)
    exact = tokens.double()
    assert square.count == len(tokens)
    assert square.value().dtype == hessian.value().dtype == torch.float32
    assert square.value().shape == (width,) and hessian.value().shape == (width, width)
    assert torch.allclose(square.value().double(), (exact**2).mean(0), rtol=1e-6)
    assert torch.allclose(hessian.value().double(), exact.T @ exact / len(exact), rtol=1e-5, atol=1e-6)


def test_small_additions_are_not_lost_in_a_large_sum():
    square, hessian = criteria.MeanSquare(1), criteria.Hessian(1)
    for batch in [torch.full((1, 1), 1e4)] + [torch.ones(1, 1)] * 999:  # in float32, 1e8 + 1 is 1e8
        square.add(batch)
        hessian.add(batch)
    assert square.value().item() == pytest.approx((1e8 + 999) / 1000, rel=2e-7)
    assert hessian.value().item() == pytest.approx((1e8 + 999) / 1000, rel=2e-7)


@pytest.mark.parametrize("dtype", HALF)
def test_squares_of_half_precision_inputs_do_not_overflow(dtype):
    inputs = torch.tensor([[300.0, -3.0], [500.0, 2.0]]).to(dtype)  # 300 squared is beyond float16
    square, hessian = criteria.MeanSquare(2), criteria.Hessian(2)
    square.add(inputs)
    hessian.add(inputs)
    exact = inputs.double()
    assert torch.allclose(square.value().double(), (exact**2).mean(0))
    assert torch.allclose(hessian.value().double(), exact.T @ exact / 2)


def test_reading_a_statistic_does_not_disturb_it():
    square, hessian = criteria.MeanSquare(3), criteria.Hessian(3)
    for accumulator in (square, hessian):
        accumulator.add(torch.ones(2, 3))
        first = accumulator.value().clone()
        accumulator.value().zero_()
        assert torch.equal(accumulator.value(), first)
        accumulator.add(torch.ones(2, 3))
        assert torch.equal(accumulator.value(), first)


# SparseGPT ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["u50", "u70", "nm24"])
def test_sparsegpt_matches_the_released_code(case):
    fields = oracles.golden("sparsegpt")[case]
    hessian = criteria.Hessian(fields["inputs"].shape[1])
    for batch in fields["inputs"].chunk(4):
        hessian.add(batch)
    how = {"pattern": "2:4"} if case == "nm24" else {"drop": int((fields["pruned"] == 0).sum())}
    assert close(criteria.sparsegpt(fields["weight"], hessian.value(), **how), fields["pruned"])


@checked
@given(seeds, st.integers(1, 5), st.integers(1, 16), st.floats(0, 1), st.sampled_from([1, 3, 5, 128]))
def test_sparsegpt_agrees_with_inverting_the_hessian_at_every_column(seed, rows, columns, share, block):
    weight, hessian = draw(seed, rows, columns), hessian_of(seed + 1, columns)
    drop = round(rows * columns * share)
    expected = oracles.sparsegpt(weight, hessian, drop, block=block)
    assume(expected.margin > 1e-3)
    assert close(criteria.sparsegpt(weight, hessian, drop=drop, block=block), expected.weight, 1e-4)


@checked
@given(seeds, st.integers(1, 4), st.sampled_from([(2, 4), (1, 4), (4, 8), (1, 2), (3, 4), (2, 3)]), st.data())
def test_sparsegpt_n_of_m_agrees_with_inverting_the_hessian_at_every_column(seed, rows, pattern, data):
    n, m = pattern
    columns = m * data.draw(st.integers(1, 16 // m))
    weight, hessian = draw(seed, rows, columns), hessian_of(seed + 1, columns)
    expected = oracles.sparsegpt(weight, hessian, pattern=pattern)
    assume(expected.margin > 1e-3)
    pruned = criteria.sparsegpt(weight, hessian, pattern=f"{n}:{m}")
    assert close(pruned, expected.weight, 1e-4)
    assert ((pruned == 0).reshape(rows, -1, m).sum(-1) == n).all()


@pytest.mark.parametrize("block", [1, 4, 6, 8])
def test_n_of_m_does_not_depend_on_the_block(block):
    weight, hessian = draw(3, 6, 16), hessian_of(4, 16)
    whole = criteria.sparsegpt(weight, hessian, pattern="2:4")
    assert close(criteria.sparsegpt(weight, hessian, pattern="2:4", block=block), whole)


@checked
@given(seeds, st.integers(1, 5), st.integers(1, 24), st.floats(0, 1), st.integers(1, 10))
def test_sparsegpt_spends_its_count_evenly_over_the_columns(seed, rows, columns, share, block):
    drop = round(rows * columns * share)
    pruned = criteria.sparsegpt(draw(seed, rows, columns), hessian_of(seed + 1, columns), drop=drop, block=block)
    for end in [*range(block, columns, block), columns]:
        assert (pruned[:, :end] == 0).sum() == drop * end // columns


@pytest.mark.parametrize("sparsity", [0.0, 0.07, 0.29, 0.5, 0.58, 0.99])
def test_a_share_is_rounded_to_the_nearest_count(sparsity):
    pruned = criteria.sparsegpt(draw(5, 10, 30), hessian_of(6, 30), sparsity)
    assert (pruned == 0).sum() == round(300 * Fraction(str(sparsity)))


def test_dropping_nothing_changes_nothing_and_everything_leaves_zeros():
    weight, hessian = draw(7, 4, 8), hessian_of(8, 8)
    assert torch.equal(criteria.sparsegpt(weight, hessian, drop=0), weight)
    assert not criteria.sparsegpt(weight, hessian, drop=32).any()


def test_kept_weights_lower_the_error_of_the_outputs():
    weight, hessian = draw(9, 8, 32), hessian_of(10, 32)
    pruned = criteria.sparsegpt(weight, hessian, 0.5)
    masked = weight.masked_fill(pruned == 0, 0)

    def error(other):
        return torch.trace((weight - other) @ hessian @ (weight - other).T)

    assert error(pruned) < 0.9 * error(masked)


@pytest.mark.parametrize("scale", [1e-6, 2.0, 1e5])
@pytest.mark.parametrize("dead", [[], [1, 6]])
def test_the_scale_of_the_hessian_is_no_matter(scale, dead):
    weight, hessian = draw(11, 6, 12), hessian_of(12, 12)
    hessian[dead], hessian[:, dead] = 0, 0
    for how in ({"drop": 37}, {"pattern": "2:4"}):
        assert close(criteria.sparsegpt(weight, hessian * scale, **how), criteria.sparsegpt(weight, hessian, **how))


@pytest.mark.parametrize("how", [{"drop": 30}, {"pattern": "2:4"}])
def test_inputs_that_never_fire_lose_their_weights(how):
    weight, hessian = draw(13, 6, 12), hessian_of(14, 12)
    dead = [0, 5, 11]
    hessian[dead], hessian[:, dead] = 0, 0
    hessian /= hessian.diagonal().sum() / 9  # the live diagonal is one on average, like that of the dead
    pruned = criteria.sparsegpt(weight, hessian, **how)
    expected = oracles.sparsegpt(weight, hessian, how.get("drop", 0), (2, 4) if "pattern" in how else None)
    assert expected.margin > 1e-3
    assert not pruned[:, dead].any()
    assert close(pruned, expected.weight, 1e-4)


def test_inputs_of_which_none_ever_fires_leave_no_weight():
    assert not criteria.sparsegpt(draw(15, 3, 4), torch.zeros(4, 4), 0.5).any()


def test_inputs_that_depend_on_each_other_are_bearable():
    one = draw(16, 20, 4)
    inputs = torch.cat([one, one, one], 1)  # the Hessian has rank 4 of 12
    pruned = criteria.sparsegpt(draw(17, 5, 12), inputs.T @ inputs / 20, 0.5)
    assert pruned.isfinite().all() and (pruned == 0).sum() == 30


@pytest.mark.parametrize("dtype", HALF)
def test_sparsegpt_keeps_the_type_of_the_weight(dtype):
    weight, hessian = draw(18, 8, 16).to(dtype), hessian_of(19, 16)
    pruned = criteria.sparsegpt(weight, hessian, 0.5)
    assert pruned.dtype == dtype and pruned.isfinite().all() and (pruned == 0).sum() == 64
    in_float = criteria.sparsegpt(weight.float(), hessian, 0.5)
    assert torch.equal(pruned, in_float.to(dtype))
    assert criteria.sparsegpt(weight, hessian.to(dtype), 0.5).isfinite().all()


def test_sparsegpt_leaves_its_inputs_as_they_were():
    weight, hessian = draw(20, 4, 8), hessian_of(21, 8)
    hessian[2], hessian[:, 2] = 0, 0
    before = weight.clone(), hessian.clone()
    criteria.sparsegpt(weight, hessian, 0.5), criteria.sparsegpt(weight, hessian, pattern="2:4")
    assert torch.equal(weight, before[0]) and torch.equal(hessian, before[1])


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, math.nan])
def test_a_sparsity_outside_zero_to_one_is_refused(sparsity):
    with pytest.raises(ValueError, match="sparsity"):
        criteria.sparsegpt(torch.ones(2, 4), torch.eye(4), sparsity)


@pytest.mark.parametrize("drop", [-1, 9])
def test_a_count_outside_the_matrix_is_refused(drop):
    with pytest.raises(ValueError, match="drop"):
        criteria.sparsegpt(torch.ones(2, 4), torch.eye(4), drop=drop)


@pytest.mark.parametrize("how", [{}, {"sparsity": 0.5, "drop": 4}, {"sparsity": 0.5, "pattern": "2:4"}])
def test_exactly_one_of_sparsity_count_and_pattern_must_be_given(how):
    with pytest.raises(ValueError, match="sparsity.*(drop|pattern)|(drop|pattern).*sparsity"):
        criteria.sparsegpt(torch.ones(2, 4), torch.eye(4), **how)


@pytest.mark.parametrize("pattern", ["2-4", "24", "2:", ":4", "a:b", "2:4:8", "5:4", "-1:4", "0:0"])
def test_a_pattern_that_cannot_be_is_refused(pattern):
    with pytest.raises(ValueError, match="pattern|" + pattern):
        criteria.sparsegpt(torch.ones(2, 4), torch.eye(4), pattern=pattern)


def test_a_pattern_that_does_not_divide_the_width_is_refused():
    with pytest.raises(ValueError, match="3"):
        criteria.sparsegpt(torch.ones(2, 4), torch.eye(4), pattern="1:3")


@pytest.mark.parametrize("shape", [(3, 3), (4, 5), (4,)])
def test_a_hessian_of_another_width_is_refused(shape):
    with pytest.raises(ValueError, match="(?i)hessian"):
        criteria.sparsegpt(torch.ones(2, 4), torch.ones(shape), 0.5)


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_a_hessian_that_is_not_finite_is_refused(wrong):
    hessian = torch.eye(4)
    hessian[1, 1] = wrong
    with pytest.raises(ValueError, match="(?i)hessian"):
        criteria.sparsegpt(torch.ones(2, 4), hessian, 0.5)


def test_a_damping_or_block_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="damping"):
        criteria.sparsegpt(torch.ones(2, 4), torch.eye(4), 0.5, damping=-0.1)
    with pytest.raises(ValueError, match="block"):
        criteria.sparsegpt(torch.ones(2, 4), torch.eye(4), 0.5, block=0)
