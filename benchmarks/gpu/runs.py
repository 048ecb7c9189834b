# SPDX-License-Identifier: Apache-2.0
"""Calls on a GPU made ready for timing: captured in a graph, or in bursts, on rotating input sets.

A graph holds several calls on several input sets, whose bytes are many times the L2: no call finds
its inputs, nor the memory that its results go to, where the last one left them. `timing.measure`
takes graphs and bursts as contenders, with the clocks of this file.
"""

from __future__ import annotations

import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..shared import inputs, timing
from ..shared.inputs import Inputs, Shape

DEVICE = "cuda"
Run = Callable[[Any], Any]  # of a sample: an input set, or the arguments made from one


def graph_clock(work: Callable[[], object]) -> float:
    """Seconds on the device. It is kept busy until all of `work` is enqueued."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(1_000_000)  # cycles, about half a millisecond
    begin.record()
    work()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) * 1e-3


def wall_clock(work: Callable[[], object]) -> float:
    """Seconds until the device has finished."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def enqueue_clock(work: Callable[[], object]) -> float:
    """Seconds until the host may go on; the device has nothing else to do."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


class Graph:
    """`calls` calls on the samples in turn, captured once and replayed by each run."""

    def __init__(self, run: Run, samples: Sequence[Any], calls: int) -> None:
        self.calls = calls
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):  # warm up: handles, workspaces, compilation
            for sample in [*samples[:2], samples[0]]:
                run(sample)
        torch.cuda.synchronize()
        self._graph = torch.cuda.CUDAGraph()
        # The last call on each sample. Memory is used again only after a whole turn.
        self.results: deque[Any] = deque(maxlen=len(samples))
        with torch.cuda.graph(self._graph):
            for i in range(calls):
                self.results.append(run(samples[i % len(samples)]))

    def __call__(self, index: int = 0) -> None:
        self._graph.replay()


class Burst:
    """`calls` calls on the samples in turn, one after the other."""

    def __init__(self, run: Run, samples: Sequence[Any], calls: int) -> None:
        self.calls, self._run, self._next = calls, run, itertools.cycle(samples)
        self._results: deque[Any] = deque(maxlen=len(samples))

    def __call__(self, index: int = 0) -> None:
        for _ in range(self.calls):
            self._results.append(self._run(next(self._next)))


def timed(contender: Graph | Burst, seconds: float, clock: timing.Clock) -> dict[str, float]:
    """One call's time by itself, as the JSON file has it."""
    taken = timing.measure({"": contender}, sets=1, seconds=seconds, clock=clock)
    return taken[""].each(contender.calls).as_json()


def reason(error: Exception) -> str:
    """Why a contender failed, as the JSON file has it."""
    return f"{type(error).__name__}: {error}".partition("\n")[0][:200]


def bytes_of_set(shape: Shape, operator: str) -> int:
    """What an input set takes of the device's memory, read or not."""
    layer = 2 * shape.N * shape.H * shape.Dh if operator == "select_qk" else shape.H * shape.N**2
    return shape.P * (2 * layer + shape.N * shape.D) * shape.dtype.itemsize


def number_of_sets(shape: Shape, operator: str, touched: int, rotate: float) -> int:
    """As many sets as make `rotate` times the L2, or as fit; 0 where not even one does."""
    free, _ = torch.cuda.mem_get_info()
    in_float32 = 4 * shape.P * shape.N * (4 * shape.H * shape.Dh + shape.D)  # while one is made
    fit = int((0.85 * free - in_float32) / (bytes_of_set(shape, operator) + touched))
    l2 = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
    return max(0, min(fit, max(2, math.ceil(rotate * l2 / touched))))


def make_sets(shape: Shape, operator: str, number: int, seed: int) -> list[Inputs]:
    """Input sets made on the GPU itself."""
    generator = torch.Generator(DEVICE).manual_seed(seed)
    with torch.device(DEVICE):
        return [inputs.make(shape, operator, generator) for _ in range(number)]


def calls_of_graph(sets: int, floor_bytes: int) -> int:
    """Whole turns of the sets that last a millisecond, about."""
    each = max(5e-6, floor_bytes / 4e12)
    return sets * math.ceil(1e-3 / (sets * each))


def calls_of_burst(floor_bytes: int) -> int:
    """As many as keep the device busy for two milliseconds, at most 20."""
    return max(2, min(20, int(2e-3 * 4e12 / floor_bytes)))


def same(results: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    return all(torch.equal(a, b.to(a.device)) for a, b in zip(results, expected, strict=True))
