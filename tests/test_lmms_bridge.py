"""tamp as a model of lmms-eval: runs where lmms-eval is installed, see tests/benchmarks/lmms_environment.sh."""

import json
import os
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

pytest.importorskip("lmms_eval")
os.environ.setdefault("HF_HOME", "/tmp/tamp-lmms-eval")  # some of its tasks look for it when they are imported

import datasets
import tiny_videollama2
from lmms_eval import evaluator

import tamp
from tamp import cli, conversations, records
from tamp.errors import UserError
from tamp.evaluation import lmms_bridge, lmms_run, lmms_table
from tamp.worlds import pictures


@pytest.fixture(scope="module")
def textvqa(tmp_path_factory):
    """Four questions in TextVQA's schema."""
    rows = [
        {"question_id": number, "question": each.text, "image": each.images[0], "answers": [each.answer] * 10}
        for number, each in enumerate(pictures.questions(4, seed=0))
    ]
    path = tmp_path_factory.mktemp("textvqa") / "validation.parquet"
    datasets.Dataset.from_list(rows).cast_column("image", datasets.Image()).to_parquet(path)
    return str(path)


@pytest.fixture(scope="module")
def listens(tmp_path_factory):
    """A tiny VideoLLaMA 2 in a folder that tamp wrote, and its media."""
    folder = tmp_path_factory.mktemp("listens")
    tamp.save(tiny_videollama2.build(), tiny_videollama2.processor(), folder / "model")
    tiny_videollama2.write_media(folder)
    return folder


def asked(question: str, *visuals, **settings):
    """Make a request as lmms-eval does, and what the model looks its document up in."""
    return SimpleNamespace(args=(question, settings, lambda doc: list(doc), 0, "task", "split")), {
        "task": {"split": [visuals]}
    }


def answer(model, question, *visuals, **settings):
    request, model.task_dict = asked(question, *visuals, **{"max_new_tokens": 4, **settings})
    return model.generate_until([request])[0]


def task(path):
    return {
        "task": "textvqa_val",
        "dataset_path": "parquet",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {"validation": path}},
    }


def test_a_task_is_answered_as_the_model_alone_answers_it(textvqa, shipped):
    model, processor = shipped
    made = evaluator.simple_evaluate(
        model="tamp",
        model_args="pretrained=mini-llava-next,device=cpu",
        tasks=[task(textvqa)],
        batch_size=1,
        log_samples=True,
        force_simple=True,
    )
    samples = made["samples"]["textvqa_val"]
    assert len(samples) == 4
    for sample, each in zip(samples, pictures.questions(4, seed=0)):
        text = f"{each.text.capitalize()}\nAnswer the question using a single word or phrase."
        inputs = conversations.process(processor, records.dialogue(text, None, images=each.images), prompt=True)
        tokens = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        assert sample["filtered_resps"] == [processor.tokenizer.decode(tokens, skip_special_tokens=True).strip()]


def test_a_failed_answer_is_not_an_empty_one(textvqa):
    model = lmms_bridge.TampModel("mini-llava-next", device="cpu")

    def fail(**_):
        raise RuntimeError("out of something")

    model.model.generate = fail
    with pytest.raises(RuntimeError, match="out of something"):
        answer(model, "what color is it ?")


def test_a_question_is_asked_as_the_task_writes_it(monkeypatch):
    """Blanks at the end stay, and pictures stand at their marks."""
    model = lmms_bridge.TampModel("mini-llava-next", device="cpu")
    asked, process = [], conversations.process

    def watch(processor, messages, prompt):
        asked.append([part.get("text", part["type"]) for part in records.parts_of(messages)])
        return process(processor, messages, prompt)

    monkeypatch.setattr(conversations, "process", watch)
    one, other = pictures.questions(2, seed=0)
    answer(model, "what color is it ?\n", one.images[0])
    answer(model, "is <image> or <image> red ?", one.images[0], other.images[0])
    assert asked == [["image", "what color is it ?\n"], ["is", "image", "or", "image", "red ?"]]


