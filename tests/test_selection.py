"""Which tokens AMIA selects, alone and many samples and linears in lock step."""

import math
from types import SimpleNamespace

import oracles
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tamp import experts, selection

checked = settings(deadline=None, derandomize=True, max_examples=600)
few = settings(checked, max_examples=60)
seeds = st.integers(0, 2**31)
Set = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def draw(seed: int, tokens: int, width: int, modalities: int = 2) -> Set:
    """Draw tokens scattered around a centre per modality, an attention row, and the modalities."""
    chance = torch.Generator().manual_seed(seed)
    modality = torch.randint(modalities, (tokens,), generator=chance)
    centres = torch.randn(modalities, width, generator=chance)
    outputs = centres[modality] + torch.randn(tokens, width, generator=chance)
    attention = torch.softmax(2 * torch.randn(tokens, generator=chance), 0)
    return outputs, attention, modality


def draw_awkward(seed: int, tokens: int, width: int, modalities: int = 2) -> Set:
    """Draw tokens along axes (cosines are -1, 0 or 1), many alike, some zero, some padding, with ties in attention."""
    chance = torch.Generator().manual_seed(seed)
    modality = torch.randint(-1, modalities, (tokens,), generator=chance)
    modality[torch.randint(tokens, (1,), generator=chance)] = 0  # at least one token counts
    outputs = torch.zeros(tokens, width)
    axis = torch.randint(width, (tokens,), generator=chance)
    outputs[torch.arange(tokens), axis] = torch.randint(-2, 3, (tokens,), generator=chance).float()
    attention = torch.randint(0, 3, (tokens,), generator=chance).float()
    return outputs, attention / attention.sum().clamp(min=1), modality


