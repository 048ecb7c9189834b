# SPDX-License-Identifier: Apache-2.0
"""Calls that every implementation refuses, in these words.

Every check of `hired_kernels/arguments.py` has an entry for each operator that it guards;
`{device}` stands for the device of the features.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from call_tables import BIG, OPS, SELECTING, BadCall, judges, transposed, valid_call
from torch import Tensor

BAD_CALLS: list[BadCall] = []


def bad(
    name: str, changes: dict[str, Any], argument: str, expected: str, got: str, *,
    ops: tuple[str, ...] = SELECTING, **sizes: int,
) -> None:  # fmt: skip
    for op in ops:
        BAD_CALLS.append(BadCall(name, op, changes, argument, expected, got, sizes=sizes))


def bad_tensor(
    argument: str, name: str, change: Callable[[Tensor], Tensor], expected: str, got: str
) -> None:
    ops = [op for op in OPS if argument in valid_call(op)]
    bad(f"{argument}-{name}", {argument: change}, argument, expected, got, ops=tuple(ops))


# Tensors.

UNIT = "a unit stride in the last dimension"
SCORES = "float32, float16 or bfloat16"

bad_tensor("features", "rank-2", lambda x: x[0], "rank 3 (P, T, D)", "rank 2")
bad_tensor("features", "rank-4", lambda x: x[None], "rank 3 (P, T, D)", "rank 4")
bad_tensor("features", "rank-0", lambda x: x[0, 0, 0], "rank 3 (P, T, D)", "rank 0")
bad_tensor("features", "int64", lambda x: x.long(), "a floating dtype", "int64")
bad_tensor("features", "uint8", lambda x: x.byte(), "a floating dtype", "uint8")
bad_tensor("features", "bool", lambda x: x > 0, "a floating dtype", "bool")
bad_tensor("features", "complex64", lambda x: x.cfloat(), "a floating dtype", "complex64")
bad_tensor("features", "transposed", transposed, UNIT, "16")
bad_tensor("features", "every-other", lambda x: x[..., ::2], UNIT, "2")
bad_tensor("features", "expanded", lambda x: x[..., :1].expand(6, 16, 4), UNIT, "0")

QUERIES, KEYS = "rank 3 (P, H, Dh) or 4 (P, Q, H, Dh)", "rank 4 (P, N, H, Dh)"
RANKS = {
    "attn_final": "rank 3 (P, H, T)",
    "attn_init": "rank 3 (P, H, T)",
    "query_final": QUERIES,
    "key_final": KEYS,
    "query_init": QUERIES,
    "key_init": KEYS,
}


def bad_ranks(argument: str, rank: str) -> None:
    low, high = int(rank[5]) - 1, (5 if rank == QUERIES else int(rank[5]) + 1)
    bad_tensor(argument, "rank-low", lambda x: x[0], rank, f"rank {low}")
    bad_tensor(argument, "rank-high", lambda x: x[(None,) * (high - x.dim())], rank, f"rank {high}")


for argument, rank in RANKS.items():
    bad_ranks(argument, rank)
    bad_tensor(argument, "float64", lambda x: x.double(), SCORES, "float64")
    bad_tensor(argument, "int32", lambda x: x.int(), SCORES, "int32")
    bad_tensor(argument, "float8", lambda x: x.to(torch.float8_e5m2), SCORES, "float8_e5m2")
    device = "the device of features ({device})"
    bad_tensor(argument, "device", lambda x: x.to("meta"), device, "meta")
    if argument not in ("attn_final", "query_final"):
        first = "attn_final" if argument == "attn_init" else "query_final"
        same = f"the dtype of {first} (float32)"
        bad_tensor(argument, "float16", lambda x: x.half(), same, "float16")
        bad_tensor(argument, "bfloat16", lambda x: x.bfloat16(), same, "bfloat16")

for argument in ("query_init", "query_final"):
    bad_tensor(argument, "transposed", transposed, UNIT, "2")
    bad_tensor(argument, "several-transposed", lambda x: transposed(judges(5)(x)), UNIT, "2")
    bad_tensor(argument, "none", judges(0), "Q >= 1", "Q = 0")
    bad_tensor(argument, "rank-2-of-4", lambda x: judges(5)(x)[:, 0, 0], QUERIES, "rank 2")
for argument in ("key_init", "key_final"):
    bad_tensor(argument, "transposed", transposed, UNIT, "2")
    bad_tensor(argument, "expanded", lambda x: x[..., :1].expand(6, 18, 2, 4), UNIT, "0")

bad_tensor("attn_final", "rows", lambda x: x[:5], "shape (6, H, 16)", "(5, 2, 16)")
bad_tensor("attn_final", "B-rows", lambda x: x[:2], "shape (6, H, 16)", "(2, 2, 16)")
bad_tensor("attn_final", "T", lambda x: x[..., 1:], "shape (6, H, 16)", "(6, 2, 15)")
P_OR_B = "shape (6, 2, 16) or (2, 2, 16)"
bad_tensor("attn_init", "rows", lambda x: x[:3], P_OR_B, "(3, 2, 16)")
bad_tensor("attn_init", "no-rows", lambda x: x[:0], P_OR_B, "(0, 2, 16)")
bad_tensor("attn_init", "heads", lambda x: x[:, :1], P_OR_B, "(6, 1, 16)")
bad_tensor("attn_init", "T", lambda x: x[:2, :, 1:], P_OR_B, "(2, 2, 15)")

bad_tensor("query_final", "rows", lambda x: x[:2], "shape (6, H, Dh)", "(2, 2, 4)")
several = lambda x: judges(5)(x)[:2]  # noqa: E731
bad_tensor("query_final", "several-rows", several, "shape (6, Q, H, Dh)", "(2, 5, 2, 4)")
# (P, H, Q, Dh) is taken for (P, Q, H, Dh), until the keys tell.
behind = {"query_final": lambda x: judges(5)(x).transpose(1, 2)}
got = ("key_final", "shape (6, N, 5, 4)", "(6, 18, 2, 4)")
bad("query_final-behind-heads", behind, *got, ops=("select_qk",))
bad_tensor("key_final", "rows", lambda x: x[:2], "shape (6, N, 2, 4)", "(2, 18, 2, 4)")
bad_tensor("key_final", "heads", lambda x: x[:, :, :1], "shape (6, N, 2, 4)", "(6, 18, 1, 4)")
bad_tensor("key_final", "width", lambda x: x[..., :3], "shape (6, N, 2, 4)", "(6, 18, 2, 3)")
bad_tensor("key_final", "N", lambda x: x[:, :15], "N >= T = 16", "N = 15")
P_OR_B = "shape (6, 2, 4) or (2, 2, 4)"
bad_tensor("query_init", "rows", lambda x: x[:3], P_OR_B, "(3, 2, 4)")
bad_tensor("query_init", "heads", lambda x: x[:2, :1], P_OR_B, "(2, 1, 4)")
bad_tensor("query_init", "width", lambda x: x[..., :3], P_OR_B, "(6, 2, 3)")
P_OR_B = "shape (6, 5, 2, 4) or (2, 5, 2, 4)"
for name, part, got in (
    ("rows", lambda x: x[:3], "(3, 5, 2, 4)"),
    ("heads", lambda x: x[:2, :, :1], "(2, 5, 1, 4)"),
    ("width", lambda x: x[..., :3], "(6, 5, 2, 3)"),
):
    change = lambda x, part=part: part(judges(5)(x))  # noqa: E731
    bad_tensor("query_init", f"several-{name}", change, P_OR_B, got)
bad_tensor("key_init", "rows", lambda x: x[:2], "shape (6, 18, 2, 4)", "(2, 18, 2, 4)")
bad_tensor("key_init", "N", lambda x: x[:, 1:], "shape (6, 18, 2, 4)", "(6, 17, 2, 4)")
bad_tensor("key_init", "heads", lambda x: x[:, :, :1], "shape (6, 18, 2, 4)", "(6, 18, 1, 4)")
bad_tensor("key_init", "width", lambda x: x[..., :3], "shape (6, 18, 2, 4)", "(6, 18, 2, 3)")
got = ("key_init", "shape (2, 18, 2, 4)", "(6, 18, 2, 4)")
bad("key_init-P-rows", {"query_init": lambda x: x[:2]}, *got, ops=("select_qk",))
bad("key_init-P-rows-several", {"query_init": several}, *got, ops=("select_qk",))

bad("T-0", {}, "features", "T >= 1", "T = 0", T=0)
bad("H-0", {}, "attn_final", "H >= 1", "H = 0", ops=("select",), H=0)
bad("H-0", {}, "query_final", "H >= 1", "H = 0", ops=("select_qk",), H=0)
bad("Dh-0", {}, "query_final", "Dh >= 1", "Dh = 0", ops=("select_qk",), Dh=0)

# Numbers and names.

for value, text in ((math.inf, "inf"), (-math.inf, "-inf"), (math.nan, "nan")):
    got = ("scale", "a finite number", text)
    bad(f"scale-{text}", {"scale": value}, *got, ops=("select_qk",))
    bad(f"alpha-{text}", {"alpha": value}, "alpha", "a number in [0, 1]", text)
for value, text in (
    (-0.1, "-0.1"),
    (1.5, "1.5"),
    (-1e-300, "-1e-300"),
    (12345678.5, "12345678.5"),
):
    bad(f"alpha-{text}", {"alpha": value}, "alpha", "a number in [0, 1]", text)
POLICIES, ORDERS = "exact, published or pooled", "raster, partition or full_last"
for value in ("", "Exact", "exactly", "pool", "raster"):
    bad(f"policy-{value}", {"policy": value}, "policy", POLICIES, f"'{value}'")
for value in ("", "Raster", "full-last", "exact"):
    bad(f"order-{value}", {"order": value}, "order", ORDERS, f"'{value}'")

# Merged tokens. T = 16: four patches a side.

for value in (0, -1, 65, BIG, -BIG, 2**63 - 1):
    bad(f"merge-{value}", {"merge": value}, "merge", "an integer in [1, 64]", str(value))
    published = {"merge": value, "policy": "published"}
    bad(f"merge-{value}-published", published, "merge", "an integer in [1, 64]", str(value))
changes = {"merge": 2, "policy": "published", "grids": [1, 1, 0, 0]}
bad("merge-published", changes, "merge", "1 under the published policy", "2", P=3)
for value in (3, 5, 8, 64):
    divisor = "a divisor of the side of 4 patches"
    bad(f"merge-{value}", {"merge": value}, "merge", divisor, str(value))
for policy in ("exact", "pooled"):
    for T in (2, 8, 15, 17):
        changes = {"merge": 2, "policy": policy, "order": "partition", "grids": [0, 0, 0, 0]}
        got = ("features", "T square, for blocks of patches", f"T = {T}")
        bad(f"merge-{policy}-T-{T}", changes, *got, P=2, T=T)

# Grids, budgets and crops.


def bad_grids(name: str, grids: list[int], expected: str, got: str) -> None:
    bad(f"grids-{name}", {"grids": grids}, "grids", expected, got)


EACH = "R and C both 0 or both at least 1"
bad_grids("odd", [2, 2, 0], "two integers a picture", "3")
bad_grids("half-zero", [2, 0, 2, 2], EACH, "(2, 0) for picture 0")
bad_grids("half-zero-again", [2, 2, 0, 1], EACH, "(0, 1) for picture 1")
bad_grids("negative", [-2, -2, 0, 0], EACH, "(-2, -2) for picture 0")
bad_grids("negative-R", [-1, 0, 2, 2], EACH, "(-1, 0) for picture 0")
bad_grids("negative-C", [2, 2, 1, -1], EACH, "(1, -1) for picture 1")
bad_grids("negative-2^62", [-BIG, -BIG, 0, 0], EACH, f"({-BIG}, {-BIG}) for picture 0")
SUM = "1 + R * C to sum to P = 6"
bad_grids("sum-low", [2, 1, 0, 0], SUM, "4")
bad_grids("sum-high", [2, 3, 0, 0], SUM, "8")
bad_grids("sum-2^62", [2**31, 2**31, 0, 0], SUM, str(BIG + 2))
bad_grids("sum-2^63-less-1", [2**63 - 3, 1, 0, 0], SUM, str(2**63 - 1))
bad_grids("sum-2^63", [BIG - 1, 2, 0, 0], SUM, "2^63 or more")
bad_grids("sum-of-products", [BIG, 1, BIG, 1], SUM, "2^63 or more")
bad_grids("wraps-to-P", [BIG, 4, 2, 2], SUM, "2^63 or more")
bad_grids("2^62-squared", [BIG, BIG, 0, 0], SUM, "2^63 or more")
bad_grids("largest-squared", [2**63 - 1, 2**63 - 1, 0, 0], SUM, "2^63 or more")
bad("no-pictures", {"grids": [], "budgets": []}, "grids", SUM, "0")

for length in (0, 1, 3):
    expected = "one integer for each of 2 pictures"
    bad(f"budgets-{length}", {"budgets": [1] * length}, "budgets", expected, str(length))
for picture, value in ((0, -1), (1, -1), (0, -BIG), (1, -(2**63))):
    budgets = [value if picture == i else 1 for i in range(2)]
    got = f"{value} for picture {picture}"
    bad(f"budget-{got}", {"budgets": budgets}, "budgets", "integers of at least 0", got)

for length in (0, 4, 7, 9):
    expected = "four integers for each of 2 pictures"
    bad(f"crops-{length}", {"crops": [0] * length}, "crops", expected, str(length))
for name, crop in {
    "top": (-1, 8, 0, 8),
    "bottom": (0, 9, 0, 8),
    "left": (0, 8, -1, 8),
    "right": (0, 8, 0, 9),
    "upside-down": (5, 4, 0, 8),
    "inside-out": (0, 8, 5, 4),
    "2^62": (0, BIG, 0, BIG),
    "2^62-empty": (BIG, BIG, BIG, BIG),
    "2^62-negative": (-BIG, -BIG, 0, 8),
}.items():
    expected = "0 <= top <= bottom <= 8 and 0 <= left <= right <= 8"
    changes = {"crops": [*crop, 0, 0, 0, 0]}
    bad(f"crop-{name}", changes, "crops", expected, f"{crop} for picture 0")
    for policy, order in (("published", "partition"), ("pooled", "full_last")):
        other = {**changes, "policy": policy, "order": order}
        bad(f"crop-{name}-{policy}", other, "crops", expected, f"{crop} for picture 0")
second = {"crops": [0] * 4 + [0, 4, 0, 9], "grids": [0, 0, 1, 2], "budgets": [1, 1]}
expected = "0 <= top <= bottom <= 4 and 0 <= left <= right <= 8"
bad("crop-second", second, "crops", expected, "(0, 4, 0, 9) for picture 1", P=4)

expected = "0 <= top <= bottom <= 4 and 0 <= left <= right <= 4"
for policy in ("exact", "pooled"):
    for crop in ((0, 5, 0, 4), (0, 4, 0, 8)):  # in tokens of a grid of 4 x 4 of them
        changes = {"crops": [*crop, 0, 0, 0, 0], "merge": 2, "policy": policy}
        bad(f"crop-{crop}-merged-{policy}", changes, "crops", expected, f"{crop} for picture 0")

# What a picture with sub-images needs.

SQUARE = "T square, for the regions, raster order or crops of sub-images"
for T in (2, 8, 15, 17):
    for order in ("partition", "full_last"):
        bad(f"regions-{order}-T-{T}", {"order": order}, "features", SQUARE, f"T = {T}", T=T)
for policy in ("published", "pooled"):
    changes = {"policy": policy}
    bad(f"raster-{policy}-T-8", changes, "features", SQUARE, "T = 8", T=8)
    changes = {"policy": policy, "order": "partition", "crops": [0] * 8}
    bad(f"crops-{policy}-T-8", changes, "features", SQUARE, "T = 8", T=8)

RUNS = "R * C to divide T = {} under the published policy"
changes = {"policy": "published", "grids": [0, 0, 1, 3]}
bad("runs", changes, "grids", RUNS.format(16), "(1, 3) for picture 1", P=5)
bad("runs-T-1", {"policy": "published"}, "grids", RUNS.format(1), "(2, 2) for picture 0", T=1)

LEFT = "int(T * (1 - alpha)) >= 1 where tokens are left for sub-images under the published policy"
for alpha, budget in ((1.0, 17), (0.99, 10), (1.0, BIG), (0.95, BIG)):
    changes = {"policy": "published", "alpha": alpha, "budgets": [budget, 3]}
    bad(f"no-weights-{alpha}-{budget}", changes, "alpha", LEFT, f"{alpha:.9g}")

# cls_attention.

ONE = ("cls_attention",)
for argument, rank in (("query", QUERIES), ("key", KEYS)):
    bad_ranks(argument, rank)
    bad_tensor(argument, "float64", lambda x: x.double(), SCORES, "float64")
    bad_tensor(argument, "int32", lambda x: x.int(), SCORES, "int32")
    bad_tensor(argument, "transposed", transposed, UNIT, "2")
    bad_tensor(argument, "expanded", lambda x: x[..., :1].expand(*x.shape), UNIT, "0")
bad_tensor("query", "several-transposed", lambda x: transposed(judges(5)(x)), UNIT, "2")
bad_tensor("query", "none", judges(0), "Q >= 1", "Q = 0")
behind = {"query": lambda x: judges(5)(x).transpose(1, 2)}
bad("query-behind-heads", behind, "key", "shape (6, N, 5, 4)", "(6, 18, 2, 4)", ops=ONE)
bad_tensor("key", "device", lambda x: x.to("meta"), "the device of query ({device})", "meta")
bad_tensor("key", "float16", lambda x: x.half(), "the dtype of query (float32)", "float16")
bad_tensor("key", "rows", lambda x: x[:2], "shape (6, N, 2, 4)", "(2, 18, 2, 4)")
bad_tensor("key", "heads", lambda x: x[:, :, :1], "shape (6, N, 2, 4)", "(6, 18, 1, 4)")
bad_tensor("key", "width", lambda x: x[..., :3], "shape (6, N, 2, 4)", "(6, 18, 2, 3)")
bad("H-0", {}, "query", "H >= 1", "H = 0", ops=ONE, H=0)
bad("Dh-0", {}, "query", "Dh >= 1", "Dh = 0", ops=ONE, Dh=0)
for tokens in (0, -1, 19, BIG, -BIG):
    got = ("tokens", "1 <= T <= N = 18", f"T = {tokens}")
    bad(f"tokens-{tokens}", {"tokens": tokens}, *got, ops=ONE)
bad("tokens-of-no-rows", {"tokens": 19}, *got[:2], "T = 19", ops=ONE, P=0)
bad("no-keys", {"tokens": 1}, "tokens", "1 <= T <= N = 0", "T = 1", ops=ONE, P=0, N=0)
for value, text in ((math.inf, "inf"), (-math.inf, "-inf"), (math.nan, "nan")):
    bad(f"scale-{text}", {"scale": value}, "scale", "a finite number", text, ops=ONE)
