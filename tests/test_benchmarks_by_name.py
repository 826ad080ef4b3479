"""Published benchmarks by name, on a few records in their published schema: rules, records, media, answers, scores."""

import dataclasses
import io
import json
import os
import shutil
import zipfile
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pandas as pd
import pyarrow
import pytest
import tiny_videollama2
import torch
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem
from PIL import Image
from pyarrow import parquet

import tamp
from tamp import cli, models, records
from tamp.errors import UserError
from tamp.evaluation import benchmarks
from tamp.evaluation.benchmarks import TABLE, Protocol, generating, rules, running, scores
from tamp.evaluation.benchmarks.source import Source

FIXTURES = Path(__file__).parent / "fixtures" / "benchmarks"
IMAGES = ("textvqa", "pope", "muirbench", "blink")
FOUR = ("a red ring", "a man", "a dog", "a cat")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TAMP_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def listener():
    """A tiny VideoLLaMA 2 with room for prompts letter by letter, and its processor."""
    model = tiny_videollama2.build()
    models.text_config(model).max_position_embeddings = 4096
    return model, tiny_videollama2.processor(audio_policy="plain")


@pytest.mark.parametrize(
    ("rule", "said", "letter"),
    [
        ("first_letter", "B", "B"),
        ("first_letter", "b.", "B"),
        ("first_letter", "(C) a dog", "C"),
        ("first_letter", "The best answer is D", "D"),
        ("first_letter", "A, B", "A"),
        ("first_letter", "E", None),
        ("first_letter", "Because of it", None),
        ("first_letter", "It moves in a circle.", None),
        ("first_letter", "a dog's", None),
        ("first_letter", "...", None),
        ("first_capital", "(C) a dog", "C"),
        ("first_capital", "The answer is B.", "B"),
        ("first_capital", "A or B", "A"),
        ("first_capital", "b", None),
        ("first_capital", "a dog", None),
        ("placed_letter", "B. a man", "B"),
        ("placed_letter", "Not A, not C: it is B.", "B"),
        ("placed_letter", "Not (C) as it seems, the answer is B I think", "B"),
        ("placed_letter", "Between A and C, (A) I think", "A"),
        ("placed_letter", "It is A or B I think", "B"),
        ("placed_letter", "b", None),
        ("placed_letter", "Because of it", None),
        ("leading_letter", "(B", "B"),
        ("leading_letter", "B red", "B"),
        ("leading_letter", "b.", "B"),
        ("leading_letter", "A comes first, but the answer is (B).", "B"),
        ("leading_letter", "Answer: C", "C"),
        ("leading_letter", "I would take (C) here", "C"),
        ("leading_letter", "The answer is a dog", None),
        ("leading_letter", "a dog", None),
        ("leading_letter", "It is B", None),
        ("leading_letter", "Because", None),
        ("only_letter", "B", "B"),
        ("only_letter", "b", "B"),
        ("only_letter", "C. a dog", "C"),
        ("only_letter", "(C)", None),
        ("only_letter", "C a dog", None),
        ("last_letter", "(A) or rather (B)", "B"),
        ("last_letter", "A or rather B", "B"),
        ("last_letter", "(A), not B", "A"),
        ("last_letter", "I think that it is a dog there", "C"),
        ("last_letter", "a dog", None),
        ("last_letter", "nothing of what you say there", None),
        ("last_letter", "b", None),
    ],
)
def test_a_rule_reads_letters_as_published_and_never_guesses(rule, said, letter):
    assert getattr(rules, rule)(said, FOUR) == letter


@pytest.mark.parametrize("said", ["", " \n", "AB", "yes and no", "?!"])
def test_nothing_is_read_where_no_option_is_said(said):
    scores = (rules.vqa_accuracy, rules.same_words)  # which score open questions
    every = {protocol.rule for row in TABLE.values() for protocol in row.protocols.values()} - set(scores)
    assert len(every) == 10 and {rule(said, FOUR) for rule in every} == {None}
    assert rules.vqa_accuracy(said, ["red"] * 10) == rules.same_words(said, ["red"]) == 0


