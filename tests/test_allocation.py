"""How many weights every linear drops: an exact total, a cap, and more kept where the score is higher."""

import itertools
import math
from fractions import Fraction

import oracles
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from tamp import allocation

checked = settings(deadline=None, derandomize=True, max_examples=250)
sizes_ = st.integers(1, 60) | st.integers(1, 10**4) | st.integers(10**6, 10**8)
scores_ = st.just(0.0) | st.floats(0, 10) | st.integers(0, 3).map(float)
wild_ = st.floats(0, 1.7e308) | st.sampled_from([0.0, 5e-324, 1e-300, 1.0, 1e300])
sparsities = st.integers(0, 99).map(lambda percent: percent / 100) | st.floats(0, 1, exclude_max=True)


@st.composite
def asked(draw, score=scores_):
    """Draw scores, sizes, a sparsity and a cap that is none or at least the sparsity."""
    linears = draw(st.lists(st.tuples(score, sizes_), min_size=1, max_size=12))
    sparsity = draw(sparsities)
    cap = draw(st.none() | st.just(sparsity) | st.just(1.0) | st.floats(sparsity, 1))
    return [one for one, _ in linears], [size for _, size in linears], sparsity, cap


def least_kept(sizes, sparsity, cap):
    return [math.ceil(n * (1 - oracles.cap(sparsity, cap))) for n in sizes]


def is_total(drops, sizes, sparsity) -> bool:
    """Check that the total is nearest to what was asked; two counts are equally near where it falls between them."""
    return abs(sum(drops) - sum(sizes) * oracles.exact(sparsity)) <= Fraction(1, 2)


# Properties -----------------------------------------------------------------------------------------------------------


@checked
@given(asked() | asked(wild_))
def test_the_total_is_exact_and_no_linear_drops_what_it_has_not(request_):
    scores, sizes, sparsity, cap = request_
    drops = allocation.allocate(scores, sizes, sparsity, cap)
    assert all(type(drop) is int for drop in drops) and len(drops) == len(sizes)
    assert all(0 <= drop <= n for drop, n in zip(drops, sizes))
    assert is_total(drops, sizes, sparsity)


@checked
@given(asked() | asked(wild_))
def test_the_cap_gives_way_only_to_whole_numbers(request_):
    scores, sizes, sparsity, cap = request_
    drops = allocation.allocate(scores, sizes, sparsity, cap)
    kept = [n - drop for n, drop in zip(sizes, drops)]
    least = least_kept(sizes, sparsity, cap)
    below = [low - keep for low, keep in zip(least, kept) if keep < low]
    assert all(by == 1 for by in below)
    assert len(below) == max(0, sum(least) - sum(kept))


@checked
@given(asked() | asked(wild_))
def test_kept_weights_follow_the_scores_to_within_one_weight(request_):
    scores, sizes, sparsity, cap = request_
    drops = allocation.allocate(scores, sizes, sparsity, cap)
    expected = oracles.kept(scores, sizes, sparsity, sum(drops), cap)
    assume(expected is not None)
    for n, drop, keep in zip(sizes, drops, expected):
        assert abs(n - drop - keep) <= 1 + Fraction(1, 10**6)


@checked
@given(st.lists(scores_, min_size=2, max_size=12), sizes_, sparsities, st.none() | st.just(1.0))
def test_of_equal_sizes_the_higher_score_keeps_more(scores, size, sparsity, cap):
    drops = allocation.allocate(scores, [size] * len(scores), sparsity, cap)
    for one, of_one in zip(scores, drops):
        for other, of_other in zip(scores, drops):
            if one >= other:
                assert of_one <= of_other + 1


@checked
@given(asked(), st.integers(-20, 20))
def test_the_scale_of_the_scores_is_no_matter(request_, power):
    scores, sizes, sparsity, cap = request_
    assume(all(score == 0 or score > 1e-100 for score in scores))
    scaled = [score * 2.0**power for score in scores]
    assert allocation.allocate(scaled, sizes, sparsity, cap) == allocation.allocate(scores, sizes, sparsity, cap)


