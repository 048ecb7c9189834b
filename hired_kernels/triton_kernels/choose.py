# SPDX-License-Identifier: Apache-2.0
"""Top-k of a partition as a cut: the k-th largest key, and which of those that tie with it stay.

Whether a patch is kept is then a question to that patch alone, and the kept ones come out in index
order by a prefix sum: no sort, no atomics on the result, lower index first.
"""

import triton
import triton.language as tl

DIGIT_BITS = tl.constexpr(4)
DIGITS = tl.constexpr(16)


@triton.jit
def largest_key_of(keys, k):
    """The k-th largest of keys [BLOCK_T], uint32; what no key reaches where k is 0.

    A digit a step from the top: the largest that at least k keys reach.
    """
    digits = tl.arange(0, DIGITS).to(tl.uint32)
    found = tl.full((), 0, tl.uint32)
    for step in range(32 // DIGIT_BITS):
        shift = 32 - DIGIT_BITS - step * DIGIT_BITS
        thresholds = found + (digits << shift)
        # Counted in float32, exact as far as 2^24: integer sums of 0 and 1 LLVM packs into bytes,
        # by way of local memory.
        reach = (keys[None, :] >= thresholds[:, None]).to(tl.float32)  # [DIGITS, BLOCK_T]
        enough = (tl.sum(reach, axis=1) >= k).to(tl.int32)  # 1 for digit 0, up to the one sought
        found += (tl.sum(enough, axis=0) - 1).to(tl.uint32) << shift
    return found


@triton.jit
def choose(keys, k):
    """Which of keys [BLOCK_T] are the k largest, equal ones by their index: bool [BLOCK_T]."""
    cut = largest_key_of(keys, k)
    above = keys > cut
    ties = keys == cut
    left = k - tl.sum(above.to(tl.int32), axis=0)
    return above | (ties & (tl.cumsum(ties.to(tl.int32), axis=0) <= left))
