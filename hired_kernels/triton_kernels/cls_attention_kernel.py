# SPDX-License-Identifier: Apache-2.0
"""`cls_attention` in one launch: the heads of `select_qk`, each program's row its own.

Grid: P * H programs; a program owns a head of a row. Bytes moved: each key and each element of the
output once; N logits a head go to memory and come back, within the L2. Of many queries a program
goes through the jobs that `select_qk` gives to several, and through the keys twice a tile.

T, N, Dh are compiled in; the numbers of rows, of heads and of queries are not.
"""

import triton
import triton.language as tl

from .queries import attend_queries, jobs_of_head, mean_row
from .score import attend

# Nor does select_kernel know of theirs: from alignment Triton chooses which thread holds what, and
# that decides in which order sums are added up.
_NOT_VECTORISED = ["logits", "attention"]


@triton.jit(
    do_not_specialize=["heads", "queries", "per_job"],
    do_not_specialize_on_alignment=_NOT_VECTORISED,
)
def cls_attention_kernel(
    layer,  # query [P, H, Dh], two strides, key [P, N, H, Dh], three strides; with MANY, query
    # [P, Q, H, Dh] and three
    logits, attention,  # [P, H, N], for the programs' own use; [P, H, T]
    scale, heads, queries, per_job,
    T: tl.constexpr, N: tl.constexpr, Dh: tl.constexpr,
    ALL_N: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_DH: tl.constexpr,
    MANY: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_KEYS: tl.constexpr,
    STEP: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0)
    row, h = head // heads, head % heads
    logits += head.to(tl.int64) * N
    attention += head.to(tl.int64) * T
    if MANY:
        t = tl.arange(0, BLOCK_T)
        total = tl.zeros([BLOCK_T], tl.float32)
        for j in range(jobs_of_head(queries, per_job)):
            attend_queries(
                layer, row, h, j, queries, per_job, scale, logits,
                N, Dh, BLOCK_Q, BLOCK_KEYS, BLOCK_DH, STEP, WIDEN,
            )  # fmt: skip
            total += tl.load(logits + (N - T) + t, mask=t < T, other=0.0)
            tl.debug_barrier()  # before the next job writes there
        tl.store(attention + t, mean_row(total, queries), mask=t < T)
    else:
        attend(
            layer, row, h, scale, logits, attention,
            T, N, Dh, ALL_N, BLOCK_N, BLOCK_DH, False,
        )  # fmt: skip
