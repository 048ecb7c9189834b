# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels on the host: attention of many queries.

Runs under TRITON_INTERPRET=1 (`make test-triton`).
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from callers import by_backend, reference
from cls_attention_calls import close
from strategies import Call, bits, same, seeded_call
from targets import INTERPRETED
from torch import Tensor

if not INTERPRETED:
    pytest.skip("needs TRITON_INTERPRET=1: make test-triton", allow_module_level=True)

from hired_kernels.triton_kernels import launching
from hired_kernels.triton_kernels.queries import MOST_JOBS

pytestmark = [
    pytest.mark.usefixtures("dirty_memory", "one_thread"),
    # NumPy's, of the infinities that tests put in.
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]

interpreted = by_backend("triton")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def attention_call(
    seed: int, Q: int, *, P: int = 2, H: int = 2, Dh: int = 20, N: int = 70, T: int = 64,
    dtype: torch.dtype = torch.float32,
) -> Call:  # fmt: skip
    query, key = normal(seed, P, Q, H, Dh, dtype=dtype), normal(seed + 1, P, N, H, Dh, dtype=dtype)
    return {"query": query, "key": key, "tokens": T, "scale": None}


def attention(call: Call, **changes: Any) -> Tensor:
    return interpreted("cls_attention", **{**call, **changes})[0]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("Q", [1, 2, 5, 40, 300])
def test_a_row_is_the_mean_of_its_queries(Q: int, dtype: torch.dtype) -> None:
    call = attention_call(1, Q, dtype=dtype)
    (expected,) = reference("cls_attention", **call)
    assert close(attention(call), expected, 2e-5)


@pytest.mark.parametrize(
    ("Dh", "N", "T"), [(1, 1, 1), (8, 33, 2), (16, 32, 32), (72, 40, 39), (256, 20, 20)]
)
def test_heads_of_any_width_and_number_of_keys(Dh: int, N: int, T: int) -> None:
    for dtype in (torch.float32, torch.float16):
        call = attention_call(2, 18, Dh=Dh, N=N, T=T, dtype=dtype)
        (expected,) = reference("cls_attention", **call)
        assert close(attention(call), expected, 2e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_queries_may_lie_anywhere(dtype: torch.dtype) -> None:
    """What lies between and behind them is NaN."""
    call = attention_call(3, 40, dtype=dtype)
    expected = attention(call)
    apart = torch.full((2, 4 * 40 + 2, 2, 20), math.nan, dtype=dtype)
    turned = torch.full((2, 2, 50, 20), math.nan, dtype=dtype).transpose(1, 2)
    for view in (apart[:, 1:-1:4], turned[:, 3:43]):
        view.copy_(call["query"])
        assert torch.equal(bits(attention(call, query=view)), bits(expected))
    one = call["query"][:, :1]
    repeated = attention(call, query=one.expand(-1, 40, -1, -1))
    assert close(repeated, attention(call, query=one), 2e-5)


def test_one_query_gives_the_bits_of_none() -> None:
    call = attention_call(4, 1, dtype=torch.float16)
    expected = attention(call, query=call["query"][:, 0])
    assert torch.equal(bits(attention(call)), bits(expected))


def test_a_head_and_a_row_alone_get_the_bits_that_they_get_among_others() -> None:
    call = attention_call(5, 300, P=3, H=4, dtype=torch.float16)
    whole = attention(call)
    query, key = call["query"], call["key"]
    for part in (slice(0, 1), slice(2, 4)):
        alone = attention(call, query=query[:, :, part], key=key[:, :, part])
        assert torch.equal(bits(alone), bits(whole[:, part]))
    assert torch.equal(bits(attention(call, query=query[1:2], key=key[1:2])), bits(whole[1:2]))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["query", "key", "first keys", "all keys"])
