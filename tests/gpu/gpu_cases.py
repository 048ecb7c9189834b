# SPDX-License-Identifier: Apache-2.0
"""What the tests on a GPU share: calls, how they are moved and made, what is right.

The backend under test is `cuda`, or HIRED_BACKEND. Who imports this is skipped, with the reason,
where no GPU or no such backend is at hand. Results are held to the oracle on copies of the
arguments on the CPU.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from functools import cache

import pytest
import torch
from callers import Results, operator, reference
from cls_attention_calls import agree
from gpu_short_list import CALLS, LLAVA_CALLS
from strategies import Call
from targets import to_gpu
from torch import Tensor

from hired_kernels import backends

if not torch.cuda.is_available():
    pytest.skip("needs a GPU that PyTorch can use", allow_module_level=True)
BACKEND = os.environ.get("HIRED_BACKEND") or "cuda"
if backends.active("cuda") != BACKEND:
    why = [row.why for row in backends.table() if row.name == BACKEND]
    pytest.skip(
        f"no {BACKEND} backend: {(why or ['not in the table'])[0]}", allow_module_level=True
    )

CASES: dict[str, Callable[[int], tuple[str, Call]]] = {
    **CALLS,
    **{
        f"{name}-llava": lambda seed, make=make: make(seed, torch.float16)
        for name, make in LLAVA_CALLS.items()
    },
}
# How often a call is repeated where bits are compared.
REPEATS = int(os.environ.get("HIRED_TEST_REPEATS", "2000"))


def on_gpu(call: Call) -> Call:
    """Tensors of the CPU are moved as they lie in memory; others stay."""
    return {
        name: to_gpu(value) if isinstance(value, Tensor) and value.device.type == "cpu" else value
        for name, value in call.items()
    }


def run(op: str, call: Call) -> Results:
    return operator(op, **call)


@cache
def case(name: str) -> tuple[str, Call, Results]:
    """Operator, arguments on the GPU, the oracle's results on the CPU."""
    op, call = CASES[name](1)
    return op, on_gpu(call), reference(op, **call)


def right(results: Results, expected: Results) -> bool:
    return agree(tuple(result.cpu() for result in results), expected)


def assert_right(op: str, call: Call) -> None:
    assert right(run(op, on_gpu(call)), reference(op, **call))


@contextlib.contextmanager
def plain_memory() -> Iterator[None]:
    """New tensors are left as they are: filling them takes kernels, which some tests count."""
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(True)
