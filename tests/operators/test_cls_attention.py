# SPDX-License-Identifier: Apache-2.0
"""`cls_attention` of a backend (see targets.py): beside the oracle, and what holds to the bit.

To the bit: `select` of its rows is `select_qk` of their queries and keys, and heads that ranks
compute apart are those that one device computes together.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from callers import reference
from cls_attention_calls import (
    close,
    cls_attention_calls,
    composed,
    error_bound,
    seeded_attention_call,
    split,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from memory import around, far, memory, needs_gib
from strategies import (
    HEAD_WIDTHS,
    Call,
    bits,
    same,
    seeded_call,
    select_qk_calls,
    tensors,
)
from targets import INTERPRETED, NAME, SAME_BITS_REPEATS, THREADS, in_charge, one_block_size, target
from torch import Tensor

from hired_kernels import arguments

pytestmark = pytest.mark.usefixtures("dirty_memory", "one_thread")

DTYPES = {"ids": lambda dtype: str(dtype).removeprefix("torch.")}
# Judges of whole layers: Triton's interpreter takes minutes.
# A large call in every format where that is quick; in small ones formats meet everywhere.
DTYPES_AT_SIZE = arguments.SCORE_DTYPES if NAME == "cpu" else (torch.bfloat16,)
MANY = pytest.param(13, marks=pytest.mark.whole_list)
LLAVA = {"T": 576, "H": 16, "Dh": 64}
NORMAL_ERROR = 5e-6  # of normal queries and keys at the usual scale: a few dozen roundings
BLOCKS = st.sampled_from([32, 64, 128])


def attention(call: Call) -> Tensor:
    (result,) = target("cls_attention", **call)
    return result


def expected(call: Call) -> Tensor:
    return reference("cls_attention", **call)[0]


# Beside the oracle.


@settings(max_examples=3 * settings().max_examples)
@given(cls_attention_calls())
def test_any_call(call: Call) -> None:
    result = attention(call)
    assert result.is_contiguous()
    assert close(result, expected(call), error_bound(call))


@pytest.mark.parametrize("dtype", arguments.SCORE_DTYPES, **DTYPES)
def test_llava_next_size(dtype: torch.dtype) -> None:
    call = seeded_attention_call(1, P=2, dtype=dtype, **LLAVA)
    assert close(attention(call), expected(call), NORMAL_ERROR)


@pytest.mark.parametrize("dtype", arguments.SCORE_DTYPES, **DTYPES)
@pytest.mark.parametrize("Dh", HEAD_WIDTHS)
def test_head_widths(Dh: int, dtype: torch.dtype) -> None:
    call = seeded_attention_call(2, Dh=Dh, dtype=dtype)
    assert close(attention(call), expected(call), NORMAL_ERROR)


@pytest.mark.parametrize("T", [1, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 255, 256, 257])
@pytest.mark.parametrize("more", [0, 1, 2, 5, 40])
def test_the_last_T_of_N_keys(T: int, more: int) -> None:
    call = seeded_attention_call(3, P=2, T=T, N=T + more)
    assert close(attention(call), expected(call), NORMAL_ERROR)


@pytest.mark.parametrize("H", [1, 2, 5, 8, 15, 16, 17, 33, 64])
def test_numbers_of_heads(H: int) -> None:
    call = seeded_attention_call(4, H=H, N=20)
    assert close(attention(call), expected(call), NORMAL_ERROR)


@pytest.mark.parametrize("Q", [1, 2, 3, 7, 8, 15, 16, 17, 31, 32, 33, 64, 65, 129, 577])
@pytest.mark.parametrize("dtype", arguments.SCORE_DTYPES, **DTYPES)
def test_numbers_of_queries(dtype: torch.dtype, Q: int) -> None:
    call = seeded_attention_call(15, P=2, Q=Q, dtype=dtype)
    assert close(attention(call), expected(call), NORMAL_ERROR)


@pytest.mark.whole_list  # Triton's interpreter takes minutes
@pytest.mark.parametrize("Q", [576, 144])
def test_all_patches_judge_at_llava_next_size(Q: int) -> None:
    call = seeded_attention_call(16, P=2, Q=577, dtype=torch.float16, **LLAVA)
    call["query"] = call["query"][:, 1 :: 576 // Q]
    assert close(attention(call), expected(call), NORMAL_ERROR)


def test_one_query_that_is_not_finite_is_seen_by_all_patches() -> None:
    for Q in (2, 33):
        call = seeded_attention_call(17, P=2, Q=Q)
        call["query"][1, Q - 1, 0, 3] = math.nan
        result = attention(call)
        assert result.isnan().nonzero()[:, :2].unique(dim=0).tolist() == [[1, 0]]
        assert close(result, expected(call), NORMAL_ERROR)


@pytest.mark.parametrize("scale", [0.0, -0.0, 0.01, 0.3, -0.3, 1.0, 30.0, -30.0])
def test_scale(scale: float) -> None:
    call = {**seeded_attention_call(5), "scale": scale}
    assert close(attention(call), expected(call), error_bound(call))


@pytest.mark.parametrize("spread", [20, 80, 88, 100, 105, 150, 2000, 2**20])
@pytest.mark.parametrize("dtype", arguments.SCORE_DTYPES, **DTYPES)
def test_extreme_logits(dtype: torch.dtype, spread: int) -> None:
    """Logits that float32 holds exactly, from 0 down to -spread: denormals, and zeros."""
    call = seeded_attention_call(6, P=2, H=3, T=60, N=64, Dh=16, dtype=dtype)
    generator = torch.Generator().manual_seed(spread)
    call["key"] = torch.randint(-3, 4, call["key"].shape, generator=generator).to(dtype)
    call["query"] = torch.randint(-2, 3, call["query"].shape, generator=generator).to(dtype)
    call["scale"] = 2.0 ** round(math.log2(spread / 40))
    assert close(attention(call), expected(call), 2e-6)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["query", "cls-key", "patch-key", "one-head", "all"])
def test_queries_and_keys_that_are_not_finite(where: str, value: float) -> None:
    call = seeded_attention_call(7)
    query, key = call["query"], call["key"]
    if where == "query":
        query[:, 0, 0] = value
    elif where == "cls-key":
        key[:, 0, 1, 3] = value
    elif where == "patch-key":
        key[1, 7, 1, 3] = value
    elif where == "one-head":
        key[:, :, 2, 0] = value
    else:
        key.fill_(value)
    result = attention(call)
    assert result.isnan().any() or where in ("cls-key", "patch-key")
    assert close(result, expected(call), error_bound(call))


@pytest.mark.parametrize("dtype", arguments.SCORE_DTYPES, **DTYPES)
def test_a_fused_projection_is_read_in_place(dtype: torch.dtype) -> None:
    call = seeded_attention_call(8, dtype=dtype)
    P, N, H, Dh = call["key"].shape
    fused = torch.full((P, N, 3 * H * Dh), math.nan, dtype=dtype)  # what a Linear gives
    q, k, _ = fused.chunk(3, dim=-1)
    q[:, 0] = call["query"].flatten(1)
    k.copy_(call["key"].flatten(2))
    views = {"query": q[:, 0].view(P, H, Dh), "key": k.view(P, N, H, Dh)}
    assert close(attention({**call, **views}), expected(call), NORMAL_ERROR)


@pytest.mark.whole_list
def test_more_rows_than_a_grid_has_in_y() -> None:
    call = seeded_attention_call(9, P=70_000, T=1, N=2, H=1, Dh=1)
    key = call["key"].double()
    # Of two keys; the oracle takes half a minute.
    rows = (call["query"].double() * (key[:, 1] - key[:, 0])).sigmoid()
    assert close(attention(call), rows, NORMAL_ERROR)


# To the bit.


@settings(max_examples=2 * settings().max_examples)
@given(select_qk_calls(), BLOCKS)
def test_select_of_the_rows_is_select_qk(call: Call, block: int) -> None:
    with one_block_size(block):
        assert same(composed(target, call), target("select_qk", **call))


@pytest.mark.parametrize("dtype", DTYPES_AT_SIZE, **DTYPES)
@pytest.mark.parametrize("Q", [None, MANY])
def test_select_of_the_rows_is_select_qk_at_llava_next_size(
    dtype: torch.dtype, Q: int | None
) -> None:
    # Budgets cut everywhere, between scores as close as they may be.
    cases = ((0.05, "exact", 1), (0.4, "pooled", 2), (0.37, "pooled", 1), (0.8, "exact", 2))
    for seed, (share, policy, merge) in enumerate(cases[: 2 if INTERPRETED else 4]):
        rules = {"share": share, "policy": policy, "merge": merge}
        call = seeded_call(
            "select_qk", seed, grids=((1, 2),), D=1, Q=Q, dtype=dtype, **LLAVA, **rules
        )
        with one_block_size(128):
            assert same(composed(target, call), target("select_qk", **call))


# The interpreter knows no alignment.
@pytest.mark.parametrize("unaligned", ["none"] if INTERPRETED else ["none", "init", "final"])
def test_draws_that_rounding_decides_are_decided_alike(unaligned: str) -> None:
    # Eight sums, each of the same 64 numbers in eight orders: only their last bits differ, and they
    # hang on the order in which a backend adds up. Every k of 64 is a cut.
    generator = torch.Generator().manual_seed(14)
    sums = torch.randn(8, 64, generator=generator)
    rows = [sums[i % 8, torch.randperm(64, generator=generator)] for i in range(64)]
    call: Call = {"features": torch.empty(63, 64, 0), "grids": [0, 0] * 63, "scale": 0.1}
    call |= {"budgets": list(range(1, 64)), "alpha": 0.5, "crops": None}
    call |= {"policy": "exact", "order": "partition", "merge": 1}
    for layer in ("init", "final"):
        begin = int(layer == unaligned)
        keys = torch.empty(64 * 64 + 1)[begin : begin + 64 * 64].view(1, 64, 1, 64)
        keys.copy_(torch.stack(rows)[None, :, None])
        call[f"key_{layer}"] = keys.expand(63, 64, 1, 64)
        call[f"query_{layer}"] = torch.ones(63, 1, 64)
    with one_block_size(64):
        assert same(composed(target, call), target("select_qk", **call))


@given(cls_attention_calls(), BLOCKS)
def test_one_query_needs_no_dimension(call: Call, block: int) -> None:
    query = call["query"]
    first = query if query.dim() == 3 else query[:, 0]
    with one_block_size(block):
        alone = attention({**call, "query": first})
        assert same((attention({**call, "query": first[:, None]}),), (alone,))


@given(cls_attention_calls(), BLOCKS, st.sampled_from([2, 3, 5]))
def test_heads_of_several_ranks_are_those_of_one(call: Call, block: int, ranks: int) -> None:
    with one_block_size(block):
        assert same((split(target, call, ranks),), (attention(call),))


@pytest.mark.parametrize("Q", [None, MANY])
@pytest.mark.parametrize("ranks", [2, 4, 16])
@pytest.mark.parametrize("dtype", arguments.SCORE_DTYPES, **DTYPES)
def test_ranks_with_tensors_of_their_own(dtype: torch.dtype, ranks: int, Q: int | None) -> None:
    call = seeded_attention_call(11, P=1, Q=Q, dtype=dtype, **LLAVA)
    with one_block_size(64):
        assert same((split(target, call, ranks, copied=True),), (attention(call),))


@given(cls_attention_calls(), BLOCKS, st.data())
def test_a_row_does_not_know_its_batch(call: Call, block: int, data: st.DataObject) -> None:
    P = call["query"].shape[0]
    first = data.draw(st.integers(0, P))
    some = {**call, **{name: value[first:] for name, value in tensors(call).items()}}
    with one_block_size(block):
        assert same((attention(some),), (attention(call)[first:],))


@given(cls_attention_calls(), BLOCKS, st.data())
def test_fewer_tokens_are_the_last_of_more(call: Call, block: int, data: st.DataObject) -> None:
    T = call["tokens"]
    fewer = data.draw(st.integers(1, T))
    with one_block_size(block):
        last = attention(call)[..., T - fewer :].contiguous()
        assert same((attention({**call, "tokens": fewer}),), (last,))


@given(cls_attention_calls(), st.sampled_from([0x00, 0x7B, 0xFB]))
def test_what_lies_around_a_view_is_not_read(call: Call, byte: int) -> None:
    # Copies may be aligned otherwise, and the last bits with them.
    changed = {name: around(tensor, byte) for name, tensor in tensors(call).items()}
    assert close(attention({**call, **changed}), expected(call), error_bound(call))


@given(cls_attention_calls())
def test_inputs_are_left_and_the_output_is_nobody_elses(call: Call) -> None:
    before = {name: memory(tensor).clone() for name, tensor in tensors(call).items()}
    result = attention(call)
    assert result.shape == (*call["key"].shape[::2], call["tokens"])
    assert result.dtype == torch.float32
    assert result.untyped_storage().nbytes() == 4 * result.numel()
    for name, tensor in tensors(call).items():
        assert torch.equal(memory(tensor), before[name]), name


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("Q", [None, MANY])
def test_repeats_and_thread_counts_give_the_same_bits(dtype: torch.dtype, Q: int | None) -> None:
    call = seeded_attention_call(12, P=4, Q=Q, dtype=dtype, **LLAVA)
    with one_block_size(128):
        torch.set_num_threads(1)
        first = bits(attention(call))
        for count in THREADS:
            torch.set_num_threads(count)
            for _ in range(SAME_BITS_REPEATS):
                assert torch.equal(bits(attention(call)), first)


@pytest.mark.whole_list  # Triton's interpreter takes a minute, and has no threads to meet
@pytest.mark.usefixtures("threads")
def test_calls_at_the_same_time_do_not_meet() -> None:
    torch.set_num_threads(2)
    calls = [seeded_attention_call(seed, P=2, **LLAVA) for seed in range(4)]
    with one_block_size(64), in_charge():
        alone = [attention(call) for call in calls]
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(attention, calls))
    assert same(tuple(together), tuple(alone))


@pytest.mark.parametrize(
    ("name", "dim"),
    [*(("query", dim) for dim in range(2)), *(("key", dim) for dim in range(3))],
)
@pytest.mark.parametrize("Q", [None, 3])
def test_strides_beyond_32_bits(name: str, dim: int, Q: int | None) -> None:
    needs_gib(12)
    call = seeded_attention_call(13, Q=Q, dtype=torch.float16)
    if Q is not None and name == "query":
        dim += 1  # rows are as far apart as without queries
    result = attention({**call, name: far(call[name], dim)})
    assert close(result, expected(call), NORMAL_ERROR)