@checked
@given(st.lists(sizes_, min_size=1, max_size=12), sparsities)
def test_with_no_room_under_the_cap_every_linear_gets_the_sparsity(sizes, sparsity):
    scores = [float(i) for i in range(len(sizes))]
    for n, drop in zip(sizes, allocation.allocate(scores, sizes, sparsity, sparsity)):
        assert abs(drop - n * oracles.exact(sparsity)) <= 1


@checked
@given(st.lists(sizes_, min_size=1, max_size=12), sparsities)
def test_zero_scores_share_like_equal_scores(sizes, sparsity):
    zeros, ones = [0.0] * len(sizes), [1.0] * len(sizes)
    assert allocation.allocate(zeros, sizes, sparsity) == allocation.allocate(ones, sizes, sparsity)


@checked
@given(st.lists(sizes_, min_size=1, max_size=12), sparsities)
@example([17, 17, 1771760], 0.42920088534193407)  # the total lies 0.45 above the exact share
def test_uniform_gives_every_linear_the_sparsity_to_within_one_weight(sizes, sparsity):
    drops = allocation.uniform(sizes, sparsity)
    assert all(type(drop) is int for drop in drops) and len(drops) == len(sizes)
    assert all(0 <= drop <= n for drop, n in zip(drops, sizes))
    assert all(abs(drop - n * oracles.exact(sparsity)) <= 1 for drop, n in zip(drops, sizes))
    assert is_total(drops, sizes, sparsity)


@checked
@given(
    st.lists(st.tuples(st.sampled_from([4, 6, 9, 24]), st.floats(0, 1)), min_size=1, max_size=8),
    st.sampled_from([4, 8]),
)
def test_whole_steps_come_as_close_to_the_total_as_they_can(linears, m):
    steps = [step for step, _ in linears]
    sizes = [step * m for step in steps]
    drops = [round(size * share) for size, (_, share) in zip(sizes, linears)]
    got = allocation.stepped(drops, sizes, m)
    numbers = [drop // step for drop, step in zip(got, steps)]
    assert [n * step for n, step in zip(numbers, steps)] == got and all(0 <= n <= m - 1 for n in numbers)
    reachable = {0}
    for step in steps:
        reachable = {total + n * step for total in reachable for n in range(m)}
    if len(linears) <= 3:  # then REACH is all there is
        assert abs(sum(got) - sum(drops)) == min(abs(total - sum(drops)) for total in reachable)
    for one, other in itertools.combinations(range(len(steps)), 2):
        if steps[one] == steps[other] and drops[one] > drops[other]:
            assert got[one] >= got[other]


# By hand --------------------------------------------------------------------------------------------------------------


def test_shares_by_hand():
    # 200 of 400 stay, of them 40 each under the cap of 0.6; the other 40 are shared 1 : 3 : 4 : 0
    assert allocation.allocate([1.0, 3.0, 4.0, 0.0], [100] * 4, 0.5) == [55, 45, 40, 60]


def test_what_a_full_linear_cannot_take_goes_to_the_others():
    # 4, 16 and 60 stay under the cap, 20 more are shared 10, 5, 5; the first has room for 6, its other 4 make 7 and 7
    assert allocation.allocate([2.0, 1.0, 1.0], [10, 40, 150], 0.5) == [0, 17, 83]


def test_zero_scores_take_equally_what_the_others_leave():
    # 20 each stay under the cap, 90 more go to the first, which has room for 80
    assert allocation.allocate([1.0, 0.0, 0.0], [100, 100, 100], 0.5, 0.8) == [0, 75, 75]


def test_the_default_cap_is_a_tenth_above_as_a_decimal():
    # 0.6 + 0.1 is 0.7, so that of 10 three must stay; in binary it would be a hair less than 0.7, and four
    assert allocation.allocate([0.0, 1.0], [10, 10], 0.6) == [7, 5]
    assert allocation.allocate([0.0, 1.0], [100, 100], 0.2) == [30, 10]


def test_the_default_cap_ends_at_one():
    assert allocation.allocate([0.0, 1.0], [1000, 1000], 0.95) == [1000, 900]


def test_sparsities_are_the_decimals_they_print_as():
    assert allocation.uniform([100], 0.29) == [29]
    assert allocation.allocate([1.0], [100], 0.29) == [29]
    assert sum(allocation.uniform([10**15, 10**15], 0.3)) == 6 * 10**14


def test_counts_of_a_whole_model_are_exact():
    sizes = [4096 * 4096] * 4 + [4096 * 11008] * 3
    scores = [0.3 + 0.01 * (i * 37 % 101) for i in range(32 * 7)]
    drops = allocation.allocate(scores, sizes * 32, 0.5)
    assert sum(drops) == sum(sizes) * 16
    expected = oracles.kept(scores, sizes * 32, 0.5, sum(drops))
    assert all(abs(n - drop - keep) <= 1 for n, drop, keep in zip(sizes * 32, drops, expected))


def test_whole_steps_by_hand():
    # Steps of 10, 10 and 4 weights. 26 + 14 + 8 is met by three of the first, one of the second and two of the third.
    assert allocation.stepped([26, 14, 8], [40, 40, 16], 4) == [30, 10, 8]
    # Two large linears can drop 20 or 30, a third of steps of 2 makes up for what is missing of 27.
    assert allocation.stepped([13, 12, 2], [40, 40, 8], 4) == [10, 10, 6]
    # At most 2 of 4: what the first may not drop, the second does.
    assert allocation.stepped([30, 10], [40, 40], 4, most=2) == [20, 20]
    assert allocation.stepped([40, 10], [40, 40], 4) == [30, 20]


def test_nothing_to_drop_drops_nothing():
    assert allocation.allocate([1.0, 0.0, 3.0], [5, 6, 7], 0.0) == [0, 0, 0]
    assert allocation.uniform([5, 6, 7], 0.0) == [0, 0, 0]


def test_linears_of_one_weight_share_by_score():
    assert allocation.allocate([1.0, 4.0, 2.0, 3.0], [1, 1, 1, 1], 0.5, 1.0) == [1, 0, 1, 0]


# Refused --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [math.nan, -1.0, math.inf, -math.inf])
def test_scores_that_are_no_shares_are_refused(wrong):
    with pytest.raises(ValueError, match="score"):
        allocation.allocate([1.0, wrong], [10, 10], 0.5)


def test_scores_and_sizes_of_different_length_are_refused():
    with pytest.raises(ValueError, match="score"):
        allocation.allocate([1.0], [10, 10], 0.5)


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 2.0, math.nan])
def test_a_sparsity_outside_zero_to_one_is_refused(sparsity):
    with pytest.raises(ValueError, match="sparsity"):
        allocation.allocate([1.0, 1.0], [10, 10], sparsity)
    with pytest.raises(ValueError, match="sparsity"):
        allocation.uniform([10, 10], sparsity)


