"""Calibration sets by name: streams that read no more than they need, local copies, mixtures, and what is refused."""

import collections
import itertools
import json
import sys
import types
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tamp
from tamp import calibration_sources, cli, conversations, records
from tamp.errors import UserError
from tamp.worlds import pictures


class Stream:
    """A stand-in for a streamed data set that counts what is read."""

    features = None

    def __init__(self, made):
        self.made, self.read, self.seeds = made, 0, []

    def shuffle(self, seed, buffer_size):
        self.seeds.append((seed, buffer_size))
        return self

    def __iter__(self):
        for record in self.made:
            self.read += 1
            yield dict(record)


def talk(said, **more):
    turns = [{"from": "human", "value": f"where is {said} ?"}, {"from": "gpt", "value": "left"}]
    return {"id": str(said), "conversations": turns, **more}


@pytest.fixture
def hub(monkeypatch):
    """Data sets of a hub that is not there: name to stream."""
    known = {}

    def load_dataset(name, split, streaming):
        assert split == "train" and streaming
        if name not in known:
            raise OSError(f"Dataset '{name}' doesn't exist on the Hub\nmore")
        return known[name]

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    return known


def drawn(source, n, seed=0, **chosen):
    every = calibration_sources.drawn(source, seed, **chosen)
    return [record["id"] for (record, _), _ in zip(every, range(n))]


def test_a_stream_is_drawn_from_by_its_seed_and_not_read_to_its_end(hub, monkeypatch):
    monkeypatch.setattr(calibration_sources, "BUFFER", 50)
    hub["some/data"] = stream = Stream([talk(number) for number in range(5000)])
    first = drawn("some/data", 20)
    assert stream.read <= 50 + 20 + 1
    assert stream.seeds == [(0, 1)]
    assert len(set(first)) == 20 and set(map(int, first)) <= set(range(71))
    assert first == drawn("some/data", 20) != drawn("some/data", 20, seed=1)
    assert first[:8] == drawn("some/data", 8)  # a smaller draw is the beginning of a larger one


def test_every_record_of_a_short_stream_comes_once(hub, monkeypatch):
    monkeypatch.setattr(calibration_sources, "BUFFER", 7)
    hub["some/data"] = Stream([talk(number) for number in range(30)])
    assert sorted(map(int, drawn("some/data", 99))) == list(range(30))


def test_the_draw_is_the_documented_one(hub, monkeypatch):
    """Written out: the first records fill the buffer, then a drawn place is given away and filled again."""
    monkeypatch.setattr(calibration_sources, "BUFFER", 4)
    hub["some/data"] = Stream([talk(number) for number in range(10)])
    random = np.random.default_rng([zlib.crc32(b"calibration"), 3])
    held, wanted = ["0", "1", "2", "3"], []
    for number in range(4, 10):
        place = random.integers(4)
        wanted.append(held[place])
        held[place] = str(number)
    wanted += [held[place] for place in random.permutation(4)]
    assert drawn("some/data", 10, seed=3) == wanted


def test_bytes_bound_the_buffer(hub, monkeypatch):
    monkeypatch.setattr(calibration_sources, "BUFFER_BYTES", 1000)
    hub["some/data"] = stream = Stream([talk(n, image={"bytes": b"x" * 100, "path": None}) for n in range(300)])
    next(calibration_sources.drawn("some/data", 0))
    assert stream.read == 11


def test_a_filter_is_met_by_every_record(hub):
    made = [talk(n, data_source=("sharegpt4v(coco)", "docvqa")[n % 2]) for n in range(40)]
    hub["some/data"] = Stream(made)
    exact = drawn("some/data", 40, filter={"data_source": "docvqa"})
    assert sorted(map(int, exact)) == list(range(1, 40, 2))
    assert len(drawn("some/data", 40, filter={"data_source": "sharegpt4v*"})) == 20
    with pytest.raises(
        UserError, match=r"No record of some/data has data_source=coco: there data_source is sharegpt4v\(c"
    ):
        drawn("some/data", 1, filter={"data_source": "coco"})


def test_the_setting_of_the_paper_is_a_name(hub, tmp_path):
    made = [talk(n, data_source=("sharegpt4v", "docvqa")[n % 2]) for n in range(20)]
    hub["lmms-lab/LLaVA-NeXT-Data"] = Stream(made)
    assert {int(each) % 2 for each in drawn("tamp-llava-next", 10)} == {0}
    raw = [
        {"id": str(n), "image": f"{('sharegpt4v', 'docvqa')[n % 2]}/{n}.jpg", "conversations": []} for n in range(20)
    ]
    (tmp_path / "llava_next_raw.json").write_text(json.dumps(raw))
    assert {int(each) % 2 for each in drawn("tamp-llava-next", 10, media=tmp_path)} == {0}
    with pytest.raises(UserError, match="tamp-videollama2.*--media"):
        drawn("tamp-videollama2", 1)


