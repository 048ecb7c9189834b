# SPDX-License-Identifier: Apache-2.0
"""`cls_attention` in one launch: the heads of `select_qk`, each program's row its own.

Grid: P * H programs; a program owns a head of a row. Bytes moved: each key and each element of the
output once; N logits a head go to memory and come back, within the L2.

T, N, Dh and the strides are compiled in; the numbers of rows and of heads are not.
"""

import triton
import triton.language as tl

from .score import attend

# Nor does select_kernel know of theirs: from alignment Triton chooses which thread holds what, and
# that decides in which order sums are added up.
_NOT_VECTORISED = ["logits", "attention"]


@triton.jit(do_not_specialize=["heads"], do_not_specialize_on_alignment=_NOT_VECTORISED)
def cls_attention_kernel(
    layer,  # query [P, H, Dh], two strides, key [P, N, H, Dh], three strides
    logits, attention,  # [P, H, N], for the programs' own use; [P, H, T]
    scale, heads,
    T: tl.constexpr, N: tl.constexpr, Dh: tl.constexpr,
    ALL_N: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_DH: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0)
    row, h = head // heads, head % heads
    attend(
        layer, row, h, scale, logits + head.to(tl.int64) * N, attention + head.to(tl.int64) * T,
        T, N, Dh, ALL_N, BLOCK_N, BLOCK_DH, False,
    )  # fmt: skip
