# SPDX-License-Identifier: Apache-2.0
"""Top-k of a partition as a cut: the k-th largest key, and which of those that tie with it stay.

Whether a token is kept is then a question to that token alone, and the kept ones come out in index
order by a prefix sum: no sort, no atomics on the result, lower index first.

The cut is found by radix selection, eight bits a step. The first step's counts do not hang on k:
they stand by themselves (`count_first`), for a program that waits for its k.
"""

import triton
import triton.language as tl

from .pictures import SUB_IMAGES
from .region import is_picture, is_whole
from .score import KEY_EXCLUDED
from .tickets import wait_for

DIGIT_BITS = tl.constexpr(8)
DIGITS = tl.constexpr(256)


@triton.jit
def digits_of(keys, shift):
    """The digit of each key at `shift`, as its place among all digits, the largest first."""
    return ((~keys >> shift.to(tl.uint32)) & (DIGITS - 1)).to(tl.int32)


@triton.jit
def count_digits(keys, counted, shift):
    """How many of the keys that are counted have each digit at `shift`, the largest digit first,
    and how many have that or a larger one: int32 [DIGITS]."""
    counts = tl.histogram(digits_of(keys, shift), DIGITS, mask=counted)
    return counts, tl.cumsum(counts, axis=0)


@triton.jit
def first_digit(highest, lowest):
    """Of the first step, at the highest bit in which two keys differ (attention sums share most of
    their exponent): shift, and what stands above that digit in all keys."""
    # Rounded, 2^n - 1 may become 2^n, which is to look a bit too high.
    exponent = (highest ^ lowest).to(tl.float32).to(tl.uint32, bitcast=True) >> 23
    different = exponent.to(tl.int32) - 126  # bits; below 0 for none
    shift = tl.minimum(tl.maximum(different - DIGIT_BITS, 0), 32 - DIGIT_BITS)
    above = (highest >> shift.to(tl.uint32)) // DIGITS * DIGITS << shift.to(tl.uint32)
    return shift, above


@triton.jit
def count_first(keys):
    """first_digit and count_digits of all keys that are not excluded."""
    counted = keys != KEY_EXCLUDED
    highest = tl.max(keys, axis=0)
    lowest = ~tl.max(tl.where(counted, ~keys, 0), axis=0)
    shift, above = first_digit(highest, lowest)
    counts, reached = count_digits(keys, counted, shift)
    return shift, above, counts, reached


@triton.jit
def find_digit(counts, reached, k):
    """Of count_digits: the digit of the k-th largest, how many have a larger one, and how many more
    than k have that or a larger one. M <= 2^12 keeps the last two below 2^12."""
    i = tl.arange(0, DIGITS)
    larger = reached - counts
    packed = i << 24 | (larger & 0xFFF) << 12 | ((reached - k) & 0xFFF)
    # The last that less than k precede; of k = 0 the largest digit, and more than k have it.
    found = tl.max(tl.where(larger < k, packed, 1).to(tl.uint32, bitcast=True), axis=0)
    digit = DIGITS - 1 - (found >> 24)
    return digit, (found >> 12 & 0xFFF).to(tl.int32), (found & 0xFFF).to(tl.int32)


@triton.jit
def choose_from(keys, first, k):
    """Which of keys [BLOCK_M] are the k largest, equal ones by their index: bool [BLOCK_M]. `first`
    is their count_first; k is at most the number of those that are not excluded.

    Once no more than k keys have the digits found or larger ones, those are the k: lower digits
    decide nothing. Else the lowest digit leaves keys that are equal.
    """
    shift, cut, counts, reached = first
    digit, larger, more = find_digit(counts, reached, k)
    cut |= digit << shift.to(tl.uint32)
    k -= larger
    while (more > 0) & (shift > 0):
        counted = (keys != KEY_EXCLUDED) & ((keys ^ cut) >> shift.to(tl.uint32) == 0)
        shift = tl.maximum(shift - DIGIT_BITS, 0)  # the last may overlap the one before
        counts, reached = count_digits(keys, counted, shift)
        digit, larger, more = find_digit(counts, reached, k)
        cut |= digit << shift.to(tl.uint32)
        k -= larger
    cut = tl.maximum(cut, KEY_EXCLUDED + 1)
    kept = keys >= cut
    if more > 0:
        ties = keys == cut
        kept = kept & (~ties | (tl.cumsum(ties.to(tl.int32), axis=0) <= k))
    return kept


@triton.jit
def choose(keys, k):
    return choose_from(keys, count_first(keys), k)


@triton.jit
def valid_tokens(partition, box, budgets, M: tl.constexpr, SIDE: tl.constexpr,
                 BLOCK_M: tl.constexpr):  # fmt: skip
    """Which tokens of a picture's partition (0: the full image) are not padding: bool [BLOCK_M]."""
    m = tl.arange(0, BLOCK_M)
    valid = m < M
    if partition > 0 and not is_whole(box, budgets, SIDE):
        valid &= is_picture(box, budgets, partition - 1, m, SIDE)
    return valid


@triton.jit
def write_kept(kept, kept_list, row_counts, SIDE: tl.constexpr, BLOCK_M: tl.constexpr,
               RASTER: tl.constexpr):  # fmt: skip
    """The list of what a partition keeps, and under raster order its number in each row."""
    m = tl.arange(0, BLOCK_M)
    places = tl.cumsum(kept.to(tl.int32), axis=0)
    tl.store(kept_list + places - 1, m, mask=kept)
    if RASTER:
        y = tl.arange(0, SUB_IMAGES)
        tl.store(row_counts + y, tl.histogram(m // SIDE, SUB_IMAGES, mask=kept), mask=y < SIDE)


@triton.jit
def choose_job(
    partition, kept_in_full, keys, box, budgets, weighed, shares, kept_list, row_counts, counts,
    M: tl.constexpr, SIDE: tl.constexpr, BLOCK_M: tl.constexpr,
    PUBLISHED: tl.constexpr, RASTER: tl.constexpr,
):  # fmt: skip
    """What a partition (0: the full image) keeps of keys [BLOCK_M]: its list, its number, and for
    sub-images under raster order its number in each row. Pointers are the partition's own, those to
    the counter and to shares [R * C] the picture's. What does not hang on the budgets is done
    before they are waited for."""
    valid = valid_tokens(partition, box, budgets, M, SIDE, BLOCK_M)
    if not PUBLISHED:  # which learns what is padding only after it has chosen
        keys = tl.where(valid, keys, KEY_EXCLUDED)
    first = count_first(keys)
    k = kept_in_full
    if partition > 0:
        wait_for(weighed, 1)
        k = tl.load(shares + partition - 1)
    kept = choose_from(keys, first, k) & valid
    write_kept(kept, kept_list, row_counts, SIDE, BLOCK_M, RASTER)
    # No budget is beyond what may be kept, so that `exact` keeps all of it.
    number = tl.sum(kept.to(tl.int64), axis=0) if PUBLISHED else k.to(tl.int64)
    tl.store(counts, number)
