# SPDX-License-Identifier: Apache-2.0
"""Draws what was kept: the full image beside its sub-images, kept patches lit, the others dimmed.

The sub-images stand side by side as the grid they were cut from, padding hatched. The full image
is stretched back from its square to the size that the picture has in that grid, so that the same
spot stands at the same height in both. Pixels are those that the vision tower saw.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..geometry import Layout

_BACKGROUND = (15, 18, 24)
_HATCH = (44, 50, 61)
_LINE = (226, 230, 236)
_TEXT = (230, 234, 240)
_FAINT = (139, 148, 160)
_DIM = 0.3  # brightness of a dropped patch
_GREY = 0.82  # how far its colours are drawn to grey
_MARGIN, _GAP, _TITLE, _CAPTION, _FOOTER = 28, 30, 40, 44, 30

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Canvas:
    """Where everything lies, in pixels: left, top, right, bottom, half-open.

    `full` is the full image; `grid` all sub-images with their padding and `region` the part of it
    that is picture, both None where there are no sub-images.
    """

    size: tuple[int, int]
    full: Box
    grid: Box | None
    region: Box | None
    patches: np.ndarray  # (P, T, 4)


def arrange(layout: Layout, tile: int) -> Canvas:
    """Place a picture's partitions, `tile` pixels a side, on a canvas."""
    (R, C), side = layout.grid, layout.side
    pixel = tile // side
    top_edge = _MARGIN + _TITLE
    if R == 0:
        edge = 2 * pixel * side
        full = (_MARGIN, top_edge, _MARGIN + edge, top_edge + edge)
        size = full[2] + _MARGIN, full[3] + _CAPTION + _FOOTER
        return Canvas(size, full, None, None, _cells(full, side, side).reshape(1, -1, 4))
    rows, cols = R * side * pixel, C * side * pixel
    crop = layout.crop or (0, R * side, 0, C * side)
    top, bottom, left, right = (edge * pixel for edge in crop)
    # A sliver of a picture would be a sliver of a full image, too thin to see.
    width, height = max(right - left, tile // 2), max(bottom - top, tile // 2)
    centre = top_edge + min(max((top + bottom) // 2, height // 2), max(rows, height) - height // 2)
    full = (_MARGIN, centre - height // 2, _MARGIN + width, centre - height // 2 + height)
    x = full[2] + _GAP
    grid = (x, top_edge, x + cols, top_edge + rows)
    region = (x + left, top_edge + top, x + right, top_edge + bottom)
    cells = _cells(grid, R * side, C * side).reshape(R, side, C, side, 4).swapaxes(1, 2)
    patches = np.concatenate(
        [_cells(full, side, side).reshape(1, -1, 4), cells.reshape(R * C, -1, 4)]
    )
    size = grid[2] + _MARGIN, max(grid[3], full[3]) + _CAPTION + _FOOTER
    return Canvas(size, full, grid, region, patches)


def draw(
    partitions: np.ndarray, kept: np.ndarray, layout: Layout, footer: Sequence[str] = ()
) -> Image.Image:
    """The picture of one selection.

    partitions (P, tile, tile, 3) uint8: what the tower saw, full image first. kept (P, T) bool.
    `footer` is said below, left and (if there are two) right. Raises ValueError where the shapes
    do not fit the layout.
    """
    P, T = layout.partitions, layout.tokens
    if partitions.shape[0] != P or kept.shape != (P, T):
        raise ValueError(
            f"draw: expected {P} partitions and a ({P}, {T}) mask, got {partitions.shape[0]} and "
            f"{kept.shape}"
        )
    canvas = arrange(layout, partitions.shape[1])
    bright = _paint(partitions, layout, canvas)
    lit = np.zeros(bright.shape[:2], dtype=bool)
    for left, top, right, bottom in canvas.patches[kept]:
        lit[top:bottom, left:right] = True
    pixels = np.where(lit[..., None], bright, dimmed(bright))
    picture = np.zeros_like(lit)
    for box in (canvas.full, canvas.region):
        if box:
            picture[box[1] : box[3], box[0] : box[2]] = True
    image = Image.fromarray(np.where(picture[..., None], pixels, _hatching(canvas)))
    pen = ImageDraw.Draw(image, "RGBA")
    _rule(pen, layout, canvas)
    _write(pen, kept, layout, canvas, footer)
    return image


def tags(layout: Layout, canvas: Canvas) -> list[Box]:
    """Where the count of each sub-image stands: in the corner of what it shows of the picture."""
    if not canvas.grid or not canvas.region:
        return []
    (R, C), (left, top, right, bottom) = layout.grid, canvas.grid
    boxes = []
    for r in range(R):
        for c in range(C):
            x = max(left + (right - left) * c // C, canvas.region[0]) + 8
            y = max(top + (bottom - top) * r // R, canvas.region[1]) + 8
            boxes.append((x, y, x + 40, y + 23))
    return boxes


def dimmed(pixels: np.ndarray) -> np.ndarray:
    """What a dropped patch looks like: dark and almost grey. (..., 3) uint8."""
    colour = pixels.astype(np.float32)
    grey = colour @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    muted = colour + (grey[..., None] - colour) * _GREY
    return (muted * _DIM + np.array(_BACKGROUND, dtype=np.float32) * 0.5).clip(0, 255).astype("u1")


def _cells(box: Box, rows: int, cols: int) -> np.ndarray:
    """The boxes of a grid of rows x cols cells that fills `box`: (rows, cols, 4)."""
    left, top, right, bottom = box
    x = left + (np.arange(cols + 1) * (right - left) + cols // 2) // cols
    y = top + (np.arange(rows + 1) * (bottom - top) + rows // 2) // rows
    cells = np.empty((rows, cols, 4), dtype=np.int64)
    cells[..., 0], cells[..., 2] = x[:-1], x[1:]
    cells[..., 1], cells[..., 3] = y[:-1, None], y[1:, None]
    return cells


def _paint(partitions: np.ndarray, layout: Layout, canvas: Canvas) -> np.ndarray:
    """All partitions in their places, full brightness."""
    sheet = Image.new("RGB", canvas.size, _BACKGROUND)
    left, top, right, bottom = canvas.full
    full = Image.fromarray(partitions[0]).resize(
        (right - left, bottom - top), Image.Resampling.LANCZOS
    )
    sheet.paste(full, (left, top))
    if canvas.grid:
        edge = partitions.shape[1]
        for p, pixels in enumerate(partitions[1:]):
            r, c = divmod(p, layout.grid[1])
            place = canvas.grid[0] + c * edge, canvas.grid[1] + r * edge
            sheet.paste(Image.fromarray(pixels), place)
    return np.asarray(sheet)


def _hatching(canvas: Canvas) -> np.ndarray:
    """The background, hatched where the grid is padding."""
    width, height = canvas.size
    pixels = np.empty((height, width, 3), dtype=np.uint8)
    pixels[:] = _BACKGROUND
    if canvas.grid:
        left, top, right, bottom = canvas.grid
        y, x = np.mgrid[top:bottom, left:right]
        pixels[top:bottom, left:right][(x + y) % 9 < 1] = _HATCH
    return pixels


def _rule(pen: ImageDraw.ImageDraw, layout: Layout, canvas: Canvas) -> None:
    """Thin lines between sub-images, and a frame round their grid."""
    if not canvas.grid:
        return
    left, top, right, bottom = canvas.grid
    (R, C) = layout.grid
    line = (*_LINE, 170)
    for c in range(1, C):
        x = left + (right - left) * c // C
        pen.rectangle((x - 1, top, x, bottom - 1), fill=line)
    for r in range(1, R):
        y = top + (bottom - top) * r // R
        pen.rectangle((left, y - 1, right - 1, y), fill=line)
    pen.rectangle((left, top, right - 1, bottom - 1), outline=_HATCH)


def _write(
    pen: ImageDraw.ImageDraw,
    kept: np.ndarray,
    layout: Layout,
    canvas: Canvas,
    footer: Sequence[str],
) -> None:
    counts, capacities = kept.sum(axis=1).tolist(), layout.capacities
    left, top, right, bottom = canvas.full
    _text(pen, (left, top - 12), "full image", right - left, 18, _TEXT, "ls")
    said = f"{counts[0]:,} of {capacities[0]:,} tokens kept"
    _text(pen, (left, bottom + 12), said, right - left, 15, _FAINT, "lt")
    if canvas.grid:
        R, C = layout.grid
        left, top, right, bottom = canvas.grid
        _text(pen, (left, top - 12), f"sub-images, {R} x {C}", right - left, 18, _TEXT, "ls")
        said = f"{sum(counts[1:]):,} of {sum(capacities[1:]):,} tokens kept"
        padding = R * C * layout.tokens - sum(capacities[1:])
        if padding:
            said += f", {padding:,} more are padding"
        _text(pen, (left, bottom + 12), said, right - left, 15, _FAINT, "lt")
        for (x, y, x_end, y_end), count in zip(tags(layout, canvas), counts[1:], strict=True):
            pen.rounded_rectangle((x, y, x_end - 1, y_end - 1), 5, fill=(*_BACKGROUND, 225))
            place = (x + x_end) // 2, (y + y_end) // 2
            _text(pen, place, f"{count:,}", x_end - x - 8, 15, _TEXT, "mm")
    width, height = canvas.size
    for said, x, anchor in zip(footer, (_MARGIN, width - _MARGIN), ("ls", "rs"), strict=False):
        room = (width - 2 * _MARGIN) // len(footer) - 8 * (len(footer) - 1)
        _text(pen, (x, height - 16), said, room, 14, _FAINT, anchor)


def _text(
    pen: ImageDraw.ImageDraw,
    place: tuple[int, int],
    said: str,
    room: int,
    size: int,
    colour: tuple[int, int, int],
    anchor: str,
) -> None:
    """Text no wider than `room` pixels: in a smaller size if it must be."""
    font = ImageFont.load_default(size)
    while size > 8 and pen.textlength(said, font=font) > room:
        size -= 1
        font = ImageFont.load_default(size)
    pen.text(place, said, font=font, fill=colour, anchor=anchor)
