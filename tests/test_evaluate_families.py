"""Scores of every family equal those of plain forward passes, the fast way where it is right and the slow way elsewhere."""

import logging

import asking
import families
import pytest
from test_families import QUICK, REFUSED

from tamp.evaluation import scoring

UNEVALUATED = {
    "albert",
    "bert",
    "blip_2_t5",
    "florence2",
    "git",
    "kyutai_speech_to_text",
    "pix2struct",
    "t5",
    "t5gemma2",
}
UNEVALUATED |= {"voxtral_realtime", "evolla"}
UNEVALUATED |= {"paligemma2"}  # like paligemma, but its second sample has an answer already
FAST = (
    "llava_next",
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen2_5_omni_thinker",
    "qwen2_audio",
    "video_llama_3",
    "mixtral",
    "smolvlm",
)
SLOW_WAY = ("qwen3_5", "qwen3_5_moe", "minicpmv4_6", "mamba", "gemma3n", "paligemma")
OTHERS = ("mllama", "kosmos_2_5", "gemma3", "mpt", "qwen3_next", "llava", "mistral")
CHOSEN = tuple(dict.fromkeys((*FAST, *SLOW_WAY, *OTHERS, *(name for name in QUICK if name not in UNEVALUATED))))
REST = sorted(set(families.rows()) - UNEVALUATED - set(CHOSEN) - {"voxtral_realtime"})


@pytest.mark.parametrize("family", [*CHOSEN, *(pytest.param(name, marks=pytest.mark.slow) for name in REST)])
def test_scores_are_those_of_plain_forward_passes(family, caplog):
    model, samples = families.build(family)
    made = asking.benchmark(samples)
    expected = asking.by_plain_passes(model, made)
    with caplog.at_level(logging.WARNING, "tamp"):
        found = scoring.answers(model, None, made, progress=False)
    rounding = (
        5e-3 if family in ("dots3_note", "mistral_large4") else 1e-3
    )  # which tokens they index hangs on last bits
    assert found["nll"].tolist() == pytest.approx([row["nll"] for row in expected], abs=rounding)
    for choice, row in zip(found["choice"], expected):
        one, two = row["gap"].values()
        assert choice == row["choice"] or abs(one - two) < 1e-3
    assert found.attrs["scored"] in ("shared", "plain", "mixed")
    said = [record for record in caplog.records if record.name.startswith("tamp")]
    assert bool(said) == (found.attrs["scored"] != "shared"), "a slow way is said"
    if family in FAST:
        assert found.attrs["scored"] == "shared"
    if family in SLOW_WAY:
        assert found.attrs["scored"] == "plain"


def test_the_lists_name_families():
    assert set(CHOSEN) | UNEVALUATED | set(REFUSED) <= set(families.rows())
