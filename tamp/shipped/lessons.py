"""Tensors to train the shipped model on: picture tiles, patch labels, and packed questions."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch

from tamp.shipped.drawing import PATCH
from tamp.shipped.pictures import EDGE, GRID, Scene, ask, ask_pair, make_pair, make_scene, render

TILE = 32
"""Edge of a vision tile, pixels."""

SPLIT = EDGE // TILE
PATCHES = TILE // PATCH
VISUAL_TOKENS = PATCHES**2 + (SPLIT * PATCHES) * (SPLIT * PATCHES + 1)
"""Visual tokens of a picture: the base view, then every row of the full view with its newline."""

LABELS = 4
"""Words that describe a patch: colour or kind of sign; symbol; row or place in the sign; column."""

SINGLE_LESSON = ("colour", "shape", "position", "number", "word") + ("exist",) + ("count",) * 3 + ("relation",) * 3
"""Questions asked about a training picture; the harder tasks are asked more often."""

PAIR_LESSON = ("compare", "compare", "match", "match", "match")

Vocabulary = dict[str, int]


def tiles(pixels: np.ndarray) -> torch.Tensor:
    """Cut pictures into tiles the way the image processor does, up to rounding of the base view.

    Args:
        pixels: RGB, uint8 `(pictures, 64, 64, 3)`.

    Returns:
        Values in [-1, 1], float32 `(pictures, 5, 3, 32, 32)`: the picture at half size, then its four quarters.
    """
    scaled = np.moveaxis(pixels, -1, 1).astype(np.float32) / 127.5 - 1
    count = len(scaled)
    base = scaled.reshape(count, 3, TILE, SPLIT, TILE, SPLIT).mean((3, 5))
    quarters = scaled.reshape(count, 3, SPLIT, TILE, SPLIT, TILE).transpose(0, 2, 4, 1, 3, 5)
    return torch.from_numpy(np.concatenate([base[:, None], quarters.reshape(count, -1, 3, TILE, TILE)], axis=1))


def patch_labels(scene: Scene, vocabulary: Vocabulary) -> np.ndarray:
    """Describe every patch of a picture in words.

    Args:
        scene: What the picture shows.
        vocabulary: Word to token id; id 0 stands for no word.

    Returns:
        Token ids, int64 `(5, 16, LABELS)`, tiles and patches in the order of `tiles`. The base view knows where an
        object is in the picture, the full view reads signs.
    """
    base = np.zeros((GRID, GRID, LABELS), dtype=np.int64)
    full = np.zeros((2 * GRID, 2 * GRID, LABELS), dtype=np.int64)
    for item in scene.items:
        looks = [vocabulary[item.colour], vocabulary[item.shape]]
        full[2 * item.row : 2 * item.row + 2, 2 * item.column : 2 * item.column + 2, :2] = looks
        base[item.row, item.column] = [
            *looks,
            vocabulary[f"row-{item.row + 1}"],
            vocabulary[f"column-{item.column + 1}"],
        ]
    for sign in scene.signs:
        for place, character in enumerate(sign.text):
            symbol = character if sign.kind == "number" else f"letter-{character}"
            order = ("first", "second", "third")[place]
            full[sign.row, sign.column + place, :3] = [vocabulary[word] for word in (sign.kind, symbol, order)]
            base[sign.row // 2, (sign.column + place) // 2, 0] = vocabulary["sign"]
    quarters = full.reshape(SPLIT, PATCHES, SPLIT, PATCHES, LABELS).swapaxes(1, 2)
    return np.concatenate([base.reshape(1, -1, LABELS), quarters.reshape(SPLIT**2, -1, LABELS)])


def labelled_pictures(
    random: np.random.Generator, count: int, vocabulary: Vocabulary
) -> tuple[torch.Tensor, torch.Tensor]:
    """Make pictures with patch labels.

    Args:
        random: Source of randomness.
        count: Number of pictures.
        vocabulary: Word to token id.

    Returns:
        Tiles as of `tiles`, and labels as of `patch_labels`, int64 `(pictures, 5, 16, LABELS)`.
    """
    scenes = [make_scene(random) for _ in range(count)]
    pixels = np.stack([render(scene, random) for scene in scenes])
    labels = np.stack([patch_labels(scene, vocabulary) for scene in scenes])
    return tiles(pixels), torch.from_numpy(labels)


@dataclasses.dataclass(frozen=True)
class Lesson:
    """Pictures, uint8 `(pictures, 64, 64, 3)`, and (question, answer) exchanges about them."""

    pixels: np.ndarray
    exchanges: tuple[tuple[str, str], ...]


def single_lesson(random: np.random.Generator, most: int) -> Lesson:
    """Make a lesson about one picture with at most `most` objects."""
    scene = make_scene(random, most=most)
    exchanges = tuple(ask(task, scene, random)[:2] for task in SINGLE_LESSON)
    return Lesson(render(scene, random)[None], exchanges)


def pair_lesson(random: np.random.Generator, most: int) -> Lesson:
    """Make a lesson about two pictures with at most `most` objects each."""
    pair = make_pair(random, most=most)
    exchanges = tuple(ask_pair(task, pair, random)[:2] for task in PAIR_LESSON)
    return Lesson(np.stack([render(scene, random) for scene in pair]), exchanges)


@dataclasses.dataclass(frozen=True)
class Packed:
    """Lessons as one batch; a row holds a picture prefix once, then all its questions side by side.

    Attributes:
        tiles: Float `(lessons * pictures, 5, 3, 32, 32)`.
        pictures: Pictures per lesson.
        token_ids: Int64 `(lessons, length)`; the prefix is the start token and the image placeholders.
        position_ids: Int64 `(lessons, length)`; every question starts right after the prefix.
        visible: Bool `(lessons, length, length)`; a question sees the prefix and itself.
        targets: Int64 `(lessons, length)`: the next token where it belongs to an answer, else -100.
        exchange: Int64 `(lessons, length)`: 0 in the prefix, 1, 2, ... in the questions, -1 in the padding.
    """

    tiles: torch.Tensor
    pictures: int
    token_ids: torch.Tensor
    position_ids: torch.Tensor
    visible: torch.Tensor
    targets: torch.Tensor
    exchange: torch.Tensor


def pack(lessons: Sequence[Lesson], vocabulary: Vocabulary) -> Packed:
    """Pack lessons with the same number of pictures.

    Args:
        lessons: The lessons.
        vocabulary: Word to token id.

    Returns:
        The batch. Under its mask every question is computed exactly as in a sequence of its own.

    Raises:
        ValueError: The lessons differ in their number of pictures.
        KeyError: A word is not in the vocabulary.
    """
    pictures = len(lessons[0].pixels)
    if any(len(lesson.pixels) != pictures for lesson in lessons):
        raise ValueError("lessons with different numbers of pictures cannot be packed together")
    prefix = [vocabulary["<bos>"]] + [vocabulary["<image>"]] * (pictures * VISUAL_TOKENS)
    rows = []
    for lesson in lessons:
        row = [(token, place, -100, 0) for place, token in enumerate(prefix)]
        for number, (text, answer) in enumerate(lesson.exchanges, start=1):
            prompt = [vocabulary[word] for word in f"{text} answer :".split()]
            reply = [vocabulary[word] for word in f"{answer} <eos>".split()]
            inputs = prompt + reply[:-1]
            targets = [-100] * (len(prompt) - 1) + reply
            places = range(len(prefix), len(prefix) + len(inputs))
            row += [(*columns, number) for columns in zip(inputs, places, targets, strict=True)]
        rows.append(row)
    length = max(len(row) for row in rows)
    padding = (vocabulary["<pad>"], 0, -100, -1)
    table = torch.tensor([row + [padding] * (length - len(row)) for row in rows])
    token_ids, position_ids, targets, exchange = table.unbind(-1)
    reachable = (exchange[:, None, :] == 0) | (exchange[:, None, :] == exchange[:, :, None])
    visible = reachable & torch.ones(length, length, dtype=torch.bool).tril()
    pixels = np.concatenate([lesson.pixels for lesson in lessons])
    return Packed(tiles(pixels), pictures, token_ids, position_ids, visible, targets, exchange)