@pytest.mark.parametrize("cap", [0.4, 1.1, -1.0, math.nan, math.inf])
def test_a_cap_below_the_sparsity_or_above_one_is_refused(cap):
    with pytest.raises(ValueError, match="max_sparsity"):
        allocation.allocate([1.0, 1.0], [10, 10], 0.5, cap)


def chosen_by_hand(drops, sizes, n, m):
    """Go down the linears from the hardest pruned one, and take each that brings the total nearer."""
    total, goal, taken = 0, sum(drops), {}
    for _, i in sorted((-drop / size, i) for i, (drop, size) in enumerate(zip(drops, sizes))):
        taken[i] = sizes[i] * n // m if abs(total + sizes[i] * n // m - goal) < abs(total - goal) else 0
        total += taken[i]
    return [taken[i] for i in range(len(sizes))]


@settings(parent=checked, max_examples=60)
@given(st.lists(st.tuples(st.integers(1, 40), st.fractions(0, "1/2")), min_size=1, max_size=12))
def test_dense_or_a_pattern_takes_the_hardest_first_and_comes_near(rows):
    sizes, drops = [4 * size for size, _ in rows], [4 * size * share for size, share in rows]
    got = allocation.dense_or(drops, sizes, 2, 4)
    assert got == chosen_by_hand(drops, sizes, 2, 4)
    assert abs(sum(got) - sum(drops)) <= max(sizes) / 4
