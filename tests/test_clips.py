"""The procedural world of clips: what it asks, what gives an answer away, and what is left of it in a file."""

import dataclasses
import math
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tiny_videollama2

import tamp
from tamp import media, models
from tamp.errors import UserError
from tamp.worlds import clips
from tamp.worlds.clips import BOTH, HEARD, SEEN
from tamp.worlds.drawing import COLOURS


@pytest.fixture(scope="module")
def many():
    """Thousands of clips, not written."""
    random = np.random.default_rng(0)
    return [clips.make_clip(random) for _ in range(6000)]


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """Twenty rounds of questions about files."""
    return clips.questions(160, seed=0, folder=tmp_path_factory.mktemp("clips"))


def place(task: str, clip: clips.Clip) -> int:
    """Where among the choices the answer is."""
    _, answer, choices = clips.ask(task, clip)
    return choices.index(answer)


def test_the_same_seed_makes_the_same_questions_about_the_same_bytes(tmp_path, asked):
    again = clips.questions(24, seed=0, folder=tmp_path)
    for one, other in zip(again, asked, strict=False):
        assert dataclasses.replace(one, videos=()) == dataclasses.replace(other, videos=())
    for one, other in zip(again[::8], asked[::8], strict=False):
        (here,), (there,) = one.videos, other.videos
        assert Path(here).read_bytes() == Path(there).read_bytes()


def test_a_clip_is_written_once(tmp_path, monkeypatch):
    (path,) = clips.questions(1, seed=4, folder=tmp_path)[0].videos
    monkeypatch.setattr(media, "write_video", lambda *given: pytest.fail("written again"))
    assert clips.questions(8, seed=4, folder=tmp_path)[7].videos == (path,)
    assert [str(each) for each in tmp_path.iterdir()] == [path]


def test_streams_and_seeds_never_share_clips(tmp_path):
    made = [
        {question.videos for question in clips.questions(16, seed=seed, stream=stream, folder=tmp_path)}
        for stream, seed in (("evaluation", 0), ("calibration", 0), ("training", 0), ("training", 1))
    ]
    assert [len(each) for each in made] == [2] * 4 and len(set.union(*made)) == 8


def test_a_round_asks_every_task_about_one_clip(asked):
    for start in range(0, len(asked), 8):
        turn = asked[start : start + 8]
        assert [question.task for question in turn] == list(clips.TASKS)
        assert len({question.videos for question in turn}) == 1 and not any(question.images for question in turn)
    assert all(len(set(question.choices)) == len(question.choices) for question in asked)
    some = clips.questions(5, seed=0, tasks=("sync", "kind"), folder=Path(asked[0].videos[0]).parent)
    assert [question.task for question in some] == ["kind", "sync"] * 2 + ["kind"]
    assert some[0] == asked[3] and some[3] == asked[14]


def test_answers_are_balanced(many):
    for task in clips.TASKS:
        counts = Counter(place(task, clip) for clip in many)
        chance = len(many) / len(clips.ask(task, many[0])[2])
        assert all(abs(count - chance) < 4 * math.sqrt(chance) for count in counts.values()), (task, counts)
        assert sum(counts.values()) == len(counts) * len(many) / len(clips.ask(task, many[0])[2])


def visible(clip: clips.Clip) -> dict:
    """What the picture alone shows."""
    (one, other), (first, second, third) = clip.movers, clip.crowd
    found = {
        "flashes": (one.flash, other.flash),
        "first flash": one.flash < other.flash,
        "starts": (one.start, other.start),
        "ways": (one.way, other.way),
        "moving": sum(actor.way is not None for actor in clip.crowd),
        "crowd": (first.way, second.way, third.way),
        "cells": (one.row, other.row, clip.lamp.row, one.column, other.column),
        "colours": (one.colour, other.colour),
        "lamp": clip.lamp.name,
        "lamp's flash": clip.lamp.flash,
    }
    return {**found, "both flashes": (found["flashes"], clip.lamp.flash), "flash and way": (one.flash, one.way)}


def audible(clip: clips.Clip) -> dict:
    """What the sound alone tells."""
    sound = clip.sound
    made = {"kind": sound.kind, "pitch": sound.pitch, "sounds": len(sound.onsets), "moment": sound.onsets[0]}
    return {**made, "all": tuple(made.values()), "end": round(sound.onsets[-1], 1)}


@pytest.mark.parametrize("task", clips.TASKS)
def test_answers_depend_on_their_modality_alone(task, many):
    """Chi square of the answer against all that must not tell it, in standard deviations from what chance gives."""
    given = [*([visible] if task in HEARD + BOTH else []), *([audible] if task in SEEN + BOTH else [])]
    answers = np.array([place(task, clip) for clip in many])
    features = [{name: value for look in given for name, value in look(clip).items()} for clip in many]
    for name in features[0]:
        _, values = np.unique([repr(each[name]) for each in features], return_inverse=True)
        table = np.zeros((values.max() + 1, answers.max() + 1))
        np.add.at(table, (values, answers), 1)
        expected = table.sum(1, keepdims=True) * table.sum(0) / table.sum()
        freedom = (table.shape[0] - 1) * (table.shape[1] - 1)
        square = ((table - expected) ** 2 / expected).sum()
        assert square < freedom + 5 * math.sqrt(2 * freedom), name


