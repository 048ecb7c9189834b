# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels on the host: policies and orders, with tokens of one patch and of several.

Runs under TRITON_INTERPRET=1 (`make test-triton`).
"""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import pytest
import torch
from callers import by_backend, reference
from strategies import Call, same, seeded_call, seeded_qk_call
from targets import INTERPRETED

from hired_kernels import arguments

if not INTERPRETED:
    pytest.skip("needs TRITON_INTERPRET=1: make test-triton", allow_module_level=True)

import triton
import triton.language as tl

from hired_kernels.triton_kernels import pooled as pooling

pytestmark = [
    pytest.mark.usefixtures("dirty_memory", "one_thread"),
    # NumPy's, of the infinities that tests put in.
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]

interpreted = by_backend("triton")
GRIDS = ((2, 2), (1, 2))
RULES = [
    rules for rules in product(arguments.POLICIES, arguments.ORDERS, (1, 2, 3))
    if rules[0] != "published" or rules[2] == 1
]  # fmt: skip


def agrees(call: Call, op: str = "select") -> bool:
    return same(interpreted(op, **call), reference(op, **call))


@pytest.mark.parametrize(
    ("crops", "budgets"),
    [(None, [20, 0]), ([1, 7, 0, 8, 1, 3, 2, 8], [10**6, 11])],
    ids=["whole", "cropped"],
)
@pytest.mark.parametrize(("policy", "order", "merge"), RULES)
def test_a_batch_by_every_rule(
    policy: str, order: str, merge: int, crops: Any, budgets: list[int]
) -> None:
    side = 4 * merge
    call = seeded_call(
        "select", 1, grids=GRIDS, T=side**2, H=2, D=3, dtype=torch.bfloat16,
        crops=crops, policy=policy, order=order, merge=merge,
    )  # fmt: skip
    assert agrees({**call, "budgets": budgets})


@pytest.mark.parametrize("merge", [1, 2])
@pytest.mark.parametrize("policy", ["exact", "pooled"])
def test_from_queries_and_keys(policy: str, merge: int) -> None:
    rules = {"policy": policy, "order": "full_last", "merge": merge}
    call = seeded_qk_call(2, grids=((1, 2), (0, 0)), T=16)
    assert agrees({**call, **rules, "budgets": [9, 3]}, "select_qk")


@pytest.mark.parametrize(("side", "merge"), [(4, 4), (8, 8), (10, 5), (34, 2), (32, 16)])
def test_blocks_of_any_divisor_of_the_side(side: int, merge: int) -> None:
    grids, total = ((1, 2),), 3 * (side // merge) ** 2
    for policy in ("exact", "pooled"):
        call = seeded_call(
            "select", 3, grids=grids, T=side**2, H=1, D=2, policy=policy, merge=merge
        )
        assert agrees({**call, "budgets": [total // 5]})


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 2.0**127])
def test_a_block_adds_up_as_its_patches_do(value: float) -> None:
    call = seeded_call("select", 4, grids=((1, 2),), T=36, H=2, D=2, merge=3)
    for layer in ("attn_init", "attn_final"):
        call[layer][:, :, ::5] = value
        call[layer][:, :, 7] = -value
    for policy in ("exact", "pooled"):
        assert agrees({**call, "policy": policy, "budgets": [5]})


# The pool.


@pytest.mark.parametrize("order", ["partition", "full_last"])
def test_partitions_need_not_be_square(order: str) -> None:
    call = seeded_call("select", 5, grids=((1, 2), (0, 0)), T=7, policy="pooled", order=order)
    assert agrees(call)


@pytest.mark.parametrize("merge", [1, 2])
@pytest.mark.parametrize("values", [(0.0, 1.0), (0.5,), (math.nan, -math.inf, 0.0, -0.0, 1.0)])
def test_equal_scores_go_to_the_lower_partition_and_index(values: tuple, merge: int) -> None:
    generator = torch.Generator().manual_seed(6)
    call = seeded_call(
        "select", 6, grids=((1, 2),), T=4 * merge**2, H=1, policy="pooled", merge=merge
    )
    drawn = torch.randint(len(values), call["attn_final"].shape, generator=generator)
    call["attn_final"] = torch.tensor(values)[drawn]
    for budget in (0, 1, 2, 5, 6, 7, 11, 12, 13):
        assert agrees({**call, "budgets": [budget]})


def test_a_pool_of_many_partitions() -> None:
    call = seeded_call("select", 7, grids=((3, 4),), T=64, H=1, D=1, policy="pooled")
    call["attn_final"] = call["attn_final"].mul(8).round()  # a few dozen of each
    for budget in (1, 300):
        assert agrees({**call, "budgets": [budget]})


def test_a_picture_that_is_all_padding_keeps_its_full_image() -> None:
    call = seeded_call("select", 8, grids=((2, 2),), policy="pooled", crops=[3, 3, 0, 8])
    assert agrees({**call, "budgets": [20]})
    assert interpreted("select", **{**call, "budgets": [20]})[2].tolist() == [16, 0, 0, 0, 0]


@pytest.mark.parametrize("op", ["select", "select_qk"])
def test_pooled_reads_nothing_of_the_initial_layer(op: str) -> None:
    make = seeded_call if op == "select" else lambda op, seed, **rest: seeded_qk_call(seed, **rest)
    call = make(op, 9, grids=((2, 2), (1, 1)), policy="pooled")
    for rows in (len(call["features"]), 2):
        other = {
            name: torch.full_like(value[:rows], math.nan)
            for name, value in call.items()
            if name.endswith("init")
        }
        assert agrees({**call, **other}, op)


@triton.jit
def cut_of(pool, count, k, out, BLOCK: tl.constexpr):
    cut, ties, more = pooling.find_cut(pool, count, k, BLOCK)
    tl.store(out, cut.to(tl.int64))
    tl.store(out + 1, ties.to(tl.int64))
    tl.store(out + 2, more.to(tl.int64))


POOLS = {
    "any": lambda n: torch.randint(2, 2**32, (n,)),
    "close": lambda n: 0xBC000000 + torch.randint(300, (n,)),
    "few": lambda n: 2 + torch.randint(4, (n,)) * 0x20000000,
    "lowest-and-highest": lambda n: 1 + torch.randint(2, (n,)) * 0xFFFFFFFE,
    "same": lambda n: torch.full((n,), 7),
}


@pytest.mark.parametrize("name", POOLS)
def test_the_cut_of_a_pool(name: str) -> None:
    torch.manual_seed(1)
    for n in (1, 32, 100):
        keys = torch.zeros(n + n // 2, dtype=torch.int64)  # excluded, of which there are some
        keys[torch.randperm(len(keys))[:n]] = POOLS[name](n)
        for k in {1, n // 2, n - 1, n} - {0}:
            out = torch.full((3,), -1, dtype=torch.int64)
            pool = keys.to(torch.uint32).view(torch.int32)
            cut_of[(1,)](pool, len(keys), k, out, 32)
            cut, ties, more = out.tolist()
            larger, equal = int((keys > cut).sum()), int((keys == cut).sum())
            if more:
                assert 0 <= ties <= equal
                assert larger + ties == k
            else:
                assert larger + equal == k
