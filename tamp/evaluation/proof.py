"""The proof that a model scores questions in one sequence as it scores each alone: one question also by plain passes.

Recurrent layers ignore the mask that keeps questions apart, some models ignore which logits are asked for, and others
prepare inputs that do not go together with a cache. None of these raises an error.
"""

import logging
from dataclasses import dataclass, field

import torch
from torch import nn

from tamp.evaluation import plain
from tamp.evaluation.likelihoods import Read
from tamp.evaluation.questions import Group

EXACT, ROUNDED = (2e-4, 1e-5), (0.1, 0.03)
"""How far the log-likelihood of a token may be off from rounding alone, in single and in half precision: in nats, and as a
share of itself, since a token that is unlikely has a logit far from the largest."""

log = logging.getLogger(__name__)


@dataclass
class Proof:
    """What is known of a model's scores of questions in one sequence.

    Attributes:
        kinds: the kinds of groups for which they are right; see :func:`kind`.
        wrong: what is wrong with them; empty if nothing is known to be.
    """

    kinds: set[tuple] = field(default_factory=set)
    wrong: str = ""

    def refuse(self, model: nn.Module, wrong: str) -> None:
        """Record that the scores are wrong, and log it."""
        self.wrong = wrong
        log.warning(
            "%s cannot score several questions in one sequence (%s). Every answer takes a forward pass of its own: the "
            "scores are right, and evaluating takes longer.",
            type(model).__name__,
            wrong,
        )


def key(model: nn.Module) -> tuple[str, str, str]:
    """Return what tells models apart whose proofs differ: class, type of the weights, implementation of attention."""
    return type(model).__name__, str(model.dtype), str(getattr(model.config, "_attn_implementation", ""))


def kind(group: Group, sequences: list[list[int]]) -> tuple:
    """Return the kind of a group: the inputs of its prefix, and whether any of its questions share a sequence."""
    return tuple(sorted(group.prefix)), max(map(len, sequences)) > 1


def fault(model: nn.Module, group: Group, sequences: list[list[int]], made: dict[int, dict[str, Read]]) -> str:
    """Compare one question's scores with those of plain forward passes.

    It is the last question of the longest sequence, into which most could leak, with its first and its last answer.

    Args:
        model: the model.
        group: the questions.
        sequences: the numbers of the questions in each sequence.
        made: the scores to check, by question and answer.

    Returns:
        How they differ by more than rounding; empty if they do not. Greedy decoding compares the likelihoods of an answer's
        tokens and of the likeliest ones, so it can differ in near-ties only where these two agree.

    Raises:
        UserError: see :func:`tamp.evaluation.plain.score`.
    """
    number = max(sequences, key=len)[-1]
    answers = list(made[number])
    allowed = EXACT if model.dtype in (torch.float32, torch.float64) else ROUNDED
    worst = 0.0
    for choice, right in plain.score(model, group, number, dict.fromkeys((answers[0], answers[-1]))).items():
        for name in ("taken", "best"):
            one, other = getattr(made[number][choice], name), getattr(right, name)
            if not torch.allclose(one, other, atol=allowed[0], rtol=allowed[1], equal_nan=True):
                worst = max(worst, (one - other).abs().nan_to_num(nan=torch.inf).max().item())
    return f"the log-likelihood of a token differs by {worst:.2g} nats" if worst else ""
