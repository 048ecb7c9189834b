# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels' own source on the host: one call after another under a hundred seeds.

A seed shuffles which block starts when, which warp and thread runs next, and what shared memory
holds; a missing barrier shows as a wrong answer, an unlawful wait as a deadlock report. Runs where
HIRED_EMULATED_LIBRARY names the library (`make test-emulated`); test_parity.py and
test_invariants.py run there too, under HIRED_TEST_TARGET=emulated.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from callers import reference
from cls_attention_calls import BEYOND_LIMITS, agree, seeded_attention_call
from strategies import Call, same, seeded_call, seeded_qk_call
from targets import emulated, emulator, schedule

if "HIRED_EMULATED_LIBRARY" not in os.environ:
    pytest.skip("the emulator was not built: make test-emulated", allow_module_level=True)

SEEDS = range(100)
SMALL = {"T": 16, "H": 3, "D": 5}


def calls() -> dict[str, tuple[str, Call]]:
    grids = ((2, 2), (0, 0), (1, 3))
    cropped: dict[str, Any] = {"crops": [1, 7, 0, 8, 0, 0, 0, 0, 0, 4, 2, 9]}
    return {
        "select": ("select", seeded_call("select", 1, grids=grids, **SMALL)),
        "select-cropped": ("select", seeded_call("select", 2, grids=grids, **SMALL, **cropped)),
        "select-published": (
            "select",
            seeded_call("select", 3, grids=((2, 2), (0, 0), (1, 2)), policy="published", **SMALL),
        ),
        "select_qk": ("select_qk", seeded_qk_call(4, grids=grids, Dh=8, **SMALL)),
        "select_qk-cropped": (
            "select_qk",
            seeded_qk_call(5, grids=grids, Dh=5, order="partition", **SMALL, **cropped),
        ),
        "cls_attention": ("cls_attention", seeded_attention_call(10, T=16, H=3, Dh=8)),
        "cls_attention-odd": ("cls_attention", seeded_attention_call(11, T=15, N=19, H=3, Dh=5)),
    }


@pytest.mark.parametrize("lock_step", [True, False], ids=["lock-step", "independent"])
@pytest.mark.parametrize("resident_blocks", [1, 5])
@pytest.mark.parametrize("name", calls())
def test_a_hundred_seeds(name: str, resident_blocks: int, lock_step: bool) -> None:
    op, call = calls()[name]
    expected = reference(op, **call)
    for seed in SEEDS:
        schedule(seed, resident_blocks, 64, lock_step=lock_step, capability=6)
        assert agree(emulated(op, **call), expected), f"seed {seed}"


@pytest.mark.parametrize("resident_blocks", [1, 2, 7])
@pytest.mark.parametrize("name", calls())
def test_launches_on_several_streams_share_the_device(name: str, resident_blocks: int) -> None:
    """Each holds a part of the device that the others may be waiting for, if they waited for it."""
    op, call = calls()[name]
    expected = reference(op, **call)
    for seed in range(20):
        schedule(seed, resident_blocks, 32, lock_step=seed % 2 == 0, capability=6, streams=3)
        assert agree(emulated(op, **call), expected), f"seed {seed}"


@pytest.mark.parametrize("capability", [6, 9])
@pytest.mark.parametrize("pictures", [4, 5, 64, 65, 512, 513])
def test_batches_that_outgrow_a_launch(pictures: int, capability: int) -> None:
    """4 or 64 pictures a launch, 512 from sm_70 on; the emulator refuses larger parameters."""
    call = seeded_call("select", 6, grids=((1, 1),) * pictures, T=4, H=1, D=1)
    schedule(pictures, 8, 32, lock_step=False, capability=capability)
    assert same(emulated("select", **call), reference("select", **call))


@pytest.mark.parametrize("threads", [32, 64, 256])
def test_block_sizes(threads: int) -> None:
    sizes = {"grids": ((2, 2),), "T": 49, "H": 2, "D": 3}
    for op, call in (
        ("select", seeded_call("select", 7, **sizes)),
        ("select_qk", seeded_qk_call(8, Dh=16, **sizes)),
        ("cls_attention", seeded_attention_call(9, T=49, H=2, Dh=16)),
    ):
        schedule(threads, 4, threads, lock_step=False, capability=6)
        assert agree(emulated(op, **call), reference(op, **call))


