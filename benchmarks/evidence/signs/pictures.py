# SPDX-License-Identifier: Apache-2.0
"""Pictures that have to be looked at closely: few small signs on a large, cluttered ground.

A sign is a coloured shape with a digit to its right. Signs stand on the lattice of the patches, a
cell each for shape and digit, moved about by a few pixels within it; no sign is cut in two by the
border of a tile. The ground is an uneven grey, empty in large parts, and scribbled over with faint
lines and grey digits in the others. A digit is 5 x 7 pixels with strokes of one pixel: at half the
size, as the full image shows it, it cannot be read.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

from ..subject import PATCH

TILE = 112
SIDE = TILE // PATCH
# (height, width) in pixels, and how often of a hundred pictures. The last two come with padding.
SIZES = {
    (224, 224): 55,
    (112, 224): 8,
    (224, 112): 8,
    (336, 112): 5,
    (224, 168): 12,
    (140, 224): 12,
}
COLOURS = {
    "red": (220, 30, 30),
    "green": (20, 170, 40),
    "blue": (30, 60, 225),
    "yellow": (240, 215, 20),
    "magenta": (215, 35, 200),
    "cyan": (20, 200, 215),
}
SHAPES = ("square", "circle", "triangle", "cross")
INK = (15, 15, 15)
_SHAPE = 11  # pixels a side
_SHAPE_SHIFT, _DIGIT_SHIFT = 1, 3  # how far from the middle of its cell, in pixels
_FONT = """
.###. ..#.. .###. ##### ...#. ##### .###. ##### .###. .###.
#...# .##.. #...# ....# ..##. #.... #.... ....# #...# #...#
#..## ..#.. ....# ...#. .#.#. ####. #.... ...#. #...# #...#
#.#.# ..#.. ...#. ..##. #..#. ....# ####. ..#.. .###. .####
##..# ..#.. ..#.. ....# ##### ....# #...# .#... #...# ....#
#...# ..#.. .#... #...# ...#. #...# #...# .#... #...# ....#
.###. .###. ##### .###. ...#. .###. .###. .#... .###. .###.
"""


@dataclass(frozen=True)
class Sign:
    """A shape and its digit; (row, col) is the shape's cell, the digit has the next one."""

    shape: str
    colour: str
    digit: int
    row: int
    col: int


@dataclass(frozen=True)
class Scene:
    """What a picture of height x width pixels shows.

    No two signs share their digit, or both colour and shape.
    """

    height: int
    width: int
    signs: tuple[Sign, ...]


