# SPDX-License-Identifier: Apache-2.0
"""What the tests of parity and of invariants are held against: HIRED_TEST_TARGET.

`cpu` (the default) is the CPU backend; `cuda` a GPU, to which arguments are moved as they lie in
memory; `emulated` the CUDA kernels' own source on the host (tests/emulator), every call under a
seed, a block size and a number of resident blocks of its own; `triton` the Triton kernels, on a GPU
or, with TRITON_INTERPRET=1, one program after the other on the host.
"""

from __future__ import annotations

import ctypes
import os
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any

import pytest
import torch
from callers import Caller, Results, by_backend, outputs
from torch import Tensor

from hired_kernels import backends

NAME = os.environ.get("HIRED_TEST_TARGET", "cpu")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# Of the host, to try a target with: to the others they are all the same.
THREADS = (1, 2, 4) if NAME == "cpu" else (1,)
# How often a large call is made again to see the same bits: emulated or interpreted it takes long.
SAME_BITS_REPEATS = 1 if INTERPRETED or NAME == "emulated" else 3


@cache
def emulator() -> ctypes.CDLL:
    """The library of tests/emulator/library.cpp, registered as torch.ops.hired_emulated."""
    library = os.environ["HIRED_EMULATED_LIBRARY"]
    torch.ops.load_library(library)
    return ctypes.CDLL(library)


def schedule(
    seed: int,
    resident_blocks: int,
    threads: int,
    *,
    lock_step: bool,
    capability: int,
    streams: int = 1,
) -> None:
    """How the next emulated launches run; capability is the major one that the device claims.

    On several streams a call runs on all of them at once, its blocks in one pool with the others'.
    """
    emulator().hired_emulated_configure(
        ctypes.c_uint64(seed), resident_blocks, threads, int(lock_step), capability, streams
    )


def emulated(op: str, **arguments: Any) -> Results:
    """The kernels as the last `schedule` says."""
    emulator()
    return outputs(getattr(torch.ops.hired_emulated, op)(**arguments))


_threads: int | None = None


@contextmanager
def one_block_size(threads: int) -> Iterator[None]:
    """Emulated calls in here run in blocks of so many threads, of which sums have their order."""
    global _threads
    _threads = threads
    try:
        yield
    finally:
        _threads = None


_calls: Counter[str] = Counter()  # of each test, so that what it meets does not hang on the others


def _aligned(value: Any) -> Any:
    """As it would lie on a GPU: where a number begins at a multiple of its size."""
    if not isinstance(value, Tensor) or value.data_ptr() % value.itemsize == 0:
        return value
    moved = torch.empty(0, dtype=value.dtype)
    storage = value.untyped_storage().clone()
    return moved.set_(storage, value.storage_offset(), value.shape, value.stride())


def _emulated_anyhow(op: str, **arguments: Any) -> Results:
    arguments = {name: _aligned(value) for name, value in arguments.items()}
    test = os.environ["PYTEST_CURRENT_TEST"]
    _calls[test] += 1
    choose = random.Random(f"{test} {_calls[test]}")
    schedule(
        choose.getrandbits(60),
        choose.choice([1, 2, 5, 40]),
        _threads or choose.choice([32, 64, 128]),
        lock_step=choose.random() < 0.5,
        capability=choose.choice([6, 9]),
    )
    return emulated(op, **arguments)


def to_gpu(tensor: Tensor) -> Tensor:
    """The same values at the same strides and offset, storage and all."""
    storage = tensor.untyped_storage().cuda()
    moved = torch.empty(0, dtype=tensor.dtype, device="cuda")
    return moved.set_(storage, tensor.storage_offset(), tensor.shape, tensor.stride())


def _on_gpu(backend: str) -> Caller:
    def call(op: str, **arguments: Any) -> Results:
        moved = {
            name: to_gpu(value) if isinstance(value, Tensor) else value
            for name, value in arguments.items()
        }
        return tuple(result.cpu() for result in by_backend(backend)(op, **moved))

    return call


def _interpreted(op: str, **arguments: Any) -> Results:
    arguments = {name: _aligned(value) for name, value in arguments.items()}
    return by_backend("triton")(op, **arguments)


TARGETS: dict[str, Caller] = {
    "cpu": by_backend("cpu"),
    "cuda": _on_gpu("cuda"),
    "emulated": _emulated_anyhow,
    "triton": _interpreted if INTERPRETED else _on_gpu("triton"),
}
target = TARGETS[NAME]


def in_charge() -> AbstractContextManager:
    """The target's backend for a block, in which threads may then call it."""
    return nullcontext() if NAME == "emulated" else backends.backend(NAME)


if NAME == "cpu" and not any(row.name == "cpu" and row.available for row in backends.table()):
    pytest.skip("the native library was not built", allow_module_level=True)
