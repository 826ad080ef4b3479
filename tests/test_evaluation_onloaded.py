"""Evaluating a model whose weights do not fit the device: the same answers, one block there at a time."""

import logging
from pathlib import Path

import pandas as pd
import pretend
import pytest
import torch

import tamp
from tamp import models, onloading
from tamp.evaluation import benchmarks, scoring

FIXTURES = Path(__file__).parent / "fixtures" / "benchmarks"
TEXT = "a red circle left of a blue square . " * 40


@pytest.fixture
def waiting(mini):
    """The model and its processor, told to compute on a GPU."""
    mini[0].computed_on = "cuda"
    return mini


def test_the_scores_are_the_same_and_one_block_at_a_time_is_there(shipped, waiting):
    right = scoring.answers(*shipped, "mini-vqa", 20, progress=False)
    text = scoring.perplexity(*shipped, TEXT, 16, progress=False)
    model, blocks = waiting[0], models.blocks(waiting[0]).values()
    there: list[int] = []
    for block in blocks:
        block.mlp.register_forward_pre_hook(
            lambda *_: there.append(sum(next(each.parameters()).is_cuda for each in blocks))
        )
    with pretend.device():
        found = scoring.answers(*waiting, "mini-vqa", 20, progress=False)
        assert scoring.perplexity(*waiting, TEXT, 16, progress=False) == text
    pd.testing.assert_frame_equal(found, right)
    assert found.attrs == right.attrs
    assert set(there) == {1}
    assert not any(each.is_cuda for each in model.parameters())


def test_published_benchmarks_too(shipped, waiting):
    given = {"data": FIXTURES / "blink", "progress": False}
    right = benchmarks.answers(*shipped, "blink", 4, **given)
    with pretend.device() as device:
        found = benchmarks.answers(*waiting, "blink", 4, **given)
    assert device.launches
    pd.testing.assert_frame_equal(found, right)


@pytest.mark.parametrize(("free", "moved"), [(2**34, True), (2**20, False)])
def test_what_does_not_fit_stays_on_the_host_and_that_is_said(free, moved, monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    gone = []
    with pretend.device(), caplog.at_level(logging.WARNING):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 2**34))
        model, _ = tamp.load("mini-llava-next", device="cpu", offload=True)
        model.computed_on, model.to = "cuda:0", gone.append
        onloading.settle(model)
    assert gone == [torch.device("cuda:0")] * moved
    assert hasattr(model, "computed_on") != moved
    assert ("mini-llava-next, 0.0 GB, do not fit cuda:0" in caplog.text) != moved
