# SPDX-License-Identifier: Apache-2.0
"""The operators' implementations in Triton: checks, plan, launch.

Serves NVIDIA GPUs from sm_75 on and AMD's; with TRITON_INTERPRET=1, the CPU.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from .. import arguments
from ..arguments import Refusal, first_share
from .counters import PICTURES, counters_on
from .launching import (
    MAX_DH,
    MAX_H,
    MAX_N,
    MAX_Q,
    MAX_T,
    WARPS,
    block_of,
    check_aligned,
    check_limit,
    head_tiles,
    is_amd,
    layer_of,
    on,
    queries_of,
    queries_per_job,
    query_tiles,
    registers,
    warps,
)
from .pictures import SUB_IMAGES, Picture, pack
from .plan import gather_programs, plan
from .select_kernel import select_kernel
from .tickets import counters_of, set_of

MAX_SUB_IMAGES = SUB_IMAGES.value
# Guesses, measured nowhere yet. Elements of a tile of tokens: a row of D = 1024 for each warp.
TOKEN_TILE, MAX_BLOCK_D = 4096, 1024
# Keys that a program of `pooled` looks at together: of four partitions, but no more than this, or
# half where a program has more than WARPS, which would spill 8 to 12 bytes.
MAX_BLOCK_POOL = 4096

TILES_OF_KEYS = ("ALL_N", "BLOCK_N", "BLOCK_DH", "BLOCK_Q", "BLOCK_KEYS", "STEP", "WIDEN")

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Layers(NamedTuple):
    """Where scores come from: `rows` says how many rows the initial layer has, P or B."""

    init: tuple
    final: tuple
    rows: int
    H: int
    N: int = 0  # of `select`, which has no queries either
    Dh: int = 0
    scale: float = 0.0
    Q_init: int = 1
    Q_final: int = 1


class Rules(NamedTuple):
    """How tokens are chosen and laid out."""

    alpha: float
    policy: str
    order: str
    merge: int


def select(
    features: Tensor, attn_init: Tensor, attn_final: Tensor, grids: Sequence[int],
    budgets: Sequence[int], alpha: float = 0.5, *, crops: Sequence[int] | None = None,
    policy: str = "exact", order: str = "raster", merge: int = 1,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """`torch.ops.hired.select` by the Triton kernel; shapes, dtypes, errors are the operator's."""
    arguments.check_select(
        features, attn_init, attn_final, grids, budgets, alpha, crops, policy, order, merge
    )
    refuse = Refusal("select")
    check_limit(refuse, "attn_final", "H", attn_final.shape[1], MAX_H)
    check_aligned(refuse, attn_init=attn_init, attn_final=attn_final)
    layers = Layers(
        (attn_init, *attn_init.stride()), (attn_final, *attn_final.stride()),
        attn_init.shape[0], attn_final.shape[1],
    )  # fmt: skip
    rules = Rules(alpha, policy, order, merge)
    return _run(refuse, features, layers, grids, budgets, crops, rules)


