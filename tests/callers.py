# SPDX-License-Identifier: Apache-2.0
"""Every way to call an operator, by name, so that one test can hold all of them to one table.

A caller takes the operator's name and its arguments, all by name: `CALLERS["operator"]("select",
features=..., ...)`; its results come as a tuple, also where there is one. A backend that joins the
table of backends joins `callers()` by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import hired_kernels
from hired_kernels import backends
from hired_kernels import reference as oracle

Results = tuple[Tensor, ...]
Caller = Callable[..., Results]


def outputs(results: Tensor | Results) -> Results:
    return results if isinstance(results, tuple) else (results,)


def reference(op: str, **arguments: Any) -> Results:
    """The oracle itself, without the dispatcher."""
    return outputs(getattr(oracle, op)(**arguments))


def operator(op: str, **arguments: Any) -> Results:
    """`torch.ops.hired`, served by whoever serves the device."""
    return outputs(getattr(torch.ops.hired, op)(**arguments))


def fake(op: str, **arguments: Any) -> Results:
    """`torch.ops.hired` on tensors that have a shape and no data."""
    with FakeTensorMode() as mode:
        for name, value in arguments.items():
            if isinstance(value, Tensor):
                arguments[name] = mode.from_tensor(value)
        return operator(op, **arguments)


def by_backend(name: str) -> Caller:
    """`torch.ops.hired` with one backend put in charge."""

    def call(op: str, **arguments: Any) -> Results:
        with hired_kernels.backend(name):
            return operator(op, **arguments)

    return call


def callers(device_type: str) -> dict[str, Caller]:
    """Those that compute, for tensors of a device type."""
    rows = [row.name for row in backends.table() if row.serves(device_type)]
    rows.remove(backends.active(device_type))  # which is "operator"
    return {
        "reference": reference,
        "operator": operator,
        **{f"{name}-backend": by_backend(name) for name in rows},
    }


CALLERS = callers("cpu")