@pytest.mark.parametrize(
    ("said", "letter"),
    [
        ("Laughter", "A"),
        ("a sneeze", "E"),
        ("clearing the throat", "D"),
        ("(F)", None),
        ("F", None),
        ("f", None),
        ("Cough or sigh", None),
        ("music", None),
    ],
)
def test_one_class_of_sound_is_named(said, letter):
    options = ("Laughter", "Sigh", "Cough", "Throat clearing", "Sneeze", "Sniff")
    assert rules.named_class(said, options) == letter


@pytest.mark.parametrize(("said", "letter"), [("(F)", "F"), ("F", "F"), ("a sneeze", "E"), ("Cough or sigh", None)])
def test_a_class_may_be_named_by_its_letter_where_the_prompt_shows_it(said, letter):
    options = ("Laughter", "Sigh", "Cough", "Throat clearing", "Sneeze", "Sniff")
    assert TABLE["vocalsound"].protocols["videollama2"].rule(said, options) == letter
    assert TABLE["vocalsound"].protocols["lmms-eval"].rule is rules.named_class


@pytest.mark.parametrize(("said", "letter"), [("yes", "A"), (" No ", "B"), ("yes.", None), ("maybe", None), ("", None)])
def test_yes_or_no_is_the_whole_answer(said, letter):
    assert rules.yes_or_no(said, ("Yes", "No")) == letter


@pytest.mark.parametrize(
    ("said", "letter"),
    [("A dog.", "C"), ("a man", "B"), ("dog", None), ("B", None), ("a dog or a cat", None), ("", None)],
)
def test_a_plain_question_is_answered_with_the_words_of_an_option(said, letter):
    assert rules.named_option(said, FOUR) == letter
    assert rules.named_option("a dog", ("A dog", "a dog.")) is None  # which of the two is not said


def test_one_word_counts_without_capitals_and_punctuation():
    assert rules.same_words("Yes.", ["yes"]) == 1
    assert rules.same_words("yes it is", ["yes"]) == 0
    assert rules.same_words("", ["yes"]) == 0


@pytest.mark.parametrize(
    ("said", "answers", "score"),
    [
        ("red", ["red"] * 7 + ["blue"] * 3, 1.0),
        ("blue", ["red"] * 7 + ["blue"] * 3, (7 * 1 + 3 * 2 / 3) / 10),
        ("blue", ["red"] * 8 + ["blue"] * 2, (8 * 2 / 3 + 2 * 1 / 3) / 10),
        ("blue", ["red"] * 9 + ["blue"], 9 / 3 / 10),
        ("green", ["red"] * 10, 0.0),
        ("", ["red"] * 10, 0.0),
        ("The Red!", ["red"] * 10, 1.0),
    ],
)
def test_ten_answers_score_as_in_vqa(said, answers, score):
    assert rules.vqa_accuracy(said, answers) == pytest.approx(score)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The two Dogs, an owl", "2 dogs owl"),
        ("dont", "don't"),
        ("couldnt've", "couldn't've"),
        ("3.5 m.", "3.5 m"),
        ("1,000", "1000"),
        ("ice-cream", "ice cream"),
        ("stop - go", "stop go"),
        ("dog's", "dog 's"),
        ("none", "0"),
    ],
)
def test_answers_are_normalised_as_in_vqa(text, normal):
    assert rules.normal(text) == normal


def first(name: str, configuration: str | None = None) -> benchmarks.Asked:
    known = TABLE[name]
    record = next(Source(name, known, FIXTURES / name).records(configuration, 1))
    return known.read(record, configuration or "")


