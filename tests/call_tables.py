# SPDX-License-Identifier: Apache-2.0
"""What the tables of bad and of good calls are made of: bad_calls.py, good_calls.py.

An entry is a valid call with some arguments changed: to a value, or by a function of the valid
one. `sizes` change the shapes of the valid call.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

SELECTING = ("select", "select_qk")
OPS = (*SELECTING, "cls_attention")
BIG = 2**62


def valid_call(
    op: str, device: str = "cpu", *, P: int = 6, T: int = 16, H: int = 2, D: int = 4, N: int = 18,
    Dh: int = 4,
) -> dict[str, Any]:  # fmt: skip
    """All arguments by name: a picture with 2 x 2 sub-images and one without, seeded scores."""
    generator = torch.Generator().manual_seed(7)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    if op == "cls_attention":
        tensors = {"query": normal(P, H, Dh), "key": normal(P, N, H, Dh)}
        return {**tensors, "tokens": T, "scale": None}
    tensors = {"features": normal(P, T, D)}
    if op == "select":
        tensors |= {"attn_init": normal(P, H, T), "attn_final": normal(P, H, T)}
    else:
        tensors |= {"query_init": normal(P, H, Dh), "key_init": normal(P, N, H, Dh)}
        tensors |= {"query_final": normal(P, H, Dh), "key_final": normal(P, N, H, Dh)}
    integers = {"grids": [2, 2, 0, 0], "budgets": [10, 3], "alpha": 0.5, "crops": None}
    scale = {"scale": None} if op == "select_qk" else {}
    return {**tensors, **integers, **scale, "policy": "exact", "order": "raster", "merge": 1}


@dataclass(frozen=True)
class Call:
    name: str
    op: str
    changes: dict[str, Any]
    sizes: dict[str, int] = field(default_factory=dict, kw_only=True)

    @property
    def id(self) -> str:
        return f"{self.op}-{self.name}"

    def arguments(self, device: str = "cpu") -> dict[str, Any]:
        """All arguments of the operator, by name."""
        arguments = valid_call(self.op, device, **self.sizes)
        for name, change in self.changes.items():
            arguments[name] = change(arguments[name]) if callable(change) else change
        return arguments


@dataclass(frozen=True)
class BadCall(Call):
    argument: str
    expected: str
    got: str

    def message(self, device: str = "cpu") -> str:
        expected = self.expected.replace("{device}", str(torch.empty(0, device=device).device))
        return f"hired::{self.op}: {self.argument}: expected {expected}, got {self.got}"


@dataclass(frozen=True)
class GoodCall(Call):
    rows: int  # of the first output


def transposed(x: Tensor) -> Tensor:
    """The same values with the strides of the last two dimensions exchanged."""
    return x.mT.contiguous().mT


def judges(Q: int) -> Callable[[Tensor], Tensor]:
    """Queries (P, Q, H, Dh) of (P, H, Dh), those of every fourth of many tokens."""

    def change(query: Tensor) -> Tensor:
        P, H, Dh = query.shape
        many = torch.full((P, 1 + 4 * Q, H, Dh), math.nan, dtype=query.dtype, device=query.device)
        many[:, 1::4] = (
            query[:, None] * torch.linspace(1, -1.5, Q, device=query.device)[:, None, None]
        )
        return many[:, 1::4]

    return change
