# SPDX-License-Identifier: Apache-2.0
"""Many queries on the CPU backend: the mean of their rows of attention beside float64 PyTorch, with
each instruction set, and what holds to the bit: threads, heads apart, `select` of the rows."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from callers import operator
from cls_attention_calls import close, composed
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import Call, same, seeded_call
from torch import Tensor

from hired_kernels import arguments

_C = pytest.importorskip("hired_kernels._C", reason="the native library was not built")

NORMAL_ERROR = 5e-6  # of normal queries and keys at the usual scale: a few dozen roundings
SPECIAL = (math.nan, math.inf, -math.inf)


def attention(call: Call) -> Tensor:
    return operator("cls_attention", **call)[0]


def oracle(call: Call, dtype: torch.dtype = torch.float64) -> Tensor:
    query, key = call["query"].to(dtype), call["key"].to(dtype)
    scale = key.shape[-1] ** -0.5 if call["scale"] is None else call["scale"]
    logits = torch.einsum("pqhd,pnhd->phqn", query * scale, key)
    return torch.softmax(logits, -1).mean(2)[..., -call["tokens"] :].to(torch.float64)


def error_bound(call: Call) -> Tensor:
    """(P, H, 1): by how much the logarithm of a mean may be wrong."""
    query, key = call["query"].double().abs(), call["key"].double().abs()
    (Q, _, Dh), N = query.shape[1:], key.shape[1]
    scale = Dh**-0.5 if call["scale"] is None else abs(call["scale"])
    sizes = torch.einsum("pqhd,pnhd->phqn", query, key) * scale
    return (2 * (Dh + 8) * sizes.amax((2, 3))[..., None] + N + Q + 16) * 2.0**-24


def queries_call(
    seed: int, P: int = 2, Q: int = 5, H: int = 3, N: int = 20, T: int | None = None, Dh: int = 24,
    dtype: torch.dtype = torch.float32, scale: float | None = None,
) -> Call:  # fmt: skip
    """Of normal values, in views: every fourth of the queries, and keys behind a CLS token's."""
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(P, 4 * Q, H, Dh, generator=generator).to(dtype)[:, 1::4]
    key = torch.randn(P, N + 1, H, Dh + 3, generator=generator).to(dtype)[:, 1:, :, 1 : Dh + 1]
    return {"query": query, "key": key, "tokens": N if T is None else T, "scale": scale}


@settings(max_examples=2 * settings().max_examples)
@given(st.data())
def test_any_call(data: st.DataObject) -> None:
    N = data.draw(st.one_of(st.integers(1, 110), st.sampled_from([16, 47, 48, 49, 96, 97])))
    sizes = {
        "P": data.draw(st.integers(1, 3)),
        "Q": data.draw(st.one_of(st.integers(2, 40), st.sampled_from([128, 129, 257]))),
        "H": data.draw(st.integers(1, 5)),
        "Dh": data.draw(st.one_of(st.integers(1, 90), st.sampled_from([16, 64, 65, 128]))),
        "N": N,
        "T": data.draw(st.integers(1, N)),
        "dtype": data.draw(st.sampled_from(arguments.SCORE_DTYPES)),
        "scale": data.draw(st.sampled_from([None, None, 0.0, 0.25, -0.5, 1.0])),
    }
    call = queries_call(data.draw(st.integers(0, 1000)), **sizes)
    assert close(attention(call), oracle(call), error_bound(call))


@pytest.mark.parametrize("Q", [2, 3, 6, 7, 8, 9, 17, 127, 128, 129, 169, 300])
def test_numbers_of_queries(Q: int) -> None:
    call = queries_call(1, Q=Q, N=75, T=70, Dh=72)
    assert close(attention(call), oracle(call), NORMAL_ERROR)


@pytest.mark.parametrize("spread", [20, 80, 88, 100, 105, 150, 2000, 2**20])
def test_extreme_logits(spread: int) -> None:
    """Logits that float32 holds exactly, from 0 down to -spread: denormals, and zeros."""
    call = queries_call(2, Q=11, N=60, Dh=16, scale=2.0 ** round(math.log2(spread / 40)))
    generator = torch.Generator().manual_seed(spread)
    call["key"] = torch.randint(-3, 4, call["key"].shape, generator=generator).float()
    call["query"] = torch.randint(-2, 3, call["query"].shape, generator=generator).float()
    assert close(attention(call), oracle(call), 4e-6)