def test_the_repositories_are_the_published_ones():
    assert {name: (row.hub, row.split) for name, row in TABLE.items()} == {
        "textvqa": ("lmms-lab-encoder/textvqa", "validation"),
        "mvbench": ("OpenGVLab/MVBench", "train"),
        "videomme": ("lmms-eval/Video-MME", "test"),
        "nextqa": ("lmms-eval/NExTQA", "test"),
        "egoschema": ("lmms-eval/egoschema", "test"),
        "muirbench": ("MUIRBENCH/MUIRBENCH", "test"),
        "blink": ("BLINK-Benchmark/BLINK", "val"),
        "clothoaqa": ("lmms-lab-audio/ClothoAQA", "clotho_aqa_test_filtered"),
        "vocalsound": ("lmms-lab-audio/vocalsound", "test"),
        "pope": ("lmms-lab-encoder/POPE", "test"),
    }
    assert len(TABLE["mvbench"].configurations) == 20 and len(TABLE["blink"].configurations) == 14
    limits = dict.fromkeys(("mvbench", "videomme", "egoschema", "muirbench"), 16)
    limits |= {"blink": 1024, "pope": 128, "clothoaqa": 8}  # tokens, of lmms-eval's tasks that name one
    assert {name: TABLE[name].longest for name in limits} == limits


def test_the_prompts_are_the_published_ones():
    one = benchmarks.Asked(question="What is it?", options=("a dog", "a cat"), right="A")

    def prompt(name: str, protocol: str = "lmms-eval") -> str:
        return TABLE[name].protocols[protocol].prompt(one)

    letter = "Answer with the option's letter from the given choices directly."
    listed = "What is it?\nA. a dog\nB. a cat\n"
    for name in ("muirbench", "egoschema"):
        assert prompt(name) == listed + letter
    assert prompt("nextqa") == listed.rstrip()  # no instruction follows
    assert prompt("mvbench") == "Question:What is it?\nOption:\n(A) a dog\n(B) a cat\nOnly give the best option.\n"
    for name in ("mvbench", "egoschema"):
        assert prompt(name, "videollama2") == (
            f"Question: What is it?\nOptions:\n(A) a dog\n(B) a cat\n{letter[:-1]} and only give the best option."
        )
    best = "Select the best answer to the following multiple-choice question based on the video"
    only = "Respond with only the letter (A, B, C, or D) of the correct option."
    assert prompt("videomme") == f"{best} and the subtitles. {only}\n{listed}\n{letter}"
    assert prompt("videomme", "videollama2") == (
        f"{best}. {only}\n{listed}{letter[:-1]} and only give the best option. The best answer is: "
    )
    assert prompt("pope") == "What is it?\nAnswer the question using a single word or phrase."
    assert prompt("clothoaqa", "videollama2") == "Question: What is it?\nAnswer the question using a single word."
    assert prompt("blink").startswith("Note: You only need to respond with A, B without")
    blink = benchmarks.Asked(question="What is it? (A) a dog (B) a cat", alone="What is it?")
    assert TABLE["blink"].protocols["plain"].prompt(blink) == prompt("egoschema", "plain") == "What is it?"
    assert not {name for name, row in TABLE.items() if "plain" not in row.protocols} ^ {"muirbench", "vocalsound"}


def test_the_fixtures_are_small():
    records = {
        name: sum(1 for c in row.configurations or (None,) for _ in Source(name, row, FIXTURES / name).records(c))
        for name, row in TABLE.items()
    }
    assert all(20 <= number <= 50 for number in records.values()), records
    assert sum(path.stat().st_size for path in FIXTURES.rglob("*") if path.is_file()) < 3_000_000


def test_what_a_record_asks_is_read_from_its_published_columns():
    assert first("textvqa").answers.count("yellow") == 10
    assert first("mvbench", "action_antonym").videos == ("ssv2_video_mp4/1000.mp4",)
    assert first("videomme", "videomme").options == ("left.", "right.", "up.", "down.")
    assert first("nextqa", "MC").videos == ("1000",) and len(first("nextqa", "MC").options) == 5
    assert not first("egoschema", "Subset").options[0].startswith("A.")
    assert len(first("muirbench").images) == 2 and first("muirbench").question.count("<image>") == 2
    assert len(first("blink", "Art_Style").images) == 2 and len(first("blink", "Counting").images) == 1
    assert first("clothoaqa", "clotho_aqa").audios[0]["bytes"][:4] == b"fLaC"
    assert first("vocalsound").right == "A"


