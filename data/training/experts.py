"""The training of mini-llava-next with a mixture of experts: `python -m training.experts --out build/mini-experts`.

The stages, pictures and questions are those of the small model. Every block holds eight experts, of which a router chooses
two per token. A small term of the loss keeps the router from using only some of them.
"""

import dataclasses

import torch
from transformers import LlavaNextForConditionalGeneration, MixtralConfig

from training.building import build_model
from training.lessons import Rows, Writing
from training.running import command
from training.trainer import Recipe, Trainer

EXPERTS, CHOSEN, WIDTH = 8, 2, 128
"""Experts of a block, those a token is routed to, and the width of an expert's MLP."""


@dataclasses.dataclass(frozen=True)
class ExpertsRecipe(Recipe):
    """Constants of the training with experts.

    Attributes:
        evenness: Weight of the term that evens out the use of the experts.
    """

    evenness: float = 0.02
    language_steps: int = 1000


class ExpertsTrainer(Trainer):
    """A model with experts in training."""

    def __init__(self, recipe: ExpertsRecipe, seed: int, half: bool = True):
        """Start from scratch; see :class:`Trainer`."""
        super().__init__(recipe, seed, half)
        self._routed: list[torch.Tensor] = []
        for block in self.worker.model.language_model.layers:
            block.mlp.gate.register_forward_hook(lambda gate, inputs, outputs: self._routed.append(outputs[0]))

    def _build(self) -> tuple[LlavaNextForConditionalGeneration, Writing, dict[str, int]]:
        _, writing, labels = super()._build()
        model = build_model(
            self.seed,
            MixtralConfig,
            intermediate_size=WIDTH,
            num_local_experts=EXPERTS,
            num_experts_per_tok=CHOSEN,
        )
        return model, writing, labels

    def _answer_logits(self, batch: Rows) -> torch.Tensor:
        self._routed.clear()
        return super()._answer_logits(batch)

    def _beside(self, batch: Rows) -> torch.Tensor:
        tokens = (batch.exchange >= 0).flatten()
        return self.recipe.evenness * torch.stack([unevenness(logits[tokens]) for logits in self._routed]).mean()


def unevenness(logits: torch.Tensor) -> torch.Tensor:
    """Compute how unevenly a router uses its experts, the auxiliary loss of Switch Transformers (arXiv 2101.03961).

    Args:
        logits: Of the router, `(tokens, experts)`.

    Returns:
        Number of experts times the sum over them of the share of choices and the mean probability; 1 if both are even.
    """
    chances = logits.float().softmax(-1)
    chosen = torch.zeros_like(chances).scatter(1, chances.topk(CHOSEN).indices, 1 / CHOSEN)
    return chances.shape[1] * (chosen.mean(0) * chances.mean(0)).sum()


def main(arguments: list[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: Command line, without the program; the process's own by default.

    Returns:
        0 when training is over, 3 when time ran out first; the same command then resumes.
    """
    return command("python -m training.experts", "build/training-experts", ExpertsRecipe(), ExpertsTrainer, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
