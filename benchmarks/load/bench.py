# SPDX-License-Identifier: Apache-2.0
"""Selection under load: 1 to 32 requests at a time in one process, a thread and a stream each.

A request is one LLaVA-NeXT picture of five partitions through a CLIP tower with the early exit. The
clock runs from the tower's first layer to its last, and by itself over `select_qk`: on a GPU by
events on the request's own stream, so that whatever the others hold up counts. What selection
costs is its share of the tower's time, and the requests a second that are lost against the same
tower with the choice made beforehand.

    python benchmarks load                   # CPU, a small tower, about six minutes
    python benchmarks load --tower large     # CLIP-L/336, float16 on a GPU
"""

from __future__ import annotations

import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import hired_kernels as hired
from hired_kernels.cli import loading, taken_apart

from ..shared import command, report
from ..shared.marks import elapsed, mark

CONCURRENT = (1, 2, 4, 8, 16, 32)
GRID, PARTITIONS, BUDGET, MOST = (2, 2), 5, 576, 288
AIM = 0.01  # of the tower's time


@dataclass
class Request:
    """Marks of one request: when the tower began, selection began and ended, the tower ended."""

    marks: list[Any]

    def seconds(self) -> tuple[float, float]:
        """Of the tower, selection included, and of selection."""
        begin, selecting, selected, end = self.marks
        return elapsed(begin, end), elapsed(selecting, selected)


class Worker:
    """A thread's own stream, pixels and clock."""

    def __init__(self, tower: nn.Module, pixels: Tensor) -> None:
        self.tower, self.pixels = tower, pixels.clone()
        self.stream = torch.cuda.Stream() if pixels.is_cuda else None

    def on_stream(self) -> AbstractContextManager:
        return torch.cuda.stream(self.stream) if self.stream else nullcontext()

    @torch.inference_mode()
    def request(self, chosen: hired.Selection | None) -> Request:
        """One picture, with tokens chosen here, or beforehand."""
        gpu = self.stream is not None
        with self.on_stream():
            marks = [mark(gpu)]
            encoded = taken_apart.begin(self.tower, self.pixels, full_images=[0])
            marks.append(mark(gpu))
            kept = chosen or select(encoded)
            marks.append(mark(gpu))
            taken_apart.finish(self.tower, encoded, kept, MOST)
            marks.append(mark(gpu))
            if self.stream:
                self.stream.synchronize()
        return Request(marks)


def select(encoded: taken_apart.Encoded) -> hired.Selection:
    return hired.select_qk(encoded.features, *encoded.scores(), grids=[GRID], budget=BUDGET)


def wave(workers: list[Worker], rounds: int, chosen: Any, pool: ThreadPoolExecutor) -> Any:
    """`rounds` requests of each worker at once: seconds in all, and the requests."""

    def work(worker: Worker) -> list[Request]:
        return [worker.request(chosen) for _ in range(rounds)]

    start = time.perf_counter()
    requests = [request for some in pool.map(work, workers) for request in some]
    return time.perf_counter() - start, requests


def run_case(tower: nn.Module, pixels: Tensor, concurrent: int, seconds: float) -> dict[str, Any]:
    """Figures at one number of concurrent requests."""
    workers = [Worker(tower, pixels) for _ in range(concurrent)]
    with torch.inference_mode():
        chosen = select(taken_apart.begin(tower, pixels, full_images=[0]))
    if pixels.is_cuda:
        torch.cuda.synchronize()
    with ThreadPoolExecutor(concurrent) as pool:
        wave(workers[:1], 1, None, pool)
        once, _ = wave(workers, 1, None, pool)
        rounds = max(1, int(seconds / 6 / once))
        with_it, without, requests = [], [], []
        for _ in range(3):  # in turns, so that both meet the same machine
            taken, done = wave(workers, rounds, None, pool)
            with_it.append(taken)
            requests += done
            without.append(wave(workers, rounds, chosen, pool)[0])
    times = [request.seconds() for request in requests]
    shares = sorted(select / tower for tower, select in times)
    every = rounds * concurrent
    return {
        "concurrent": concurrent,
        "requests": len(requests),
        "tower_ms": statistics.median(tower for tower, _ in times) * 1e3,
        "select_ms": statistics.median(select for _, select in times) * 1e3,
        "share": statistics.median(shares),
        "share_p90": shares[int(0.9 * (len(shares) - 1))],
        "requests_per_second": every / statistics.median(with_it),
        "requests_per_second_chosen_beforehand": every / statistics.median(without),
    }


def show(cases: list[dict[str, Any]]) -> None:
    header = ["at a time", "tower, ms", "select_qk, ms", "share", "p90", "requests/s", "without"]
    rows = [
        [
            str(case["concurrent"]),
            f"{case['tower_ms']:.2f}",
            f"{case['select_ms']:.3f}",
            f"{case['share']:.2%}",
            f"{case['share_p90']:.2%}",
            f"{case['requests_per_second']:.1f}",
            f"{case['requests_per_second_chosen_beforehand']:.1f}",
        ]
        for case in cases
    ]
    print(report.table(header, rows))
    worst = max(case["share"] for case in cases)
    print(f"aim: at most {AIM:.0%} of the tower's time; here {worst:.2%} at the most")


def main() -> int:
    parser = command.parser(__doc__)
    add = parser.add_argument
    cuda = torch.cuda.is_available()
    add("--tower", choices=loading.TOWERS, default="large" if cuda else "small")
    add("--concurrent", nargs="+", type=int, default=list(CONCURRENT))
    add("--seconds", type=float, default=10, help="of each number (default: %(default)s)")
    command.add_out(parser, "load-<tower>-<device>.json")
    options = parser.parse_args()
    device, dtype = ("cuda", torch.float16) if cuda else ("cpu", torch.float32)
    if not cuda:
        # Requests share the cores as they would share a GPU: each has one.
        torch.set_num_threads(1)
    tower = loading.random_model(options.tower).tower.to(device, dtype)
    pixels = torch.randn(PARTITIONS, 3, 336, 336, generator=torch.Generator().manual_seed(0))
    pixels = pixels.to(device, dtype)
    cases: list[dict[str, Any]] = []
    for concurrent in options.concurrent:
        command.progress(f"{concurrent} at a time ...")
        cases.append(run_case(tower, pixels, concurrent, options.seconds))
    environment = report.environment(device)
    name = environment.get("gpu", device)
    path = options.out or report.default_path(environment, "load", options.tower)
    shape = {"tower": options.tower, "dtype": str(dtype), "partitions": PARTITIONS, "K": BUDGET}
    report.write_json(path, {"environment": environment, "shape": shape, "cases": cases})
    print(f"{options.tower} tower on {name}, {environment['date']}, commit {environment['commit']}")
    show(cases)
    print(f"written: {path}")
    return 0
