"""Evaluation against the slow and obvious way: one question at a time, real generation, no cache sharing."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny_videollama2
import torch

import tamp
from tamp import conversations, media
from tamp.errors import UserError
from tamp.evaluation import scoring
from tamp.worlds import pictures


@torch.no_grad()
def slowly(model, processor, question) -> dict:
    """Score a question by generating its answer, and every choice by a plain forward pass."""
    prompt = conversations.process(processor, conversations.dialogue(question.text, None, question.images), prompt=True)
    made = model.generate(**prompt, max_new_tokens=6, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    said = processor.tokenizer.decode(made, skip_special_tokens=True).strip()
    eos = processor.tokenizer.eos_token_id
    scores, nll = {}, None
    for choice in question.choices:
        full = conversations.process(processor, conversations.dialogue(question.text, choice, question.images))
        start = prompt["input_ids"].shape[1]
        answer = full["input_ids"][0, start:]
        logits = model(**full).logits[0, start - 1 : -1].float().log_softmax(-1)
        taken = logits.gather(1, answer[:, None])[:, 0]
        assert answer[-1] == eos
        scores[choice] = taken[:-1].sum().item()
        if choice == question.answer:
            nll = -taken.mean().item()
    return {"correct": said == question.answer, "choice": max(scores, key=scores.get), "nll": nll}


def test_fast_scores_are_those_of_real_generation(shipped):
    model, processor = shipped
    asked = pictures.questions(40, seed=5)
    fast = scoring.answers(model, processor, asked, progress=False)
    slow = pd.DataFrame([slowly(model, processor, question) for question in asked])
    assert list(fast["correct"]) == list(slow["correct"])
    assert list(fast["choice"]) == list(slow["choice"])
    np.testing.assert_allclose(fast["nll"], slow["nll"], atol=2e-4, rtol=1e-4)


def test_a_prepared_benchmark_gives_the_same_scores_again_and_for_a_pruned_model(mini):
    model, processor = mini
    ready = scoring.prepare(processor, "mini-vqa", 60, seed=3)
    first = tamp.evaluate(model, processor, ready, progress=False)
    pd.testing.assert_frame_equal(first, tamp.evaluate(model, processor, ready, progress=False))
    tamp.prune(model, None, tamp.Recipe.preset("magnitude", sparsity=0.8), progress=False)
    again = tamp.evaluate(model, processor, ready, progress=False)
    pd.testing.assert_frame_equal(again, tamp.evaluate(model, processor, "mini-vqa", 60, seed=3, progress=False))
    assert (again["nll"] > first["nll"]).any()


def test_the_table_has_the_promised_columns_and_a_row_per_task(shipped):
    scores = tamp.evaluate(*shipped, "mini-vqa", limit=200, progress=False)
    assert list(scores.columns) == list(scoring.COLUMNS)
    assert list(scores["task"]) == list(pictures.TASKS)
    assert scores["n"].sum() == 200
    shares = scores[["accuracy", "low", "high", "choice_accuracy", "chance"]]
    assert ((shares >= 0) & (shares <= 1)).all(axis=None)
    assert (scores["low"] <= scores["accuracy"]).all() and (scores["accuracy"] <= scores["high"]).all()
    everything = scoring.overall(scores)
    assert everything["n"].item() == 200
    assert everything["accuracy"].item() == pytest.approx((scores["accuracy"] * scores["n"]).sum() / 200)


def test_the_wilson_interval_is_the_solution_of_its_equation():
    """Its ends are where the distance to the share is z standard errors of the end itself."""
    for share, n in ((0.5, 10), (0.9, 100), (1.0, 30), (0.0, 30)):
        for end in scoring.wilson(share, n):
            assert abs(share - end) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / n), abs=1e-9)


def test_the_model_comes_back_in_its_mode(mini):
    model, processor = mini
    model.train()
    tamp.evaluate(model, processor, "mini-vqa", limit=3, progress=False)
    assert model.training


def test_a_file_of_questions_is_a_benchmark(shipped, tmp_path):
    question = pictures.questions(1, seed=0)[0]
    question.images[0].save(tmp_path / "a.png")
    record = {"image": "a.png", "question": question.text, "answer": question.answer, "choices": list(question.choices)}
    path = tmp_path / "own.jsonl"
    path.write_text("\n".join(json.dumps({**record, "task": task}) for task in ("one", "two")))
    scores = tamp.evaluate(*shipped, path, progress=False)
    assert list(scores["task"]) == ["one", "two"]
    assert scores["accuracy"].nunique() == 1
    without = tmp_path / "without.jsonl"
    without.write_text(json.dumps({key: value for key, value in record.items() if key != "choices"}))
    assert tamp.evaluate(*shipped, without, progress=False)["choice_accuracy"].isna().all()


def test_questions_without_pictures_work_and_are_split_into_bounded_groups(shipped):
    asked = [dataclasses.replace(question, images=()) for question in pictures.questions(40, seed=1)]
    ready = scoring.prepare(shipped[1], asked)
    assert max(len(group.questions) for group in ready.groups) <= scoring.TOGETHER
    assert len(scoring.answers(*shipped, ready, progress=False)) == 40


def test_questions_about_one_video_read_it_once_and_score_as_when_asked_alone(tmp_path, monkeypatch):
    tiny_videollama2.write_media(tmp_path)
    model, processor = tiny_videollama2.build(), tiny_videollama2.processor(audio_policy="plain")
    about = [{"video": "av.mp4"}] * 3 + [{"video": "other.mp4"}] + [{"video": "mute.mp4", "audio": "beep.wav"}] * 2
    about += [{"audio": "beep.wav"}] * 2 + [{}]
    asked = [
        {"question": f"Is it {number}?", "answer": "no" if number % 2 else "yes", "choices": ["yes", "no"], **named}
        for number, named in enumerate(about)
    ]
    path = tmp_path / "asked.jsonl"
    path.write_text("\n".join(map(json.dumps, asked)))
    read, read_video = [], media.read_video
    monkeypatch.setattr(media, "read_video", lambda path, frames: read.append(path) or read_video(path, frames))
    ready = scoring.prepare(processor, path)
    assert [len(group.questions) for group in ready.groups] == [3, 1, 2, 2, 1]
    assert [Path(path).name for path in read] == ["av.mp4", "other.mp4", "mute.mp4"]
    together = scoring.answers(model, processor, ready, progress=False)
    alone = [
        scoring.answers(model, processor, [question], progress=False) for question in conversations.questions(path)
    ]
    pd.testing.assert_frame_equal(together, pd.concat(alone, ignore_index=True), rtol=1e-4)
    assert together["nll"].nunique() == len(asked), "every question counts, and so does what it is about"
    for question, nll in zip(conversations.questions(path), together["nll"]):
        prompt = conversations.render(
            processor, conversations.dialogue(question.text, None, **question.media), prompt=True
        )
        whole = conversations.encode(processor, f"{prompt}{question.answer}<|im_end|>", **question.media)
        length = len(question.answer) + 1
        with torch.no_grad():
            logits = model(**whole).logits[0, -length - 1 : -1]
        expected = torch.nn.functional.cross_entropy(logits, whole["input_ids"][0, -length:]).item()
        assert nll == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("limit", [0, -3])
def test_no_questions_are_refused(shipped, limit):
    with pytest.raises(UserError, match="at least one question"):
        tamp.evaluate(*shipped, "mini-vqa", limit=limit)


def test_an_unknown_benchmark_names_what_exists(shipped):
    with pytest.raises(UserError, match=r"no benchmark 'minivqa'. Did you mean 'mini-vqa'\?"):
        tamp.evaluate(*shipped, "minivqa")


def test_perplexity_is_that_of_the_mean_likelihood(shipped):
    model, processor = shipped
    text = "where is the circle ? answer : top-left what color is the ring ? answer : red " * 3
    ids = torch.tensor([processor.tokenizer(text, add_special_tokens=False)["input_ids"]])
    half = ids.shape[1] // 2
    with torch.no_grad():
        losses = [model(input_ids=part, labels=part).loss.item() for part in ids[:, : 2 * half].split(half, 1)]
    found = scoring.perplexity(model, processor, text, window=half, progress=False)
    assert found == pytest.approx(math.exp(sum(losses) / 2), rel=1e-5)
    with pytest.raises(UserError, match="fewer than one window of 500"):
        scoring.perplexity(model, processor, text, window=500)
