# SPDX-License-Identifier: Apache-2.0
"""`select` and `select_qk` on a GPU: microseconds, bytes, share of the bandwidth of a copy.

LLaVA-NeXT pictures of a full image and 2 x 2 sub-images, 1 to 128 a call, 5 to 60 % of their tokens
kept. Every shape's results are compared with the CPU backend's, bit for bit, before its figures are
taken. benchmarks/README.md says how; nothing here asserts how fast anything is.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

import hired_kernels as hired
from hired_kernels import backends

from ..shared import command, report, timing
from ..shared.inputs import OPERATORS, Inputs, Shape
from . import contenders, peers, runs, tables
from .runs import Burst, Graph

DTYPES = {name: getattr(torch, name) for name in ("float16", "bfloat16", "float32")}
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
RATES = (0.05, 0.1, 0.2, 0.4, 0.6)
RATE = 0.2
FIRST_BATCHES = (1, 8, 32)  # those of the README's table
COPY_MEGABYTES = 1024


@dataclass(frozen=True)
class Step:
    """A case to be taken, or others to be measured beside one that was."""

    operator: str
    shape: Shape
    policy: str = "exact"
    beside: bool = False


def plan(options: Any) -> Iterator[Step]:
    """What matters most comes first: a run may be cut short after any step."""
    first, *others = options.dtypes
    batches = [B for B in FIRST_BATCHES if B in options.batches]
    rest = [B for B in options.batches if B not in FIRST_BATCHES]

    def shape(B: int, dtype: str, rate: float) -> Shape:
        T = options.tokens
        return Shape(B, DTYPES[dtype], T=T, N=T + 1, rate=rate)

    def steps(dtypes: list[str], batches: list[int], **more: Any) -> Iterator[Step]:
        for dtype in dtypes:
            for operator in options.operators:
                for B in batches:
                    yield Step(operator, shape(B, dtype, RATE), **more)

    yield from steps([first], batches)
    if not options.quick:
        yield from steps([first], batches[:1], beside=True)
    yield from steps([first], [1], policy="published")
    yield from steps(others, batches)
    if not options.quick:
        for B in (B for B in (1, 32) if B in options.batches):
            for rate in (rate for rate in options.rates if rate != RATE):
                for operator in options.operators:
                    yield Step(operator, shape(B, first, rate))
        yield from steps([first], batches[1:2], beside=True)
    yield from steps([first, *others], rest)


def disagreement(shape: Shape, operator: str, policy: str, sample: Inputs) -> str:
    """Which output is not the CPU's, or an empty string."""
    raw = getattr(torch.ops.hired, operator).default
    tensors, integers = sample.arguments(), shape.arguments
    on_gpu = raw(*tensors, *integers, policy=policy)
    on_cpu = raw(*(tensor.cpu() for tensor in tensors), *integers, policy=policy)
    names = ("tokens", "indices", "counts")
    pairs = zip(names, on_gpu, on_cpu, strict=True)
    return ", ".join(name for name, a, b in pairs if not runs.same([a], [b]))


def in_triton(
    operator: str, tensors: list, integers: tuple, ours: Graph, calls: int, measure: Any
) -> dict[str, Any]:
    """The Triton backend on the same inputs, by graph replay and eagerly, or why not."""
    (row,) = [row for row in backends.table() if row.name == "triton"]
    if not row.available:
        return {"failed": row.why}
    try:
        graph = Graph(
            lambda sample: row.functions[operator](*sample, *integers), tensors, ours.calls
        )
        graph()
        pairs = list(zip(graph.results, ours.results, strict=True))
        same = sum(int((a[1] == b[1]).sum()) for a, b in pairs)
        every = sum(a[1].numel() for a, _ in pairs)
        if same < every:  # no cut of these inputs falls between scores that are close
            return {"failed": f"{every - same} of {every} indices are not the cuda backend's"}
        taken = measure(runs.graph_clock, graph=graph)
        burst = Burst(lambda sample: row.functions[operator](*sample, *integers), tensors, calls)
        taken |= measure(runs.wall_clock, eager=burst)
        taken |= measure(runs.enqueue_clock, host=burst)
    except Exception as error:  # whatever a compiler may throw: the run goes on without it
        return {"failed": runs.reason(error)}
    return {"timings": {name: value.as_json() for name, value in taken.items()}}


def case_of(step: Step) -> dict[str, Any]:
    """What of a case is known beforehand, as it goes into the JSON file."""
    shape, floor = step.shape, step.shape.floor_bytes(step.operator)
    return {
        "operator": step.operator,
        "dtype": shape.dtype_name,
        "policy": step.policy,
        "shape": shape.sizes(),
        "bytes": {**floor, "all": sum(floor.values())},
    }


def run_beside(step: Step, cases: list[dict[str, Any]], options: Any) -> None:
    """Adds others' figures to the case that was taken of the same shape, if it was."""
    known = case_of(step)
    for case in cases:
        if "summary" in case and known.items() <= case.items():
            number = min(64, case["input_sets"]["number"])
            samples = runs.make_sets(step.shape, step.operator, number, options.seed)
            contest = step.shape, step.operator, samples, options.seconds
            case["others"] = contenders.measure(*contest, options.compile)
            case["peers"] = peers.measure(*contest)