def test_videos_and_sounds_are_seen_and_heard(listens):
    model = lmms_bridge.TampModel(str(listens / "model"), device="cpu")
    sound = listens / "beep.wav"
    wave = np.sin(np.arange(32000) / 20).astype(np.float32)
    heard = [
        {"bytes": sound.read_bytes(), "path": None},
        {"array": wave, "sampling_rate": 32000},
        SimpleNamespace(get_all_samples=lambda: SimpleNamespace(data=torch.tensor(wave[None]), sample_rate=32000)),
        str(sound),
    ]
    said = [answer(model, "what is heard ?", each) for each in heard]
    assert said[1] == said[2] and said[0] == said[3]
    assert isinstance(answer(model, "what is seen ?", str(listens / "av.mp4")), str)
    with pytest.raises(UserError, match="The task gives a int"):
        answer(model, "what is seen ?", 3)


def test_what_is_not_bridged_is_refused(listens):
    with pytest.raises(UserError, match="--batch_size 1"):
        lmms_bridge.TampModel("mini-llava-next", device="cpu", batch_size=4)
    model = lmms_bridge.TampModel("mini-llava-next", device="cpu")
    for name in ("loglikelihood", "generate_until_multi_round"):
        with pytest.raises(NotImplementedError, match="tamp answers"):
            getattr(model, name)([])


@pytest.mark.parametrize(
    ("scored", "counts"),
    [
        ({"a": 0.3}, 0.3),
        ({"a": {"question_id": 1, "score": 1.0}}, 1.0),
        ({"a": {"pred_answer": "B", "answer": "b "}}, 1.0),
        ({"a": {"pred": 2, "ground_truth": "3"}}, 0.0),
        ({"a": {"parsed_pred": ["A"], "answer": "A"}}, 1.0),
        ({"a": {"eval_answer": "text"}, "b": True}, 1.0),
        ({"a": {"eval_answer": "text"}}, None),
    ],
)
def test_points_are_read_from_what_a_task_writes(scored, counts):
    assert lmms_run.points(scored, ["a", "b"]) == counts


def test_two_models_are_compared_in_processes_of_their_own(textvqa, mini, tmp_path, capsys):
    """Two tasks by the command line, and a run that fails."""
    rows = [
        {
            "question_id": str(number),
            "question": each.text,
            "image": each.images[0],
            "answer": each.answer,
            "category": ("random", "popular", "adversarial")[number % 3],
        }
        for number, each in enumerate(pictures.questions(4, seed=0, tasks=("exist",)))
    ]
    pope, out = tmp_path / "pope.parquet", tmp_path / "made.json"
    datasets.Dataset.from_list(rows).cast_column("image", datasets.Image()).to_parquet(pope)
    model, processor = mini
    tamp.prune(model, None, tamp.Recipe.preset("magnitude", sparsity=0.7), progress=False)
    tamp.save(model, processor, tmp_path / "pruned")
    line = ["benchmark", "mini-llava-next", str(tmp_path / "pruned"), "--tasks", "textvqa_val", "pope", "--limit", "3"]
    line += ["--data", f"textvqa_val:validation={textvqa}", f"pope:test={pope}", "--device", "cpu", "--out", str(out)]
    assert cli.main(line) == 0
    made = json.loads(out.read_text())
    table = pd.DataFrame(made["table"]).astype(dict.fromkeys(("points", "lmms_eval", "dense", "same"), float))
    assert [*zip(table["task"], table["n"])] == [(name, 3) for name in ("textvqa_val", "pope") for _ in range(2)]
    assert table["points"].to_numpy() == pytest.approx(100 * table["lmms_eval"].to_numpy())
    for _, rows in table.groupby("task"):
        dense, pruned = rows.to_dict("records")
        assert dense["same"] == 100 and pruned["dense"] == dense["points"]
        assert pruned["difference"] == pytest.approx(pruned["points"] - dense["points"])
    shown = capsys.readouterr().out
    columns = "task model n lmms_eval points dense difference diff_low diff_high retention ret_low ret_high same empty"
    assert all(name in shown.split() for name in columns.split())
    with pytest.raises(UserError, match="lmms-eval failed on mini-llava-next"):
        lmms_table.benchmark(["mini-llava-next"], ["no_such_task"], device="cpu")
