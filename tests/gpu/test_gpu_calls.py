# SPDX-License-Identifier: Apache-2.0
"""`cuda` and `triton` on what calls may be: large, of any dtype and alignment, bad, PyTorch's.

Parity over random calls is the business of test_parity.py, under HIRED_TEST_TARGET=cuda.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from bad_calls import BAD_CALLS
from call_tables import BadCall, GoodCall, valid_call
from callers import Caller, callers, fake, operator, reference
from cls_attention_calls import BEYOND_LIMITS, composed, seeded_attention_call, split
from good_calls import GOOD_CALLS
from gpu_cases import BACKEND, CASES, Results, assert_right, case, on_gpu, plain_memory, right, run
from gpu_short_list import MANY
from strategies import FEATURE_DTYPES, random_bits, seeded_call, seeded_qk_call
from targets import to_gpu
from torch import Tensor

import hired_kernels as hired
from hired_kernels import arguments

pytestmark = pytest.mark.usefixtures("dirty_memory", "one_thread")

OPS = ("select", "select_qk")

# Sizes, alignments, dtypes.

LARGE = {
    "T-4096": lambda: seeded_call("select", 1, grids=((2, 2), (0, 0)), T=4096, H=3, D=2),
    "T-4096-published": lambda: seeded_call(
        "select", 2, grids=((2, 2),), T=4096, policy="published", crops=[5, 127, 0, 100]
    ),
    "64-sub-images": lambda: seeded_call("select", 3, grids=((8, 8),), T=576),
    "64-columns": lambda: seeded_call("select", 4, grids=((1, 64), (64, 1)), T=1024, H=1),
    "64-sub-images-T-4096": lambda: seeded_call("select", 5, grids=((1, 64),), T=4096, H=1, D=1),
    "64-heads": lambda: seeded_call("select", 6, T=576, H=64),
    "D-8192": lambda: seeded_call("select", 7, D=8192),
    "600-pictures": lambda: seeded_call("select", 8, grids=MANY * 9, H=1),
    "4096-partitions": lambda: seeded_call("select", 9, grids=((0, 0),) * 4096, T=4, H=1, D=1),
    "qk-T-4096": lambda: seeded_qk_call(10, grids=((0, 0),), T=4096, share=0.002, H=2),
    "qk-64-sub-images": lambda: seeded_qk_call(20, grids=((8, 8),), T=16, H=2),
    "qk-Dh-256": lambda: seeded_qk_call(30, Dh=256, H=4, dtype=torch.bfloat16),
    "qk-64-heads": lambda: seeded_qk_call(40, H=64, Dh=16, dtype=torch.float16),
    "qk-N-8192": lambda: seeded_qk_call(50, grids=((0, 0),), N=8192, Dh=256, H=2),
    "qk-600-pictures": lambda: seeded_qk_call(60, grids=((0, 0),) * 600, T=4, H=1),
}  # fmt: skip


@pytest.mark.parametrize("name", LARGE)
def test_large_calls(name: str) -> None:
    assert_right("select_qk" if name.startswith("qk-") else "select", LARGE[name]())


LARGE_ATTENTION = {
    "T-4096": {"P": 2, "T": 4096, "H": 2},
    "N-8192": {"P": 2, "T": 4000, "N": 8192, "Dh": 256, "dtype": torch.bfloat16},
    "64-heads": {"P": 4, "H": 64, "Dh": 64, "dtype": torch.float16},
    "100,000-rows": {"P": 100_000, "T": 4, "H": 1},
}


@pytest.mark.parametrize("name", LARGE_ATTENTION)
def test_large_attention(name: str) -> None:
    assert_right("cls_attention", seeded_attention_call(1, **LARGE_ATTENTION[name]))


@pytest.mark.parametrize(("changes", "message"), BEYOND_LIMITS)
def test_limits_of_attention_are_named(changes: dict[str, int], message: str) -> None:
    with pytest.raises(RuntimeError, match=f"{message} on the {BACKEND} backend"):
        run("cls_attention", on_gpu(seeded_attention_call(1, P=1, **changes)))


@pytest.mark.parametrize("dtype", arguments.SCORE_DTYPES, ids=str)
@pytest.mark.parametrize("before", range(9))
def test_select_of_rows_is_select_qk_wherever_keys_begin(before: int, dtype: torch.dtype) -> None:
    """One layer here, the other there: whether a key is read in pieces is each layer's own."""
    call = on_gpu(seeded_call("select_qk", before, T=576, H=4, Dh=64, D=8, dtype=dtype))
    for name in ("query_init", "key_init"):
        value = call[name]
        buffer = torch.full((value.numel() + 9,), math.nan, dtype=dtype, device="cuda")
        call[name] = buffer[before : before + value.numel()].view(value.shape).copy_(value)
    assert all(map(torch.equal, composed(operator, call), run("select_qk", call)))
    part = {"query": call["query_init"], "key": call["key_init"], "tokens": 576, "scale": None}
    assert torch.equal(split(operator, part, 2), run("cls_attention", part)[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"T": 4225}, "features: expected T <= 4096"),
        ({"H": 65}, "expected H <= 64"),
        ({"grids": ((13, 5),)}, "grids: expected R * C <= 64"),
        ({"Dh": 257}, "query_final: expected Dh <= 256"),
        ({"N": 8193}, "key_final: expected N <= 8192"),
        ({"Q": 8193}, "query_final: expected Q <= 8192"),
    ],
)
def test_limits_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RuntimeError) as error:
        run("select_qk", on_gpu(seeded_call("select_qk", 1, **changes)))
    assert message in str(error.value)
    assert str(error.value).split(",")[0].endswith(f"on the {BACKEND} backend")


