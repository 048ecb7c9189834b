# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels on the host, one program after the other: what is theirs alone.

Runs under TRITON_INTERPRET=1 (`make test-triton`), as test_parity.py, test_invariants.py and
test_bad_calls.py do there. test_triton_build.py has what is compiled, for which no GPU is needed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from callers import by_backend, reference
from cls_attention_calls import agree, seeded_attention_call
from strategies import Call, same, seeded_call, seeded_qk_call
from targets import INTERPRETED
from vectors import SIDE, Case, cases, published_call

import hired_kernels as hired
from hired_kernels import backends, geometry

if not INTERPRETED:
    pytest.skip("needs TRITON_INTERPRET=1: make test-triton", allow_module_level=True)

import triton
import triton.language as tl

from hired_kernels.triton_kernels import choose as choosing
from hired_kernels.triton_kernels import cls_attention_triton, select_triton, tickets
from hired_kernels.triton_kernels import pictures as packing

pytestmark = pytest.mark.usefixtures("dirty_memory", "one_thread")

interpreted = by_backend("triton")
MIXED = {"grids": ((2, 2), (0, 0), (1, 2)), "T": 16}


def a_call(op: str, seed: int, **sizes: Any) -> Call:
    return seeded_call(op, seed, **sizes) if op == "select" else seeded_qk_call(seed, **sizes)


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The arguments of every launch, and the counters as it leaves them."""
    seen, kernel = [], select_triton.select_kernel
    counters = torch.zeros(tickets.counters_of(64), dtype=torch.int32)

    class Recorder:
        def __getitem__(self, grid: tuple[int]) -> Any:
            def launch(*args: Any, **constants: Any) -> None:
                kernel[grid](*args, **constants)
                seen.append({"programs": grid[0], "counters": counters.clone(), **constants})

            return launch

    monkeypatch.setattr(select_triton, "select_kernel", Recorder())
    monkeypatch.setattr(select_triton, "counters_on", lambda device, words: counters)
    return seen


# Launches.


def assert_ready_for(launch: int, counters: torch.Tensor) -> None:
    """No ticket is drawn, and the set is zero that the launch takes, the first one being 0."""
    begin, words = tickets.SETS.value, tickets.set_of(len(counters))
    first, second = counters[begin : begin + words], counters[begin + words :]
    assert len(first) == len(second) == 256
    assert counters[:begin].tolist() == [-(2**31) if launch % 2 else 0, 0]
    assert not (second if launch % 2 else first).any()
    assert launch == 0 or (first if launch % 2 else second).any(), "what the one before counted"


@pytest.mark.parametrize("policy", ["exact", "published", "pooled"])
@pytest.mark.parametrize("op", ["select", "select_qk"])
def test_one_launch_a_call_that_leaves_the_counters_ready(op: str, policy: str, launches) -> None:
    call = a_call(op, 1, policy=policy, **MIXED)
    for calls in range(1, 5):
        assert same(interpreted(op, **call), reference(op, **call))
        assert len(launches) == calls
        assert_ready_for(calls, launches[-1]["counters"])


def test_launches_of_any_size_leave_the_counters_ready_for_any_other(launches) -> None:
    sizes = (9, 1, 2, 1, 9, 2, 9, 9, 1, 1, 2, 2, 9)
    for calls, B in enumerate(sizes, 1):
        call = seeded_call("select", calls, grids=(((1, 1), (0, 0)) * 5)[:B], T=4, H=1, D=1)
        assert same(interpreted("select", **call), reference("select", **call))
        assert_ready_for(calls, launches[-1]["counters"])
    assert {launch["PICTURES"] for launch in launches} == {1, 8, 64}


def test_cls_attention_is_one_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    grids, kernel = [], cls_attention_triton.cls_attention_kernel

    class Recorder:
        def __getitem__(self, grid: tuple[int]) -> Any:
            grids.append(grid)
            return kernel[grid]

    monkeypatch.setattr(cls_attention_triton, "cls_attention_kernel", Recorder())
    for P in (2, 0, 3):
        call = seeded_attention_call(1, P=P, H=2)
        assert agree(interpreted("cls_attention", **call), reference("cls_attention", **call))
    assert grids == [(4,), (6,)], "and none for no rows"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"T": 4097, "N": 4097}, "tokens: expected T <= 4096"),
        ({"N": 8193}, "key: expected N <= 8192"),
        ({"H": 65}, "query: expected H <= 64"),
        ({"Dh": 257}, "query: expected Dh <= 256"),
    ],
)
def test_limits_of_cls_attention_are_named(changes: dict[str, int], message: str) -> None:
    call = seeded_attention_call(1, P=1, **changes)
    with pytest.raises(RuntimeError, match=f"hired::cls_attention: {message} on the triton"):
        interpreted("cls_attention", **call)


@pytest.mark.parametrize(("B", "expected"), [(0, []), (1, [1]), (2, [8]), (9, [64]), (65, [64, 1])])
def test_launches_by_the_number_of_pictures(B: int, expected: list[int], launches) -> None:
    grids = ((0, 0), (1, 1))
    call = seeded_call("select", 2, grids=(grids * 33)[:B], T=4, H=1, D=1)
    assert same(interpreted("select", **call), reference("select", **call))
    assert [launch["PICTURES"] for launch in launches] == expected


def test_later_launches_of_select_qk_begin_where_the_first_ended(launches) -> None:
    call = seeded_qk_call(3, grids=((0, 0),) * 63 + ((1, 2),) * 3, T=4, H=1, Dh=2, D=1)
    assert same(interpreted("select_qk", **call), reference("select_qk", **call))
    assert len(launches) == 2


def test_what_is_compiled_in_knows_nothing_of_the_batch(launches) -> None:
    for seed, (grids, share) in enumerate(
        [(((2, 2),), 0.3), (((1, 2),), 0.9), (((3, 1),), 0.1), (((0, 0),), 0.5)]
    ):
        interpreted("select", **seeded_call("select", seed, grids=grids, T=16, share=share))
    constants = [
        {k: v for k, v in launch.items() if k not in ("programs", "counters")}
        for launch in launches
    ]
    assert len(constants) == 4
    assert all(constant == constants[0] for constant in constants)


def test_a_call_that_keeps_nothing_still_counts() -> None:
    call = seeded_call("select", 4, share=0.0, **MIXED)
    tokens, indices, counts = interpreted("select", **call)
    assert len(tokens) == len(indices) == 0
    assert counts.tolist() == [0] * 9


# The integers.


@triton.jit
def unpack(words, out):
    box, budgets, place = words
    top, bottom, left, right = packing.box_of(box)
    R, C = packing.grid_of(box, budgets)
    tl.store(out, R)
    tl.store(out + 1, C)
    tl.store(out + 2, top)
    tl.store(out + 3, bottom)
    tl.store(out + 4, left)
    tl.store(out + 5, right)
    tl.store(out + 6, packing.first_partition_of(budgets))
    tl.store(out + 7, packing.first_row_of(place))
    tl.store(out + 8, packing.output_rows_of(budgets))
    tl.store(out + 9, packing.full_budget_of(place))
    tl.store(out + 10, packing.rest_of(budgets))


# 64 pictures of 65 partitions of 4096 patches, all kept: no number can be larger.
LARGEST = packing.Picture(
    R=64, C=64, top=4096, bottom=4096, left=4096, right=4096, first_partition=64 * 65,
    first_row=64 * 65 * 4096, output_rows=65 * 4096, full_budget=4096, rest=64 * 4096,
)  # fmt: skip


@pytest.mark.parametrize("field", [*packing.Picture._fields, "none", "all"])
def test_a_packed_picture_is_unpacked_as_it_was(field: str) -> None:
    zero = packing.Picture(*[0] * len(LARGEST))
    picture = LARGEST if field == "all" else zero
    if field in LARGEST._fields:
        picture = zero._replace(**{field: getattr(LARGEST, field)})
    words = packing.pack(picture)
    assert all(2**31 < word < 2**63 and word % 16 not in (0,) and word % 2 for word in words)
    out = torch.full((len(picture),), -1, dtype=torch.int64)
    unpack[(1,)](words, out)
    assert tuple(out.tolist()) == picture


@pytest.mark.parametrize("policy", ["exact", "published"])
def test_the_plan_is_that_of_the_native_code(policy: str) -> None:
    native = pytest.importorskip("hired_kernels._C")
    grids, T = [2, 2, 0, 0, 1, 2, 3, 1], 144
    crops = [3, 20, 0, 24, 0, 0, 0, 0, 0, 12, 5, 5, 0, 36, 1, 11]
    for boxes in (None, crops):
        for alpha in (0.0, 0.3, 0.5, 1.0):
            for budget in (0, 1, 57, 144, 300, 10**4, 2**62):
                if policy == "published" and alpha == 1.0 and budget > T:
                    continue  # refused: there would be nothing to weigh by
                budgets = [budget, budget // 2, budget, 7]
                ours = select_triton.plan(T, grids, budgets, alpha, boxes, policy)
                theirs = native.plan(grids, budgets, alpha, boxes, policy, "partition", 13, T)
                assert [
                    {name: getattr(picture, name) for name in entry}
                    for picture, entry in zip(ours, theirs, strict=True)
                ] == theirs


# The choice.


@triton.jit
def choose_of(keys, kept, k, BLOCK_T: tl.constexpr):
    t = tl.arange(0, BLOCK_T)
    chosen = choosing.choose(tl.load(keys + t).to(tl.uint32, bitcast=True), k)
    tl.store(kept + t, chosen.to(tl.int32))


KEYS = {  # of n patches: what takes one step and four, ends early, or leaves ties
    "any": lambda n: torch.randint(1, 2**32, (n,)),
    "close": lambda n: 0xBC000000 + torch.randint(300, (n,)),
    "sums": lambda n: torch.rand(n).view(torch.int32).long() + 2**31,
    "few": lambda n: 1 + torch.randint(4, (n,)) * 0x20000000,
    "lowest-and-highest": lambda n: 1 + torch.randint(2, (n,)) * 0xFFFFFFFE,
    "powers": lambda n: 1 << torch.randint(32, (n,)),
    "nan": lambda n: 1 + torch.randint(2, (n,)) * torch.randint(2**20, (n,)),
    "same": lambda n: torch.full((n,), 7),
}


@pytest.mark.parametrize("name", KEYS)
def test_the_largest_are_chosen_of_equal_ones_the_first(name: str) -> None:
    torch.manual_seed(1)
    for n, block in ((1, 32), (20, 32), (64, 64), (300, 512)):
        keys = torch.zeros(block, dtype=torch.int64)  # what is excluded
        keys[torch.randperm(block)[:n]] = KEYS[name](n)
        for k in {0, 1, n // 2, n - 1, n}:
            expected = torch.zeros(block, dtype=torch.int32)
            expected[torch.argsort(keys, descending=True, stable=True)[:k]] = 1
            kept = torch.full_like(expected, -1)
            choose_of[(1,)](keys.to(torch.uint32).view(torch.int32), kept, k, block)
            assert torch.equal(kept, expected)


# Data.


@pytest.mark.parametrize("T", [2304, 4096])
@pytest.mark.parametrize("policy", ["exact", "published"])
def test_large_partitions(T: int, policy: str) -> None:
    call = seeded_call("select", 5, grids=((1, 2),), T=T, H=2, D=3, policy=policy)
    assert same(interpreted("select", **call), reference("select", **call))


def test_more_sub_images_than_a_warp_has_threads() -> None:
    call = seeded_call("select", 6, grids=((4, 16),), T=64, H=1, D=1, crops=[1, 30, 2, 125])
    assert same(interpreted("select", **call), reference("select", **call))


RECORDED = [case for case in cases() if case.crash is None]


def assert_keeps_what_was_recorded(case: Case) -> None:
    layouts = [
        geometry.Layout(*size, grid, None, SIDE)
        for size, grid in zip(case.sizes, case.grids, strict=True)
    ]
    grids, crops = geometry.published_layout(layouts)
    flat = [number for crop in crops for number in crop]
    _, indices, counts = interpreted("select", **published_call(case, grids, crops=flat))
    assert indices[indices >= 0].tolist() == case.order.tolist()
    assert [c.sum().item() for c in counts.split(case.num_partitions)] == case.feature_lens


@pytest.mark.whole_list
@pytest.mark.parametrize("case", RECORDED, ids=lambda case: case.id)
def test_keeps_what_the_published_code_kept(case: Case) -> None:
    assert_keeps_what_was_recorded(case)


def test_keeps_what_the_published_code_kept_of_one_picture() -> None:
    assert_keeps_what_was_recorded(next(case for case in RECORDED if len(case.sizes) == 1))


# PyTorch, and the table.


@pytest.mark.parametrize("op", ["select", "select_qk"])
def test_compile_takes_it_for_any_other(op: str) -> None:
    call = a_call(op, 7, **MIXED)

    def keep(tensors: dict[str, torch.Tensor], flags: dict[str, Any]) -> tuple[torch.Tensor, ...]:
        tokens, indices, counts = getattr(torch.ops.hired, op)(**tensors, **flags)
        return tokens * 2, indices, counts

    tensors = {k: v for k, v in call.items() if isinstance(v, torch.Tensor)}
    flags = {k: v for k, v in call.items() if k not in tensors}
    torch._dynamo.reset()
    with hired.backend("triton"):
        results = torch.compile(keep, fullgraph=True, backend="aot_eager")(tensors, flags)
    tokens, indices, counts = reference(op, **call)
    assert same(results, (tokens * 2, indices, counts))


def test_gradients() -> None:
    call = seeded_call("select", 8, **MIXED)
    gradients = []
    for caller in (interpreted, reference):
        features = call["features"].clone().requires_grad_()
        tokens, _, _ = caller("select", **{**call, "features": features})
        weights = torch.arange(tokens.numel()).view_as(tokens).to(tokens)
        gradients.append(torch.autograd.grad(tokens, features, weights)[0])
    assert torch.equal(*gradients)


def test_interpreted_it_serves_whoever_asks_and_nobody_else() -> None:
    rows = {row.name: row for row in backends.table()}
    assert rows["triton"].serves("cpu")
    assert not rows["triton"].serves("cuda")
    assert backends.active("cpu") != "triton"
    with hired.backend("triton"):
        assert backends.active("cpu") == "triton"


def answer(code: str, **environment: str) -> Any:
    """What a process of its own prints, as JSON."""
    given = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "HIRED_BACKEND")}
    result = subprocess.run(
        [sys.executable, "-c", code], env={**given, **environment}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


CALL = """
import json, sys, torch, hired_kernels as hired
kernels = "hired_kernels.triton_kernels.select_triton"
before = [name in sys.modules for name in ("triton", kernels)]
row = torch.rand(1, 1, 4)
hired.select(torch.rand(1, 4, 1), row, row, grids=[(0, 0)], budget=2)
print(json.dumps([before, [name in sys.modules for name in ("triton", kernels)]]))
"""


def test_it_is_imported_by_the_first_call_that_needs_it() -> None:
    assert answer(CALL) == [[False, False], [False, False]]
    asked = answer(CALL, TRITON_INTERPRET="1", HIRED_BACKEND="triton")
    assert asked == [[False, False], [True, True]]


CARDS = """
import json, sys, torch
torch.cuda.is_available = lambda: True
torch.cuda.device_count = lambda: 1
Card = type("Card", (), {"major": 6, "minor": 1, "name": "Tesla P40"})
torch.cuda.get_device_properties = lambda device: Card
from hired_kernels import backends, geometry
row = {row.name: row for row in backends.table()}["triton"]
print(json.dumps([row.available, row.why, "triton" in sys.modules]))
"""


def test_on_pascal_it_is_neither_there_nor_imported() -> None:
    why = "Triton takes sm_75 or later, and the card is Tesla P40 (sm_61)"
    assert answer(CARDS) == [False, why, False]
    newer = CARDS.replace('"major": 6, "minor": 1', '"major": 7, "minor": 5')
    assert answer(newer) == [True, "", False]