def test_what_is_not_finite_is_as_in_softmax(where: str, value: float) -> None:
    """Infinite queries and keys make logits of either infinity, and NaN where they meet a zero."""
    call = attention_call(6, 40, P=1, H=2, Dh=4)
    query, key = call["query"].abs(), call["key"].abs()  # so that logits have the sign of `value`
    rows = {"key": slice(9, 10), "first keys": slice(0, 40), "all keys": slice(None)}
    if where == "query":
        query[:, 3, 0, 1] = value
    else:
        key[:, rows[where], 0, 1] = value
    logits = torch.einsum("pqhd,pnhd->pqhn", query, key) * 4**-0.5
    expected = torch.softmax(logits.double(), -1).mean(1)[:, :, -64:].float()
    assert close(attention(call, query=query, key=key), expected, 2e-5)
    assert not expected[:, 1].isnan().any()


def test_jobs_are_whole_tiles_and_few() -> None:
    for block in (16, 32, 64):
        for Q in (1, 2, block, block + 1, 576, 577, 4097, 8192):
            each = launching.queries_per_job(Q, block)
            jobs = math.ceil(Q / each)
            assert each % block == 0
            assert jobs <= MOST_JOBS.value
            assert jobs == MOST_JOBS.value or block * MOST_JOBS.value >= Q or each > block


# select_qk.


def qk_call(seed: int, Q_init: int, Q_final: int, **sizes: Any) -> Call:
    """Queries of each layer every fourth of a longer tensor."""
    call = seeded_call("select_qk", seed, **{"grids": ((1, 2), (0, 0)), "T": 16, "H": 2, **sizes})
    P, H, Dh = call["query_final"].shape
    for layer, Q in (("init", Q_init), ("final", Q_final)):
        queries = normal(seed + Q, P, 4 * Q, H, Dh, dtype=call["key_final"].dtype)
        call[f"query_{layer}"] = queries[:, 1::4]
    return call


def composed(call: Call) -> tuple[Tensor, ...]:
    rows = {
        f"attn_{layer}": interpreted(
            "cls_attention", query=call[f"query_{layer}"], key=call[f"key_{layer}"],
            tokens=call["features"].shape[1], scale=call["scale"],
        )[0]
        for layer in ("init", "final")
    }  # fmt: skip
    rest = {k: v for k, v in call.items() if not k.startswith(("query", "key", "scale"))}
    return interpreted("select", **rest, **rows)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("Q_init", "Q_final", "rules"),
    [
        (5, 40, {}),
        (1, 300, {"policy": "pooled", "order": "full_last"}),
        (40, 1, {"policy": "published", "order": "partition", "grids": ((2, 2), (1, 1))}),
        (2, 2, {"merge": 2, "T": 36}),
        (130, 5, {"merge": 3, "T": 36, "policy": "pooled"}),
    ],
)
def test_selects_as_the_reference_and_by_the_rows_alone(
    Q_init: int, Q_final: int, rules: dict[str, Any], dtype: torch.dtype
) -> None:
    call = qk_call(7, Q_init, Q_final, dtype=dtype, **rules)
    results = interpreted("select_qk", **call)
    assert same(results, composed(call))
    assert same(results, reference("select_qk", **call))


def test_layers_may_differ_in_rank_and_rows() -> None:
    call = qk_call(8, 5, 40)
    one = {"query_init": call["query_init"][:, 0]}
    per_picture = {name: call[name][[0, 3]] for name in ("query_init", "key_init")}
    for changes in (one, {"query_init": one["query_init"][:, None]}, per_picture):
        changed = {**call, **changes}
        assert same(interpreted("select_qk", **changed), reference("select_qk", **changed))


def test_too_many_queries_are_named() -> None:
    call = qk_call(9, 2, 2)
    for layer in ("init", "final"):
        name = f"query_{layer}"
        many = call[name][:, :1].expand(-1, 8193, -1, -1)
        message = (
            f"hired::select_qk: {name}: expected Q <= 8192 on the triton backend, got Q = 8193"
        )
        with pytest.raises(RuntimeError, match=message):
            interpreted("select_qk", **{**call, name: many})
    with pytest.raises(RuntimeError, match="hired::cls_attention: query: expected Q <= 8192 on"):
        interpreted("cls_attention", query=many, key=call["key_final"], tokens=16)
