# SPDX-License-Identifier: Apache-2.0
"""Which row of the output a kept token takes: the full image's in index order, before or behind the
sub-images' one after the other, or before theirs in raster order over the assembled grid, as
LLaVA-NeXT packs them. A partition needs to know of the others only how many tokens they keep, in
all or a row.
"""

import triton
import triton.language as tl

from .pictures import SUB_IMAGES


@triton.jit
def add_four(beside, row, first, column, C, SIDE: tl.constexpr):
    """Adds the counts [4, SIDE] at `row`, of the sub-images from column `first` on, to `beside`."""
    left, others = beside
    y = tl.arange(0, SUB_IMAGES)
    four = ()
    for j in tl.static_range(4):
        end = tl.where(C - first > j, SIDE, 0)
        four += (tl.load(row + j * SIDE + y, mask=y < end, other=0),)
    for j in tl.static_range(4):
        left += tl.where(column - first > j, four[j], 0)
        others += tl.where(column - first == j, 0, four[j])
    return left, others


@triton.jit
def counts_beside(row_counts, sub_image, C, SIDE: tl.constexpr):
    """[SUB_IMAGES] each, one for each row y of tokens: how many the sub-images left of this one
    keep in it, and how many those left or right. row_counts [R * C, SIDE] lie in memory. With C = 0
    nothing is read, and all is 0.

    Four sub-images a trip, the first without a branch before it: hardly a grid is wider.
    """
    column = sub_image % tl.maximum(C, 1)
    row_counts += (sub_image - column) * SIDE
    none = tl.zeros([SUB_IMAGES], tl.int32)
    left, others = add_four((none, none), row_counts, 0, column, C, SIDE)
    for first in range(4, C, 4):
        row = row_counts + first * SIDE
        left, others = add_four((left, others), row, first, column, C, SIDE)
    return left, others


@triton.jit
def raster_shifts(beside):
    """[SUB_IMAGES], one for each row y of tokens: what is added to a token's position in its
    sub-image to give its place among all kept tokens of its row of sub-images in raster order.
    `beside` are the sub-image's counts_beside."""
    left, others = beside
    return tl.cumsum(others, axis=0) - others + left
