"""Records with pictures, videos and sounds, good and bad, on their way to a processor."""

import io
import json
import sys

import numpy as np
import pytest
import tiny_videollama2 as tiny
import torch
from PIL import Image
from transformers import Qwen2AudioProcessor, WhisperFeatureExtractor

import tamp
from tamp import conversations, media, models, records
from tamp.errors import UserError

MIXED = (
    {
        "video": "av.mp4",
        "image": "still.png",
        "conversations": [
            {"from": "human", "value": "<image>\nA picture. <video>\nWhat is it like?"},
            {"from": "gpt", "value": "A hum."},
        ],
    },
    {"videos": ["mute.mp4"], "question": "What moves?", "answer": "All."},
    {
        "audio": "beep.wav",
        "conversations": [{"from": "human", "value": "Hear: <audio>"}, {"from": "gpt", "value": "A"}],
    },
    {"text": "Nothing to see."},
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tiny.write_media(tmp_path_factory.mktemp("media"))
    (made / "bad.mp4").write_bytes(b"no film")
    (made / "bad.wav").write_bytes(b"no sound")
    return made


@pytest.fixture(scope="module")
def listens():
    """A processor of videos and sounds."""
    return tiny.processor(audio_policy="plain")


def write(folder, *made, name="set.jsonl"):
    path = folder / name
    path.write_text("\n".join(json.dumps(record) for record in made))
    return path


def kinds(samples) -> list[tuple[int, int]]:
    """Count visual and audio tokens of samples."""
    codes = [models.modality(tiny.build(), sample) for sample in samples]
    return sorted((int((code == models.VISUAL).sum()), int((code == models.AUDIO).sum())) for code in codes)


def test_marks_become_the_media_in_their_place(folder):
    path = write(folder, MIXED[0])
    user, assistant = records.conversation(records.read(path, "set")[0], path)
    still, said, film, asked = user["content"]
    assert still["type"] == "image" and still["image"].size == (20, 20)
    assert film == {"type": "video", "video": str(folder / "av.mp4")}
    assert (said["text"], asked["text"]) == ("A picture.", "What is it like?")
    assert assistant["content"] == [{"type": "text", "text": "A hum."}]


def test_a_question_comes_after_its_media(folder):
    path = write(folder, {"audio": "beep.wav", "video": ["mute.mp4"], "question": "Q?", "answer": 3})
    (user, assistant) = records.conversation(records.read(path, "set")[0], path)
    assert [part["type"] for part in user["content"]] == ["video", "audio", "text"]
    assert assistant["content"][0]["text"] == "3"


def test_kinds_mix_in_one_set_from_any_file(folder, listens):
    """A second of sound is 48 tokens, 0.4 s are 16; a picture and a video are 8 each."""
    expected = [(0, 0), (0, 16), (8, 0), (16, 48)]
    assert kinds(tamp.calibration_set(write(folder, *MIXED), listens, n=4)) == expected
    (folder / "set.json").write_text(json.dumps(MIXED))
    assert kinds(tamp.calibration_set(folder / "set.json", listens, n=4)) == expected
    datasets = pytest.importorskip("datasets")
    columns = {key for record in MIXED for key in record}
    filled = [{key: record.get(key) for key in columns} for record in MIXED]
    datasets.Dataset.from_list(filled).save_to_disk(str(folder / "saved"))
    assert kinds(tamp.calibration_set(tiny.write_media(folder / "saved"), listens, n=4)) == expected


def asks(**named):
    return {"question": "q", "answer": "a", **named}


BAD = {
    "missing video": (asks(video="no.mp4"), r"Record 0: There is no file .*no\.mp4"),
    "missing sound": (asks(audios=["no.wav"]), r"Record 0: There is no file .*no\.wav"),
    "broken video": (asks(video="bad.mp4"), r"Record 0: .*bad\.mp4 is not readable"),
    "broken sound": (asks(audio="bad.wav"), r"Record 0: .*bad\.wav is not readable"),
    "a video without frames": (asks(video="beep.wav"), r"Record 0: .*beep\.wav has no video track"),
    "the sound of a silent video": (asks(audio="mute.mp4"), r"Record 0: .*mute\.mp4 has no sound track"),
    "not a path": (asks(video={"bytes": "00"}), "Record 0: video is the path of a file, not dict"),
    "a mark too many": (
        {"video": "av.mp4", "conversations": [{"from": "human", "value": "<video><audio>"}]},
        "Record 0: its text has 1 <audio> marks for 0 audios",
    ),
    "a mark too few": (
        {"video": "av.mp4", "conversations": [{"from": "human", "value": "Look."}]},
        "Record 0: its text has 0 <video> marks for 1 videos",
    ),
    "text with a video": ({"text": "a", "video": "av.mp4"}, "needs 'conversations'.*it has text, video"),
    "a mark in the question": (
        asks(video="mute.mp4", question="Is <video> it?"),
        "Record 0: its text has 1 <video> marks for 1 videos: media come before",
    ),
}


@pytest.mark.parametrize("fault", BAD)
def test_a_bad_record_is_named_with_its_file(fault, folder, listens):
    record, message = BAD[fault]
    with pytest.raises(UserError, match=message):
        tamp.calibration_set(write(folder, record), listens, n=1)


def test_all_files_are_looked_at_before_the_first_is_decoded(folder, listens, monkeypatch):
    monkeypatch.setattr(media, "read_video", lambda *given: pytest.fail("decoded first"))
    with pytest.raises(UserError, match="no file"):
        tamp.calibration_set(write(folder, asks(video="av.mp4"), asks(video="no.mp4")), listens, n=2)


@pytest.mark.parametrize(("kind", "name"), [("video", "av.mp4"), ("audio", "beep.wav")])
def test_a_model_that_takes_pictures_only_says_so(kind, name, folder, processor, listens, monkeypatch):
    monkeypatch.setattr(type(processor), "chat_template", listens.chat_template, raising=False)
    path = write(folder, asks(**{kind: name}))
    with pytest.raises(UserError, match=f"has {kind}s and the model takes no {kind}s .*LlavaNextProcessor"):
        tamp.calibration_set(path, processor, n=1)
    with pytest.raises(UserError, match=f"no {kind}s"):
        tamp.evaluate(None, processor, path)


def test_what_is_heard_goes_by_the_name_that_the_processor_knows():
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens(["<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"], special_tokens=True)
    hears = Qwen2AudioProcessor(WhisperFeatureExtractor(feature_size=8), tokenizer)
    made = conversations.process(hears, records.dialogue("Hi?", None, audios=[np.zeros(16000, np.float32)]))
    assert made["input_features"].shape == (1, 8, 3000)
    with pytest.raises(UserError, match="takes no videos .*Qwen2AudioProcessor"):
        conversations.process(hears, records.dialogue("Hi?", None, videos=["a.mp4"]))


def test_benchmark_questions_name_their_media(folder):
    path = write(
        folder,
        asks(video="av.mp4", task="see"),
        asks(video="av.mp4"),
        asks(audio="beep.wav", image="still.png"),
    )
    first, second, third = conversations.questions(path)
    assert first.videos == second.videos == (str(folder / "av.mp4"),) and first.audios == first.images == ()
    assert third.audios == (str(folder / "beep.wav"),) and len(third.images) == 1
    with pytest.raises(UserError, match=r"Record 1: There is no file"):
        conversations.questions(write(folder, asks(video="av.mp4"), asks(video="no.mp4")))


def test_a_video_is_heard_as_a_model_hears_it(folder, listens):
    made = tamp.calibration_set(write(folder, asks(video="av.mp4")), listens, n=1)[0]
    expected = media.fbank(media.read_audio(folder / "av.mp4"))
    torch.testing.assert_close(made["input_features"][0], expected)


ANSWERS = {
    "text": ({"answer": " a bus \n"}, "a bus"),
    "a whole number": ({"answer": 3}, "3"),
    "a real number": ({"answer": 2.5}, "2.5"),
    "the most frequent": ({"answer": ["van", "bus", "car", "bus"]}, "bus"),
    "the first in a tie": ({"answer": ["van", "bus", "bus ", " van", "car"]}, "van"),
    "blanks do not count": ({"answers": ["", " ", "bus"]}, "bus"),
    "with the people who gave them": ({"answers": [{"answer": "bus", "answer_id": n} for n in range(3)]}, "bus"),
    "no choices": ({"answer": "bus", "choices": []}, "bus"),
    "choices with blanks": ({"answer": "bus", "choices": [" bus", "van "]}, "bus"),
    "numbers as choices": ({"answer": "2", "choices": [1, 2]}, "2"),
}


@pytest.mark.parametrize("kind", ANSWERS)
def test_answers_are_read_the_same_for_calibration_and_evaluation(kind, folder):
    given, expected = ANSWERS[kind]
    path = write(folder, {"question": "What?", **given})
    asked = conversations.questions(path)[0]
    assert asked.answer == expected
    assert asked.choices == tuple(str(choice).strip() for choice in given.get("choices", []))
    assert records.conversation(records.read(path, "set")[0], path)[1]["content"][0]["text"] == expected


BAD_ANSWERS = {
    "empty": ({"answer": " "}, "The answer is empty"),
    "no one answered": ({"answers": []}, "The answer is empty"),
    "true": ({"answer": True}, "not True; write it as text"),
    "an object": ({"answer": {"text": "bus"}}, "An answer is a text or a number, not {'text': 'bus'}"),
    "objects of another kind": ({"answers": [{"text": "bus"}]}, "An answer is a text or a number"),
    "not a choice": (
        {"answer": "tram", "choices": ["bus", "van"]},
        r"'tram' is not among its choices \('bus', 'van'\)",
    ),
    "the place of a choice": ({"answer": 1, "choices": ["bus", "van"]}, "'1' is not among its choices"),
    "an empty choice": ({"answer": "bus", "choices": ["bus", " "]}, "Choice 2 of 2 is empty"),
    "a choice twice": ({"answer": "bus", "choices": ["bus", "van", "van "]}, "The choice 'van' occurs twice"),
    "a choice that is none": ({"answer": "bus", "choices": ["bus", None]}, "A choice is a text or a number, not None"),
    "choices in a text": ({"answer": "b", "choices": "bus"}, "'choices' is a list of answers, not 'bus'"),
    "a number of choices": ({"answer": "b", "choices": 4}, "'choices' is a list of answers, not 4"),
    "a list as question": ({"question": ["What?"], "answer": "bus"}, "A question is a text or a number"),
}


@pytest.mark.parametrize("kind", BAD_ANSWERS)
def test_a_bad_answer_is_refused_with_its_record(kind, folder, listens):
    given, message = BAD_ANSWERS[kind]
    path = write(folder, {"question": "What?", "answer": "bus"}, {"question": "What?", **given})
    with pytest.raises(UserError, match=f"Record 1: .*{message}"):
        conversations.questions(path)
    with pytest.raises(UserError, match=f"Record 1: .*{message}"):
        tamp.calibration_set(path, listens, n=2)


def test_a_question_made_by_hand_is_checked_too():
    asked = records.Question(task="t", images=(), text="What?", answer=" 3", choices=("3 ", "4"))
    assert (asked.answer, asked.choices) == ("3", ("3", "4"))
    with pytest.raises(UserError, match="not among its choices"):
        records.Question(task="t", images=(), text="What?", answer="5", choices=("3", "4"))


def test_a_turn_that_is_no_text_is_refused(folder):
    path = write(folder, {"conversations": [{"from": "human", "value": ["Hi"]}]})
    with pytest.raises(UserError, match="What a turn says is a text or a number"):
        records.conversation(records.read(path, "set")[0], path)


def test_what_a_processor_or_its_template_raises_names_the_record(folder, listens, monkeypatch):
    path = write(folder, asks(image="still.png"))
    template = "{{ raise_exception('roles must alternate') }}"
    with monkeypatch.context() as changed:
        changed.setattr(listens, "chat_template", template)
        with pytest.raises(UserError, match="Record 0: The chat template does not take .*roles must alternate"):
            tamp.calibration_set(path, listens, n=1)
    monkeypatch.setattr(listens, "patch_size", None)
    with pytest.raises(UserError, match="Record 0: .*Processor does not take the conversation"):
        tamp.calibration_set(path, listens, n=1)


def test_a_folder_without_the_package_that_reads_it(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match="pip install datasets"):
        records.read(folder, "set")


def test_bytes_of_pictures_in_a_folder_of_datasets_are_read_when_asked_for(tmp_path, monkeypatch):
    """Six questions, two about one picture: nothing keeps the bytes, and every look gives the pixels of its record."""
    datasets = pytest.importorskip("datasets")
    made = []
    for number in range(6):
        buffer = io.BytesIO()
        Image.new("RGB", (40, 30), (10 * number if number > 1 else 0, 0, 0)).save(buffer, "PNG")
        made.append({"question": f"{number}?", "answer": "a", "image": {"bytes": buffer.getvalue(), "path": None}})
    features = datasets.Features(
        {"question": datasets.Value("string"), "answer": datasets.Value("string"), "image": datasets.Image()}
    )
    datasets.Dataset.from_list(made, features=features).save_to_disk(str(tmp_path / "saved"))
    asked = conversations.questions(tmp_path / "saved")
    assert {each for one in asked for each in one.images.given} == {""}
    assert asked[0].images is asked[1].images and len({id(one.images) for one in asked}) == 5
    assert [one.images[0].getpixel((0, 0))[0] for one in asked] == [0, 0, 20, 30, 40, 50]
