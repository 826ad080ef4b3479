"""Files as they are found: odd records read, unusable ones named or skipped, one thing in two spellings the same."""

import base64
import io
import json
import logging
import threading
import time

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

import tamp
from tamp import conversations, media, pixels, reading, records
from tamp.errors import UserError
from tamp.evaluation import compare, scoring
from tamp.records import picture

PIXELS = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)


def png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "B.PNG").write_bytes(png())
    (tmp_path / "bad.png").write_bytes(b"no")
    return tmp_path


def write(folder, *made, name="set.jsonl"):
    path = folder / name
    path.write_text("\n".join(json.dumps(record) for record in made))
    return path


def turns(*said, **beside):
    return {"conversations": [{"from": who, "value": text} for who, text in said], **beside}


def messages(folder, record):
    path = write(folder, record)
    return records.conversation(records.read(path, "set")[0], path)


def kinds(made):
    return [[part["type"] for part in message["content"]] for message in made]


PROSE = {
    "a tag": turns(("human", "What does the <video> tag do, and <audio>?"), ("gpt", "It plays.")),
    "at the end of a sentence": turns(("human", "Explain <video>"), ("gpt", "A tag.")),
    "a picture's mark in an answer": turns(("human", "Write HTML."), ("gpt", "<image>\nis no tag.")),
    "a picture's mark in prose": turns(("human", "Is <image> a tag?"), ("gpt", "No.")),
}


@pytest.mark.parametrize("kind", PROSE)
def test_a_mark_in_prose_is_text(kind, folder):
    made = messages(folder, PROSE[kind])
    assert kinds(made) == [["text"], ["text"]]
    assert [part["text"] for message in made for part in message["content"]] == [
        turn["value"].strip() for turn in PROSE[kind]["conversations"]
    ]


def test_marks_of_media_and_marks_in_prose_are_told_apart(folder):
    made = messages(
        folder, turns(("human", "<image>\nIs it a <video> tag?"), ("gpt", "It is an <image>."), image="a.png")
    )
    assert kinds(made) == [["image", "text"], ["text"]]
    assert made[0]["content"][1]["text"] == "Is it a <video> tag?"


def test_a_mark_for_a_lost_picture_is_refused(folder):
    for text in ("<image>\nWhat?", "What?\n<image>", "<video>\nWhat?"):
        with pytest.raises(UserError, match=r"Record 0: its text has 1 <\w+> marks for 0"):
            messages(folder, turns(("human", text), ("gpt", "A")))


def test_a_text_that_mentions_a_mark_makes_no_placeholder(folder, processor):
    plain = tamp.calibration_set(write(folder, {"text": "where is the <image> ?"}), processor, n=1)[0]
    assert processor.image_token_id not in plain["input_ids"][0].tolist() and "pixel_values" not in plain
    both = turns(("human", "<image>\nwhat ?"), ("gpt", "red <image>"), image="a.png")
    alone = turns(("human", "<image>\nwhat ?"), ("gpt", "red"), image="a.png")
    count = [
        (tamp.calibration_set(write(folder, each), processor, n=1)[0]["input_ids"] == processor.image_token_id).sum()
        for each in (both, alone)
    ]
    assert count[0] == count[1] > 0


def test_marks_before_a_question_are_where_its_media_go(folder):
    asked = conversations.questions(write(folder, {"image": "a.png", "question": "<image>\nWhat?", "answer": "a"}))[0]
    assert asked.text == "What?" and len(asked.images) == 1


def test_speakers_in_either_vocabulary_and_system_turns(folder):
    first = messages(folder, turns(("system", "Be brief."), ("human", "Q"), ("gpt", "A")))
    other = {"messages": [{"role": role, "content": text} for role, text in (("system", "Be brief."), ("user", "Q"))]}
    other["messages"].append({"role": "assistant", "content": "A"})
    assert first == messages(folder, other)
    assert [message["role"] for message in first] == ["system", "user", "assistant"]


@pytest.mark.parametrize("empty", ["", " ", [None], [], [""], None, float("nan")])
def test_no_picture_in_any_spelling(empty, folder):
    assert kinds(messages(folder, {"image": empty, "question": "Q", "answer": "A"})) == [["text"], ["text"]]


