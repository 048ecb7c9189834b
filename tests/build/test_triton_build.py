# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels compiled for GPUs that need not be there: by the package's own launcher, for
every target, and how often.
"""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from builds import tool

from hired_kernels import backends

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("TRITON_INTERPRET=1 compiles nothing", allow_module_level=True)
if torch.cuda.is_available():
    pytest.skip(
        "compiles for the GPU that is here: HIRED_TEST_TARGET=triton", allow_module_level=True
    )

triton_report = tool("triton_report")
kernel_report = tool("kernel_report")

from hired_kernels.triton_kernels import cls_attention_triton, select_triton  # noqa: E402


@pytest.fixture(autouse=True)
def own_cache(shared_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the user's; what one worker has compiled no other compiles again."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(shared_folder / "triton"))


# For every GPU the kernels that hold most of the code. The others where 16-bit inputs are widened
# and where not, and with 64 lanes and 32. `make kernel-report`, by hand, looks at all of all.
MOST = ["select_qk<float16, exact>", "select_qk<float16, queries>"]
OTHERS = ["select<float16, exact>", "select<float16, pooled>", "select_qk<float32, queries>"]
OTHERS += ["cls_attention<float16>", "cls_attention<float16, queries>"]
WAYS = ["sm_75", "sm_90", "gfx90a", "gfx1100"]
SPILLING_NOWHERE = [(gpu, name) for gpu in triton_report.TARGETS for name in MOST]
SPILLING_NOWHERE += [(gpu, name) for gpu in WAYS for name in OTHERS]


@pytest.mark.parametrize(("gpu", "name"), SPILLING_NOWHERE)
def test_compiles_without_spilling(gpu: str, name: str) -> None:
    kernel = kernel_report.triton_kernel(name, gpu)
    assert (kernel.name, kernel.gpu) == (name, gpu)
    few = 160 if gpu == "gfx1100" else 128
    assert kernel.registers <= (256 if "queries" in name and gpu.startswith("gfx") else few)
    assert kernel.shared <= 48 * 1024
    assert kernel.spill_stores == kernel.spill_loads == 0
    assert not list(kernel.faults())


LARGE = {
    "2304": {"T": 2304},
    "2304 pooled": {"T": 2304, "policy": "pooled"},
    "2304 merged": {"T": 2304, "merge": 2},
    "4096": {"T": 4096},
    "64 pictures": {"grids": (1, 2) * 64},
}


@pytest.mark.parametrize(
    ("op", "name"),
    [("select", "2304 pooled"), ("select", "4096")] + [("select_qk", name) for name in LARGE],
)
def test_large_calls_hardly_spill(op: str, name: str) -> None:
    changes: dict[str, Any] = LARGE[name]
    with triton_report.compiling("sm_90") as compiled:
        getattr(select_triton, op)(**triton_report.call(op, torch.float16, **changes))
    log = triton_report.ptxas_log(compiled[0].asm["ptx"], 90)
    (kernel,) = kernel_report.read_log("triton_kernels", log)
    assert kernel.registers * 32 * compiled[0].metadata.num_warps <= 65536
    most = 64 if changes.get("T") == 4096 else 0  # bytes; on four warps they were 1,260
    assert max(kernel.spill_stores, kernel.spill_loads) <= most


@pytest.mark.parametrize("gpu", ["sm_80", "sm_90"])
def test_a_row_of_scores_is_fetched_in_one_trip(gpu: str) -> None:
    """All loads of a thread, five patches of 16 heads, before the first is looked at."""
    sass = triton_report.compile_call("select<float16, exact>", gpu).asm["sass"]
    found = re.findall(r"\b(?:(LDG\.E\.U16)|HADD2\.F32)\b", sass)
    order = "".join("L" if load else "u" for load in found)
    assert re.fullmatch("(L{80}u+){2}", order), "for the budgets, and for a choice"


@pytest.mark.parametrize("gpu", ["sm_80", "sm_90"])
def test_tokens_are_on_their_way_while_their_places_are_worked_out(gpu: str) -> None:
    sass = triton_report.compile_call("select<float16, exact>", gpu).asm["sass"]
    after = sass[sass.rindex("LDG.E.STRONG.GPU") :]  # the last wait: for the choices
    found = re.findall(r"\b(?:(LDG\.E\.128)|(BAR\.SYNC)|STG\.E\.128)\b", after)
    order = "".join("L" if load else "|" if barrier else "s" for load, barrier in found)
    assert re.match(r"\|LLLL\|{8}s", order), "barriers: one of the wait, eight of the places"


@pytest.mark.parametrize(
    ("beyond", "wide", "bytewise"), [(0, True, False), (2, False, False), (1, False, True)]
)
def test_tokens_are_read_as_wide_as_their_address_allows(
    beyond: int, wide: bool, bytewise: bool
) -> None:
    call = triton_report.call("select", torch.float16)
    storage = torch.zeros(2 * 5 * 1024 + 16, dtype=torch.uint8)
    features = torch.frombuffer(storage.numpy(), dtype=torch.float16, offset=beyond, count=5 * 1024)
    call["features"] = features.view(5, 1, 1024).expand(5, 576, 1024)
    with triton_report.compiling("sm_90") as compiled:
        select_triton.select(**call)
    ptx = compiled[0].asm["ptx"]
    assert ("ld.global.v4.b32" in ptx) == wide
    assert ("ld.global.b8" in ptx) == bytewise


@pytest.mark.parametrize("op", ["select", "select_qk"])
def test_twenty_budgets_and_five_grids_are_compiled_once(op: str) -> None:
    grids = [(2, 2), (1, 2), (3, 1), (0, 0), (1, 4)]
    with triton_report.compiling("sm_90") as compiled:
        for grid in grids:
            for budget in range(1, 2880, 144):
                call = triton_report.call(op, torch.float16, grids=grid, budget=budget)
                getattr(select_triton, op)(**call)
    assert len(compiled) == 100
    assert len({id(kernel) for kernel in compiled}) == 1


def test_alignment_that_changes_with_the_batch_compiles_nothing() -> None:
    with triton_report.compiling("sm_90") as compiled:
        for grids in ((1, 1), (1, 2), (1, 3), (2, 2), (1, 4), (2, 3) * 60):
            call = triton_report.call("select_qk", torch.float16, grids=grids, T=25)
            select_triton.select_qk(**call)
    assert len(compiled) == 6
    assert len({id(kernel) for kernel in compiled}) == 2, "one picture, and up to 64"


def test_attention_is_compiled_once_for_all_numbers_of_rows() -> None:
    with triton_report.compiling("sm_90") as compiled:
        for P in (1, 2, 5, 8, 16, 65):
            call = triton_report.call("cls_attention", torch.float16, grids=(0, 0) * P)
            cls_attention_triton.cls_attention(**call)
    assert len(compiled) == 6
    assert len({id(kernel) for kernel in compiled}) == 1


def test_the_largest_attention_hardly_spills() -> None:
    with triton_report.compiling("sm_90") as compiled:
        call = triton_report.call("cls_attention", torch.float16, T=4096)
        cls_attention_triton.cls_attention(**call)
    log = triton_report.ptxas_log(compiled[0].asm["ptx"], 90)
    (kernel,) = kernel_report.read_log("triton_kernels", log)
    assert kernel.spill_stores == kernel.spill_loads == 0


def reductions(kernel: Any) -> Counter[tuple]:
    """Of each sum and maximum of a head: its size, and which thread holds what along its axis, the
    last: the order in which numbers are added up. Those of two dimensions are of other phases."""
    code = kernel.asm["ttgir"]
    layouts = dict(re.findall(r"^(#\w+) = (.*)$", code, re.MULTILINE))
    found: Counter[tuple] = Counter()
    for shape, name in re.findall(r"\}\) : \(tensor<([\dx]+)xf32, (#\w+)>\) ->", code):
        sizes = [int(size) for size in shape.split("x")]
        if len(sizes) != 2:
            owners = re.findall(r"(?:Thread|Warp|CTA) = \[(?:\d+, )*(\d+)\]", layouts[name])
            found[(*(size for size in sizes if size > 1), *owners)] += 1
    return found


ARITHMETIC = re.compile(r"\s*(?:@!?%\w+\s+)?((?:fma|mul|add|sub|div|max)\.[\w.]*f32\w*|shfl\.\S+)")


def arithmetic(kernel: Any) -> Counter[tuple[str, ...]]:
    """What is computed between jumps, instruction by instruction: which products are fused, too.

    Where two numbers may go through one instruction (sm_100), it counts as one, packed or not.
    """
    blocks: list[list[str]] = [[]]
    for line in kernel.asm["ptx"].splitlines():
        if line.startswith("$") or re.match(r"\s*(?:@!?%\w+\s+)?bra", line):
            blocks.append([])
        if found := ARITHMETIC.match(line):
            blocks[-1].append(found[1].removesuffix("x2"))
    return Counter(tuple(block) for block in blocks if block)


def at(beyond: int, *shape: int, dtype: torch.dtype) -> torch.Tensor:
    """Zeros that begin so many elements beyond an address that is a multiple of 64."""
    return torch.zeros(math.prod(shape) + beyond, dtype=dtype)[beyond:].view(shape)


# T, N, H, Dh, elements that the initial and the final layer begin beyond, D, dtype. The first is in
# triton_report.CALLS, too, and compiled for every GPU as it is.
HEADS = {
    "llava-next": (576, 577, 16, 64, (0, 0), 1024, torch.float16),
    "float32": (576, 577, 6, 64, (0, 0), 1024, torch.float32),
    "Dh-72": (2304, 2305, 6, 72, (0, 0), 64, torch.bfloat16),
    "init-unaligned": (576, 577, 6, 64, (1, 0), 1024, torch.float16),
    "final-unaligned": (576, 577, 6, 64, (0, 1), 1024, torch.float16),
    "query-as-long-as-a-row": (196, 200, 6, 256, (0, 1), 64, torch.float16),
    "keys-shaped-as-tokens": (25, 26, 6, 64, (1, 1), 64, torch.float16),
}


# The usual shape for every GPU, the others for one of each way that the compiler goes.
PAIRS = [(gpu, "llava-next") for gpu in triton_report.TARGETS]
PAIRS += [(gpu, name) for name in list(HEADS)[1:] for gpu in ("sm_75", "sm_90", "gfx942")]


@pytest.mark.parametrize(("gpu", "name"), PAIRS)
def test_heads_are_computed_as_select_qk_computes_them(gpu: str, name: str) -> None:
    """So that `select` of the rows is `select_qk` to the bit, as far as no GPU is needed to say."""
    T, N, H, Dh, begins, D, dtype = HEADS[name]
    layers = [
        (at(beyond, 5, H, Dh, dtype=dtype), at(beyond, 5, N, H, Dh, dtype=dtype))
        for beyond in begins
    ]
    with triton_report.compiling(gpu) as compiled:
        for layer in layers:
            cls_attention_triton.cls_attention(*layer, T)
        features = torch.zeros(5, T + 1, D, dtype=torch.float16)[:, 1:]
        select_triton.select_qk(features, *layers[0], *layers[1], [2, 2], [T])
    *rows, whole = compiled
    assert {kernel.metadata.num_warps for kernel in rows} == {whole.metadata.num_warps}
    assert reductions(rows[0]) + reductions(rows[1]) == reductions(whole)
    if triton_report.TARGETS[gpu].backend == "cuda":
        for kernel in rows:
            assert arithmetic(kernel)
            assert not arithmetic(kernel) - arithmetic(whole)


@pytest.mark.parametrize(("Dh", "copied"), [(64, False), (64, True), (8, False), (72, True)])
@pytest.mark.parametrize("ranks", [2, 4])
def test_heads_of_a_rank_are_computed_as_those_of_all(ranks: int, Dh: int, copied: bool) -> None:
    query, key = at(0, 5, 4, Dh, dtype=torch.float16), at(0, 5, 577, 4, Dh, dtype=torch.float16)
    part = query[:, : 4 // ranks], key[:, :, : 4 // ranks]
    if copied:
        part = part[0].contiguous(), part[1].contiguous()
    features = torch.zeros(5, 576, 1024, dtype=torch.float16)
    with triton_report.compiling("sm_90") as compiled:
        cls_attention_triton.cls_attention(query, key, 576)
        cls_attention_triton.cls_attention(*part, 576)
        select_triton.select_qk(features, *part, *part, [0, 0] * 5, [5] * 5)
    whole, rank, selecting = compiled
    assert reductions(rank) == reductions(whole)
    assert arithmetic(rank) == arithmetic(whole)
    assert reductions(selecting) == reductions(whole) + reductions(whole)


# Many queries.


def test_numbers_of_queries_are_compiled_once() -> None:
    """None and one are another kernel, and so are layers of which only one has many."""
    with triton_report.compiling("sm_90") as compiled:
        for Q, budget, grids in (
            (2, 9, (2, 2)),
            (5, 64, (1, 2)),
            (577, 99, (3, 1)),
            (8192, 1, (1, 1)),
        ):
            call = triton_report.call("select_qk", torch.float16, Q=Q, budget=budget, grids=grids)
            for layer in ("init", "final"):  # every other query, as a view
                call[f"query_{layer}"] = call[f"query_{layer}"].repeat(1, 2, 1, 1)[:, ::2]
            select_triton.select_qk(**call)
    assert len({id(kernel) for kernel in compiled}) == 1
    with triton_report.compiling("sm_90") as rows:
        for Q in (2, 5, 576, 8192):
            call = triton_report.call("cls_attention", torch.float16, Q=Q)
            cls_attention_triton.cls_attention(**call)
    assert len({id(kernel) for kernel in rows}) == 1


def tile_sums(kernel: Any) -> Counter[tuple[str, ...]]:
    """Of each sum and maximum of a tile of queries and keys: its shape and which thread holds what,
    as the tensor cores leave it."""
    code = kernel.asm["ttgir"]
    layouts = dict(re.findall(r"^(#\w+) = (.*)$", code, re.MULTILINE))
    found = re.findall(r"\}\) : \(tensor<(\d+x\d+)xf32, (#\w+)>\) -> tensor<(\d+)xf32", code)
    return Counter((shape, layouts[name], kept) for shape, name, kept in found)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("gpu", ["sm_75", "sm_80", "sm_90", "sm_100", "gfx942", "gfx1100"])
def test_queries_are_added_up_as_select_qk_does(gpu: str, dtype: torch.dtype) -> None:
    with triton_report.compiling(gpu) as compiled:
        for op, launch in triton_report.OPERATORS.items():
            if op != "select":
                launch(**triton_report.call(op, dtype, Q=576))
        rank = triton_report.call("cls_attention", dtype, Q=576)
        cls_attention_triton.cls_attention(
            rank["query"][:, :, :1], rank["key"][:, :, :1].contiguous(), 576
        )
    whole, rows, alone = compiled
    assert tile_sums(rows)
    assert tile_sums(whole) == tile_sums(rows) + tile_sums(rows), "of either layer"
    assert tile_sums(alone) == tile_sums(rows)


@pytest.mark.parametrize("gpu", ["sm_80", "sm_90", "sm_100"])
def test_products_are_float32_sums_of_what_is_given(gpu: str) -> None:
    """Tensor cores for 16-bit inputs alone, with float32 accumulators."""
    narrow = triton_report.compile_call("cls_attention<float16, queries>", gpu).asm["ptx"]
    cores = set(re.findall(r"(?:wgmma\.mma_async|mma\.sync|tcgen05\.mma)\S*", narrow))
    assert cores
    assert all(".f32.f16.f16" in core or "kind::f16" in core for core in cores)
    wide = triton_report.compile_call("cls_attention<float32, queries>", gpu).asm["ptx"]
    assert not re.search(r"mma|tf32", wide)
    for ptx in (narrow, wide):
        assert "div.rn.f32" in ptx
        assert not re.search(r"div\.full|div\.approx|ex2|\.ftz", ptx)


def test_tensor_memory_is_taken_before_a_ticket() -> None:
    """Who waits for it on sm_100 holds no ticket yet, so nobody waits for that program."""
    ptx = triton_report.compile_call("select_qk<float16, queries>", "sm_100").asm["ptx"]
    assert ptx.index("tcgen05.alloc") < ptx.index("atom.global.gpu.relaxed.add")
    assert ptx.count("tcgen05.alloc") == 1


def test_batches_are_compiled_by_the_number_of_pictures() -> None:
    with triton_report.compiling("sm_90") as compiled:
        for B in (1, 2, 3, 8, 9, 20, 33, 64, 65):
            call = triton_report.call("select", torch.float16, grids=(1, 2) * B)
            select_triton.select(**call)
    assert len(compiled) == 10, "65 pictures take two launches"
    assert len({id(kernel) for kernel in compiled}) == 3, "up to 1, 8 and 64 pictures"


def test_rounding_is_ieee() -> None:
    """The published shares are a division and a product, neither of them fused or approximate."""
    ptx = triton_report.compile_call("select<bfloat16, published>", "sm_90").asm["ptx"]
    assert "div.rn.f32" in ptx
    assert "div.full.f32" not in ptx
    assert "div.approx" not in ptx
    for name in ("select<bfloat16, published>", "select_qk<float32, published>"):
        ptx = triton_report.compile_call(name, "sm_90").asm["ptx"]
        assert ".ftz" not in ptx
        assert "ex2" not in ptx


def test_what_is_written_is_read_only_after_a_barrier_and_a_release() -> None:
    """One thread counts and looks for all: barriers stand before it counts and after it looked."""
    ptx = triton_report.compile_call("select_qk<float16, exact>", "sm_90").asm["ptx"]
    lines = [line for line in ptx.splitlines() if line.strip() and ".loc" not in line]
    kinds = {"relaxed.add": 1, "acquire.b32": 4, "release.add": (3, 4)}
    for kind, expected in kinds.items():
        places = [i for i, line in enumerate(lines) if f".global.gpu.{kind}" in line]
        assert len(places) in (expected if isinstance(expected, tuple) else (expected,))
        for i in places:
            before, after = lines[i - 6 : i], lines[i + 1 : i + 9]
            if kind == "release.add":
                assert any("bar.sync" in line for line in before)
            if kind == "acquire.b32":
                assert any("bar.sync" in line for line in after)


@pytest.mark.parametrize("gpu", ["gfx90a", "gfx942"])
def test_each_wave_of_gfx9_waits_for_its_own_stores(gpu: str) -> None:
    """There a barrier does not wait for them, and a release covers those of one wave alone."""
    assembly = triton_report.compile_call("select_qk<float16, exact>", gpu).asm["amdgcn"]
    lines = [line.strip() for line in assembly.splitlines()]
    drained = [
        i for i, line in enumerate(lines) if line == ";;#ASMSTART" and "vmcnt" in lines[i + 1]
    ]
    barriers = set()
    for i in drained:
        barrier = lines.index("s_barrier", i)
        assert not any("store" in line for line in lines[i:barrier])
        barriers.add(barrier)
    assert len(barriers) >= 3, "the heads, the weights, the choices"


def test_without_a_gpu_the_table_says_so() -> None:
    (row,) = [row for row in backends.table() if row.name == "triton"]
    assert not row.available
    assert row.why.startswith("PyTorch sees no GPU")