def draw_twins(seed: int, tokens: int, width: int, modalities: int = 2) -> Set:
    """Draw tokens of which most occur several times, scaled, under even attention: nearly every decision is a tie."""
    outputs, attention, modality = draw(seed, tokens, width, modalities)
    originals = torch.randint(tokens // 4 + 1, (tokens,), generator=torch.Generator().manual_seed(seed))
    scale = 2.0 ** (torch.arange(tokens) % 3)
    return outputs[originals] * scale[:, None], torch.full((tokens,), 1 / tokens), modality[originals]


def picked(mask: torch.Tensor) -> list[int]:
    assert mask.dtype == torch.bool and mask.dim() == 1
    return mask.nonzero().flatten().tolist()


def stands_for_all(one: Set, mask: torch.Tensor, **options) -> None:
    """Check what must hold of every selection, however its ties fall."""
    outputs, attention, modality = one
    valid = modality >= 0
    assert mask.dtype == torch.bool and mask.shape == modality.shape
    assert mask.any() and not mask[~valid].any()
    chosen, k = picked(mask[valid]), oracles.kernel(outputs[valid])
    expected = oracles.amia(outputs, attention, modality, **options)
    if math.isnan(expected.rho):
        assert len(chosen) == 1
        return
    if abs(expected.rho - 1) < 1e-6 and len(chosen) == 1:  # at rho = 1 one is enough, and rounding decides what is 1
        return
    limit = 0 if math.isnan(expected.limit) else expected.limit
    slack = 1e-5
    assert len(chosen) == len(k) or oracles.discrepancy(k, chosen) < limit + slack
    if len(chosen) > 1:  # the last pick was needed
        earlier = [oracles.discrepancy(k, [j for j in chosen if j != i]) for i in chosen]
        assert max(earlier) >= limit - slack


# Against the released code and the plain loop -------------------------------------------------------------------------


@pytest.mark.parametrize("case", sorted(oracles.golden("amia")))
def test_selection_matches_the_released_code(case):
    fields = oracles.golden("amia")[case]
    mask = selection.amia(fields["outputs"], fields["attention"], fields["modality"])
    assert mask.sum() == fields["picked"]
    mean_square = (fields["inputs"][mask] ** 2).mean(0)
    assert torch.allclose(mean_square, fields["mean_square"], rtol=1e-5, atol=0)


@pytest.mark.parametrize("case", sorted(oracles.golden("amia")))
def test_the_plain_loop_matches_the_released_code_too(case):
    fields = oracles.golden("amia")[case]
    mask = torch.from_numpy(oracles.amia(fields["outputs"], fields["attention"], fields["modality"]).mask)
    assert mask.sum() == fields["picked"]
    assert torch.allclose((fields["inputs"][mask] ** 2).mean(0), fields["mean_square"], rtol=1e-5, atol=0)


def test_all_cases_of_the_released_code_match_in_one_batch():
    cases = list(oracles.golden("amia").values())
    sets = [([fields["outputs"]], fields["attention"], fields["modality"]) for fields in cases]
    for fields, mask in zip(cases, selection.amia_batch(sets)):
        assert mask.sum() == fields["picked"]
        mean_square = (fields["inputs"][mask[0]] ** 2).mean(0)
        assert torch.allclose(mean_square, fields["mean_square"], rtol=1e-5, atol=0)


@checked
@given(seeds, st.integers(1, 45), st.integers(2, 24), st.integers(1, 3))
def test_selection_agrees_with_the_plain_loop(seed, tokens, width, modalities):
    one = draw(seed, tokens, width, modalities)
    expected = oracles.amia(*one)
    assume(expected.margin > 1e-5)
    assert selection.amia(*one).tolist() == expected.mask.tolist()


@checked
@given(
    seeds,
    st.integers(1, 25),
    st.integers(1, 7),
    st.sampled_from([0.02, 0.05, 0.2, 0.5]),
    st.sampled_from(["mean", "positive"]),
    st.integers(0, 30),
)
def test_every_option_agrees_with_the_plain_loop(seed, tokens, neighbours, threshold, within, at_least):
    one = draw(seed, tokens, 12, 2)
    options = {"neighbours": neighbours, "threshold": threshold, "within": within, "at_least": at_least}
    expected = oracles.amia(*one, **options)
    assume(expected.margin > 1e-5)
    assert selection.amia(*one, **options).tolist() == expected.mask.tolist()


@few
@given(seeds, st.integers(1, 30), st.integers(1, 12))
def test_padding_changes_nothing(seed, tokens, padding):
    outputs, attention, modality = draw(seed, tokens, 10)
    expected = oracles.amia(outputs, attention, modality)
    assume(expected.margin > 1e-5)
    order = torch.randperm(tokens + padding, generator=torch.Generator().manual_seed(seed))
    places = order[:tokens].sort().values  # padding may stand anywhere
    padded = torch.full((tokens + padding, 10), 50.0), torch.ones(tokens + padding), torch.full_like(order, -1)
    for whole, part in zip(padded, (outputs, attention, modality)):
        whole[places] = part.to(whole.dtype)
    mask = selection.amia(*padded)
    assert mask.sum() == mask[places].sum()
    assert mask[places].tolist() == expected.mask.tolist()


def test_whatever_stands_in_the_padding_is_not_read():
    outputs, attention, modality = draw(0, 20, 8)
    modality[-4:] = -1
    expected = selection.amia(outputs, attention, modality)
    for garbage in (0.0, 1e30, math.nan, math.inf):
        outputs[-4:], attention[-4:] = garbage, garbage
        assert torch.equal(selection.amia(outputs, attention, modality), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_tokens_are_selected_in_float32(dtype):
    outputs, attention, modality = draw(1, 40, 32)
    outputs, attention = (outputs * 100).to(dtype), attention.to(dtype)  # a squared norm is beyond float16
    expected = oracles.amia(outputs, attention, modality)
    assert expected.margin > 1e-5
    assert selection.amia(outputs, attention, modality).tolist() == expected.mask.tolist()


def test_the_scale_of_tokens_and_attention_is_no_matter():
    outputs, attention, modality = draw(2, 40, 16)
    expected = selection.amia(outputs, attention, modality)
    assert torch.equal(selection.amia(outputs * 2.0**-20, attention * 8, modality), expected)


def test_selection_leaves_its_inputs_as_they_were():
    one = draw(3, 20, 8)
    before = [part.clone() for part in one]
    selection.amia(*one)
    selection.amia_batch([([one[0], one[0]], one[1], one[2])])
    assert all(torch.equal(part, copy) for part, copy in zip(one, before))


# Ends on every input --------------------------------------------------------------------------------------------------


@checked
@given(seeds, st.integers(1, 30), st.integers(1, 6), st.integers(1, 3), st.sampled_from(["mean", "positive"]))
def test_ties_zeros_and_padding_end_in_a_selection_that_stands_for_all(seed, tokens, width, modalities, within):
    one = draw_awkward(seed, tokens, width, modalities)
    stands_for_all(one, selection.amia(*one, within=within), within=within)


@few
@given(seeds, st.integers(1, 60), st.integers(1, 20), st.integers(1, 3))
def test_twins_end_in_a_selection_that_stands_for_all(seed, tokens, width, modalities):
    one = draw_twins(seed, tokens, width, modalities)
    stands_for_all(one, selection.amia(*one))


@few
@given(seeds, st.integers(2, 40), st.sampled_from([1e-2, 1e-3, 1e-4, 1e-6, 1e-9]), st.integers(1, 3))
def test_nearly_identical_tokens_end(seed, tokens, noise, modalities):
    outputs, attention, modality = draw(seed, tokens, 16, modalities)
    outputs = outputs[:1] + noise * outputs
    mask = selection.amia(outputs, attention, modality)
    assert mask.any()
    assert oracles.discrepancy(oracles.kernel(outputs), picked(mask)) < 1e-3


@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 50, 400])
@pytest.mark.parametrize("modalities", [1, 2, 3])
@pytest.mark.parametrize("within", ["mean", "positive"])
def test_one_of_many_identical_tokens_is_enough(tokens, modalities, within):
    outputs, attention, modality = draw(4, tokens, 64, modalities)
    mask = selection.amia(outputs[:1].expand(tokens, 64), attention, modality, within=within)
    assert mask.sum() == 1


