"""The training of smol-videollama2: `python -m training.clip_training --out data/smol-videollama2`.

The towers and the connector are trained to classify moves, flashes and sounds, then their readouts to map them to the
language model's own word embeddings. Low-rank updates are then trained on answers. Some clips of every step are read from a
video file, with its compression of picture and sound. Prose and short facts are mixed in, see :mod:`training.adapting`.
"""

import dataclasses
import tempfile

import numpy as np
import torch
from torch.nn import functional

from tamp import media
from tamp.evaluation import scoring
from tamp.records import Question
from tamp.videollama2 import VideoLlama2ForConditionalGeneration
from tamp.videollama2.processing import MEL_PATCHES
from tamp.videollama2.processing import PATCH as FRAMES_PER_TOKEN
from tamp.worlds import clips
from tamp.worlds.clips import Clip
from tamp.worlds.drawing import COLOURS, PATCH, SHAPES
from tamp.worlds.pictures import YES_NO
from training import smol_av
from training.adapting import AdaptingRecipe, AdaptingTrainer
from training.answering import read_answers
from training.lessons import Rows, pack_rows
from training.running import command

SPAN, CELL = 2, 2 * PATCH  # frames and pixels that one video token stands for
SEEN = (tuple(COLOURS), SHAPES, tuple(clips.WAYS), ("moves",), ("flash",))
"""Labels of the object in a video token: colour, shape, direction, whether it moves, whether it flashes."""

HALVES = ("one", "two", "three", "four")
COUNTED = tuple(map(str, range(1, clips.MOST_SOUNDS + 1)))
HEARD = (clips.KINDS, tuple(clips.PITCHES), COUNTED, HALVES)
"""Labels of the audio tokens where a sound begins, from the lowest up: kind, pitch, its number, the half second."""

EASY = ("kind", "pitch", "sounds")
"""Tasks with high accuracy after few steps, asked about less often."""


@dataclasses.dataclass(frozen=True)
class ClipRecipe(AdaptingRecipe):
    """Constants of the training of smol-videollama2.

    Attributes:
        towers_steps, towers_rate: Length and largest learning rate of the first stage.
        tower_clips: Clips in a step of the first two stages.
        clips: Clips in a step of the last stage, each with the exchanges of :func:`lesson`.
        language_horizon: Length of the schedule of the language stage in steps; the stage ends earlier.
        hard_from: Share of the language stage from which on :func:`lesson` is a hard one.
        refinement_steps, refinement_rate: Length and largest learning rate of the second round, of :func:`timing_lesson`.
        timing_steps, timing_rate: The same of the third.
        through_files: How many clips of a step, in any stage, go through a video file.
    """

    towers_steps: int = 600
    towers_rate: float = 2e-3
    projector_rate: float = 0.03
    alignment_steps: int = 240
    language_steps: int = 380
    language_horizon: int = 480
    refinement_steps: int = 100
    refinement_rate: float = 7e-4
    timing_steps: int = 120
    timing_rate: float = 1e-3
    tower_clips: int = 24
    clips: int = 8
    hard_from: float = 0.25
    through_files: int = 2
    held_out: int = 200
    check_every: int = 50


