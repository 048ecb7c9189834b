# SPDX-License-Identifier: Apache-2.0
"""The integers of the native core (`_C`) against those of Python, over all that they may be.

`_C.plan` is what every native call begins with: what each picture owns of the output and how its
budget parts. `_C.share_out` is what the kernels do with the sub-images' part of it.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from strategies import Call, batches

from hired_kernels import arguments, geometry, reference

_C = pytest.importorskip("hired_kernels._C", reason="the native library was not built")

MOST_SUB_IMAGES, MOST_TOKENS = 1 << 10, 1 << 20  # that the CPU backend serves
NAMES = ("grids", "budgets", "alpha", "crops", "policy", "order")


def plan(P: int, T: int, call: Call) -> list[dict[str, int]]:
    return _C.plan(*(call[name] for name in NAMES), P, T, call["merge"])


def part_budget(call: Call, i: int, M: int) -> tuple[int, int]:
    """What the full image of picture i gets, and what its sub-images share, by the oracle."""
    if call["policy"] == "pooled":
        return 0, 0  # which parts nothing
    picture = reference.pictures(call["grids"], call["budgets"], call["crops"])[i]
    if call["policy"] == "exact":
        crop = picture.crop if picture.R else None
        side = math.isqrt(M)
        room = [M, *geometry.capacities((picture.R, picture.C), crop, side)[1:]]
        # The ranking decides who gets what of the rest, and not how much that is.
        full, *rest = reference.exact_budgets(picture, room, call["alpha"], [])
        return full, sum(rest)
    full = reference.published_budgets(picture, M, call["alpha"], [])[0]
    return full, min(picture.budget - full, picture.R * picture.C * M)


# Budgets at which a double, or a product with one, loses integers.
WIDE = st.one_of(
    st.sampled_from([2**53 - 1, 2**53 + 1, 2**62 - 1, 2**62, 2**63 - 1]), st.integers(0, 2**63 - 1)
)
TINY = [5e-324, 1e-300, 2**-62, 2**-53, 1e-9, 1 - 2**-53]


@settings(max_examples=4 * settings().max_examples)
@given(batches(largest_side=12), st.data())
def test_plan(batch: tuple[int, int, Call], data: st.DataObject) -> None:
    P, T, call = batch
    M = T // call["merge"] ** 2
    if call["policy"] != "published" and data.draw(st.booleans()):
        call["budgets"] = [data.draw(WIDE) for _ in call["budgets"]]
        call["alpha"] = data.draw(st.sampled_from([*TINY, call["alpha"]]))
    pictures = plan(P, T, call)
    owned = arguments.output_rows(call["grids"], call["budgets"], M, call["crops"], call["policy"])
    assert [picture["output_rows"] for picture in pictures] == owned
    assert [picture["first_row"] for picture in pictures] == [
        sum(owned[:i]) for i in range(len(owned))
    ]
    partitions = [0, *(1 + R * C for R, C in arguments.pairs(call["grids"]))]
    firsts = list(itertools.accumulate(partitions))[:-1]
    assert [picture["first_partition"] for picture in pictures] == firsts
    for i, picture in enumerate(pictures):
        assert (picture["full_budget"], picture["rest"]) == part_budget(call, i, M)


@given(
    st.sampled_from(arguments.POLICIES),
    WIDE,
    st.one_of(st.sampled_from(TINY[:-1]), st.floats(0, 1 - 2**-6)),
)
def test_wide_budgets(policy: str, budget: int, alpha: float) -> None:
    # Under `published` the product is of the budget itself, however large. (It has an error for
    # an alpha that leaves the weights nothing to count.)
    call = {"grids": [2, 2], "budgets": [budget], "alpha": alpha, "crops": None}
    call |= {"policy": policy, "order": "raster", "merge": 1}
    (picture,) = plan(5, 64, call)
    assert picture["output_rows"] == geometry.kept_tokens(budget, (2, 2), 64, None, policy)
    assert (picture["full_budget"], picture["rest"]) == part_budget(call, 0, 64)


@pytest.mark.parametrize("budget", [0, 1, 1024**2, 1024**3, 2**62])
@pytest.mark.parametrize("policy", arguments.POLICIES)
def test_the_largest_picture_that_is_served(policy: str, budget: int) -> None:
    P, T = 1 + MOST_SUB_IMAGES, MOST_TOKENS
    call = {"grids": [32, 32], "budgets": [budget], "alpha": 0.5, "crops": None}
    (picture,) = plan(P, T, {**call, "policy": policy, "order": "raster", "merge": 1})
    rows = min(budget, P * T)
    assert picture["output_rows"] == rows
    if policy == "pooled":
        return
    parts = rows if policy == "exact" else budget
    assert picture["full_budget"] == min(parts // 2, T)
    assert picture["full_budget"] + picture["rest"] == min(budget, P * T)


@pytest.mark.parametrize("merge", [1, 2, 64])
@pytest.mark.parametrize("policy", ["exact", "pooled"])
def test_the_largest_picture_may_be_merged(policy: str, merge: int) -> None:
    P, T, side = 1 + MOST_SUB_IMAGES, MOST_TOKENS, 32 * 1024 // merge
    call = {"grids": [32, 32], "budgets": [2**62], "alpha": 0.5, "policy": policy}
    call |= {"order": "full_last", "merge": merge}
    for crop, tokens in ((None, side * side), ([1, side, 0, side - 1], (side - 1) ** 2)):
        (picture,) = plan(P, T, {**call, "crops": crop})
        assert picture["output_rows"] == T // merge**2 + tokens
    with pytest.raises(ValueError, match=f"crops: expected 0 <= top <= bottom <= {side} "):
        plan(P, T, {**call, "crops": [0, side + 1, 0, side]})


@given(st.integers(1, 1024))
def test_sides_are_exact_roots(side: int) -> None:
    # What a side is shows in the largest crop that is accepted.
    T, call = side * side, {"grids": [1, 1], "budgets": [2**62], "alpha": 0.0}
    call |= {"policy": "exact", "order": "raster", "crops": [0, side, 0, side], "merge": 1}
    assert plan(2, T, call)[0]["output_rows"] == 2 * T
    with pytest.raises(ValueError, match="crops: expected 0 <= top"):
        plan(2, T, {**call, "crops": [0, side + 1, 0, side]})
    if side > 1:
        with pytest.raises(ValueError, match="T square"):
            plan(2, T - 1, call)


WILD = st.one_of(
    st.integers(-2, 5), st.sampled_from([2**31, 2**32, 2**62, 2**63 - 1, -(2**63), -(2**62)])
)


@settings(max_examples=4 * settings().max_examples)
@given(
    P=st.integers(0, 12),
    T=st.integers(1, 20),
    call=st.fixed_dictionaries(
        {
            "grids": st.lists(WILD, max_size=5) | st.just([2, 2]) | st.just([1, 2, 0, 0]),
            "budgets": st.lists(WILD, max_size=3),
            "alpha": st.sampled_from([0.0, 0.5, 1.0, -0.1, 1.5, math.nan, math.inf]),
            "crops": st.none() | st.lists(WILD, min_size=4, max_size=9),
            "policy": st.sampled_from([*arguments.POLICIES, *arguments.POLICIES, "", "Exact"]),
            "order": st.sampled_from([*arguments.ORDERS, *arguments.ORDERS, "'"]),
            "merge": st.sampled_from([1, 1, 1, 2, 2, 3, 4, 64, 65, 0, -1, 2**62]),
        }
    ),
)
@example(
    P=5,
    T=16,
    call={
        "grids": [2, 2],
        "budgets": [1],
        "alpha": 0.5,
        "crops": [0, 9, 0, 8],
        "policy": "exact",
        "order": "raster",
        "merge": 1,
    },
)
@example(
    P=5, T=16,
    call={"grids": [2, 2], "budgets": [1], "alpha": 0.5, "crops": [0, 5, 0, 4],
          "policy": "pooled", "order": "partition", "merge": 2},
)  # fmt: skip
def test_both_refuse_the_same_in_the_same_words(P: int, T: int, call: dict[str, Any]) -> None:
    attention = torch.empty(1, 1, 1).expand(P, 1, T)
    said = ["served", "served"]
    try:
        arguments.check_select(torch.empty(P, T, 0), attention, attention, **call)
    except RuntimeError as error:
        said[0] = str(error).removeprefix("hired::select: ")
    try:
        plan(P, T, call)
    except ValueError as error:
        said[1] = str(error).removeprefix("hired: ")
    assert said[0] == said[1]


@st.composite
def shares(draw: st.DrawFn) -> tuple[int, list[int], list[int]]:
    """A rest, weights and capacities, as large as a picture that is served can make them."""
    n = draw(st.integers(0, 8))
    most = draw(st.sampled_from([3, 20, 576, MOST_TOKENS]))
    weights = draw(st.lists(st.integers(0, most), min_size=n, max_size=n))
    capacities = draw(st.lists(st.integers(0, most), min_size=n, max_size=n))
    return draw(st.integers(0, sum(capacities))), weights, capacities


@settings(max_examples=10 * settings().max_examples)
@given(shares())
def test_share_out(case: tuple[int, list[int], list[int]]) -> None:
    assert _C.share_out(*case) == reference.share_out(*case)


def test_share_out_of_all_small_cases() -> None:
    # Every way in which three sub-images can tie, overflow and have no weight.
    for weights in itertools.product(range(4), repeat=3):
        for capacities in itertools.product(range(4), repeat=3):
            for rest in range(sum(capacities) + 1):
                case = (rest, list(weights), list(capacities))
                assert _C.share_out(*case) == reference.share_out(*case), case


@pytest.mark.parametrize("seed", range(4))
def test_share_out_of_the_largest_picture(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weights, capacities = torch.randint(
        0, MOST_TOKENS + 1, (2, MOST_SUB_IMAGES), generator=generator
    ).tolist()
    if seed % 2:  # all the weight where there is little room
        capacities[:32], weights[32:] = [5] * 32, [0] * (MOST_SUB_IMAGES - 32)
    rest = sum(capacities) * (seed + 1) // 5
    assert _C.share_out(rest, weights, capacities) == reference.share_out(rest, weights, capacities)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param((-1, [1], [1]), id="negative-rest"),
        pytest.param((3, [1, 1], [1, 1]), id="more-than-fits"),
        pytest.param((1, [1, 1], [1]), id="lengths"),
        pytest.param((0, [1], [-1]), id="negative-capacity"),
        pytest.param((2**62, [1], [1]), id="2^62"),
    ],
)
def test_share_out_refuses(case: tuple[int, list[int], list[int]]) -> None:
    with pytest.raises(ValueError, match=r"^hired: "):
        _C.share_out(*case)


@pytest.mark.parametrize("case", [(1, [-1], [1]), (1, [1], [2**62]), (2**64, [1], [1])])
def test_share_out_refuses_what_is_no_such_integer(case: tuple) -> None:
    with pytest.raises((TypeError, ValueError)):
        _C.share_out(*case)