def test_one_token_is_picked():
    for outputs in (torch.ones(1, 3), torch.zeros(1, 3)):
        assert selection.amia(outputs, torch.ones(1), torch.tensor([1])).tolist() == [True]


@pytest.mark.parametrize("tokens", [2, 3, 4])
@pytest.mark.parametrize("modalities", [1, 2])
def test_fewer_tokens_than_neighbours_are_bearable(tokens, modalities):
    for seed in range(5):
        one = draw(seed, tokens, 6, modalities)
        expected = oracles.amia(*one)
        if expected.margin > 1e-5:
            assert selection.amia(*one).tolist() == expected.mask.tolist()
        stands_for_all(one, selection.amia(*one))


@pytest.mark.parametrize("modality", [[0] * 12, [2] * 12, [0] + [1] * 11, [0, 1] + [2] * 10, [-1] * 5 + [1] + [0] * 6])
def test_a_missing_modality_or_one_token_of_it_is_bearable(modality):
    outputs, attention, _ = draw(5, 12, 8)
    modality = torch.tensor(modality)
    expected = oracles.amia(outputs, attention, modality)
    assert expected.margin > 1e-5
    assert selection.amia(outputs, attention, modality).tolist() == expected.mask.tolist()


def test_one_pick_is_enough_where_no_similarity_is_defined():
    opposed = torch.tensor([[1.0, 0], [-1, 0]]), torch.tensor([0.2, 0.8]), torch.tensor([0, 0])
    assert selection.amia(*opposed, within="positive").sum() == 1


