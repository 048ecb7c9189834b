# SPDX-License-Identifier: Apache-2.0
"""The operators' implementations in Triton: checks, plan, launch.

Serves NVIDIA GPUs from sm_75 on and AMD's; with TRITON_INTERPRET=1, the CPU.
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from .. import arguments
from ..arguments import Refusal, first_share
from .launching import (
    MAX_DH,
    MAX_H,
    MAX_N,
    MAX_T,
    WARPS,
    block_of,
    check_aligned,
    check_limit,
    head_tiles,
    on,
    warps,
)
from .pictures import SUB_IMAGES, Picture, pack
from .select_kernel import select_kernel
from .tickets import counters_of, set_of

MAX_SUB_IMAGES = SUB_IMAGES.value
# Pictures of a launch: kernels are compiled for these numbers, and a launch takes the least that
# holds its own. 64 of them are 1.5 KB of parameters.
PICTURES = (1, 8, 64)

# Guesses, measured nowhere yet. Elements of a tile of tokens: a row of D = 1024 for each warp.
TOKEN_TILE, MAX_BLOCK_D = 4096, 1024
# Programs that copy rows: more than a large GPU runs at a time, no more than each has some to copy.
GATHER_PROGRAMS = 1024

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Layers(NamedTuple):
    """Where scores come from: `rows` says how many rows the initial layer has, P or B."""

    init: tuple
    final: tuple
    rows: int
    H: int
    N: int  # 0 for `select`
    Dh: int
    scale: float


def select(
    features: Tensor, attn_init: Tensor, attn_final: Tensor, grids: Sequence[int],
    budgets: Sequence[int], alpha: float = 0.5, *, crops: Sequence[int] | None = None,
    policy: str = "exact", order: str = "raster",
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """`torch.ops.hired.select` by the Triton kernel; shapes, dtypes, errors are the operator's."""
    arguments.check_select(
        features, attn_init, attn_final, grids, budgets, alpha, crops, policy, order
    )
    refuse = Refusal("select")
    check_limit(refuse, "attn_final", "H", attn_final.shape[1], MAX_H)
    check_aligned(refuse, attn_init=attn_init, attn_final=attn_final)
    layers = Layers(
        (attn_init, *attn_init.stride()), (attn_final, *attn_final.stride()),
        attn_init.shape[0], attn_final.shape[1], 0, 0, 0.0,
    )  # fmt: skip
    return _run(refuse, features, layers, grids, budgets, alpha, crops, policy, order)


