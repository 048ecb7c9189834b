# SPDX-License-Identifier: Apache-2.0
"""What only a GPU shows of `cuda` and `triton`: graphs, streams, launches, memory, races.

test_gpu_calls.py has the sizes, dtypes and tables of calls. test_parity.py and test_invariants.py
run on a GPU too (HIRED_TEST_TARGET=cuda); `make test-gpu` runs all of it, and some of it on the
code for Pascal.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import pytest
import torch
from bad_calls import BAD_CALLS
from builds import LIBRARY, tool
from callers import reference
from cls_attention_calls import seeded_attention_call
from gpu_cases import BACKEND, CASES, REPEATS, Results, case, on_gpu, plain_memory, right, run
from strategies import Call, bits, seeded_call
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

pytestmark = pytest.mark.usefixtures("dirty_memory", "one_thread")


# CUDA graphs.


def capture(*calls: tuple[str, Call]) -> tuple[torch.cuda.CUDAGraph, list[Results]]:
    """One graph of several calls, and what each of them returns."""
    for call in calls:
        run(*call)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = [run(*call) for call in calls]
    return graph, outputs


@pytest.mark.parametrize("name", CASES)
def test_a_graph_is_replayed_on_new_data(name: str) -> None:
    op, call = CASES[name](1)
    static = on_gpu(call)
    graph, (outputs,) = capture((op, static))
    for seed in (2, 3, 1):
        _, call = CASES[name](seed)
        for argument, value in call.items():
            if isinstance(value, Tensor):
                static[argument].copy_(value)
        graph.replay()
        assert right(outputs, reference(op, **call))


def test_graphs_and_eager_calls_run_side_by_side() -> None:
    in_graph = [case(name) for name in ("select_qk-llava", "select", "select-many")]
    others = [case(name) for name in ("select_qk-llava", "select-llava", "select_qk-many")]
    first, first_outputs = capture(*((op, call) for op, call, _ in in_graph))
    second, second_outputs = capture(*((op, call) for op, call, _ in in_graph))
    streams = [torch.cuda.Stream() for _ in range(2)]
    replayed, eager = [], []
    for _ in range(50):
        for graph, outputs, stream in zip(
            (first, second), (first_outputs, second_outputs), streams, strict=True
        ):
            with torch.cuda.stream(stream):
                graph.replay()
                replayed.append([[x.clone() for x in results] for results in outputs])
        eager.append([run(op, call) for op, call, _ in others])
    torch.cuda.synchronize()
    for cases, rounds in ((in_graph, replayed), (others, eager)):
        for results in rounds:
            for kept, (_, _, expected) in zip(results, cases, strict=True):
                assert right(tuple(kept), expected)


def test_branches_of_a_graph_run_side_by_side() -> None:
    names = ("select_qk-llava", "select_qk-wide", "select-llava")
    cases = [case(name) for name in names]
    for op, call, _ in cases:
        run(op, call)
    torch.cuda.synchronize()
    graph, branches = torch.cuda.CUDAGraph(), [torch.cuda.Stream() for _ in cases]
    with torch.cuda.graph(graph):
        trunk, outputs = torch.cuda.current_stream(), []
        for branch, (op, call, _) in zip(branches, cases, strict=True):
            branch.wait_stream(trunk)
            with torch.cuda.stream(branch):
                outputs.append(run(op, call))
        for branch in branches:
            trunk.wait_stream(branch)
    for _ in range(50):
        graph.replay()
        for results, (_, _, expected) in zip(outputs, cases, strict=True):
            assert right(results, expected)


# Streams, devices, and what a call leaves behind.


@pytest.mark.parametrize("threads", [False, True], ids=["one-thread", "a-thread-each"])
def test_eight_streams_at_once(threads: bool) -> None:
    names = [name for name in CASES if name != "select-nothing"][-8:]
    cases, streams = [case(name) for name in names], [torch.cuda.Stream() for _ in names]
    torch.cuda.synchronize()

    def call_on(i: int) -> Results:
        with torch.cuda.stream(streams[i]):
            return run(*cases[i][:2])

    order = [i for _ in range(25) for i in range(len(names))]
    if threads:
        with ThreadPoolExecutor(8) as pool:
            kept = list(pool.map(call_on, order))
    else:
        kept = [call_on(i) for i in order]
    torch.cuda.synchronize()
    assert all(right(results, cases[i][2]) for i, results in zip(order, kept, strict=True))


@pytest.mark.parametrize("side_stream", [False, True])
def test_every_call_leaves_the_stream_ready_for_every_other(side_stream: bool) -> None:
    cases = [case(name) for name in CASES]
    pairs = [step for before in cases for after in cases for step in (before, after)]
    torch.cuda.synchronize()
    stream = torch.cuda.Stream() if side_stream else torch.cuda.current_stream()
    with torch.cuda.stream(stream):
        kept = [run(op, call) for op, call, _ in pairs]
    torch.cuda.synchronize()
    assert all(right(*pair) for pair in zip(kept, (c[2] for c in pairs), strict=True))


def test_a_refused_call_leaves_the_stream_ready() -> None:
    op, call, expected = case("select_qk")
    for bad in BAD_CALLS[::20]:
        with pytest.raises(RuntimeError):
            run(bad.op, on_gpu(bad.arguments()))
        assert right(run(op, call), expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("name", CASES)
def test_a_device_that_is_not_the_current_one(name: str) -> None:
    op, call = CASES[name](1)
    with torch.cuda.device(1):
        moved = on_gpu(call)
    results = run(op, moved)
    assert torch.cuda.current_device() == 0
    assert {result.device.index for result in results} == {1}
    assert right(results, reference(op, **call))
    assert right(run(*case(name)[:2]), case(name)[2])


# One kernel a call, and nothing else.


def events_of(work: Callable[[], object], times: int = 5) -> tuple[list[str], set[str]]:
    """What the device did in that many calls, and all that the host called."""
    work()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        for _ in range(times):
            work()
        torch.cuda.synchronize()
    on_device = [e.name for e in profiler.events() if e.device_type == DeviceType.CUDA]
    return on_device, {e.name for e in profiler.events() if e.device_type == DeviceType.CPU}


@pytest.fixture(scope="module")
def profiler() -> None:
    number = torch.zeros(8, device="cuda")
    if len(events_of(lambda: number.add_(1))[0]) != 5:
        pytest.skip("PyTorch's profiler sees no kernels here")


def pictures_of_a_launch() -> int:
    """512 where the library has code for sm_70 or later and this GPU runs it, else 64."""
    if BACKEND == "triton":
        return 64
    images = tool("kernel_report").fatbins(LIBRARY.read_bytes())
    newest = max(arch for image in images for archs in image.values() for arch in archs)
    return 512 if newest >= 70 and torch.cuda.get_device_capability() >= (7, 0) else 64


SLOW = ("Synchronize", "cudaMalloc", "cudaFree", "Memcpy", "Memset", "cuMem")


@pytest.mark.usefixtures("profiler")
@pytest.mark.parametrize("B", [0, 1, 2, 64, 65, 512, 513, 1100])
@pytest.mark.parametrize("op", ["select", "select_qk"])
def test_one_kernel_a_launch_and_nothing_else(op: str, B: int) -> None:
    call = on_gpu(seeded_call(op, 1, grids=(((1, 2), (0, 0)) * 550)[:B], H=1))
    with plain_memory():
        on_device, on_host = events_of(lambda: run(op, call))
    assert len(on_device) == 5 * math.ceil(B / pictures_of_a_launch())
    assert all("select_kernel" in name for name in on_device)
    on_host.discard("cudaDeviceSynchronize")  # the profiled code's own
    assert not [name for name in on_host if any(word in name for word in SLOW)]


@pytest.mark.usefixtures("profiler")
@pytest.mark.parametrize("P", [0, 1, 5, 70_000])
def test_attention_is_one_kernel_and_nothing_else(P: int) -> None:
    call = on_gpu(seeded_attention_call(1, P=P, H=1, T=4))
    with plain_memory():
        on_device, on_host = events_of(lambda: run("cls_attention", call))
    assert len(on_device) == 5 * min(P, 1)
    assert all("cls_attention_kernel" in name for name in on_device)
    on_host.discard("cudaDeviceSynchronize")
    assert not [name for name in on_host if any(word in name for word in SLOW)]


@pytest.mark.parametrize("name", CASES)
def test_a_call_does_not_wait_for_the_device(name: str) -> None:
    op, call, expected = case(name)
    with plain_memory():
        run(op, call)
        torch.cuda.synchronize()
        busy = torch.cuda.Event()
        torch.cuda._sleep(1 << 29)  # cycles, about a quarter of a second
        busy.record()
        torch.cuda.set_sync_debug_mode("error")
        try:
            results = run(op, call)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert not busy.query()
    assert right(results, expected)


# Memory.

CANARY = 0xA5


class At:
    """Memory at an address, as torch.as_tensor takes it."""

    def __init__(self, address: int, size: int) -> None:
        self.__cuda_array_interface__ = {
            "shape": (size,), "typestr": "|u1", "data": (address, False), "version": 3,
        }  # fmt: skip


def unused_memory() -> dict[int, Tensor]:
    """What the allocator holds and nobody uses, by address."""
    found, device = {}, torch.cuda.current_device()
    for segment in torch.cuda.memory_snapshot():
        if segment["device"] != device:
            continue
        address = segment["address"]
        for block in segment["blocks"]:
            if block["state"] == "inactive":
                found[address] = torch.as_tensor(At(address, block["size"]), device="cuda")
            address += block["size"]
    return found


@pytest.mark.parametrize("name", CASES)
def test_nothing_but_outputs_and_one_workspace_is_written(name: str) -> None:
    op, call, expected = case(name)
    with plain_memory():
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        for _ in range(2):  # afterwards the allocator holds what a call takes
            run(op, call)
        torch.cuda.synchronize()
        unused = unused_memory()
        for memory in unused.values():
            memory.fill_(CANARY)
        torch.cuda.memory._record_memory_history("all", context=None, clear_history=True)
        try:
            results = run(op, call)
            torch.cuda.synchronize()
            traces = torch.cuda.memory._snapshot()["device_traces"]
        finally:
            torch.cuda.memory._record_memory_history(None)
    trace = traces[torch.cuda.current_device()]
    assert not [entry for entry in trace if entry["action"] == "segment_alloc"]
    taken = [(e["addr"], e["addr"] + e["size"]) for e in trace if e["action"] == "alloc"]
    outputs = [x.data_ptr() for x in results if x.numel()]
    workspaces = 0 if op == "cls_attention" and BACKEND == "cuda" else 1
    assert len(taken) == len(outputs) + workspaces
    assert set(outputs) <= {begin for begin, _ in taken}
    for address, memory in unused.items():
        content = memory.cpu()
        for begin, end in taken:
            content[max(0, begin - address) : max(0, end - address)] = CANARY
        assert bool((content == CANARY).all())
    assert right(results, expected)


# Races.

SPIN = """
extern "C" __global__ void occupy(int kilocycles) {
  const long long start = clock64();
  while (clock64() - start < 1024ll * kilocycles) {}
}"""


@cache
def occupy() -> Callable[[int], None]:
    """A kernel for so many milliseconds that leaves room for one block of 256 threads."""
    gpu = torch.cuda.get_device_properties(torch.cuda.current_device())
    room = gpu.multi_processor_count * (gpu.max_threads_per_multi_processor // 256)
    try:
        kernel = torch.cuda._compile_kernel(SPIN, "occupy")
    except (AttributeError, OSError, RuntimeError) as error:  # it needs NVRTC
        pytest.skip(f"no kernel to occupy the GPU with: {error}")
    return lambda ms: kernel((room - 1, 1, 1), (256, 1, 1), [2000 * ms])


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "room-for-one-block"])
@pytest.mark.parametrize(
    "name",
    [
        "select",
        "select_qk",
        "select-many",
        "select-llava",
        "select_qk-llava",
        "cls_attention-llava",
    ],
)
def test_repeated_calls_give_the_same_bits(name: str, busy: bool) -> None:
    op, call, expected = case(name)
    first = run(op, call)
    assert right(first, expected)
    wanted = [bits(x) for x in first]
    different = torch.zeros((), dtype=torch.int64, device="cuda")
    beside, fill = torch.cuda.Stream(), occupy() if busy else None
    for _ in range(REPEATS // 4 if busy else REPEATS):
        if fill and beside.query():
            with torch.cuda.stream(beside):
                fill(20)
        for result, bits_wanted in zip(run(op, call), wanted, strict=True):
            different += (bits(result) != bits_wanted).sum()
    assert different.item() == 0
