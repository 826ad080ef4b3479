"""The proof that a model scores questions in one sequence as it scores each alone: one question also by plain passes.

Recurrent layers ignore the mask that keeps questions apart, some models ignore which logits are asked for, and others
prepare inputs that do not go together with a cache. None of these raises an error.
"""

import logging
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from tamp.evaluation import plain, shared
from tamp.evaluation.likelihoods import Read
from tamp.evaluation.questions import Asked, Group

ROUNDING = {torch.bfloat16: (0.05, 0.25), torch.float16: (0.01, 0.05)}
"""Mean difference per token in nats, by type of the weights: up to the first scores are the same, up to the second it may be
rounding, which makes about a third of that in a model of 30 layers."""

EXACT = (3e-5, 3e-5)
"""The same for every other type; in single precision rounding makes up to 8e-6 in 30 layers on a CPU, and may
make more on a GPU."""

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


def fault(
    model: nn.Module, group: Group, call: dict, sequences: list[list[int]], made: dict[int, dict[str, Read]]
) -> str:
    """Check one question's scores against plain forward passes.

    It is the last question of the longest sequence, into which most could leak, with its first and its last answer. Where
    they differ by what may be rounding, all other questions and answers of the sequence are exchanged: this must not change
    the scores of the last answer.

    Args:
        model: the model.
        group: the questions.
        call: of the decoder, for the prefix.
        sequences: the numbers of the questions in each sequence.
        made: the scores to check, by question and answer.

    Returns:
        How they differ by more than rounding; empty if they do not. Compared are the likelihoods of the answer's tokens and
        of the likeliest ones: where both agree, greedy decoding can differ in near-ties only.

    Raises:
        UserError: see :func:`tamp.evaluation.plain.score`.
    """
    longest = max(sequences, key=len)
    number = longest[-1]
    first, last = (list(made[number])[at] for at in (0, -1))
    sure, possible = ROUNDING.get(model.dtype, EXACT)
    far = _distance(made[number], plain.score(model, group, number, dict.fromkeys((first, last))))
    if far <= sure:
        return ""
    if not far <= possible:  # also if it is not a number
        return f"log-likelihoods differ by {far:.2g} nats per token from those of plain forward passes"
    other = shared.score(model, _exchanged(group, number), call, [longest])[number][last]
    leak = _distance(made[number], {last: other})
    return "" if leak <= sure else f"one question changes the log-likelihoods of the next by {leak:.2g} nats per token"


def _distance(made: dict[str, Read], right: dict[str, Read]) -> float:
    """Return the mean difference of log-likelihoods over the tokens of all answers in ``right``, nats."""
    pairs = [
        (getattr(made[choice], name), getattr(read, name))
        for choice, read in right.items()
        for name in ("taken", "best")
    ]
    one, other = (torch.cat(each) for each in zip(*pairs))
    every = torch.where((one == other) | (one.isnan() & other.isnan()), 0.0, (one - other).abs())
    return every.mean().item() if len(every) else 0.0


def _exchanged(group: Group, number: int) -> Group:
    """Return a group with one token in place of all others, except in a question's prompt and its last answer."""
    filler = group.asked[number].prompt[-1]

    def fill(one: Asked, kept: bool) -> Asked:
        answers = {choice: [filler] * len(ids) for choice, ids in one.answers.items()}
        if kept:
            answers |= [list(one.answers.items())[-1]]
        return Asked(one.prompt if kept else [filler] * len(one.prompt), answers)

    return replace(group, asked=[fill(one, place == number) for place, one in enumerate(group.asked)])
