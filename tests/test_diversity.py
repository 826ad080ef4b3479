"""Similarity of tokens within and across modalities, and the score made of it."""

import math

import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tamp import diversity

checked = settings(deadline=None, derandomize=True, max_examples=100)
seeds = st.integers(0, 2**31)
WITHIN = ["mean", "positive"]
within_either = st.sampled_from(WITHIN)


def draw(seed: int, tokens: int, width: int, lowest: int = 0, highest: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw tokens scattered around a centre per modality, and their modality."""
    chance = torch.Generator().manual_seed(seed)
    modality = torch.randint(lowest, highest + 1, (tokens,), generator=chance)
    centres = torch.randn(highest - lowest + 1, width, generator=chance)
    scatter = torch.randn(tokens, width, generator=chance)
    return centres[modality - lowest] + scatter, modality


def agree(got: dict, expected: dict, absolute: float = 1e-5) -> None:
    assert {tuple(int(code) for code in pair) for pair in got} == set(expected)
    for pair, value in expected.items():
        assert isinstance(got[pair], float)
        assert got[pair] == pytest.approx(value, abs=absolute)


# Similarities ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["T24_d16_m2", "T60_d24_m2", "T200_d48_m2", "T400_d64_m2"])
def test_similarities_match_the_released_code(case):
    fields = oracles.golden("amia")[case]
    got = diversity.similarities(fields["outputs"], fields["modality"], "positive")
    assert [got[0, 0], got[1, 1], got[0, 1]] == pytest.approx(fields["similarity"].tolist(), rel=1e-5)


@checked
@given(seeds, st.integers(0, 25), st.integers(1, 12), st.integers(-1, 3), st.integers(0, 3), within_either)
def test_similarities_are_means_over_pairs(seed, tokens, width, lowest, more, within):
    outputs, modality = draw(seed, tokens, width, lowest, lowest + more)
    agree(diversity.similarities(outputs, modality, within), oracles.similarities(outputs, modality, within))


@checked
@given(seeds, st.integers(2, 20), st.integers(2, 6), within_either)
def test_zero_vectors_have_cosine_zero_with_everything(seed, tokens, width, within):
    outputs, modality = draw(seed, tokens, width, 0, 1)
    outputs[::3] = 0
    agree(diversity.similarities(outputs, modality, within), oracles.similarities(outputs, modality, within))


def test_zero_vectors_by_hand():
    outputs, modality = torch.tensor([[1.0, 0], [1, 0], [0, 0]]), torch.tensor([0, 0, 0])
    assert diversity.similarities(outputs, modality, "mean") == {(0, 0): pytest.approx(1 / 3)}
    assert diversity.similarities(outputs, modality, "positive") == {(0, 0): pytest.approx(1)}
    nothing = torch.zeros(4, 3), torch.tensor([0, 0, 1, 1])
    assert diversity.similarities(*nothing, "mean") == {(0, 0): 0, (0, 1): 0, (1, 1): 0}
    assert diversity.similarities(*nothing, "positive") == {(0, 1): 0}


def test_only_pairs_within_a_modality_must_be_positive():
    outputs = torch.tensor([[1.0, 0], [1, 0], [-1, 0], [0, 1], [-1, 0]])
    modality = torch.tensor([0, 0, 0, 1, 1])
    got = diversity.similarities(outputs, modality, "positive")
    assert got == {(0, 0): pytest.approx(1), (0, 1): pytest.approx(-1 / 6)}
    mean = diversity.similarities(outputs, modality, "mean")
    assert mean == {(0, 0): pytest.approx(-1 / 3), (0, 1): pytest.approx(-1 / 6), (1, 1): pytest.approx(0)}


@pytest.mark.parametrize("within", WITHIN)
def test_fewer_than_two_tokens_leave_no_term_within(within):
    outputs = torch.tensor([[1.0, 0], [1, 1], [2, 1]])
    assert set(diversity.similarities(outputs, torch.tensor([0, 1, 1]), within)) == {(0, 1), (1, 1)}
    assert set(diversity.similarities(outputs, torch.tensor([0, 1, 2]), within)) == {(0, 1), (0, 2), (1, 2)}
    assert diversity.similarities(outputs[:1], torch.tensor([4]), within) == {}
    assert diversity.similarities(outputs, torch.tensor([-1, -1, -1]), within) == {}


@pytest.mark.parametrize("within", WITHIN)
def test_padding_is_ignored(within):
    outputs, modality = draw(0, 12, 5)
    padded = torch.cat([torch.full((2, 5), 1e3), outputs, torch.full((3, 5), math.nan)])
    codes = torch.cat([torch.tensor([-1, -2]), modality, torch.tensor([-1] * 3)])
    agree(diversity.similarities(padded, codes, within), oracles.similarities(outputs, modality, within))


@checked
@given(seeds, st.integers(-30, 30), within_either)
def test_the_scale_of_tokens_is_no_matter(seed, power, within):
    outputs, modality = draw(seed, 15, 6)
    scaled = diversity.similarities(outputs * 2.0**power, modality, within)
    agree(scaled, oracles.similarities(outputs, modality, within))


@pytest.mark.parametrize("within", WITHIN)
def test_the_order_of_tokens_is_no_matter(within):
    outputs, modality = draw(1, 30, 6)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(2))
    got = diversity.similarities(outputs[order], modality[order], within)
    agree(got, diversity.similarities(outputs, modality, within), 1e-6)


@pytest.mark.parametrize("within", WITHIN)
def test_identical_tokens_have_similarity_one(within):
    got = diversity.similarities(torch.full((6, 5), 0.3), torch.tensor([0, 0, 0, 1, 1, 1]), within)
    agree(got, {(0, 0): 1, (0, 1): 1, (1, 1): 1}, 1e-6)


@pytest.mark.parametrize("within", WITHIN)
def test_many_tokens_lose_no_precision(within):
    outputs, modality = draw(3, 3000, 8, 0, 1)
    unit = torch.nn.functional.normalize(outputs.double(), dim=1)
    got = diversity.similarities(outputs, modality, within)
    for code in (0, 1):
        u = unit[modality == code]
        pairs = (u @ u.T)[torch.triu(torch.ones(len(u), len(u), dtype=torch.bool), 1)]
        pairs = pairs[pairs > 0] if within == "positive" else pairs
        assert got[code, code] == pytest.approx(pairs.mean().item(), abs=1e-5)
    assert got[0, 1] == pytest.approx((unit[modality == 0] @ unit[modality == 1].T).mean().item(), abs=1e-5)


@pytest.mark.parametrize("within", WITHIN)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_tokens_are_computed_in_float32(dtype, within):
    outputs, modality = draw(4, 40, 64)
    outputs = (outputs * 100).to(dtype)  # a squared norm is beyond float16
    got = diversity.similarities(outputs, modality, within)
    agree(got, oracles.similarities(outputs, modality, within))


def test_an_unknown_way_to_average_is_refused():
    with pytest.raises(ValueError, match="within|median"):
        diversity.similarities(torch.ones(3, 2), torch.tensor([0, 0, 1]), "median")


def test_outputs_and_modality_of_different_length_are_refused():
    with pytest.raises(ValueError, match="modality|token"):
        diversity.similarities(torch.ones(3, 2), torch.tensor([0, 0]))


# Diversity ------------------------------------------------------------------------------------------------------------


def test_diversity_adds_what_is_missing_to_one():
    score = diversity.diversity({(0, 0): 0.5, (0, 1): -0.25, (1, 1): 0.75})
    assert score == pytest.approx(0.5 + 1.25 + 0.25)


def test_undefined_terms_count_like_the_mean_of_the_others():
    assert diversity.diversity({(0, 1): 0.25, (1, 1): 0.75}) == pytest.approx(1.5)
    assert diversity.diversity({(1, 1): 0.75}, terms=6) == pytest.approx(1.5)


def test_three_modalities_have_six_terms():
    pairs = [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2)]
    assert diversity.diversity(dict(zip(pairs, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6])), terms=6) == pytest.approx(6 - 2.1)


def test_diversity_of_nothing_is_not_a_number():
    assert math.isnan(diversity.diversity({}))
