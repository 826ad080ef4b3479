"""Benchmark evaluation: greedy exact match, choice accuracy and answer likelihood, towers and shared prefixes run once.

Greedy decoding produces an answer exactly if and only if at each of its positions, given the ones before, the answer's token
has the highest logit. So one forward pass over prompt and answer gives the greedy result and the likelihood. All questions
about a picture, a video or a sound share the key-value cache of their common prefix and run after it as one sequence, in
which a question attends to the prefix and itself, and an answer to its own question too.
"""

import contextlib
import inspect
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

from tamp import conversations, models, records, walk
from tamp.errors import UserError
from tamp.records import Question

COLUMNS = ("task", "n", "accuracy", "low", "high", "choice_accuracy", "nll", "chance")
TOGETHER = 16  # questions that share one cached prefix


@dataclass
class Asked:
    """One question in token ids.

    Attributes:
        prompt: its prompt after the group's prefix.
        answers: ``{text: token ids, the end token included}``: the right answer first, then the other choices.
    """

    prompt: list[int]
    answers: dict[str, list[int]]


@dataclass
class Group:
    """Questions about the same pictures, videos and sounds.

    Attributes:
        questions: the questions.
        prefix: processor output of what all of them begin with, the pictures, videos and sounds included.
        asked: the questions in token ids.
        decoder_call: what the decoder is called with for the prefix, kept by a benchmark that is used again.
    """

    questions: list[Question]
    prefix: dict
    asked: list[Asked]
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
        limit: how many questions, from the first on.
        seed: random seed for drawing the questions of a shipped set.
    """
    if isinstance(benchmark, str | Path):
        made = conversations.questions(benchmark, limit, seed)
    else:
        made = list(benchmark)[:limit]
    if not made:
        raise UserError("There are no questions to evaluate.")
    same = [list(questions) for _, questions in groupby(made, key=lambda q: (id(q.images), q.videos, q.audios))]
    return Benchmark(
        [
            _group(processor, questions[start : start + TOGETHER])
            for questions in same
            for start in range(0, len(questions), TOGETHER)
        ],
    )


def _group(processor, questions: list[Question]) -> Group:
    """Encode questions about the same pictures, videos and sounds: these once, then only text."""
    tokenizer = getattr(processor, "tokenizer", processor)
    eos = tokenizer.eos_token_id
    media = questions[0].media
    prompts = [
        conversations.render(processor, conversations.dialogue(q.text, None, **media), prompt=True) for q in questions
    ]
    whole = conversations.encode(processor, prompts[0], **media)
    first = whole["input_ids"][0].tolist()
    marks = [getattr(processor, f"{kind}_token", None) for kind in records.KINDS if media[f"{kind}s"]]
    cut = max(prompts[0].rfind(mark) + len(mark) for mark in marks) if marks and all(marks) else 0
    head = first[: len(first) - len(_tokens(tokenizer, prompts[0][cut:]))] if cut else []
    # Text is tokenised apart only where this gives the very ids the processor gave.
    apart = bool(cut) and head + _tokens(tokenizer, prompts[0][cut:]) == first

    def ids_of(text: str) -> list[int]:
        if apart:
            return head + _tokens(tokenizer, text[cut:])
        return conversations.encode(processor, text, **media)["input_ids"][0].tolist()

    asked = []
    for number, (question, prompt) in enumerate(zip(questions, prompts)):
        start = first if number == 0 else ids_of(prompt)
        whole_ids = {}
        for choice in dict.fromkeys((question.answer, *question.choices)):
            full = conversations.render(processor, conversations.dialogue(question.text, choice, **media))
            whole_ids[choice] = ids_of(full if full.startswith(prompt) else prompt + choice)
        shared = min(_common(start, ids) for ids in whole_ids.values())  # tokens can join across the border
        answers = {}
        for choice, ids in whole_ids.items():
            answer = ids[shared:]
            answers[choice] = answer[: answer.index(eos) + 1] if eos in answer else [*answer, eos]
        asked.append(Asked(start[:shared], answers))
    common = min(_common(asked[0].prompt, one.prompt) for one in asked)
    common = min(common, min(len(one.prompt) for one in asked) - 1)  # something must be left to read the answer from
    length = whole["input_ids"].shape[1]
    prefix = {
        key: value[:, :common]
        if isinstance(value, Tensor) and value.ndim == 2 and value.shape == (1, length)
        else value
        for key, value in whole.items()
    }
    for one in asked:
        one.prompt = one.prompt[common:]
    return Group(questions, prefix, asked)


def _common(one: list[int], other: list[int]) -> int:
    """Count the tokens with which both begin."""
    return next((i for i, (a, b) in enumerate(zip(one, other)) if a != b), min(len(one), len(other)))


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
    scored = []
    with walk.undisturbed(model):
        for group in walk.steps(ready.groups, "evaluate", progress):
            call = group.decoder_call or _decoder_call(model, group.prefix)
            if again:
                group.decoder_call = call
            scored += _score(model, group, call)
    return pd.DataFrame(scored)


def _decoder_call(model: nn.Module, prefix: dict) -> dict:
    """Run the towers on a prefix and catch what the decoder is called with."""
    caught = {}

    def catch(module, args, kwargs):
        caught.update(kwargs)
        if args:
            caught["input_ids"] = args[0]
        raise walk.Done

    hook = model.get_decoder().register_forward_pre_hook(catch, with_kwargs=True)
    with walk.hooks(hook), contextlib.suppress(walk.Done):
        model(**models.to_model(model, prefix), use_cache=True)
    caught.pop(_cache_name(model), None)
    return caught


def _cache_name(model: nn.Module) -> str:
    """Return what a model's decoder calls its key-value cache: ``cache`` from transformers 5.24 on."""
    parameters = inspect.signature(model.get_decoder().forward).parameters
    return "past_key_values" if "past_key_values" in parameters else "cache"