def test_the_answers_to_both_hang_on_either_alone(many):
    """Exactly: the other moment of sound or of flashes turns every answer, and both moments are equally likely."""
    for clip in many[:300]:
        sound, (one, other), lamp = clip.sound, clip.movers, clip.lamp
        late = clips.MOMENTS[1] / clips.FPS
        shift = -late if sound.onsets[0] else late
        turned = dataclasses.replace(
            clip, sound=dataclasses.replace(sound, onsets=tuple(x + shift for x in sound.onsets))
        )
        lit = dataclasses.replace(lamp, flash=sum(clips.MOMENTS) - lamp.flash)
        swapped = tuple(
            dataclasses.replace(actor, flash=flash) for actor, flash in ((one, other.flash), (other, one.flash))
        )
        for task in BOTH:
            assert place(task, turned) != place(task, clip)
        assert place("sync", dataclasses.replace(clip, lamp=lit)) != place("sync", clip)
        assert place("first", dataclasses.replace(clip, movers=swapped)) != place("first", clip)
        stranger = many[-1].sound
        for task in SEEN:
            assert clips.ask(task, dataclasses.replace(clip, sound=stranger)) == clips.ask(task, clip)
        for task in HEARD:
            assert clips.ask(task, dataclasses.replace(many[0], sound=sound)) == clips.ask(task, clip)


def test_events_are_far_enough_apart(many):
    for clip in many:
        onsets, (one, other) = np.array(clip.sound.onsets), clip.movers
        assert (np.diff(onsets) >= clips.LENGTH + 0.2 - 1e-9).all()
        assert onsets[-1] + clips.LENGTH <= clips.FRAMES / clips.FPS - 0.03
        for actor in clip.movers:
            assert abs(actor.flash / clips.FPS - onsets[0]) >= 0.4
        assert abs(one.start - other.start) / clips.FPS >= 0.4
        assert abs(clip.lamp.flash / clips.FPS - onsets[0]) >= 0.4 or clip.lamp.flash / clips.FPS == onsets[0]
        assert all(actor.start + clips._STEPS <= clips.FRAMES for actor in (*clip.movers, *clip.crowd) if actor.way)


class Film:
    """Simple measurements on a file."""

    def __init__(self, path: str):
        self.frames = media.read_video(path, 8).astype(int)  # (8, 64, 64, 3)
        self.sound = media.read_audio(path)  # (32000,)

    def mask(self, name: str) -> np.ndarray:
        """Where the colour of a name is, (8, 64, 64)."""
        return np.linalg.norm(self.frames - COLOURS[name.split()[0]], axis=3) < 60

    def centres(self, mask: np.ndarray) -> np.ndarray:
        """Where it is in each frame, (8, 2), NaN where it is not."""
        areas = mask.sum((1, 2))
        found = [
            np.argwhere(each).mean(0) if 2 * n > np.median(areas) else [np.nan] * 2 for each, n in zip(mask, areas)
        ]
        return np.array(found)

    def flash(self, name: str) -> int:
        """In which frame a shape lacks its colour."""
        return int(self.mask(name).sum((1, 2)).argmin())

    def start(self, name: str) -> int:
        """The frame by which a shape has moved."""
        centres = self.centres(self.mask(name))
        return int(np.argmax(np.nan_to_num(np.abs(centres - centres[0])).max(1) > 1.5))

    def onsets(self) -> np.ndarray:
        """When sounds begin, in seconds, to 10 ms."""
        loud = np.abs(self.sound).reshape(-1, 160).max(1) > 0.08
        quiet = np.concatenate([[True] * 8, ~loud])
        return np.array([n for n in np.flatnonzero(loud) if quiet[n : n + 8].all()]) / 100

    def spectrum(self, begin: float, seconds: float) -> tuple[np.ndarray, np.ndarray]:
        """Frequencies in Hz and power of a piece."""
        piece = self.sound[round(begin * 16000) :][: round(seconds * 16000)]
        return np.fft.rfftfreq(8192, 1 / 16000), np.abs(np.fft.rfft(piece * np.hanning(len(piece)), 8192)) ** 2

    def middle(self, begin: float, seconds: float) -> float:
        """The mean frequency of a piece."""
        frequency, power = self.spectrum(begin, seconds)
        return (frequency * power).sum() / power.sum()

    def pitch(self) -> float:
        """The lowest frequency with half of the greatest power, or for the kinds that span an octave its middle."""
        frequency, power = self.spectrum(self.onsets()[0], clips.LENGTH)
        return self.middle(self.onsets()[0], clips.LENGTH) if self.kind() != "buzz" else frequency[power.argmax()]

    def kind(self) -> str:
        """One line is a tone, three are a buzz; a chirp's mean frequency rises by an octave, steadily."""
        begin = self.onsets()[0]
        frequency, power = self.spectrum(begin, clips.LENGTH)
        peak = frequency[power.argmax()]
        power = power / power.sum()

        def near(centre: float) -> float:
            return power[abs(frequency - centre) < 40].sum()

        if near(peak) > 0.9:
            return "tone"
        if near(peak) + near(2 * peak) + near(3 * peak) > 0.9:
            return "buzz"
        starts = np.arange(0.01, 0.055, 0.005)
        octaves = np.log2([self.middle(begin + start, 0.02) for start in starts])
        (rise, _), (error, *_), *_ = np.polyfit(starts, octaves, 1, full=True)
        return "chirp" if rise * clips.LENGTH > 0.85 and error < 0.005 else "noise"

    def answer(self, task: str, text: str) -> str:
        """Answer a question from what was measured."""
        names = re.findall(rf"(?:{'|'.join(COLOURS)}) \w+", text)
        if task == "direction":
            centres = self.centres(self.mask(names[0]))
            down, right = np.nanmean(centres[6:], 0) - centres[0]
            sideways = abs(right) > abs(down)
            return ("right" if right > 0 else "left") if sideways else ("down" if down > 0 else "up")
        if task == "order":
            return min(names, key=self.start)
        if task == "moving":
            mask, moving = self.mask(names[0]), 0
            for row in range(0, 64, 16):
                for column in range(0, 64, 16):
                    cell = mask[:, row : row + 16, column : column + 16]
                    if cell[0].sum() > 8:
                        centres = self.centres(cell)
                        moving += np.abs(centres[7] - centres[0]).max() > 1.5
            return str(moving)
        if task == "sounds":
            return str(len(self.onsets()))
        if task == "kind":
            return self.kind()
        if task == "pitch":
            return min(clips.PITCHES, key=lambda pitch: abs(math.log(clips.PITCHES[pitch] / self.pitch())))
        moment = self.onsets()[0] * clips.FPS
        if task == "sync":
            return "yes" if abs(self.flash(names[0]) - moment) < 1 else "no"
        return min((flash, name) for name in names if (flash := self.flash(name)) > moment)[1]


