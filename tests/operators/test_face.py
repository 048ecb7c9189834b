# SPDX-License-Identifier: Apache-2.0
"""The Python face: what it takes for budgets, grids, crops and numbers, and refuses by name.

The operators themselves are the business of test_operators.py and test_bad_calls.py.
"""

from __future__ import annotations

import functools
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from test_operators import CALLS, OPS, queries_keys, select_arguments
from torch import Tensor

import hired_kernels as hired
from hired_kernels import geometry


@pytest.mark.parametrize("kind", [list, tuple, np.array], ids=["list", "tuple", "array"])
@pytest.mark.parametrize(
    ("budget", "counts"),
    [
        pytest.param(5, [5, 5], id="count"),
        pytest.param(0.25, [20, 12], id="share"),
        pytest.param(1.0, [80, 48], id="all"),
        pytest.param(1, [1, 1], id="one-token"),
        pytest.param([7, 0.5], [7, 24], id="one-each"),
    ],
)
def test_face_budgets(budget: Any, counts: list[int], kind: Any) -> None:
    values, init, final, *_ = select_arguments()
    if isinstance(budget, list):
        budget = kind(budget) if kind is not np.array else np.array(budget, dtype=object)
    kept = hired.select(values, init, final, grids=kind([(2, 2), (1, 2)]), budget=budget)
    assert [kept.counts[:5].sum(), kept.counts[5:].sum()] == counts
    assert torch.equal(kept.tokens, values.reshape(-1, 8)[kept.indices])


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"budget": True}, id="bool"),
        pytest.param({"budget": 0.0}, id="share-0"),
        pytest.param({"budget": 1.5}, id="share-above-1"),
        pytest.param({"budget": -1}, id="negative"),
        pytest.param({"budget": [1, 2, 3]}, id="too-many-budgets"),
        pytest.param({"grids": [(2, 2, 1), (1, 2)]}, id="triple"),
        pytest.param({"grids": [4, 2]}, id="no-pairs"),
        pytest.param({"grids": [(2, 2)]}, id="too-few-grids"),
        pytest.param({"grids": [(2.0, 2), (1, 2)]}, id="float-grid"),
        pytest.param({"crops": [(0, 8, 0, 8)]}, id="too-few-crops"),
        pytest.param({"crops": [(0, 9, 0, 8), (0, 4, 0, 8)]}, id="crop-outside"),
        pytest.param({"crops": [(0, 8), (0, 4)]}, id="crop-pairs"),
        pytest.param({"alpha": 1.5}, id="alpha"),
        pytest.param({"policy": "best"}, id="policy"),
        pytest.param({"order": "random"}, id="order"),
        pytest.param({"merge": 0}, id="merge-0"),
        pytest.param({"merge": 3}, id="merge-no-divisor"),
        pytest.param({"merge": 65}, id="merge-above-64"),
        pytest.param({"merge": 2**40}, id="merge-2^40"),
        pytest.param({"merge": 2, "policy": "published"}, id="merge-published"),
        pytest.param({"merge": 2, "crops": [(0, 8, 0, 8), (0, 2, 0, 4)]}, id="crop-in-patches"),
    ],
)
@pytest.mark.parametrize("op", ["select", "select_qk"])
def test_face_raises_value_error(op: str, changes: dict[str, Any]) -> None:
    tensors = [a for a in CALLS[op]() if isinstance(a, Tensor)]
    good: dict[str, Any] = {"grids": [(2, 2), (1, 2)], "budget": 9}
    assert len(getattr(hired, op)(*tensors, **good).indices) == 18
    with pytest.raises(ValueError, match=r"hired.*: expected .*, got "):
        getattr(hired, op)(*tensors, **{**good, **changes})


