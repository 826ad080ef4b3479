"""Scenes of the picture worlds: what stands where on a grid of cells, and how it is painted."""

import dataclasses

import numpy as np

from tamp.worlds.drawing import CELL, COLOURS, GLYPHS, PATCH, SHAPES, shape_mask

GRID = 4
"""Cells along an edge of a small picture."""

SLOT = 2
"""Cells of a slot, the strip of a row that a sign is put up in."""

WORDS = ("cat", "can", "cap", "cow", "bat", "bow", "row", "rat", "pan", "pot", "top", "tap")
"""Words a sign can show. No single letter gives a word away."""

MOST_OBJECTS = 6

PALETTE = tuple(COLOURS)
_BACKGROUNDS = np.array([(38, 38, 44), (72, 70, 66), (104, 108, 116), (138, 134, 126), (58, 70, 84)], dtype=np.float32)
_PAPER = np.array((238, 236, 228), dtype=np.float32)
_INK = np.array((22, 22, 26), dtype=np.float32)


@dataclasses.dataclass(frozen=True)
class Item:
    """A coloured shape in the cell at `row`, `column`."""

    colour: str
    shape: str
    row: int
    column: int


@dataclasses.dataclass(frozen=True)
class Sign:
    """A run of glyphs on paper; `row` and `column` count vision patches, `kind` is the task that reads it."""

    kind: str
    text: str
    row: int
    column: int


@dataclasses.dataclass(frozen=True)
class Scene:
    """What a picture of `rows` by `columns` cells shows."""

    items: tuple[Item, ...]
    signs: tuple[Sign, ...]
    rows: int = GRID
    columns: int = GRID


def make_scene(
    random: np.random.Generator,
    *,
    most: int = MOST_OBJECTS,
    signs: bool = True,
    size: tuple[int, int] = (GRID, GRID),
) -> Scene:
    """Compose a scene that every single-picture task can ask about.

    Args:
        random: Source of randomness.
        most: Largest number of shapes, 2 to 6; below 3 no colour or shape repeats.
        signs: Whether to put up a number and a word.
        size: Rows and columns of cells, the columns even.

    Returns:
        The scene. At least one shape and one colour occur exactly once.
    """
    rows, columns = size
    # Slots divide the tiles of the vision tower, so that a sign never straddles two of them.
    strips = columns // SLOT
    slots = random.permutation(rows * strips)[:2] if signs else ()
    put_up = []
    for kind, slot in zip(("number", "word"), slots, strict=False):
        text = str(random.integers(10, 100)) if kind == "number" else WORDS[random.integers(len(WORDS))]
        row = 2 * (slot // strips) + random.integers(2)
        column = 2 * SLOT * (slot % strips) + random.integers(2 * SLOT - len(text) + 1)
        put_up.append(Sign(kind, text, int(row), int(column)))
    free = [cell for cell in range(rows * columns) if cell // SLOT not in slots]
    colours, shapes = _looks(random, most)
    cells = random.permutation(free)[: len(colours)]
    items = (
        Item(PALETTE[colour], SHAPES[shape], int(cell) // columns, int(cell) % columns)
        for colour, shape, cell in zip(colours, shapes, cells, strict=True)
    )
    return Scene(tuple(items), tuple(put_up), rows, columns)


def _looks(random: np.random.Generator, most: int) -> tuple[list[int], list[int]]:
    """Draw colours and shapes: one attribute holds a crowd of equals, so that counts are worth asking."""
    if most < 3:
        return list(random.permutation(len(PALETTE))[:2]), list(random.permutation(len(SHAPES))[:2])
    crowd = int(random.integers(2, min(4, most - 1) + 1))
    total = int(random.integers(crowd + 1, most + 1))
    while True:
        first = random.permutation(len(PALETTE))
        crowded = [first[0]] * crowd + list(first[1 + random.integers(0, len(first) - 1, total - crowd)])
        other = list(random.integers(0, len(SHAPES), total))
        distinct = len(set(zip(crowded, other, strict=True))) == total
        if distinct and any(crowded.count(value) == 1 for value in crowded) and any(other.count(v) == 1 for v in other):
            return (crowded, other) if random.integers(2) else (other, crowded)


def render(scene: Scene, random: np.random.Generator) -> np.ndarray:
    """Paint a scene.

    Args:
        scene: What to paint.
        random: Source of the background, the noise, and small changes of size, place and hue.

    Returns:
        RGB pixels, uint8 `(16 * rows, 16 * columns, 3)`.
    """
    pixels = np.empty((CELL * scene.rows, CELL * scene.columns, 3), dtype=np.float32)
    pixels[:] = _BACKGROUNDS[random.integers(len(_BACKGROUNDS))] + random.integers(-8, 9)
    sizes = random.integers(12, CELL + 1, len(scene.items))
    slack = random.random((len(scene.items), 2))
    hues = random.integers(-14, 15, (len(scene.items), 3))
    for item, size, shift, hue in zip(scene.items, sizes, slack, hues, strict=True):
        top, left = (shift * (CELL + 1 - size)).astype(int) + (CELL * item.row, CELL * item.column)
        patch = pixels[top : top + size, left : left + size]
        patch += shape_mask(item.shape, int(size))[..., None] * (np.add(COLOURS[item.colour], hue) - patch)
    for sign in scene.signs:
        for place, character in enumerate(sign.text):
            top, left = PATCH * sign.row, PATCH * (sign.column + place)
            pixels[top : top + PATCH, left : left + PATCH] = _PAPER + GLYPHS[character][..., None] * (_INK - _PAPER)
    pixels += random.integers(-6, 7, (*pixels.shape[:2], 1))
    return pixels.clip(0, 255).astype(np.uint8)
