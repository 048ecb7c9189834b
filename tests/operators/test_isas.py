# SPDX-License-Identifier: Apache-2.0
"""Every CPU instruction set that was built and that this machine has, forced one after the other.

Each runs in a process of its own (HIRED_CPU_ISA is read once), on inputs that end, and then begin,
at a page that cannot be read, with fresh memory full of garbage. Its results are compared with the
oracle's: `select` to the bit, `select_qk` where cuts are apart, `cls_attention` up to rounding, and
to the bit with `select_qk`; float16 for all 65,536 patterns.
"""

from __future__ import annotations

import ctypes
import itertools
import math
import mmap
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from callers import operator, reference
from cls_attention_calls import agree, composed, split
from strategies import KINDS, Call, same, score_values, seeded_call, seeded_qk_call
from torch import Tensor

from hired_kernels import arguments
from hired_kernels import reference as oracle

_C = pytest.importorskip("hired_kernels._C", reason="the native library was not built")

ISAS = _C.build_info()["isas"]
Results = tuple[Tensor, ...]

pytestmark = pytest.mark.usefixtures("one_thread")

# What each process computes.


def select_cases() -> dict[str, Call]:
    cases: dict[str, Call] = {}
    for dtype, kind in itertools.product(arguments.SCORE_DTYPES, KINDS):
        # The sum of more than one zero is seldom -0.
        call = seeded_call("select", 1, T=25, H=1 if kind == "zeros" else 5, dtype=dtype)
        generator = torch.Generator().manual_seed(2)
        for name in ("attn_init", "attn_final"):
            call[name] = score_values(kind, call[name].shape, dtype, generator)
        cases[f"{dtype}-{kind}"] = call
        cases[f"{dtype}-{kind}-cropped"] = {**call, "crops": [1, 9, 0, 8, 0, 0, 0, 0, 2, 4, 3, 9]}
        transposed = {name: call[name].mT.contiguous().mT for name in ("attn_init", "attn_final")}
        cases[f"{dtype}-{kind}-transposed"] = {**call, **transposed}
    for T in range(1, 50):  # every way to end within a vector
        cases[f"T-{T}"] = seeded_call("select", 3, T=T, grids=((0, 0),), dtype=torch.float16)
    return cases


def select_qk_cases() -> dict[str, Call]:
    cases: dict[str, Call] = {}
    for dtype in arguments.SCORE_DTYPES:
        for Dh in (1, 3, 4, 7, 8, 12, 15, 16, 17, 31, 32, 33, 63, 64, 65, 80, 127, 128, 256):
            cases[f"{dtype}-Dh-{Dh}"] = seeded_qk_call(4, Dh=Dh, dtype=dtype)
        cases[f"{dtype}-large"] = seeded_qk_call(
            2, dtype=dtype, grids=((2, 2), (1, 2)), T=576, H=16, D=8, Dh=64
        )
        for H in (3, 4, 8, 15, 16, 17, 32, 33):  # heads are taken a vector at a time
            cases[f"{dtype}-H-{H}"] = seeded_qk_call(7, H=H, Dh=64, dtype=dtype)
    for N in range(9, 50):
        cases[f"N-{N}"] = seeded_qk_call(5, T=9, N=N, H=2)
    special = seeded_qk_call(6)
    special["key_final"][0, 3, 1, 0], special["key_final"][2, 5, :, 2] = math.nan, -math.inf
    special["query_final"][1, 0, 0] = math.inf
    return {**cases, "special": special}


def cls_attention_cases() -> dict[str, Call]:
    """Of the final layers of select_qk's."""
    return {
        name: {
            "query": call["query_final"], "key": call["key_final"], "scale": call["scale"],
            "tokens": call["features"].shape[1],
        }
        for name, call in select_qk_cases().items()
    }  # fmt: skip


@cache
def cases() -> dict[str, dict[str, Call]]:
    return {
        "select": select_cases(),
        "select_qk": select_qk_cases(),
        "cls_attention": cls_attention_cases(),
    }


