"""Calibration sets and benchmark questions from shipped sets and from files, good and bad."""

import json

import pytest
import torch

import tamp
from tamp import conversations
from tamp.errors import UserError
from tamp.worlds import pictures


@pytest.fixture
def folder(tmp_path):
    """A folder with two pictures, one of them corrupt."""
    pictures.questions(1, seed=0)[0].images[0].save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"not a picture")
    return tmp_path


def write(folder, *records, name="set.jsonl"):
    path = folder / name
    path.write_text("\n".join(json.dumps(record) for record in records))
    return path


def ids(samples):
    return [sample["input_ids"].tolist() for sample in samples]


def test_a_shipped_set_is_made_from_its_seed(processor):
    first = tamp.calibration_set("mini-vqa", processor, n=12, seed=1)
    assert len(first) == 12
    assert ids(first) == ids(tamp.calibration_set("mini-vqa", processor, n=12, seed=1))
    assert ids(first)[:5] == ids(tamp.calibration_set("mini-vqa", processor, n=5, seed=1))
    assert ids(first) != ids(tamp.calibration_set("mini-vqa", processor, n=12, seed=2))


def test_calibration_conversations_hold_their_answers(processor):
    question = pictures.questions(1, seed=42, stream="calibration")[0]
    sample = tamp.calibration_set("mini-vqa", processor, n=1)[0]
    text = processor.tokenizer.decode(sample["input_ids"][0], skip_special_tokens=True)
    assert text.rstrip().endswith(question.answer)
    assert question.text in text


def test_calibration_and_evaluation_never_share_pictures():
    def seen(stream):
        return {image.tobytes() for q in pictures.questions(200, seed=42, stream=stream) for image in q.images}

    assert not seen("calibration") & seen("evaluation")


def test_llava_records_question_records_and_text_records_become_samples(folder, processor):
    path = write(
        folder,
        {
            "image": "good.png",
            "conversations": [
                {"from": "human", "value": "<image>\nwhat color is the circle ?"},
                {"from": "gpt", "value": "red"},
            ],
        },
        {"images": ["good.png", "good.png"], "question": "which image has more objects ?", "answer": "first"},
        {"text": "where is the ring ?"},
    )
    samples = tamp.calibration_set(path, processor, n=3)
    assert sorted(sample.get("pixel_values", torch.zeros(0)).shape[0] for sample in samples) == [0, 1, 2]
    assert all(sample["input_ids"].shape[0] == 1 for sample in samples)


def test_a_json_list_and_a_datasets_folder_work_too(folder, processor):
    records = [{"text": f"where is the {shape} ?"} for shape in ("ring", "circle", "cross")]
    (folder / "set.json").write_text(json.dumps(records))
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list(records).save_to_disk(str(folder / "saved"))
    one = tamp.calibration_set(folder / "set.json", processor, n=3)
    two = tamp.calibration_set(folder / "saved", processor, n=3)
    assert ids(one) == ids(two)
    assert len({tuple(row[0]) for row in ids(one)}) == 3


def test_the_draw_depends_on_the_seed_only(folder, processor):
    path = write(folder, *({"text": word} for word in pictures.WORDS))
    draw = [ids(tamp.calibration_set(path, processor, n=4, seed=seed)) for seed in (0, 0, 1)]
    assert draw[0] == draw[1] != draw[2]


def test_fewer_records_than_asked_for_are_all_used_with_a_warning(folder, processor, caplog):
    path = write(folder, {"text": "circle"})
    assert len(tamp.calibration_set(path, processor, n=5)) == 1
    assert "fewer than the 5" in caplog.text


def test_processor_outputs_are_taken_as_they_are(processor):
    samples = tamp.calibration_set("mini-vqa", processor, n=3)
    assert tamp.calibration_set(samples, processor, n=2) == samples[:2]


HUMAN = {"from": "human", "value": "<image> what ?"}
BAD = {
    "unknown set": (lambda f: "mini-vqq", "no calibration set 'mini-vqq'. Did you mean 'mini-vqa'?"),
    "empty file": (lambda f: write(f), "is empty"),
    "empty list": (lambda f: [], "calibration set is empty"),
    "not json": (lambda f: write(f).parent / "bad.png", "not readable"),
    "missing image": (
        lambda f: write(f, {"image": "no.png", "question": "q", "answer": "a"}),
        "Record 0: There is no image",
    ),
    "corrupt image": (lambda f: write(f, {"image": "bad.png", "question": "q", "answer": "a"}), "not a readable image"),
    "image without its mark": (
        lambda f: write(f, {"image": "good.png", "conversations": [{"from": "human", "value": "what ?"}]}),
        "0 <image> marks for 1 images",
    ),
    "mark without its image": (lambda f: write(f, {"conversations": [HUMAN]}), "1 <image> marks for 0 images"),
    "unknown speaker": (lambda f: write(f, {"conversations": [{"from": "robot", "value": "hi"}]}), "'robot' is not"),
    "unknown record": (lambda f: write(f, {"caption": "hi"}), "needs 'conversations'.*it has caption"),
    "a folder of something else": (lambda f: f, "not a folder saved by datasets"),
}


@pytest.mark.parametrize("fault", BAD)
def test_a_bad_set_says_what_is_wrong(fault, folder, processor):
    make, message = BAD[fault]
    with pytest.raises(UserError, match=message):
        tamp.calibration_set(make(folder), processor, n=4)


def test_less_than_one_sample_is_refused(processor):
    with pytest.raises(UserError, match="at least one sample, not n=0"):
        tamp.calibration_set("mini-vqa", processor, n=0)


def test_a_negative_seed_is_refused(folder, processor):
    with pytest.raises(UserError, match="from 0 on, not -1"):
        tamp.calibration_set(write(folder, {"text": "circle"}), processor, n=1, seed=-1)


def test_a_template_for_plain_texts_is_refused(folder, processor, monkeypatch):
    monkeypatch.setattr(
        processor, "chat_template", "{% for m in messages %}{{ m.role }}: {{ m.content | trim }} {% endfor %}"
    )
    path = write(folder, {"image": "good.png", "question": "where ?", "answer": "ring"})
    with pytest.raises(UserError, match="Record 0: The chat template is made for plain texts"):
        tamp.calibration_set(path, processor, n=1)


def test_a_picture_for_a_text_only_model_is_refused(folder, processor):
    tokenizer = processor.tokenizer
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}"
    try:
        path = write(folder, {"image": "good.png", "question": "where ?", "answer": "ring"})
        with pytest.raises(UserError, match="takes text only"):
            tamp.calibration_set(path, tokenizer, n=1)
        path = write(folder, {"question": "where ?", "answer": "ring"})
        assert "ring" in tokenizer.decode(tamp.calibration_set(path, tokenizer, n=1)[0]["input_ids"][0])
    finally:
        tokenizer.chat_template = None


def test_benchmark_questions_about_one_picture_share_it(folder):
    path = write(
        folder, *({"image": "good.png", "question": q, "answer": "yes", "choices": ["yes", "no"]} for q in "ab")
    )
    first, second = conversations.questions(path)
    assert first.images is second.images and first.task == "set"
    with pytest.raises(UserError, match="not among its choices"):
        conversations.questions(write(folder, {"question": "q", "answer": "x", "choices": ["y"]}))
    with pytest.raises(UserError, match="'question' and 'answer'"):
        conversations.questions(write(folder, {"text": "q"}))
    with pytest.raises(UserError, match="There is no benchmark"):
        conversations.questions("mini-vqaa")