@pytest.mark.parametrize("value", SPECIAL)
@pytest.mark.parametrize("where", ["query", "key", "last-key", "keys", "queries", "all"])
def test_queries_and_keys_that_are_not_finite(where: str, value: float) -> None:
    call = queries_call(3, T=18)
    if where == "query":
        call["query"][1, 2, 1, 5] = value
    elif where == "queries":
        call["query"][:, :, 0] = value
    elif where == "keys":
        call["key"][:, :, 2, 0] = value
    elif where == "all":
        call["key"].fill_(value)
    else:
        call["key"][0, 3 if where == "key" else -1, 1, 5] = value
    expected = oracle(call, torch.float32)
    assert expected.isnan().any()
    assert close(attention(call), expected, 1e-5)


def test_one_query_has_the_bits_of_none_being_counted() -> None:
    call = queries_call(4, Q=1, N=50)
    assert same((attention(call),), (attention({**call, "query": call["query"][:, 0]}),))


@pytest.mark.parametrize("dtype", arguments.SCORE_DTYPES)
def test_threads_do_not_show(dtype: torch.dtype) -> None:
    call = queries_call(5, P=3, Q=300, N=130, H=5, dtype=dtype)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            results.append(attention(call))
    finally:
        torch.set_num_threads(before)
    assert all(same((result,), (results[0],)) for result in results)


@pytest.mark.parametrize("Q", [5, 200])
def test_a_head_alone_has_the_bits_that_it_has_among_others(Q: int) -> None:
    call = queries_call(6, P=3, Q=Q, N=61, T=60, H=4)
    whole = attention(call)
    for p, h in itertools.product(range(3), range(4)):
        query, key = call["query"][p : p + 1, :, h : h + 1], call["key"][p : p + 1, :, h : h + 1]
        alone = attention({**call, "query": query, "key": key})
        assert same((alone,), (whole[p : p + 1, h : h + 1],))


@pytest.mark.parametrize(("Q_init", "Q_final"), [(None, 6), (6, None), (1, 200), (3, 3), (200, 1)])
def test_select_of_the_rows_is_select_qk(Q_init: int | None, Q_final: int | None) -> None:
    call = seeded_call("select_qk", 7, T=36, N=37, H=3, Dh=20)
    generator = torch.Generator().manual_seed(8)
    for layer, Q in (("init", Q_init), ("final", Q_final)):
        rows, H, Dh = call[f"query_{layer}"].shape
        shape = (rows, H, Dh) if Q is None else (rows, Q, H, Dh)
        call[f"query_{layer}"] = 3 * torch.randn(shape, generator=generator)
    assert same(operator("select_qk", **call), composed(operator, call))


def check_an_instruction_set(isa: str) -> None:
    """In the process of one of them."""
    assert _C.build_info()["isa"] == isa
    for Q, N, Dh in itertools.product((2, 13, 140), (1, 16, 47, 50, 100), (1, 15, 16, 72, 131)):
        for dtype in arguments.SCORE_DTYPES:
            call = queries_call(9, P=1, Q=Q, N=N, Dh=Dh, T=max(1, N - 1), H=2, dtype=dtype)
            assert close(attention(call), oracle(call), 2e-5), (Q, N, Dh, dtype)


@pytest.mark.parametrize("isa", _C.build_info()["isas"])
def test_every_instruction_set(isa: str) -> None:
    code = (
        "import sys; sys.path.append('..'); import test_cpu_queries; "
        f"test_cpu_queries.check_an_instruction_set({isa!r})"
    )
    # glibc fills what malloc gives: no result may hang on memory that was never written.
    env = {**os.environ, "HIRED_CPU_ISA": isa, "MALLOC_PERTURB_": "165"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=env, cwd=Path(__file__).parent, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
