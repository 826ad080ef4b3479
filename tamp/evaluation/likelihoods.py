"""What a model's logits say about the answers to a question, and the row that a question has in a table."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tamp.evaluation.questions import Asked
from tamp.records import Question


@dataclass
class Read:
    """What the logits say about one answer.

    Attributes:
        taken: (n,) log-likelihood of each of its tokens, nats.
        best: (n,) log-likelihood of the likeliest token in each place, nats.
        greedy: greedy decoding gives exactly these tokens.
    """

    taken: Tensor
    best: Tensor
    greedy: bool


def targets(question: Question, choice: str, answer: list[int]) -> list[int]:
    """Return the tokens of an answer that are scored: the end token counts in the right answer only."""
    return answer if choice == question.answer else answer[:-1]


def read(likelihoods: Tensor, ids: list[int]) -> Read:
    """Read an answer from log-likelihoods.

    Args:
        likelihoods: (n, V) log-likelihoods of all tokens, in the places that predict the answer, nats.
        ids: the answer's n tokens.
    """
    wanted = torch.tensor(ids, dtype=torch.long, device=likelihoods.device)
    best, likeliest = likelihoods.max(-1)
    taken = likelihoods.gather(1, wanted[:, None])[:, 0]
    return Read(taken.cpu(), best.cpu(), bool((likeliest == wanted).all()))


def row(question: Question, one: Asked, answers: dict[str, Read]) -> dict:
    """Return a question's row of :func:`tamp.evaluation.answers` from what was read of its answers."""
    right = answers[question.answer]
    scores = {choice: answers[choice].taken[: len(one.answers[choice]) - 1].sum().item() for choice in question.choices}
    nll = -right.taken.mean().item()
    choice = max(scores, key=scores.get) if scores and not any(map(math.isnan, scores.values())) else ""
    return {
        "task": question.task,
        "question": question.text,
        "answer": question.answer,
        "correct": right.greedy and not math.isnan(nll),
        "choice": choice,
        "choice_correct": float(choice == question.answer) if scores else math.nan,
        "nll": nll,
        "chance": 1 / len(scores) if scores else math.nan,
    }