UNUSABLE = {
    "no turns": ({"conversations": []}, "needs 'conversations'"),
    "turns that say nothing": (turns(("human", ""), ("gpt", " ")), "its conversation is empty"),
    "a turn without words": (turns(("human", None)), "What a turn says is a text or a number, not None"),
    "a turn of nobody": ({"conversations": [{"value": "hi"}]}, "None is not"),
    "turns in a text": ({"conversations": "hi"}, "a conversation is a list of turns"),
    "an empty text": ({"text": " "}, "its text is empty"),
    "one of two pictures": (
        {"images": ["a.png", None], "question": "Q", "answer": "A"},
        "of its 2 images, 1 are empty",
    ),
    "half a character": ({"text": "\ud800"}, "holds half a character"),
    "an answer that is no number": ({"question": "Q", "answers": [float("inf")]}, "An answer is inf"),
    "a name too long": ({"image": "x" * 5000, "question": "Q", "answer": "A"}, "is not a readable image"),
    "a damaged data URI": ({"image": "data:image/png;base64,AAA", "question": "Q", "answer": "A"}, "not a readable"),
    "a video's name too long": ({"video": "x" * 5000, "question": "Q", "answer": "A"}, "There is no file"),
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_an_unusable_record_is_named_and_can_be_skipped(kind, folder, processor, caplog):
    record, message = UNUSABLE[kind]
    path = write(folder, {"text": "where is the ring ?"}, {**record, "id": "r7"})
    with pytest.raises(UserError, match=rf"^set\.jsonl: Record 1 \(id 'r7'\): .*{message}") as error:
        tamp.calibration_set(path, processor, n=2)
    assert len(str(error.value)) < 600
    made = tamp.calibration_set(path, processor, n=2, on_error="skip")
    assert len(made) == 1 and [(each.place.number, each.place.id) for each in made.skipped] == [(1, "'r7'")]
    assert "1 records were skipped, 1 used" in caplog.text and "Record 1 (id 'r7')" in caplog.text


def test_another_record_is_drawn_for_one_that_is_skipped(folder, processor):
    bad, good = {"image": "bad.png", "question": "q", "answer": "a"}, {"text": "where is the ring ?"}
    made = tamp.calibration_set(write(folder, *[bad, good] * 4), processor, n=4, on_error="skip")
    assert len(made) == 4 and all(each.place.number % 2 == 0 for each in made.skipped)
    with pytest.raises(UserError, match="No sample can be used: all 2 records have a fault, the first set.jsonl: Rec"):
        tamp.calibration_set(write(folder, bad, bad), processor, n=1, on_error="skip")
    with pytest.raises(UserError, match="no on_error 'ignore'"):
        tamp.calibration_set(write(folder, good), processor, n=1, on_error="ignore")


def test_a_question_that_cannot_be_used_is_named_and_can_be_skipped(folder, processor, monkeypatch):
    good = {"image": "a.png", "question": "what ?", "answer": "red"}
    path = write(folder, good, {**good, "image": "bad.png"}, {**good, "answer": " "}, good)
    with pytest.raises(UserError, match=r"^set\.jsonl: Record 1: .*not a readable image"):
        scoring.prepare(processor, path)
    ready = scoring.prepare(processor, path, limit=2.0, on_error="skip")
    assert sum(len(group.questions) for group in ready.groups) == 2
    assert [each.place.number for each in ready.skipped] == [1, 2]
    whole = conversations.encode

    def fail(processor, text, **media):
        if "first" in text:
            raise UserError("no such size")
        return whole(processor, text, **media)

    monkeypatch.setattr(conversations, "encode", fail)
    path = write(folder, {**good, "question": "first ?"}, good, name="other.jsonl")
    with pytest.raises(UserError, match=r"^other\.jsonl: Record 0: no such size"):
        scoring.prepare(processor, path)
    ready = scoring.prepare(processor, path, on_error="skip")
    assert len(ready.groups) == len(ready.groups[0].questions) == len(ready.skipped) == 1


def test_lines_are_lines_of_the_file_alone(folder):
    path = folder / "SET.JSONL"
    path.write_bytes(
        "\ufeff".encode() + json.dumps({"text": "a\u2028b\x85c"}, ensure_ascii=False).encode() + b"\r\n\n{}"
    )
    assert [record.get("text") for record in records.read(path, "set")] == ["a\u2028b\x85c", None]


def test_lists_and_lines_by_the_other_name(folder):
    made = [{"text": "a"}, {"text": "b"}]
    (folder / "LIST.JSON").write_text(json.dumps(made))
    (folder / "list.jsonl").write_text(json.dumps(made, indent=1))
    write(folder, *made, name="lines.json")
    for name in ("LIST.JSON", "list.jsonl", "lines.json"):
        assert [record["text"] for record in records.read(folder / name, "set")] == ["a", "b"]


def test_a_line_that_is_not_json_is_a_record_that_cannot_be_used(folder):
    path = folder / "set.jsonl"
    path.write_text('{"text": "a"}\n{"text": \n[1]\n' + "[" * 10**5)
    with pytest.raises(UserError, match=r"^set\.jsonl: Record 1: it is not readable as JSON"):
        records.read(path, "set")
    skipped: list[reading.Skipped] = []
    assert len(records.read(path, "set", skipped=skipped)) == 1
    assert [each.place.number for each in skipped] == [1, 2, 3]


PICTURES = {
    "a path": lambda folder: "a.png",
    "a name in capitals": lambda folder: "B.PNG",
    "a whole path": lambda folder: str(folder / "a.png"),
    "bytes": lambda folder: png(),
    "bytes and no path": lambda folder: {"bytes": png(), "path": None},
    "no bytes and a path": lambda folder: {"bytes": None, "path": "a.png"},
    "a data URI": lambda folder: f"data:image/png;base64,{base64.b64encode(png()).decode()}",
    "a PIL picture": lambda folder: Image.fromarray(PIXELS),
    "an array": lambda folder: PIXELS,
    "an opaque array": lambda folder: np.dstack([PIXELS, np.full((9, 12), 255, np.uint8)]),
}


@pytest.mark.parametrize("kind", PICTURES)
def test_a_picture_is_the_same_by_any_name(kind, folder, processor):
    given = PICTURES[kind](folder)
    assert (np.asarray(picture(given, folder)) == PIXELS).all()
    record = {"image": given, "question": "what ?", "answer": "red"}
    if isinstance(given, str):
        made = tamp.calibration_set(write(folder, record), processor, n=1)[0]
    else:
        record["image"] = {**given, "path": str(folder / "a.png")} if isinstance(given, dict) else given
        made = tamp.calibration_set([record], processor, n=1)[0]
    usual = tamp.calibration_set(
        write(folder, {"image": "a.png", "question": "what ?", "answer": "red"}), processor, n=1
    )[0]
    assert all(torch.equal(made[name], usual[name]) for name in usual) and made.keys() == usual.keys()


@pytest.mark.parametrize("bad", [PIXELS / 255, PIXELS[None], PIXELS[:0]])
def test_an_array_that_is_no_picture_is_refused(bad):
    with pytest.raises(UserError, match=r"A picture in an array is \(H, W, 3\) of uint8"):
        picture(bad)


def test_a_whole_number_is_the_same_in_any_type(folder, processor):
    path = write(folder, *({"text": f"where is the {word} ?"} for word in ("ring", "circle", "cross")))
    drawn = [
        [each["input_ids"].tolist() for each in tamp.calibration_set(path, processor, n=n, seed=seed)]
        for n, seed in ((2, 3), (np.int64(2), np.uint8(3)), (2.0, np.float32(3)))
    ]
    assert drawn[0] == drawn[1] == drawn[2]
    for bad in (1.5, float("inf"), float("nan"), True, "2", None):
        with pytest.raises(UserError, match="at least one sample"):
            tamp.calibration_set(path, processor, n=bad)
        with pytest.raises(UserError, match="A seed is a whole number"):
            tamp.calibration_set(path, processor, n=1, seed=bad)
    with pytest.raises(UserError, match="at least one question"):
        conversations.questions(path, n=1.5)


def test_a_comparison_takes_whole_numbers_of_any_type_and_nothing_else():
    shared = {"model": "m", "benchmark": "b", "calibration": "c"}
    made = compare.Settings(**shared, n_questions=np.int64(20), n_samples=4.0, question_seed=np.uint8(1))
    assert json.dumps([made.n_questions, made.n_samples, made.question_seed]) == "[20, 4, 1]"
    for bad in ({"n_questions": 1.5}, {"n_questions": 3, "n_samples": 0}, {"n_questions": 3, "question_seed": -1}):
        with pytest.raises(UserError, match="is a whole number of at least"):
            compare.Settings(**shared, **bad)
    assert json.dumps(compare.cells(["wanda"], [np.float32(0.5)], np.arange(2))) == json.dumps(
        compare.cells(["wanda"], [0.5], [0, 1])
    )
    with pytest.raises(UserError, match="A calibration seed is a whole number"):
        compare.cells(["wanda"], [0.5], [0.5])


def test_an_answer_is_the_same_as_a_number_and_as_text(folder):
    made = [
        conversations.questions(write(folder, {"question": "Q", "answer": answer, "choices": [2, "3"]}))[0].answer
        for answer in (3, 3.0, "3", " 3 ", [3, "3", "2"])
    ]
    assert set(made) == {"3"}


def test_a_template_that_fails_otherwise_than_as_a_template(folder, processor, monkeypatch):
    path = write(folder, {"question": "q", "answer": "a"})
    for template in ("{{ messages + 1 }}", "{{ messages[9].content.x.y }}", "{% for", 3):
        monkeypatch.setattr(processor, "chat_template", template, raising=False)
        with pytest.raises(UserError, match=r"^set\.jsonl: Record 0: The chat template does not take"):
            tamp.calibration_set(path, processor, n=1)


def test_a_template_that_does_not_end_is_stopped(folder, processor, monkeypatch):
    monkeypatch.setattr(conversations, "TEMPLATE_SECONDS", 0.3)
    loops = "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}"
    monkeypatch.setattr(processor, "chat_template", loops + "{% endfor %}" * 3, raising=False)
    before = threading.active_count()
    with pytest.raises(UserError, match=r"^set\.jsonl: Record 0: .*does not end within 0\.3 s"):
        tamp.calibration_set(write(folder, {"question": "q", "answer": "a"}), processor, n=1)
    for _ in range(100):
        if threading.active_count() == before:
            break
        time.sleep(0.1)
    assert threading.active_count() == before


def test_a_weight_that_no_sample_meets_is_looked_at_before_pruning():
    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        for bad in (float("nan"), float("-inf")):
            model, samples = tiny.build("llama")
            model.get_parameter(name).data[5, 3] = bad
            before = model.model.layers[0].mlp.up_proj.weight.clone()
            with pytest.raises(UserError, match=f"{name} holds NaN or infinity"):
                tamp.prune(model, samples, tamp.Recipe.preset("magnitude"), progress=False)
            assert torch.equal(model.model.layers[0].mlp.up_proj.weight, before)


def test_inputs_whose_squares_overflow_name_block_and_linear_before_anything_is_pruned():
    model, samples = tiny.build("llama")
    model.model.layers[0].input_layernorm.weight.data *= 1e21
    before = model.model.layers[0].mlp.up_proj.weight.clone()
    for preset in ("wanda", "sparsegpt", "tamp"):
        with pytest.raises(
            UserError, match=r"Block 0, sample \d: the input of self_attn\.q_proj holds values up to"
        ) as e:
            tamp.prune(model, samples, tamp.Recipe.preset(preset), progress=False)
        assert not getattr(e.value, "__notes__", [])
    assert torch.equal(model.model.layers[0].mlp.up_proj.weight, before)


def test_a_linear_that_drops_all_its_weights_is_zero_under_every_criterion():
    for preset in ("wanda", "sparsegpt"):
        model, samples = tiny.build("llama")
        plan = tamp.plan(model, None, tamp.Recipe(allocation="uniform"), progress=False)
        drops = list(plan.drops)
        drops[0], drops[-1] = plan.sizes[0], drops[-1] - (plan.sizes[0] - drops[0])
        moved = tamp.Plan(linears=plan.linears, sizes=plan.sizes, drops=tuple(drops), target=0.5)
        report = tamp.prune(model, samples, tamp.Recipe.preset(preset), progress=False, plan=moved)
        assert report.table["got"][0] == 1


def test_a_model_gone_nan_scores_nan_and_nothing_right(mini):
    model, processor = mini
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    table = tamp.evaluate(model, processor, "mini-vqa", limit=4, progress=False)
    assert table["nll"].isna().all() and (table["accuracy"] == 0).all()
    assert (table["choice_accuracy"].dropna() == 0).all()
    assert scoring.overall(table)["nll"].isna().all()
    table.loc[0, "nll"] = 1.0
    assert scoring.overall(table)["nll"].isna().all() or len(table) == 1


def test_a_folder_of_datasets_that_is_damaged(folder):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list([{"text": "a"}]).save_to_disk(str(folder / "saved"))
    (folder / "saved" / "state.json").write_text('{"_data_files": 3}')
    with pytest.raises(UserError, match="saved is not a folder saved by datasets"):
        records.read(folder / "saved", "set")


def test_the_command_line_skips_too(folder, capsys, caplog):
    from tamp import cli

    caplog.set_level(logging.WARNING)
    path = write(folder, {"question": "where ?", "answer": "ring"}, {"question": "where ?", "answer": ""})
    assert cli.main(["evaluate", "mini-llava-next", "--benchmark", str(path)]) == 2
    assert "set.jsonl: Record 1: The answer is empty" in capsys.readouterr().err
    assert cli.main(["evaluate", "mini-llava-next", "--benchmark", str(path), "--on-error", "skip"]) == 0
    assert "1 records were skipped, 1 used" in caplog.text
    assert cli.main(["evaluate", "mini-llava-next", "--benchmark", "pope", "--on-error", "skip"]) == 2
    assert "--on-error has no effect without a file of questions" in capsys.readouterr().err
    with pytest.raises(UserError, match="on_error has no effect on pope"):
        tamp.evaluate(None, None, "pope", on_error="skip")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_files_in_other_encodings_of_unicode_are_read(encoding, folder):
    record = {"question": "Größe?", "answer": "14 µm"}
    for name, text in (("q.json", json.dumps([record], ensure_ascii=False)), ("q.jsonl", json.dumps(record) + "\r\n")):
        (folder / name).write_bytes(text.encode(encoding))
        (made,) = conversations.questions(folder / name)
        assert (made.text, made.answer) == ("Größe?", "14 µm")


def test_arrays_that_pandas_keeps_of_lists_are_lists(processor):
    turns = np.array([{"from": "human", "value": "Eh?"}, {"from": "gpt", "value": "A"}], dtype=object)
    assert len(tamp.calibration_set([{"conversations": turns}], processor, 1)) == 1
    record = {"question": "q", "answer": np.str_("b"), "choices": np.array(["a", "b"])}
    (made,) = conversations.questions([record])
    assert made.choices == ("a", "b")


@pytest.mark.parametrize("each", ["hello", ("q", "a"), 3, None])
def test_a_list_of_something_else_is_not_taken_for_samples(each, processor):
    with pytest.raises(UserError, match="Record 0: a record is an object"):
        tamp.calibration_set([each, each], processor)


def test_a_picture_without_pixels_and_seconds_that_are_text(folder):
    with pytest.raises(UserError, match="it has no pixels"):
        pixels.picture(Image.new("RGB", (0, 4)))
    with pytest.raises(UserError, match="positive number of seconds, not '1'"):
        media.read_audio("x.wav", "1")


def test_turns_in_parts_are_those_with_marks(folder, processor):
    """As chat templates take them, with pictures in the parts or beside them, and as LLaVA writes them: the same sample."""
    Image.fromarray(PIXELS).save(folder / "p.png")
    answer = {"role": "assistant", "content": [{"type": "text", "text": "Grey."}]}
    asked = {"type": "text", "text": "What is it?"}
    marked = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "Grey."}]
    spellings = [
        {"image": "p.png", "conversations": marked},
        {"images": ["p.png"], "messages": [{"role": "user", "content": [{"type": "image"}, asked]}, answer]},
        {"messages": [{"role": "user", "content": [{"type": "image", "image": "p.png"}, asked]}, answer]},
        {"messages": [{"role": "user", "content": [{"type": "image", "path": "p.png", "text": None}, asked]}, answer]},
    ]
    made = []
    for number, record in enumerate(spellings):
        (folder / f"{number}.jsonl").write_text(json.dumps(record))
        made += tamp.calibration_set(folder / f"{number}.jsonl", processor, 1)
    for other in made[1:]:
        assert torch.equal(made[0]["input_ids"], other["input_ids"])
        assert torch.equal(made[0]["pixel_values"], other["pixel_values"])
    for part in ({"type": "tool"}, "text", {"type": "text"}):
        with pytest.raises(UserError, match="Record 0: a part of a turn is"):
            tamp.calibration_set([{"messages": [{"role": "user", "content": [part]}]}], processor)
