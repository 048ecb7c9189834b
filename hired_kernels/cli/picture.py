# SPDX-License-Identifier: Apache-2.0
"""Draws what was kept: the full image and its sub-images, kept patches lit, the others dimmed.

The sub-images stand together as the grid they were cut from, without its padding. The full image
is stretched back from its square to the shape that the picture has in that grid, so that the same
spot stands at the same place in both. Pixels are those that the vision tower saw.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from ..geometry import Layout

BACKGROUND = (15, 18, 24)
DIM = 0.3  # brightness of a dropped patch
GREY = 0.82  # how far its colours are drawn to grey
SHADE = 0.5  # how much of the background is added to it
_LINE = (226, 230, 236)
_LINE_OPACITY = 0.66
_SHARP = 336  # pixels a side from which a partition is scaled smoothly

Box = tuple[int, int, int, int]
Shape = tuple[int, int]


@dataclass(frozen=True)
class Panels:
    """Where patches lie, in pixels: left, top, right, bottom, half-open.

    `grid` holds the sub-images without their padding, None where there are none. `patches` has a
    box for each patch, an empty one where the patch is padding.
    """

    full: Box
    grid: Box | None
    patches: np.ndarray  # (P, T, 4)


def shown(layout: Layout) -> Box:
    """The part of the sub-images' grid that is drawn, in patches: top, bottom, left, right.

    That is the picture without padding, or all of it where the picture is thinner than a patch.
    """
    (R, C), side = layout.grid, layout.side
    whole = (0, R * side, 0, C * side)
    top, bottom, left, right = layout.crop or whole
    return (top, bottom, left, right) if top < bottom and left < right else whole


def shapes(layout: Layout) -> tuple[Shape, Shape | None]:
    """Width and height, in patches, of the full image as it is drawn and of the sub-images."""
    if layout.grid[0] == 0:
        return (layout.side, layout.side), None
    top, bottom, left, right = shown(layout)
    grid = (right - left, bottom - top)
    # A sliver of a picture would be a sliver of a full image, too thin to see.
    least = (layout.side + 1) // 2
    return (max(grid[0], least), max(grid[1], least)), grid


def arrange(layout: Layout, full: Box, grid: Box | None) -> Panels:
    """Place all patches in a box for the full image and one for the sub-images, if there are any.

    Raises ValueError where only one of box and sub-images is there.
    """
    (R, C), side = layout.grid, layout.side
    if (grid is None) != (R == 0):
        raise ValueError(f"arrange: expected a box for a grid of {R} x {C}, got {grid}")
    patches = np.zeros((layout.partitions, layout.tokens, 4), dtype=np.int64)
    patches[0] = _cells(full, side, side).reshape(-1, 4)
    if grid is not None:
        top, bottom, left, right = shown(layout)
        cells = np.zeros((R * side, C * side, 4), dtype=np.int64)
        cells[top:bottom, left:right] = _cells(grid, bottom - top, right - left)
        patches[1:] = cells.reshape(R, side, C, side, 4).swapaxes(1, 2).reshape(R * C, -1, 4)
    return Panels(full, grid, patches)


def paint(sheet: np.ndarray, partitions: np.ndarray, layout: Layout, panels: Panels) -> None:
    """Put all partitions in their places on a sheet (height, width, 3) uint8, bright.

    partitions (P, tile, tile, 3) uint8: what the tower saw, full image first. Raises ValueError
    where they are not the layout's.
    """
    if partitions.shape[0] != layout.partitions:
        raise ValueError(
            f"draw: expected {layout.partitions} partitions, got {partitions.shape[0]}"
        )
    _paste(sheet, partitions[0], panels.full, smooth=partitions.shape[1] >= _SHARP)
    if panels.grid is not None:
        (R, C), side, tile = layout.grid, layout.side, partitions.shape[1]
        whole = partitions[1:].reshape(R, C, tile, tile, 3).swapaxes(1, 2)
        whole = whole.reshape(R * tile, C * tile, 3)
        top, bottom, left, right = (edge * tile // side for edge in shown(layout))
        part = whole[top:bottom, left:right]
        _paste(sheet, part, panels.grid, smooth=tile >= _SHARP)


def light(sheet: np.ndarray, kept: np.ndarray, layout: Layout, panels: Panels) -> None:
    """Dim all patches but those of `kept` (P, T) bool, and draw lines between sub-images.

    Raises ValueError where the mask is not the layout's.
    """
    P, T = layout.partitions, layout.tokens
    if kept.shape != (P, T):
        raise ValueError(f"draw: expected a ({P}, {T}) mask, got {kept.shape}")
    for left, top, right, bottom in panels.patches[~kept]:
        patch = sheet[top:bottom, left:right]
        patch[:] = dimmed(patch)
    for left, top, right, bottom in lines(layout, panels):
        patch = sheet[top:bottom, left:right]
        mixed = patch * (1 - _LINE_OPACITY) + np.array(_LINE) * _LINE_OPACITY
        patch[:] = mixed.astype(np.uint8)


def lines(layout: Layout, panels: Panels) -> list[Box]:
    """The lines between sub-images, two pixels wide."""
    if panels.grid is None:
        return []
    (R, C), side = layout.grid, layout.side
    left, top, right, bottom = panels.grid
    first_row, last_row, first_col, last_col = shown(layout)
    columns = left + _edges(last_col - first_col, right - left)
    rows = top + _edges(last_row - first_row, bottom - top)
    boxes = []
    for c in range(1, C):
        if first_col < c * side < last_col:
            x = int(columns[c * side - first_col])
            boxes.append((x - 1, top, x + 1, bottom))
    for r in range(1, R):
        if first_row < r * side < last_row:
            y = int(rows[r * side - first_row])
            boxes.append((left, y - 1, right, y + 1))
    return boxes


def dimmed(pixels: np.ndarray) -> np.ndarray:
    """What a dropped patch looks like: dark and almost grey. (..., 3) uint8."""
    colour = pixels.astype(np.float32)
    grey = colour @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    muted = colour + (grey[..., None] - colour) * GREY
    shade = np.array(BACKGROUND, dtype=np.float32) * SHADE
    return (muted * DIM + shade).clip(0, 255).astype("u1")


def _edges(cells: int, pixels: int) -> np.ndarray:
    """Where each of so many cells begins over so many pixels, and where the last one ends."""
    return (np.arange(cells + 1) * pixels + cells // 2) // cells


def _cells(box: Box, rows: int, cols: int) -> np.ndarray:
    """The boxes of a grid of rows x cols cells that fills `box`: (rows, cols, 4)."""
    left, top, right, bottom = box
    x = left + _edges(cols, right - left)
    y = top + _edges(rows, bottom - top)
    cells = np.empty((rows, cols, 4), dtype=np.int64)
    cells[..., 0], cells[..., 2] = x[:-1], x[1:]
    cells[..., 1], cells[..., 3] = y[:-1, None], y[1:, None]
    return cells


def _paste(sheet: np.ndarray, pixels: np.ndarray, box: Box, *, smooth: bool) -> None:
    left, top, right, bottom = box
    sheet[top:bottom, left:right] = resized(pixels, (right - left, bottom - top), smooth=smooth)


def resized(pixels: np.ndarray, size: Shape, *, smooth: bool = True) -> np.ndarray:
    """Pixels (height, width, 3) in another size, (width, height); unless `smooth`, each pixel of a
    small picture stays to be seen."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    if not smooth:
        times = max(1, -(-size[0] // image.width), -(-size[1] // image.height))
        grown = (image.width * times, image.height * times)
        image = image.resize(grown, Image.Resampling.NEAREST)
    return np.asarray(image.resize(size, Image.Resampling.LANCZOS))
