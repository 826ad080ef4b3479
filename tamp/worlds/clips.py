"""A small procedural world of short clips with sound, and questions with known answers.

A clip is eight frames of 64 x 64 pixels, four a second, with six coloured shapes over a faintly noisy background: two that
move one after the other and flash, a lamp that stands still and flashes, and a crowd of three that look alike, of which some
move. One to four sounds of one kind and pitch go with it. Picture and sound are drawn independently of each other. Three
tasks are about what is seen, three about what is heard. Two need both: each compares the moment of the first sound with
flashes, in such a way that the sound alone, or the picture alone, leaves both answers equally likely.

The last is why no question is "which comes first, the sound or the flash?". Whatever the times are drawn from, the earliest
of them that can occur tells its answer alone. What flashes next after the first sound has no such end.

VideoLLaMA 2 hears a video of two seconds eight times over, unless its processor's ``audio_policy`` is ``"plain"``.
"""

import dataclasses
import hashlib
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from tamp import media
from tamp.errors import UserError, unknown
from tamp.files import cache_folder, scratch
from tamp.records import Question
from tamp.worlds.drawing import COLOURS, SHAPES, shape_mask
from tamp.worlds.pictures import YES_NO, in_rounds

NAME = "smol-avqa"
"""What the set of questions is called."""

SIDE, FRAMES, FPS = 64, 8, 4
"""Edge of a frame in pixels, frames in a clip, frames per second."""

SEEN, HEARD, BOTH = ("direction", "order", "moving"), ("kind", "pitch", "sounds"), ("sync", "first")
"""Tasks about the picture, about the sound, and about both."""

TASKS = (*SEEN, *HEARD, *BOTH)
"""Every task, in the order in which a round asks them."""

WAYS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}
"""Direction to steps down and to the right."""

KINDS = ("tone", "noise", "chirp", "buzz")
PITCHES = {"low": 400.0, "middle": 1000.0, "high": 2500.0}
"""Pitch to frequency in Hz; noise and chirps span an octave around it."""

MOST_SOUNDS = 4
MOMENTS = (0, 4)
"""Frames with which the first sound can begin, and in which the lamp can flash."""

LENGTH, PAUSE, LAST = 0.08, 0.2, 1.88
"""Of sounds, in seconds: how long each is, the least silence between two, and the latest beginning."""

WITHOUT = {"sound": (*HEARD, *BOTH), "frames": (*SEEN, *BOTH)}
"""Part of a clip that can be left out to the tasks that are guessing then."""

_GRID, _CELL, _SIZE, _STEP, _STEPS = 4, 16, 9, 3, 2  # cells along an edge; pixels; steps of a move, one per frame
_PALETTE = tuple(COLOURS)
_WHITE = np.array((252, 252, 252), dtype=np.float32)
_GREY = 128


@dataclasses.dataclass(frozen=True, kw_only=True)
class Actor:
    """A coloured shape in the cell at `row`, `column`.

    Attributes:
        way: Where it moves to, one of `WAYS`; None if it stands still.
        start: The first frame in which it has moved.
        flash: The frame in which it is white; None if there is none.
    """

    colour: str
    shape: str
    row: int
    column: int
    way: str | None = None
    start: int = 0
    flash: int | None = None

    @property
    def name(self) -> str:
        """What the questions call it."""
        return f"{self.colour} {self.shape}"


@dataclasses.dataclass(frozen=True)
class Sound:
    """Sounds of one kind and pitch, each beginning at one of `onsets`, in seconds."""

    kind: str
    pitch: str
    onsets: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Clip:
    """What a clip shows and sounds like.

    Attributes:
        movers: Two shapes that move, one after the other, and flash, one after the other.
        lamp: A shape that stands still and flashes.
        crowd: Three shapes of one look, some of which move.
        sound: What is heard.
        seed: Of background, noise, and small changes of place, hue, pitch and loudness.
    """

    movers: tuple[Actor, Actor]
    lamp: Actor
    crowd: tuple[Actor, Actor, Actor]
    sound: Sound
    seed: int

    @property
    def moment(self) -> float:
        """The frame with which the first sound begins."""
        return self.sound.onsets[0] * FPS


def make_clip(random: np.random.Generator) -> Clip:
    """Compose a clip that every task can ask about, all answers equally likely."""
    cells = random.permutation(_GRID**2)[:6]
    colours, shapes = random.permutation(len(_PALETTE))[:4], random.permutation(len(SHAPES))[:4]
    looks = [0, 1, 2, 3, 3, 3]
    count = int(random.integers(4))
    moves = [True, True, False, *(number < count for number in range(3))]
    ways = [list(WAYS)[random.integers(len(WAYS))] if moving else None for moving in moves]
    # half a second or more lies between the movers' starts, and between any flash of theirs and the first sound
    starts = [*random.permutation([1 + random.integers(2), 4 + random.integers(2)]), 0, *random.integers(1, 6, 3)]
    flashes = [*random.permutation([2, 6 + random.integers(2)]), MOMENTS[random.integers(2)], None, None, None]
    actors = [
        Actor(
            colour=_PALETTE[colours[look]],
            shape=SHAPES[shapes[look]],
            row=int(cell) // _GRID,
            column=int(cell) % _GRID,
            way=way,
            start=int(start),
            flash=None if flash is None else int(flash),
        )
        for look, cell, way, start, flash in zip(looks, cells, ways, starts, flashes, strict=True)
    ]
    return Clip((actors[0], actors[1]), actors[2], tuple(actors[3:]), make_sound(random), int(random.integers(2**32)))


