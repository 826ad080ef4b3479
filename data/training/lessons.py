"""Tensors to train the shipped models on: picture tiles, patch labels, and packed questions."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import torch

from tamp.worlds.drawing import PATCH
from tamp.worlds.pictures import ask, ask_pair, make_pair
from tamp.worlds.scenes import GRID, Scene, make_scene, render

LABELS = 4
"""Words that describe a patch: colour or kind of sign; symbol; row or place in the sign; column."""

SINGLE_LESSON = ("colour", "shape", "position", "number", "word") + ("exist",) + ("count",) * 3 + ("relation",) * 3
"""Questions asked about a training picture; the harder tasks are asked more often."""

PAIR_LESSON = ("compare", "compare", "match", "match", "match")

Vocabulary = dict[str, int]


def visual_count(height: int, width: int, tile: int) -> int:
    """Return the number of visual tokens of a picture: the base view, then every row of the full view with its newline."""
    return (tile // PATCH) ** 2 + height // PATCH * (width // PATCH + 1)


def tiles(pixels: np.ndarray, tile: int) -> torch.Tensor:
    """Return the tiles that the image processor cuts pictures into, up to rounding of the base view.

    Args:
        pixels: RGB, uint8 `(pictures, height, width, 3)`, the edges multiples of `tile`.
        tile: Edge of a tile.

    Returns:
        Values in [-1, 1], float32 `(pictures, 1 + tiles, 3, tile, tile)`: the picture shrunk to one tile, then its
        own tiles, row by row.
    """
    scaled = np.moveaxis(pixels, -1, 1).astype(np.float32) / 127.5 - 1
    count, _, height, width = scaled.shape
    down, across = height // tile, width // tile
    base = scaled.reshape(count, 3, tile, down, tile, across).mean((3, 5))
    full = scaled.reshape(count, 3, down, tile, across, tile).transpose(0, 2, 4, 1, 3, 5)
    return torch.from_numpy(np.concatenate([base[:, None], full.reshape(count, -1, 3, tile, tile)], axis=1))


def patch_labels(scene: Scene, vocabulary: Vocabulary, tile: int) -> np.ndarray:
    """Return the labels of every patch of a picture.

    Args:
        scene: Content of the picture.
        vocabulary: Word to label; label 0 stands for no word.
        tile: Edge of a tile.

    Returns:
        Labels, int64 `(1 + tiles, patches, LABELS)`, tiles and patches in the order of `tiles`. The base view
        has the place of an object in the picture, the full view the text of signs.
    """
    edge = tile // PATCH
    base = np.zeros((edge, edge, LABELS), dtype=np.int64)
    full = np.zeros((2 * scene.rows, 2 * scene.columns, LABELS), dtype=np.int64)
    down, across = edge // scene.rows, edge // scene.columns  # patches of the base view along a cell
    for item in scene.items:
        looks = [vocabulary[item.colour], vocabulary[item.shape]]
        full[2 * item.row : 2 * item.row + 2, 2 * item.column : 2 * item.column + 2, :2] = looks
        base[item.row * down : (item.row + 1) * down, item.column * across : (item.column + 1) * across] = [
            *looks,
            vocabulary[f"row-{item.row + 1}"],
            vocabulary[f"column-{item.column + 1}"],
        ]
    for sign in scene.signs:
        for place, character in enumerate(sign.text):
            symbol = character if sign.kind == "number" else f"letter-{character}"
            order = ("first", "second", "third")[place]
            full[sign.row, sign.column + place, :3] = [vocabulary[word] for word in (sign.kind, symbol, order)]
            shrunk = sign.row * down // 2, (sign.column + place) * across // 2
            base[shrunk] = [vocabulary["sign"], 0, 0, 0]
    full = full.reshape(2 * scene.rows // edge, edge, 2 * scene.columns // edge, edge, LABELS).swapaxes(1, 2)
    return np.concatenate([base.reshape(1, -1, LABELS), full.reshape(-1, edge * edge, LABELS)])


def labelled_pictures(
    random: np.random.Generator, count: int, vocabulary: Vocabulary, tile: int, size: tuple[int, int] = (GRID, GRID)
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return pictures with patch labels.

    Args:
        random: Source of randomness.
        count: Number of pictures.
        vocabulary: Word to label.
        tile: Edge of a tile.
        size: Rows and columns of cells.

    Returns:
        Tiles as of `tiles`, and labels as of `patch_labels`, int64 `(pictures, 1 + tiles, patches, LABELS)`.
    """
    scenes = [make_scene(random, size=size) for _ in range(count)]
    pixels = np.stack([render(scene, random) for scene in scenes])
    labels = np.stack([patch_labels(scene, vocabulary, tile) for scene in scenes])
    return tiles(pixels, tile), torch.from_numpy(labels)


@dataclasses.dataclass(frozen=True)
class Lesson:
    """Pictures, uint8 `(pictures, height, width, 3)`, and (question, answer) exchanges about them."""

    pixels: np.ndarray
    exchanges: tuple[tuple[str, str], ...]


