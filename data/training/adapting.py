"""The training of smol-llava-next: `python -m training.adapting --out data/smol-llava-next`.

The stages are those of the small model. The tower is trained to classify its patches, then the projector to map them to
word embeddings of the language model, so that a row of patches reads like text. Low-rank updates are then trained on answers
in three rounds, the last mostly on counting. Prose and short facts in every step preserve the language model's knowledge.
"""

import dataclasses
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch.nn import functional
from transformers import PreTrainedModel

from tamp import zoo
from tamp.evaluation import scoring
from tamp.worlds import facts, prose
from tamp.worlds.drawing import COLOURS, PATCH, SHAPES
from tamp.worlds.pictures import SIZES, plain
from training import low_rank, smol
from training.answering import patch_features
from training.building import make_vocabulary
from training.lessons import SINGLE_LESSON, Lesson, Writing, labelled_pictures, pair_lesson, single_lesson
from training.running import command
from training.trainer import Recipe, Trainer, at

SINGLE_SIZES, PAIR_SIZES = SIZES["smol-vqa"]

HARDER = ("colour", "exist") + ("position", "count", "relation") * 3
"""Tasks asked about a training picture in the later part of the language stage, beside one of `EASIER`."""

EASIER = ("shape", "number", "word")
COUNTING = ("colour", "exist", "position", "relation") + ("count",) * 6
"""Tasks asked about a training picture in the last round, beside one of `EASIER`."""

PROSE_WINDOW = 96


@dataclasses.dataclass(frozen=True)
class AdaptingRecipe(Recipe):
    """Constants of the training of a model over a pretrained language model.

    Attributes:
        projector_rate: Learning rate of the projectors beside the updates, as a share of theirs.
        prose: Windows of prose in a step.
        prose_weight: Weight of the divergence from the untouched model on prose.
        facts: Questions about facts in a step.
    """

    weight_decay: float = 0.0
    projector_rate: float = 0.3
    prose: int = 1
    prose_weight: float = 1.0
    facts: int = 5
    warm_up: int = 20
    save_every: int = 20


class AdaptingTrainer(Trainer):
    """A model in training over a frozen language model: the parts around it, and low-rank updates of it."""

    KIT = smol
    """Module that assembles the model and builds its processor."""

    def _build(self) -> tuple[PreTrainedModel, Writing, dict[str, int]]:
        base, tokenizer = smol.language_model()
        model = self.KIT.assemble(base, self.seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed + 2)
            low_rank.add_low_rank(model, self.KIT.RANK)
        self.processor = self.KIT.build_processor(tokenizer)
        head = self.processor.apply_chat_template([{"role": "user", "content": ""}], tokenize=False)
        end = tokenizer.eos_token

        def ids(text: str) -> list[int]:
            return tokenizer(text, add_special_tokens=False)["input_ids"]

        def exchange(question: str, answer: str) -> tuple[list[int], list[int]]:
            return ids(f"{question}{end}\n<|im_start|>assistant\n"), ids(answer + end)

        self._ids = ids
        writing = Writing(
            start=tuple(ids(head[: head.rindex(end)])),
            after=tuple(ids("\n")),
            image=self.processor.image_token_id,
            pad=tokenizer.pad_token_id,
            tile=model.config.vision_config.image_size,
            exchange=exchange,
        )
        return model, writing, self._prepare_words(model)

    def _prepare_words(self, model: PreTrainedModel) -> dict[str, int]:
        """Store the word embeddings that are the targets of visual tokens, and return the labels of patches."""
        raise NotImplementedError

    def _facts(self, random: np.random.Generator) -> tuple[tuple[str, str], ...]:
        """Return the exchanges about facts of a step."""
        asked = facts.questions(self.recipe.facts, seed=int(random.integers(2**31)), stream="training")
        return tuple((fact.text, fact.answer) for fact in asked)

    def _language_loss(self, random: np.random.Generator, progress: float) -> float:
        value = super()._language_loss(random, progress)
        self._keep_prose(random)
        return value

    def weights(self) -> dict[str, torch.Tensor]:
        """Return the tensors that training changes."""
        return low_rank.adapter(self.model) | self.model.patch_reader.state_dict(prefix="patch_reader.")

    def _keep_prose(self, random: np.random.Generator) -> None:
        """Add the gradient of the divergence of the updated model from the untouched one on prose."""
        windows = []
        while len(windows) < self.recipe.prose:
            read = prose.docstrings()
            ids = self._ids(read[random.integers(len(read))])
            if len(ids) >= PROSE_WINDOW:
                place = random.integers(len(ids) - PROSE_WINDOW + 1)
                windows.append(ids[place : place + PROSE_WINDOW])
        ids = torch.tensor(windows)
        with torch.no_grad():
            self._switch(False)
            untouched = self.worker(input_ids=ids, use_cache=False).logits.float().log_softmax(-1)
            self._switch(True)
        adapted = self.worker(input_ids=ids, use_cache=False).logits.float().log_softmax(-1)
        divergence = functional.kl_div(adapted, untouched, log_target=True, reduction="sum") / ids.numel()
        (self.recipe.prose_weight * divergence).backward()

    def _switch(self, on: bool) -> None:
        for module in self.worker.modules():
            if isinstance(module, low_rank.LowRank):
                module.on = on

    def ship(self, folder: str) -> None:
        """Write the files that ship: tower, projector and updates, in bfloat16, and the configuration."""
        low_rank.write(self.model, self.processor, folder)

    def remarks(self, model: PreTrainedModel) -> dict:
        """Compute perplexity on text and accuracy on facts, without the updates and with them."""
        measured: dict[str, dict] = {"documentation": {}, "licence": {}, "facts": {}}
        for name, some, reader in (
            ("untouched", *smol.language_model()),
            ("shipped", model, self.processor),
        ):
            some.eval()
            for text in ("documentation", "licence"):
                found = scoring.perplexity(some, reader, prose.texts()[text], 256, limit=16, progress=False)
                measured[text][name] = round(found, 2)
            scored = scoring.answers(some, reader, "facts", 200, progress=False)
            measured["facts"][name] = round(scored["choice_correct"].mean(), 4)
        return {"text": measured}

    def as_shipped(self, folder: str) -> PreTrainedModel:
        """Return the untouched language model merged with the tensors written by `ship`, in float32."""
        model = self.KIT.assemble(smol.language_model()[0])
        model.load_state_dict(zoo.merge(model.state_dict(), {}, load_file(Path(folder, zoo.ADAPTER))))
        return model.eval()


