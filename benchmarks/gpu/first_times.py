# SPDX-License-Identifier: Apache-2.0
"""The first figures of a GPU: one call by graph replay, 1, 8 and 32 pictures, within a minute.

    python benchmarks gpu.first_times [--label before] [--out FILE]

The inputs rotate through several L2s; beside each time stands the bandwidth of a copy of the same
minute. With --out the figures are added to a JSON file, whose `runs` are of one card: first
contact lets two builds take turns. bench.py is the benchmark: results compared, all dtypes and
batches, deciles, others beside it.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import torch

from ..shared import command, report, timing
from ..shared.inputs import OPERATORS, Shape
from .runs import Graph, calls_of_graph, graph_clock, make_sets, number_of_sets

DTYPES = ("float16", "float32")


def case(operator: str, shape: Shape, copy: timing.Copy, runs: int) -> dict[str, Any]:
    total = sum(shape.floor_bytes(operator).values())
    number = number_of_sets(shape, operator, total, rotate=4)
    samples = make_sets(shape, operator, min(number, 80), seed=0)
    operate = getattr(torch.ops.hired, operator).default
    graph = Graph(
        lambda sample: operate(*sample, *shape.arguments),
        [sample.arguments() for sample in samples],
        calls_of_graph(len(samples), total),
    )
    graph()
    taken = sorted(graph_clock(graph) / graph.calls for _ in range(runs))
    copied = copy.bytes / statistics.median(graph_clock(lambda: copy(0)) for _ in range(5))
    median = statistics.median(taken)
    return {
        "operator": operator,
        "dtype": shape.dtype_name,
        "B": shape.B,
        "T": shape.T,
        "median_us": round(median * 1e6, 2),
        "low_us": round(taken[len(taken) // 10] * 1e6, 2),
        "high_us": round(taken[-1 - len(taken) // 10] * 1e6, 2),
        "bytes": total,
        "share_of_copy": round(total / median / copied, 4),
        "copy_gigabytes_per_second": round(copied / 1e9),
    }


def main() -> None:
    parser = command.parser(__doc__)
    parser.add_argument("--label", default="release", help="of the build (default: %(default)s)")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=DTYPES)
    parser.add_argument("--tokens", type=int, default=576, help="of a partition (%(default)s)")
    parser.add_argument("--copy", type=int, default=1024, help="megabytes (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=15, help="of a graph (default: %(default)s)")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    copy = timing.Copy(options.copy, "cuda")
    for _ in range(options.runs * 20):  # for the clocks to rise
        copy(0)
    run: dict[str, Any] = {
        "label": options.label,
        "environment": report.environment("cuda"),
        "cases": [],
    }
    there = options.out is not None and options.out.exists()
    before = json.loads(options.out.read_text())["runs"] if there else []
    for B in options.batches:
        for operator in OPERATORS:
            for dtype in options.dtypes:
                T = options.tokens
                shape = Shape(B, getattr(torch, dtype), T=T, N=T + 1, rate=0.2)
                found = case(operator, shape, copy, options.runs)
                run["cases"].append(found)
                print(
                    f"TIME {options.label:<8} {operator:<9} {found['dtype']} B={B:<2} "
                    f"{found['median_us']:8.2f} us ({found['low_us']:.2f} to "
                    f"{found['high_us']:.2f}), {found['share_of_copy']:.0%} of a copy's "
                    f"{found['copy_gigabytes_per_second']} GB/s",
                    flush=True,
                )
                if options.out:
                    report.write_json(options.out, {"runs": [*before, run]})
                torch.cuda.empty_cache()
