# SPDX-License-Identifier: Apache-2.0
"""Extreme calls that every implementation serves."""

from __future__ import annotations

import math
from typing import Any

import torch
from call_tables import BIG, SELECTING, GoodCall, judges, transposed

from hired_kernels import arguments

GOOD_CALLS: list[GoodCall] = []
ONE = ("cls_attention",)


def good(
    name: str, changes: dict[str, Any], rows: int, *, ops: tuple[str, ...] = SELECTING, **sizes: int
) -> None:
    for op in ops:
        GOOD_CALLS.append(GoodCall(name, op, changes, rows, sizes=sizes))


# Extreme calls that work.

for policy in arguments.POLICIES:
    common = {"policy": policy}
    good(f"{policy}", common, 13)
    good(f"{policy}-budgets-2^62", {**common, "budgets": [BIG, BIG]}, 96)
    good(f"{policy}-budgets-2^63-less-1", {**common, "budgets": [2**63 - 1, 2**63 - 1]}, 96)
    good(f"{policy}-no-budgets", {**common, "budgets": [0, 0]}, 0)
    good(f"{policy}-empty-crop", {**common, "crops": [0] * 8}, 13)
    good(f"{policy}-crop-ignored", {**common, "crops": [0, 8, 0, 8, -BIG, BIG, 9, -9]}, 13)
    good(f"{policy}-one-head", common, 13, H=1)
    good(f"{policy}-D-0", common, 13, D=0)
    good(f"{policy}-D-1", {**common, "features": lambda x: x[..., ::4]}, 13)
    good(f"{policy}-alpha-0", {**common, "alpha": 0.0}, 13)
    for order in arguments.ORDERS:
        good(f"{policy}-{order}", {**common, "order": order}, 13)
    nothing = {**common, "grids": [], "budgets": []}
    good(f"{policy}-empty-batch", nothing, 0, P=0)
    good(f"{policy}-empty-batch-with-crops", {**nothing, "crops": []}, 0, P=0)
    good(f"{policy}-empty-batch-without-sizes", nothing, 0, P=0, T=0, H=0, D=0, N=0, Dh=0)
    single = {**common, "grids": [0, 0, 0, 0], "budgets": [5, 99]}
    good(f"{policy}-no-sub-images-T-7", single, 12, P=2, T=7)
    good(f"{policy}-no-sub-images-alpha-1", {**single, "alpha": 1.0}, 12, P=2, T=7)

for policy in ("exact", "pooled"):
    common, most = {"policy": policy}, {"policy": policy, "budgets": [BIG, BIG]}
    good(f"{policy}-empty-crop-2^62", {**most, "crops": [8, 8, 8, 8] + [0] * 4}, 32)
    good(f"{policy}-one-patch-crop", {**most, "crops": [3, 4, 4, 5] + [0] * 4}, 33)
    good(f"{policy}-T-1", common, 6, T=1)
    good(f"{policy}-T-1-in-part", {**common, "budgets": [3, 0]}, 3, T=1)
    good(f"{policy}-T-1-crop", {**common, "crops": [0, 1, 0, 2] + [0] * 4}, 4, T=1)
    good(f"{policy}-alpha-1", {**common, "alpha": 1.0, "budgets": [20, 3]}, 23)
    good(f"{policy}-six-by-one", {**common, "grids": [5, 1], "budgets": [50]}, 50)

    # Blocks of patches, of which 16 make 4 tokens or 1.
    two, all_in_one = {**common, "merge": 2}, {**common, "merge": 4}
    good(f"{policy}-merge-2", two, 13)
    good(f"{policy}-merge-2-all", {**most, "merge": 2}, 24)
    good(f"{policy}-merge-2-none", {**two, "budgets": [0, 0]}, 0)
    good(f"{policy}-merge-2-full_last", {**two, "order": "full_last"}, 13)
    good(f"{policy}-merge-2-crop", {**most, "merge": 2, "crops": [1, 3, 0, 4, 0, 9, -9, 1]}, 16)
    good(f"{policy}-merge-2-empty-crop", {**most, "merge": 2, "crops": [4] * 8}, 8)
    good(f"{policy}-merge-2-D-0", two, 13, D=0)
    good(f"{policy}-merge-2-D-1", {**two, "features": lambda x: x[..., ::4]}, 13)
    view = {**two, "features": lambda x: x.repeat(1, 2, 3)[:, 1:17, 5:]}
    good(f"{policy}-merge-2-view", view, 13)
    good(f"{policy}-merge-side", all_in_one, 6)
    good(f"{policy}-merge-side-crop", {**all_in_one, "crops": [0, 1, 0, 2] + [0] * 4}, 4)
    nothing = {**two, "grids": [], "budgets": []}
    good(f"{policy}-merge-2-empty-batch", nothing, 0, P=0)
    good(f"{policy}-merge-2-empty-batch-without-sizes", nothing, 0, P=0, T=0, H=0, D=0, N=0, Dh=0)
    largest = {**common, "merge": 64, "grids": [0, 0], "budgets": [BIG]}
    good(f"{policy}-merge-64", largest, 1, P=1, T=4096, H=1, D=1, N=4096)

for order in ("partition", "full_last"):
    whole = {"policy": "pooled", "order": order}
    good(f"pooled-{order}-T-8", whole, 13, T=8)
    good(f"pooled-{order}-T-7-all", {**whole, "budgets": [BIG, BIG]}, 42, T=7)
