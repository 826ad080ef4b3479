"""Scoring a group's questions at once: the prefix is encoded once, and all questions and answers follow as one sequence.

A question attends to the prefix and to itself, an answer to its own question too. Models that do not look at the mask get
this wrong: :mod:`tamp.evaluation.proof` compares with plain forward passes.
"""

import contextlib
import copy
import inspect

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from tamp import models, passes
from tamp.evaluation.likelihoods import Read, read, targets
from tamp.evaluation.questions import Group

NEAR = {"sliding_window": "sliding_attention", "attention_chunk_size": "chunked_attention", "index_topk": None}
"""Settings that bound what attention reaches, and the layers that they concern; None for all."""


def decoder_call(model: nn.Module, prefix: dict) -> dict:
    """Run the towers on a prefix and return what the decoder is called with, by argument."""
    caught = {}
    decoder = models.decoder(model)

    def catch(module, args, kwargs):
        caught.update(inspect.signature(module.forward).bind_partial(*args).arguments, **kwargs)
        raise passes.Done

    hook = decoder.register_forward_pre_hook(catch, with_kwargs=True)
    with passes.hooks(hook), contextlib.suppress(passes.Done):
        models.speaker(model)(**models.to_model(model, prefix), use_cache=True)
    caught.pop(_cache_name(decoder), None)
    return caught


def _cache_name(decoder: nn.Module) -> str:
    """Return what a decoder calls its key-value cache: ``cache`` from transformers 5.24 on."""
    parameters = inspect.signature(decoder.forward).parameters
    return "past_key_values" if "past_key_values" in parameters else "cache"


def _length(call: dict) -> int:
    """Return the number of tokens that a call of the decoder is about."""
    given = call.get("inputs_embeds")
    return (call["input_ids"] if given is None else given).shape[1]


def window(model: nn.Module) -> int | None:
    """Return the number of tokens in which every token attends to all before it; None if there is no bound."""
    config = models.text_config(model)
    kinds = getattr(config, "layer_types", None)
    sizes = [getattr(config, name, None) for name, kind in NEAR.items() if not (kinds and kind) or kind in kinds]
    return min((size for size in sizes if size), default=None)


def parts(model: nn.Module, group: Group, call: dict) -> list[list[int]]:
    """Divide a group's questions into sequences that fit the window of the model's attention, behind the prefix.

    Returns:
        The numbers of the questions in each sequence; a question that does not even fit alone is in none.
    """
    every = [
        len(one.prompt) + sum(len(targets(question, *answer)[:-1]) for answer in one.answers.items())
        for question, one in zip(group.questions, group.asked)
    ]
    bound = window(model)
    room = sum(every) if bound is None else bound - _length(call)
    made, left = [], 0
    for number, size in enumerate(every):
        if size > room:
            continue
        if not made or size > left:
            made.append([])
            left = room
        made[-1].append(number)
        left -= size
    return made


def score(model: nn.Module, group: Group, call: dict, sequences: list[list[int]]) -> dict[int, dict[str, Read]]:
    """Run a group's prefix, then its questions and answers, a sequence after the other.

    Args:
        model: the model.
        group: the questions.
        call: of the decoder, for the prefix; see :func:`decoder_call`.
        sequences: see :func:`parts`.

    Returns:
        ``{number of the question: {answer: what was read}}``.
    """
    decoder = models.decoder(model)
    cache = DynamicCache(config=models.text_config(model))
    decoder(**call, **{_cache_name(decoder): cache})
    found = {}
    for turn, numbers in enumerate(sequences, start=1):
        again = copy.deepcopy(cache) if turn < len(sequences) else cache
        found |= _sequence(model, group, call, numbers, {_cache_name(decoder): again})
    return found


def _sequence(
    model: nn.Module, group: Group, call: dict, numbers: list[int], cache: dict
) -> dict[int, dict[str, Read]]:
    """Run questions and their answers as one sequence behind a cached prefix, and read what it says of every answer."""
    part = models.speaker(model)
    device = part.get_input_embeddings().weight.device
    length = _length(call)
    # Each row: token id, distance from the prefix, question, answer (0 for the prompt).
    table: list[tuple[int, int, int, int]] = []
    places: dict[tuple[int, str], list[int]] = {}  # of a question and an answer, whose logits predict its tokens
    for number in numbers:
        question, one = group.questions[number], group.asked[number]
        table += [(token, place, number, 0) for place, token in enumerate(one.prompt)]
        last = len(table) - 1
        for turn, (choice, answer) in enumerate(one.answers.items(), start=1):
            ids = targets(question, choice, answer)
            places[number, choice] = [last, *range(len(table), len(table) + len(ids) - 1)][: len(ids)]
            table += [(token, place, number, turn) for place, token in enumerate(ids[:-1], start=len(one.prompt))]
    ids, place, owner, branch = torch.tensor(table, device=device).unbind(1)  # (n,) each
    seen = (owner[:, None] == owner) & ((branch == 0) | (branch[:, None] == branch))
    seen &= torch.ones_like(seen).tril()
    mask = torch.zeros(1, 1, len(ids), length + len(ids), dtype=model.dtype, device=device)
    mask[..., length:].masked_fill_(~seen, torch.finfo(model.dtype).min)
    wanted = sorted({at for answer in places.values() for at in answer})
    keep = torch.tensor(wanted, device=device)
    chosen = {"logits_to_keep": keep} if "logits_to_keep" in inspect.signature(part.forward).parameters else {}
    logits = part(
        input_ids=ids[None],
        attention_mask=mask,
        position_ids=_positions(call, place),
        use_cache=True,
        **chosen,
        **cache,
    ).logits[0]
    if len(logits) != len(wanted):  # those of all places
        logits = logits[keep]
    likelihoods = logits.float().log_softmax(-1)  # (wanted, V)
    row = {at: number for number, at in enumerate(wanted)}
    found: dict[int, dict[str, Read]] = {number: {} for number in numbers}
    for (number, choice), answer in places.items():
        question, one = group.questions[number], group.asked[number]
        rows = torch.tensor([row[at] for at in answer], dtype=torch.long, device=device)
        found[number][choice] = read(likelihoods[rows], targets(question, choice, one.answers[choice]))
    return found


def _positions(call: dict, place: Tensor) -> Tensor:
    """Return the positions of tokens from their distance to the prefix, place (n,): (1, n), or (axes, 1, n)."""
    placed = call.get("position_ids")
    positions = (place + (_length(call) if placed is None else int(placed.max()) + 1))[None]
    if placed is not None and placed.ndim == 3:  # rotary embeddings with several axes: text moves along all of them
        return positions.expand(len(placed), 1, -1)
    return positions