@pytest.mark.parametrize("given", [2, "2", "C", "(C)", "a dog"])
def test_a_right_answer_is_a_number_a_letter_or_a_text(given):
    record = {"question": "?", "options": str(list(FOUR)), "answer": given, "image_list": []}
    assert TABLE["muirbench"].read(record, "").right == "C"
    with pytest.raises(UserError, match="not one of 4 options"):
        TABLE["muirbench"].read({**record, "answer": "a cow"}, "")


def test_a_limit_reads_no_more_than_it_needs(tmp_path):
    copy = tmp_path / "textvqa"
    shutil.copytree(FIXTURES / "textvqa", copy)
    (copy / "data" / "validation-00001-of-00002.parquet").write_bytes(b"broken")
    source = Source("textvqa", TABLE["textvqa"], copy)
    assert len(list(source.records(None, 10))) == 10
    with pytest.raises(UserError, match="TextVQA cannot be read from"):
        list(source.records(None, 11))


def test_a_limit_reads_one_group_of_rows_of_a_file(tmp_path, monkeypatch):
    rows = [{"id": str(number), "image": {"bytes": os.urandom(50_000), "path": "x"}} for number in range(40)]
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / "test-00000-of-00001.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=5)
    read = []

    class Counted(io.FileIO):
        def read(self, size=-1):
            part = super().read(size)
            read.append(len(part))
            return part

    source = Source("pope", TABLE["pope"], tmp_path)
    monkeypatch.setattr(source, "system", SimpleNamespace(open=lambda path, mode: Counted(path)))
    assert [record["id"] for record in source.records(None, 5)] == list("01234")
    assert 5 * 50_000 < sum(read) < 10 * 50_000


def test_a_copy_says_how_many_records_it_holds(tmp_path):
    counts = {
        name: [Source(name, TABLE[name], FIXTURES / name).count(c) for c in configurations]
        for name, configurations in (("textvqa", [None]), ("blink", ["Jigsaw"]), ("mvbench", ["moving_count"]))
    }
    assert counts == {"textvqa": [20], "blink": [2], "mvbench": [None]}


def test_a_limit_is_divided_among_the_configurations():
    shares = running.parts(TABLE["blink"], 30)
    assert [n for _, n in shares] == [3, 3] + [2] * 12
    assert running.parts(TABLE["mvbench"], 3) == [
        ("action_antonym", 1),
        ("action_count", 1),
        ("action_localization", 1),
    ]
    assert running.parts(TABLE["pope"], None) == [(None, None)]


