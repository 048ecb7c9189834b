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

MAX_T, MAX_N, MAX_H, MAX_DH = 4096, 8192, 64, 256

# Guesses, measured nowhere yet. Bytes of a tile of keys: 128 in flight a thread.
WARPS = 4
KEY_TILE_BYTES = 1 << 14


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
