"""Benchmark evaluation: greedy exact match, choice accuracy and answer likelihood, towers and shared prefixes run once.

Greedy decoding produces an answer exactly if and only if at each of its positions, given the ones before, the answer's token
has the highest logit. So one forward pass over prompt and answer gives the greedy result and the likelihood. All questions
about a picture, a video or a sound share the key-value cache of their common prefix and run after it as one sequence
(:mod:`tamp.evaluation.shared`). Where a model gets that wrong (:mod:`tamp.evaluation.proof`), every answer takes a forward
pass of its own (:mod:`tamp.evaluation.plain`).
"""

import logging
import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch
from torch import nn

from tamp import models, onloading, passes, reading
from tamp.errors import UserError, whole
from tamp.evaluation import plain, proof, shared
from tamp.evaluation.likelihoods import Read, row
from tamp.evaluation.proof import Proof
from tamp.evaluation.questions import HELD, TOGETHER, Benchmark, nbytes, prepare, tokens
from tamp.evaluation.tables import COLUMNS, in_per_cent, overall, summarise, wilson
from tamp.reading import told
from tamp.records import Question

__all__ = [
    "COLUMNS",
    "TOGETHER",
    "Benchmark",
    "answers",
    "in_per_cent",
    "overall",
    "perplexity",
    "prepare",
    "summarise",
    "wilson",
]

Scores = list[dict[int, dict[str, Read]]]
"""By group: number of the question to answer to what was read."""

log = logging.getLogger(__name__)


@torch.no_grad()
def answers(
    model: nn.Module,
    processor,
    benchmark: str | Path | Sequence[Question] | Benchmark,
    limit: int | None = None,
    seed: int = 0,
    progress: bool = True,
    on_error: str = "raise",
) -> pd.DataFrame:
    """Score every question of a benchmark.

    Returns:
        A row per question: task, question, answer, correct (greedy decoding gives exactly the answer), choice (the choice
        with the highest likelihood, its end token aside; empty if there are no choices), choice_correct, nll (nats per
        token of the right answer, its end token included), chance. Its ``attrs["scored"]`` says how: ``"shared"``, all
        questions about the same media in one sequence; ``"plain"``, a forward pass per answer, for models that get the
        former wrong; or ``"mixed"``, where some questions do not fit the window of the model's attention. Its
        ``attrs["skipped"]`` lists the records left out, :class:`tamp.reading.Skipped` each.

    Raises:
        UserError: if the model has no language model head, or cannot run on the processor's output.
    """
    kept = isinstance(benchmark, Benchmark)
    ready = benchmark if kept else prepare(processor, benchmark, limit, seed, on_error)
    _check_lengths(model, ready)
    reading.warn(ready.skipped, "question", sum(len(group.questions) for group in ready.groups))
    known = ready.proofs.setdefault(proof.key(model), Proof())
    made: Scores | None = None
    with passes.undisturbed(model), onloading.Place(model).whole():
        if not known.wrong:
            made = _together(model, ready, known, kept, progress)
        if made is None:
            made = [{} for _ in ready.groups]
        ways = _complete(model, ready, made, known, progress)
    rows = [
        row(question, one, scores[number])
        for group, scores in zip(ready.groups, made)
        for number, (question, one) in enumerate(zip(group.questions, group.asked))
    ]
    table = pd.DataFrame(rows)
    table.attrs |= {"scored": ways, "skipped": tuple(ready.skipped or ())}
    return table


def _check_lengths(model: nn.Module, ready: Benchmark) -> None:
    """Check that every question fits the model's context with its longest answer, or leave out those that do not.

    Raises:
        UserError: naming the question.
    """
    limit = getattr(models.text_config(model), "max_position_embeddings", None) or math.inf
    for group in ready.groups:
        fitting = []
        for question, one in zip(group.questions, group.asked):
            length = group.prefix["input_ids"].shape[1] + len(one.prompt) + max(map(len, one.answers.values())) - 1
            with told(question.place, ready.skipped):
                if length > limit:
                    raise UserError(
                        f"The question {question.text[:80]!r} has {length:,} tokens with its answer; the model takes "
                        f"{limit:,}. Shorten it, or use fewer or smaller pictures."
                    )
                fitting.append((question, one))
        if len(fitting) < len(group.questions):
            group.questions, group.asked = [list(each) for each in zip(*fitting)] or [[], []]
    ready.groups = [group for group in ready.groups if group.questions]


