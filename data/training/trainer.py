"""The training of a model in stages, with checkpoints from which it resumes at any step."""

import copy
import dataclasses
import logging
import math
import os
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional
from transformers import LlavaNextForConditionalGeneration, PreTrainedModel

from tamp.records import Question
from tamp.worlds.pictures import questions
from training.answering import accuracy, answer_logits, patch_features
from training.building import TILE, build_model, build_processor, make_vocabulary
from training.lessons import LABELS, Lesson, Rows, Writing, labelled_pictures, pack, pair_lesson, single_lesson

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Constants of the training.

    Attributes:
        vision_steps, alignment_steps, language_steps: Length of the stages.
        vision_rate, alignment_rate, language_rate: Largest learning rates.
        vision_pictures: Pictures in a step of the first two stages.
        single_lessons, pair_lessons: Lessons in a step of the last stage.
        tower_rate: Learning rate of the vision tower in the last stage, as a share of the others'.
        background: Weight of a patch without a label.
        detail: Weight of colours and shapes in the targets of the full view, since the base view has them too.
        growth: (share of the last stage, largest number of objects from there on), in order.
        warm_up: Steps over which a stage's learning rate rises.
        final_rate: Learning rate at the end of a stage, as a share of its largest.
        held_out: Questions of the check during training.
        check_every: Steps of the last stage between checks.
        save_every: Steps between checkpoints.
    """

    vision_steps: int = 700
    alignment_steps: int = 200
    language_steps: int = 1400
    vision_rate: float = 2e-3
    alignment_rate: float = 3e-3
    language_rate: float = 1e-3
    vision_pictures: int = 24
    single_lessons: int = 7
    pair_lessons: int = 5
    tower_rate: float = 0.2
    background: float = 0.1
    detail: float = 0.4
    growth: tuple[tuple[float, int], ...] = ((0.0, 3), (0.06, 4), (0.15, 6))
    warm_up: int = 50
    final_rate: float = 0.02
    weight_decay: float = 0.02
    held_out: int = 500
    check_every: int = 100
    save_every: int = 50


def at(schedule: tuple[tuple[float, int], ...], progress: float) -> int:
    """Return the value of a schedule, ordered pairs of (share of a stage, value from there on), at `progress`."""
    return [value for share, value in schedule if progress >= share][-1]


class Trainer:
    """The model in training, and the state needed to resume.

    Weights are kept in float32; each step computes with a copy of them in bfloat16.
    """

    STAGES = ("vision", "alignment", "language")
    CHECKED = ("language",)
    """Stages with held-out checks."""

    SET = "mini-vqa"

    def __init__(self, recipe: Recipe, seed: int, half: bool = True):
        """Start from scratch.

        Args:
            recipe: Constants.
            seed: Seed of weights and data.
            half: Whether to compute in bfloat16.
        """
        self.recipe, self.seed = recipe, seed
        self.model, self.writing, self.labels = self._build()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + 1)
            self.model.patch_reader = self._reader()
        self.worker = _lower(self.model) if half else self.model
        self.stage, self.step, self.seconds = 0, 0, 0.0
        self.curve: list[dict] = []
        self.stage_seconds = dict.fromkeys(self.STAGES, 0.0)
        self._recent: list[float] = []
        self._begin_stage()

    def _build(self) -> tuple[LlavaNextForConditionalGeneration, Writing, dict[str, int]]:
        """Return the untrained model, the format of its lessons, and the labels of patches."""
        vocabulary = make_vocabulary()

        def exchange(question: str, answer: str) -> tuple[list[int], list[int]]:
            prompt, reply = f"{question} answer :".split(), f"{answer} <eos>".split()
            return [vocabulary[word] for word in prompt], [vocabulary[word] for word in reply]

        writing = Writing((vocabulary["<bos>"],), (), vocabulary["<image>"], vocabulary["<pad>"], TILE, exchange)
        return build_model(self.seed), writing, vocabulary

    def _reader(self) -> torch.nn.Module:
        """Return the linear readout of labels from the tower's patches, for the first stage."""
        return torch.nn.Linear(self.model.config.vision_config.hidden_size, LABELS * len(self.labels))

    def _share(self, name: str) -> float | None:
        """Return a parameter's share of the stage's learning rate, None if the stage does not train it."""
        parts = {
            "vision": {"model.vision_tower": 1.0, "patch_reader": 1.0},
            "alignment": {"model.multi_modal_projector": 1.0},
            "language": {"model.vision_tower": self.recipe.tower_rate, "model": 1.0, "lm_head": 1.0},
        }[self.STAGES[self.stage]]
        return next((share for part, share in parts.items() if name.startswith(part + ".")), None)

    @property
    def done(self) -> bool:
        """Whether all stages are over."""
        return self.stage == len(self.STAGES)

    @property
    def just_checked(self) -> bool:
        """Whether the last step ended with a held-out check, and more steps follow."""
        asked = not self.done and self.STAGES[self.stage] in self.CHECKED
        return asked and self.step > 0 and self.step % self.recipe.check_every == 0

    def _steps(self) -> int:
        return getattr(self.recipe, f"{self.STAGES[self.stage]}_steps")

    def _horizon(self) -> int:
        """Return the length of the stage's schedule in steps: more than it has if it ends early."""
        return getattr(self.recipe, f"{self.STAGES[self.stage]}_horizon", self._steps())

    def _begin_stage(self) -> None:
        """Select the parameters to train, and set up a fresh optimiser for them."""
        if self.done:
            return
        name = self.STAGES[self.stage]
        groups: dict[tuple[float, bool], list[torch.nn.Parameter]] = defaultdict(list)
        self._pairs = []
        for (key, parameter), worker in zip(self.model.named_parameters(), self.worker.parameters(), strict=True):
            share = self._share(key)
            worker.requires_grad_(share is not None)
            if share is not None:
                groups[share, parameter.ndim > 1].append(parameter)
                self._pairs.append((parameter, worker))
        rate = getattr(self.recipe, f"{name}_rate")
        self.optimiser = torch.optim.AdamW(
            [
                {"params": members, "peak": rate * share, "weight_decay": self.recipe.weight_decay * matrix}
                for (share, matrix), members in groups.items()
            ],
            betas=(0.9, 0.98),
            foreach=True,
        )

    def advance(self) -> None:
        """Take one step, and enter the next stage after the last one of a stage."""
        began = time.perf_counter()
        recipe, name = self.recipe, self.STAGES[self.stage]
        progress = self.step / self._horizon()
        # Data depend on seed, stage and step only, so a run can resume at any step.
        random = np.random.default_rng(np.random.SeedSequence((self.seed, self.stage, self.step)))
        cosine = recipe.final_rate + (1 - recipe.final_rate) * (1 + math.cos(math.pi * progress)) / 2
        for group in self.optimiser.param_groups:
            group["lr"] = group["peak"] * min(1, (self.step + 1) / recipe.warm_up) * cosine
        loss = getattr(self, f"_{name}_loss")(random, progress)
        masters, workers = zip(*self._pairs, strict=True)
        if self.worker is not self.model:
            for master, worker in self._pairs:
                master.grad = None if worker.grad is None else worker.grad.float()
                worker.grad = None
        torch.nn.utils.clip_grad_norm_(masters, 1.0)
        self.optimiser.step()
        with torch.no_grad():
            torch._foreach_copy_(list(workers), list(masters))
        self.optimiser.zero_grad()
        self._recent.append(loss)
        self.step += 1
        spent = time.perf_counter() - began
        self.seconds += spent
        self.stage_seconds[name] += spent
        self._note(name)
        if self.step == self._steps():
            self.stage, self.step = self.stage + 1, 0
            self._begin_stage()

    def _note(self, name: str) -> None:
        every = self.recipe.check_every if name in self.CHECKED else self.recipe.save_every
        if self.step % every and self.step != self._steps():
            return
        entry = {"stage": name, "step": self.step, "seconds": round(self.seconds, 1)}
        entry["loss"] = round(sum(self._recent) / len(self._recent), 4)
        self._recent = []
        if name in self.CHECKED:
            tally = self.tally(self.worker, self.asked(self.recipe.held_out, 0, "validation"))
            entry["accuracy"] = {task: round(right / count, 3) for task, (right, count) in tally.items()}
            entry["mean"] = round(sum(entry["accuracy"].values()) / len(tally), 4)
        self.curve.append(entry)
        log.info("%s", entry)

    def asked(self, n: int, seed: int, stream: str) -> list[Question]:
        """Return questions of the model's own set."""
        return questions(n, seed=seed, stream=stream, name=self.SET)

    def tally(self, model: PreTrainedModel, asked: list[Question]) -> dict[str, tuple[int, int]]:
        """Return per task the number of questions that a model answers exactly, and of all."""
        return accuracy(model, asked, self.writing)

    def _labelled_pictures(self, random: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        return labelled_pictures(random, self.recipe.vision_pictures, self.labels, self.writing.tile)

    def _vision_loss(self, random: np.random.Generator, progress: float) -> float:
        tiles, labels = self._labelled_pictures(random)
        logits = self.worker.patch_reader(patch_features(self.worker, tiles)).float()
        logits = logits.unflatten(-1, (LABELS, len(self.labels)))
        losses = functional.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="none")
        loss = self._balance(losses.view(labels.shape), labels)
        loss.backward()
        return loss.item()

    def _alignment_loss(self, random: np.random.Generator, progress: float) -> float:
        tiles, labels = self._labelled_pictures(random)
        words = self.model.get_input_embeddings().weight.detach()
        named = words[labels] * (labels > 0)[..., None]
        plain = words[self.writing.image]
        target = named.sum(-2)
        # The base view holds one token per object, the full view four with the weight `detail`.
        objects = (labels[..., 1] > 0) & (labels[..., 2] == 0)
        target = torch.where(objects[..., None], plain + self.recipe.detail * target, target)
        target = torch.where((labels > 0).any(-1, keepdim=True), target, plain)
        with torch.no_grad():
            features = patch_features(self.worker, tiles)
        tokens = self.worker.model.multi_modal_projector(features).float()
        loss = self._balance(((tokens - target) ** 2).mean(-1), labels.amax(-1)) / words.var()
        loss.backward()
        return loss.item()

    def _balance(self, losses: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        weights = torch.where(labels > 0, 1.0, self.recipe.background)
        return (losses * weights).sum() / weights.sum()

    def _lessons(self, random: np.random.Generator, progress: float) -> list[list[Lesson]]:
        """Return the lessons of a step: those of one form in a list."""
        most = at(self.recipe.growth, progress)
        return [
            [single_lesson(random, most) for _ in range(self.recipe.single_lessons)],
            [pair_lesson(random, most) for _ in range(self.recipe.pair_lessons)],
        ]

    def _batches(self, random: np.random.Generator, progress: float) -> list[Rows]:
        """Return the batches of a step of the last stage."""
        return [pack(lessons, self.writing) for lessons in self._lessons(random, progress)]

    def _answer_logits(self, batch: Rows) -> torch.Tensor:
        return answer_logits(self.worker, batch)

    def _language_loss(self, random: np.random.Generator, progress: float) -> float:
        batches = self._batches(random, progress)
        total = sum(int((batch.targets >= 0).sum()) for batch in batches)
        value = 0.0
        for batch in batches:
            logits = self._answer_logits(batch)
            loss = functional.cross_entropy(logits, batch.targets[batch.targets >= 0], reduction="sum") / total
            (loss + self._beside(batch) / len(batches)).backward()
            value += loss.item()
        return value

    def _beside(self, batch: Rows) -> torch.Tensor | float:
        """Return what is minimised beside the loss of the answers of a batch, after its forward pass."""
        return 0.0

    def weights(self) -> dict[str, torch.Tensor]:
        """Return the tensors that training changes."""
        return self.model.state_dict()

    def save(self, path: Path) -> None:
        """Write a checkpoint, atomically."""
        state = {
            "recipe": dataclasses.asdict(self.recipe),
            "seed": self.seed,
            "model": self.weights(),
            "optimiser": None if self.done else self.optimiser.state_dict(),
            "position": (self.stage, self.step, self.seconds, self.curve, self.stage_seconds, self._recent),
        }
        fresh = path.with_suffix(".new")
        torch.save(state, fresh)
        os.replace(fresh, path)

    def load(self, path: Path) -> None:
        """Load a checkpoint and resume there.

        Args:
            path: File written by `save`.

        Raises:
            ValueError: It belongs to another seed or another recipe.
        """
        state = torch.load(path, weights_only=True)
        if state["seed"] != self.seed or state["recipe"] != dataclasses.asdict(self.recipe):
            raise ValueError(f"{path} was written under another seed or recipe: choose another work folder")
        self.model.load_state_dict(state["model"], strict=False)
        self.stage, self.step, self.seconds, self.curve, self.stage_seconds, self._recent = state["position"]
        self.stage_seconds = dict.fromkeys(self.STAGES, 0.0) | self.stage_seconds
        with torch.no_grad():
            for worker, master in zip(self.worker.parameters(), self.model.parameters(), strict=True):
                worker.copy_(master)
        self._begin_stage()
        if not self.done:
            self.optimiser.load_state_dict(state["optimiser"])

    def ship(self, folder: str) -> None:
        """Write the files that ship: here model and processor, weights in float16."""
        finished = _lower(self.model, torch.float16)
        del finished.patch_reader
        finished.eval().save_pretrained(folder)
        build_processor().save_pretrained(folder)
        # Half precision halves the file, but computing in it is slow on most CPUs: plain loading widens the weights.
        settings = Path(folder, "config.json")
        settings.write_text(settings.read_text().replace('"dtype": "float16"', '"dtype": "float32"'))

    def remarks(self, model: LlavaNextForConditionalGeneration) -> dict:
        """Return further measurements for the record of training."""
        return {}

    def as_shipped(self, folder: str) -> LlavaNextForConditionalGeneration:
        """Load the files written by `ship`, in float32."""
        return LlavaNextForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()


def _lower(model: LlavaNextForConditionalGeneration, dtype: torch.dtype = torch.bfloat16):
    """Return a copy of a model in a shorter number format, all but the rotary frequencies."""
    lowered = copy.deepcopy(model).to(dtype)
    for module, original in zip(lowered.modules(), model.modules(), strict=True):
        for name, buffer in original.named_buffers(recurse=False):
            getattr(module, name).data = buffer.clone()
    return lowered