def test_videos_come_out_of_archives_and_stay_in_the_cache(tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(FIXTURES / "nextqa", copy)
    with zipfile.ZipFile(copy / "more.zip", "w") as opened:
        opened.writestr("../../evil.mp4", b"film")
    source = Source("nextqa", TABLE["nextqa"], copy)
    found = source.video("1002")
    with zipfile.ZipFile(copy / "videos.zip") as opened:
        assert found.read_bytes() == opened.read("NExTVideo/1002.mp4")
    assert source.video("evil").is_relative_to(tmp_path / "cache" / "benchmarks" / "nextqa")
    assert source.video("gone") is None and source.video("02") is None


def test_a_copy_of_another_layout_and_the_hub_out_of_reach_are_told(tmp_path):
    with pytest.raises(UserError, match="holds no records of POPE"):
        Source("pope", TABLE["pope"], tmp_path).tables(None)
    with pytest.raises(UserError, match="There is no folder"):
        Source("pope", TABLE["pope"], tmp_path / "gone")
    with pytest.raises(UserError, match="hf download lmms-lab-encoder/POPE"):
        Source("pope", TABLE["pope"])


def test_the_hub_is_read_like_a_copy(tmp_path, monkeypatch):
    """A folder stands in for the hub's file system: paths start with the repository, nothing is a local file."""
    hub = tmp_path / "hub" / "datasets"
    shutil.copytree(FIXTURES / "nextqa", hub / "lmms-eval" / "NExTQA")
    shutil.copytree(FIXTURES / "mvbench", hub / "OpenGVLab" / "MVBench@video")
    monkeypatch.setattr(huggingface_hub, "HfFileSystem", lambda: DirFileSystem(tmp_path / "hub", LocalFileSystem()))
    source = Source("nextqa", TABLE["nextqa"])
    assert [record["video"] for record in source.records("MC", 3)] == [1000, 1000, 1001]
    found = source.video("1003")
    assert found.is_relative_to(tmp_path / "cache") and found.stat().st_size > 1000
    videos = tmp_path / "home" / "nextqa"  # as lmms-eval unpacks them
    zipfile.ZipFile(FIXTURES / "nextqa" / "videos.zip").extractall(videos)
    source = Source("nextqa", TABLE["nextqa"], videos)
    assert [record["video"] for record in source.records("MC", 3)] == [1000, 1000, 1001]
    assert source.video("1003") == videos / "NExTVideo" / "1003.mp4"
    source = Source("mvbench", TABLE["mvbench"])
    name = TABLE["mvbench"].read(next(source.records("moving_count", 1)), "moving_count").videos[0]
    found = source.video(name)
    assert found.read_bytes() == (FIXTURES / "mvbench" / name).read_bytes()
    assert found.is_relative_to(tmp_path / "cache") and not list(found.parent.glob("*.part"))


def ask(model_and_processor, name: str, limit: int, **options) -> pd.DataFrame:
    return benchmarks.answers(*model_and_processor, name, limit, data=FIXTURES / name, progress=False, **options)


@pytest.mark.parametrize("name", TABLE)
def test_every_benchmark_runs(name, shipped, listener):
    found = ask(shipped if name in IMAGES else listener, name, 2, batch_size=2)
    assert len(found) == 2 and found.attrs["missing"] == []
    known = TABLE[name]
    configurations = known.configurations or (None,)
    asked = [first(name, configuration) for configuration in configurations[:2]]
    assert list(found["right"])[: len(asked)] == [one.right or max(one.answers, key=one.answers.count) for one in asked]
    assert found["nll"].gt(0).all()
    assert found["choice_correct"].isna().all() == (not asked[0].options)
    table = benchmarks.summarise(found)
    assert table["n"].sum() == 2 and {"empty", "unparsable"} <= set(table)


OWN = {"own": Protocol(prompt=lambda asked: asked.question, rule=rules.yes_or_no, choice="{option}")}


@pytest.fixture
def own_words(monkeypatch):
    """POPE in the words that the shipped model knows."""
    monkeypatch.setitem(TABLE, "pope", dataclasses.replace(TABLE["pope"], protocols=OWN))


def test_a_model_that_knows_scores_high_and_batches_change_nothing(own_words, shipped):
    together = ask(shipped, "pope", 8, batch_size=8, likelihood=False)
    alone = ask(shipped, "pope", 8, batch_size=1, likelihood=False)
    assert together["score"].mean() >= 0.9
    assert not (together["empty"] | together["unparsable"]).any()
    assert list(together["said"]) == list(alone["said"])
    assert benchmarks.summarise(together).attrs["f1"] >= 0.9
    assert benchmarks.retention(together, alone) == {"retention": 1.0, "low": 1.0, "high": 1.0}


def test_padding_on_the_left_changes_no_answer(listener):
    model, processor = listener
    prompts = [
        processor.tokenizer(text, return_tensors="pt")
        for text in ("what is this", "and what is that, over there", "yes")
    ]
    generate = generating.Generator(model, processor, 8)
    together = generate([dict(prompt) for prompt in prompts])
    assert generate.together is True
    for prompt, said in zip(prompts, together):
        made = model.generate(**prompt, max_new_tokens=8, do_sample=False)[0, prompt["input_ids"].shape[1] :]
        assert processor.tokenizer.decode(made, skip_special_tokens=True).strip() == said


def test_a_model_that_gets_padding_wrong_answers_one_by_one(listener, monkeypatch, caplog):
    model, processor = listener
    generate = generating.Generator(model, processor, 2)
    sizes = []

    def run(prompts, longest):
        sizes.append(len(prompts))
        logits = torch.arange(5.0).expand(len(prompts), 5) * (1 if len(prompts) > 1 else -1)
        return logits, torch.full((len(prompts), 1), 5)

    monkeypatch.setattr(generate, "_run", run)
    assert len(generate([{"input_ids": torch.ones(1, n, dtype=torch.long)} for n in (2, 3)])) == 2
    assert sizes == [2, 1, 1, 1] and "one by one" in caplog.text


def test_a_stopped_run_goes_on_and_another_run_is_refused(own_words, shipped, tmp_path, monkeypatch):
    path = tmp_path / "answers" / "pope.jsonl"
    options = {"recorded": path, "likelihood": False, "batch_size": 2}
    whole = ask(shipped, "pope", 6, **{**options, "recorded": None})
    ask(shipped, "pope", 4, **options)
    path.write_text(path.read_text()[:-20])  # the last line broke off
    answered = []
    call = running._Run.__call__
    monkeypatch.setattr(
        running._Run,
        "__call__",
        lambda self, batch, scratch: answered.extend(r["_number"] for _, r in batch) or call(self, batch, scratch),
    )
    again = ask(shipped, "pope", 6, **options)
    assert answered == [3, 4, 5]
    pd.testing.assert_frame_equal(again, whole)
    pd.testing.assert_frame_equal(pd.read_parquet(path.with_suffix(".parquet")), whole, check_dtype=False)
    assert ask(shipped, "pope", 2, **options)["number"].tolist() == [0, 1] and len(answered) == 3
    with pytest.raises(UserError, match="likelihood=False, not True"):
        ask(shipped, "pope", 6, **{**options, "likelihood": True})
    path.write_text("[]\n")
    with pytest.raises(UserError, match="does not hold recorded answers"):
        ask(shipped, "pope", 6, **options)


def test_a_pruned_model_has_another_fingerprint(mini):
    model, _ = mini
    before = running.fingerprint(model)
    assert running.fingerprint(model) == before
    tamp.prune(model, None, tamp.Recipe.preset("magnitude", sparsity=0.5), progress=False)
    assert running.fingerprint(model) != before


def test_missing_videos_are_counted_and_named(listener, monkeypatch, caplog):
    only = dataclasses.replace(TABLE["mvbench"], configurations=("moving_count",))
    monkeypatch.setitem(TABLE, "mvbench", only)
    found = ask(listener, "mvbench", 2, likelihood=False)
    assert len(found) == 1 and found.attrs["missing"] == ["clevrer/video_validation/gone.mp4"]
    assert "1 of 2 questions are left out" in caplog.text


def test_missing_pictures_are_counted_and_files_beside_the_records_are_found(shipped, tmp_path):
    rows = list(Source("pope", TABLE["pope"], FIXTURES / "pope").records(None, 3))
    (tmp_path / "data").mkdir()
    (tmp_path / "here.jpg").write_bytes(rows[1]["image"]["bytes"])
    for row, name in zip(rows, ("gone.jpg", "here.jpg")):
        row["image"] = {"bytes": None, "path": name}
    made = [{name: value for name, value in row.items() if name != "_number"} for row in rows]
    parquet.write_table(pyarrow.Table.from_pylist(made), tmp_path / "data" / "test-00000-of-00001.parquet")
    options = {"data": tmp_path, "protocol": "plain", "likelihood": False, "progress": False}
    found = benchmarks.answers(*shipped, "pope", **options)
    assert found["number"].tolist() == [1, 2] and found.attrs["missing"] == ["gone.jpg"]
    (tmp_path / "here.jpg").write_bytes(b"broken")
    with pytest.raises(UserError, match="POPE, record 1: .*here.jpg"):
        benchmarks.answers(*shipped, "pope", **options)


def test_frames_stand_for_a_video_where_a_model_takes_pictures(shipped):
    with pytest.raises(UserError, match="the model takes no videos"):
        ask(shipped, "videomme", 1)
    assert len(ask(shipped, "videomme", 1, frames=2, likelihood=False)) == 1


def answered(score: list[float], said: str = "A", attrs: str = "blink") -> pd.DataFrame:
    rows = [
        {"configuration": None, "number": n, "score": s, "empty": not said, "unparsable": False, "choice_correct": s}
        for n, s in enumerate(score)
    ]
    table = pd.DataFrame(rows)
    table.attrs["benchmark"] = attrs
    return table


def test_a_retention_is_the_ratio_of_means_with_an_interval():
    found = benchmarks.retention(answered([1, 1, 1, 0] * 10), answered([1, 0, 1, 0] * 10))
    assert found["retention"] == pytest.approx(2 / 3)
    assert found["low"] < 2 / 3 < found["high"] < 1


def test_a_retention_is_refused_where_answers_are_empty_or_the_questions_differ():
    dense, silent = answered([1, 0] * 10), answered([1, 0] * 10)
    silent.loc[:1, "unparsable"] = True
    with pytest.raises(UserError, match="10% of the answers to blink are empty or unparsable, more than 5%"):
        benchmarks.retention(dense, silent)
    assert benchmarks.retention(dense, silent, "choice_correct")["retention"] == 1
    silent.loc[1, "unparsable"] = False  # 5 % is not more than 5 %
    assert benchmarks.refusal(silent) == ""
    with pytest.raises(UserError, match="same questions"):
        benchmarks.retention(dense, answered([1, 0]))
    with pytest.raises(UserError, match="nothing to keep"):
        benchmarks.retention(answered([0, 0]), answered([1, 0]))


def test_f1_counts_what_is_not_yes_as_no():
    said, right = pd.Series([True, True, False, False]), pd.Series([True, False, True, False])
    assert scores.f1(said, right) == pytest.approx(0.5)
    assert scores.f1(pd.Series([False]), pd.Series([True])) == 0


def test_marks_in_a_question_say_where_its_pictures_stand():
    red, blue = (Image.new("RGB", (8, 8), colour) for colour in ("red", "blue"))
    parts = records.dialogue("First <image>, then <image>?", None, (red, blue), marked=True)[0]["content"]
    assert [part["type"] for part in parts] == ["text", "image", "text", "image", "text"]
    assert parts[1]["image"] is red and parts[3]["image"] is blue
    parts = records.dialogue("First <image>, then <image>?", None, (red, blue))[0]["content"]
    assert [part["type"] for part in parts] == ["image", "image", "text"]


def test_the_command_line_evaluates_several(tmp_path, capsys):
    out, kept = tmp_path / "scores.csv", tmp_path / "answers"
    command = ["evaluate", "mini-llava-next", "--benchmark", "pope", "mini-vqa", "--limit", "2"]
    options = ["--data", str(FIXTURES), "--records", str(kept), "--out", str(out), "--no-likelihood"]
    assert cli.main([*command, *options]) == 0
    printed = capsys.readouterr().out
    assert "unparsable" in printed and "F1" in printed and "colour" in printed
    assert set(pd.read_csv(out)["benchmark"]) == {"pope", "mini-vqa"}
    assert json.loads((kept / "pope.jsonl").read_text().splitlines()[0])["benchmark"] == "pope"
    assert cli.main(["evaluate", "mini-llava-next", "--benchmark", "popee"]) == 2
    assert "Did you mean 'pope'?" in capsys.readouterr().err
    assert cli.main(["evaluate", "mini-llava-next", "--benchmark", "pope", "blink", "--protocol", "videollama"]) == 2
    assert "There is no protocol 'videollama'" in capsys.readouterr().err
    assert cli.main(["evaluate", "mini-llava-next", "--data", "x"]) == 2
    assert "--data is for published benchmarks" in capsys.readouterr().err
    assert cli.main(["evaluate", "mini-llava-next", "--benchmark", "pope", "pope"]) == 2
