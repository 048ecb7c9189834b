# SPDX-License-Identifier: Apache-2.0
"""A picture as image processors take it: upright, in RGB, eight bits a colour.

Pillow's own conversion clips whatever has more bits, so that a picture of 16 turns white. Here
they are scaled down.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageOps


def upright(picture: Image.Image) -> Image.Image:
    """The picture turned as its EXIF data say, in RGB."""
    picture = ImageOps.exif_transpose(picture)
    if picture.mode[0] in "IF":
        picture = Image.fromarray(_eight_bits(np.asarray(picture), picture.mode))
    return picture.convert("RGB")


def _eight_bits(values: np.ndarray, mode: str) -> np.ndarray:
    """Grey values of one of Pillow's modes I;16, I and F, from black, 0, to white, as uint8.

    Of I and F nothing says what white is: the least of 1 (of F), 255 and 65535 that no value
    exceeds, or the largest value. NaN is black.
    """
    values = np.nan_to_num(values.astype(np.float32), nan=0.0, posinf=np.inf, neginf=0.0)
    whites = {"I": (255, 65535), "F": (1, 255, 65535)}.get(mode, (65535,))
    most = values.max(initial=0.0, where=np.isfinite(values))
    white = next((white for white in whites if most <= white), most)
    return np.rint(values.clip(0, white) * (255 / white)).astype(np.uint8)