def make_sound(random: np.random.Generator) -> Sound:
    """Compose what a clip sounds like."""
    count = 1 + int(random.integers(MOST_SOUNDS))
    first = MOMENTS[random.integers(2)] / FPS
    free = LAST - first - (count - 1) * (LENGTH + PAUSE)
    later = [0.0, *np.sort(random.uniform(0, free, count - 1))]
    onsets = (round(float(first + number * (LENGTH + PAUSE) + shift), 3) for number, shift in enumerate(later))
    return Sound(KINDS[random.integers(len(KINDS))], list(PITCHES)[random.integers(len(PITCHES))], tuple(onsets))


def actors(clip: Clip) -> tuple[Actor, ...]:
    """List everything that is seen, in the order in which it is painted."""
    return (*clip.movers, clip.lamp, *clip.crowd)


def _corners(clip: Clip) -> Iterator[np.ndarray]:
    """Place every actor: its upper left corner in every frame, int (8, 2), rows and columns in pixels."""
    random = np.random.default_rng((clip.seed, 2))
    room = _CELL - _SIZE
    for actor in actors(clip):
        place = random.integers(0, room + 1, 2)  # row and column in the cell
        slack = random.integers(0, room - _STEP * _STEPS + 1)
        step = np.array(WAYS[actor.way] if actor.way else (0, 0))
        place = np.where(step > 0, slack, np.where(step < 0, room - slack, place))
        moved = np.clip(np.arange(FRAMES) - actor.start + 1, 0, _STEPS)
        yield place + (_CELL * actor.row, _CELL * actor.column) + _STEP * step * moved[:, None]


def centres(clip: Clip) -> list[np.ndarray]:
    """Return where every actor of :func:`actors` is: float (8, 2) each, rows and columns of its centre in every frame."""
    return [corners + (_SIZE - 1) / 2 for corners in _corners(clip)]


def paint(clip: Clip) -> np.ndarray:
    """Paint the frames of a clip, uint8 RGB `(8, 64, 64, 3)`."""
    random = np.random.default_rng((clip.seed, 0))
    frames = np.empty((FRAMES, SIDE, SIDE, 3), dtype=np.float32)
    frames[:] = random.integers(30, 100) + random.integers(-8, 9, 3)
    for actor, corners in zip(actors(clip), _corners(clip), strict=True):
        mask = shape_mask(actor.shape, _SIZE)[..., None]
        colour = np.add(COLOURS[actor.colour], random.integers(-14, 15, 3), dtype=np.float32)
        for number, (frame, (top, left)) in enumerate(zip(frames, corners, strict=True)):
            patch = frame[top : top + _SIZE, left : left + _SIZE]
            patch += mask * ((_WHITE if number == actor.flash else colour) - patch)
    frames += random.integers(-4, 5, (FRAMES, SIDE, SIDE, 1))
    return frames.clip(0, 255).astype(np.uint8)


