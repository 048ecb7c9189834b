# SPDX-License-Identifier: Apache-2.0
"""`cls_attention` in Triton: checks and launch. Serves what select_triton.py serves."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import arguments
from ..arguments import Refusal
from .cls_attention_kernel import cls_attention_kernel
from .launching import (
    MAX_DH,
    MAX_H,
    MAX_N,
    MAX_Q,
    MAX_T,
    block_of,
    check_aligned,
    check_limit,
    head_tiles,
    layer_of,
    on,
    queries_of,
    queries_per_job,
    query_tiles,
    registers,
    warps,
)

MAX_PROGRAMS = (1 << 31) - 1  # of a launch


def cls_attention(query: Tensor, key: Tensor, tokens: int, *, scale: float | None = None) -> Tensor:
    """`torch.ops.hired.cls_attention` by the Triton kernel; all else is the operator's."""
    arguments.check_cls_attention(query, key, tokens, scale)
    refuse = Refusal("cls_attention")
    (P, N, H, Dh), Q = key.shape, queries_of(query)
    check_limit(refuse, "query", "H", H, MAX_H)
    check_limit(refuse, "query", "Dh", Dh, MAX_DH)
    check_limit(refuse, "query", "Q", Q, MAX_Q)
    check_limit(refuse, "query", "P * H", P * H, MAX_PROGRAMS)
    check_limit(refuse, "key", "N", N, MAX_N)
    check_limit(refuse, "tokens", "T", tokens, MAX_T)
    check_aligned(refuse, query=query, key=key)
    attention = query.new_empty(P, H, tokens, dtype=torch.float32)
    if P == 0:
        return attention
    logits = query.new_empty(P * H * N, dtype=torch.float32)
    tiles = {**head_tiles(N, Dh, key.itemsize), **query_tiles(Dh, key.device, key.dtype)}
    with on(query.device):
        cls_attention_kernel[(P * H,)](
            layer_of(query, key),
            logits, attention, Dh**-0.5 if scale is None else scale, H,
            Q, queries_per_job(Q, tiles["BLOCK_Q"]),
            T=tokens, N=N, Dh=Dh, **tiles, BLOCK_T=block_of(tokens), MANY=Q > 1,
            num_warps=warps(tokens), enable_fp_fusion=True, **(registers() if Q > 1 else {}),
        )  # fmt: skip
    return attention