def _together(model: nn.Module, ready: Benchmark, known: Proof, keep: bool, progress: bool) -> Scores | None:
    """Score the questions of each group in one sequence, or as many as fit; prove the first group of each kind.

    Returns:
        The scores of the questions that fit; None if the model gets them wrong.
    """
    found: Scores = []
    kept = sum(nbytes(group.decoder_call or {}) for group in ready.groups)
    for group in passes.steps(ready.groups, "evaluate", progress):
        made, wrong = {}, ""
        try:
            call = group.decoder_call or shared.decoder_call(model, group.inputs())
            sequences = shared.parts(model, group, call)
            if sequences:
                made = shared.score(model, group, call, sequences)
        except UserError:
            raise
        except Exception as error:  # whatever a family does not take: plain passes tell whether it works at all
            wrong = plain.said(error)
        if made and (kind := proof.kind(group, sequences)) not in known.kinds:
            wrong = proof.fault(model, group, call, sequences, made)
            known.kinds.add(kind)
        if wrong:
            known.refuse(model, wrong)
            for each in ready.groups:
                each.decoder_call = None
            return None
        if keep and not group.decoder_call and (kept := kept + nbytes(call)) <= HELD:
            group.decoder_call = call
        found.append(made)
    return found


def _complete(model: nn.Module, ready: Benchmark, made: Scores, known: Proof, progress: bool) -> str:
    """Score by plain forward passes what is not scored, and return how all questions were: shared, plain or mixed."""
    left = [
        (group, scores, number)
        for group, scores in zip(ready.groups, made)
        for number in range(len(group.questions))
        if number not in scores
    ]
    every = sum(len(group.questions) for group in ready.groups)
    if left and not known.wrong:
        log.warning(
            "%d of %d questions do not fit the %d tokens that the attention of %s reaches: each of their answers takes a "
            "forward pass of its own, and evaluating takes longer.",
            len(left),
            every,
            shared.window(model),
            type(model).__name__,
        )
    for group, scores, number in passes.steps(left, "evaluate", progress and bool(left)):
        with told(group.questions[number].place):
            scores[number] = plain.score(model, group, number)
    return "shared" if not left else "plain" if len(left) == every else "mixed"


@torch.no_grad()
def perplexity(
    model: nn.Module, tokenizer, text: str, window: int = 512, limit: int | None = None, progress: bool = True
) -> float:
    """Measure the perplexity of a text, cut into windows that are scored one by one.

    Args:
        model: a language model, or a multimodal one, which then gets text only.
        tokenizer: its tokenizer, or a processor that has one.
        text: the text; its last, shorter window is left out.
        window: tokens per window, each but the first of them predicted.
        limit: how many windows, from the first on; None for all.
        progress: show a bar.

    Returns:
        ``exp`` of the mean negative log-likelihood per token, nats.

    Raises:
        UserError: if the text is shorter than one window, or the model has no language model head.
    """
    if (whole(window) or 0) < 2 or (limit is not None and (whole(limit) or 0) < 1):
        raise UserError(f"A window has at least 2 tokens, and there is at least one, not {window} and {limit}.")
    window, limit = whole(window), limit if limit is None else whole(limit)
    ids = tokens(getattr(tokenizer, "tokenizer", tokenizer), text)
    windows = [ids[start : start + window] for start in range(0, len(ids) - window + 1, window)][:limit]
    if not windows:
        raise UserError(f"The text has {len(ids)} tokens, fewer than one window of {window}.")
    total, place = 0.0, onloading.Place(model)
    with place.whole():
        for each in passes.steps(windows, "perplexity", progress):
            inputs = torch.tensor([each], device=place.device)
            logits = plain.logits(model, {"input_ids": inputs})[0, :-1].float()
            total += nn.functional.cross_entropy(logits, inputs[0, 1:], reduction="sum").item()
    return math.exp(total / (len(windows) * (window - 1)))
