# SPDX-License-Identifier: Apache-2.0
"""Top-k of a partition as a cut: the k-th largest key, and which of those that tie with it stay.

Whether a patch is kept is then a question to that patch alone, and the kept ones come out in index
order by a prefix sum: no sort, no atomics on the result, lower index first.

The cut is found by radix selection, eight bits a step. The first step's counts do not hang on k:
they stand by themselves (`count_first`), for a program that waits for its k.
"""

import triton
import triton.language as tl

from .score import KEY_EXCLUDED

DIGIT_BITS = tl.constexpr(8)
DIGITS = tl.constexpr(256)


@triton.jit
def count_digits(keys, counted, shift):
    """How many of the keys that are counted have each digit at `shift`, the largest digit first,
    and how many have that or a larger one: int32 [DIGITS]."""
    digits = (~keys >> shift.to(tl.uint32)) & (DIGITS - 1)
    counts = tl.histogram(digits.to(tl.int32), DIGITS, mask=counted)
    return counts, tl.cumsum(counts, axis=0)


@triton.jit
def count_first(keys):
    """Of the first step, at the highest bit in which two keys differ (attention sums share most of
    their exponent): shift, what stands above that digit in all keys, count_digits."""
    counted = keys != KEY_EXCLUDED
    highest = tl.max(keys, axis=0)
    lowest = ~tl.max(tl.where(counted, ~keys, 0), axis=0)
    # Rounded, 2^n - 1 may become 2^n, which is to look a bit too high.
    exponent = (highest ^ lowest).to(tl.float32).to(tl.uint32, bitcast=True) >> 23
    different = exponent.to(tl.int32) - 126  # bits; below 0 for none
    shift = tl.minimum(tl.maximum(different - DIGIT_BITS, 0), 32 - DIGIT_BITS)
    above = (highest >> shift.to(tl.uint32)) // DIGITS * DIGITS << shift.to(tl.uint32)
    counts, reached = count_digits(keys, counted, shift)
    return shift, above, counts, reached


@triton.jit
def find_digit(counts, reached, k):
    """Of count_digits: the digit of the k-th largest, how many have a larger one, and how many more
    than k have that or a larger one. T <= 2^12 keeps the last two below 2^12."""
    i = tl.arange(0, DIGITS)
    larger = reached - counts
    packed = i << 24 | (larger & 0xFFF) << 12 | ((reached - k) & 0xFFF)
    # The last that less than k precede; of k = 0 the largest digit, and more than k have it.
    found = tl.max(tl.where(larger < k, packed, 1).to(tl.uint32, bitcast=True), axis=0)
    digit = DIGITS - 1 - (found >> 24)
    return digit, (found >> 12 & 0xFFF).to(tl.int32), (found & 0xFFF).to(tl.int32)


@triton.jit
def choose_from(keys, first, k):
    """Which of keys [BLOCK_T] are the k largest, equal ones by their index: bool [BLOCK_T]. `first`
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
