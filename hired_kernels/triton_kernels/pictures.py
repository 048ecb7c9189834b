# SPDX-License-Identifier: Apache-2.0
"""What a program knows of a picture: integers worked out on the host, packed into the arguments.

A launch takes its pictures by value, three 64-bit words each, so nothing has to be copied to the
device first. Triton compiles anew for an integer that is 1, a multiple of 16, or beyond 32 bits
where the last was not: a word has bit 62 and bit 0 set, and so looks the same whatever it holds.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

WORDS = tl.constexpr(3)
# A grid has at most this many sub-images: vectors over them, and over a partition's rows of tokens,
# are as long.
SUB_IMAGES = tl.constexpr(64)


class Picture(NamedTuple):
    """Numbers of one picture. Positions count from the first of the launch.

    R, C: its grid. top, bottom, left, right: what is picture and not padding, in tokens of the
    assembled grid. first_partition, first_row, output_rows: what it owns of the batch and of the
    output. full_budget: what the full image keeps; rest: what its sub-images share.
    """

    R: int
    C: int
    top: int
    bottom: int
    left: int
    right: int
    first_partition: int
    first_row: int
    output_rows: int
    full_budget: int
    rest: int


def pack(picture: Picture) -> tuple[int, int, int]:
    """The words of a picture within the backend's limits (T <= 4096, R * C <= 64)."""
    p = picture
    box = p.top | p.bottom << 13 | p.left << 26 | p.right << 39 | p.R << 52
    budgets = p.first_partition | p.C << 13 | p.rest << 20 | p.output_rows << 39
    place = p.first_row | p.full_budget << 25
    box, budgets, place = (1 << 62 | word << 1 | 1 for word in (box, budgets, place))
    return box, budgets, place


@triton.jit
def find_picture(pictures, count, position, a_picture, a_partition, MOST: tl.constexpr):
    """The picture that owns `position`, where each picture owns `a_picture` positions, and each of
    its partitions `a_partition`. Returns its index and its words: box, budgets, place."""
    index = 0
    box, budgets, place = pictures[0], pictures[1], pictures[2]
    for b in tl.static_range(1, MOST):
        first_partition = (pictures[b * WORDS + 1] >> 1 & 0x1FFF).to(tl.int32)
        is_later = (b < count) & (b * a_picture + first_partition * a_partition <= position)
        index = tl.where(is_later, b, index)
        box = tl.where(is_later, pictures[b * WORDS], box)
        budgets = tl.where(is_later, pictures[b * WORDS + 1], budgets)
        place = tl.where(is_later, pictures[b * WORDS + 2], place)
    return index, box, budgets, place


@triton.jit
def box_of(box):
    """top, bottom, left, right."""
    top, bottom = (box >> 1 & 0x1FFF).to(tl.int32), (box >> 14 & 0x1FFF).to(tl.int32)
    left, right = (box >> 27 & 0x1FFF).to(tl.int32), (box >> 40 & 0x1FFF).to(tl.int32)
    return top, bottom, left, right


@triton.jit
def grid_of(box, budgets):
    """R, C."""
    return (box >> 53 & 0x7F).to(tl.int32), (budgets >> 14 & 0x7F).to(tl.int32)


@triton.jit
def first_partition_of(budgets):
    return (budgets >> 1 & 0x1FFF).to(tl.int32)


@triton.jit
def rest_of(budgets):
    return (budgets >> 21 & 0x7FFFF).to(tl.int32)


@triton.jit
def output_rows_of(budgets):
    return (budgets >> 40 & 0x7FFFF).to(tl.int32)


@triton.jit
def first_row_of(place):
    return (place >> 1 & 0x1FFFFFF).to(tl.int32)


@triton.jit
def full_budget_of(place):
    return (place >> 26 & 0x1FFF).to(tl.int32)