@pytest.mark.parametrize("D", [1, 3, 24, 1024])
@pytest.mark.parametrize("dtype", FEATURE_DTYPES, ids=str)
def test_rows_of_any_dtype_begin_anywhere(dtype: torch.dtype, D: int) -> None:
    generator = torch.Generator().manual_seed(D)
    call = seeded_call("select", 1)
    for before in range(9):
        buffer = random_bits((9, 16, D + 9), dtype, generator)
        assert_right("select", {**call, "features": buffer[:, :, before : before + D]})


@pytest.mark.parametrize("dtype", arguments.SCORE_DTYPES, ids=str)
@pytest.mark.parametrize("op", OPS)
def test_scores_begin_anywhere(op: str, dtype: torch.dtype) -> None:
    call = seeded_call(op, 2, dtype=dtype) if op == "select" else seeded_qk_call(2, dtype=dtype)
    for before in range(9):
        views = {}
        for name, value in call.items():
            if isinstance(value, Tensor) and name != "features":
                buffer = torch.full((*value.shape[:-1], value.shape[-1] + 9), math.nan, dtype=dtype)
                views[name] = buffer[..., before : before + value.shape[-1]].copy_(value)
        assert_right(op, {**call, **views})


# PyTorch.


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
@pytest.mark.parametrize("op", OPS)
def test_compiled(op: str, mode: str) -> None:
    pytest.importorskip("triton")
    if torch.cuda.get_device_capability() < (7, 0):
        pytest.skip("Triton does not know this GPU")

    budgets = case(op)[1]["budgets"]

    def keep(tensors: dict[str, Tensor]) -> Results:
        kept = getattr(hired, op)(**tensors, grids=[(2, 2), (0, 0), (1, 2)], budget=budgets)
        return kept.tokens * 2, kept.indices, kept.counts

    torch._dynamo.reset()
    compiled = torch.compile(keep, fullgraph=True, mode=mode)
    with plain_memory():
        for seed in range(1, 5):
            _, call = CASES[op](seed)
            torch.compiler.cudagraph_mark_step_begin()
            results = compiled({k: to_gpu(v) for k, v in call.items() if isinstance(v, Tensor)})
            tokens, indices, counts = reference(op, **call)
            assert right(results, (tokens * 2, indices, counts))


@pytest.mark.parametrize("name", ["select", "select-published", "select_qk"])
def test_opcheck(name: str) -> None:
    op, call, _ = case(name)
    tensors = [value for value in call.values() if isinstance(value, Tensor)]
    tensors[0] = tensors[0].clone().requires_grad_()
    flags = {name: call[name] for name in ("crops", "policy", "order")}
    with plain_memory():
        torch.library.opcheck(
            getattr(torch.ops.hired, op).default,
            (*tensors, call["grids"], call["budgets"], call["alpha"]), flags,
        )  # fmt: skip


@pytest.mark.parametrize("name", ["select", "select-published", "select_qk", "select_qk-published"])
def test_gradients(name: str) -> None:
    op, call = CASES[name](1)
    gradients = []
    for arguments_ in (call, on_gpu(call)):
        features = arguments_["features"].detach().requires_grad_()
        tokens, indices, _ = run(op, {**arguments_, "features": features})
        weights = torch.arange(tokens.numel(), device=tokens.device).view_as(tokens).to(tokens)
        weights[indices < 0] = math.nan
        gradients.append(torch.autograd.grad(tokens, features, weights)[0].cpu())
    assert torch.equal(*gradients)


def test_opcheck_of_attention() -> None:
    _, call, _ = case("cls_attention")
    with plain_memory():
        torch.library.opcheck(
            torch.ops.hired.cls_attention.default, (call["query"], call["key"], call["tokens"])
        )


# The tables of bad and of extreme calls.

CUDA_CALLERS = callers("cuda")
by_id = {"ids": lambda call: call.id}


@pytest.mark.parametrize("caller", [*CUDA_CALLERS.values(), fake], ids=[*CUDA_CALLERS, "fake"])
@pytest.mark.parametrize("call", BAD_CALLS, **by_id)
def test_bad_call(call: BadCall, caller: Caller) -> None:
    with pytest.raises(RuntimeError) as error:
        caller(call.op, **on_gpu(call.arguments()))
    assert str(error.value) == call.message("cuda")


@pytest.mark.parametrize("caller", CUDA_CALLERS.values(), ids=CUDA_CALLERS)
@pytest.mark.parametrize("call", GOOD_CALLS, **by_id)
def test_good_call(call: GoodCall, caller: Caller) -> None:
    arguments_ = call.arguments()
    assert right(caller(call.op, **on_gpu(arguments_)), reference(call.op, **arguments_))


@pytest.mark.parametrize("op", [*OPS, "cls_attention"])
def test_tensors_on_two_devices(op: str) -> None:
    call = valid_call(op)
    for name in [name for name, value in call.items() if isinstance(value, Tensor)]:
        for mixed in ({**call, name: call[name].cuda()}, {**on_gpu(call), name: call[name]}):
            with pytest.raises(RuntimeError) as expected:
                reference(op, **mixed)
            with pytest.raises(RuntimeError) as error:
                run(op, mixed)
            assert str(error.value) == str(expected.value)
