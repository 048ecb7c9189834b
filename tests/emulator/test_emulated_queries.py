# SPDX-License-Identifier: Apache-2.0
"""Many queries a head on the emulated CUDA kernels: beside an oracle in float64, and what holds to
the bit.

A block of 32 threads takes up to 96 keys in three a thread, up to 160 in five, and more in chunks,
in two passes; of 48 queries a head is one job, of more several.
"""

from __future__ import annotations

import math
import os
from typing import Any

import pytest
import torch
from cls_attention_calls import SELECTION, close
from layouts import Layout, embed
from strategies import Call, same
from targets import emulated, schedule
from torch import Tensor

if "HIRED_EMULATED_LIBRARY" not in os.environ:
    pytest.skip("the emulator was not built: make test-emulated", allow_module_level=True)

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
ERROR = 1e-5  # of normal queries and keys at the usual scale


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def attention_call(
    seed: int, *, Q: int, N: int, T: int | None = None, P: int = 2, H: int = 2, Dh: int = 8,
    dtype: torch.dtype = torch.float32,
) -> Call:  # fmt: skip
    return {
        "query": normal(seed, P, Q, H, Dh, dtype=dtype),
        "key": normal(seed + 1, P, N, H, Dh, dtype=dtype),
        "tokens": N if T is None else T,
        "scale": None,
    }


def oracle(call: Call) -> Tensor:
    query, key = call["query"].double(), call["key"].double()
    scale = query.shape[-1] ** -0.5 if call["scale"] is None else call["scale"]
    logits = torch.einsum("pqhd,pnhd->phqn", query, key) * scale
    return logits.softmax(-1).mean(2)[..., key.shape[1] - call["tokens"] :].float()


def attention(call: Call, threads: int = 32, seed: int = 1, **how: Any) -> Tensor:
    how = {"lock_step": seed % 2 == 0, "capability": 6, **how}
    schedule(seed, 1 + seed % 4, threads, **how)
    return emulated("cls_attention", **call)[0]


def select_call(seed: int, *, Q: tuple[int, int], N: int, T: int = 16, **sizes: Any) -> Call:
    """A picture with sub-images and one without; Q at the initial and at the final layer."""
    layers = [attention_call(seed + 2 * i, Q=Q[i], N=N, P=6, **sizes) for i in range(2)]
    call: Call = {"features": normal(seed + 9, 6, T, 3), "grids": [2, 2, 0, 0]}
    call |= {"budgets": [31, 5], "alpha": 0.5, "crops": None, "policy": "exact", "order": "raster"}
    call["merge"] = 1
    for name, layer in zip(("init", "final"), layers, strict=True):
        call[f"query_{name}"], call[f"key_{name}"] = layer["query"], layer["key"]
    return {**call, "scale": None}


def composed(call: Call, run: Any) -> tuple[Tensor, ...]:
    rows = {
        f"attn_{layer}": run("cls_attention", query=call[f"query_{layer}"],
                             key=call[f"key_{layer}"], tokens=call["features"].shape[1],
                             scale=call["scale"])[0]
        for layer in ("init", "final")
    }  # fmt: skip
    return run("select", **{name: call[name] for name in SELECTION}, **rows)


# Beside the oracle.


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("Dh", [1, 7, 8, 64, 72])
@pytest.mark.parametrize("N", [1, 33, 95, 97, 160, 161, 200])
def test_keys_and_widths(N: int, Dh: int, dtype: torch.dtype) -> None:
    call = attention_call(1, Q=19, N=N, T=max(1, N - 3), Dh=Dh, dtype=dtype)
    assert close(attention(call, seed=N + Dh), oracle(call), ERROR)


@pytest.mark.parametrize("N", [90, 130, 170])
@pytest.mark.parametrize("Q", [2, 12, 13, 16, 17, 48, 49, 96, 100, 769])
def test_numbers_of_queries(Q: int, N: int) -> None:
    call = attention_call(2, Q=Q, N=N, P=1, H=1, dtype=torch.float16)
    assert close(attention(call, seed=Q), oracle(call), ERROR)


@pytest.mark.parametrize("threads", [32, 64, 128, 256])
@pytest.mark.parametrize("N", [255, 257, 577])
def test_block_sizes(N: int, threads: int) -> None:
    call = attention_call(3, Q=33, N=N, P=1, Dh=16, dtype=torch.bfloat16)
    assert close(attention(call, threads), oracle(call), ERROR)


