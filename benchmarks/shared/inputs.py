# SPDX-License-Identifier: Apache-2.0
"""Inputs of LLaVA-NeXT's shapes, and the bytes that a selection from them has to move.

Scores are random, with one property: at every cut that a policy makes (the best patches that weigh
the sub-images, each partition's k-th patch) the next score is lower by a wide margin. So all
contenders have to keep the same tokens, bit for bit, in bfloat16 too, however they round.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import hired_kernels  # noqa: F401  (defines torch.ops.hired)

OPERATORS = ("select", "select_qk")


@dataclass(frozen=True)
class Shape:
    """B pictures of R x C sub-images; the letters are those of the operators' documentation."""

    B: int
    dtype: torch.dtype
    R: int = 2
    C: int = 2
    T: int = 576
    N: int = 577
    H: int = 16
    Dh: int = 64
    D: int = 1024
    rate: float = 0.2
    alpha: float = 0.5

    @property
    def partitions(self) -> int:
        """Of one picture, the full image included."""
        return 1 + self.R * self.C

    @property
    def P(self) -> int:
        return self.B * self.partitions

    @property
    def budget(self) -> int:
        """Tokens to keep of each picture."""
        return int(self.partitions * self.T * self.rate)

    @property
    def grids(self) -> list[int]:
        return [self.R, self.C] * self.B

    @property
    def budgets(self) -> list[int]:
        return [self.budget] * self.B

    @property
    def arguments(self) -> tuple[list[int], list[int], float]:
        """What the raw operators take behind the tensors."""
        return self.grids, self.budgets, self.alpha

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    def sizes(self) -> dict[str, Any]:
        """As a case of a JSON file has them."""
        names = ("B", "P", "R", "C", "T", "N", "H", "Dh", "D", "rate", "budget", "alpha")
        return {name: getattr(self, name) for name in names}

    def floor_bytes(self, operator: str) -> dict[str, int]:
        """Bytes that must move: what is read once, the kept tokens twice, the results."""
        element, K = self.dtype.itemsize, self.B * self.budget
        rows = self.P + self.B  # the initial layer is needed of the full images alone
        row = self.H * self.T if operator == "select" else (self.N + 1) * self.H * self.Dh
        return {
            "attention" if operator == "select" else "queries and keys": rows * row * element,
            "kept tokens": 2 * K * self.D * element,
            "indices and counts": 8 * (K + self.P),
        }


@dataclass(frozen=True)
class Inputs:
    """One input set. `features` and, for `select`, the attention rows are views, as a vision tower
    hands them over: hidden[:, 1:] and attention[:, :, 0, -T:]."""

    hidden: Tensor  # (P, N, D)
    init: tuple[Tensor, ...]  # (P, H, T), or queries and keys (P, N, H, Dh) each
    final: tuple[Tensor, ...]

    @property
    def features(self) -> Tensor:
        return self.hidden[:, 1:]

    def arguments(self) -> tuple[Tensor, ...]:
        """The tensors that the operator takes: of queries, the CLS token's."""
        if len(self.init) == 1:
            return self.features, *self.init, *self.final
        (q0, k0), (q1, k1) = self.init, self.final
        return self.features, q0[:, 0], k0, q1[:, 0], k1


def make(shape: Shape, operator: str, generator: torch.Generator) -> Inputs:
    """A new input set for `operator`."""
    layer = _attention if operator == "select" else _queries_and_keys
    best = torch.full((shape.P, 1), int(shape.T * (1 - shape.alpha)))
    init = _logits(shape, best, generator)
    final = _logits(shape, _budgets(shape, init), generator)
    hidden = torch.randn(shape.P, shape.N, shape.D, generator=generator).to(shape.dtype)
    return Inputs(hidden, layer(shape, init, generator), layer(shape, final, generator))


def _logits(shape: Shape, cuts: Tensor, generator: torch.Generator) -> Tensor:
    """(P, H, N): patches in a random order, with a step of 1 after as many of them as `cuts`
    (P, any) says."""
    rank = torch.rand(shape.P, shape.T, generator=generator).argsort(dim=1).argsort(dim=1)
    patches = -2.0 * rank / shape.T + (rank[:, :, None] < cuts[:, None]).sum(dim=2)
    others = torch.zeros(shape.P, shape.N - shape.T)
    noise = 0.1 * torch.randn(shape.P, shape.H, shape.N, generator=generator)
    return torch.cat((others, patches), dim=1)[:, None] + noise


def _budgets(shape: Shape, init: Tensor) -> Tensor:
    """(P, 2): what each partition keeps under either policy."""
    rows, nothing = init.softmax(dim=2)[:, :, -shape.T :], torch.empty(shape.P, shape.T, 0)
    arguments = nothing, rows, rows, *shape.arguments
    policies = ("exact", "published")
    counts = [torch.ops.hired.select(*arguments, policy=policy)[2] for policy in policies]
    return torch.stack(counts, dim=1)


def _attention(shape: Shape, logits: Tensor, generator: torch.Generator) -> tuple[Tensor]:
    # Nothing but the CLS rows is ever touched: the rest of the matrix takes no memory.
    matrix = torch.empty(shape.P, shape.H, shape.N, shape.N, dtype=shape.dtype)
    matrix[:, :, 0] = logits.softmax(dim=2)
    return (matrix[:, :, 0, -shape.T :],)


def _queries_and_keys(
    shape: Shape, logits: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    queries, keys = (
        torch.randn(shape.P, shape.N, shape.H, shape.Dh, generator=generator) for _ in range(2)
    )
    cls = queries[:, :1]
    # Random keys, but for their component along the CLS query, which makes the logit.
    wanted = logits.transpose(1, 2)[..., None] * shape.Dh**0.5
    keys += (wanted - (keys * cls).sum(-1, keepdim=True)) / cls.square().sum(-1, keepdim=True) * cls
    return queries.to(shape.dtype), keys.to(shape.dtype)
