"""Masks the pictures are composed of: coloured shapes in a cell, and glyphs of one vision patch."""

import functools

import numpy as np

CELL = 16
"""Edge of a grid cell, pixels: one vision patch of the half-size base view."""

PATCH = 8
"""Edge of a vision patch, pixels; every glyph fills exactly one patch of the full-size view."""

COLOURS = {
    "red": (222, 48, 48),
    "green": (52, 178, 70),
    "blue": (56, 88, 232),
    "yellow": (240, 214, 56),
    "purple": (164, 60, 206),
    "cyan": (64, 214, 222),
}
"""Colour word to RGB."""

SHAPES = ("circle", "square", "triangle", "cross", "ring", "diamond")

_STROKES = {
    "0": ".###. #...# #..## #.#.# ##..# #...# .###.",
    "1": "..#.. .##.. ..#.. ..#.. ..#.. ..#.. .###.",
    "2": ".###. #...# ....# ...#. ..#.. .#... #####",
    "3": "####. ....# ....# .###. ....# ....# ####.",
    "4": "...#. ..##. .#.#. #..#. ##### ...#. ...#.",
    "5": "##### #.... ####. ....# ....# #...# .###.",
    "6": ".###. #.... #.... ####. #...# #...# .###.",
    "7": "##### ....# ...#. ..#.. ..#.. .#... .#...",
    "8": ".###. #...# #...# .###. #...# #...# .###.",
    "9": ".###. #...# #...# .#### ....# ....# .###.",
    "a": "..#.. .#.#. #...# #...# ##### #...# #...#",
    "b": "####. #...# #...# ####. #...# #...# ####.",
    "c": ".#### #.... #.... #.... #.... #.... .####",
    "n": "#...# ##..# ##..# #.#.# #..## #..## #...#",
    "o": ".###. #...# #...# #...# #...# #...# .###.",
    "p": "####. #...# #...# ####. #.... #.... #....",
    "r": "####. #...# #...# ####. #.#.. #..#. #...#",
    "t": "##### ..#.. ..#.. ..#.. ..#.. ..#.. ..#..",
    "w": "#...# #...# #...# #.#.# #.#.# ##.## #...#",
}


def _ink(strokes: str) -> np.ndarray:
    mask = np.zeros((PATCH, PATCH), dtype=np.float32)
    for row, line in enumerate(strokes.split()):
        for column, character in enumerate(line):
            mask[row, column + 1] = character == "#"
    return mask


GLYPHS = {character: _ink(strokes) for character, strokes in _STROKES.items()}
"""Character to ink mask, float32 `(PATCH, PATCH)` of zeros and ones."""


@functools.cache
def shape_mask(shape: str, size: int) -> np.ndarray:
    """Draw one shape, antialiased.

    Args:
        shape: One of `SHAPES`.
        size: Edge of its bounding box, pixels.

    Returns:
        Coverage in [0, 1], float32 `(size, size)`.

    Raises:
        ValueError: The shape is not one of `SHAPES`.
    """
    fine = 4
    axis = (np.arange(size * fine, dtype=np.float32) + 0.5) * (2 / (size * fine)) - 1
    x, y = np.abs(axis)[None, :], axis[:, None]
    if shape == "circle":
        inside = x**2 + y**2 <= 1
    elif shape == "square":
        inside = np.maximum(x, np.abs(y)) <= 0.9
    elif shape == "triangle":
        inside = x <= (y + 1) / 2
    elif shape == "cross":
        inside = np.minimum(x, np.abs(y)) <= 0.32
    elif shape == "ring":
        radius = x**2 + y**2
        inside = (radius <= 1) & (radius >= 0.36)
    elif shape == "diamond":
        inside = x + np.abs(y) <= 1
    else:
        raise ValueError(f"unknown shape: {shape}")
    return inside.reshape(size, fine, size, fine).mean((1, 3), dtype=np.float32)
