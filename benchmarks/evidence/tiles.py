# SPDX-License-Identifier: Apache-2.0
"""Pictures to partitions, as LLaVA-NeXT's image processor cuts them, many pictures at a time.

Only for sizes whose sub-images are cut without resizing, as all that are asked about have; a test
compares it with the processor of transformers.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from hired_kernels import geometry

PATCH = 14  # pixels a side
GRIDS = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))  # rows and columns of sub-images


@cache
def layout_of(height: int, width: int, tile: int) -> geometry.Layout:
    """How a picture is cut up."""
    pinpoints = tuple((rows * tile, cols * tile) for rows, cols in GRIDS)
    return geometry.layout(height, width, pinpoints=pinpoints, tile=tile, patch=PATCH)


def partitions(pictures: np.ndarray, tile: int) -> Tensor:
    """(B, height, width, 3) uint8 -> (B, partitions, 3, tile, tile) float32, full image first."""
    _, height, width, _ = pictures.shape
    layout = layout_of(height, width, tile)
    full = shrunk(pictures, tile, tile)
    top, left = layout.crop[0] * PATCH, layout.crop[2] * PATCH
    sheets = sub_images(as_pixels(pictures), layout.grid, tile, top, left)
    return normal(torch.cat((full[:, None], sheets), dim=1))


def sub_images(
    pixels: Tensor, grid: geometry.Grid, tile: int, top: int = 0, left: int = 0
) -> Tensor:
    """(B, 3, height, width) -> (B, R * C, 3, tile, tile): the picture with black around it, cut."""
    (R, C), (height, width) = grid, pixels.shape[2:]
    bottom, right = R * tile - height - top, C * tile - width - left
    sheet = functional.pad(pixels, (left, right, top, bottom))
    tiles = sheet.unflatten(3, (C, tile)).unflatten(2, (R, tile)).permute(0, 2, 4, 1, 3, 5)
    return tiles.flatten(1, 2)


def as_pixels(pictures: np.ndarray) -> Tensor:
    """(B, height, width, 3) uint8 -> (B, 3, height, width) float32, 0 to 255."""
    return torch.from_numpy(pictures).float().permute(0, 3, 1, 2)


def shrunk(pictures: np.ndarray, height: int, width: int) -> Tensor:
    """Pictures of another size, (B, 3, height, width) whole levels from 0 to 255: bicubic."""
    rows, cols = (
        _shrink(before, after)
        for before, after in zip(pictures.shape[1:3], (height, width), strict=True)
    )
    return (rows @ as_pixels(pictures) @ cols.T).round().clamp(0, 255)


def normal(pixels: Tensor) -> Tensor:
    """0 to 255 -> what CLIP reads; channels are the third axis from the end."""
    mean, spread = (
        torch.tensor(values).view(3, 1, 1) for values in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)
    )
    return (pixels / 255 - mean) / spread


@cache
def _shrink(before: int, after: int) -> Tensor:
    """Bicubic resampling of a line of pixels as a matrix, (after, before)."""
    rows = torch.eye(before)[None, None]
    return functional.interpolate(
        rows, size=(after, before), mode="bicubic", antialias=True, align_corners=False
    )[0, 0]
