# SPDX-License-Identifier: Apache-2.0
"""Kept tokens, copied to their rows of the output in the order in which the language model reads
them.

A row of the output is made of MERGE^2 pieces, one after the other: the patches of its token. Pieces
are what is copied and counted here: D elements each, the piece i of a partition's kept ones being a
part of its kept token i // MERGE^2.
"""

import triton
import triton.language as tl

from .pictures import (
    SUB_IMAGES,
    first_partition_of,
    first_row_of,
    grid_of,
    output_rows_of,
)
from .place import counts_beside, raster_shifts
from .tickets import wait_for


@triton.jit
def load_kept(kept_list, i, length, MERGE: tl.constexpr):
    """Which tokens pieces i of a list are parts of; 0 beyond its length, which is in tokens."""
    place = i // (MERGE * MERGE)
    return tl.load(kept_list + place, mask=place < length, other=0)


@triton.jit
def patches_of(m, i, SIDE: tl.constexpr, MERGE: tl.constexpr):
    """The patches that pieces i are, of tokens m."""
    if MERGE > 1:
        piece = i % (MERGE * MERGE)
        y, x = m // SIDE * MERGE + piece // MERGE, m % SIDE * MERGE + piece % MERGE
        m = y * (SIDE * MERGE) + x
    return m