def test_clip_files_hold_every_answer_by_simple_measurements(asked):
    wrong = []
    for start in range(0, len(asked), 8):
        film = Film(asked[start].videos[0])
        wrong += [
            (question.task, question.text, question.answer, said)
            for question in asked[start : start + 8]
            if (said := film.answer(question.task, question.text)) != question.answer
        ]
    assert not wrong


def test_all_frames_are_drawn_for_a_model_that_takes_eight():
    assert media.frame_indices(clips.FRAMES, 8) == list(range(8))


def test_sound_or_frames_can_be_left_out(tmp_path, asked):
    whole = Film(asked[0].videos[0])
    muted, blank = (
        clips.questions(8, seed=0, folder=tmp_path, without=part)[0].videos[0] for part in ("sound", "frames")
    )
    assert np.abs(Film(muted).sound).max() < 1e-3 and np.abs(Film(muted).frames - whole.frames).max() < 3
    assert np.abs(Film(blank).frames - 128).max() < 4
    np.testing.assert_allclose(Film(blank).sound, whole.sound, atol=1e-3)
    assert len(whole.sound) == 32000 and media.has_audio(muted)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n": -1}, "must not be negative: -1, 0"),
        ({"tasks": ["smell"]}, "Tasks are some of direction.*not smell"),
        ({"tasks": []}, "not none"),
        ({"without": "colour"}, "no part of a clip to leave out 'colour'"),
    ],
)
def test_what_cannot_be_asked_is_told(wrong, message, tmp_path):
    with pytest.raises(UserError, match=message):
        clips.questions(**{"n": 1, "seed": 0, "folder": tmp_path, **wrong})
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Could not write a clip into"):
        clips.questions(1, seed=0, folder=tmp_path / "file")


def test_it_is_a_shipped_set(tmp_path, monkeypatch, processor):
    monkeypatch.setenv("TAMP_CACHE", str(tmp_path))
    model, listens = tiny_videollama2.build(), tiny_videollama2.processor(audio_policy="plain")
    samples = tamp.calibration_set(clips.NAME, listens, n=9)
    assert len(samples) == 9 and len(list((tmp_path / clips.NAME).iterdir())) == 2
    codes = models.modality(model, samples[0])
    assert (codes == models.VISUAL).sum() == 8 and (codes == models.AUDIO).sum() == 96
    scores = tamp.evaluate(model, listens, clips.NAME, limit=16, progress=False)
    assert list(scores["task"]) == list(clips.TASKS) and set(scores["n"]) == {2}
    with pytest.raises(UserError, match="takes no videos"):
        tamp.evaluate(None, processor, clips.NAME, limit=1)
