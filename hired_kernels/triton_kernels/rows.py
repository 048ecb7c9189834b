# SPDX-License-Identifier: Apache-2.0
"""Rows of scores: the jobs that compute a layer's attention of queries and keys, and the keys that
are made of it, or of attention as given.

A layer is (tensors, queries, per_job, attention): where its data lie (select_kernel.py), the
queries of a head and how many of them a job takes, and memory for its attention, [rows, H, N], or
of many queries [rows, H, jobs of a head, N].
"""

import triton
import triton.language as tl

from .queries import attend_queries, jobs_of_head, score_queries
from .score import attend, score_attention, token_keys
from .tickets import arrive


@triton.jit
def heads_job(
    layer, row, memory_row, job, scale, counter,
    T: tl.constexpr, H: tl.constexpr, N: tl.constexpr, Dh: tl.constexpr,
    ALL_N: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_DH: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_KEYS: tl.constexpr, STEP: tl.constexpr, WIDEN: tl.constexpr,
    DRAIN: tl.constexpr, MANY: tl.constexpr, INIT: tl.constexpr,
):  # fmt: skip
    """One head of a layer's row, into the last T of its memory; or one job of many queries."""
    tensors, queries, per_job, attention = layer
    if MANY:
        jobs = jobs_of_head(queries, per_job)
        sums = attention + (memory_row.to(tl.int64) * H * jobs + job) * N
        attend_queries(
            tensors, row, job // jobs, job % jobs, queries, per_job, scale, sums,
            N, Dh, BLOCK_Q, BLOCK_KEYS, BLOCK_DH, STEP, WIDEN,
        )  # fmt: skip
    else:
        head = attention + (memory_row.to(tl.int64) * H + job) * N
        attend(
            tensors, row, job, scale, head, head + (N - T),
            T, N, Dh, ALL_N, BLOCK_N, BLOCK_DH, INIT,
        )  # fmt: skip
    arrive(counter, DRAIN)


@triton.jit
def row_keys(
    layer, row, memory_row, patch_scores,
    T: tl.constexpr, H: tl.constexpr, N: tl.constexpr, SIDE: tl.constexpr, MERGE: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_M: tl.constexpr, FROM_KEYS: tl.constexpr, MANY: tl.constexpr,
):  # fmt: skip
    """Ordered keys [BLOCK_M] of a row of tokens: of attention as given, or as the heads left it.
    patch_scores [T] is memory of the row's own, for merged patches."""
    tensors, queries, per_job, attention = layer
    if MANY:
        jobs = jobs_of_head(queries, per_job)
        sums = attention + memory_row.to(tl.int64) * H * jobs * N
        score = score_queries(sums, jobs, queries, H, T, N, BLOCK_T)
    elif FROM_KEYS:
        heads = attention + memory_row.to(tl.int64) * (H * N) + (N - T)  # [H, T]
        score = score_attention(heads, N, 1, H, T, BLOCK_T)
    else:
        data, stride_row, stride_h, stride_t = tensors
        heads = data + row.to(tl.int64) * stride_row  # [H, T]
        score = score_attention(heads, stride_h, stride_t, H, T, BLOCK_T)
    return token_keys(score, patch_scores, T, SIDE, MERGE, BLOCK_T, BLOCK_M)
