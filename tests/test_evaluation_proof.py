"""When questions share a sequence and when every answer takes a pass of its own; how it is found out and said."""

import logging

import asking
import families
import pytest
import torch
from torch import nn

from tamp import models
from tamp.errors import UserError
from tamp.evaluation import plain, proof, questions, scoring, shared

ALL = (
    "qwen2_5_omni_thinker",
    "qwen3_5",
    "qwen3_5_moe",
    "qwen2_audio",
    "video_llama_3",
    "minicpmv4_6",
    "gemma3n",
    "mllama",
    "kosmos_2_5",
    "gemma3",
    "mistral",
    "llava_next",
)


def same_as_alone(model, made) -> str:
    """Check scores against plain passes written out, and return how they were made."""
    found = scoring.answers(model, None, made, progress=False)
    expected = [row["nll"] for row in asking.by_plain_passes(model, made)]
    assert found["nll"].tolist() == pytest.approx(expected, abs=1e-4)
    return found.attrs["scored"]


@pytest.fixture
def warned(caplog):
    caplog.set_level(logging.WARNING, "tamp")
    return lambda: [record.getMessage() for record in caplog.records if record.name.startswith("tamp")]


@pytest.fixture
def forwards():
    """Count the forward passes of a model."""
    counts = []

    def watch(model):
        model.register_forward_pre_hook(lambda *_: counts.append(1))
        return counts

    return watch


@pytest.mark.parametrize("family", ALL)
def test_scores_are_those_of_each_question_alone(family):
    model, samples = families.build(family)
    same_as_alone(model, asking.benchmark(samples))


@pytest.mark.parametrize("family", ["gemma3n", "gemma3", "llama4", "gpt_oss"])
def test_within_its_window_a_model_with_one_shares_sequences(family):
    model, samples = families.build(family)
    for name in shared.NEAR:
        if getattr(models.text_config(model), name, None):
            setattr(models.text_config(model), name, 512)
    assert same_as_alone(model, asking.benchmark(samples)) == "shared"


def test_a_narrow_window_takes_fewer_questions_at_a_time(warned, forwards):
    model, samples = families.build("mistral")
    made = asking.benchmark(samples[:1])
    length = made.groups[0].prefix["input_ids"].shape[1]
    sizes = {21: [[0, 1, 2]], 20: [[0, 1], [2]], 13: [[0], [1], [2]], 6: []}  # seven tokens a question
    for room, sequences in sizes.items():
        model.config.sliding_window = length + room
        call = shared.decoder_call(model, made.groups[0].prefix)
        assert shared.parts(model, made.groups[0], call) == sequences
        assert not warned()
        assert same_as_alone(model, made) == ("shared" if sequences else "plain")
    assert [f"3 of 3 questions do not fit the {length + 6} tokens" in said for said in warned()] == [True]


def test_questions_that_do_not_fit_are_scored_alone(warned):
    model, samples = families.build("mistral")
    made = asking.benchmark(samples[:1])
    made.groups[0].asked[1].prompt *= 3
    model.config.sliding_window = made.groups[0].prefix["input_ids"].shape[1] + 12
    assert same_as_alone(model, made) == "mixed"
    assert "1 of 3 questions do not fit" in warned()[0]


def test_the_fast_way_takes_two_passes_a_group_and_two_to_prove_each_kind(forwards, warned):
    model, samples = families.build("llava_next")
    made = asking.benchmark(samples)
    counts = forwards(model)
    found = scoring.answers(model, None, made, progress=False)
    kinds = {tuple(group.prefix) for group in made.groups}
    assert (found.attrs["scored"], len(counts)) == ("shared", 2 * len(made.groups) + 2 * len(kinds))
    counts.clear()
    scoring.answers(model, None, made, progress=False)
    assert len(counts) == len(made.groups), "a benchmark keeps what its towers and its proof gave"
    assert not warned()


def test_the_slow_way_is_said_once_and_remembered(forwards, warned):
    model, samples = families.build("qwen3_5")
    made = asking.benchmark(samples)
    first = scoring.answers(model, None, made, progress=False)
    assert first.attrs["scored"] == scoring.summarise(first).attrs["scored"] == "plain"
    counts = forwards(model)
    again = scoring.answers(model, None, made, progress=False)
    assert again.equals(first) and len(counts) == 2 * len(again)
    (said,) = warned()
    assert said.startswith("Qwen3_5ForConditionalGeneration cannot score several questions in one sequence")
    assert "evaluating takes longer" in said