def single_lesson(
    random: np.random.Generator, most: int, size: tuple[int, int] = (GRID, GRID), tasks: Sequence[str] = SINGLE_LESSON
) -> Lesson:
    """Return a lesson about one picture with at most `most` objects."""
    scene = make_scene(random, most=most, size=size)
    exchanges = tuple(ask(task, scene, random)[:2] for task in tasks)
    return Lesson(render(scene, random)[None], exchanges)


def pair_lesson(
    random: np.random.Generator, most: int, size: tuple[int, int] = (GRID, GRID), tasks: Sequence[str] = PAIR_LESSON
) -> Lesson:
    """Return a lesson about two pictures with at most `most` objects each."""
    pair = make_pair(random, most=most, size=size)
    exchanges = tuple(ask_pair(task, pair, random)[:2] for task in tasks)
    return Lesson(np.stack([render(scene, random) for scene in pair]), exchanges)


@dataclasses.dataclass(frozen=True)
class Writing:
    """Format of lessons as token ids.

    Attributes:
        start: Token ids before the pictures.
        after: Token ids after each picture.
        image: Token id that stands for a visual token.
        pad: Token id of padding.
        tile: Edge of a vision tile.
        exchange: Turns a question and its answer into the token ids of the prompt after the pictures, and of the reply with
            its end.
    """

    start: tuple[int, ...]
    after: tuple[int, ...]
    image: int
    pad: int
    tile: int
    exchange: Callable[[str, str], tuple[list[int], list[int]]]


@dataclasses.dataclass(frozen=True)
class Rows:
    """Questions as one batch; a row holds a prefix once, then all its questions side by side.

    Attributes:
        token_ids: Int64 `(rows, length)`.
        position_ids: Int64 `(rows, length)`; every question starts right after the prefix.
        targets: Int64 `(rows, length)`: the next token where it belongs to an answer, else -100.
        exchange: Int64 `(rows, length)`: 0 in the prefix, 1, 2, ... in the questions, -1 in the padding.
        visible: Bool `(rows, length, length)`; a question attends to the prefix and itself.
    """

    token_ids: torch.Tensor
    position_ids: torch.Tensor
    targets: torch.Tensor
    exchange: torch.Tensor
    visible: torch.Tensor


@dataclasses.dataclass(frozen=True)
class Packed(Rows):
    """Lessons as one batch; the prefix is the start and the image placeholders.

    Attributes:
        tiles: Float `(lessons * pictures, 1 + tiles, 3, tile, tile)`.
        split: Rows and columns of tiles of a picture.
        pictured: Bool `(lessons, length)`: the places of visual tokens.
    """

    tiles: torch.Tensor
    split: tuple[int, int]
    pictured: torch.Tensor


def pack_rows(prefix: Sequence[int], rows: Sequence[Sequence[tuple[str, str]]], writing: Writing) -> Rows:
    """Return questions and answers packed behind a common prefix.

    Args:
        prefix: Token ids that every row begins with.
        rows: The (question, answer) exchanges of every row.
        writing: Format of the token ids.

    Returns:
        The batch. Under its mask every question is computed exactly as in a sequence of its own.
    """
    table = []
    for exchanges in rows:
        row = [(token, place, -100, 0) for place, token in enumerate(prefix)]
        for number, (text, answer) in enumerate(exchanges, start=1):
            prompt, reply = writing.exchange(text, answer)
            inputs = prompt + reply[:-1]
            targets = [-100] * (len(prompt) - 1) + reply
            places = range(len(prefix), len(prefix) + len(inputs))
            row += [(*columns, number) for columns in zip(inputs, places, targets, strict=True)]
        table.append(row)
    length = max(len(row) for row in table)
    padding = (writing.pad, 0, -100, -1)
    padded = torch.tensor([row + [padding] * (length - len(row)) for row in table])
    token_ids, position_ids, targets, exchange = padded.unbind(-1)
    reachable = (exchange[:, None, :] == 0) | (exchange[:, None, :] == exchange[:, :, None])
    visible = reachable & torch.ones(length, length, dtype=torch.bool).tril()
    return Rows(token_ids, position_ids, targets, exchange, visible)


def pack(lessons: Sequence[Lesson], writing: Writing) -> Packed:
    """Return lessons with the same number of pictures of the same size as one batch; see :func:`pack_rows`.

    Raises:
        ValueError: The lessons differ in the number or the size of their pictures.
    """
    shape = lessons[0].pixels.shape
    if any(lesson.pixels.shape != shape for lesson in lessons):
        raise ValueError("lessons with different pictures cannot be packed together")
    pictures, height, width, _ = shape
    picture = [writing.image] * visual_count(height, width, writing.tile) + [*writing.after]
    rows = pack_rows([*writing.start] + picture * pictures, [lesson.exchanges for lesson in lessons], writing)
    pixels = np.concatenate([lesson.pixels for lesson in lessons])
    return Packed(
        **vars(rows),
        tiles=tiles(pixels, writing.tile) if pictures else torch.zeros(0),
        split=(height // writing.tile, width // writing.tile),
        pictured=rows.token_ids == writing.image,
    )