def test_the_largest_partition_and_grid() -> None:
    call = seeded_call("select", 9, grids=((8, 8),), T=1024, H=1, D=1, crops=[3, 250, 1, 255])
    schedule(9, 6, 128, lock_step=False, capability=6)
    assert same(emulated("select", **call), reference("select", **call))


@pytest.mark.parametrize(("changes", "message"), BEYOND_LIMITS)
def test_limits_of_attention_are_named(changes: dict[str, int], message: str) -> None:
    with pytest.raises(RuntimeError, match=f"hired::cls_attention: {message} on the cuda backend"):
        emulated("cls_attention", **seeded_attention_call(1, P=1, **changes))


def test_the_largest_attention() -> None:
    call = seeded_attention_call(2, P=1, T=4096, N=8192, H=1, Dh=256)
    schedule(2, 1, 256, lock_step=False, capability=6)
    assert agree(emulated("cls_attention", **call), reference("cls_attention", **call))


# What goes wrong.


@pytest.fixture
def disturb() -> Iterator[Any]:
    """Says what launches find in their counters, and after how many polls a wait gives up."""
    yield emulator().hired_emulated_disturb
    emulator().hired_emulated_disturb(0, 0, 2**32 - 1)


@pytest.mark.parametrize(
    ("tickets", "weighed", "said"),
    [
        # The first job is nobody's, and those that need it wait; or one job too many is handed out.
        (1, 0, r"weighed, picture 0: have 0, want 1|tickets, picture 0: have \d+, want \d+"),
        (0, 7, "weighed, picture 0: have [78], want 1"),
    ],
)
@pytest.mark.parametrize("seed", range(5))
def test_a_corrupted_counter_is_an_error(
    disturb: Any, seed: int, tickets: int, weighed: int, said: str
) -> None:
    """In builds with a spin limit, of which the emulator's is one."""
    op, call = calls()["select"]
    expected = reference(op, **call)
    schedule(seed, 5, 64, lock_step=False, capability=6)
    for before in range(2):  # the error in the launch of one set of counters, and of the other
        for _ in range(before):
            assert agree(emulated(op, **call), expected)
        disturb(tickets, weighed, 100)
        with pytest.raises(RuntimeError, match=rf"hired: block \d+, job \d\d?: ({said})"):
            emulated(op, **call)
        disturb(0, 0, 100_000)
        assert agree(emulated(op, **call), expected)


def test_streams_never_share_counters() -> None:
    """Not even where a new stream has the handle of one that was destroyed."""
    counters = emulator().hired_emulated_counters_of_a_new_stream
    counters.restype = ctypes.c_void_p
    found = [counters() for _ in range(3)]
    assert None not in found
    assert len(set(found)) == 3


CAPTURES = """
import sys
sys.path.insert(0, {tests!r})
import torch
from callers import reference
from cls_attention_calls import agree, seeded_attention_call
from strategies import seeded_call, seeded_qk_call
from targets import emulated, emulator, schedule

schedule(1, 8, 32, lock_step=False, capability=9)
small = {{"grids": ((1, 1),), "T": 4, "H": 1, "D": 1}}
if {before}:
    emulated("cls_attention", **seeded_attention_call(1, T=4, H=1))
emulator().hired_emulated_driver(1, 1)
for dtype in (torch.float32, torch.float16, torch.bfloat16):
    for op, call in (
        ("select", seeded_call("select", 1, dtype=dtype, **small)),
        ("select_qk", seeded_qk_call(1, dtype=dtype, **small)),
        ("select", seeded_call("select", 1, dtype=dtype, **{{**small, "grids": ((1, 1),) * 65}})),
        ("cls_attention", seeded_attention_call(1, T=4, H=1, dtype=dtype)),
    ):
        assert agree(emulated(op, **call), reference(op, **call))
"""


@pytest.mark.parametrize("before", [True, False], ids=["after-a-call", "cold"])
def test_any_call_loads_all_kernels(before: bool) -> None:
    """Drivers before CUDA 12.3 load none while a stream is being captured."""
    script = CAPTURES.format(tests=str(Path(__file__).parents[1]), before=before)
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    if before:
        assert result.returncode == 0, result.stderr
    else:
        assert "features: expected a call of some operator on this device before the first" in (
            result.stderr
        )
