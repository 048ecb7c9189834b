# SPDX-License-Identifier: Apache-2.0
"""What the operators accept, written once for the reference, the fakes and Python backends.

Every rule raises `RuntimeError("hired::<op>: <argument>: expected ..., got ...")` before any work.
`csrc/plan.cpp` (integers) and `python/checks.cpp` (tensors) say the same, to the letter, for the
native backends; `tests/bad_calls.py` holds both to one table.

Integers may be SymInts: nothing here calls `int()` on them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from . import geometry

SCORE_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
POLICIES = ("exact", "published", "pooled")
ORDERS = ("raster", "partition", "full_last")
MAX_MERGE = 64  # patches a side of a token
QUERIES = ("(P, H, Dh)", "(P, Q, H, Dh)")  # shapes of queries, in letters
_TWO_TO_63 = 1 << 63


class Refusal:
    """Raises for one operator: `Refusal("select")("alpha", "a number in [0, 1]", 2.0)`."""

    def __init__(self, op: str) -> None:
        self.op = op

    def __call__(self, argument: str, expected: str, got: object) -> NoReturn:
        raise RuntimeError(self.message(argument, expected, got))

    def message(self, argument: str, expected: str, got: object) -> str:
        return f"hired::{self.op}: {argument}: expected {expected}, got {got}"

    def unless(self, condition: Any, argument: str, expected: str, got: object) -> None:
        """The same for a condition that may be symbolic, even unbacked (`torch._check`)."""
        torch._check(condition, lambda: self.message(argument, expected, got))


def one_of(words: Sequence[str]) -> str:
    """`("a", "b", "c")` as "a, b or c"."""
    return f"{', '.join(words[:-1])} or {words[-1]}"


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _shape(*sizes: Any) -> str:
    return f"({', '.join(str(size) for size in sizes)})"


def pairs(values: Sequence[Any]) -> list[tuple[Any, Any]]:
    """`[R0, C0, R1, C1, ...]` as `[(R0, C0), (R1, C1), ...]`."""
    return list(zip(values[0::2], values[1::2], strict=True))


def quads(values: Sequence[Any]) -> list[tuple[Any, Any, Any, Any]]:
    """`[top0, bottom0, left0, right0, top1, ...]` as one 4-tuple a picture."""
    return list(zip(*(values[i::4] for i in range(4)), strict=True))


def first_share(count: int, alpha: float) -> int:
    """`int(count * alpha)` of the double, clamped to [0, count] before it is narrowed."""
    product = float(count) * alpha
    return count if product >= count else int(product)


def check_select(
    features: Tensor,
    attn_init: Tensor,
    attn_final: Tensor,
    grids: Sequence[Any],
    budgets: Sequence[Any],
    alpha: float,
    crops: Sequence[Any] | None,
    policy: str,
    order: str,
    merge: int = 1,
) -> None:
    """Raise unless `hired::select` accepts these arguments."""
    refuse = Refusal("select")
    _check_features(refuse, features)
    first = ("features", features)
    P, T = features.shape[0], features.shape[1]
    _check_score_tensor(refuse, "attn_final", attn_final, "(P, H, T)", first)
    H = attn_final.shape[1]
    if attn_final.shape[0] != P or attn_final.shape[2] != T:
        refuse("attn_final", f"shape {_shape(P, 'H', T)}", _shape(*attn_final.shape))
    _check_score_tensor(refuse, "attn_init", attn_init, "(P, H, T)", first)
    if attn_init.dtype != attn_final.dtype:
        expected = f"the dtype of attn_final ({_dtype_name(attn_final.dtype)})"
        refuse("attn_init", expected, _dtype_name(attn_init.dtype))
    _check_sizes(refuse, P, (("features", "T", T), ("attn_final", "H", H)))
    B = _check_integers(refuse, P, T, grids, budgets, alpha, crops, policy, order, merge)
    if attn_init.shape[0] not in (P, B) or tuple(attn_init.shape[1:]) != (H, T):
        expected = f"shape {_shape(P, H, T)} or {_shape(B, H, T)}"
        refuse("attn_init", expected, _shape(*attn_init.shape))


def check_select_qk(
    features: Tensor,
    query_init: Tensor,
    key_init: Tensor,
    query_final: Tensor,
    key_final: Tensor,
    grids: Sequence[Any],
    budgets: Sequence[Any],
    alpha: float,
    scale: float | None,
    crops: Sequence[Any] | None,
    policy: str,
    order: str,
    merge: int = 1,
) -> None:
    """Raise unless `hired::select_qk` accepts these arguments."""
    refuse = Refusal("select_qk")
    _check_features(refuse, features)
    first = ("features", features)
    P, T = features.shape[0], features.shape[1]
    _check_score_tensor(refuse, "query_final", query_final, *QUERIES, first)
    H, Dh = query_final.shape[-2:]
    if query_final.shape[0] != P:
        letters = ("H", "Dh") if query_final.dim() == 3 else ("Q", "H", "Dh")
        refuse("query_final", f"shape {_shape(P, *letters)}", _shape(*query_final.shape))
    _check_score_tensor(refuse, "key_final", key_final, "(P, N, H, Dh)", first)
    N = key_final.shape[1]
    if key_final.shape[0] != P or tuple(key_final.shape[2:]) != (H, Dh):
        refuse("key_final", f"shape {_shape(P, 'N', H, Dh)}", _shape(*key_final.shape))
    if N < T:
        refuse("key_final", f"N >= T = {T}", f"N = {N}")
    _check_score_tensor(refuse, "query_init", query_init, *QUERIES, first)
    _check_score_tensor(refuse, "key_init", key_init, "(P, N, H, Dh)", first)
    for name, tensor in (
        ("key_final", key_final),
        ("query_init", query_init),
        ("key_init", key_init),
    ):
        if tensor.dtype != query_final.dtype:
            expected = f"the dtype of query_final ({_dtype_name(query_final.dtype)})"
            refuse(name, expected, _dtype_name(tensor.dtype))
    for name, tensor in (
        ("query_final", query_final),
        ("key_final", key_final),
        ("query_init", query_init),
        ("key_init", key_init),
    ):
        _check_unit_stride(refuse, name, tensor)
    sizes = [("features", "T", T), ("query_final", "H", H), ("query_final", "Dh", Dh)]
    _check_sizes(refuse, P, sizes + _queries("query_final", query_final))
    _check_scale(refuse, scale)
    B = _check_integers(refuse, P, T, grids, budgets, alpha, crops, policy, order, merge)
    of_row = (H, Dh) if query_init.dim() == 3 else (query_init.shape[1], H, Dh)
    if query_init.shape[0] not in (P, B) or tuple(query_init.shape[1:]) != of_row:
        expected = f"shape {_shape(P, *of_row)} or {_shape(B, *of_row)}"
        refuse("query_init", expected, _shape(*query_init.shape))
    _check_sizes(refuse, P, _queries("query_init", query_init))
    rows = query_init.shape[0]
    if key_init.shape[0] != rows or tuple(key_init.shape[1:]) != (N, H, Dh):
        refuse("key_init", f"shape {_shape(rows, N, H, Dh)}", _shape(*key_init.shape))


def check_cls_attention(query: Tensor, key: Tensor, tokens: Any, scale: float | None) -> None:
    """Raise unless `hired::cls_attention` accepts these arguments."""
    refuse = Refusal("cls_attention")
    first = ("query", query)
    _check_score_tensor(refuse, "query", query, *QUERIES, first)
    P, H, Dh = query.shape[0], *query.shape[-2:]
    _check_score_tensor(refuse, "key", key, "(P, N, H, Dh)", first)
    N = key.shape[1]
    if key.shape[0] != P or tuple(key.shape[2:]) != (H, Dh):
        refuse("key", f"shape {_shape(P, 'N', H, Dh)}", _shape(*key.shape))
    if key.dtype != query.dtype:
        expected = f"the dtype of query ({_dtype_name(query.dtype)})"
        refuse("key", expected, _dtype_name(key.dtype))
    _check_unit_stride(refuse, "query", query)
    _check_unit_stride(refuse, "key", key)
    sizes = [("query", "H", H), ("query", "Dh", Dh)]
    _check_sizes(refuse, P, sizes + _queries("query", query))
    for inside in (tokens >= 1, tokens <= N):
        refuse.unless(inside, "tokens", f"1 <= T <= N = {N}", f"T = {tokens}")
    _check_scale(refuse, scale)


def _queries(name: str, query: Tensor) -> list[tuple[str, str, Any]]:
    """What _check_sizes checks of the queries of (P, Q, H, Dh)."""
    return [(name, "Q", query.shape[1])] if query.dim() == 4 else []


def output_rows(
    grids: Sequence[Any],
    budgets: Sequence[Any],
    tokens: Any,
    crops: Sequence[Any] | None,
    policy: str,
) -> list[Any]:
    """Rows of the output that each picture owns; their sum is K. Flat lists, as the operators;
    `tokens` are those of a partition, blocks of patches where they are merged."""
    boxes: Sequence[Any] = quads(crops) if crops is not None else [None] * len(budgets)
    return [
        geometry.kept_tokens(budget, grid, tokens, crop, policy)
        for budget, grid, crop in zip(budgets, pairs(grids), boxes, strict=True)
    ]


def _check_features(refuse: Refusal, features: Tensor) -> None:
    if features.dim() != 3:
        refuse("features", "rank 3 (P, T, D)", f"rank {features.dim()}")
    if not features.dtype.is_floating_point:
        refuse("features", "a floating dtype", _dtype_name(features.dtype))
    _check_unit_stride(refuse, "features", features)


def _check_score_tensor(
    refuse: Refusal, name: str, tensor: Tensor, *shapes_and_first: Any
) -> None:
    """Shapes that it may have, in letters, and the operator's first argument, which says the
    device."""
    *shapes, first = shapes_and_first
    ranks = [shape.count(",") + 1 for shape in shapes]
    if tensor.dim() not in ranks:
        expected = " or ".join(f"{rank} {shape}" for rank, shape in zip(ranks, shapes, strict=True))
        refuse(name, f"rank {expected}", f"rank {tensor.dim()}")
    if tensor.dtype not in SCORE_DTYPES:
        refuse(name, "float32, float16 or bfloat16", _dtype_name(tensor.dtype))
    if tensor.device != first[1].device:
        refuse(name, f"the device of {first[0]} ({first[1].device})", tensor.device)


def _check_unit_stride(refuse: Refusal, name: str, tensor: Tensor) -> None:
    if tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
        refuse(name, "a unit stride in the last dimension", tensor.stride(-1))


def _check_sizes(refuse: Refusal, P: Any, sizes: Sequence[tuple[str, str, Any]]) -> None:
    if P == 0:
        return
    for argument, letter, size in sizes:
        if size < 1:
            refuse(argument, f"{letter} >= 1", f"{letter} = {size}")


def _check_scale(refuse: Refusal, scale: float | None) -> None:
    if scale is not None and not math.isfinite(scale):
        refuse("scale", "a finite number", f"{scale:.9g}")


def _check_integers(
    refuse: Refusal,
    P: Any,
    T: Any,
    grids: Sequence[Any],
    budgets: Sequence[Any],
    alpha: float,
    crops: Sequence[Any] | None,
    policy: str,
    order: str,
    merge: int,
) -> int:
    """The arguments that are not tensors; returns B."""
    if policy not in POLICIES:
        refuse("policy", one_of(POLICIES), f"'{policy}'")
    if order not in ORDERS:
        refuse("order", one_of(ORDERS), f"'{order}'")
    if not 0.0 <= alpha <= 1.0:
        refuse("alpha", "a number in [0, 1]", f"{alpha:.9g}")
    _check_merge(refuse, T, policy, merge)
    if len(grids) % 2:
        refuse("grids", "two integers a picture", len(grids))
    B = len(grids) // 2
    if len(budgets) != B:
        refuse("budgets", f"one integer for each of {B} pictures", len(budgets))
    if crops is not None and len(crops) != 4 * B:
        refuse("crops", f"four integers for each of {B} pictures", len(crops))
    _check_grids(refuse, P, pairs(grids))
    for i, budget in enumerate(budgets):
        refuse.unless(budget >= 0, "budgets", "integers of at least 0", f"{budget} for picture {i}")
    for i, (R, C) in enumerate(pairs(grids)):
        if R > 0:
            _check_sub_images(refuse, i, R, C, T, budgets[i], alpha, crops, policy, order, merge)
    return B


def _check_merge(refuse: Refusal, T: Any, policy: str, merge: int) -> None:
    """A symbolic T is left to the kernel to check."""
    if not 1 <= merge <= MAX_MERGE:
        refuse("merge", f"an integer in [1, {MAX_MERGE}]", merge)
    if merge == 1:
        return
    if policy == "published":
        refuse("merge", "1 under the published policy", merge)
    if isinstance(T, int):
        side = math.isqrt(T)
        if side * side != T:
            refuse("features", "T square, for blocks of patches", f"T = {T}")
        if side % merge != 0:
            refuse("merge", f"a divisor of the side of {side} patches", merge)


def _check_grids(refuse: Refusal, P: Any, grids: Sequence[tuple[Any, Any]]) -> None:
    total: Any = 0
    for i, (R, C) in enumerate(grids):
        if R < 0 or C < 0 or (R == 0 and C > 0) or (R > 0 and C == 0):
            got = f"({R}, {C}) for picture {i}"
            refuse("grids", "R and C both 0 or both at least 1", got)
        total = total + 1 + R * C
    got = "2^63 or more" if isinstance(total, int) and total >= _TWO_TO_63 else total
    refuse.unless(total == P, "grids", f"1 + R * C to sum to P = {P}", got)


def _check_sub_images(
    refuse: Refusal,
    picture: int,
    R: Any,
    C: Any,
    T: Any,
    budget: Any,
    alpha: float,
    crops: Sequence[Any] | None,
    policy: str,
    order: str,
    merge: int,
) -> None:
    """What a picture with sub-images needs. A symbolic T is left to the kernel to check."""
    if not isinstance(T, int):
        return
    if policy == "exact" or order == "raster" or crops is not None:
        side = math.isqrt(T)
        if side * side != T:
            expected = "T square, for the regions, raster order or crops of sub-images"
            refuse("features", expected, f"T = {T}")
        if crops is not None:
            top, bottom, left, right = quads(crops)[picture]
            rows, cols = R * (side // merge), C * (side // merge)
            if not (0 <= top <= bottom <= rows and 0 <= left <= right <= cols):
                expected = f"0 <= top <= bottom <= {rows} and 0 <= left <= right <= {cols}"
                got = f"({top}, {bottom}, {left}, {right}) for picture {picture}"
                refuse("crops", expected, got)
    if policy == "published":
        if T % (R * C) != 0:
            got = f"({R}, {C}) for picture {picture}"
            refuse("grids", f"R * C to divide T = {T} under the published policy", got)
        if first_share(T, 1.0 - alpha) == 0 and budget > min(first_share(budget, alpha), T):
            expected = "int(T * (1 - alpha)) >= 1 where tokens are left for sub-images"
            refuse("alpha", f"{expected} under the published policy", f"{alpha:.9g}")
