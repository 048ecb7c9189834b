# SPDX-License-Identifier: Apache-2.0
"""The picture's budget, shared out among its sub-images by how many of the full image's best
tokens at the initial layer lie in each. Integers throughout under `exact`; the two float32
roundings of the published code under `published`.

Vectors over sub-images are SUB_IMAGES long. M <= 2^12 and R * C <= 2^6 keep products in 32 bits.
Two sums share a word and a reduction: that of capacities, up to 2^18, and above it that of weights,
up to M, or of ones.
"""

import triton
import triton.language as tl

from .choose import choose
from .pictures import SUB_IMAGES, grid_of, rest_of
from .region import sub_image_box, sub_image_of

UPPER = tl.constexpr(1 << 19)  # one of the upper sum; capacities add up to less


@triton.jit
def count_weights(box, budgets, kept, M: tl.constexpr, SIDE: tl.constexpr, BLOCK_M: tl.constexpr,
                  PUBLISHED: tl.constexpr):  # fmt: skip
    """How many of the tokens that are kept [BLOCK_M] fall to each sub-image; by regions under
    `exact`, by contiguous runs under `published`."""
    m = tl.arange(0, BLOCK_M)
    if PUBLISHED:
        R, C = grid_of(box, budgets)
        sub_image = m // (M // (R * C))
    else:
        sub_image = sub_image_of(box, budgets, m, SIDE)
    return tl.histogram(sub_image, SUB_IMAGES, mask=kept & (m < M))


@triton.jit
def share_out(rest, weights, capacities, sharing):
    """Largest remainder under capacity, all [SUB_IMAGES]: what each of those sharing gets of rest.

    Where shares, remainders included, exceed their capacity, all such are fixed at it, and what
    remains is parted afresh among the others. `rest` is at most the sum of the capacities.
    """
    i = tl.arange(0, SUB_IMAGES)
    shares = tl.zeros([SUB_IMAGES], tl.int32)
    overflows = True
    while overflows:
        both = weights.to(tl.uint32) * UPPER + capacities.to(tl.uint32)
        sums = tl.sum(tl.where(sharing, both, 0), axis=0)
        weight_sum, capacity_sum = (sums // UPPER).to(tl.int32), (sums % UPPER).to(tl.int32)
        basis = tl.where(sharing, tl.where(weight_sum > 0, weights, capacities), 0)
        products = rest * basis
        total = tl.where(weight_sum > 0, weight_sum, capacity_sum)
        total = tl.maximum(total, 1)  # it is 0 only where `rest` is
        proposal = products // total
        remainders = products % total
        left = rest - tl.sum(proposal, axis=0)
        # [j, i]: whether j is ahead of i in line for one more; ties to the lower index. Summed
        # along the first axis, most of which a thread has in registers of its own.
        larger = remainders[:, None] > remainders[None, :]
        equal = (remainders[:, None] == remainders[None, :]) & (i[:, None] < i[None, :])
        ahead = tl.sum(((larger | equal) & sharing[:, None]).to(tl.int32), axis=0)
        proposal += (sharing & (ahead < left)).to(tl.int32)
        over = sharing & (proposal > capacities)
        shares = tl.where(sharing, tl.minimum(proposal, capacities), shares)
        fixed = tl.sum(tl.where(over, UPPER + capacities, 0), axis=0)
        rest -= fixed % UPPER
        sharing = sharing & (proposal <= capacities)
        overflows = fixed > 0
    return shares


@triton.jit
def share_out_published(rest, weights, M: tl.constexpr):
    """Each product rounded to float32 twice and truncated; the remainder is lost."""
    total = tl.sum(weights, axis=0)
    weight = tl.div_rn(weights.to(tl.float32), total.to(tl.float32))
    return tl.minimum((weight * rest.to(tl.float32)).to(tl.int32), M)


@triton.jit
def allocate(box, budgets, keys, counted, M: tl.constexpr, SIDE: tl.constexpr,
             BLOCK_M: tl.constexpr, PUBLISHED: tl.constexpr):  # fmt: skip
    """What each sub-image keeps (under `published`, before the crop), [SUB_IMAGES] int32, of the
    full image's keys [BLOCK_M] at the initial layer."""
    kept = choose(keys, counted)
    weights = count_weights(box, budgets, kept, M, SIDE, BLOCK_M, PUBLISHED)
    if PUBLISHED:
        shares = share_out_published(rest_of(budgets), weights, M)
    else:
        i = tl.arange(0, SUB_IMAGES)
        R, C = grid_of(box, budgets)
        y0, y1, x0, x1 = sub_image_box(box, budgets, i, SIDE)
        sharing = i < R * C
        capacities = tl.where(sharing, (y1 - y0) * (x1 - x0), 0)
        shares = share_out(rest_of(budgets), weights, capacities, sharing)
    return shares