changes = {"policy": "published", "grids": [1, 1] * 3, "budgets": [2, 1, 0], "alpha": 0.0}
good("published-T-1", changes, 3, T=1)
good("published-T-8", {"policy": "published", "order": "partition"}, 13, T=8)
good("published-T-8-full_last", {"policy": "published", "order": "full_last"}, 13, T=8)
good("published-alpha-1", {"policy": "published", "alpha": 1.0, "budgets": [16, 3]}, 19)
good("float64-features", {"features": lambda x: x.double()}, 13)
good("float16-features", {"features": lambda x: x.half()}, 13)
good("float8-features", {"features": lambda x: x.to(torch.float8_e4m3fn)}, 13)
good("features-view", {"features": lambda x: x.repeat(1, 2, 3)[:, 1:17, 5:]}, 13)

for init in ("attn_init", "query_init"):
    names = [init] if init == "attn_init" else [init, "key_init"]
    ops = ("select",) if init == "attn_init" else ("select_qk",)
    # Of P rows the first of each picture, here 0 and 5, are read.
    good("B-rows", {name: lambda x: x[[0, 5]] for name in names}, 13, ops=ops)
    unread = {name: lambda x: x.index_fill(0, torch.arange(1, 6), math.nan) for name in names}
    good("unread-rows", unread, 13, ops=ops)
    unread = {name: lambda x: torch.full_like(x, math.nan) for name in names}
    good("pooled-unread", {**unread, "policy": "pooled"}, 13, ops=ops)
for dtype in (torch.float16, torch.bfloat16):
    names = ("attn_init", "attn_final")
    changes = {name: lambda x, dtype=dtype: x.to(dtype) for name in names}
    good(f"{dtype}-scores", changes, 13, ops=("select",))
for name, change in {
    "nan-scores": lambda x: torch.full_like(x, math.nan),
    "infinite-scores": lambda x: torch.full_like(x, -math.inf),
    "equal-scores": lambda x: torch.zeros_like(x),
    "transposed-scores": transposed,
    "expanded-scores": lambda x: x[:1, :1, :1].expand(6, 2, 16),
}.items():
    good(name, {"attn_init": change, "attn_final": change}, 13, ops=("select",))
good("N-is-T", {}, 13, ops=("select_qk",), N=16)
names = ("query_init", "key_init", "query_final", "key_final")
good("Dh-1", {name: lambda x: x[..., ::4] for name in names}, 13, ops=("select_qk",))
good("scale-0", {"scale": 0.0}, 13, ops=("select_qk",))
good("scale-negative", {"scale": -1.0}, 13, ops=("select_qk",))


# Numbers of queries, of the initial layer and of the final one.
def good_queries(init: int, final: int, **changes: Any) -> None:
    changed = {"query_init": judges(init), "query_final": judges(final)}
    words = "-".join(str(value) for value in changes.values())
    name = f"queries-{init}-{final}{words and '-'}{words}"
    good(name, {**changed, **changes}, 13, ops=("select_qk",))


good_queries(1, 1)
good("query-of-rank-4", {"query_init": judges(1)}, 13, ops=("select_qk",))
changes = {"query_init": lambda x: judges(1)(x)[[0, 5]], "key_init": lambda x: x[[0, 5]]}
good("queries-B-rows", changes, 13, ops=("select_qk",))
changes = {"grids": [], "budgets": [], "query_init": judges(0), "query_final": judges(0)}
good("no-queries-of-no-rows", changes, 0, ops=("select_qk",), P=0)
good("no-queries-of-no-rows", {"query": judges(0)}, 0, ops=ONE, P=0)
for init, final in ((2, 1), (1, 3), (5, 33)):
    good_queries(init, final)
good_queries(3, 2, policy="pooled", merge=2)
good_queries(2, 5, order="full_last", merge=2)
for Q in (2, 3, 33):
    good(f"queries-{Q}", {"query": judges(Q)}, 6, ops=ONE)
same_query = {"query": lambda x: x[:, None].expand(-1, 9, -1, -1)}
good("the-same-query-again", same_query, 6, ops=ONE)

# cls_attention.

for name, changes in {
    "plain": {},
    "tokens-1": {"tokens": 1},
    "tokens-N": {"tokens": 18},
    "scale-0": {"scale": 0.0},
    "scale-negative": {"scale": -1.0},
    "float16": {name: lambda x: x.half() for name in ("query", "key")},
    "bfloat16": {name: lambda x: x.bfloat16() for name in ("query", "key")},
    "Dh-1": {name: lambda x: x[..., ::4] for name in ("query", "key")},
    "expanded-rows": {name: lambda x: x[:1].expand(*x.shape) for name in ("query", "key")},
    "query-of-rank-4": {"query": judges(1)},
    "nan-query": {"query": lambda x: torch.full_like(x, math.nan)},
    "zero-keys": {"key": lambda x: torch.zeros_like(x)},
}.items():
    good(name, changes, 6, ops=ONE)
good("no-rows", {}, 0, ops=ONE, P=0)
good("no-rows-of-no-heads", {}, 0, ops=ONE, P=0, H=0, Dh=0)
good("one-of-each", {}, 1, ops=ONE, P=1, T=1, H=1, N=1, Dh=1)