def draw_scene(rng: np.random.Generator, size: tuple[int, int], most: int | None = None) -> Scene:
    """A scene with 1 to `most` signs, at most 10.

    Without `most` it is 6 in a picture of four tiles, fewer in a smaller one.
    """
    height, width = size
    rows, cols = height // PATCH, width // PATCH
    most = min(10, max(2, rows * cols // 40) if most is None else most)
    # The assembled grid is padded on both sides by whole patches; tiles begin where it begins.
    shift = (-width % TILE) // 2 // PATCH
    free = np.ones((rows, cols), dtype=bool)
    free[:, [col for col in range(cols) if (col + shift) % SIDE == SIDE - 1 or col == cols - 1]] = 0
    looks = rng.permutation(len(SHAPES) * len(COLOURS))
    digits, signs = rng.permutation(10), []
    for number in range(rng.integers(1, most + 1)):
        places = np.argwhere(free)
        if len(places) == 0:
            break
        row, col = places[rng.integers(len(places))].tolist()
        free[max(row - 1, 0) : row + 2, max(col - 2, 0) : col + 3] = False
        shape, colour = divmod(int(looks[number]), len(COLOURS))
        signs.append(Sign(SHAPES[shape], list(COLOURS)[colour], int(digits[number]), row, col))
    return Scene(height, width, tuple(signs))


def paint(rng: np.random.Generator, scenes: list[Scene]) -> np.ndarray:
    """Pictures of scenes of one size: (B, height, width, 3) uint8."""
    height, width = scenes[0].height, scenes[0].width
    canvas = _grounds(rng, len(scenes), height, width)
    for picture, scene in zip(canvas, scenes, strict=True):
        for sign in scene.signs:
            place = np.array([sign.row, sign.col]) * PATCH
            shift = rng.integers(-_SHAPE_SHIFT, _SHAPE_SHIFT + 1, 2)
            mask = _shape_masks()[sign.shape]
            colour = np.array(COLOURS[sign.colour]) + rng.integers(-15, 16, 3)
            _stamp(picture, mask, place + (PATCH - _SHAPE + 1) // 2 - 1 + shift, colour)
            mask = digit_masks()[sign.digit]
            shift = rng.integers(-_DIGIT_SHIFT, _DIGIT_SHIFT + 1, 2)
            _stamp(picture, mask, place + np.array([3, PATCH + 4]) + shift, np.array(INK))
    return canvas


@cache
def digit_masks() -> np.ndarray:
    """The ten digits, (10, 7, 5) bool."""
    rows = [line.split() for line in _FONT.split("\n") if line]
    return np.array([[[dot == "#" for dot in row[d]] for row in rows] for d in range(10)])


@cache
def _shape_masks() -> dict[str, np.ndarray]:
    y, x = np.mgrid[:_SHAPE, :_SHAPE] - _SHAPE // 2
    half = _SHAPE // 2
    return {
        "square": np.ones((_SHAPE, _SHAPE), dtype=bool),
        "circle": x**2 + y**2 <= (half + 0.4) ** 2,
        "triangle": 2 * abs(x) <= y + half,
        "cross": np.minimum(abs(x), abs(y)) <= 1,
    }


def _stamp(picture: np.ndarray, mask: np.ndarray, place: np.ndarray, colour: np.ndarray) -> None:
    (top, left), (height, width) = place, mask.shape
    picture[top : top + height, left : left + width][mask] = np.clip(colour, 0, 255)


def _grounds(rng: np.random.Generator, count: int, height: int, width: int) -> np.ndarray:
    """Uneven grey, with clutter where a smooth random field is high: (count, H, W, 3) uint8."""
    rows, cols = _stretch(height), _stretch(width)
    coarse = rng.normal(size=(2, count, rows.shape[1], cols.shape[1])).astype(np.float32)
    light, where = rows @ coarse @ cols.T
    ground = 150 + 14 * light + rng.uniform(-25, 25, (count, 1, 1)).astype(np.float32)
    bank = _scribbles()
    for picture, field in zip(ground, where, strict=True):
        y, x = rng.integers(bank.shape[1] - height), rng.integers(bank.shape[2] - width)
        clutter = bank[rng.integers(len(bank)), y : y + height, x : x + width]
        picture += clutter * np.clip(3 * field - 0.6, 0, 1)
    tint = rng.uniform(-10, 10, (count, 1, 1, 3)).astype(np.float32)
    return np.clip(ground[..., None] + tint, 40, 235).astype(np.uint8)


@cache
def _stretch(length: int) -> np.ndarray:
    """Linear interpolation from a knot every 40 pixels: (length, knots) float32."""
    knots = length // 40 + 2
    at = np.arange(length, dtype=np.float32)[:, None] / 40
    return np.clip(1 - np.abs(at - np.arange(knots, dtype=np.float32)), 0, 1).astype(np.float32)


@cache
def _scribbles() -> np.ndarray:
    """Sheets of faint lines, arcs and digits, (12, 640, 640) float32 around 0, always the same."""
    rng, size, sheets = np.random.default_rng(12), 640, []
    for _ in range(12):
        sheet = Image.new("L", (size, size), 128)
        pen = ImageDraw.Draw(sheet)
        for _ in range(260):
            (x, y), grey = rng.integers(0, size, 2), int(rng.integers(100, 157))
            dx, dy = rng.integers(-60, 61, 2)
            pen.line((int(x), int(y), int(x + dx), int(y + dy)), fill=grey)
            x, y, r = rng.integers(0, size), rng.integers(0, size), rng.integers(4, 30)
            pen.arc((int(x - r), int(y - r), int(x + r), int(y + r)), 0, 250, fill=grey)
        pixels = np.asarray(sheet).astype(np.float32)
        for _ in range(500):
            mask, (y, x) = digit_masks()[rng.integers(10)], rng.integers(0, size - 8, 2)
            pixels[y : y + 7, x : x + 5][mask] = rng.integers(95, 161)
        sheets.append(pixels - 128)
    return np.stack(sheets)
