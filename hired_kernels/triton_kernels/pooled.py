# SPDX-License-Identifier: Apache-2.0
"""`policy="pooled"`: the best tokens of all of a picture's partitions together, without an
allocation.

Ordered keys of a picture's partitions lie one behind the other in memory, the pool. So equal keys
are told apart by where they lie in it: the lower partition comes first, then the lower index. Each
partition's program finds the cut of the pool for itself, and takes its own tokens.
"""

import triton
import triton.language as tl

from .choose import DIGIT_BITS, DIGITS, digits_of, first_digit, valid_tokens, write_kept
from .pictures import grid_of, output_rows_of
from .score import KEY_EXCLUDED
from .tickets import wait_for


@triton.jit
def score_job(partition, keys, box, budgets, pool, M: tl.constexpr, SIDE: tl.constexpr,
              BLOCK_M: tl.constexpr):  # fmt: skip
    """A partition's keys [BLOCK_M], without its padding, into the picture's pool."""
    m = tl.arange(0, BLOCK_M)
    keys = tl.where(valid_tokens(partition, box, budgets, M, SIDE, BLOCK_M), keys, KEY_EXCLUDED)
    tl.store(pool + partition * M + m, keys.to(tl.int32, bitcast=True), mask=m < M)


@triton.jit
def load_pool(pool, start, end, BLOCK: tl.constexpr):
    """Keys of the pool from `start` on; excluded from `end` on."""
    i = start + tl.arange(0, BLOCK)
    return tl.load(pool + i, mask=i < end, other=0).to(tl.uint32, bitcast=True)


@triton.jit
def find_digit(counts, k):
    """choose.find_digit of the numbers of keys with each digit, up to 2^19 in all."""
    i = tl.arange(0, DIGITS).to(tl.int64)
    reached = tl.cumsum(counts, axis=0)
    larger = reached - counts
    packed = i << 40 | larger.to(tl.int64) << 20 | ((reached - k) & 0xFFFFF).to(tl.int64)
    found = tl.max(tl.where(larger < k, packed, 1), axis=0)
    digit = DIGITS - 1 - (found >> 40).to(tl.uint32)
    return digit, (found >> 20 & 0xFFFFF).to(tl.int32), (found & 0xFFFFF).to(tl.int32)


@triton.jit
def find_cut(pool, keys_in_pool, k, BLOCK: tl.constexpr):
    """The k-th largest key, how many of its equals are among the k largest, and whether there may
    be more of them. Once no more than k keys have the digits found or larger ones, those are the
    k, and the cut is the least number with these digits."""
    highest = tl.full((), KEY_EXCLUDED, tl.uint32)
    complement = tl.full((), 0, tl.uint32)
    for start in range(0, keys_in_pool, BLOCK):
        keys = load_pool(pool, start, keys_in_pool, BLOCK)
        highest = tl.maximum(highest, tl.max(keys, axis=0))
        others = tl.max(tl.where(keys != KEY_EXCLUDED, ~keys, 0), axis=0)
        complement = tl.maximum(complement, others)
    shift, cut = first_digit(highest, ~complement)
    more = 1
    known = shift + DIGIT_BITS  # the lowest bit that is known of the cut, at least 1
    while (more > 0) & (known > 0):
        counts = tl.zeros([DIGITS], tl.int32)
        for start in range(0, keys_in_pool, BLOCK):
            keys = load_pool(pool, start, keys_in_pool, BLOCK)
            # In two steps, for all 32 bits may go.
            like_cut = (keys ^ cut) >> (known - 1).to(tl.uint32) >> 1 == 0
            counted = (keys != KEY_EXCLUDED) & like_cut
            counts += tl.histogram(digits_of(keys, shift), DIGITS, mask=counted)
        digit, larger, more = find_digit(counts, k)
        cut |= digit << shift.to(tl.uint32)
        k -= larger
        known = shift
        shift = tl.maximum(shift - DIGIT_BITS, 0)  # the last may overlap the one before
    return tl.maximum(cut, KEY_EXCLUDED + 1), k, more > 0


@triton.jit
def choose_pooled_job(
    partition, box, budgets, scored, pool, kept_list, row_counts, counts,
    M: tl.constexpr, SIDE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_POOL: tl.constexpr,
    RASTER: tl.constexpr,
):  # fmt: skip
    """choose.choose_job of a picture's pool, once all of its partitions are scored."""
    R, C = grid_of(box, budgets)
    wait_for(scored, 1 + R * C)
    cut, k, more = find_cut(pool, (1 + R * C) * M, output_rows_of(budgets), BLOCK_POOL)
    first = partition * M
    keys = load_pool(pool, first, first + M, BLOCK_M)
    kept = keys >= cut
    if more:
        before = 0
        for start in range(0, first, BLOCK_POOL):
            ties = load_pool(pool, start, first, BLOCK_POOL) == cut
            before += tl.sum(ties.to(tl.int32), axis=0)
        ties = keys == cut
        kept = kept & (~ties | (before + tl.cumsum(ties.to(tl.int32), axis=0) <= k))
    write_kept(kept, kept_list, row_counts, SIDE, BLOCK_M, RASTER)
    tl.store(counts, tl.sum(kept.to(tl.int64), axis=0))