def signs_of_zero_sums(heads: Tensor) -> list[int]:
    """Which of sum(heads) [H, T] comes out on top; 0 if none is above the first, which is 0."""
    kept = []
    for rows in (heads, heads.mT.contiguous().mT):  # a vector at a time, and one by one
        H, T = rows.shape
        assert not rows[:, 0].any()
        _, indices, _ = operator(
            "select", features=torch.empty(1, T, 0), attn_init=rows.view(1, H, T),
            attn_final=rows.view(1, H, T), grids=[0, 0], budgets=[1],
        )  # fmt: skip
        kept += indices.tolist()
    return kept


def float16_sums() -> dict[str, list[int]]:
    """Sums of float16 numbers that are 0 exactly if each is widened exactly: none is above 0.

    Steps: next(x) - x - (the spacing at x), up from 0: every number is what those below it make it.
    """
    x = torch.arange(0, 0x7BFF, dtype=torch.int32)  # all finite numbers of at least 0 but the last
    exponent = (x >> 10).clamp(min=1)
    # The spacing, 2^(exponent - 25), as a float16: a denormal for small exponents.
    spacing = torch.where(exponent > 10, exponent - 10 << 10, 1 << (exponent - 1))
    steps = torch.stack([x + 1, x | 0x8000, spacing | 0x8000])
    pairs = torch.arange(0, 0x7C01, dtype=torch.int32)  # x + (-x); infinity gives NaN, never above
    pairs = torch.stack([pairs, pairs | 0x8000])
    cases = {"steps": steps, "negated": steps ^ 0x8000, "pairs": pairs}
    zero = torch.zeros(3, 1, dtype=torch.int32)
    return {
        name: signs_of_zero_sums(
            torch.cat([zero[: len(rows)], rows], 1).to(torch.int16).view(torch.float16)
        )
        for name, rows in cases.items()
    }


def float16_patterns() -> Tensor:
    """All of them, in an order that tells nothing of their values."""
    shuffled = torch.randperm(1 << 16, generator=torch.Generator().manual_seed(8))
    return shuffled.to(torch.int16).view(torch.float16)


# Each k where a class of numbers ends: +inf, normals, denormals, zeros, and down to -inf; then NaN.
ENDS = list(itertools.accumulate([1, 30720, 1023, 2, 1023, 30720, 1]))
BEST = [2, 1000, *(end + beside for end in ENDS for beside in (-1, 0)), 65000]


def float16_order() -> Tensor:
    """The best k of all 65,536 patterns for each k of BEST: so many pictures, all the same row."""
    B, T = len(BEST), 1 << 16
    rows = float16_patterns().expand(B, 1, T)
    return operator(
        "select", features=torch.empty(B, T, 0), attn_init=rows, attn_final=rows,
        grids=[0] * 2 * B, budgets=BEST,
    )[1]  # fmt: skip


# Memory that ends where it says.


