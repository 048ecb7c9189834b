# SPDX-License-Identifier: Apache-2.0
"""Where tokens lie: which part of a sub-image is picture and not padding, and which sub-image a
token of the full image falls to. SIDE is tokens a side.
"""

import triton
import triton.language as tl

from .pictures import box_of, grid_of


@triton.jit
def clamp_to(value, low, high):
    return tl.minimum(tl.maximum(value, low), high)


@triton.jit
def sub_image_box(box, budgets, sub_image, SIDE: tl.constexpr):
    """y0, y1, x0, x1: the tokens of sub-images, any number of them, that are picture."""
    top, bottom, left, right = box_of(box)
    _, C = grid_of(box, budgets)
    y, x = sub_image // C * SIDE, sub_image % C * SIDE
    return (
        clamp_to(top - y, 0, SIDE),
        clamp_to(bottom - y, 0, SIDE),
        clamp_to(left - x, 0, SIDE),
        clamp_to(right - x, 0, SIDE),
    )


@triton.jit
def is_whole(box, budgets, SIDE: tl.constexpr):
    """Whether no sub-image has padding. M need not be square then."""
    top, bottom, left, right = box_of(box)
    R, C = grid_of(box, budgets)
    return (bottom - top == R * SIDE) & (right - left == C * SIDE)


@triton.jit
def is_picture(box, budgets, sub_image, m, SIDE: tl.constexpr):
    """Which of the tokens m of a sub-image are not padding."""
    y0, y1, x0, x1 = sub_image_box(box, budgets, sub_image, SIDE)
    y, x = m // SIDE, m % SIDE
    return (y0 <= y) & (y < y1) & (x0 <= x) & (x < x1)


@triton.jit
def part_of(i, low, high, parts, SIDE: tl.constexpr):
    """In which of `parts` sub-images along one axis the centre of token i of the full image lies,
    where the full image shows [low, high) of the assembled axis."""
    centre = 2 * SIDE * low + (2 * i + 1) * (high - low)
    return tl.minimum(centre // (2 * SIDE * SIDE), parts - 1)


@triton.jit
def sub_image_of(box, budgets, m, SIDE: tl.constexpr):
    top, bottom, left, right = box_of(box)
    R, C = grid_of(box, budgets)
    return part_of(m // SIDE, top, bottom, R, SIDE) * C + part_of(m % SIDE, left, right, C, SIDE)
