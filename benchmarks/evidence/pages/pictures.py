# SPDX-License-Identifier: Apache-2.0
"""Pages as they look: paper, rules, print, and around it what nobody asks about."""

from __future__ import annotations

from functools import cache

import numpy as np
from PIL import Image, ImageDraw

from ..subject import PATCH
from .typesetting import Page

_STAMPS = np.array([(190, 40, 50), (40, 70, 180), (30, 130, 70)], dtype=np.float32)


def paint(rng: np.random.Generator, pages: list[Page]) -> np.ndarray:
    """Pictures of pages of one size: (B, height, width, 3) uint8."""
    canvas = np.stack([_paper(rng, page) for page in pages])
    for picture, page in zip(canvas, pages, strict=True):
        for part in page.blank:
            _clutter(
                rng,
                picture,
                [PATCH * edge for edge in (part.top, part.bottom, part.left, part.right)],
            )
        for top, left, height, width in page.rules:
            picture[top : top + height, left : left + width] *= 0.75
        shades = dict.fromkeys(("heading", "paragraph", "table"), 0.0)
        shades = {block: rng.uniform(15, 80) for block in shades}
        for word in page.words:
            ink = word.ink[..., None]
            colour = _STAMPS[rng.integers(3)] if word.block == "stamp" else shades[word.block]
            height, width, _ = ink.shape
            window = picture[word.top : word.top + height, word.left : word.left + width]
            window += ink * (colour - window)
        picture += rng.normal(scale=3, size=picture.shape[:2]).astype(np.float32)[..., None]
    return np.clip(canvas, 0, 255).astype(np.uint8)


def _paper(rng: np.random.Generator, page: Page) -> np.ndarray:
    """Light, a little tinted and lit from one side, (height, width, 3) float32."""
    y, x = np.mgrid[: page.height, : page.width] / max(page.height, page.width) - 0.5
    slope = rng.uniform(-15, 15, 2)
    light = rng.uniform(205, 240) + slope[0] * y + slope[1] * x
    return (light[..., None] + rng.uniform(-8, 8, 3)).astype(np.float32)


def _clutter(rng: np.random.Generator, picture: np.ndarray, box: list[int]) -> None:
    """Fill a box, (top, bottom, left, right) in pixels: with small print, a photograph, nothing."""
    top, bottom, left, right = box
    drawn = rng.random()
    window = picture[top + 2 : bottom - 2, left + 2 : right - 2]
    height, width, _ = window.shape
    if drawn < 0.45:
        sheet = _small_print()[rng.integers(8)]
        y = rng.integers(sheet.shape[0] - height)
        width = int(width * rng.uniform(0.5, 1))
        ink = rng.uniform(0.3, 0.7) * sheet[y : y + height, :width, None]
        window[:, :width] *= 1 - ink
    elif drawn < 0.7:
        knots = rng.uniform(60, 220, (height // 16 + 2, width // 16 + 2, 3)).astype(np.uint8)
        photograph = Image.fromarray(knots).resize((width, height), Image.Resampling.BILINEAR)
        window[:] = np.asarray(photograph, dtype=np.float32)


@cache
def _small_print() -> np.ndarray:
    """Sheets of lines too small to be read, (8, 480, 170) from 0 to 1, always the same."""
    rng, sheets = np.random.default_rng(8), []
    for _ in range(8):
        sheet = Image.new("L", (170, 480))
        pen = ImageDraw.Draw(sheet)
        for y in range(2, 480, 6):
            x = 0
            while x < 165:
                length = int(rng.integers(4, 16))
                for letter in range(x, x + length, 2):
                    pen.line((letter, y, letter, y + int(rng.integers(1, 4))), fill=200)
                x += length + 3
        sheets.append(np.asarray(sheet, dtype=np.float32) / 255)
    return np.stack(sheets)
