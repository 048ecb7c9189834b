# SPDX-License-Identifier: Apache-2.0
"""What holds of the operators whoever serves them, said without the oracle.

Budgets add up and fit, a picture does not know its batch, a larger budget keeps what a smaller one
kept; memory that is no one's business is neither read nor written; the same inputs give the same
bits, on any number of threads; and offsets do not wrap at 2^31 or 2^32 bytes.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from blocks import merged, scores_of_tokens
from cls_attention_calls import SELECTION, composed_rows
from hypothesis import assume, given
from hypothesis import strategies as st
from memory import around, far, memory, needs_gib
from strategies import (
    Call,
    batches,
    bits,
    same,
    seeded_call,
    select_calls,
    select_qk_calls,
    tensors,
    tokens_of,
)
from targets import SAME_BITS_REPEATS, THREADS, in_charge, target
from torch import Tensor

from hired_kernels import arguments, geometry

pytestmark = pytest.mark.usefixtures("dirty_memory", "one_thread")

OPS = ("select", "select_qk")
any_call = st.one_of(
    select_calls().map(lambda call: ("select", call)),
    select_qk_calls().map(lambda call: ("select_qk", call)),
)


def pictures(call: Call) -> list[tuple[tuple[int, int], tuple[int, ...] | None, list[int]]]:
    """Grid, crop and capacities of each picture."""
    grids, M = arguments.pairs(call["grids"]), tokens_of(call)
    boxes = [None] * len(grids) if call["crops"] is None else arguments.quads(call["crops"])
    # Where T is no square nothing is cropped, and all sub-images are whole.
    room = [
        geometry.capacities(grid, crop, math.isqrt(M)) if crop else [M] * (1 + grid[0] * grid[1])
        for grid, crop in zip(grids, boxes, strict=True)
    ]
    return [
        (grid, crop, [M, *capacities[1:]])
        for grid, crop, capacities in zip(grids, boxes, room, strict=True)
    ]


def rows_of_pictures(call: Call, indices: Tensor, counts: Tensor) -> list[tuple[list, list]]:
    """Each picture's rows of the output and its partitions' counts."""
    integers = (call["grids"], call["budgets"], tokens_of(call))
    owned = arguments.output_rows(*integers, call["crops"], call["policy"])
    partitions = [1 + R * C for R, C in arguments.pairs(call["grids"])]
    rows, lengths = indices.split(owned), counts.split(partitions)
    return [(r.tolist(), c.tolist()) for r, c in zip(rows, lengths, strict=True)]


# Budgets and order.


@given(any_call)
def test_budgets_add_up_and_fit(case: tuple[str, Call]) -> None:
    op, call = case
    _, indices, counts = target(op, **call)
    rows = rows_of_pictures(call, indices, counts)
    for (_, _, room), budget, (row, kept) in zip(
        pictures(call), call["budgets"], rows, strict=True
    ):
        assert all(0 <= n <= capacity for n, capacity in zip(kept, room, strict=True))
        if call["policy"] != "published":
            assert sum(kept) == len(row) == min(budget, sum(room))
        else:
            assert sum(kept) <= len(row) == min(budget, len(room) * room[0])
        assert row[sum(kept) :] == [-1] * (len(row) - sum(kept))
        assert -1 not in row[: sum(kept)]


@given(any_call)
def test_rows_are_the_features_at_their_indices_in_reading_order(case: tuple[str, Call]) -> None:
    op, call = case
    M = tokens_of(call)
    tokens, indices, counts = target(op, **call)
    every = merged(bits(call["features"]), call["merge"]).flatten(0, 1)
    expected = every[indices.clamp(min=0)].clone()
    expected[indices < 0] = 0
    assert torch.equal(bits(tokens), expected)

    side, first = math.isqrt(M), 0
    rows = rows_of_pictures(call, indices, counts)
    for ((R, C), crop, _), (row, kept) in zip(pictures(call), rows, strict=True):
        places = [divmod(index - first * M, M) for index in row[: sum(kept)]]
        assert [sum(i == p for i, _ in places) for p in range(1 + R * C)] == kept
        raster = [
            (1, (i - 1) // C * side + t // side, (i - 1) % C * side + t % side) if i else (0, 0, t)
            for i, t in places
        ]
        reading = raster if call["order"] == "raster" else places
        if call["order"] == "full_last":
            reading = [(i or 1 + R * C, t) for i, t in places]
        assert reading == sorted(set(reading))
        if crop and R:
            top, bottom, left, right = crop
            assert all(top <= y < bottom and left <= x < right for i, y, x in raster if i)
        first += 1 + R * C


@given(any_call)
def test_all_orders_keep_the_same_tokens(case: tuple[str, Call]) -> None:
    op, call = case
    side = math.isqrt(call["features"].shape[1])
    assume(side * side == call["features"].shape[1])
    results = [target(op, **{**call, "order": order}) for order in arguments.ORDERS]
    for _, indices, counts in results[1:]:
        assert torch.equal(indices.sort().values, results[0][1].sort().values)
        assert torch.equal(counts, results[0][2])


@given(any_call)
def test_merged_tokens_are_tokens_that_were_merged_beforehand(case: tuple[str, Call]) -> None:
    # Float32 sums of one head, in the order of the contract, are scores as they are.
    op, call = case
    attention = {name: tensor for name, tensor in tensors(call).items() if name != "features"}
    if op == "select_qk":
        attention = composed_rows(target, call)
    before = {
        **{name: call[name] for name in SELECTION},
        **{
            name: scores_of_tokens(rows, call["merge"])[:, None] for name, rows in attention.items()
        },
        "features": merged(bits(call["features"]), call["merge"]).view(call["features"].dtype),
        "merge": 1,
    }
    assert same(target("select", **before), target(op, **call))


@given(any_call, st.sampled_from([math.nan, math.inf, 1e4]))
def test_pooled_pictures_do_not_read_the_initial_layer(
    case: tuple[str, Call], value: float
) -> None:
    op, call = case
    call["policy"] = "pooled"
    initial = [name for name in tensors(call) if name.endswith("init")]
    unread = {name: torch.full_like(call[name], value) for name in initial}
    assert same(target(op, **{**call, **unread, "alpha": 0.25}), target(op, **call))


@given(any_call, st.data())
def test_a_picture_does_not_know_its_batch(case: tuple[str, Call], data: st.DataObject) -> None:
    op, call = case
    grids, M = arguments.pairs(call["grids"]), tokens_of(call)
    assume(grids)
    b = data.draw(st.integers(0, len(grids) - 1))
    begin = sum(1 + R * C for R, C in grids[:b])
    end = begin + 1 + grids[b][0] * grids[b][1]
    alone = {**call, "grids": [*grids[b]], "budgets": [call["budgets"][b]]}
    for name, tensor in tensors(call).items():
        per_picture = name.endswith("init") and tensor.shape[0] == len(grids)
        alone[name] = tensor[b : b + 1] if per_picture else tensor[begin:end]
    if call["crops"] is not None:
        alone["crops"] = call["crops"][4 * b : 4 * b + 4]
    _, indices, counts = target(op, **call)
    row, kept = rows_of_pictures(call, indices, counts)[b]
    _, indices, counts = target(op, **alone)
    assert [i + begin * M if i >= 0 else -1 for i in indices.tolist()] == row
    assert counts.tolist() == kept


@given(any_call, st.data())
def test_a_larger_budget_keeps_what_a_smaller_one_kept(
    case: tuple[str, Call], data: st.DataObject
) -> None:
    # Of sub-images with a share this does not hold: largest remainders may take one away.
    op, call = case
    M, pooled = tokens_of(call), call["policy"] == "pooled"
    # What `published` refuses depends on the budget.
    assume(call["policy"] != "published" or not any(call["grids"]))
    more = [budget + data.draw(st.integers(0, M)) for budget in call["budgets"]]
    P, first = call["features"].shape[0], 0
    full = torch.zeros(P, dtype=torch.bool)
    for R, C in arguments.pairs(call["grids"]):
        full[first] = True
        first += 1 + R * C

    def kept(budgets: list[int]) -> set[int]:
        _, indices, _ = target(op, **{**call, "budgets": budgets})
        return set(indices[pooled | full[indices // M]].tolist()) if P else set()

    assert kept(call["budgets"]) <= kept(more)


@pytest.mark.parametrize("T", [1, 2, 3, 4, 5, 15, 16, 17, 31, 32, 33, 255, 256, 257, 576])
def test_top_k_at_its_edges(T: int) -> None:
    scores = torch.randperm(T, generator=torch.Generator().manual_seed(T)).float().view(1, 1, T)
    features = torch.arange(1.0, T + 1).view(1, T, 1)
    best = scores.flatten().argsort(descending=True)
    for k in sorted({0, 1, 2, T // 2, T - 1, T, T + 1}):
        tokens, indices, counts = target(
            "select", features=features, attn_init=scores, attn_final=scores, grids=[0, 0],
            budgets=[k],
        )  # fmt: skip
        assert indices.tolist() == sorted(best[:k].tolist())
        assert tokens.flatten().tolist() == [i + 1 for i in indices.tolist()]
        assert counts.tolist() == [min(k, T)]


@pytest.mark.parametrize(
    ("scores", "order"),
    [
        pytest.param([1.0, 2.0, 1.0, 2.0], [1, 3, 0, 2], id="ties"),
        pytest.param([0.0] * 5, [0, 1, 2, 3, 4], id="all-equal"),
        pytest.param([-0.0, 0.0, -0.0, 0.0], [0, 1, 2, 3], id="signed-zeros"),
        pytest.param([-1e-45, -0.0, 1e-45, 0.0], [2, 1, 3, 0], id="denormals"),
        pytest.param([math.nan, -math.inf, math.inf, 0.0, math.nan], [2, 3, 1, 0, 4], id="nan"),
        pytest.param([-3e38, -math.inf, 3e38, math.inf], [3, 2, 0, 1], id="infinities"),
        pytest.param([-1.0, -2.0, 1.0, 2.0], [3, 2, 0, 1], id="signs"),
    ],
)
def test_order_of_scores(scores: list[float], order: list[int]) -> None:
    T, rows = len(scores), torch.tensor(scores).view(1, 1, -1)
    for k in range(T + 1):
        _, indices, _ = target(
            "select", features=torch.empty(1, T, 0), attn_init=rows, attn_final=rows, grids=[0, 0],
            budgets=[k],
        )  # fmt: skip
        assert indices.tolist() == sorted(order[:k])


# Memory.


@given(any_call, st.sampled_from([0x00, 0x7B, 0xFB]))  # zero, large, large and negative
def test_what_lies_around_a_view_is_not_read(case: tuple[str, Call], byte: int) -> None:
    op, call = case
    changed = {name: around(tensor, byte) for name, tensor in tensors(call).items()}
    assert all(torch.equal(bits(changed[name]), bits(call[name])) for name in changed)
    assert same(target(op, **call), target(op, **{**call, **changed}))


@given(select_calls(), st.sampled_from([math.nan, math.inf, 1e4]))
def test_of_P_initial_rows_only_the_full_images_are_read(call: Call, value: float) -> None:
    P, grids = call["features"].shape[0], arguments.pairs(call["grids"])
    assume(call["attn_init"].shape[0] == P)
    changed, first = torch.full_like(call["attn_init"], value), 0
    for R, C in grids:
        changed[first] = call["attn_init"][first]
        first += 1 + R * C
    assert same(target("select", **call), target("select", **{**call, "attn_init": changed}))


@given(any_call)
def test_inputs_are_left_as_they_were(case: tuple[str, Call]) -> None:
    op, call = case
    before = {name: memory(tensor).clone() for name, tensor in tensors(call).items()}
    target(op, **call)
    for name, tensor in tensors(call).items():
        assert torch.equal(memory(tensor), before[name]), name


@given(any_call)
def test_outputs_are_as_large_as_said_and_nobody_elses(case: tuple[str, Call]) -> None:
    op, call = case
    P, _, D = call["features"].shape
    outputs = target(op, **call)
    integers = (call["grids"], call["budgets"], tokens_of(call), call["crops"], call["policy"])
    K, width = sum(arguments.output_rows(*integers)), call["merge"] ** 2 * D
    sizes, dtypes = [(K, width), (K,), (P,)], [call["features"].dtype, torch.int64, torch.int64]
    buffers = {tensor.untyped_storage().data_ptr() for tensor in tensors(call).values()}
    for output, size, dtype in zip(outputs, sizes, dtypes, strict=True):
        assert output.shape == size
        assert output.dtype == dtype
        assert output.is_contiguous()
        assert output.untyped_storage().nbytes() == output.numel() * output.element_size()
        assert output.numel() == 0 or output.untyped_storage().data_ptr() not in buffers


@given(batches())
def test_the_number_of_rows_is_known_from_the_integers(batch: tuple[int, int, Call]) -> None:
    P, T, integers = batch
    attention = torch.zeros(P, 1, T)
    call = {"features": torch.empty(P, T, 0), "attn_init": attention, "attn_final": attention}
    call |= integers
    rows = arguments.output_rows(
        call["grids"], call["budgets"], tokens_of(call), call["crops"], call["policy"]
    )
    assert target("select", **call)[1].shape == (sum(rows),)


# The same bits on every run.

LARGE = {"grids": ((2, 2), (0, 0), (1, 2)), "T": 576, "H": 16, "D": 64, "Dh": 64}


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("op", "rules"),
    [
        *((op, {}) for op in OPS),
        ("select", {"policy": "pooled"}),
        ("select_qk", {"policy": "pooled", "merge": 2}),
        # Triton's interpreter takes minutes.
        pytest.param("select_qk", {"Q": 13, "merge": 2}, marks=pytest.mark.whole_list),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else value,
)
def test_repeats_and_thread_counts_give_the_same_bits(
    op: str, rules: dict[str, Any], dtype: torch.dtype
) -> None:
    call = seeded_call(op, 9, dtype=dtype, **LARGE, **rules)
    if op == "select":  # many ties: whoever counts them in another order is found out
        call["attn_final"] = call["attn_final"].round()
    torch.set_num_threads(1)
    expected = target(op, **call)
    for count in THREADS:
        torch.set_num_threads(count)
        for _ in range(SAME_BITS_REPEATS):
            assert same(target(op, **call), expected)


@pytest.mark.whole_list  # Triton's interpreter takes a minute, and has no threads to meet
@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("op", OPS)
def test_calls_at_the_same_time_do_not_meet(op: str) -> None:
    torch.set_num_threads(2)
    calls = [seeded_call(op, seed, **LARGE) for seed in range(4)]
    expected = [target(op, **call) for call in calls]
    with in_charge(), ThreadPoolExecutor(4) as pool:
        for _ in range(SAME_BITS_REPEATS):
            results = list(pool.map(lambda call: target(op, **call), calls))
            assert all(same(*pair) for pair in zip(results, expected, strict=True))


# Offsets beyond 32 bits.


STRIDED = [
    *(("select", name, dim) for name in ("attn_init", "attn_final") for dim in range(3)),
    *(("select_qk", f"query_{layer}", dim) for layer in ("init", "final") for dim in range(2)),
    *(("select_qk", f"key_{layer}", dim) for layer in ("init", "final") for dim in range(3)),
    *((op, "features", dim) for op in OPS for dim in range(2)),
]
STRIDED_QUERIES = [
    ("select_qk", f"query_{layer}", dim, 3) for layer in ("init", "final") for dim in range(3)
]


@pytest.mark.parametrize(
    ("op", "name", "dim", "Q"), [*((*case, None) for case in STRIDED), *STRIDED_QUERIES]
)
def test_strides_beyond_32_bits(op: str, name: str, dim: int, Q: int | None) -> None:
    needs_gib(12)
    call = seeded_call(op, 10, Q=Q, dtype=torch.float16)
    call["features"] = call["features"].half()
    expected = target(op, **call)
    assert same(target(op, **{**call, name: far(call[name], dim)}), expected)


@pytest.mark.whole_list
@pytest.mark.parametrize("merge", [1, 2])
def test_outputs_beyond_32_bits(merge: int) -> None:
    needs_gib(12)
    T, D = 4096, 2**18 + 2**10  # the last rows begin beyond 2^31 bytes
    # Row t is the buffer from element t on: 2 GiB of output from 1 MB of input.
    buffer = torch.randn(T + D, generator=torch.Generator().manual_seed(11)).half()
    features = buffer.as_strided((1, T, D), (0, 1, 1))
    attention = torch.zeros(1, 1, T)
    torch.use_deterministic_algorithms(False)  # or all of the output is filled first
    try:
        tokens, indices, _ = target(
            "select", features=features, attn_init=attention, attn_final=attention,
            grids=[0, 0], budgets=[T], merge=merge,
        )  # fmt: skip
    finally:
        torch.use_deterministic_algorithms(True)
    assert tokens.numel() * tokens.element_size() > 2**31
    M = T // merge**2
    assert torch.equal(indices, torch.arange(M))
    of_tokens = geometry.patches_of(indices, 64, merge)
    for m in (0, 1, M // 2, M - 2, M - 1):
        assert torch.equal(bits(tokens[m]), bits(features[0, of_tokens[m]].flatten()))