@pytest.mark.parametrize("tokens", [1, 2, 3, 20])
@pytest.mark.parametrize("modalities", [1, 2])
def test_zero_vectors_end_in_a_selection_that_stands_for_all(tokens, modalities):
    outputs, attention, modality = draw(6, tokens, 4, modalities)
    one = torch.zeros_like(outputs), attention, modality
    stands_for_all(one, selection.amia(*one))


def test_some_zero_vectors_agree_with_the_plain_loop():
    outputs, attention, modality = draw(7, 24, 8)
    outputs[[3, 10]] = 0
    expected = oracles.amia(outputs, attention, modality, neighbours=23)  # all are neighbours: no ties among distances
    assert expected.margin > 1e-5
    assert selection.amia(outputs, attention, modality, neighbours=23).tolist() == expected.mask.tolist()


def test_attention_of_zero_everywhere_ends():
    outputs, _, modality = draw(8, 20, 8)
    one = outputs, torch.zeros(20), modality
    stands_for_all(one, selection.amia(*one))


def test_a_wide_threshold_takes_one_and_none_takes_all():
    one = draw(9, 20, 8)
    assert selection.amia(*one, threshold=100.0).sum() == 1
    assert selection.amia(*one, threshold=0.0).all()


@pytest.mark.parametrize("at_least", [1, 7, 16, 99])
def test_at_least_so_many_are_picked_where_so_many_count(at_least):
    for outputs in (draw(10, 20, 8)[0], torch.ones(20, 8), torch.zeros(20, 8)):
        _, attention, modality = draw(10, 20, 8)
        modality[:4] = -1
        mask = selection.amia(outputs, attention, modality, at_least=at_least)
        assert mask.sum() >= min(at_least, 16) and not mask[:4].any()
    assert selection.amia(torch.ones(20, 8), attention, modality, at_least=at_least).sum() == min(at_least, 16)


# In lock step ---------------------------------------------------------------------------------------------------------


@few
@given(seeds, st.data(), st.integers(0, 9), st.sampled_from(["mean", "positive"]))
def test_a_batch_gives_the_very_masks_of_one_at_a_time(seed, data, at_least, within):
    sets = []
    for sample in range(data.draw(st.integers(1, 5))):
        tokens = data.draw(st.integers(1, 60))
        make = data.draw(st.sampled_from([draw, draw_awkward, draw_twins]))
        linears = data.draw(st.integers(1, 4))
        made = [make(seed + sample + linear, tokens, data.draw(st.integers(1, 40))) for linear in range(linears)]
        sets.append(([outputs for outputs, _, _ in made], *made[0][1:]))
    options = {"at_least": at_least, "within": within}
    masks = selection.amia_batch(sets, **options)
    assert isinstance(masks, list) and len(masks) == len(sets)
    for (outputs, attention, modality), mask in zip(sets, masks):
        assert mask.dtype == torch.bool and mask.shape == (len(outputs), len(modality))
        for linear, tokens in enumerate(outputs):
            assert torch.equal(mask[linear], selection.amia(tokens, attention, modality, **options))


def test_company_in_a_batch_is_no_matter():
    sizes = [(150, 64), (3, 5), (77, 33), (1, 8), (300, 48), (150, 17), (64, 64)]
    sets = [([draw(i, *size)[0], draw(i + 50, *size)[0]], *draw(i, *size)[1:]) for i, size in enumerate(sizes)]
    sets += [([draw_twins(i, *size)[0]] * 2, *draw_twins(i, *size)[1:]) for i, size in enumerate([(130, 40), (45, 9)])]
    sets.append(([torch.ones(90, 6), torch.zeros(90, 6)], *draw(8, 90, 6)[1:]))
    alone = [selection.amia_batch([one])[0] for one in sets]
    for order in (range(10), reversed(range(10)), [4, 1], [1, 4, 9], [7, 0, 0, 5], [2, 8, 3]):
        order = list(order)
        for place, mask in zip(order, selection.amia_batch([sets[place] for place in order])):
            assert torch.equal(mask, alone[place])