def test_a_set_becomes_samples_as_a_file_of_the_same_records_does(hub, processor, tmp_path):
    picture = pictures.questions(1, seed=0)[0].images[0]
    picture.save(tmp_path / "one.png")
    seen = talk("the ring")
    seen["conversations"][0]["value"] = "<image>\nwhere is the ring ?"
    (tmp_path / "set.json").write_text(json.dumps([{**seen, "image": "one.png"}]))
    hub["some/data"] = Stream([{**seen, "image": {"bytes": (tmp_path / "one.png").read_bytes(), "path": None}}])
    (one,) = tamp.calibration_set(tmp_path / "set.json", processor, n=1)
    (two,) = tamp.calibration_set("some/data", processor, n=1)
    assert one["input_ids"].equal(two["input_ids"]) and one["pixel_values"].equal(two["pixel_values"])


def test_samples_are_as_long_as_asked(hub, processor):
    hub["some/data"] = Stream([{"text": "ring " * (1 + n % 9)} for n in range(90)])
    every = tamp.calibration_set("some/data", processor, n=90)
    lengths = collections.Counter(sample["input_ids"].shape[1] for sample in every)
    low, high = sorted(lengths)[2], sorted(lengths)[4]
    some = tamp.calibration_set("some/data", processor, n=12, min_tokens=low, max_tokens=high)
    assert len(some) == 12 and all(low <= sample["input_ids"].shape[1] <= high for sample in some)
    with pytest.raises(UserError, match="no sample of 1000 to any number of tokens"):
        tamp.calibration_set("some/data", processor, n=2, min_tokens=1000)


@pytest.mark.parametrize(
    ("parts", "n", "counts"),
    [
        ({"a": 0.7, "b": 0.3}, 128, {"a": 90, "b": 38}),  # 89.6 and 38.4
        ({"a": 0.7, "b": 0.3}, 10, {"a": 7, "b": 3}),
        ({"a": 0.1, "b": 0.2, "c": 0.7}, 7, {"a": 1, "b": 1, "c": 5}),  # 0.7, 1.4, 4.9
        ({"a": 0.5, "b": 0.5}, 5, {"a": 3, "b": 2}),
    ],
)
def test_shares_are_whole_numbers_by_largest_remainder(parts, n, counts):
    assert calibration_sources.shares(parts, n) == counts


@pytest.mark.parametrize("parts", [{"a": 0.7, "b": 0.2}, {"a": 1.5, "b": -0.5}, {"a": "much"}, {}])
def test_shares_that_do_not_sum_to_one_are_refused(parts):
    with pytest.raises(UserError, match="share"):
        calibration_sources.shares(parts, 10)


def test_a_mix_has_its_shares_in_a_seeded_order(hub, processor):
    hub["a/long"] = Stream([{"text": "ring " * 9} for _ in range(40)])
    hub["b/short"] = Stream([{"text": "ring"} for _ in range(40)])
    mix = {"a/long": 0.7, "b/short": 0.3}

    def lengths(seed):
        return [sample["input_ids"].shape[1] for sample in tamp.calibration_set(mix, processor, 10, seed)]

    assert sorted(collections.Counter(lengths(0)).values()) == [3, 7]
    assert lengths(0) == lengths(0) != lengths(1)


def test_kinds_are_balanced(hub):
    made = [talk(n, **({} if n % 5 else {"image": {"bytes": b"x", "path": None}})) for n in range(100)]
    hub["some/data"] = Stream(made)
    parts = calibration_sources.Shares(("image", "text"), 9)
    some = list(calibration_sources.drawn("some/data", 0, parts=parts))
    assert collections.Counter(calibration_sources.kind(record) for record, _ in some) == {"image": 5, "text": 4}
    parts.check("some/data")
    parts = calibration_sources.Shares(("image", "text"), 100)
    list(calibration_sources.drawn("some/data", 0, parts=parts))
    with pytest.raises(UserError, match="20 of 50 of the kind image, 50 of 50 of the kind text"):
        parts.check("some/data")