def test_whatever_the_fast_way_raises_leads_to_the_slow_way(monkeypatch, warned):
    model, samples = families.build("llava_next")

    def fails(*_):
        raise TypeError("unexpected position_ids")

    monkeypatch.setattr(shared, "score", fails)
    assert same_as_alone(model, asking.benchmark(samples)) == "plain"
    assert "(TypeError: unexpected position_ids)" in warned()[0]


def test_a_model_that_cannot_run_at_all_is_one_error(monkeypatch):
    model, samples = families.build("llava_next")

    def fails(*_, **__):
        raise RuntimeError("size mismatch\nand more")

    monkeypatch.setattr(model.model, "forward", fails)
    with pytest.raises(
        UserError, match=r"cannot be evaluated: its forward pass .* fails \(RuntimeError: size mismatch\)"
    ):
        scoring.answers(model, None, asking.benchmark(samples), progress=False)


def test_a_model_without_a_head_is_refused():
    model, samples = families.build("llava_next")
    message = "LlavaNextModel has no language model head, so it cannot be evaluated"
    with pytest.raises(UserError, match=message):
        scoring.answers(model.model, None, asking.benchmark(samples), progress=False)
    with pytest.raises(UserError, match=message):
        scoring.perplexity(model.model, lambda *_, **__: {"input_ids": list(range(40))}, "", window=20, progress=False)


class Talking(nn.Module):
    """A whole omni model: its thinker takes the questions."""

    def __init__(self, thinker: nn.Module):
        super().__init__()
        self.thinker, self.config, self.dtype = thinker, thinker.config, thinker.dtype


def test_a_model_that_also_talks_is_evaluated_by_its_thinker():
    model, samples = families.build("qwen2_5_omni_thinker")
    assert same_as_alone(Talking(model), asking.benchmark(samples)) == "shared"


def test_a_leak_is_told_from_rounding(monkeypatch):
    """In half precision rounding can hide a leak: then other questions are exchanged, and no rounding differs."""
    monkeypatch.setattr(proof, "EXACT", (1e-12, 10.0))
    for family, wrong in (
        ("llava_next", ""),
        ("gpt_neox", ""),
        ("qwen3_5", "one question changes"),
        ("lfm2", "one question"),
    ):
        model, samples = families.build(family)
        made = asking.benchmark(samples[:1])
        scoring.answers(model, None, made, progress=False)
        (known,) = made.proofs.values()
        assert known.wrong.startswith(wrong) and bool(known.wrong) == bool(wrong), family


def test_half_precision_proves_by_wider_bounds(mini, warned):
    model, processor = mini
    for dtype in (torch.bfloat16, torch.float16):
        found = scoring.answers(model.to(dtype), processor, "mini-vqa", 20, progress=False)
        assert found.attrs["scored"] == "shared"
    assert not warned()
    model, samples = families.build("mamba2", torch.bfloat16)
    assert scoring.answers(model, None, asking.benchmark(samples), progress=False).attrs["scored"] == "plain"


def test_inputs_with_an_entry_per_token_grow_with_it():
    inputs = {
        "input_ids": torch.tensor([[5, 6, 7]]),
        "attention_mask": torch.tensor([[1, 1, 1]]),
        "token_type_ids": torch.tensor([[0, 1, 1]]),
        "cross_attention_mask": torch.tensor([[[0], [1], [1]]]),
        "input_features_mask": torch.ones(1, 3, dtype=torch.long),
        "pixel_values": torch.zeros(1, 3, 2, 2),
        "image_sizes": torch.tensor([[8, 8]]),
    }
    assert questions.per_token(inputs) == ["input_ids", "attention_mask", "token_type_ids", "cross_attention_mask"]
    longer = plain._extended(inputs, [8, 9], {"token_type_ids": torch.tensor([[0]])})
    assert longer["input_ids"].tolist() == [[5, 6, 7, 8, 9]]
    assert longer["attention_mask"].tolist() == [[1] * 5]
    assert longer["token_type_ids"].tolist() == [[0, 1, 1, 0, 0]]
    assert longer["cross_attention_mask"].tolist() == [[[0], [1], [1], [1], [1]]]
    for name in ("input_features_mask", "pixel_values", "image_sizes"):
        assert longer[name] is inputs[name]
