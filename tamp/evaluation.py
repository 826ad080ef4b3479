"""Benchmark evaluation: greedy exact match, choice accuracy and answer likelihood, towers and picture prefixes run once.

Greedy decoding produces an answer exactly if and only if at each of its positions, given the ones before, the answer's token
has the highest logit. So one forward pass over prompt and answer tells the greedy result and the likelihood, and all
questions about a picture share the key-value cache of their common prefix.
"""

import contextlib
import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from transformers import DynamicCache

from tamp import calibration, conversations, models
from tamp.errors import UserError
from tamp.shipped.pictures import Question

COLUMNS = ("task", "n", "accuracy", "low", "high", "choice_accuracy", "nll", "chance")
TOGETHER = 16  # questions that share one cached prefix
CACHED_TOKENS = 2**15  # copies of a prefix times its tokens: bounds the copied cache, 4 GiB for Llama 3 8B


@dataclass
class Row:
    """One continuation of a group's prefix: prompt, then one possible answer.

    Attributes:
        question: position of the question in its group.
        ids: token ids after the prefix, the answer's included.
        answer: how many of the last ids are the answer's, its end token included.
        choice: the answer's text.
    """

    question: int
    ids: list[int]
    answer: int
    choice: str


@dataclass
class RowScore:
    """What the model made of a row.

    Attributes:
        likelihoods: (answer,) log-probability of each of the answer's tokens, its end token included.
        greedy: whether each of them has the highest logit.
        first: for a question's right answer, the log-probability of every choice's first token after the prompt.
    """

    likelihoods: Tensor
    greedy: bool
    first: dict[str, float]


@dataclass
class Group:
    """Questions about the same pictures.

    Attributes:
        questions: the questions.
        prefix: processor output of what all of them begin with, the pictures included.
        rows: continuations: every question's right answer, and its choices of more than one token.
        first_token: per question ``{choice: id}``, the first token of each choice.
        decoder_call: what the decoder is called with for the prefix, kept by a benchmark that is used again.
    """

    questions: list[Question]
    prefix: dict
    rows: list[Row]
    first_token: list[dict[str, int]]
    decoder_call: dict | None = None


@dataclass
class Benchmark:
    """Questions made ready for one processor.

    Evaluating it keeps the towers' outputs, so it may be used again only with models that share them: the pruned versions
    of one model.
    """

    groups: list[Group]


def prepare(
    processor, benchmark: str | Path | Sequence[Question], limit: int | None = None, seed: int = 0
) -> Benchmark:
    """Make a benchmark's questions ready for a processor.

    Args:
        processor: of the model to evaluate.
        benchmark: see :func:`evaluate`, or a list of questions.
        limit: how many questions.
        seed: of the questions of a shipped set.
    """
    if isinstance(benchmark, str | Path):
        made = conversations.questions(benchmark, limit, seed)
    else:
        made = list(benchmark)[:limit]
    if not made:
        raise UserError("There are no questions to evaluate.")
    same = [list(questions) for _, questions in groupby(made, key=lambda question: id(question.images))]
    return Benchmark(
        [
            _group(processor, questions[start : start + TOGETHER])
            for questions in same
            for start in range(0, len(questions), TOGETHER)
        ],
    )


def _group(processor, questions: list[Question]) -> Group:
    """Encode questions about the same pictures: the pictures once, then only text."""
    tokenizer = getattr(processor, "tokenizer", processor)
    eos = tokenizer.eos_token_id
    images = questions[0].images
    prompts = [
        conversations.render(processor, conversations.dialogue(q.text, None, images), prompt=True) for q in questions
    ]
    whole = conversations.encode(processor, prompts[0], images)
    first = whole["input_ids"][0].tolist()
    mark = getattr(processor, "image_token", None)
    cut = prompts[0].rfind(mark) + len(mark) if images and mark else 0
    head = first[: len(first) - len(_tokens(tokenizer, prompts[0][cut:]))] if cut else []
    # Text is tokenised apart only where this gives the very ids the processor gave.
    apart = bool(cut) and head + _tokens(tokenizer, prompts[0][cut:]) == first

    def ids_of(text: str) -> list[int]:
        if apart:
            return head + _tokens(tokenizer, text[cut:])
        return conversations.encode(processor, text, images)["input_ids"][0].tolist()

    rows, first_token = [], []
    for number, (question, prompt) in enumerate(zip(questions, prompts)):
        start = first if number == 0 else ids_of(prompt)
        answers = {}
        for choice in dict.fromkeys((question.answer, *question.choices)):
            full = conversations.render(processor, conversations.dialogue(question.text, choice, images))
            ids = ids_of(full if full.startswith(prompt) else prompt + choice)
            shared = next((i for i, (a, b) in enumerate(zip(start, ids)) if a != b), len(start))
            answer = ids[shared:]
            answer = answer[: answer.index(eos) + 1] if eos in answer else [*answer, eos]
            answers[choice] = (ids[:shared], answer)
        first_token.append({choice: answer[0] for choice, (_, answer) in answers.items() if choice in question.choices})
        for choice, (start_ids, answer) in answers.items():
            if choice == question.answer or len(answer) > 2:
                rows.append(Row(number, start_ids + answer, len(answer), choice))
    shortest = min(len(row.ids) - row.answer for row in rows) - 1
    common = next((i for i in range(shortest) if any(row.ids[i] != rows[0].ids[i] for row in rows)), shortest)
    length = whole["input_ids"].shape[1]
    prefix = {
        key: value[:, :common]
        if isinstance(value, Tensor) and value.ndim == 2 and value.shape == (1, length)
        else value
        for key, value in whole.items()
    }
    for row in rows:
        row.ids = row.ids[common:]
    return Group(questions, prefix, rows, first_token)