def run_case(step: Step, copy: timing.Copy, options: Any) -> dict[str, Any]:
    """One operator at one shape."""
    operator, shape, policy = step.operator, step.shape, step.policy
    case = case_of(step)
    total = case["bytes"]["all"]
    number = runs.number_of_sets(shape, operator, total, options.rotate)
    if number == 0:
        return {**case, "left_out": "does not fit the GPU's memory"}
    samples = runs.make_sets(shape, operator, number, options.seed)
    case["input_sets"] = {"number": number, "bytes_touched": number * total}
    if wrong := disagreement(shape, operator, policy, samples[0]):
        return {**case, "wrong": f"{wrong}: not the CPU's"}

    raw, face = getattr(torch.ops.hired, operator).default, getattr(hired, operator)
    integers, pairs = shape.arguments, [(shape.R, shape.C)] * shape.B
    named = {"grids": pairs, "budget": shape.rate, "alpha": shape.alpha, "policy": policy}

    def operate(tensors: tuple) -> tuple:
        return raw(*tensors, *integers, policy=policy)

    tensors = [sample.arguments() for sample in samples]
    graph = Graph(operate, tensors, runs.calls_of_graph(number, total))
    graph()
    for i, results in enumerate(graph.results):
        if not runs.same(results, operate(tensors[i])):
            return {**case, "wrong": f"input set {i}: a graph's results are not an eager call's"}

    def measure(clock: timing.Clock, **contenders: Any) -> dict[str, timing.Timing]:
        # At most 200: what a run takes of the host may be a fraction of what it takes.
        limits = {"seconds": options.seconds, "clock": clock, "runs": (5, 200)}
        taken = timing.measure(contenders, sets=1, **limits)
        calls = {name: getattr(run, "calls", 1) for name, run in contenders.items()}
        return {name: value.each(calls[name]) for name, value in taken.items()}

    taken = measure(runs.graph_clock, graph=graph, copy=copy)
    calls = runs.calls_of_burst(total)
    burst = Burst(operate, tensors, calls)
    taken |= measure(runs.wall_clock, eager=burst)
    by_face = Burst(lambda sample: face(*sample, **named), tensors, calls)
    taken |= measure(runs.enqueue_clock, host=burst, host_face=by_face)
    if policy == "exact" and backends.active("cuda") == "cuda":
        case["triton"] = in_triton(operator, tensors, integers, graph, calls, measure)
    bandwidth = copy.bytes / taken["copy"].median
    case["calls_in_graph"] = graph.calls
    case["timings"] = {name: value.as_json() for name, value in taken.items()}
    case["summary"] = {
        "graph_us": taken["graph"].median * 1e6,
        "gigabytes_per_second": total / taken["graph"].median / 1e9,
        "copy_gigabytes_per_second": bandwidth / 1e9,
        "share_of_copy": total / taken["graph"].median / bandwidth,
        "floor_us": total / bandwidth * 1e6,
    }
    return case


def parse() -> argparse.Namespace:
    parser = command.parser(__doc__)
    add = parser.add_argument
    add("--quick", action="store_true", help="float16, batch 1 and 32; prints only")
    add("--operators", nargs="+", choices=OPERATORS, default=list(OPERATORS))
    add("--dtypes", nargs="+", choices=DTYPES, default=None)
    add("--batches", nargs="+", type=int, default=None)
    add("--tokens", type=int, default=576, help="of a partition (default: %(default)s)")
    add("--rates", nargs="+", type=float, default=list(RATES), help="shares kept, beside 0.2")
    add("--seconds", type=float, default=0.15, help="of each contender (default: %(default)s)")
    add("--rotate", type=float, default=4, help="input sets, in L2s (default: %(default)s)")
    add("--limit", type=float, default=250, help="no step begins later (default: %(default)s s)")
    add(
        "--compile",
        choices=contenders.COMPILED,
        default="default",
        help="torch.compile's contender (default: %(default)s; autotune takes minutes)",
    )
    add("--seed", type=int, default=0)
    command.add_out(parser, "<gpu>.json")
    options = parser.parse_args()
    options.dtypes = options.dtypes or (["float16"] if options.quick else list(DTYPES))
    options.batches = options.batches or ([1, 32] if options.quick else list(BATCHES))
    return options


def main() -> int:
    options = parse()
    if not torch.cuda.is_available():
        print("benchmarks gpu: expected a GPU that PyTorch can use, got none", file=sys.stderr)
        return 2
    if backends.active("cuda") == "reference":
        why = "; ".join(row.why for row in backends.table() if row.why)
        print(f"benchmarks gpu: only the reference serves this GPU: {why}", file=sys.stderr)
        return 2
    start = time.monotonic()
    environment = report.environment("cuda")
    method = {name: getattr(options, name) for name in ("seconds", "rotate", "seed")}
    copy = timing.Copy(COPY_MEGABYTES, "cuda")
    contents = {"environment": environment, "method": {**method, "copy_bytes": copy.bytes}}
    path, cases = options.out, []
    if not path and not options.quick:
        path = report.default_path(environment)
    for step in plan(options):
        shape, what = step.shape, "others" if step.beside else step.policy
        command.progress(
            f"{time.monotonic() - start:5.1f} s: {step.operator} {shape.dtype_name}, "
            f"batch {shape.B}, {shape.rate:.0%}, {what}"
        )
        late = time.monotonic() - start > options.limit
        if late:
            contents["left_out"] = f"what was left after {options.limit:g} s"
        elif step.beside:
            run_beside(step, cases, options)
        else:
            cases.append(run_case(step, copy, options))
        torch.cuda.empty_cache()
        if path:  # each time: a run that is cut short leaves what it has
            report.write_json(path, {**contents, "cases": cases})
        if late:
            break
    versions = f"driver {environment['driver']}", f"torch {environment['torch']}"
    print(report.headline(environment, *versions, f"commit {environment['commit']}"))
    tables.show(cases)
    if "left_out" in contents:
        print(f"left out: {contents['left_out']}")
    if path:
        print(f"written: {path}")
    return 1 if any("wrong" in case for case in cases) else 0