def select_qk(
    features: Tensor, query_init: Tensor, key_init: Tensor, query_final: Tensor, key_final: Tensor,
    grids: Sequence[int], budgets: Sequence[int], alpha: float = 0.5, *, scale: float | None = None,
    crops: Sequence[int] | None = None, policy: str = "exact", order: str = "raster",
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """`torch.ops.hired.select_qk` by the Triton kernel; all else is the operator's."""
    tensors = (features, query_init, key_init, query_final, key_final)
    arguments.check_select_qk(*tensors, grids, budgets, alpha, scale, crops, policy, order)
    refuse = Refusal("select_qk")
    N, H, Dh = key_final.shape[1:]
    check_limit(refuse, "query_final", "H", H, MAX_H)
    check_limit(refuse, "query_final", "Dh", Dh, MAX_DH)
    check_limit(refuse, "key_final", "N", N, MAX_N)
    check_aligned(
        refuse, query_init=query_init, key_init=key_init, query_final=query_final,
        key_final=key_final,
    )  # fmt: skip
    layers = Layers(
        (query_init, *query_init.stride()[:2], key_init, *key_init.stride()[:3]),
        (query_final, *query_final.stride()[:2], key_final, *key_final.stride()[:3]),
        query_init.shape[0], H, N, Dh, max(Dh, 1) ** -0.5 if scale is None else scale,
    )  # fmt: skip
    return _run(refuse, features, layers, grids, budgets, alpha, crops, policy, order)


def plan(
    T: int, grids: Sequence[int], budgets: Sequence[int], alpha: float,
    crops: Sequence[int] | None, policy: str,
) -> Iterator[Picture]:  # fmt: skip
    """Each picture of a batch in numbers; arguments are checked, positions count in the batch."""
    side, partition, row = math.isqrt(T), 0, 0
    for b, (R, C) in enumerate(arguments.pairs(grids)):
        box = (0, R * side, 0, C * side)
        if crops is not None and R > 0:
            top, bottom, left, right = crops[4 * b : 4 * b + 4]
            box = (top, bottom, left, right)
        exact = policy == "exact"
        in_subs = (box[1] - box[0]) * (box[3] - box[2]) if exact else R * C * T
        rows = full = min(budgets[b], T + in_subs)
        if R > 0 and exact:
            full = max(min(first_share(rows, alpha), T), rows - in_subs)
        elif R > 0:
            full = min(first_share(budgets[b], alpha), T)
        rest = min(budgets[b] - full, in_subs)
        yield Picture(R, C, *box, partition, row, rows, full, rest)
        partition += 1 + R * C
        row += rows


def _run(
    refuse: Refusal, features: Tensor, layers: Layers, grids: Sequence[int],
    budgets: Sequence[int], alpha: float, crops: Sequence[int] | None, policy: str, order: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    P, T, D = features.shape
    if P > 0:
        check_limit(refuse, "features", "T", T, MAX_T)
    for b, (R, C) in enumerate(arguments.pairs(grids)):
        if R * C > MAX_SUB_IMAGES:
            expected = f"R * C <= {MAX_SUB_IMAGES} on the triton backend"
            refuse("grids", expected, f"({R}, {C}) for picture {b}")
    pictures = list(plan(T, grids, budgets, alpha, crops, policy))
    K = sum(picture.output_rows for picture in pictures)
    tokens = features.new_empty(K, D)
    indices = features.new_empty(K, dtype=torch.int64)
    counts = features.new_empty(P, dtype=torch.int64)
    rules = {"counted": first_share(T, 1.0 - alpha), "policy": policy, "order": order}
    with on(features.device):
        for first in range(0, len(pictures), PICTURES[-1]):
            some = pictures[first : first + PICTURES[-1]]
            launch_select(features, layers, some, first, rules, (tokens, indices, counts))
    return tokens, indices, counts


def launch_select(
    features: Tensor, layers: Layers, pictures: list[Picture], first: int, rules: dict[str, Any],
    outputs: tuple[Tensor, Tensor, Tensor],
) -> None:  # fmt: skip
    """One launch: `pictures`, the `first`-th of the batch and those after it."""
    P, T, _ = features.shape
    H, N, Dh = layers.H, layers.N, layers.Dh
    B, p0, row0 = len(pictures), pictures[0].first_partition, pictures[0].first_row
    last = pictures[-1]
    partitions = last.first_partition + 1 + last.R * last.C - p0
    rows = last.first_row + last.output_rows - row0
    by_picture = layers.rows != P
    init, final = layers.init, layers.final
    if p0 > 0:
        init = _rows_from(init, first if by_picture else p0)
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
    tiles = _tiles(T, features.shape[2], N, Dh, final[0].itemsize)
    full_chunks, sub_chunks = _chunks(pictures, rows, tiles["BLOCK_ROWS"])
    from_keys = N > 0
    init_jobs = B * H if from_keys and any(p.rest > 0 for p in pictures) else 0
    heads_jobs = init_jobs + partitions * H if from_keys else 0
    gather_jobs = B * full_chunks + (partitions - B) * sub_chunks
    jobs = heads_jobs + B + partitions + gather_jobs

    side = math.isqrt(T)
    device = features.device
    score_rows = partitions + (B if init_jobs else 0)
    words_of_workspace = partitions * (T + side + 1) + score_rows * H * N
    workspace = torch.empty(words_of_workspace, dtype=torch.int32, device=device)
    counters = _counters(device, counters_of(most))
    select_kernel[(jobs,)](
        features, features.stride(0), features.stride(1), tokens, indices, counts, init, final,
        workspace, counters, set_of(counters.numel()), tuple(words),
        B, partitions, p0, int(by_picture), init_jobs, rules["counted"], full_chunks, sub_chunks,
        layers.scale, H,
        T=T, SIDE=side, D=features.shape[2], H=H, N=N, Dh=Dh,
        FROM_KEYS=from_keys, PUBLISHED=rules["policy"] == "published",
        # Without square partitions nobody has sub-images in raster order.
        RASTER=rules["order"] == "raster" and side * side == T,
        **tiles, PICTURES=most, DRAIN=_needs_drain(device),
        num_warps=warps(T), enable_fp_fusion=True, **_registers(device),
    )  # fmt: skip


@functools.cache
def _tiles(T: int, D: int, N: int, Dh: int, itemsize: int) -> dict[str, int]:
    """Sizes of the kernel's tensors, powers of two; `itemsize` is that of scores or keys."""
    block_d = min(triton.next_power_of_2(max(D, 1)), MAX_BLOCK_D)
    tiles = {"BLOCK_T": block_of(T), "BLOCK_D": block_d}
    tiles["BLOCK_ROWS"] = max(WARPS, min(32, TOKEN_TILE // block_d))
    if N == 0:
        return {**tiles, "ALL_N": 1, "BLOCK_N": 1, "BLOCK_DH": 1}
    return {**tiles, **head_tiles(N, Dh, itemsize)}


@functools.cache
def _needs_drain(device: torch.device) -> bool:
    """See tickets.all_stored."""
    if device.type != "cuda" or not torch.version.hip:
        return False
    return torch.cuda.get_device_properties(device).gcnArchName.startswith("gfx9")


# All that 16 warps can have. By itself ptxas stops at 64 to 96, for the sake of programs beside
# this one, and fetches a row of scores in two or three trips instead of one.
MOST_REGISTERS = 128


def _registers(device: torch.device) -> dict[str, int]:
    """What only NVIDIA's compiler is told."""
    return {} if torch.version.hip else {"maxnreg": MOST_REGISTERS}


def _chunks(pictures: list[Picture], rows: int, block_rows: int) -> tuple[int, int]:
    """Programs that copy a full image's rows, and a sub-image's, of which only the device knows how
    many there are: an even share is taken for it."""
    per_program = block_rows * max(1, rows // (block_rows * GATHER_PROGRAMS))
    full = max(p.full_budget for p in pictures)
    sub = max(triton.cdiv(p.rest, max(1, p.R * p.C)) for p in pictures)
    return max(1, triton.cdiv(full, per_program)), max(1, triton.cdiv(sub, per_program))


def _rows_from(layer: tuple, row: int) -> tuple:
    return tuple(value[row:] if isinstance(value, Tensor) else value for value in layer)


# Counters: zero before the first launch, and each leaves them as the next needs them. Every stream
# has its own, since launches on one stream follow each other. A graph may be replayed beside the
# stream that captured it, so that each captured launch gets its own, out of a store that calls
# outside of captures fill.


@dataclass
class _Counters:
    of_stream: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    stores: list[Tensor] = field(default_factory=list)  # the last is in use, graphs hold the others
    taken: int = 0  # words of the last


_STORE = 1 << 18  # words, 1 MB a device: 26,214 launches of one picture
_PER_THREAD_STREAM = 2  # cudaStreamPerThread: one handle, a stream for each thread
_counters_of: dict[int, _Counters] = {}
_lock = threading.Lock()


def _zeros(device: torch.device, words: int) -> Tensor:
    return torch.zeros(words, dtype=torch.int32, device=device)


def _lasting_zeros(device: torch.device, words: int) -> Tensor:
    """Zeros that outlive any memory pool, ready for every stream.

    torch.compile's graphs have the memory of a thread's calls taken from a pool of theirs, and
    overwrite in it what they do not know of. So another thread asks, on a stream of its own.
    """
    made = []

    def make() -> None:
        with torch.cuda.device(device), torch.cuda.stream(torch.cuda.Stream(device)):
            made.append(_zeros(device, words))
            torch.cuda.current_stream(device).synchronize()

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    return made[0]


def _counters(device: torch.device, words: int) -> Tensor:
    if device.type != "cuda":
        return _zeros(device, words)
    handle = torch.cuda.current_stream(device).cuda_stream
    stream = handle, threading.get_ident() if handle == _PER_THREAD_STREAM else 0
    with _lock:
        mine = _counters_of.setdefault(device.index, _Counters())
        if torch.cuda.is_current_stream_capturing():
            if not mine.stores or mine.taken + words > _STORE:
                return _zeros(device, words)  # by the graph itself, a node more
            mine.taken += words
            return mine.stores[-1][mine.taken - words : mine.taken]
        if stream not in mine.of_stream:
            mine.of_stream[stream] = _lasting_zeros(device, counters_of(PICTURES[-1]))
        if not mine.stores or mine.taken > _STORE // 2:
            mine.stores.append(_lasting_zeros(device, _STORE))
            mine.taken = 0
        return mine.of_stream[stream]
