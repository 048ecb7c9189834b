# SPDX-License-Identifier: Apache-2.0
"""Which row of the output a kept patch takes: the full image's in index order, then the sub-images'
one after the other, or in raster order over the assembled grid, as LLaVA-NeXT packs them. A
partition needs to know of the others only how many patches they keep, in all or a patch row.
"""

import triton
import triton.language as tl

from .pictures import SUB_IMAGES


@triton.jit
def raster_shifts(row_counts, counts, sub_image, C, SIDE: tl.constexpr):
    """[SUB_IMAGES], one for each patch row y: what is added to a patch's position in its sub-image
    to give its place among all kept patches of the sub-images in raster order.

    row_counts [R * C, SIDE] lie in memory; counts [SUB_IMAGES] are those of the sub-images.
    """
    i = tl.arange(0, SUB_IMAGES)
    y = tl.arange(0, SUB_IMAGES)
    r, c = sub_image // C, sub_image % C
    above = tl.sum(tl.where(i < r * C, counts, 0), axis=0)  # in rows of the grid above this one
    left = tl.zeros([SUB_IMAGES], tl.int32)  # kept in patch row y: left of this sub-image,
    others = tl.zeros([SUB_IMAGES], tl.int32)  # and beside it
    for j in range(0, C):
        count = tl.load(row_counts + (r * C + j) * SIDE + y, mask=y < SIDE, other=0)
        left += tl.where(j < c, count, 0)
        others += tl.where(j == c, 0, count)
    return above + tl.cumsum(others, axis=0) - others + left