@pytest.mark.parametrize("N", [256, 729, 768, 769, 1025, 1280, 1281, 1300])
def test_blocks_of_the_gpu(N: int) -> None:
    call = attention_call(4, Q=18, N=N, T=N - 1, P=1, H=1, Dh=24, dtype=torch.float16)
    assert close(attention(call, 256), oracle(call), ERROR)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_stride_and_offset(dtype: torch.dtype) -> None:
    call = attention_call(5, Q=21, N=101, Dh=16, dtype=dtype)
    expected = oracle(call)
    aligned = attention(call)
    assert close(aligned, expected, ERROR)
    for offset in (call["key"].element_size(), 8, 16):
        layout = Layout(
            (1, 0, 2, 3), (1, 0, 2, 0), (1, 2, 1, 1), (0, 1, 0, 3), (False,) * 4, offset
        )
        moved = {**call, **{name: embed(call[name], layout) for name in ("query", "key")}}
        # The order of additions does not hang on how keys are read.
        assert same((attention(moved),), (aligned,))
    strided = {**call, "query": normal(6, 2, 84, 2, 16, dtype=dtype)[:, 1::4]}
    assert close(attention(strided), oracle(strided), ERROR)
    alike = {**call, "query": call["query"][:, :1].expand(2, 21, 2, 16)}
    assert close(attention(alike), oracle(alike), ERROR)


@pytest.mark.parametrize("N", [60, 130, 200])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["query", "key", "all-keys", "first-keys"])
def test_what_is_not_finite(where: str, value: float, N: int) -> None:
    call = attention_call(7, Q=20, N=N)
    if where == "query":
        call["query"][0, 17, 0, 0] = value
    elif where == "key":
        call["key"][1, N - 1, 1, 3] = value
    elif where == "all-keys":
        call["key"][..., 0] = value
    else:  # a whole chunk whose logits may all be -inf
        call["key"][:, :150, :, 0] = value
        call["query"][..., 0] = call["query"][..., 0].abs()
    assert close(attention(call), oracle(call), ERROR)


@pytest.mark.parametrize("scale", [0.0, -0.3, 30.0])
@pytest.mark.parametrize("N", [60, 130, 200])
def test_scale(N: int, scale: float) -> None:
    call = {**attention_call(8, Q=20, N=N), "scale": scale}
    assert close(attention(call), oracle(call), 2e-4)


# To the bit.


@pytest.mark.parametrize("N", [20, 130, 165])
@pytest.mark.parametrize("Q", [(3, 3), (1, 50), (50, 1), (20, 97)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_select_of_the_rows_is_select_qk(dtype: torch.dtype, Q: tuple[int, int], N: int) -> None:
    for seed in range(3):
        call = select_call(seed, Q=Q, N=N, dtype=dtype)
        schedule(seed, 1 + 2 * seed, 32, lock_step=seed == 1, capability=6 + 3 * (seed % 2))
        assert same(emulated("select_qk", **call), composed(call, emulated))


def test_rank_three_is_one_query() -> None:
    call = select_call(1, Q=(1, 1), N=40)
    flat = {**call, **{f"query_{name}": call[f"query_{name}"][:, 0] for name in ("init", "final")}}
    mixed = {**call, "query_init": flat["query_init"], "query_final": normal(3, 6, 5, 2, 8)}
    schedule(1, 4, 32, lock_step=False, capability=6)
    assert same(emulated("select_qk", **call), emulated("select_qk", **flat))
    assert same(emulated("select_qk", **mixed), composed(mixed, emulated))


@pytest.mark.parametrize("N", [60, 130, 200])
def test_a_head_does_not_know_the_others(N: int) -> None:
    call = attention_call(11, Q=50, N=N, P=3, H=3)
    whole = attention(call)
    for p, h in ((0, 0), (2, 1)):
        alone = {**call, "query": call["query"][p:, :, h:], "key": call["key"][p:, :, h:]}
        assert same((attention(alone),), (whole[p:, h:].contiguous(),))


@pytest.mark.parametrize("name", ["few", "many", "chunks"])
def test_any_schedule_gives_the_same_bits(name: str) -> None:
    """A missing barrier shows as another sum; Dh of one slice lets tiles follow closest."""
    N = {"few": 60, "many": 300, "chunks": 200}[name]
    threads = 64 if name == "many" else 32
    for Dh in (8, 40):
        call = attention_call(12, Q=50, N=N, P=1, Dh=Dh, dtype=torch.float16)
        first = attention(call, threads)
        assert close(first, oracle(call), ERROR)
        for seed in range(12):
            again = attention(call, threads, seed, streams=2)
            assert same((again,), (first,)), f"seed {seed}"


def test_jobs_in_any_order() -> None:
    call = select_call(5, Q=(97, 145), N=40)
    expected = composed(call, emulated)
    for seed in range(20):
        schedule(
            seed, 1 + seed % 5, 32, lock_step=seed % 2 == 0, capability=6, streams=1 + seed % 3
        )
        assert same(emulated("select_qk", **call), expected), f"seed {seed}"
