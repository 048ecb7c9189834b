# SPDX-License-Identifier: Apache-2.0
"""Pictures to partitions, as LLaVA-NeXT's image processor cuts them, many pictures at a time.

Only for the sizes of `pictures.SIZES`, whose sub-images are cut without resizing; a test compares
it with the processor of transformers.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from hired_kernels import geometry

from .pictures import PATCH, TILE


@cache
def layout_of(height: int, width: int) -> geometry.Layout:
    """How a picture is cut up."""
    pinpoints = tuple(
        (rows * TILE, cols * TILE) for rows, cols in ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))
    )
    return geometry.layout(height, width, pinpoints=pinpoints, tile=TILE, patch=PATCH)


def partitions(pictures: np.ndarray) -> Tensor:
    """(B, height, width, 3) uint8 -> (B, partitions, 3, TILE, TILE) float32, full image first."""
    _, height, width, _ = pictures.shape
    layout = layout_of(height, width)
    (R, C), pixels = layout.grid, torch.from_numpy(pictures).float().permute(0, 3, 1, 2)
    full = _shrink(height) @ pixels @ _shrink(width).T
    top, left = layout.crop[0] * PATCH, layout.crop[2] * PATCH
    bottom, right = R * TILE - height - top, C * TILE - width - left
    sheet = functional.pad(pixels, (left, right, top, bottom))
    tiles = sheet.unflatten(3, (C, TILE)).unflatten(2, (R, TILE)).permute(0, 2, 4, 1, 3, 5)
    tiles = torch.cat((full.round().clamp(0, 255)[:, None], tiles.flatten(1, 2)), dim=1)
    mean, spread = (
        torch.tensor(values).view(3, 1, 1) for values in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)
    )
    return (tiles / 255 - mean) / spread


@cache
def _shrink(length: int) -> Tensor:
    """Bicubic resampling to a tile's edge as a matrix, (TILE, length)."""
    rows = torch.eye(length)[None, None]
    return functional.interpolate(
        rows, size=(TILE, length), mode="bicubic", antialias=True, align_corners=False
    )[0, 0]