@pytest.mark.parametrize("merge", [1, 2, 4])
@pytest.mark.parametrize("policy", ["exact", "pooled"])
def test_shares_are_of_tokens(policy: str, merge: int) -> None:
    values, init, final, *_ = select_arguments()
    M, grids = 16 // merge**2, [(2, 2), (1, 2)]
    options = {"grids": grids, "policy": policy, "merge": merge, "order": "full_last"}
    kept = hired.select(values, init, final, budget=0.5, **options)
    assert [kept.counts[:5].sum(), kept.counts[5:].sum()] == [5 * M // 2, 3 * M // 2]
    patches = geometry.patches_of(kept.indices, 4, merge)
    assert torch.equal(kept.tokens, values.reshape(-1, 8)[patches].flatten(1))


@pytest.mark.parametrize("op", ["select", "select_qk"])
def test_pooled_pictures_need_no_initial_layer(op: str) -> None:
    tensors = [a for a in CALLS[op]() if isinstance(a, Tensor)]
    options = {"grids": [(2, 2), (1, 2)], "budget": 9, "merge": 2}
    keep = functools.partial(getattr(hired, op), **options)
    middle = len(tensors) // 2
    values, init, final = tensors[0], tensors[1 : middle + 1], tensors[middle + 1 :]
    nothing = [None] * len(init)
    expected = keep(values, *init, *final, policy="pooled")
    assert all(map(torch.equal, keep(values, *nothing, *final, policy="pooled"), expected))
    assert not torch.equal(keep(values, *init, *final).counts, expected.counts)
    names = ["attn_init"] if op == "select" else ["query_init", "key_init"]
    for policy in ("exact", "published"):
        for i, name in enumerate(names):
            some = [*init[:i], None, *init[i + 1 :]]
            with pytest.raises(ValueError, match=f"{op}: {name}: expected a tensor, got NoneType"):
                keep(values, *some, *final, policy=policy)
    if op == "select_qk":  # one of the two is a mistake
        for name, some in (("key", (init[0], None)), ("query", (None, init[1]))):
            with pytest.raises(ValueError, match=f"select_qk: {name}_init: expected a tensor"):
                keep(values, *some, *final, policy="pooled")
    with pytest.raises(ValueError, match="expected a tensor, got NoneType"):
        keep(values, *init, *[None] * len(final), policy="pooled")


def test_compact_drops_empty_rows() -> None:
    values, init, final, *_ = select_arguments()
    crops = [(1, 8, 0, 7), (0, 4, 1, 6)]
    kept = hired.select(
        values,
        init,
        final,
        grids=[(2, 2), (1, 2)],
        budget=[30, 20],
        crops=crops,
        policy="published",
    )
    short = kept.compact()
    assert len(kept.indices) == 50
    assert len(short.indices) == kept.counts.sum() < 50
    assert torch.equal(short.tokens, values.reshape(-1, 8)[short.indices])
    assert torch.equal(kept.tokens[kept.indices < 0], torch.zeros(50 - len(short.indices), 8))


INTEGERS = [*(getattr(torch, f"{sign}int{bits}") for bits in (8, 16, 32, 64) for sign in ("", "u"))]


def as_tensor(values: Any, dtype: torch.dtype) -> Tensor:
    return torch.tensor(values, dtype=dtype)


def as_array(values: Any, dtype: torch.dtype) -> np.ndarray:
    return np.array(values, dtype=str(dtype).removeprefix("torch."))


def as_scalars(values: Any, dtype: torch.dtype) -> list[list[Any]]:
    return [list(value) for value in as_array(values, dtype)]


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
@pytest.mark.parametrize("kind", [as_tensor, as_array, as_scalars])
@pytest.mark.parametrize("budget", [11, 0.25, [5, 6]], ids=["count", "share", "one-each"])
def test_integers_of_any_kind(budget: Any, kind: Any, dtype: torch.dtype) -> None:
    values, init, final, *_ = select_arguments()
    grids, crops = [(2, 2), (1, 2)], [(1, 8, 0, 7), (0, 4, 1, 6)]
    boxes = [(1, 4, 0, 3), (0, 2, 1, 3)]  # in tokens of 2 x 2 patches
    expected = hired.select(values, init, final, grids=grids, crops=crops, budget=budget)
    merged = hired.select(values, init, final, grids=grids, crops=boxes, budget=budget, merge=2)
    if isinstance(budget, list):
        budget = kind([budget], dtype)[0]
    grids, crops, boxes = (kind(rows, dtype) for rows in (grids, crops, boxes))
    kept = hired.select(values, init, final, grids=grids, crops=crops, budget=budget)
    assert all(map(torch.equal, kept, expected))
    two = kind([[2]], dtype)[0][0]
    kept = hired.select(values, init, final, grids=grids, crops=boxes, budget=budget, merge=two)
    assert all(map(torch.equal, kept, merged))


HALVES = [Fraction(1, 2), *(kind(0.5) for kind in (np.float16, np.float32, np.longdouble))]


@pytest.mark.parametrize("half", [*HALVES, np.array(0.5), torch.tensor(0.5)], ids=repr)
def test_numbers_of_any_kind(half: Any) -> None:
    values, *tensors = (a for a in CALLS["select_qk"]() if isinstance(a, Tensor))
    grids = [(2, 2), (1, 2)]
    budget = 0.5 if isinstance(half, Tensor | np.ndarray) else half

    def results(budget: Any, number: Any) -> list[Tensor]:
        options = {"budget": budget, "alpha": number, "scale": number}
        rows = hired.cls_attention(*queries_keys(), 39, scale=number)
        return [*hired.select_qk(values, *tensors, grids=grids, **options), rows]

    assert all(map(torch.equal, results(budget, half), results(0.5, 0.5)))
    assert not torch.equal(results(0.5, 0.5)[3], results(0.5, 0.25)[3])


HUGE, WRONG = 1 << 63, torch.tensor([[2.0, 2.0], [1.0, 2.0]])


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        *(("budget", value) for value in (HUGE, [3, 1 << 70], np.uint64(HUGE), Fraction(3, 2))),
        *(("budget", value) for value in (torch.tensor([True, True]), torch.tensor(3), 1j, "9")),
        *(("alpha", value) for value in (True, np.True_, None, "0.5", 1j, torch.ones(2), 10**400)),
        *(("grids", value) for value in (None, 4, "ab", WRONG, WRONG.bool(), [(HUGE, 1), (1, 2)])),
        ("grids", [(True, True), (1, 2)]),
        *(("crops", value) for value in (4, [None, None], torch.ones(2, 4), [(0, HUGE, 0, 8)] * 2)),
        *(("merge", value) for value in (True, 2.0, None, "2", HUGE, torch.ones(2), -1, 3)),
        *(("policy", None), ("order", 3), ("features", np.ones((8, 16, 8))), ("attn_init", None)),
        ("attn_final", [[1.0]]),
    ],
    ids=lambda value: " ".join(f"{value!r}".split())[:30],
)
def test_what_is_refused_by_name(argument: str, value: Any) -> None:
    values, init, final, *_ = select_arguments()
    good = {"features": values, "attn_init": init, "attn_final": final}
    good |= {"grids": [(2, 2), (1, 2)], "budget": 9}
    with pytest.raises(ValueError, match=rf"^hired::select: {argument}: expected .*, got .*$"):
        hired.select(**{**good, argument: value})