def test_parts_stay_equal_when_records_are_skipped_or_of_another_length(hub, processor):
    """Of 40 records a fourth has pictures; half of the texts cannot be used, and some are short."""
    grey = Image.new("RGB", (32, 32), "grey")
    made = [{"image": grey, "question": f"What is {n}?", "answer": "a"} for n in range(10)]
    made += [{"text": ("word " * (40 if n % 3 else 2)) if n % 2 else 5j} for n in range(30)]
    limits = {"min_tokens": 20, "balance": ("text", "image"), "on_error": "skip"}
    drawn = tamp.calibration_set(made, processor, 12, **limits)
    pictures = sum("pixel_values" in sample for sample in drawn)
    assert (len(drawn), pictures) == (12, 6) and drawn.skipped
    assert len(tamp.calibration_set(made, processor, 20, **limits)) == 20  # of each all that there are
    with pytest.raises(UserError, match="list of 40 records .*: 10 of 12 of the kind text, 10 of 12 of"):
        tamp.calibration_set(made, processor, 24, **limits)


def test_kinds_to_balance_are_checked_before_a_record_is_read(hub):
    hub["some/data"] = iter(int, 1)  # without end
    for balance, said in ((["picture"], "no kind of records 'picture'"), (["text", "text"], "name it once")):
        with pytest.raises(UserError, match=said):
            tamp.calibration_set("some/data", None, 4, balance=balance)
    assert calibration_sources.Shares(["audio+video"], 2).parts == {"video+audio": 2}
    assert calibration_sources.Shares("text", 2).parts == {"text": 2}
    assert calibration_sources.kind({"video_id": "x", "audio": "features.npy"}) == "video"


AV = [
    {
        "video_id": name,
        "multi_choice": "",
        "video": f"/features/{name}.npy",
        "audio": f"/features/{name}.mp3.npy",
        "conversations": [{"from": "human", "value": said}, {"from": "gpt", "value": "two"}],
    }
    for name, said in (("00000001", "how many ?\n<video>"), ("00000002", "what is heard ?"))
]


def test_avinstruct_is_two_lists_and_a_folder_of_videos(tmp_path, monkeypatch):
    videos = tmp_path / "MUSIC-AVQA-videos-Real"
    videos.mkdir()
    for number, record in enumerate(AV):
        (tmp_path / f"{number}.json").write_text(json.dumps([record]))
        (videos / f"{record['video_id']}.mp4").write_bytes(b"")
    monkeypatch.setattr(records.media, "check", lambda path, kind: None)
    made = {
        record["video_id"]: records.conversation(record, where)
        for record, where in calibration_sources.drawn("tamp-videollama2", 2, 0, media=tmp_path)
    }
    for name, messages in made.items():
        (part,) = (part for part in records.parts_of(messages) if part["type"] != "text")
        assert part == {"type": "video", "video": str(videos / f"{name}.mp4")}
    (videos / "00000002.mp4").unlink()
    with pytest.raises(UserError, match=r"Record 1: There is no video 00000002 \(.mp4"):
        list(calibration_sources.drawn(tmp_path, 2, 0))


def test_a_local_copy_in_parquet_is_streamed(tmp_path, processor, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("TAMP_CACHE", str(tmp_path / "cache"))
    picture = pictures.questions(1, seed=0)[0].images[0]
    picture.save(tmp_path / "one.png")
    turns = [[{"from": "human", "value": "<image>\nwhere is the ring ?"}, {"from": "gpt", "value": "left"}]] * 2
    columns = {"conversations": turns, "image": [str(tmp_path / "one.png")] * 2, "data_source": ["a", "b"]}
    made = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    (tmp_path / "copy" / "data").mkdir(parents=True)
    made.to_parquet(tmp_path / "copy" / "data" / "train-00000-of-00001.parquet")
    (sample,) = tamp.calibration_set(tmp_path / "copy", processor, n=5, filter={"data_source": "b"})
    assert sample["pixel_values"].shape[0] == 1


def test_bytes_of_a_sound_become_a_file(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("TAMP_CACHE", str(tmp_path))
    hub["some/sounds"] = Stream([talk(1, audio={"bytes": b"RIFF", "path": "one.wav"})])
    ((record, _),) = calibration_sources.drawn("some/sounds", 1, 0)
    (path,) = record["audios"]
    assert path.startswith(str(tmp_path)) and path.endswith(".wav") and Path(path).read_bytes() == b"RIFF"
    assert "audio" not in record


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("some/data", {}, "Could not stream some/data: Dataset 'some/data' doesn't exist on the Hub. Check the name"),
        ("coco", {}, "There is no calibration set 'coco'.*tamp-llava-next"),
        ("mini-vqa", {"filter": {"a": "b"}}, "filter has no effect on a shipped set"),
        ([{"input_ids": None}], {"media": "x"}, "media has no effect on samples"),
        ("mini-vqa", {"min_tokens": 9, "max_tokens": 3}, "at least 9 and at most 3"),
    ],
)
def test_what_cannot_be_drawn_is_refused(hub, processor, source, options, message):
    with pytest.raises(UserError, match=message):
        tamp.calibration_set(source, processor, 2, **options)