def fenced(tensor: Tensor, at_end: bool) -> Tensor:
    """The same tensor in pages between two that cannot be touched, at the end or the beginning."""
    if not sys.platform.startswith("linux") or not tensor.numel():
        return tensor
    values = tensor.storage_offset() == 0 and tensor.untyped_storage().nbytes()
    assert values == tensor.numel() * tensor.element_size(), "a tensor that fills its buffer"
    page = mmap.PAGESIZE
    inside = -(-values // page) * page
    pages = mmap.mmap(-1, inside + 2 * page)
    address = ctypes.addressof(ctypes.c_char.from_buffer(pages))
    libc = ctypes.CDLL(None, use_errno=True)
    for fence in (address, address + page + inside):
        assert libc.mprotect(ctypes.c_void_p(fence), ctypes.c_size_t(page), 0) == 0
    offset = page + (inside - values if at_end else 0)
    raw = torch.frombuffer(pages, dtype=torch.uint8, offset=offset, count=values)
    raw.copy_(torch.tensor([], dtype=torch.uint8).set_(tensor.untyped_storage()))
    buffer = torch.frombuffer(pages, dtype=tensor.dtype, offset=offset, count=tensor.numel())
    return buffer.as_strided(tensor.shape, tensor.stride())


def run_all(op: str, cases: dict[str, Call]) -> dict[str, list[Results]]:
    results: dict[str, list[Results]] = {}
    for name, call in cases.items():
        for at_end in (True, False):
            tensors = {
                argument: fenced(value, at_end)
                for argument, value in call.items()
                if isinstance(value, Tensor)
            }
            results.setdefault(name, []).append(operator(op, **{**call, **tensors}))
    return results


def record(cases: str, results: str) -> None:
    """What the process of one instruction set does."""
    torch.set_num_threads(1)
    cases = torch.load(cases)
    done = {op: run_all(op, calls) for op, calls in cases.items()}
    done["composed"] = {name: composed(operator, call) for name, call in cases["select_qk"].items()}
    done["split"] = {
        name: split(operator, call, 3) for name, call in cases["cls_attention"].items()
    }
    done |= {"isa": _C.build_info()["isa"], "sums": float16_sums()}
    done["order"] = [float16_order()]
    # Widening is of bits: it does not care for what the processor does with denormals.
    torch.set_flush_denormal(True)
    done["order"].append(float16_order())
    torch.save(done, results)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """What each instruction set computes."""
    folder, results = tmp_path_factory.mktemp("isas"), {}
    torch.save(cases(), folder / "cases.pt")
    code = "import sys; sys.path.append('..'); import test_isas; test_isas.record(*sys.argv[1:])"
    for isa in ISAS:
        path = folder / f"{isa}.pt"
        # glibc fills what malloc gives: no result may hang on memory that was never written.
        env = {**os.environ, "HIRED_CPU_ISA": isa, "MALLOC_PERTURB_": "165"}
        command = [sys.executable, "-c", code, str(folder / "cases.pt"), str(path)]
        done = subprocess.run(
            command, env=env, cwd=Path(__file__).parent, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{isa}: exit code {done.returncode}\n{done.stderr}"
        results[isa] = torch.load(path)
    return results


@pytest.mark.parametrize("isa", ISAS)
def test_it_is_the_one_in_use(recorded: dict[str, dict], isa: str) -> None:
    assert recorded[isa]["isa"] == isa


@pytest.mark.parametrize("op", ["select", "select_qk", "cls_attention"])
def test_results(recorded: dict[str, dict], op: str) -> None:
    for name, call in cases()[op].items():
        expected = reference(op, **call)
        for isa in ISAS:
            assert all(agree(results, expected) for results in recorded[isa][op][name]), (isa, name)


@pytest.mark.parametrize("isa", ISAS)
def test_select_of_the_rows_is_select_qk(recorded: dict[str, dict], isa: str) -> None:
    for name, results in recorded[isa]["composed"].items():
        assert same(results, recorded[isa]["select_qk"][name][0]), name


@pytest.mark.parametrize("isa", ISAS)
def test_heads_of_several_ranks_are_those_of_one(recorded: dict[str, dict], isa: str) -> None:
    for name, rows in recorded[isa]["split"].items():
        assert same((rows,), recorded[isa]["cls_attention"][name][0]), name


@pytest.mark.parametrize("isa", ISAS)
def test_float16_is_widened_exactly(recorded: dict[str, dict], isa: str) -> None:
    assert recorded[isa]["sums"] == {name: [0, 0] for name in ("steps", "negated", "pairs")}


def test_float16_is_in_order(recorded: dict[str, dict]) -> None:
    ranking = oracle.rank(float16_patterns())
    expected = [b * len(ranking) + t for b, k in enumerate(BEST) for t in sorted(ranking[:k])]
    for isa in ISAS:
        assert all(order.tolist() == expected for order in recorded[isa]["order"]), isa
