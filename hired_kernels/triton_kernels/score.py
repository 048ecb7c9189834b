# SPDX-License-Identifier: Apache-2.0
"""Scores of tokens, as ordered keys: the CLS token's attention to their patches, summed over heads
in float32.

From attention rows each element is read once; from queries and keys a program computes the softmax
of one head, e^(x - max) / sum over all N keys, which `select_qk` then sums over heads, and
`cls_attention` returns. All loads are
widened at once: Triton's interpreter computes wrongly in bfloat16.
"""

import triton
import triton.language as tl

# Order of scores: higher first, -0 equal to +0, NaN below -inf, and below all of them what may not
# be kept. Keys compare as the scores do.
KEY_EXCLUDED = tl.constexpr(0)
KEY_NAN = tl.constexpr(1)


@triton.jit
def ordered_key(score):
    bits = score.to(tl.uint32, bitcast=True)
    magnitude = bits & 0x7FFFFFFF
    # A sign and a magnitude, as a number moved up by 2^31: both zeros are 2^31.
    key = tl.where(bits >> 31 != 0, 0x80000000 - magnitude, 0x80000000 + magnitude)
    return tl.where(magnitude > 0x7F800000, KEY_NAN, key)


@triton.jit
def score_attention(attention, stride_h, stride_t, H: tl.constexpr, T: tl.constexpr,
                    BLOCK_T: tl.constexpr):  # fmt: skip
    """Scores [BLOCK_T] of the patches, of attention [H, T]: ((a0 + a1) + a2) + ..., the same bits
    everywhere."""
    t = tl.arange(0, BLOCK_T)
    column = attention + t.to(tl.int64) * stride_t  # [BLOCK_T]
    score = tl.load(column, mask=t < T, other=0.0).to(tl.float32)
    for h in tl.static_range(1, H):
        head = column + tl.full((), h, tl.int64) * stride_h
        score += tl.load(head, mask=t < T, other=0.0).to(tl.float32)
    return score


@triton.jit
def token_keys(score, patch_scores, T: tl.constexpr, SIDE: tl.constexpr, MERGE: tl.constexpr,
               BLOCK_T: tl.constexpr, BLOCK_M: tl.constexpr):  # fmt: skip
    """Ordered keys [BLOCK_M] of the tokens, of the scores [BLOCK_T] of their patches. Those of a
    block of MERGE x MERGE patches are added up in raster order; patch_scores [T] is memory for it.
    """
    t, m = tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_M)
    pieces: tl.constexpr = MERGE * MERGE
    if MERGE > 1:
        tl.store(patch_scores + t, score, mask=t < T)
        tl.debug_barrier()  # other threads have written what one reads
        inside = m < T // pieces
        corner = patch_scores + m // SIDE * (pieces * SIDE) + m % SIDE * MERGE
        score = tl.load(corner, mask=inside, other=0.0)
        for i in tl.range(1, pieces, loop_unroll_factor=4):
            patch = corner + i // MERGE * (MERGE * SIDE) + i % MERGE
            score += tl.load(patch, mask=inside, other=0.0)
    return tl.where(m < T // pieces, ordered_key(score), KEY_EXCLUDED)


@triton.jit
def exp_nonpositive(x):
    """e^x for x <= 0 within 1 ulp or two, denormal results included; NaN for NaN.

    2^n comes in two factors, so that a denormal result is rounded once. Polynomial: Cephes expf
    (Moshier). The exponential of the hardware errs by more where |x| is large.
    """
    x = tl.where(x < -105.0, -105.0, x)  # e^-105 rounds to zero
    shifted = x * 1.44269504 + 12582912.0  # 1.5 * 2^23: adding it leaves the nearest integer below
    n = shifted - 12582912.0
    r = (x - n * 0.693359375) - n * -2.12194440e-4
    p = r * 1.9875691500e-4 + 1.3981999507e-3
    p = p * r + 8.3334519073e-3
    p = p * r + 4.1665795894e-2
    p = p * r + 1.6666665459e-1
    p = p * r + 5.0000001201e-1
    p = p * r * r + r + 1.0
    # n lies in [-152, 0]; halves of it are exponents of normal numbers. A NaN brings anything.
    minus_n = 0x4B400000 - shifted.to(tl.uint32, bitcast=True)
    half = minus_n >> 1
    rest = minus_n - half
    power = ((127 - half) << 23).to(tl.float32, bitcast=True)
    return p * power * ((127 - rest) << 23).to(tl.float32, bitcast=True)


@triton.jit
def softmax_of_head(
    query, key, stride_n, scale, logits_of, attention,
    T: tl.constexpr, N: tl.constexpr, Dh: tl.constexpr,
    ALL_N: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_DH: tl.constexpr, INIT: tl.constexpr,
):  # fmt: skip
    """attention [T]: one head's, of query [Dh] to the last T of key [N, Dh], rows stride_n apart.

    logits_of [N] is memory for the logits; attention may be its last T. Triton lays out what is
    loaded by the widest access of all tensors of the same shape, and sums add up in that order. So
    tiles of keys have three dimensions, which nothing else has, and those of an initial layer
    stand otherwise than those of a final one: how one layer is aligned is not the other's business.
    """
    d = tl.arange(0, BLOCK_DH)[None, None, :]
    q = tl.load(query + d, mask=d < Dh, other=0.0).to(tl.float32)  # [1, 1, BLOCK_DH]
    for start in tl.range(0, N, BLOCK_N, num_stages=3):  # two tiles ahead
        n = start + tl.arange(0, BLOCK_N)
        n = n[None, :] if INIT else n[:, None]
        rows = key + n[:, :, None].to(tl.int64) * stride_n + d  # BLOCK_N, 1 or 1, BLOCK_N; BLOCK_DH
        k = tl.load(rows, mask=(n < N)[:, :, None] & (d < Dh), other=0.0).to(tl.float32)
        tl.store(logits_of + n, tl.sum(k * q, axis=2) * scale, mask=n < N)
    tl.debug_barrier()  # logits were written by other threads than those that read them
    n = tl.arange(0, ALL_N)
    logits = tl.load(logits_of + n, mask=n < N, other=float("-inf"))  # [ALL_N]
    e = exp_nonpositive(logits - tl.max(logits, axis=0))
    probability = tl.div_rn(e, tl.sum(e, axis=0))
    tl.debug_barrier()  # and here the other way round, where a row is shorter than the program
    tl.store(attention + (n - (N - T)), probability, mask=(n >= N - T) & (n < N))


@triton.jit
def attend(
    layer, row, h, scale, logits_of, attention,
    T: tl.constexpr, N: tl.constexpr, Dh: tl.constexpr,
    ALL_N: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_DH: tl.constexpr, INIT: tl.constexpr,
):  # fmt: skip
    """softmax_of_head of head h of a layer's row: (query, two strides, key, three strides).

    h must not be known to be 0, not even of one head: what is known of the alignment of a head that
    stands alone would be more than of the same head among others, and sums would add up otherwise.
    """
    query, query_stride_row, query_stride_h, key, key_stride_row, key_stride_n, key_stride_h = layer
    softmax_of_head(
        query + row.to(tl.int64) * query_stride_row + h.to(tl.int64) * query_stride_h,
        key + row.to(tl.int64) * key_stride_row + h.to(tl.int64) * key_stride_h,
        key_stride_n, scale, logits_of, attention, T, N, Dh, ALL_N, BLOCK_N, BLOCK_DH, INIT,
    )  # fmt: skip
