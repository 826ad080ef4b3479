"""Every family that can be pruned is pruned as whole forward passes say, in any order of samples; others say why not."""

import functools

import families
import pytest
import torch
from whole_passes import wanda_by_whole_passes

import tamp
from tamp import accumulators, models
from tamp.errors import UserError
from tamp.recipe import Recipe

QUICK = (
    "aria",  # experts stored transposed
    "blip_2_opt",  # linears that see (tokens, in)
    "cohere_compass",  # deep visual inputs and two kinds of attention
    "ernie4_5_vl_moe",  # text and vision experts, each fed a part of the sequence
    "falcon_h1",
    "fuyu",
    "gemma3",  # sliding windows
    "gemma3n",  # several streams, keys and values shared between layers
    "gemma4_moe",
    "gpt2",  # weights stored transposed
    "gpt_oss",  # biases of experts, sinks
    "granite4_vision",
    "kimi_k25",
    "kosmos_2",
    "lfm2_vl",
    "llama4",  # experts fed the sequence laid out by expert
    "llava_phi3",  # matrices defined in another order than called
    "mistral_large4",  # blocks that pass more on than hidden states
    "mllama",  # blocks left out for text alone
    "nemotron_h_omni",  # blocks of one kind each, experts without a gate
    "phi4_multimodal",
    "qwen3_5_moe",  # recurrent layers
    "qwen3_omni_moe_thinker",
    "qwen3_vl",
)
REFUSED = {
    "albert": "no list of 3 decoder blocks",
    "bert": "is an encoder",
    "blip_2_t5": "encoder-decoder",
    "dbrx": "of the decoder's weights",
    "florence2": "encoder-decoder",
    "git": "no visual token",
    "glm5_next": "of the decoder's weights",
    "idefics": "of the decoder's weights",
    "inkling2": "away from its own forward pass",
    "inkling_mm_model": "of the decoder's weights",
    "jetmoe": "of the decoder's weights",
    "kyutai_speech_to_text": "not a processor output",
    "longcat_flash": "of the decoder's weights",
    "pix2struct": "encoder-decoder",
    "step3p7": "of the decoder's weights",
    "t5": "encoder-decoder",
    "t5gemma2": "encoder-decoder",
    "voxtral_realtime": "no audio token",
    "zamba2": "are one weight",
}
SLOW = sorted(set(families.rows()) - set(QUICK) - set(REFUSED))
EVERY = pytest.mark.parametrize("family", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])


def zeros(model) -> dict[str, torch.Tensor]:
    return {name: linear.weight == 0 for name, linear in models.all_linears(model).items()}


def differing(one: dict, other: dict) -> int:
    assert one.keys() == other.keys()
    return sum(int((one[name] != other[name]).sum()) for name in one)


def prune(model, samples, preset="wanda", **changes):
    return tamp.prune(model, samples, Recipe.preset(preset, **changes), progress=False, allow_partial=True)


@functools.cache
def by_wanda(family: str) -> tuple[dict, tuple[str, ...]]:
    """Prune a family once for all tests: zeros by linear, and the linears of the plan."""
    model, samples = families.build(family)
    report = prune(model, samples)
    return zeros(model), report.plan.linears


@EVERY
def test_wanda_prunes_what_whole_forward_passes_say(family):
    found, linears = by_wanda(family)
    expected = wanda_by_whole_passes(*families.build(family), 0.5)
    off = differing(*({name: each[name] for name in linears} for each in (found, expected)))
    assert off <= 4 * len(expected) ** 0.5, "more than ties that the last bits of a sum decide"


EXPERTS = ("aria", "ernie4_5_vl_moe", "gpt_oss", "kimi_k25", "llama4", "nemotron_h_omni", "qwen3_omni_moe_thinker")


@pytest.mark.parametrize("family", EXPERTS)
def test_experts_are_pruned_by_the_tokens_routed_to_them(family, monkeypatch):
    monkeypatch.setattr(accumulators, "FEW", 1)  # pooled only where no token came
    model, samples = families.build(family)
    report = prune(model, samples)
    whole, _ = families.build(family)
    expected = wanda_by_whole_passes(whole, samples, 0.5)
    found = zeros(model)
    assert differing({name: found[name] for name in report.plan.linears}, expected) <= 4 * len(expected) ** 0.5
    experts = [row for row in report.rows if "[" in row["linear"]]
    assert len(experts) > len(report.pooled) and all(row["got"] == 0.5 for row in experts)
    kept = {row["kept"] for row in experts}
    assert len(kept) > 2, "each has its own tokens"


@EVERY
def test_tamp_keeps_its_budget_and_touches_nothing_else(family):
    for changes in ({}, {"pattern": "2:4"}):
        model, samples = families.build(family)
        before = {name: tensor.clone() for name, tensor in model.named_parameters()}
        report = prune(model, samples, "tamp", **changes)
        assert report.sparsity == pytest.approx(0.5, abs=2e-3)
        assert all(row["got"] == pytest.approx(row["asked"], abs=1e-9) for row in report.rows)
        linears = models.all_linears(model)
        reached = {id(linears[name].module._parameters[linears[name].parameter]) for name in report.plan.linears}
        for name, tensor in model.named_parameters():
            assert id(tensor) in reached or torch.equal(tensor, before[name]), name


@EVERY
def test_the_order_of_mixed_samples_does_not_matter(family):
    model, samples = families.build(family)
    prune(model, samples[::-1])
    found, _ = by_wanda(family)
    assert differing(found, zeros(model)) <= 4 * len(found) ** 0.5


@EVERY
def test_half_precision_is_walked_too(family):
    if family in ("inkling_mm_model",):
        pytest.skip("parts of it must stay in float32")
    model, samples = families.build(family, torch.bfloat16)
    report = prune(model, samples, "tamp")
    assert report.sparsity == pytest.approx(0.5, abs=2e-3)


@pytest.mark.parametrize("family", REFUSED)
def test_what_cannot_be_pruned_right_is_refused_and_stays_as_it_was(family):
    model, samples = families.build(family)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError, match=REFUSED[family]):
        tamp.prune(model, samples, Recipe.preset("wanda"), progress=False)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