def _score(model: nn.Module, group: Group, call: dict) -> list[dict]:
    """Run a group's prefix, then all its questions and answers as one sequence, and read off every question's scores.

    Raises:
        UserError: if the sequence is longer than the sliding window of the model's attention.
    """
    decoder, config = model.get_decoder(), models.text_config(model)
    cache = DynamicCache(config=config)
    decoder(**call, **{_cache_name(model): cache})
    length = cache.get_seq_length()
    device = model.get_input_embeddings().weight.device
    # Each row: token id, distance from the prefix, question, answer (0 for the prompt).
    table: list[tuple[int, int, int, int]] = []
    read: list[dict[str, list[int]]] = []  # per question: answer to the places whose logits predict its tokens
    for number, (question, one) in enumerate(zip(group.questions, group.asked)):
        table += [(token, place, number, 0) for place, token in enumerate(one.prompt)]
        last = len(table) - 1
        read.append({})
        for turn, (choice, answer) in enumerate(one.answers.items(), start=1):
            fed = answer[:-1] if choice == question.answer else answer[:-2]  # only the right answer's end is scored
            read[-1][choice] = [last, *range(len(table), len(table) + len(fed))]
            table += [(token, place, number, turn) for place, token in enumerate(fed, start=len(one.prompt))]
    ids, place, owner, branch = torch.tensor(table, device=device).unbind(1)  # (n,) each
    window = getattr(config, "sliding_window", None)
    if window and length + len(ids) > window:
        raise UserError(
            f"Prompts of {length} tokens and more do not fit the model's sliding window of {window} tokens."
        )
    seen = (owner[:, None] == owner) & ((branch == 0) | (branch[:, None] == branch))
    seen &= torch.ones_like(seen).tril()
    mask = torch.zeros(1, 1, len(ids), length + len(ids), dtype=model.dtype, device=device)
    mask[..., length:].masked_fill_(~seen, torch.finfo(model.dtype).min)
    placed = call.get("position_ids")
    positions = (place + (length if placed is None else int(placed.max()) + 1))[None]  # (1, n)
    if placed is not None and placed.ndim == 3:  # rotary embeddings with several axes: text moves along all of them
        positions = positions.expand(len(placed), 1, -1)
    wanted = sorted({at for places in read for answer in places.values() for at in answer})
    logits = (
        model(
            inputs_embeds=model.get_input_embeddings()(ids[None]),
            attention_mask=mask,
            position_ids=positions,
            use_cache=True,
            logits_to_keep=torch.tensor(wanted, device=device),
            **{_cache_name(model): cache},
        )
        .logits[0]
        .float()
    )  # (wanted, V)
    likelihood, best = logits.log_softmax(-1), logits.argmax(-1)
    row = {at: number for number, at in enumerate(wanted)}
    scored = []
    for question, one, places in zip(group.questions, group.asked, read):
        taken, greedy = {}, {}
        for choice, answer in one.answers.items():
            rows = torch.tensor([row[at] for at in places[choice]], device=device)
            targets = torch.tensor(answer[: len(rows)], device=device)
            taken[choice] = likelihood[rows, targets].cpu()
            greedy[choice] = bool((best[rows] == targets).all())
        right = taken[question.answer]
        scores = {choice: taken[choice][: len(one.answers[choice]) - 1].sum().item() for choice in question.choices}
        choice = max(scores, key=scores.get) if scores else ""
        scored.append(
            {
                "task": question.task,
                "question": question.text,
                "answer": question.answer,
                "correct": greedy[question.answer],
                "choice": choice,
                "choice_correct": float(choice == question.answer) if scores else math.nan,
                "nll": -right.mean().item(),
                "chance": 1 / len(scores) if scores else math.nan,
            }
        )
    return scored


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
        UserError: if the text is shorter than one window.
    """
    ids = _tokens(getattr(tokenizer, "tokenizer", tokenizer), text)
    windows = [ids[start : start + window] for start in range(0, len(ids) - window + 1, window)][:limit]
    if not windows:
        raise UserError(f"The text has {len(ids)} tokens, fewer than one window of {window}.")
    device = model.get_input_embeddings().weight.device
    total = 0.0
    for part in walk.steps(windows, "perplexity", progress):
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
        benchmark: a shipped benchmark (``"mini-vqa"``, ``"smol-vqa"``, ``"facts"``, ``"smol-avqa"``), a ``.jsonl`` or
            ``.json`` file of questions (see :func:`tamp.conversations.questions`), or one from :func:`prepare`.
        limit: how many questions in all; None for 1000 of a shipped benchmark, or all of a file.
        seed: random seed for drawing the questions of a shipped benchmark.
        progress: show a bar.

    Returns:
        A row per task, with shares in [0, 1]: task, n, accuracy (greedy decoding, exact match), low and high (95 % Wilson
        interval of it), choice_accuracy (restricted to the question's choices), nll (nats per answer token), chance.

    Raises:
        UserError: if there is no such benchmark, a question, picture, video or sound is not right, or the model does not
            take what the questions are about.
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
    """Return one row over all tasks of a table from :func:`evaluate`, every question counting the same."""
    n = scores["n"].sum()
    row = {name: (scores[name] * scores["n"]).sum() / n for name in ("accuracy", "choice_accuracy", "nll", "chance")}
    low, high = wilson(row["accuracy"], n)
    return pd.DataFrame([{"task": "all", "n": n, **row, "low": low, "high": high}])[list(COLUMNS)]


def in_per_cent(scores: pd.DataFrame) -> pd.DataFrame:
    """Return a table of :func:`evaluate` for reading: a last row over all tasks, shares in per cent, rounded."""
    table = pd.concat([scores, overall(scores)])
    shares = ["accuracy", "low", "high", "choice_accuracy", "chance"]
    return table.assign(**{name: (100 * table[name]).round(1) for name in shares}, nll=table["nll"].round(3))


def wilson(share, n, z: float = 1.959964):
    """Return the 95 % score interval of a share of n (Wilson 1927), (low, high)."""
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return np.clip(centre - half, 0, 1), np.clip(centre + half, 0, 1)