@dataclasses.dataclass(frozen=True)
class SmolRecipe(AdaptingRecipe):
    """Constants of the training of smol-llava-next, beside or instead of those of the small model.

    Attributes:
        language_horizon: Length of the schedule of the language stage in steps; the stage ends earlier.
        refinement_steps, refinement_rate: Length and largest learning rate of the second round.
        counting_steps, counting_rate: The same of the third round.
        vision_tiles: Tiles in a step of the first two stages.
        cells: (share of the language stage, cells of all single pictures of a step from there on, about), in order; the
            second round counts as share 1, the third as 2.
        pairs: The same of the pairs of pictures in a step.
        harder: Share of the language stage from which on single pictures get `HARDER` lessons.
        small: Share of the language stage with small pictures only.
    """

    vision_steps: int = 800
    alignment_steps: int = 250
    language_steps: int = 320
    language_horizon: int = 420
    refinement_steps: int = 150
    refinement_rate: float = 7e-4
    counting_steps: int = 48
    counting_rate: float = 4e-4
    vision_tiles: int = 72
    cells: tuple[tuple[float, int], ...] = ((0.0, 96), (1 / 3, 64), (2.0, 96))
    pairs: tuple[tuple[float, int], ...] = ((0.0, 1), (1 / 3, 2), (2.0, 1))
    harder: float = 0.475
    small: float = 0.25
    growth: tuple[tuple[float, int], ...] = ((0.0, 3), (0.1, 4), (0.2, 6))
    held_out: int = 200
    check_every: int = 60


