"""What the chapters of the book share: a model and its set, the running example, checked exercises, and their drawings."""

import dataclasses
import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib import pyplot
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from tamp import conversations, experts, loading, models, selection, streaming
from tamp.evaluation import figures
from tamp.plans import Plan
from tamp.records import Question

SEED = 7
"""Draws the picture that runs through the chapters, with its eight questions."""

FOLLOWED = 5
"""The question that is followed token by token."""


def load(name: str, device: str = "auto") -> tuple[Any, Any, str]:
    """Load a model for a chapter, and set the style of its figures.

    Args:
        name: a shipped model, a folder or a hub id.
        device: see :func:`tamp.load`.

    Returns:
        (model, processor, set): the shipped set of questions made for the model, the one in plain English for any other.
    """
    from transformers.utils import logging

    figures.style()
    logging.disable_progress_bar()  # of loading and saving
    return *loading.load(name, device), conversations.OWN_SETS.get(name, "smol-vqa")


def level(sparsity: float | str) -> dict[str, float | str]:
    """Return a chapter's ``SPARSITY``, a share or a pattern, as a field of a recipe."""
    return {"pattern": sparsity} if isinstance(sparsity, str) else {"sparsity": sparsity}


def example(source: str) -> list[Question]:
    """Return the eight questions about the picture that runs through the chapters."""
    return conversations.questions(source, 8, seed=SEED)


def fresh(folder: str) -> str:
    """Return a folder for a chapter to prune to, after removing what an earlier run of the chapter left there."""
    for old in (Path(folder), streaming.partial(folder)):
        shutil.rmtree(old, ignore_errors=True)
    return folder


def answer(model, processor, question: Question) -> str:
    """Let a model answer a question in its own words, at most twelve tokens."""
    messages = conversations.dialogue(question.text, None, question.images)
    prompt = models.to_model(model, conversations.process(processor, messages, prompt=True))
    with torch.no_grad():
        written = model.generate(**prompt, max_new_tokens=12, do_sample=False)
    words = written[:, prompt["input_ids"].shape[1] :]
    return processor.batch_decode(words, skip_special_tokens=True)[0].strip()


def digest(parts: Sequence) -> str:
    """Return eight letters that change if any whole number or truth value in some tensors or arrays does."""
    summed = hashlib.sha256()
    for part in parts:
        summed.update(np.asarray(part, dtype=np.int64).tobytes())
    return summed.hexdigest()[:8]


def check(got: Any, wanted: Any, tolerance: float = 1e-4) -> str:
    """Compare the answer to an exercise with the right one and say what is wrong with it.

    Args:
        got: a number, tensor or array; ``...`` or None while the exercise is not filled in.
        wanted: the same kind, or numbers of the same shape.
        tolerance: relative to the largest number wanted.
    """
    if got is None or got is ...:
        return "Not filled in yet."
    got, wanted = (np.asarray(each, dtype=np.float64) for each in (got, wanted))
    if got.shape != wanted.shape:
        return f"Not yet: the shape is {got.shape}, and should be {wanted.shape}."
    wrong = ~(np.abs(got - wanted) <= tolerance * np.abs(wanted).max(initial=0))
    if wrong.any():
        return f"Not yet: {wrong.sum()} of {wrong.size} values are wrong, the first {got[wrong][0]:.4g}."
    return "Right."


def replaced(plan: Plan, drops: Sequence[int]) -> Plan:
    """Return a plan that drops other numbers of weights, without a cap."""
    return dataclasses.replace(plan, drops=tuple(map(int, drops)), cap=None)


def beats(drops: Any, plan: Plan, score: Callable[[Sequence[int]], float]) -> str:
    """Compare a plan of the reader's with another one under the same budget.

    Args:
        drops: weights to drop per linear; ``...`` or None while the exercise is not filled in.
        plan: the one to beat.
        score: of some drops, the lower the better.
    """
    if drops is None or drops is ...:
        return "Not filled in yet."
    if len(drops) != len(plan.drops) or sum(drops) != sum(plan.drops):
        wanted = f"{len(plan.drops)} should drop {sum(plan.drops):,}"
        return f"Not yet: {len(drops)} linears drop {sum(drops):,} weights; {wanted}."
    if any(not 0 <= drop <= size for drop, size in zip(drops, plan.sizes)):
        return "Not yet: a linear drops fewer than no weights, or more than it has."
    mine, other = score(drops), score(plan.drops)
    return f"{'Right.' if mine < other else 'Not yet:'} NLL {mine:.2f}, and {plan.allocation} has {other:.2f}."


