# SPDX-License-Identifier: Apache-2.0
"""What the launchers of these kernels share: limits, checks, tiles, the device."""

from __future__ import annotations

import functools
import threading
from contextlib import AbstractContextManager

import torch
import triton
from torch import Tensor

from ..arguments import Refusal
from .queries import MOST_JOBS

MAX_T, MAX_N, MAX_H, MAX_DH, MAX_Q = 4096, 8192, 64, 256, 8192

# Guesses, measured nowhere yet. Bytes of a tile of keys: 128 in flight a thread.
WARPS = 4
KEY_TILE_BYTES = 1 << 14
# All that 16 warps can have. By itself ptxas stops at 64 to 96, for the sake of programs beside
# this one, and fetches a row of scores in two or three trips instead of one, or spills.
MOST_REGISTERS = 128

# A tile of many queries, and one of the keys that they meet.
QUERY_TILE_BYTES = 1 << 13


def check_limit(refuse: Refusal, argument: str, letter: str, size: int, limit: int) -> None:
    if size > limit:
        refuse(argument, f"{letter} <= {limit} on the triton backend", f"{letter} = {size}")


def check_aligned(refuse: Refusal, **tensors: Tensor) -> None:
    for argument, tensor in tensors.items():
        if beyond := tensor.data_ptr() % tensor.itemsize:
            expected = "data at a multiple of its element's size on a GPU"
            refuse(argument, expected, f"an address {beyond} bytes beyond one")


@functools.cache
def head_tiles(N: int, Dh: int, itemsize: int) -> dict[str, int]:
    """Sizes of a head's tensors, powers of two; `itemsize` is that of the keys."""
    all_n, block_dh = max(32, triton.next_power_of_2(N)), max(16, triton.next_power_of_2(Dh))
    block_n = min(all_n, KEY_TILE_BYTES // (block_dh * itemsize))
    return {"ALL_N": all_n, "BLOCK_N": block_n, "BLOCK_DH": block_dh}


# Columns of float32 that Triton multiplies at a time, at least: 8 from 3.8 on. 16 spill up to 40
# bytes a thread in select_qk.
DOT_STEP = 8 if tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 8) else 16


def query_tiles(Dh: int, device: torch.device, dtype: torch.dtype) -> dict[str, int]:
    """Sizes of the tiles of many queries, powers of two: rows, and columns multiplied at a time,
    few in float32, whose operands wait in registers."""
    widen = widens(device, dtype)
    itemsize = 4 if widen else dtype.itemsize
    block_dh = max(16, triton.next_power_of_2(Dh))
    rows = min(128 // itemsize, max(16, QUERY_TILE_BYTES // (block_dh * itemsize)))
    step = block_dh if itemsize == 2 else DOT_STEP
    return {"BLOCK_Q": rows, "BLOCK_KEYS": min(32, rows), "STEP": step, "WIDEN": widen}


def queries_per_job(Q: int, block_q: int) -> int:
    """Whole tiles, as few as leave a head no more than MOST_JOBS jobs."""
    return block_q * triton.cdiv(Q, block_q * MOST_JOBS.value)


def queries_of(query: Tensor) -> int:
    return 1 if query.dim() == 3 else query.shape[1]


def layer_of(query: Tensor, key: Tensor) -> tuple:
    """Queries and keys with their strides; those of one query as if they were (P, H, Dh)."""
    if query.dim() == 4 and query.shape[1] == 1:
        query = query[:, 0]
    return (query, *query.stride()[:-1], key, *key.stride()[:-1])


@functools.cache
def widens(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether 16-bit queries and keys are multiplied as float32: where Triton has no tensor cores
    for them (before sm_80), they drop denormals (gfx90a), or it is Triton's interpreter, which
    knows no bfloat16."""
    if dtype == torch.float32:
        return False
    if device.type != "cuda":
        return dtype == torch.bfloat16
    properties = torch.cuda.get_device_properties(device)
    if is_amd():
        return properties.gcnArchName.startswith("gfx90a")
    return properties.major < 8


def is_amd() -> bool:
    return bool(torch.version.hip)


def registers() -> dict[str, int]:
    """What only NVIDIA's compiler is told: how many a thread may have."""
    return {} if is_amd() else {"maxnreg": MOST_REGISTERS}


def block_of(T: int) -> int:
    """A vector that holds all patches of a partition."""
    return max(32, triton.next_power_of_2(T))


def warps(T: int) -> int:
    """Programs that hold more patches take more threads: 4,096 on four warps spill 1 KB each."""
    return WARPS * max(1, block_of(T) // 1024)


# The interpreter patches Triton itself for as long as a kernel runs, which threads would undo.
_interpreting = threading.Lock()


def on(device: torch.device) -> AbstractContextManager:
    return torch.cuda.device(device) if device.type == "cuda" else _interpreting