def play(clip: Clip) -> np.ndarray:
    """Play the sounds of a clip over a faint hiss, float32 `(32000,)` at 16 kHz."""
    random = np.random.default_rng((clip.seed, 1))
    waveform = 0.001 * random.standard_normal(media.RATE * FRAMES // FPS)
    pitch, loudness = PITCHES[clip.sound.pitch] * random.uniform(0.95, 1.05), random.uniform(0.2, 0.5)
    for onset in clip.sound.onsets:
        burst = _burst(clip.sound.kind, pitch, random)
        begin = round(onset * media.RATE)
        waveform[begin : begin + len(burst)] += loudness * burst
    return waveform.astype(np.float32)


def _burst(kind: str, pitch: float, random: np.random.Generator) -> np.ndarray:
    """Make one sound with a peak of 1, (1280,)."""
    count = round(LENGTH * media.RATE)
    time = np.arange(count) / media.RATE
    phase = 2 * math.pi * pitch * time
    if kind == "tone":
        made = np.sin(phase)
    elif kind == "buzz":
        made = np.sin(phase) + 0.8 * np.sin(2 * phase) + 0.6 * np.sin(3 * phase)
    elif kind == "chirp":  # rises by an octave
        made = np.sin(2 * math.pi * pitch * LENGTH / math.log(2) * 2 ** (time / LENGTH - 0.5))
    else:
        lines = np.fft.rfft(random.standard_normal(count))
        octaves = np.log2(np.maximum(np.fft.rfftfreq(count, 1 / media.RATE), 1) / pitch)
        made = np.fft.irfft(np.where(abs(octaves) < 0.5, lines, 0), count)
    made *= np.minimum(1, np.minimum(time, LENGTH - time) / 0.005)  # without clicks
    return made / abs(made).max()


def plural(name: str) -> str:
    """Name several things of one look, such as "red crosses"."""
    return name + ("es" if name.endswith("s") else "s")


def ask(task: str, clip: Clip) -> tuple[str, str, tuple[str, ...]]:
    """Ask one question about a clip.

    Args:
        task: One of `TASKS`.
        clip: What it is about.

    Returns:
        The question, its answer, and the choices.
    """
    one, other = clip.movers
    names = (one.name, other.name)
    if task == "direction":
        return f"Which way does the {one.name} move?", one.way, tuple(WAYS)
    if task == "order":
        return f"Which moves first, the {one.name} or the {other.name}?", names[other.start < one.start], names
    if task == "moving":
        text = f"How many of the {plural(clip.crowd[0].name)} move?"
        moving = sum(actor.way is not None for actor in clip.crowd)
        return text, str(moving), tuple(map(str, range(len(clip.crowd) + 1)))
    if task == "kind":
        return "What kind of sound is there?", clip.sound.kind, KINDS
    if task == "pitch":
        return "Is the pitch of the sound low, middle or high?", clip.sound.pitch, tuple(PITCHES)
    if task == "sounds":
        return "How many sounds are there?", str(len(clip.sound.onsets)), tuple(map(str, range(1, MOST_SOUNDS + 1)))
    if task == "sync":
        text = f"Does the {clip.lamp.name} flash at the moment of the first sound?"
        return text, YES_NO[clip.lamp.flash != clip.moment], YES_NO
    text = f"After the first sound, which flashes first, the {one.name} or the {other.name}?"
    return text, min((actor.flash, actor.name) for actor in clip.movers if actor.flash > clip.moment)[1], names


def write(clip: Clip, folder: str | Path, without: str | None = None) -> Path:
    """Write a clip as an mp4 file, H.264 with AAC sound, unless it is there.

    Args:
        clip: What to write.
        folder: Where to; it is made if need be. The file is named after its content.
        without: "sound" for silence in the place of the sound, "frames" for grey frames.

    Returns:
        The file.

    Raises:
        UserError: `without` is neither, the folder cannot be written to, or PyAV is missing.
    """
    if without not in (None, *WITHOUT):
        raise unknown("part of a clip to leave out", without, WITHOUT)
    frames, waveform = paint(clip), play(clip)
    if without == "frames":
        frames[:] = _GREY
    elif without == "sound":
        waveform[:] = 0
    name = hashlib.sha256(frames.tobytes() + waveform.tobytes()).hexdigest()[:20]
    path = Path(folder) / f"{name}.mp4"
    if path.is_file():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with scratch(path) as beside:
            media.write_video(beside / path.name, frames, FPS, waveform)
            os.replace(beside / path.name, path)
    except OSError as error:
        raise UserError(
            f"Could not write a clip into {path.parent}: {error}. Give another folder, or another cache by TAMP_CACHE."
        ) from error
    return path


def questions(
    n: int,
    *,
    seed: int,
    stream: str = "evaluation",
    tasks: Iterable[str] | None = None,
    folder: str | Path | None = None,
    without: str | None = None,
) -> list[Question]:
    """Make questions, the tasks taking turns, and write the clips that they are about.

    The same arguments always give the same questions, and the first of a longer list are those of a shorter one. Streams
    never share clips. Up to eight consecutive questions are about one clip.

    Args:
        n: How many.
        seed: Number of the list within its stream, not negative.
        stream: Name of the use, such as "training", "evaluation" or "calibration".
        tasks: Which tasks; all by default.
        folder: Where the clips are written; by default a folder in the cache.
        without: Leave out "sound" or "frames" of all clips, see `write`, to measure what can be answered all the same.

    Returns:
        The questions, each task as often as any other, give or take one.

    Raises:
        UserError: `n` or `seed` is negative, a task is unknown or none is given, or a clip cannot be written.
    """
    wanted = frozenset(TASKS if tasks is None else tasks)
    folder = cache_folder() / NAME if folder is None else folder

    def ask_round(random: np.random.Generator) -> Iterator[Question]:
        clip = make_clip(random)
        videos = (str(write(clip, folder, without)),)
        for task in filter(wanted.__contains__, TASKS):
            text, answer, choices = ask(task, clip)
            yield Question(task=task, images=(), text=text, answer=answer, choices=choices, videos=videos)

    return in_rounds(ask_round, n, seed, stream, wanted, TASKS)
