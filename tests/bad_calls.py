# SPDX-License-Identifier: Apache-2.0
"""Calls that every implementation refuses, in these words, and extreme ones that it serves.

An entry is a valid call with some arguments changed: to a value, or by a function of the valid
one. `sizes` change the shapes of the valid call. Every check of `hired_kernels/arguments.py` has
an entry for each operator that it guards; `{device}` stands for the device of the features.
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
    return {**tensors, **integers, **scale, "policy": "exact", "order": "raster"}


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


BAD_CALLS: list[BadCall] = []
GOOD_CALLS: list[GoodCall] = []


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


def good(
    name: str, changes: dict[str, Any], rows: int, *, ops: tuple[str, ...] = SELECTING, **sizes: int
) -> None:
    for op in ops:
        GOOD_CALLS.append(GoodCall(name, op, changes, rows, sizes=sizes))


# Tensors.


def transposed(x: Tensor) -> Tensor:
    """The same values with the strides of the last two dimensions exchanged."""
    return x.mT.contiguous().mT


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

RANKS = {
    "attn_final": "rank 3 (P, H, T)",
    "attn_init": "rank 3 (P, H, T)",
    "query_final": "rank 3 (P, H, Dh)",
    "key_final": "rank 4 (P, N, H, Dh)",
    "query_init": "rank 3 (P, H, Dh)",
    "key_init": "rank 4 (P, N, H, Dh)",
}
for argument, rank in RANKS.items():
    low, high = int(rank[5]) - 1, int(rank[5]) + 1
    bad_tensor(argument, "rank-low", lambda x: x[0], rank, f"rank {low}")
    bad_tensor(argument, "rank-high", lambda x: x[None], rank, f"rank {high}")
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
bad_tensor("key_final", "rows", lambda x: x[:2], "shape (6, N, 2, 4)", "(2, 18, 2, 4)")
bad_tensor("key_final", "heads", lambda x: x[:, :, :1], "shape (6, N, 2, 4)", "(6, 18, 1, 4)")
bad_tensor("key_final", "width", lambda x: x[..., :3], "shape (6, N, 2, 4)", "(6, 18, 2, 3)")
bad_tensor("key_final", "N", lambda x: x[:, :15], "N >= T = 16", "N = 15")
P_OR_B = "shape (6, 2, 4) or (2, 2, 4)"
bad_tensor("query_init", "rows", lambda x: x[:3], P_OR_B, "(3, 2, 4)")
bad_tensor("query_init", "heads", lambda x: x[:2, :1], P_OR_B, "(2, 1, 4)")
bad_tensor("query_init", "width", lambda x: x[..., :3], P_OR_B, "(6, 2, 3)")
bad_tensor("key_init", "rows", lambda x: x[:2], "shape (6, 18, 2, 4)", "(2, 18, 2, 4)")
bad_tensor("key_init", "N", lambda x: x[:, 1:], "shape (6, 18, 2, 4)", "(6, 17, 2, 4)")
bad_tensor("key_init", "heads", lambda x: x[:, :, :1], "shape (6, 18, 2, 4)", "(6, 18, 1, 4)")
bad_tensor("key_init", "width", lambda x: x[..., :3], "shape (6, 18, 2, 4)", "(6, 18, 2, 3)")
got = ("key_init", "shape (2, 18, 2, 4)", "(6, 18, 2, 4)")
bad("key_init-P-rows", {"query_init": lambda x: x[:2]}, *got, ops=("select_qk",))

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
for value in ("", "Exact", "exactly", "raster"):
    bad(f"policy-{value}", {"policy": value}, "policy", "exact or published", f"'{value}'")
for value in ("", "Raster", "exact"):
    bad(f"order-{value}", {"order": value}, "order", "raster or partition", f"'{value}'")

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
    published = {**changes, "policy": "published", "order": "partition"}
    bad(f"crop-{name}-published", published, "crops", expected, f"{crop} for picture 0")
second = {"crops": [0] * 4 + [0, 4, 0, 9], "grids": [0, 0, 1, 2], "budgets": [1, 1]}
expected = "0 <= top <= bottom <= 4 and 0 <= left <= right <= 8"
bad("crop-second", second, "crops", expected, "(0, 4, 0, 9) for picture 1", P=4)

# What a picture with sub-images needs.

SQUARE = "T square, for the regions, raster order or crops of sub-images"
for T in (2, 8, 15, 17):
    bad(f"regions-T-{T}", {"order": "partition"}, "features", SQUARE, f"T = {T}", T=T)
changes = {"policy": "published"}
bad("raster-T-8", changes, "features", SQUARE, "T = 8", T=8)
changes = {"policy": "published", "order": "partition", "crops": [0] * 8}
bad("crops-T-8", changes, "features", SQUARE, "T = 8", T=8)

RUNS = "R * C to divide T = {} under the published policy"
changes = {"policy": "published", "grids": [0, 0, 1, 3]}
bad("runs", changes, "grids", RUNS.format(16), "(1, 3) for picture 1", P=5)
bad("runs-T-1", {"policy": "published"}, "grids", RUNS.format(1), "(2, 2) for picture 0", T=1)

LEFT = "int(T * (1 - alpha)) >= 1 where tokens are left for sub-images under the published policy"
for alpha, budget in ((1.0, 17), (0.99, 10), (1.0, BIG), (0.95, BIG)):
    changes = {"policy": "published", "alpha": alpha, "budgets": [budget, 3]}
    bad(f"no-weights-{alpha}-{budget}", changes, "alpha", LEFT, f"{alpha:.9g}")

# Extreme calls that work.

for policy in ("exact", "published"):
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
    good(f"{policy}-partition", {**common, "order": "partition"}, 13)
    nothing = {**common, "grids": [], "budgets": []}
    good(f"{policy}-empty-batch", nothing, 0, P=0)
    good(f"{policy}-empty-batch-with-crops", {**nothing, "crops": []}, 0, P=0)
    good(f"{policy}-empty-batch-without-sizes", nothing, 0, P=0, T=0, H=0, D=0, N=0, Dh=0)
    single = {**common, "grids": [0, 0, 0, 0], "budgets": [5, 99]}
    good(f"{policy}-no-sub-images-T-7", single, 12, P=2, T=7)
    good(f"{policy}-no-sub-images-alpha-1", {**single, "alpha": 1.0}, 12, P=2, T=7)

good("exact-empty-crop-2^62", {"crops": [8, 8, 8, 8] + [0] * 4, "budgets": [BIG, BIG]}, 32)
good("exact-one-patch-crop", {"crops": [3, 4, 4, 5] + [0] * 4, "budgets": [BIG, BIG]}, 33)
good("exact-T-1", {}, 6, T=1)
good("exact-T-1-in-part", {"budgets": [3, 0]}, 3, T=1)
good("exact-T-1-crop", {"crops": [0, 1, 0, 2] + [0] * 4}, 4, T=1)
good("exact-alpha-1", {"alpha": 1.0, "budgets": [20, 3]}, 23)
good("exact-six-by-one", {"grids": [5, 1], "budgets": [50]}, 50)
changes = {"policy": "published", "grids": [1, 1] * 3, "budgets": [2, 1, 0], "alpha": 0.0}
good("published-T-1", changes, 3, T=1)
good("published-T-8", {"policy": "published", "order": "partition"}, 13, T=8)
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
changes = {name: lambda x: x[..., ::4] for name in RANKS if name not in ("attn_init", "attn_final")}
good("Dh-1", changes, 13, ops=("select_qk",))
good("scale-0", {"scale": 0.0}, 13, ops=("select_qk",))
good("scale-negative", {"scale": -1.0}, 13, ops=("select_qk",))

# cls_attention.

QUERY, KEY, ONE = "rank 3 (P, H, Dh)", "rank 4 (P, N, H, Dh)", ("cls_attention",)
for argument, rank in (("query", QUERY), ("key", KEY)):
    low, high = int(rank[5]) - 1, int(rank[5]) + 1
    bad_tensor(argument, "rank-low", lambda x: x[0], rank, f"rank {low}")
    bad_tensor(argument, "rank-high", lambda x: x[None], rank, f"rank {high}")
    bad_tensor(argument, "float64", lambda x: x.double(), SCORES, "float64")
    bad_tensor(argument, "int32", lambda x: x.int(), SCORES, "int32")
    bad_tensor(argument, "transposed", transposed, UNIT, "2")
    bad_tensor(argument, "expanded", lambda x: x[..., :1].expand(*x.shape), UNIT, "0")
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
    "nan-query": {"query": lambda x: torch.full_like(x, math.nan)},
    "zero-keys": {"key": lambda x: torch.zeros_like(x)},
}.items():
    good(name, changes, 6, ops=ONE)
good("no-rows", {}, 0, ops=ONE, P=0)
good("no-rows-of-no-heads", {}, 0, ops=ONE, P=0, H=0, Dh=0)
good("one-of-each", {}, 1, ops=ONE, P=1, T=1, H=1, N=1, Dh=1)