@triton.jit
def load_pieces(features, stride_t, t, inside, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """The first BLOCK_D columns of those patches t [BLOCK_ROWS] that are inside."""
    d = tl.arange(0, BLOCK_D)[None, :]
    here = inside[:, None] & (d < D)  # [BLOCK_ROWS, BLOCK_D]
    return tl.load(features + t[:, None].to(tl.int64) * stride_t + d, mask=here, other=0)


@triton.jit
def places_of(m, i, shifts, SIDE: tl.constexpr, MERGE: tl.constexpr, RASTER: tl.constexpr):
    """Where pieces i go, which are parts of tokens m, from their partition's first one on."""
    if RASTER:
        i += tl.gather(shifts, m // SIDE, axis=0) * (MERGE * MERGE)
    return i


@triton.jit
def copy_pieces(
    features, stride_t, tokens, indices, first_index, kept_list, kept, fetched, row, shifts,
    first, step,
    SIDE: tl.constexpr, D: tl.constexpr, MERGE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_D: tl.constexpr, RASTER: tl.constexpr,
):  # fmt: skip
    """A partition's kept tokens, blocks of pieces `step` apart from piece `first` on.

    features [T, D] and first_index are the partition's; its rows of tokens [K, MERGE^2, D] and
    indices [K] count from `row`, to which shifts [SUB_IMAGES] add by row of tokens. `fetched`: the
    tokens of the first block, their places and pieces, and the tokens of the second.
    """
    m, places, tile, later = fetched
    i = first + tl.arange(0, BLOCK_ROWS)
    d = tl.arange(0, BLOCK_D)[None, :]
    pieces = kept * (MERGE * MERGE)
    for _ in range(first, pieces, step):
        inside = i < pieces
        to = row * (MERGE * MERGE) + places
        begins = inside & (i % (MERGE * MERGE) == 0)
        tl.store(indices + to // (MERGE * MERGE), first_index + m, mask=begins)
        copy_to = tokens + to[:, None].to(tl.int64) * D + d
        tl.store(copy_to, tile, mask=inside[:, None] & (d < D))
        for column in range(BLOCK_D, D, BLOCK_D):
            t = patches_of(m, i, SIDE, MERGE)
            tile = load_pieces(features + column, stride_t, t, inside, D - column, BLOCK_D)
            tl.store(copy_to + column, tile, mask=inside[:, None] & (column + d < D))
        i += step
        m, later = later, load_kept(kept_list, i + step, kept, MERGE)
        t = patches_of(m, i, SIDE, MERGE)
        tile = load_pieces(features, stride_t, t, i < pieces, D, BLOCK_D)
        places = places_of(m, i, shifts, SIDE, MERGE, RASTER)


@triton.jit
def clear_rows(
    tokens, indices, first, end, chunk, chunks,
    D: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Rows [first, end) of the output that a picture owns and does not fill (`published`)."""
    for start in range(first + chunk * BLOCK_ROWS, end, chunks * BLOCK_ROWS):
        to = start + tl.arange(0, BLOCK_ROWS)
        tl.store(indices + to, -1, mask=to < end)
        for column in range(0, D, BLOCK_D):
            d = column + tl.arange(0, BLOCK_D)[None, :]
            here = (to < end)[:, None] & (d < D)
            tl.store(tokens + to[:, None].to(tl.int64) * D + d, 0, mask=here)


@triton.jit
def gather_job(
    features, stride_p, stride_t, tokens, indices, counts, kept_lists, row_counts,
    partition, chunk, chunks, chosen, box, budgets, place, first_index,
    M: tl.constexpr, SIDE: tl.constexpr, D: tl.constexpr, MERGE: tl.constexpr,
    PUBLISHED: tl.constexpr, RASTER: tl.constexpr, FULL_LAST: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One of `chunks` parts of what a partition of a picture (0: the full image) keeps. Pointers
    are the launch's, but for the picture's counter of choices; first_index is the partition's."""
    R, C = grid_of(box, budgets)
    full_image, is_full = first_partition_of(budgets), partition == 0
    p = full_image + partition
    sub_image = tl.maximum(partition - 1, 0)
    # Partitions, at most 64 and one after the other, of which all that is kept comes first.
    preceding, first_preceding = sub_image, full_image
    if RASTER:
        preceding = sub_image // tl.maximum(C, 1) * C
    if FULL_LAST:
        preceding = tl.where(is_full, R * C, preceding)
        first_preceding += 1
    else:
        preceding = tl.where(is_full, 0, preceding + 1)
    wait_for(chosen, 1 + R * C)

    # One trip to memory: all is asked for, whatever the counts will say, before any is looked at. A
    # second one for the tokens; where they go is worked out meanwhile.
    i = tl.arange(0, SUB_IMAGES)
    kept_list = kept_lists + p.to(tl.int64) * M
    first, step = chunk * BLOCK_ROWS, chunks * BLOCK_ROWS
    in_block = first + tl.arange(0, BLOCK_ROWS)
    m = load_kept(kept_list, in_block, M, MERGE)
    later = load_kept(kept_list, in_block + step, M, MERGE)
    before = tl.load(counts + first_preceding + i, mask=i < preceding, other=0).to(tl.int32)
    kept = tl.load(counts + p).to(tl.int32)
    shifts = tl.zeros([SUB_IMAGES], tl.int32)
    if RASTER:
        band, columns = row_counts + (full_image + 1) * SIDE, tl.where(is_full, 0, C)
        beside = counts_beside(band, sub_image, columns, SIDE)
    pieces = kept * (MERGE * MERGE)
    m = tl.where(in_block < pieces, m, 0)
    later = tl.where(in_block + step < pieces, later, 0)
    own_features = features + p.to(tl.int64) * stride_p
    t = patches_of(m, in_block, SIDE, MERGE)
    tile = load_pieces(own_features, stride_t, t, in_block < pieces, D, BLOCK_D)
    if RASTER:
        shifts = raster_shifts(beside)
    places = places_of(m, in_block, shifts, SIDE, MERGE, RASTER)
    # Last, for ptxas may have it wait for the tokens.
    row = first_row_of(place) + tl.sum(before, axis=0)
    copy_pieces(
        own_features, stride_t, tokens, indices, first_index,
        kept_list, kept, (m, places, tile, later), row, shifts, first, step,
        SIDE, D, MERGE, BLOCK_ROWS, BLOCK_D, RASTER,
    )  # fmt: skip
    if PUBLISHED and is_full:
        in_subs = tl.load(counts + full_image + 1 + i, mask=i < R * C, other=0).to(tl.int32)
        filled = kept + tl.sum(in_subs, axis=0)
        clear_rows(
            tokens, indices, first_row_of(place) + filled,
            first_row_of(place) + output_rows_of(budgets), chunk, chunks,
            D, BLOCK_ROWS, BLOCK_D,
        )  # fmt: skip