def _tokens(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@torch.no_grad()
def answers(
    model: nn.Module,
    processor,
    benchmark: str | Path | Sequence[Question] | Benchmark,
    limit: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """Score every question of a benchmark.

    Returns:
        A row per question: task, question, answer, correct (greedy decoding gives exactly the answer), choice (the choice
        with the highest likelihood, its end token aside; empty if there are no choices), choice_correct, nll (nats per
        token of the right answer, its end token included), chance.
    """
    again = isinstance(benchmark, Benchmark)
    ready = benchmark if again else prepare(processor, benchmark, limit, seed)
    records = []
    training = model.training
    model.eval()
    try:
        for group in calibration.steps(ready.groups, "evaluate", progress):
            call = group.decoder_call or _decoder_call(model, group.prefix)
            if again:
                group.decoder_call = call
            records += _score(model, group, call)
    finally:
        model.train(training)
    return pd.DataFrame(records)


def _decoder_call(model: nn.Module, prefix: dict) -> dict:
    """Run the towers on a prefix and catch what the decoder is called with."""
    caught = {}

    def catch(module, args, kwargs):
        caught.update(kwargs)
        if args:
            caught["input_ids"] = args[0]
        raise calibration.Done

    hook = model.get_decoder().register_forward_pre_hook(catch, with_kwargs=True)
    with calibration.hooks(hook), contextlib.suppress(calibration.Done):
        model(**calibration.to_model(model, prefix), use_cache=True)
    caught.pop("past_key_values", None)
    return caught


def _score(model: nn.Module, group: Group, call: dict) -> list[dict]:
    """Run a group's prefix and continuations and read off every question's scores."""
    decoder, fresh = model.get_decoder(), DynamicCache(config=models.text_config(model))
    cache = decoder(**call, past_key_values=fresh).past_key_values
    together = max(1, CACHED_TOKENS // cache.get_seq_length())
    rows: list[RowScore] = []
    for start in range(0, len(group.rows), together):
        rows += _score_rows(model, group, group.rows[start : start + together], call, copy.deepcopy(cache))
    records = []
    for number, question in enumerate(group.questions):
        mine = {row.choice: scored for row, scored in zip(group.rows, rows) if row.question == number}
        right = mine[question.answer]
        # Without its end token a choice of one token needs no row of its own: the prompt's next token tells.
        scores = right.first | {
            choice: scored.likelihoods[:-1].sum().item()
            for choice, scored in mine.items()
            if choice in right.first and len(scored.likelihoods) > 2
        }
        choice = max(scores, key=scores.get) if scores else ""
        records.append(
            {
                "task": question.task,
                "question": question.text,
                "answer": question.answer,
                "correct": right.greedy,
                "choice": choice,
                "choice_correct": float(choice == question.answer) if scores else math.nan,
                "nll": -right.likelihoods.mean().item(),
                "chance": 1 / len(scores) if scores else math.nan,
            }
        )
    return records


def _score_rows(model: nn.Module, group: Group, rows: list[Row], call: dict, cache: DynamicCache) -> list[RowScore]:
    """Run continuations of one cached prefix as a batch.

    Continuations are padded on the left: their answers end together, and only the last logits are needed.
    """
    device = model.get_input_embeddings().weight.device
    length = cache.get_seq_length()
    cache.batch_repeat_interleave(len(rows))
    longest = max(len(row.ids) for row in rows)
    pad = torch.tensor([longest - len(row.ids) for row in rows], device=device)
    ids = torch.tensor([[0] * (longest - len(row.ids)) + row.ids for row in rows], device=device)  # (rows, longest)
    steps = torch.arange(longest, device=device)
    mask = torch.cat([torch.ones(len(ids), length, device=device), steps >= pad[:, None]], 1).long()
    placed = call.get("position_ids")
    start = length if placed is None else int(placed.max()) + 1
    positions = (start + steps - pad[:, None]).clamp(min=start)  # (rows, longest)
    if placed is not None and placed.ndim == 3:  # rotary embeddings with several axes: text moves along all of them
        positions = positions.expand(len(placed), -1, -1)
    last = max(row.answer for row in rows)
    logits = model(
        inputs_embeds=model.get_input_embeddings()(ids),
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=last + 1,
    ).logits.float()[:, :-1]  # (rows, last, V)
    likelihood = logits.log_softmax(-1)
    targets = ids[:, -last:]
    taken = likelihood.gather(2, targets[..., None])[..., 0].cpu()  # (rows, last)
    greedy = (logits.argmax(-1) == targets).cpu()
    return [
        RowScore(
            likelihoods=taken[number, -row.answer :],
            greedy=bool(greedy[number, -row.answer :].all()),
            first={
                choice: likelihood[number, -row.answer, identifier].item()
                for choice, identifier in group.first_token[row.question].items()
            }
            if row.choice == group.questions[row.question].answer
            else {},
        )
        for number, row in enumerate(rows)
    ]


@torch.no_grad()
def perplexity(model: nn.Module, tokenizer, text: str, window: int = 512, progress: bool = True) -> float:
    """Measure the perplexity of a text, cut into windows that the model sees one by one.

    Args:
        model: a language model, or a multimodal one, which then sees text only.
        tokenizer: its tokenizer, or a processor that has one.
        text: the text; its last, shorter window is left out.
        window: tokens per window, each but the first of them predicted.

    Returns:
        ``exp`` of the mean negative log-likelihood per token, nats.

    Raises:
        UserError: if the text is shorter than one window.
    """
    ids = _tokens(getattr(tokenizer, "tokenizer", tokenizer), text)
    windows = [ids[start : start + window] for start in range(0, len(ids) - window + 1, window)]
    if not windows:
        raise UserError(f"The text has {len(ids)} tokens, fewer than one window of {window}.")
    device = model.get_input_embeddings().weight.device
    total = 0.0
    for part in calibration.steps(windows, "perplexity", progress):
        tokens = torch.tensor([part], device=device)
        logits = model(input_ids=tokens, use_cache=False).logits[0, :-1].float()
        total += nn.functional.cross_entropy(logits, tokens[0, 1:], reduction="sum").item()
    return math.exp(total / (len(windows) * (window - 1)))


def evaluate(
    model: nn.Module,
    processor,
    benchmark: str | Path | Benchmark,
    limit: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """Evaluate a model on a benchmark.

    Args:
        model: a model from :func:`tamp.load`, pruned or not.
        processor: its processor.
        benchmark: a shipped benchmark (``"mini-vqa"``), a ``.jsonl`` or ``.json`` file of questions (see
            :func:`tamp.conversations.questions`), or one from :func:`prepare`.
        limit: how many questions in all; None for 1000 of a shipped benchmark, or all of a file.
        seed: of a shipped benchmark's questions.
        progress: show a bar.

    Returns:
        A row per task, with shares in [0, 1]: task, n, accuracy (greedy decoding, exact match), low and high (95 % Wilson
        interval of it), choice_accuracy (restricted to the question's choices), nll (nats per answer token), chance.

    Raises:
        UserError: if there is no such benchmark, or a question or picture is not right.
    """
    return summarise(answers(model, processor, benchmark, limit, seed, progress))


def summarise(scored: pd.DataFrame, by: str = "task") -> pd.DataFrame:
    """Average question scores from :func:`answers` per task, in order of appearance, to the table of :func:`evaluate`."""
    table = (
        scored.groupby(by, sort=False)
        .agg(
            n=("correct", "size"),
            accuracy=("correct", "mean"),
            choice_accuracy=("choice_correct", "mean"),
            nll=("nll", "mean"),
            chance=("chance", "mean"),
        )
        .reset_index()
    )
    table["low"], table["high"] = wilson(table["accuracy"], table["n"])
    return table[list(COLUMNS)]


def overall(scores: pd.DataFrame) -> pd.DataFrame:
    """Put all tasks of a table from :func:`evaluate` into one row, every question counting the same."""
    n = scores["n"].sum()
    row = {name: (scores[name] * scores["n"]).sum() / n for name in ("accuracy", "choice_accuracy", "nll", "chance")}
    low, high = wilson(row["accuracy"], n)
    return pd.DataFrame([{"task": "all", "n": n, **row, "low": low, "high": high}])[list(COLUMNS)]


def wilson(share, n, z: float = 1.959964):
    """Return the 95 % score interval of a share of n (Wilson 1927), (low, high)."""
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return np.clip(centre - half, 0, 1), np.clip(centre + half, 0, 1)