@pytest.mark.parametrize(
    "scale", [True, "0.5", 10**400, torch.ones(2)], ids=["bool", "str", "huge", "two"]
)
def test_scale_is_refused_by_name(scale: Any) -> None:
    values, *tensors = (a for a in CALLS["select_qk"]() if isinstance(a, Tensor))
    for op, call in (
        (
            "select_qk",
            lambda: hired.select_qk(values, *tensors, grids=[(2, 2)], budget=9, scale=scale),
        ),
        ("cls_attention", lambda: hired.cls_attention(*queries_keys(), 39, scale=scale)),
    ):
        with pytest.raises(
            ValueError, match=f"^hired::{op}: scale: expected a finite number, got "
        ):
            call()


@pytest.mark.parametrize(
    "tokens", [39, np.int64(39), torch.tensor(39)], ids=["int", "numpy", "0-d"]
)
def test_face_tokens(tokens: Any) -> None:
    query, key = queries_keys()
    assert torch.equal(hired.cls_attention(query, key, tokens), OPS.cls_attention(query, key, 39))


@pytest.mark.parametrize("changes", [{"tokens": 0}, {"tokens": 41}, {"tokens": 2.5},
                                     {"tokens": None}, {"tokens": True}, {"tokens": 1 << 63},
                                     {"scale": math.nan}, {"query": None}, {"key": np.ones(3)}],
                         ids=["zero", "beyond-N", "float", "none", "bool", "huge", "scale",
                              "query", "key"])  # fmt: skip
def test_face_of_cls_attention_raises_value_error(changes: dict[str, Any]) -> None:
    query, key = queries_keys()
    with pytest.raises(ValueError, match=r"hired::cls_attention: \w+: expected .*, got "):
        hired.cls_attention(**{"query": query, "key": key, "tokens": 39, **changes})
