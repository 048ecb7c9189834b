# SPDX-License-Identifier: Apache-2.0
"""Attention of many queries: a head's row is the mean of their softmax rows.

The queries of a head are cut into jobs, and each job into tiles. A program goes through the keys
twice for each tile: first for every query's maximum and the sum of e^(x - max), then to add up
columns of e^(x - max) / sum. So no logits go to memory. A job leaves one row, the sums of its
columns. Who reads these rows adds them up in the order of the jobs and divides once by the number
of queries. Where the jobs begin depends on the number of queries, Dh and the dtype that they are
multiplied in: float32, where 16-bit ones are widened (`launching.widens`).
"""

import triton
import triton.language as tl

from .score import exp_nonpositive

MOST_JOBS = tl.constexpr(8)  # of a head


@triton.jit
def jobs_of_head(queries, per_job):
    return (queries + per_job - 1) // per_job


@triton.jit
def tile_of(rows, stride, i, end, Dh, BLOCK: tl.constexpr, WIDEN: tl.constexpr):
    """The first BLOCK columns of rows i of [.., Dh], `stride` apart; zeros from row `end` on."""
    d = tl.arange(0, BLOCK)[None, :]
    inside = (i < end)[:, None] & (d < Dh)
    tile = tl.load(rows + i[:, None].to(tl.int64) * stride + d, mask=inside, other=0.0)
    return tile.to(tl.float32) if WIDEN else tile


@triton.jit
def logits_of(
    queries, q, keys, n, scale,
    N: tl.constexpr, Dh: tl.constexpr, BLOCK_DH: tl.constexpr, STEP: tl.constexpr,
    WIDEN: tl.constexpr,
):  # fmt: skip
    """[BLOCK_Q, BLOCK_KEYS] of a tile of queries and keys n; -inf beyond the last key. `queries`
    and `keys` are arguments of tile_of, q the first STEP columns of the queries."""
    query, stride_q, i, end = queries
    key, stride_n = keys
    # Float32 inputs are not rounded to TF32. Products of 16-bit ones are exact in any case.
    k = tile_of(key, stride_n, n, N, Dh, STEP, WIDEN)
    logits = tl.dot(q, k.T, input_precision="ieee")
    for d in range(STEP, BLOCK_DH, STEP):
        q = tile_of(query + d, stride_q, i, end, Dh - d, STEP, WIDEN)
        k = tile_of(key + d, stride_n, n, N, Dh - d, STEP, WIDEN)
        logits = tl.dot(q, k.T, logits, input_precision="ieee")
    return tl.where((n < N)[None, :], logits * scale, float("-inf"))


@triton.jit
def finite_shift(highest):
    """What is subtracted from logits before e^x: their maximum, unless there is nothing above -inf
    so far, from which nothing can be subtracted."""
    return tl.where(highest == float("-inf"), 0.0, highest)


@triton.jit
def add_up_queries(
    query, stride_q, first, end, key, stride_n, scale, sums,
    N: tl.constexpr, Dh: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_KEYS: tl.constexpr,
    BLOCK_DH: tl.constexpr, STEP: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """sums [N]: the softmax rows of queries [first, end), added up tile by tile. query [Q, Dh] and
    key [N, Dh] are a head's."""
    for start_q in range(first, end, BLOCK_Q):
        i = start_q + tl.arange(0, BLOCK_Q)
        queries, keys = (query, stride_q, i, end), (key, stride_n)
        q = tile_of(query, stride_q, i, end, Dh, STEP, WIDEN)
        highest = tl.full([BLOCK_Q], float("-inf"), tl.float32)
        total = tl.zeros([BLOCK_Q], tl.float32)
        for start in tl.range(0, N, BLOCK_KEYS, num_stages=3):
            n = start + tl.arange(0, BLOCK_KEYS)
            logits = logits_of(queries, q, keys, n, scale, N, Dh, BLOCK_DH, STEP, WIDEN)
            new = tl.maximum(highest, tl.max(logits, axis=1))
            shift = finite_shift(new)
            e = exp_nonpositive(logits - shift[:, None])
            total = total * exp_nonpositive(highest - shift) + tl.sum(e, axis=1)
            highest = new
        # Where all logits are -inf, 1 / 0 makes the row NaN, as it should be.
        factor = tl.div_rn(tl.full([BLOCK_Q], 1.0, tl.float32), total)
        shift = finite_shift(highest)
        held = tl.minimum(start_q - first, 1) * N  # columns with the sums of tiles before
        for start in tl.range(0, N, BLOCK_KEYS, num_stages=3):
            n = start + tl.arange(0, BLOCK_KEYS)
            logits = logits_of(queries, q, keys, n, scale, N, Dh, BLOCK_DH, STEP, WIDEN)
            e = exp_nonpositive(logits - shift[:, None]) * factor[:, None]
            column = tl.sum(tl.where((i < end)[:, None], e, 0.0), axis=0)
            # No probability is negative: to add 0 changes none.
            column += tl.load(sums + n, mask=n < held, other=0.0)
            tl.store(sums + n, column, mask=n < N)
        tl.debug_barrier()  # sums were written by other threads than those that read them


@triton.jit
def attend_queries(
    layer, row, h, j, queries, per_job, scale, sums,
    N: tl.constexpr, Dh: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_KEYS: tl.constexpr,
    BLOCK_DH: tl.constexpr, STEP: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """add_up_queries of job j of head h of a layer's row: (query, three strides, key, three
    strides)."""
    query, query_stride_row, query_stride_q, query_stride_h = layer[0], layer[1], layer[2], layer[3]
    key, key_stride_row, key_stride_n, key_stride_h = layer[4], layer[5], layer[6], layer[7]
    first = j * per_job
    add_up_queries(
        query + row.to(tl.int64) * query_stride_row + h.to(tl.int64) * query_stride_h,
        query_stride_q, first, tl.minimum(first + per_job, queries),
        key + row.to(tl.int64) * key_stride_row + h.to(tl.int64) * key_stride_h, key_stride_n,
        scale, sums, N, Dh, BLOCK_Q, BLOCK_KEYS, BLOCK_DH, STEP, WIDEN,
    )  # fmt: skip


@triton.jit
def mean_row(total, queries):
    return tl.div_rn(total, tl.zeros_like(total) + queries.to(tl.float32))


@triton.jit
def score_queries(sums, jobs, queries, H: tl.constexpr, T: tl.constexpr, N: tl.constexpr,
                  BLOCK_T: tl.constexpr):  # fmt: skip
    """Scores [BLOCK_T] of the patches, of sums [H, jobs, N]: of each head the mean over queries,
    then added up as score_attention does."""
    t = tl.arange(0, BLOCK_T)
    score = tl.zeros([BLOCK_T], tl.float32)
    sums += N - T + t
    for h in range(H):
        head = sums + tl.full((), h, tl.int64) * (jobs * N)
        total = tl.zeros([BLOCK_T], tl.float32)
        for j in tl.static_range(MOST_JOBS):
            inside = t < tl.where(j < jobs, T, 0)
            total += tl.load(head + j * N, mask=inside, other=0.0)
        score += mean_row(total, queries)
    return score
