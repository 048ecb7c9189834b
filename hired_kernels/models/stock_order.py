# SPDX-License-Identifier: Apache-2.0
"""How the stock model lines up all tokens of a picture, and where among them the kept ones are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .accounting import Anatomy, Plan


class StockRun(NamedTuple):
    """How a picture's tokens follow each other in the stock prompt.

    `rows` x `cols` is the assembled map without padding, as the stock model shrinks it; one newline
    ends each row, and a picture without a map where `newline`. `length` is the whole of it.
    """

    rows: int
    cols: int
    newline: bool
    length: int


def stock_run(anatomy: Anatomy, grid: tuple[int, int], crop: Sequence[int]) -> StockRun:
    """Of a picture of this grid and crop. Raises no error: both are known to be valid."""
    R, C = grid
    if anatomy.tiles is not None or anatomy.pinpoints is None:
        return StockRun(0, 0, False, (1 + R * C) * anatomy.tokens)
    if R == 0:
        return StockRun(0, 0, True, anatomy.tokens + 1)
    top, bottom, left, right = crop
    rows, cols = bottom - top, right - left
    if anatomy.shrinks_to is not None:
        ratio = math.sqrt(rows * cols / (anatomy.shrinks_to * anatomy.tokens))
        if ratio > 1.1:
            rows, cols = int(rows // ratio), int(cols // ratio)
    return StockRun(rows, cols, True, anatomy.tokens + rows * (cols + 1))


def stock_lengths(plan: Plan) -> list[int]:
    """Tokens that the stock model has of each picture."""
    crops = plan.crops or [(0, 0, 0, 0)] * len(plan.grids)
    pictures = zip(plan.grids, crops, strict=True)
    return [stock_run(plan.anatomy, *picture).length for picture in pictures]


def stock_places(index: Tensor, plan: Plan, picture: int) -> tuple[Tensor, Tensor]:
    """Places of kept tokens in the stock run of a picture, and of the newlines of their rows.

    index (k,): `p * T + t` of tokens of this picture, its full image being p = 0.
    """
    anatomy, (R, C) = plan.anatomy, plan.grids[picture]
    crop = (0, 0, 0, 0) if plan.crops is None else plan.crops[picture]
    T, side, run = anatomy.tokens, anatomy.side, stock_run(anatomy, (R, C), crop)
    if R == 0:
        return index, torch.full_like(index, T)
    p, t = torch.div(index, T, rounding_mode="floor"), index % T
    if anatomy.tiles is not None:
        # The full image comes after its tiles.
        return torch.where(p == 0, R * C, p - 1) * T + t, torch.full_like(index, run.length)
    top, bottom, left, right = crop
    y = torch.div(p - 1, C, rounding_mode="floor") * side + torch.div(
        t, side, rounding_mode="floor"
    )
    x = (p - 1) % C * side + t % side
    row = _cell(y - top, bottom - top, run.rows)
    col = _cell(x - left, right - left, run.cols)
    first = T + row * (run.cols + 1)
    return torch.where(p == 0, t, first + col), first + run.cols


def _cell(place: Tensor, size: int, cells: int) -> Tensor:
    """The one of `cells` cells of a line of `size` patches that holds a patch's centre."""
    if size == cells:
        return place
    return torch.div((2 * place + 1) * cells, 2 * size, rounding_mode="floor")
