# SPDX-License-Identifier: Apache-2.0
"""Words as the fonts print them. The fonts come from packages, `pip install ".[evidence]"`."""

from __future__ import annotations

import itertools
from functools import cache
from importlib import resources

import numpy as np
from PIL import Image, ImageDraw, ImageFont

FACES = {
    "sans": ("font_source_sans_pro", "SourceSansPro-Regular.ttf"),
    "sans bold": ("font_source_sans_pro", "SourceSansPro-Bold.ttf"),
    "serif": ("font_source_serif_pro", "SourceSerifPro-Regular.ttf"),
    "round": ("font_manrope", "Manrope-Medium.ttf"),
}


@cache
def printed(text: str, face: str, size: int) -> np.ndarray:
    """How much ink each pixel has, (height, width) float32 from 0 to 1.

    As wide as the ink. The height is that of a line from ascenders to descenders, whatever the
    letters, so that words of one line stand on one baseline.
    """
    font = _font(face, size)
    _, top, _, bottom = font.getbbox("bdpq", anchor="ls")
    left, _, right, _ = font.getbbox(text, anchor="ls")
    sheet = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(sheet).text((-left, -top), text, fill=255, font=font, anchor="ls")
    return np.asarray(sheet, dtype=np.float32) / 255


@cache
def stamped(text: str, face: str, size: int, degrees: int) -> np.ndarray:
    """The same in a frame, turned counter-clockwise, and only as wide and high as its ink."""
    word = np.pad(printed(text, face, size), ((2, 1), (5, 5)))
    word[[0, 1, -2, -1]] = word[:, [0, 1, -2, -1]] = 1
    sheet = Image.fromarray((255 * word).astype(np.uint8))
    turned = sheet.rotate(degrees, Image.Resampling.BILINEAR, expand=True)
    ink = np.asarray(turned, dtype=np.float32) / 255
    rows, cols = (np.flatnonzero(ink.max(axis=axis) > 0.1) for axis in (1, 0))
    return ink[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]


@cache
def letters(text: str, face: str, size: int) -> tuple[int, ...]:
    """The middle of each letter in `printed`, in pixels from the left."""
    font = _font(face, size)
    first = font.getbbox(text, anchor="ls")[0]
    ends = [font.getlength(text[:count]) - first for count in range(len(text) + 1)]
    return tuple(int((left + right) / 2) for left, right in itertools.pairwise(ends))


@cache
def _font(face: str, size: int) -> ImageFont.FreeTypeFont:
    package, file = FACES[face]
    try:
        folder = resources.files(package)
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            f"pages are printed in fonts from packages, of which {package} is missing: "
            'pip install -e ".[evidence]"'
        ) from None
    with resources.as_file(folder / "files" / file) as path:
        return ImageFont.truetype(str(path), size)
