# SPDX-License-Identifier: Apache-2.0
"""A backend (see targets.py) against the oracle, over everything that a call may be.

`select` agrees to the bit in all outputs. `select_qk` computes scores in float32 where the oracle
takes float64, so it is compared where every cut falls between scores that float32 can tell apart.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from callers import reference
from hypothesis import assume, given, settings
from strategies import (
    HEAD_WIDTHS,
    Call,
    apart,
    same,
    seeded_call,
    seeded_qk_call,
    select_calls,
    select_qk_calls,
)
from targets import target

from hired_kernels import arguments

pytestmark = pytest.mark.usefixtures("dirty_memory", "one_thread")

DTYPES = {"ids": lambda dtype: str(dtype).removeprefix("torch.")}
LLAVA_NEXT = {"grids": ((2, 2), (1, 2), (3, 1)), "T": 576, "H": 16, "D": 8, "Dh": 64}


@settings(max_examples=4 * settings().max_examples)
@given(select_calls())
def test_select(call: Call) -> None:
    assert same(target("select", **call), reference("select", **call))


@settings(max_examples=3 * settings().max_examples)
@given(select_qk_calls())
def test_select_qk(call: Call) -> None:
    assume(apart(call))
    assert same(target("select_qk", **call), reference("select_qk", **call))


@pytest.mark.parametrize("order", arguments.ORDERS)
@pytest.mark.parametrize("policy", arguments.POLICIES)
@pytest.mark.parametrize("crops", [None, [5, 43, 0, 48, 0, 24, 7, 40, 0, 72, 12, 12]],
                         ids=["whole", "cropped"])  # fmt: skip
@pytest.mark.parametrize("dtype", arguments.SCORE_DTYPES, **DTYPES)
def test_select_of_llava_next_size(dtype, crops, policy, order) -> None:
    rules = {"crops": crops, "policy": policy, "order": order}
    if policy == "published":
        rules |= {"share": 0.6}
    call = seeded_call("select", 1, dtype=dtype, **LLAVA_NEXT, **rules)
    assert same(target("select", **call), reference("select", **call))


@pytest.mark.parametrize("merge", [2, 3, 4, 6, 8, 12, 24])
@pytest.mark.parametrize("policy", ["exact", "pooled"])
def test_select_of_merged_tokens_of_llava_next_size(policy: str, merge: int) -> None:
    side = 24 // merge
    crops = [side // 3, 2 * side, 0, 2 * side, 0, side, 1, 2 * side - 1, 0, 3 * side, 0, side // 2]
    rules = {"policy": policy, "crops": crops, "order": arguments.ORDERS[merge % 3], "share": 0.5}
    call = seeded_call("select", merge, merge=merge, **LLAVA_NEXT, **rules)
    assert same(target("select", **call), reference("select", **call))


@pytest.mark.parametrize("part", range(8))
def test_published_budgets_are_rounded_twice(part: int) -> None:
    # 55 patches are counted, w of them in the first half: where it shows how 55ths are rounded.
    T, W, alpha = 144, 55, 1 - 55.5 / 144
    cases = [
        (w, budget)
        for w, budget in itertools.product(range(W + 1), range(3 * T))
        for sub in [budget - min(int(budget * alpha), T)]
        for once in [w / W * sub]
        if int(np.float32(w) / np.float32(W) * np.float32(sub)) != int(once)
        or int(np.float32(once)) != int(once)
    ]
    assert len(cases) > 30
    cases = cases[part::8]
    attn_init = torch.zeros(len(cases), 1, T)
    for row, (w, _) in zip(attn_init, cases, strict=True):
        row[0, :w] = row[0, T // 2 : T // 2 + W - w] = 1
    call = {"features": torch.empty(3 * len(cases), T, 0), "attn_init": attn_init}
    call |= {"attn_final": torch.zeros(3 * len(cases), 1, T), "grids": [1, 2] * len(cases)}
    call |= {"budgets": [budget for _, budget in cases], "alpha": alpha, "policy": "published"}
    assert same(target("select", **call), reference("select", **call))


@pytest.mark.parametrize("policy", arguments.POLICIES)
@pytest.mark.parametrize("dtype", arguments.SCORE_DTYPES, **DTYPES)
def test_select_qk_of_llava_next_size(dtype, policy) -> None:
    sizes = {**LLAVA_NEXT, "grids": ((2, 2), (1, 2))}
    call = seeded_qk_call(2, dtype=dtype, **sizes, policy=policy)
    assert same(target("select_qk", **call), reference("select_qk", **call))


@pytest.mark.parametrize("Q", [None, 5])
@pytest.mark.parametrize("policy", ["exact", "pooled"])
def test_select_qk_of_internvl_size(policy: str, Q: int | None) -> None:
    # Tiles of 448 pixels, 32 x 32 patches, 2 x 2 of them a token; the thumbnail comes last.
    sizes = {"grids": ((1, 2),), "T": 1024, "H": 16, "D": 4, "Dh": 64, "share": 0.1}
    rules = {"merge": 2, "order": "full_last", "policy": policy}
    call = seeded_qk_call(9, Q=Q, dtype=torch.bfloat16, **sizes, **rules)
    assert same(target("select_qk", **call), reference("select_qk", **call))


@pytest.mark.parametrize("Q", [1, 2, 3, 7, 8, 16, 17, 32, 33, 65, 144])
@pytest.mark.parametrize("dtype", arguments.SCORE_DTYPES, **DTYPES)
def test_numbers_of_queries(dtype: torch.dtype, Q: int) -> None:
    call = seeded_qk_call(10, Q=Q, dtype=dtype, merge=1 + Q % 2)
    assert same(target("select_qk", **call), reference("select_qk", **call))


def test_layers_may_differ_in_their_queries() -> None:
    call = seeded_qk_call(11, Q=20)
    for init, final in ((slice(0, 1), slice(None)), (slice(None, None, 4), 2), (0, slice(3, 5))):
        queries = {"query_init": call["query_init"][:, init]}
        queries |= {"query_final": call["query_final"][:, final]}
        changed = {**call, **queries}
        assert apart(changed)
        assert same(target("select_qk", **changed), reference("select_qk", **changed))


@pytest.mark.parametrize("dtype", arguments.SCORE_DTYPES, **DTYPES)
@pytest.mark.parametrize("Dh", HEAD_WIDTHS)
def test_head_widths(Dh: int, dtype: torch.dtype) -> None:
    call = seeded_qk_call(3, Dh=Dh, dtype=dtype)
    assert same(target("select_qk", **call), reference("select_qk", **call))


@pytest.mark.parametrize("H", [1, 2, 5, 16, 64])
@pytest.mark.parametrize("N", [16, 17, 18, 31, 32, 33, 64, 65])
def test_more_keys_than_patches(N: int, H: int) -> None:
    call = seeded_qk_call(4, N=N, H=H)
    assert same(target("select_qk", **call), reference("select_qk", **call))


@pytest.mark.parametrize("T", [1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 255, 256, 257])
@pytest.mark.parametrize("op", ["select", "select_qk"])
def test_token_counts_around_vector_widths(op: str, T: int) -> None:
    sizes = {"T": T, "grids": ((0, 0), (0, 0)), "share": 0.5}
    call = seeded_call(op, 5, **sizes) if op == "select" else seeded_qk_call(5, **sizes)
    assert same(target(op, **call), reference(op, **call))


@pytest.mark.parametrize("scale", [0.0, -0.0, 0.01, 0.3, -0.3, 1.0, 30.0, -30.0])
def test_scale(scale: float) -> None:
    call = seeded_qk_call(6, scale=scale)
    assert same(target("select_qk", **call), reference("select_qk", **call))


@pytest.mark.parametrize("part", range(40))
def test_softmax_is_as_good_as_float32(part: int) -> None:
    # Two patches, three heads, logits d and 0: of the heads' sigmoids of d the last is such that
    # the sum misses a draw by 2e-6, a dozen roundings, one way or the other.
    generator = torch.Generator().manual_seed(part)
    P, close = 25, 2e-6
    free = torch.rand(20 * P, 2, generator=generator, dtype=torch.float64) * 24 - 12
    sign = torch.randint(2, (20 * P,), generator=generator) * 2 - 1
    last = 1.5 - free.sigmoid().sum(-1) + close * sign
    solved = (last > 1e-3) & (last < 1 - 1e-3)
    differences = torch.cat([free[solved], last[solved].logit()[:, None]], -1)[:P].float()
    margin = differences.double().sigmoid().sum(-1) - 1.5
    assert len(margin) == P
    assert (margin.abs() > close / 2).all()
    key = torch.stack([differences, torch.zeros_like(differences)], 1)[..., None]
    query = torch.ones(P, 3, 1)
    _, indices, _ = target(
        "select_qk", features=torch.empty(P, 2, 0), query_init=query, key_init=key,
        query_final=query, key_final=key, grids=[0, 0] * P, budgets=[1] * P, scale=1.0,
    )  # fmt: skip
    assert torch.equal(indices % 2, (margin < 0).long())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["query", "cls-key", "patch-key", "one-head", "all"])
@pytest.mark.parametrize("layer", ["init", "final"])
def test_queries_and_keys_that_are_not_finite(layer: str, where: str, value: float) -> None:
    call = seeded_qk_call(7)
    query, key = call[f"query_{layer}"], call[f"key_{layer}"]
    if where == "query":
        query[:, 0, 0] = value
    elif where == "cls-key":
        key[:, 0, 1, 3] = value
    elif where == "patch-key":
        key[:, 7, 1, 3] = value
    elif where == "one-head":
        key[:, :, 2, 0] = value
    else:
        key.fill_(value)
    assert apart(call)
    assert same(target("select_qk", **call), reference("select_qk", **call))


@pytest.mark.parametrize("dtype", arguments.SCORE_DTYPES, **DTYPES)
def test_a_fused_projection_is_read_in_place(dtype: torch.dtype) -> None:
    call = seeded_qk_call(8, dtype=dtype)
    expected = target("select_qk", **call)
    for layer in ("init", "final"):
        query, key = call[f"query_{layer}"], call[f"key_{layer}"]
        P, N, H, Dh = key.shape
        fused = torch.full((P, N, 3 * H * Dh), math.nan, dtype=dtype)  # what a Linear gives
        q, k, _ = fused.chunk(3, dim=-1)
        q[:, 0] = query.flatten(1)
        k.copy_(key.flatten(2))
        call |= {f"query_{layer}": q[:, 0].view(P, H, Dh), f"key_{layer}": k.view(P, N, H, Dh)}
    assert same(target("select_qk", **call), expected)
    assert same(expected, reference("select_qk", **call))