def test_a_batch_of_mixed_types_gives_the_very_masks_of_one_at_a_time():
    sets = []
    for seed, dtype in enumerate([torch.float32, torch.bfloat16, torch.float16]):
        outputs, attention, modality = draw(seed, 30 + seed, 16)
        sets.append(([outputs.to(dtype), outputs[:, :7].to(dtype)], attention.to(dtype), modality))
    for (outputs, attention, modality), mask in zip(sets, selection.amia_batch(sets)):
        for linear, tokens in enumerate(outputs):
            assert torch.equal(mask[linear], selection.amia(tokens, attention, modality))


def test_an_empty_batch_gives_an_empty_result():
    assert selection.amia_batch([]) == []


def test_an_unknown_way_to_average_is_refused():
    with pytest.raises(ValueError, match="within|median"):
        selection.amia(*draw(11, 5, 4), within="median")
    with pytest.raises(ValueError, match="within|median"):
        selection.amia_batch([([draw(11, 5, 4)[0]], *draw(11, 5, 4)[1:])], within="median")


@pytest.mark.parametrize("wrong", [(4, 5, 5), (5, 4, 5), (5, 5, 4)])
def test_parts_of_different_length_are_refused(wrong):
    outputs, attention, modality = draw(12, 5, 4)
    with pytest.raises(ValueError, match="token|attention|modality"):
        selection.amia(outputs[: wrong[0]], attention[: wrong[1]], modality[: wrong[2]])


# ATV -----------------------------------------------------------------------------------------------------------------


def test_atv_takes_all_text_and_the_visual_tokens_that_move_most():
    """Drifts of 0, 1, 2 and 1/2 among visual tokens: mean 7/8. With four words an alpha of 1/2 takes two."""
    before = torch.tensor([[1.0, 0]] * 9)
    after = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [1, 3**0.5], *[[1.0, 0]] * 4, [-1, 0]])
    modality = torch.tensor([0, 0, 0, 0, 2, 2, 2, 2, -1])
    assert selection.atv(before, after, modality, 2, alpha=0.5).tolist() == [
        False,
        True,
        True,
        False,
        *[True] * 4,
        False,
    ]
    assert selection.atv(before, after, modality, 2, alpha=0.3).tolist() == [
        False,
        False,
        True,
        False,
        *[True] * 4,
        False,
    ]
    assert selection.atv(before, after, modality, 2, alpha=0.0).tolist() == [False] * 4 + [True] * 4 + [False]
    assert selection.atv(before, after, modality, 2, alpha=9.0).tolist() == [True] * 8 + [False]  # no more than words


def test_atv_on_one_modality_takes_what_there_is():
    tokens = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    assert selection.atv(tokens, -tokens, torch.full((5,), 2), 2).all()
    assert not selection.atv(tokens, -tokens, torch.zeros(5), 2).any()
    few = torch.tensor([0, 2, 2, 2, 2])
    assert selection.atv(tokens, -tokens, few, 2).all()  # drift 2: as many as there are words, if there are as many


def test_masses_are_read_whichever_way_tokens_were_chosen():
    row = SimpleNamespace(inputs={"q": torch.zeros(4, 3), "up": torch.zeros(4, 3)}, places={})
    row.groups = lambda: [(["q", "up"], None)]
    mask = torch.tensor([True, False, True, False])
    for chosen in (mask, torch.stack([mask, mask]), {name: torch.tensor([0, 2]) for name in row.inputs}):
        found = experts.masses(row, chosen)
        assert all(found[name].tolist() == [1, 0, 1, 0] for name in row.inputs)
    assert experts.masses(row, None)["up"].tolist() == [1, 1, 1, 1]
    assert experts.masses(row, torch.tensor([0.5, 0, 2, 1]))["q"].tolist() == [0.5, 0, 2, 1]