def similarity_figure(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Draw the similarity of the tokens that leave each kind of linear, mean over blocks, one panel per model.

    Args:
        tables: by model: a row per tensor of tokens, with the columns where (a kind of linear), vv, ll and vl; rows where
            that is "input", what enters a block, are left out.
    """
    import seaborn

    figure = Figure(figsize=(7.5, 2 * len(tables)), layout="constrained", facecolor="white")
    for axis, (name, table) in zip(figure.subplots(len(tables), 1, squeeze=False)[:, 0], tables.items()):
        kinds = table[table["where"] != "input"].groupby("where", sort=False)[["vv", "ll", "vl"]].mean()
        seaborn.heatmap(kinds.T, ax=axis, annot=True, fmt=".2f", cmap="viridis", vmin=-0.2, vmax=1, cbar=False)
        axis.set(title=name, xlabel="", ylabel="")
        axis.tick_params(axis="both", rotation=0)
    return figure


def plan_figure(
    plans: Mapping[str, Sequence[int]], sizes: Sequence[int], kinds: Sequence[str], sparsity: float
) -> Figure:
    """Draw the sparsity of every linear, one panel per plan.

    Args:
        plans: weights to drop per linear, by name.
        sizes: weights per linear.
        kinds: names of the linears of a block, in order.
        sparsity: the target, a dotted line.
    """
    figure = Figure(figsize=(9, 0.6 + 1.3 * len(plans)), layout="constrained", facecolor="white")
    axes = figure.subplots(len(plans), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    colors = [figures.LINEARS[place % len(figures.LINEARS)] for place in range(len(kinds))]
    for axis, (name, drops) in zip(axes, plans.items()):
        shares = 100 * np.array(drops) / sizes
        axis.bar(range(len(shares)), shares, color=colors * (len(shares) // len(kinds)), width=0.85, lw=0)
        axis.axhline(100 * sparsity, color="black", ls="dotted", lw=1)
        axis.set(ylabel=f"{name} (%)", ylim=(0, 100), xlim=(-0.5, len(shares) - 0.5))
        axis.spines[["top", "right"]].set_visible(False)
    middles = range(len(kinds) // 2, len(sizes), len(kinds))
    axes[-1].set_xticks(middles, range(len(middles)))
    axes[-1].set_xlabel("block")
    patches = [pyplot.Rectangle((0, 0), 1, 1, color=color) for color in colors]
    figure.legend(patches, kinds, loc="outside upper center", ncols=len(kinds), fontsize=8, frameon=False)
    return figure


def worth_figure(shares: Mapping[str, Sequence[float | None]]) -> Figure:
    """Draw what forms of a model cost, in per cent of the dense one: a panel of bars for each of disk, memory and time.

    Args:
        shares: by form: (disk, memory, time), shares of what the dense model costs; None where it was not measured.
    """
    figure = Figure(figsize=(7.5, 0.9 + 0.34 * len(shares)), layout="constrained", facecolor="white")
    axes = figure.subplots(1, 3, sharey=True)
    for axis, title, values, color in zip(
        axes, ("size on disk", "memory", "time of a product"), zip(*shares.values()), figures.LINEARS[:5:2]
    ):
        axis.barh(range(len(shares)), [100 * (value or 0) for value in values], color=color)
        for place, value in enumerate(values):
            axis.annotate(" ?" if value is None else f" {value:.0%}", (100 * (value or 0), place), va="center")
        axis.set(title=title, xlim=(0, 135), xticks=[0, 50, 100], xlabel="% of dense")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(range(len(shares)), shares)
    axes[0].invert_yaxis()
    return figure


def memory_figure(needs: Mapping[str, Mapping[str, Sequence[float]]], cards: Sequence[float]) -> Figure:
    """Draw what a device has to hold: a panel per model, a bar per place of weights and states.

    Args:
        needs: by model and place: bytes of (weights, states, transient).
        cards: memory of cards, bytes, dotted lines.
    """
    bars = max(map(len, needs.values()))
    figure = Figure(figsize=(7.5, 0.9 + (0.4 + 0.27 * bars) * len(needs)), layout="constrained", facecolor="white")
    axes = figure.subplots(len(needs), 1, sharex=True, squeeze=False)[:, 0]
    parts = dict(zip(("weights", "states", "transient"), figures.LINEARS[:5:2]))
    for axis, (model, places) in zip(axes, needs.items()):
        left = np.zeros(len(places))
        for values, color in zip(zip(*places.values()), parts.values()):
            axis.barh(range(len(places)), np.array(values) / 1e9, left=left, color=color)
            left += np.array(values) / 1e9
        for place, total in enumerate(left):
            axis.annotate(f" {total:.1f}", (total, place), va="center", bbox={"fc": "white", "ec": "none", "pad": 0.5})
        for card in cards:
            axis.axvline(card / 1e9, color="black", ls="dotted", lw=1, zorder=0)
        axis.set_title(model, loc="left", fontsize=10)
        axis.set_yticks(range(len(places)), places)
        axis.invert_yaxis()
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1].set(xlabel="GB on the GPU; dotted: memory of cards", xlim=(0, 1.03 * max(cards) / 1e9))
    axes[-1].set_xticks([card / 1e9 for card in cards], [f"{card / 1e9:.0f}" for card in cards])
    patches = [pyplot.Rectangle((0, 0), 1, 1, color=color) for color in parts.values()]
    figure.legend(patches, parts, loc="outside upper center", ncols=len(parts), frameon=False)
    return figure


def token_figure(
    model, picture: Image.Image, tokens: Sequence[str], codes: Tensor, panels: Mapping[str, Tensor]
) -> Figure:
    """Draw a number for every token of a sample with one picture: base view, full view with its newlines, words.

    Args:
        model: a LLaVA-NeXT.
        picture: of the sample.
        tokens: (T,) as text.
        codes: (T,) modality.
        panels: by name, a number per token (T,), at least 0; each panel has its own scale.
    """
    (top, left), (rows, columns) = figures.picture_grids(model, picture.size[::-1])
    visual = codes == models.VISUAL
    words = [f"{token}" for token, seen in zip(tokens, visual) if not seen]
    figure = Figure(figsize=(8.5, 2.6 * len(panels)), layout="constrained", facecolor="white")
    axes = figure.subplots(len(panels), 4, width_ratios=[3, 2, 3.2, 2.2], squeeze=False)
    for (first, *others), (name, values) in zip(axes, panels.items()):
        first.imshow(picture, interpolation="nearest")
        base, full = values[visual].float().split([top * left, rows * (columns + 1)])
        parts = base.reshape(top, left), full.reshape(rows, columns + 1), values[~visual].float()[:, None]
        for axis, part in zip(others, parts):
            axis.imshow(part, cmap="magma", vmin=0, vmax=float(values.max()), interpolation="nearest")
        for axis, title in zip((first, *others), (name, "base view", "full view | newlines", "words")):
            axis.set_title(title, fontsize=9)
            axis.set(xticks=[], yticks=[])
        others[1].axvline(columns - 0.5, color="white", lw=1.5)
        others[2].set_aspect("auto")
        others[2].set_yticks(range(len(words)), words, fontsize=7 if len(words) < 20 else 5)
        others[2].tick_params(length=0)
    return figure


def picked(tokens: str, row, options: Mapping) -> Tensor:
    """Return which tokens of a row (:class:`tamp.walk.Row`) a choice takes, for matrices that all saw the sequence as it is.

    Args:
        tokens: a name of :data:`tamp.selection.TOKENS`.
        row: one row of a step.
        options: of the choice.

    Returns:
        (matrices, T) float64, 0 for a token that does not count.
    """
    (chosen,) = selection.TOKENS[tokens].choose([row], options)
    return torch.stack([*experts.masses(row, chosen).values()])