class SmolTrainer(AdaptingTrainer):
    """smol-llava-next in training: tower, projector and low-rank updates, in float32."""

    STAGES = (*Trainer.STAGES, "refinement", "counting")
    CHECKED = ("language", "refinement", "counting")
    SET = "smol-vqa"

    def __init__(self, recipe: SmolRecipe, seed: int):
        super().__init__(recipe, seed, half=False)

    def _prepare_words(self, model: PreTrainedModel) -> dict[str, int]:
        rows = [f"{axis}-{number + 1}" for axis in ("row", "column") for number in range(8)]
        labels = {word: place for place, word in enumerate(dict.fromkeys((*make_vocabulary(), *rows)))}

        def embedding(text: str) -> torch.Tensor:
            (identifier,) = self._ids(text)
            return model.get_input_embeddings().weight[identifier].detach()

        table = torch.zeros(len(labels), model.config.text_config.hidden_size)
        for word, label in labels.items():
            if word in (*COLOURS, *SHAPES, "sign"):
                table[label] = embedding(f" {word}")
            elif word.startswith("letter-") or word.isdigit():
                table[label] = embedding(word.removeprefix("letter-"))
        self._words, self._mean = table, model.get_input_embeddings().weight.detach().mean(0)
        self._plain = embedding(".")
        self._across = (embedding(" right") - embedding(" left")) / 2
        self._down = (embedding(" bottom") - embedding(" top")) / 2
        with torch.no_grad():
            model.model.image_newline.copy_(embedding("\n"))
        return labels

    def _share(self, name: str) -> float | None:
        if self.STAGES[self.stage] not in self.CHECKED:
            return super()._share(name)
        if name.endswith((".down", ".up")):
            return 1.0
        return self.recipe.projector_rate if "multi_modal_projector" in name else None

    def _labelled_pictures(self, random: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        rows, columns = SINGLE_SIZES[random.integers(len(SINGLE_SIZES))]
        tiles = 1 + rows * columns // 16
        return labelled_pictures(random, self.recipe.vision_tiles // tiles, self.labels, smol.TILE, (rows, columns))

    def _alignment_loss(self, random: np.random.Generator, progress: float) -> float:
        tiles, labels = self._labelled_pictures(random)
        target = self._targets(labels)
        with torch.no_grad():
            features = patch_features(self.worker, tiles)
        tokens = self.worker.model.multi_modal_projector(features)
        loss = self._balance(((tokens - target) ** 2).mean(-1), labels.amax(-1)) / self._words.var()
        loss.backward()
        return loss.item()

    def _targets(self, labels: torch.Tensor) -> torch.Tensor:
        """Return the word embeddings of every patch as its target, `(pictures, 1 + tiles, patches, hidden)`.

        In the full view the left half of an object has the word of its colour and the right half that of its shape, so
        that a row of patches reads "red circle"; a glyph has its letter or digit. In the base view an object has the sum
        of both words and of its place.
        """
        words = self._words[labels[..., :2]]  # (pictures, tiles, patches, 2, hidden)
        first, second = words[..., 0, :], words[..., 1, :]
        edge = smol.TILE // PATCH
        patch = torch.arange(edge * edge)
        along = ((2 * (patch % edge) + 1) / edge - 1)[:, None] * self._across
        down = ((2 * (patch // edge) + 1) / edge - 1)[:, None] * self._down
        left = (patch % 2 == 0)[:, None]
        glyph = (labels[..., 2] > 0)[..., None]
        full = torch.where(glyph | ~left, second, first)
        sign = (labels[..., 1] == 0)[..., None]
        base = torch.where(sign, first, first + second - self._mean + along + down)
        target = torch.cat([base[:, :1], full[:, 1:]], dim=1)
        return torch.where((labels > 0).any(-1, keepdim=True), target, self._plain)

    def _lessons(self, random: np.random.Generator, progress: float) -> list[list[Lesson]]:
        most = at(self.recipe.growth, progress)
        # Training begins with the small pictures, which have fewer visual tokens.
        sizes = PAIR_SIZES if progress < self.recipe.small else SINGLE_SIZES
        single, paired = sizes[random.integers(len(sizes))], PAIR_SIZES[random.integers(len(PAIR_SIZES))]
        cells, pairs = at(self.recipe.cells, progress), at(self.recipe.pairs, progress)
        lessons = [
            [
                single_lesson(random, most, single, self._tasks(random, progress))
                for _ in range(max(2, round(cells / (single[0] * single[1]))))
            ],
            [pair_lesson(random, most, paired) for _ in range(pairs)],
        ]
        lessons = [
            [
                Lesson(lesson.pixels, tuple((plain(asked), plain(answer)) for asked, answer in lesson.exchanges))
                for lesson in alike
            ]
            for alike in lessons
        ]
        nothing = np.zeros((0, smol.TILE, smol.TILE, 3), dtype=np.uint8)
        return [*lessons, [Lesson(nothing, self._facts(random))]]

    def _tasks(self, random: np.random.Generator, progress: float) -> tuple[str, ...]:
        if progress < self.recipe.harder:
            return SINGLE_LESSON
        return (*(COUNTING if progress >= 2 else HARDER), EASIER[random.integers(len(EASIER))])

    def _refinement_loss(self, random: np.random.Generator, progress: float) -> float:
        return self._language_loss(random, 1.0)

    def _counting_loss(self, random: np.random.Generator, progress: float) -> float:
        return self._language_loss(random, 2.0)


def main(arguments: list[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: Command line, without the program; the process's own by default.

    Returns:
        0 when training is over, 3 when time ran out first; the same command then resumes.
    """
    return command("python -m training.adapting", f"build/{smol.NAME}", SmolRecipe(), SmolTrainer, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