def sensed(made: list[Clip], through_files: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the inputs of the towers for clips, as the processor makes them.

    Args:
        made: Clips.
        through_files: How many, from the first on, are written to a video file and read again.

    Returns:
        Frames in [-1, 1], float32 `(clips, frames, 3, side, side)`, and filter banks, float32 `(clips, mel frames, 128)`.
    """
    frames, waves = [], []
    with tempfile.TemporaryDirectory() as scratch:
        for number, clip in enumerate(made):
            if number < through_files:
                path = clips.write(clip, scratch)
                frames.append(media.read_video(path, clips.FRAMES))
                waves.append(media.read_audio(path))
            else:
                frames.append(clips.paint(clip))
                waves.append(clips.play(clip))
    pixels = torch.from_numpy(np.stack(frames)).permute(0, 1, 4, 2, 3) / 127.5 - 1
    count = round(media.RATE * clips.FRAMES / clips.FPS)
    return pixels, torch.stack([media.fbank(wave[:count]) for wave in waves])


def video_labels(clip: Clip) -> np.ndarray:
    """Return the labels of video tokens: int64 `(tokens, kinds of SEEN)`, 0 for none, else 1 plus the place in `SEEN`."""
    side = clips.SIDE // CELL
    labels = np.zeros((clips.FRAMES // SPAN, side, side, len(SEEN)), dtype=np.int64)
    for actor, centres in zip(clips.actors(clip), clips.centres(clip), strict=True):
        for time in range(len(labels)):
            shown = slice(SPAN * time, SPAN * (time + 1))
            row, column = (centres[shown].mean(0) // CELL).astype(int)
            moves = actor.way is not None and (centres[shown] != centres[shown][0]).any()
            flashes = actor.flash is not None and actor.flash // SPAN == time
            way, flash = actor.way if moves else None, "flash" if flashes else None
            said = (actor.colour, actor.shape, way, "moves" if moves else None, flash)
            labels[time, row, column] = [
                0 if word is None else 1 + words.index(word) for word, words in zip(said, SEEN, strict=True)
            ]
    return labels.reshape(-1, len(SEEN))


def audio_labels(clip: Clip, tokens: int) -> np.ndarray:
    """Return the labels of audio tokens: int64 `(tokens,)`, 0 for none, else 1 plus the place in the words of `HEARD`."""
    words = [word for some in HEARD for word in some]
    labels = np.zeros((tokens // MEL_PATCHES, MEL_PATCHES), dtype=np.int64)
    for number, onset in enumerate(clip.sound.onsets):
        time = int(onset / (FRAMES_PER_TOKEN * media.HOP / media.RATE))
        said = (clip.sound.kind, clip.sound.pitch, COUNTED[number], HALVES[int(2 * onset)])
        labels[time, : len(said)] = [1 + words.index(word) for word in said]
    return labels.reshape(-1)


def lesson(clip: Clip, random: np.random.Generator, hard: bool = True) -> list[tuple[str, str]]:
    """Return the exchanges about a clip: tasks, one of the easy ones, and questions about their intermediate steps.

    Args:
        clip: What they are about.
        random: Source of randomness.
        hard: Whether to ask the tasks of several steps: counting, and comparing sound with flashes.
    """
    turned = dataclasses.replace(clip, movers=clip.movers[::-1])
    seen = clips.actors(clip)
    moving = [actor for actor in sorted(seen, key=lambda actor: actor.start) if actor.way]
    flashing = _flashing(clip)
    asked = [
        ("direction", clip),
        ("direction", turned),
        ("order", (clip, turned)[random.integers(2)]),
        (EASY[random.integers(len(EASY))], clip),
    ]
    told = [
        ("What moves, in order?", ", ".join(f"{actor.name} {actor.way}" for actor in moving)),
        ("What flashes, in order?", ", ".join(actor.name for actor in flashing)),
        ("In which half second is the first sound?", HALVES[int(2 * clip.sound.onsets[0])]),
        (f"In which half second does the {clip.lamp.name} flash?", HALVES[2 * clip.lamp.flash // clips.FPS]),
    ]
    if hard:
        asked += [("moving", clip), ("sync", clip), ("first", clip), ("first", turned)]
        one = flashing[random.integers(len(flashing))]
        when, right = (("before", one.flash < clip.moment), ("after", one.flash > clip.moment))[random.integers(2)]
        ways = [actor.way for actor in moving if actor in clip.crowd]
        told += [
            (f"Which way do the {clips.plural(clip.crowd[0].name)} move?", ", ".join(ways) or "none"),
            (f"Does the {one.name} flash {when} the first sound?", YES_NO[not right]),
        ]
    return [*(clips.ask(task, each)[:2] for task, each in asked), *told]


def timing_lesson(clip: Clip, random: np.random.Generator, last: bool = False) -> list[tuple[str, str]]:
    """Return the exchanges of the second round: flashes before, with and after the sound, counting, and another task.

    Args:
        clip: What they are about.
        random: Source of randomness.
        last: Whether this is the third round, with fewer other tasks.
    """
    turned = dataclasses.replace(clip, movers=clip.movers[::-1])
    before = [actor.name for actor in _flashing(clip) if actor.flash < clip.moment]
    after = [actor.name for actor in _flashing(clip) if actor.flash > clip.moment]
    together = clip.lamp.flash == clip.moment
    known = ("direction", "order", "first", *EASY) if last else ("direction", "order", *EASY)
    asked = ["sync", "moving", *([] if last else ["first"]), known[random.integers(len(known))]]
    heard = f"sound with {clip.lamp.name}" if together else "sound"
    return [
        *(clips.ask(task, (clip, turned)[random.integers(2)])[:2] for task in asked),
        *([] if last else [("What happens, in order?", ", ".join([*before, heard, *after]))]),
        ("What flashes at the moment of the first sound?", clip.lamp.name if together else "nothing"),
        (f"Does the {clip.lamp.name} flash before the first sound?", YES_NO[clip.lamp.flash >= clip.moment]),
        (f"Does the {clip.lamp.name} flash after the first sound?", YES_NO[clip.lamp.flash <= clip.moment]),
    ]


def _flashing(clip: Clip) -> list[clips.Actor]:
    """Return the actors that flash, in order."""
    return sorted((*clip.movers, clip.lamp), key=lambda actor: actor.flash)


@dataclasses.dataclass(frozen=True)
class Watched(Rows):
    """Questions about clips as one batch; pixels and filter banks as of :func:`sensed`."""

    pixels: torch.Tensor
    banks: torch.Tensor


def answer_logits(model: VideoLlama2ForConditionalGeneration, batch: Rows) -> torch.Tensor:
    """Compute the logits of the answers to questions, about clips or not; see :func:`read_answers`."""
    embedded = model.get_input_embeddings()(batch.token_ids)
    if isinstance(batch, Watched):
        for token, found in (
            (model.config.video_token_id, model.model.get_video_features(batch.pixels.to(model.dtype))),
            (model.config.audio_token_id, model.model.get_audio_features(batch.banks)),
        ):
            embedded = embedded.masked_scatter((batch.token_ids == token)[..., None], found.to(embedded.dtype))
    return read_answers(model, batch, embedded)


class ClipTrainer(AdaptingTrainer):
    """smol-videollama2 in training: weights in float32, each step computed in bfloat16."""

    STAGES = ("towers", "alignment", "language", "refinement", "timing")
    CHECKED = ("language", "refinement", "timing")
    KIT = smol_av

    def __init__(self, recipe: ClipRecipe, seed: int):
        super().__init__(recipe, seed)
        # With an explicit mask, fused attention in bfloat16 is slower than eager attention on a CPU.
        self.worker.model.language_model.set_attn_implementation("eager")

    def _prepare_words(self, model: VideoLlama2ForConditionalGeneration) -> dict[str, int]:
        def embedding(text: str) -> torch.Tensor:
            """Return the embedding of a word within a text, digits without the space; of a longer word its first token."""
            return model.get_input_embeddings().weight[self._ids(text if text.isdigit() else f" {text}")[0]].detach()

        words = model.get_input_embeddings().weight.detach()
        self._plain, mean = embedding("."), words.mean(0)
        usual = (words - mean).norm(dim=-1).mean()

        def told_apart(some: tuple[str, ...]) -> torch.Tensor:
            """Return embeddings of words minus their mean, so that "left" and "right", say, differ clearly in a sum."""
            made = torch.stack([embedding(word) for word in some]) - mean
            made = made - made.mean(0) if len(some) > 1 else made
            return torch.cat([torch.zeros_like(made[:1]), usual * functional.normalize(made, dim=-1)])

        self._seen = [told_apart(some) for some in SEEN]
        self._seen[0] = torch.cat([self._plain[None], mean + self._seen[0][1:]])
        self._heard = torch.stack([self._plain, *(embedding(word) for words in HEARD for word in words)])
        return {}

    def _reader(self) -> torch.nn.Module:
        return torch.nn.ModuleDict(
            {
                "video": torch.nn.Linear(self.model.config.text_config.hidden_size, sum(map(len, self._seen))),
                "audio": torch.nn.Linear(self.model.config.audio_config.hidden_size, len(self._heard)),
            }
        )

    def _share(self, name: str) -> float | None:
        readouts = name.startswith(("model.vision_projector.readout.", "model.audio_projector."))
        if self.STAGES[self.stage] in self.CHECKED:
            return 1.0 if name.endswith((".down", ".up")) else self.recipe.projector_rate if readouts else None
        if self.STAGES[self.stage] == "alignment":
            return 1.0 if readouts else None
        return None if readouts or name.startswith(("model.language_model.", "lm_head.")) else 1.0

    def _labelled(self, random: np.random.Generator):
        """Return the features of fresh clips in the towers, and the labels of their tokens."""
        made = [clips.make_clip(random) for _ in range(self.recipe.tower_clips)]
        pixels, banks = sensed(made, self.recipe.through_files)
        model = self.worker.model
        patches = model._patches(pixels.flatten(0, 1).to(model.dtype)).unflatten(0, pixels.shape[:2])
        seen, heard = model.vision_projector.features(patches), model.audio_tower(banks).last_hidden_state
        labels = torch.from_numpy(np.stack([video_labels(clip) for clip in made]))
        words = torch.from_numpy(np.stack([audio_labels(clip, heard.shape[1]) for clip in made]))
        return seen, heard, labels, words

    def _towers_loss(self, random: np.random.Generator, progress: float) -> float:
        seen, heard, labels, words = self._labelled(random)
        reader = self.worker.patch_reader
        parts = reader["video"](seen).float().split([len(some) for some in self._seen], dim=-1)
        # All labels are weighted by whether there is an object: "does not move" counts like a direction.
        there = labels[..., 0]
        loss = sum(
            self._balance(functional.cross_entropy(part.mT, labels[..., kind], reduction="none"), there)
            for kind, part in enumerate(parts)
        )
        loss = loss + self._balance(
            functional.cross_entropy(reader["audio"](heard).float().mT, words, reduction="none"), words
        )
        loss.backward()
        return loss.item()

    def _alignment_loss(self, random: np.random.Generator, progress: float) -> float:
        with torch.no_grad():
            seen, heard, labels, words = self._labelled(random)
        model = self.worker.model
        target = sum(table[labels[..., kind]] for kind, table in enumerate(self._seen))
        loss = 0.0
        for tokens, wanted, there in (
            (model.vision_projector.readout(seen), target, labels[..., 0]),
            (model.audio_projector(heard), self._heard[words], words),
        ):
            loss = loss + self._balance((tokens.float() - wanted).square().mean(-1), there) / self._heard.var()
        loss.backward()
        return loss.item()

    _refinement_loss = _timing_loss = AdaptingTrainer._language_loss

    def _batches(self, random: np.random.Generator, progress: float) -> list[Rows]:
        made = [clips.make_clip(random) for _ in range(self.recipe.clips)]
        pixels, banks = sensed(made, self.recipe.through_files)
        config, writing = self.model.config, self.writing
        heard = banks.shape[1] // FRAMES_PER_TOKEN * MEL_PATCHES
        media_ids = [config.video_token_id] * self.processor.visual_tokens + [config.audio_token_id] * heard
        if self.STAGES[self.stage] == "language":
            asked = [lesson(clip, random, progress >= self.recipe.hard_from) for clip in made]
        else:
            asked = [timing_lesson(clip, random, self.STAGES[self.stage] == "timing") for clip in made]
        rows = pack_rows([*writing.start, *media_ids, *writing.after], asked, writing)
        return [
            Watched(**vars(rows), pixels=pixels, banks=banks),
            pack_rows(writing.start, [self._facts(random)], writing),
        ]

    def _answer_logits(self, batch: Rows) -> torch.Tensor:
        return answer_logits(self.worker, batch)

    def asked(self, n: int, seed: int, stream: str) -> list[Question]:
        """Return questions about clips in files."""
        return clips.questions(n, seed=seed, stream=stream)

    def tally(self, model: VideoLlama2ForConditionalGeneration, asked: list[Question]) -> dict[str, tuple[int, int]]:
        """Return per task the number of questions that a model answers exactly, and of all, evaluated on files."""
        scored = scoring.answers(model, self.processor, asked, progress=False).groupby("task", sort=False)["correct"]
        return {task: (int(right.sum()), len(right)) for task, right in scored}


def main(arguments: list[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: Command line, without the program; the process's own by default.

    Returns:
        0 when training is over, 3 when time ran out first; the same command then resumes.
    """
    return command("python -m training.clip_training", f"build/{smol_av.NAME}", ClipRecipe(), ClipTrainer, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
