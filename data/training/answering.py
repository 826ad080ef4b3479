"""Answers of a model in training: visual tokens of many pictures at once, packed questions, exact match."""

import math

import numpy as np
import torch
from transformers import LlavaNextForConditionalGeneration, PreTrainedModel

from tamp.records import Question
from tamp.worlds.pictures import TASKS
from training.lessons import Lesson, Packed, Rows, Writing, pack


def visual_tokens(
    model: LlavaNextForConditionalGeneration, tiles: torch.Tensor, split: tuple[int, int]
) -> torch.Tensor:
    """Compute the visual tokens of pictures of one size in one go.

    Args:
        model: The model.
        tiles: Float `(pictures, 1 + tiles, 3, tile, tile)`.
        split: Rows and columns of tiles.

    Returns:
        `(pictures, tokens, hidden)`, equal to `model.get_image_features`, which packs pictures one by one.
    """
    features = model.model.multi_modal_projector(patch_features(model, tiles))
    base, full = features[:, 0], features[:, 1:]
    count, _, patches, hidden = full.shape
    (down, across), edge = split, math.isqrt(patches)
    rows = full.reshape(count, down, across, edge, edge, hidden).transpose(2, 3)
    rows = rows.reshape(count, down * edge, across * edge, hidden)
    newlines = model.model.image_newline.expand(count, down * edge, 1, hidden)
    return torch.cat([base, torch.cat([rows, newlines], dim=2).flatten(1, 2)], dim=1)


def patch_features(model: LlavaNextForConditionalGeneration, tiles: torch.Tensor) -> torch.Tensor:
    """Compute the tower's features of tiles: `(pictures, 1 + tiles, patches, width)`, without the class token."""
    tower = model.model.vision_tower
    states = tower(tiles.flatten(0, 1).to(tower.dtype)).last_hidden_state[:, 1:]
    return states.unflatten(0, tiles.shape[:2])


def answer_logits(model: LlavaNextForConditionalGeneration, batch: Packed) -> torch.Tensor:
    """Compute the logits of the answers in packed lessons; see :func:`read_answers`."""
    embedded = model.get_input_embeddings()(batch.token_ids)
    if len(batch.tiles):
        visual = visual_tokens(model, batch.tiles, batch.split).to(embedded.dtype)
        embedded = embedded.masked_scatter(batch.pictured[..., None], visual)
    return read_answers(model, batch, embedded)


def read_answers(model: PreTrainedModel, rows: Rows, embedded: torch.Tensor) -> torch.Tensor:
    """Compute the logits at the positions whose next token belongs to an answer.

    Args:
        model: Any model around a language model.
        rows: The questions.
        embedded: Input embeddings of the decoder, `(rows, length, hidden)`.

    Returns:
        Float32 `(answer tokens, vocabulary)`, in the order of `rows.targets[rows.targets >= 0]`.
    """
    mask = torch.zeros(rows.visible.shape, dtype=embedded.dtype)
    mask.masked_fill_(~rows.visible, torch.finfo(embedded.dtype).min)
    states = model.model.language_model(
        inputs_embeds=embedded, attention_mask=mask[:, None], position_ids=rows.position_ids, use_cache=False
    ).last_hidden_state
    return model.lm_head(states[rows.targets >= 0]).float()


def as_lesson(asked: list[Question]) -> Lesson:
    """Return questions about the same pictures as a lesson."""
    pixels = np.stack([np.asarray(image) for image in asked[0].images])
    return Lesson(pixels, tuple((question.text, question.answer) for question in asked))


def _form(question: Question) -> tuple:
    return len(question.images), question.images[0].size


@torch.no_grad()
def accuracy(model: LlavaNextForConditionalGeneration, asked: list[Question], writing: Writing) -> dict:
    """Compute exact match per task.

    An answer is right when greedy generation would give it: every token, the end included, is the most likely one
    after the right tokens before it.

    Args:
        model: The model.
        asked: The questions.
        writing: Format of the token ids.

    Returns:
        Task to (right, asked).
    """
    groups: list[list[Question]] = []
    for question in asked:
        if not groups or groups[-1][0].images is not question.images:
            groups.append([])
        groups[-1].append(question)
    tally: dict[str, list[int]] = {task: [0, 0] for task in TASKS}
    for form in sorted({_form(group[0]) for group in groups}):
        alike = [group for group in groups if _form(group[0]) == form]
        for start in range(0, len(alike), 16):
            chunk = alike[start : start + 16]
            batch = pack([as_lesson(group) for group in chunk], writing)
            wanted = batch.targets >= 0
            right = torch.ones_like(wanted)
            right[wanted] = answer_logits(model, batch).argmax(-1) == batch.targets[wanted]
            for row, group in enumerate(chunk):
                for number, question in enumerate(group, start=1):
                    tally[question.task][0] += bool(right[row][batch.exchange[row] == number].all())
                    tally[question.task][1] += 1
    return {task: (right, count) for task, (right, count) in tally.items() if count}