def test_streaming_without_datasets_says_what_to_install(monkeypatch, processor):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match="Streaming some/data needs datasets: pip install datasets"):
        tamp.calibration_set("some/data", processor, 1)


def test_the_command_line_asks_for_the_same(monkeypatch, tmp_path):
    asked = []

    def calibration_set(*given, **chosen):
        asked.append((given[0], given[2:], chosen))
        raise UserError("far enough")

    monkeypatch.setattr(tamp, "calibration_set", calibration_set, raising=False)
    monkeypatch.setattr(tamp, "load", lambda *_: (None, None), raising=False)
    monkeypatch.setattr("tamp.checkpoint.check_savable", lambda *_: None)
    line = (
        "prune m --out {} --calibration a/b --filter x=y=z --balance text image --max-tokens 9 --media d --n 3 --seed 1"
    )
    assert cli.main(line.format(tmp_path / "o").split()) == 2
    assert cli.main(["plan", "m", "--mix", "a/b=0.7", "f=x.jsonl=0.3", "--n", "3"]) == 2
    usual = {"filter": {}, "balance": (), "min_tokens": 0, "max_tokens": None, "media": None}
    first = {**usual, "filter": {"x": "y=z"}, "balance": ["text", "image"], "max_tokens": 9, "media": "d"}
    assert asked == [("a/b", (3, 1, "raise"), first), ({"a/b": 0.7, "f=x.jsonl": 0.3}, (3, 42, "raise"), usual)]


@pytest.mark.parametrize("given", [["--mix", "a"], ["--mix", "a=much"], ["--filter", "a"]])
def test_a_command_line_that_means_nothing_is_refused(given, tmp_path, capsys):
    more = [] if given[0] == "--mix" else ["--calibration", "facts"]
    assert cli.main(["prune", "m", "--out", str(tmp_path / "o"), *more, *given]) == 2
    assert given[0] in capsys.readouterr().err


class Table:
    """Stands in for a data set that ``datasets`` reads from a folder: it counts the records that are read."""

    features = {}

    def __init__(self, number: int):
        self.number, self.seen = number, []

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, place: int) -> dict:
        assert isinstance(place, int)
        self.seen.append(place)
        return {
            "text": f"where is the {pictures.WORDS[place % 3]} ?",
            "question": "q",
            "answer": str(place),
            "image": None,
        }


@pytest.fixture
def table(tmp_path, monkeypatch):
    """A table of 1,000 records behind the folder ``tmp_path``."""
    made = Table(1000)
    kinds = {name: type(name, (), {}) for name in ("DatasetDict", "Image", "Audio", "Video")}
    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_from_disk=lambda path: made, **kinds))
    (tmp_path / "state.json").write_text("{}")
    return made


def test_a_draw_from_a_saved_folder_reads_what_it_draws(tmp_path, table):
    records = [{**Table(1000)[place]} for place in range(1000)]
    expected = [record["answer"] for record, _ in itertools.islice(calibration_sources.drawn(records, 5, 3), 5)]
    drawn = itertools.islice(calibration_sources.drawn(tmp_path, 5, 3), 5)
    assert [record["answer"] for record, _ in drawn] == expected
    assert [str(place) for place in table.seen] == expected


def test_a_filter_reads_a_saved_folder_once_and_draws_as_from_a_list(tmp_path, table):
    asked = {"filter": {"answer": "*7"}}
    records = [{**Table(1000)[place]} for place in range(1000)]
    expected = [one["answer"] for one, _ in itertools.islice(calibration_sources.drawn(records, 4, 3, **asked), 4)]
    drawn = [one["answer"] for one, _ in itertools.islice(calibration_sources.drawn(tmp_path, 4, 3, **asked), 4)]
    assert drawn == expected and all(answer.endswith("7") for answer in drawn)
    assert len(table.seen) == 1000 + 4


def test_questions_read_the_first_records_of_a_saved_folder(tmp_path, table):
    assert [each.answer for each in conversations.questions(tmp_path, 3)] == ["0", "1", "2"]
    assert table.seen == [0, 1, 2]
