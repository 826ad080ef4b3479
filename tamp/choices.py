"""Choices of tokens that take one look at a sequence, and what a choice means for a matrix that saw only part of it."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor


def text(modality: Tensor, code: int) -> Tensor:
    """Select the tokens of one modality, (T,) to (T,) bool."""
    return modality == code


def everything(modality: Tensor) -> Tensor:
    """Select every token that is not padding, (T,) to (T,) bool."""
    return modality >= 0


def atv(before: Tensor, after: Tensor, modality: Tensor, text: int, alpha: float = 1.0) -> Tensor:
    """Select all text tokens, and those of the others that a block moves most (ATV, arXiv 2603.16001).

    A token's drift is one minus the cosine between what enters the block and what leaves it. As many are taken as
    ``min(1, alpha * mean drift of the others)`` times the number of text tokens, rounded.

    Args:
        before: (T, d), what enters the block.
        after: (T, d), what leaves it.
        modality: (T,), a whole number per token, negative = padding.
        text: the number that stands for text.
        alpha: how many tokens a drift is worth.

    Returns:
        (T,) bool, True = picked.
    """
    words = modality == text
    others = everything(modality) & ~words
    drift = 1 - torch.nn.functional.cosine_similarity(before.float(), after.float(), dim=-1)  # (T,)
    mean = drift[others].mean() if others.any() else drift.new_zeros(())
    count = min(round((alpha * mean).clamp(0, 1).item() * int(words.sum())), int(others.sum()))
    chosen = words.clone()
    chosen[drift.masked_fill(~others, -math.inf).topk(count).indices] = True
    return chosen


def balanced(modality: Tensor, text: int, share: float = 0.5) -> Tensor:
    """Give text and everything else their shares of the mass of a sequence, the same for each token of either.

    Visual tokens are many and alike; in a plain mean they drown the text.

    Args:
        modality: (T,), a whole number per token, negative = padding.
        text: the number that stands for text.
        share: of text, in [0, 1].

    Returns:
        (T,) float32, with a mean of one over the tokens that are not padding; all ones where there is but one kind.
    """
    words, every = modality == text, everything(modality)
    others = every & ~words
    if not words.any() or not others.any():
        return every.float()
    total = every.sum()
    return words * (share * total / words.sum()) + others * ((1 - share) * total / others.sum())


def by_matrix(row, chosen: Tensor | Mapping[str, Tensor] | None) -> Mapping[str, Tensor | None]:
    """Say for every matrix of a row which of the tokens it saw count.

    Args:
        row: a :class:`tamp.walk.Row`.
        chosen: (T,) over the sequence, bool or a mass per token; (matrices, T); or already one per matrix by name; None for
            every token.

    Returns:
        ``{name: (t,) bool}``, or None for every token. Tokens that are not of the sequence always count.
    """
    if chosen is None:
        return dict.fromkeys(row.inputs)
    if isinstance(chosen, Mapping):
        return chosen
    if chosen.ndim == 2:
        return {
            name: mask if name not in row.places else _at(mask, row.places[name])
            for name, mask in zip(row.inputs, chosen)
        }
    if chosen.dtype == torch.long:  # a mass; whole numbers by name are positions
        chosen = chosen.float()
    masks = {}
    for names, places in row.groups():
        masks |= dict.fromkeys(names, chosen if places is None else _at(chosen, places))
    return masks


def _at(chosen: Tensor, places: Tensor) -> Tensor:
    """Look up which tokens count at some positions (t,), -1 for what is not of the sequence."""
    if chosen.dtype != torch.bool:
        return torch.where(places < 0, 1.0, chosen[places.clamp(min=0)])
    return (places < 0) | chosen[places.clamp(min=0)]