def select_qk(
    features: Tensor, query_init: Tensor, key_init: Tensor, query_final: Tensor, key_final: Tensor,
    grids: Sequence[int], budgets: Sequence[int], alpha: float = 0.5, *, scale: float | None = None,
    crops: Sequence[int] | None = None, policy: str = "exact", order: str = "raster",
    merge: int = 1,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """`torch.ops.hired.select_qk` by the Triton kernel; all else is the operator's."""
    tensors = (features, query_init, key_init, query_final, key_final)
    arguments.check_select_qk(*tensors, grids, budgets, alpha, scale, crops, policy, order, merge)
    refuse = Refusal("select_qk")
    N, H, Dh = key_final.shape[1:]
    check_limit(refuse, "query_final", "H", H, MAX_H)
    check_limit(refuse, "query_final", "Dh", Dh, MAX_DH)
    check_limit(refuse, "key_final", "N", N, MAX_N)
    check_limit(refuse, "query_init", "Q", queries_of(query_init), MAX_Q)
    check_limit(refuse, "query_final", "Q", queries_of(query_final), MAX_Q)
    check_aligned(
        refuse, query_init=query_init, key_init=key_init, query_final=query_final,
        key_final=key_final,
    )  # fmt: skip
    layers = Layers(
        layer_of(query_init, key_init), layer_of(query_final, key_final), query_init.shape[0],
        H, N, Dh, max(Dh, 1) ** -0.5 if scale is None else scale,
        queries_of(query_init), queries_of(query_final),
    )  # fmt: skip
    rules = Rules(alpha, policy, order, merge)
    return _run(refuse, features, layers, grids, budgets, crops, rules)


def _run(
    refuse: Refusal, features: Tensor, layers: Layers, grids: Sequence[int],
    budgets: Sequence[int], crops: Sequence[int] | None, rules: Rules,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    P, T, D = features.shape
    if P > 0:
        check_limit(refuse, "features", "T", T, MAX_T)
    for b, (R, C) in enumerate(arguments.pairs(grids)):
        if R * C > MAX_SUB_IMAGES:
            expected = f"R * C <= {MAX_SUB_IMAGES} on the triton backend"
            refuse("grids", expected, f"({R}, {C}) for picture {b}")
    pieces = rules.merge**2
    pictures = list(plan(T // pieces, grids, budgets, rules.alpha, crops, rules.policy))
    K = sum(picture.output_rows for picture in pictures)
    tokens = features.new_empty(K, pieces * D)
    indices = features.new_empty(K, dtype=torch.int64)
    counts = features.new_empty(P, dtype=torch.int64)
    with on(features.device):
        for first in range(0, len(pictures), PICTURES[-1]):
            some = pictures[first : first + PICTURES[-1]]
            launch_select(features, layers, some, first, rules, (tokens, indices, counts))
    return tokens, indices, counts


def launch_select(
    features: Tensor, layers: Layers, pictures: list[Picture], first: int, rules: Rules,
    outputs: tuple[Tensor, Tensor, Tensor],
) -> None:  # fmt: skip
    """One launch: `pictures`, the `first`-th of the batch and those after it."""
    P, T, _ = features.shape
    H, N, Dh = layers.H, layers.N, layers.Dh
    device, pieces = features.device, rules.merge**2
    M, side = T // pieces, math.isqrt(T) // rules.merge
    B, p0, row0 = len(pictures), pictures[0].first_partition, pictures[0].first_row
    last = pictures[-1]
    partitions = last.first_partition + 1 + last.R * last.C - p0
    by_picture = layers.rows != P
    init, final = layers.init, layers.final
    if rules.policy == "pooled":
        init = final  # which nobody reads
    if p0 > 0:
        init = _rows_from(init, first if by_picture and rules.policy != "pooled" else p0)
        final = _rows_from(final, p0)
        features = features[p0:]
    tokens, indices, counts = outputs[0][row0:], outputs[1][row0:], outputs[2][p0:]
    words = [w for p in pictures for w in pack(p._replace(
        first_partition=p.first_partition - p0, first_row=p.first_row - row0))]  # fmt: skip
    most = next(most for most in PICTURES if most >= B)
    words += [words[0]] * (3 * most - len(words))

    # Copied as integers of the element's size, or of what the address is a multiple of.
    integer = _INTEGERS[math.gcd(features.itemsize, features.data_ptr())]
    features, tokens = features.view(integer), tokens.view(integer)
    tiles = _tiles(T, M, features.shape[2], N, Dh, device, final[0].dtype)
    full_chunks, sub_chunks = gather_programs(
        pictures, M, pieces, tiles["BLOCK_ROWS"], rules.policy
    )
    from_keys, pooled = N > 0, rules.policy == "pooled"
    of_queries, parts = [], []  # jobs of a head
    for Q in (layers.Q_init, layers.Q_final):
        per_job = queries_per_job(Q, tiles["BLOCK_Q"])
        of_queries += [Q, per_job]
        parts.append(triton.cdiv(Q, per_job))
    asks_init = from_keys and any(p.rest > 0 for p in pictures)
    init_jobs = B * H * parts[0] if asks_init else 0
    final_jobs = partitions * H * parts[1] if from_keys else 0
    gather_jobs = B * full_chunks + (partitions - B) * sub_chunks
    jobs = init_jobs + final_jobs + (partitions if pooled else B) + partitions + gather_jobs

    words_of_workspace = partitions * (M + side + (M if pooled else 1))
    words_of_workspace += (init_jobs + final_jobs) * N
    if rules.merge > 1:
        words_of_workspace += (partitions + B) * T
    workspace = torch.empty(words_of_workspace, dtype=torch.int32, device=device)
    counters = counters_on(device, counters_of(most))
    select_kernel[(jobs,)](
        features, features.stride(0), features.stride(1), tokens, indices, counts,
        init, final, *of_queries, workspace, counters, set_of(counters.numel()), tuple(words),
        B, partitions, p0, int(by_picture), init_jobs, first_share(M, 1.0 - rules.alpha),
        full_chunks, sub_chunks, layers.scale, H,
        T=T, SIDE=side, MERGE=rules.merge, D=features.shape[2], H=H, N=N, Dh=Dh,
        FROM_KEYS=from_keys, MANY_INIT=layers.Q_init > 1 and not pooled,
        MANY_FINAL=layers.Q_final > 1,
        PUBLISHED=rules.policy == "published", POOLED=pooled,
        # Without square partitions nobody has sub-images in raster order.
        RASTER=rules.order == "raster" and side * side == M, FULL_LAST=rules.order == "full_last",
        **tiles, PICTURES=most, DRAIN=_needs_drain(device),
        num_warps=warps(T), enable_fp_fusion=True, **registers(),
    )  # fmt: skip


@functools.cache
def _tiles(
    T: int, M: int, D: int, N: int, Dh: int, device: torch.device, dtype: torch.dtype
) -> dict[str, int]:
    """Sizes of the kernel's tensors, powers of two; the dtype is that of scores or keys."""
    block_d = min(triton.next_power_of_2(max(D, 1)), MAX_BLOCK_D)
    tiles = {"BLOCK_T": block_of(T), "BLOCK_M": block_of(M), "BLOCK_D": block_d}
    most = MAX_BLOCK_POOL if warps(T) == WARPS else MAX_BLOCK_POOL // 2
    tiles["BLOCK_POOL"] = min(4 * tiles["BLOCK_M"], most)
    tiles["BLOCK_ROWS"] = max(WARPS, min(32, TOKEN_TILE // block_d))
    if N == 0:
        return {**tiles, **dict.fromkeys(TILES_OF_KEYS, 1)}
    return {**tiles, **head_tiles(N, Dh, dtype.itemsize), **query_tiles(Dh, device, dtype)}


@functools.cache
def _needs_drain(device: torch.device) -> bool:
    """See tickets.all_stored."""
    if device.type != "cuda" or not is_amd():
        return False
    return torch.cuda.get_device_properties(device).gcnArchName.startswith("gfx9")


def _rows_from(layer: tuple, row: int) -> tuple:
    return tuple(value[row:] if isinstance(value, Tensor) else value for value in layer)
