# SPDX-License-Identifier: Apache-2.0
"""Timing that contenders can be compared by: interleaved, warmed up, on inputs not in the cache.

Contenders take turns, in a new order every round, so that a machine that slows down slows all of
them and none always follows the same one. Each call takes the next of several input sets, so that
it does not find its inputs where the last one left them. A slow contender sits out most rounds:
each gets about the same time. Medians and deciles, never minima.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import gc
import random
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h
_DEFAULT_TRIM, _DEFAULT_MMAPS = 128 << 10, 65536

Call = Callable[[int], object]  # takes the number of an input set
Clock = Callable[[Callable[[], object]], float]  # runs a call and returns its seconds


@dataclass(frozen=True)
class Timing:
    """Seconds a call; `page_faults` is the median number of pages that a call had to be given."""

    median: float
    p10: float
    p90: float
    runs: int
    page_faults: int

    def each(self, calls: int) -> Timing:
        """Of one call, where a run was that many."""
        times = {name: getattr(self, name) / calls for name in ("median", "p10", "p90")}
        return dataclasses.replace(self, **times)

    def as_json(self) -> dict[str, float]:
        return {
            "median_us": round(self.median * 1e6, 2),
            "p10_us": round(self.p10 * 1e6, 2),
            "p90_us": round(self.p90 * 1e6, 2),
            "runs": self.runs,
            "page_faults": self.page_faults,
        }


def host_clock(work: Callable[[], object]) -> float:
    """Wall time on the host. The result is freed after the clock has stopped."""
    start = time.perf_counter()
    result = work()
    seconds = time.perf_counter() - start
    del result
    return seconds


def measure(
    contenders: Mapping[str, Call],
    *,
    sets: int,
    seconds: float,
    clock: Clock = host_clock,
    runs: tuple[int, int] = (5, 2000),
) -> dict[str, Timing]:
    """Time all contenders against each other, for about `seconds` each.

    `contenders` maps names to callables of an input set's number, 0 to sets - 1. `runs` bounds how
    often each is run. `clock` is what a device needs in place of the host's clock.
    """
    turn = iter(range(1 << 62))

    def run(call: Call) -> tuple[float, int]:
        index = next(turn) % sets
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        elapsed = clock(lambda: call(index))
        return elapsed, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    for call in contenders.values():  # the first call of all pays for the others
        run(call)
    least, most = runs
    wanted = {
        name: max(least, min(most, int(seconds / min(run(call)[0] for _ in range(2)))))
        for name, call in contenders.items()
    }
    rounds = max(wanted.values())
    samples: dict[str, list[tuple[float, int]]] = {name: [] for name in contenders}
    order, shuffle = list(contenders), random.Random(0).shuffle
    with _no_garbage_collection():
        for i in range(rounds):
            shuffle(order)
            for name in order:
                # Spread evenly: `wanted` of the rounds.
                if (i + 1) * wanted[name] // rounds > i * wanted[name] // rounds:
                    samples[name].append(run(contenders[name]))
    return {name: _summary(values) for name, values in samples.items()}


def _summary(samples: list[tuple[float, int]]) -> Timing:
    times = [seconds for seconds, _ in samples]
    deciles = statistics.quantiles(times, n=10, method="inclusive")
    faults = int(statistics.median(faults for _, faults in samples))
    return Timing(statistics.median(times), deciles[0], deciles[-1], len(times), faults)


class Copy:
    """A contender that copies `megabytes` from one tensor to another: the machine's bandwidth.

    It should be many times the last cache. Bytes read and bytes written both count.
    """

    def __init__(self, megabytes: int, device: str = "cpu") -> None:
        self._source = torch.ones(megabytes << 18, device=device)
        self._target = torch.zeros_like(self._source)

    def __call__(self, index: int) -> None:
        self._target.copy_(self._source)

    @property
    def bytes(self) -> int:
        return 2 * self._source.nbytes


@contextlib.contextmanager
def keep_freed_memory() -> Iterator[bool]:
    """Let malloc keep what is freed, as every caching allocator does; yields whether it could.

    Left alone, glibc returns outputs of megabytes to the system and asks for them again, or does
    not, by what else was freed before. Where it does, a call waits for hundreds of page faults,
    which cost more than the work to be timed and belong to nobody.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc
        yield False
        return
    kept = mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, -1)
    try:
        yield bool(kept)
    finally:
        mallopt(_M_MMAP_MAX, _DEFAULT_MMAPS)
        mallopt(_M_TRIM_THRESHOLD, _DEFAULT_TRIM)


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
