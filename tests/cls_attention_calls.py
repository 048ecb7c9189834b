# SPDX-License-Identifier: Apache-2.0
"""Calls of `cls_attention`, how close to the oracle its results have to be, and what `select` makes
of them.

The oracle computes in float64, so results are compared within what float32 may err by: the error of
a logit is bounded by Dh roundings of the sum of |q| |k|, and e^x makes an absolute error of x a
relative one of the attention.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from callers import Caller
from hypothesis import strategies as st
from strategies import HEAD_WIDTHS, Call, queries_keys, same, seeded_call
from torch import Tensor

from hired_kernels import arguments

TINY = 2.0**-147  # a few of the smallest denormals
# Sizes that the GPU backends refuse, and how.
BEYOND_LIMITS = [
    ({"T": 4097}, "tokens: expected T <= 4096"),
    ({"H": 65}, "query: expected H <= 64"),
    ({"Dh": 257}, "query: expected Dh <= 256"),
    ({"N": 8193}, "key: expected N <= 8192"),
    ({"Q": 8193}, "query: expected Q <= 8192"),
]
SELECTION = ("features", "grids", "budgets", "alpha", "crops", "policy", "order", "merge")


@st.composite
def cls_attention_calls(draw: st.DrawFn) -> Call:
    """A valid call, all arguments by name; queries and keys lie in memory as for `select_qk`."""
    P, H = draw(st.sampled_from([0, 1, 1, 2, 3, 5])), draw(st.integers(1, 5))
    N = draw(st.one_of(st.integers(1, 80), st.sampled_from([16, 17, 32, 33, 64, 65, 145])))
    T = draw(st.sampled_from(sorted({1, max(1, N // 2), max(1, N - 1), N})))
    Dh = draw(st.sampled_from(HEAD_WIDTHS))
    query, key = draw(queries_keys(P, N, H, Dh, draw(st.sampled_from(arguments.SCORE_DTYPES))))
    scale = draw(st.sampled_from([None, None, 0.0, 0.25, -0.5, 1.0]))
    return {"query": query, "key": key, "tokens": T, "scale": scale}


def seeded_attention_call(seed: int, *, P: int = 3, T: int = 16, **sizes: Any) -> Call:
    """A plain call, contiguous and finite, of normal values from a seed.

    sizes: Q, H, N, Dh, dtype.
    """
    call = seeded_call("select_qk", seed, grids=((0, 0),) * P, T=T, D=1, **sizes)
    tensors = {"query": call["query_final"], "key": call["key_final"]}
    return {**tensors, "tokens": T, "scale": call["scale"]}


def error_bound(call: Call) -> Tensor:
    """(P, H, 1): by how much the logarithm of a head's attention may be wrong."""
    query, key = (call[name].double().abs().nan_to_num(0, 0, 0) for name in ("query", "key"))
    judges = query if query.dim() == 4 else query[:, None]
    Q, (N, _, Dh) = judges.shape[1], key.shape[1:]
    scale = Dh**-0.5 if call["scale"] is None else call["scale"]
    sizes = torch.einsum("pqhd,pnhd->phqn", judges, key).flatten(2) * abs(scale)
    return (2 * (Dh + 8) * sizes.amax(-1, keepdim=True) + N + Q + 16) * 2.0**-24


def close(attention: Tensor, expected: Tensor, bound: Tensor | float) -> bool:
    """Whether it is the oracle's but for what float32 may err by, NaN where that is NaN."""
    if (attention.shape, attention.dtype) != (expected.shape, torch.float32):
        return False
    a, b = attention.double(), expected.double()
    bound = torch.as_tensor(bound, dtype=torch.float64)
    inside = (a <= b * bound.exp() + TINY) & (a >= b * (-bound).exp() - TINY)
    return bool((inside | (a.isnan() & b.isnan())).all())


def agree(results: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> bool:
    """To the bit, but for the attention of a plain `cls_attention` call."""
    return close(results[0], expected[0], 2e-5) if len(expected) == 1 else same(results, expected)


def composed_rows(call: Caller, arguments_: Call) -> dict[str, Tensor]:
    """`select`'s attention rows, of a `select_qk` call's queries and keys."""
    return {
        f"attn_{layer}": call(
            "cls_attention", query=arguments_[f"query_{layer}"], key=arguments_[f"key_{layer}"],
            tokens=arguments_["features"].shape[1], scale=arguments_["scale"],
        )[0]
        for layer in ("init", "final")
    }  # fmt: skip


def composed(call: Caller, arguments_: Call) -> tuple[Tensor, ...]:
    """What `select` makes of the rows of a `select_qk` call's queries and keys."""
    rows = composed_rows(call, arguments_)
    return call("select", **{name: arguments_[name] for name in SELECTION}, **rows)


def split(call: Caller, arguments_: Call, ranks: int, copied: bool = False) -> Tensor:
    """The rows as so many ranks compute them, each those of its heads, gathered along heads."""
    H = arguments_["query"].shape[-2]
    each = math.ceil(H / ranks)
    parts = []
    for first in range(0, H, each):
        query = arguments_["query"][..., first : first + each, :]
        key = arguments_["key"][:, :, first : first + each]
        if copied:
            query, key = query.contiguous(), key.contiguous()
        parts += call("cls_attention", **{**arguments_, "query": query, "key": key})
    return torch.cat(parts, 1)
