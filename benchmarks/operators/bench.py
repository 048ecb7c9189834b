# SPDX-License-Identifier: Apache-2.0
"""`select` and `select_qk` on the CPU: the operators, the published method, PyTorch, the bytes.

LLaVA-NeXT pictures of a full image and 2 x 2 sub-images, 20 % of their tokens kept. Every contender
has to give the operators' own tokens, bit for bit, before it is timed. benchmarks/README.md says
what the columns are; nothing here asserts how fast anything is.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import hired_kernels as hired
from hired_kernels.cli import terminal

from ..shared import baselines, inputs, report, timing
from ..shared.command import progress
from ..shared.inputs import OPERATORS, Inputs, Shape

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
COPY_MEGABYTES = 256
# Speed-ups over (a) and (b), and the ratio to (c), aimed at for one picture in float32, two cores.
TARGETS = {"select": (None, 5, None), "select_qk": (150, 8, 2)}


def contenders(shape: Shape, operator: str) -> dict[str, tuple[str, Callable[[Inputs], tuple]]]:
    """By name: the policy that a contender follows, and the contender."""
    face = getattr(hired, operator)
    raw = getattr(torch.ops.hired, operator).default
    pairs = [(shape.R, shape.C)] * shape.B
    options = {"grids": pairs, "budget": shape.rate, "alpha": shape.alpha}
    compositions = baselines.compositions(shape, operator)
    return {
        "hired": ("exact", lambda x: face(*x.arguments(), **options)),
        "torch.ops.hired": ("exact", lambda x: raw(*x.arguments(), *shape.arguments)),
        "hired, published": (
            "published",
            lambda x: face(*x.arguments(), **options, policy="published"),
        ),
        "published method": ("published", baselines.published_method(shape, operator)),
        **{f"torch, {name}": ("exact", run) for name, run in compositions.items()},
    }


def disagreements(shape: Shape, operator: str, sample: Inputs) -> list[str]:
    """Contenders that do not give the operator's tokens."""
    expected, wrong = baselines.operators_tokens(shape, operator, sample), []
    for name, (policy, run) in contenders(shape, operator).items():
        result = run(sample)
        tokens = result.compact().tokens if isinstance(result, hired.Selection) else result[0]
        if not torch.equal(tokens, expected[policy]):
            wrong.append(name)
    return wrong


def run_case(shape: Shape, operator: str, copy: timing.Copy, options: Any) -> dict[str, Any]:
    """One operator at one shape, as it goes into the JSON file; raises where results disagree."""
    floor = shape.floor_bytes(operator)
    touched = sum(floor.values()) - floor["kept tokens"] // 2  # written rows are new each time
    sets = options.sets or math.ceil(options.rotate * report.last_cache_bytes() / touched)
    generator = torch.Generator().manual_seed(options.seed)
    samples = [inputs.make(shape, operator, generator) for _ in range(sets)]
    wrong = disagreements(shape, operator, samples[0])
    if wrong:
        raise SystemExit(f"{operator}, {shape}: not the operator's tokens: {', '.join(wrong)}")

    def on_samples(run: Callable[[Inputs], tuple]) -> timing.Call:
        return lambda index: run(samples[index])

    calls = {name: on_samples(run) for name, (_, run) in contenders(shape, operator).items()}
    keep = contextlib.nullcontext(False) if options.system_malloc else timing.keep_freed_memory()
    with keep as kept:
        timings = timing.measure({**calls, "copy": copy}, sets=sets, seconds=options.seconds)
    bandwidth = copy.bytes / timings["copy"].median
    return {
        "operator": operator,
        "dtype": shape.dtype_name,
        "shape": shape.sizes(),
        "bytes": {**floor, "all": sum(floor.values())},
        "input_sets": {"number": sets, "bytes_read": sets * touched},
        "malloc_keeps_freed_memory": kept,
        "contenders": {name: value.as_json() for name, value in timings.items()},
        "summary": _summary(timings, sum(floor.values()) / bandwidth, bandwidth),
    }


def _summary(
    timings: dict[str, timing.Timing], floor: float, bandwidth: float
) -> dict[str, float | str]:
    ours = timings["hired"].median
    best = min((name for name in timings if name.startswith("torch, ")), key=_median_of(timings))
    return {
        "hired_us": ours * 1e6,
        "best_composition": best,
        "speedup_over_published_method": timings["published method"].median / ours,
        "speedup_over_plain_composition": timings["torch, plain"].median / ours,
        "speedup_over_best_composition": timings[best].median / ours,
        "floor_us": floor * 1e6,
        "ratio_to_floor": ours / floor,
        "copy_gigabytes_per_second": bandwidth / 1e9,
    }


def _median_of(timings: dict[str, timing.Timing]) -> Callable[[str], float]:
    return lambda name: timings[name].median


def print_table(cases: list[dict[str, Any]]) -> None:
    header = (
        "median us", "B", "hired", "p10-p90", "torch.ops", "published", "(a) as published", "",
        "(b) plain", "", "(b) best", "", "", "(c) bytes", "",
    )  # fmt: skip
    rows = []
    for case in cases:
        taken, summary = case["contenders"], case["summary"]

        def us(name: str, field: str = "median_us", taken: Any = taken) -> str:
            return report.microseconds(taken[name][field] * 1e-6)

        best = summary["best_composition"]
        rows.append((
            f"{case['operator']} {case['dtype']}", str(case["shape"]["B"]), us("hired"),
            f"{us('hired', 'p10_us')}-{us('hired', 'p90_us')}", us("torch.ops.hired"),
            us("hired, published"), us("published method"),
            report.times(summary["speedup_over_published_method"]), us("torch, plain"),
            report.times(summary["speedup_over_plain_composition"]), us(best),
            report.times(summary["speedup_over_best_composition"]), best.removeprefix("torch, "),
            report.microseconds(summary["floor_us"] * 1e-6),
            report.times(summary["ratio_to_floor"]),
        ))  # fmt: skip
    print(report.table(header, rows))
    for case in cases:
        if case["shape"]["B"] == 1 and case["dtype"] == "float32":
            print(_beside_target(case))


def _beside_target(case: dict[str, Any]) -> str:
    over_a, over_b, to_c = TARGETS[case["operator"]]
    summary, parts = case["summary"], []
    if over_a:
        parts.append(f"(a) {report.times(summary['speedup_over_published_method'])} of {over_a}x")
    plain, best = (summary[f"speedup_over_{which}_composition"] for which in ("plain", "best"))
    parts.append(f"(b) plain {report.times(plain)}, best {report.times(best)} of {over_b}x")
    if to_c:
        parts.append(f"(c) {report.times(summary['ratio_to_floor'])}, at most {to_c}x")
    return f"reached and aimed at, {case['operator']}, one picture, float32: {'; '.join(parts)}"


def _count(text: str) -> int:
    return _one_of("an integer from 1 to 2^31 - 1", int, lambda count: 0 < count < 1 << 31, text)


def _seed(text: str) -> int:
    return _one_of("an integer from 0 to 2^63 - 1", int, lambda seed: 0 <= seed < 1 << 63, text)


def _positive(text: str) -> float:
    return _one_of("a number above 0", float, lambda number: 0 < number < math.inf, text)


def _file(text: str) -> Path:
    return _one_of("the name of a file that can be written", Path, _can_be_written, text)


def _can_be_written(path: Path) -> bool:
    """Found out before anything is measured; makes the folder."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():  # a folder, a device, a pipe
            return False
        whole = report.beside(path)
        whole.touch()
        whole.unlink()
        return True
    return False


def _one_of(
    expected: str, kind: Callable[[str], Any], fits: Callable[[Any], Any], text: str
) -> Any:
    with contextlib.suppress(ValueError):
        if fits(value := kind(text)):
            return value
    raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")


def parse() -> argparse.Namespace:
    parser = terminal.Parser(prog="hired bench", description=__doc__.partition("\n\n")[0])
    add = parser.add_argument
    add("--operators", nargs="+", choices=OPERATORS, default=OPERATORS)
    add("--batches", nargs="+", type=_count, default=[1, 4, 16], help="pictures in a call (1 4 16)")
    add("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    add("--threads", type=_count, default=torch.get_num_threads(), help="PyTorch's threads (all)")
    add("--seconds", type=_positive, default=2.0, help="for each contender at each shape (2)")
    add("--rotate", type=_positive, default=4.0, help="bytes of all inputs over the last cache (4)")
    add("--sets", type=_count, help="input sets instead; 1 leaves the inputs in the cache")
    add("--system-malloc", action="store_true", help="let malloc return memory: page faults count")
    add("--seed", type=_seed, default=0)
    add("--quick", action="store_true", help="one picture, 0.1 seconds; no file without --out")
    add("--out", type=_file, help="JSON file (benchmarks/results/cpu.json)")
    options = parser.parse_args()
    if options.quick:
        options.batches, options.seconds = [1], 0.1
    elif options.out is None:
        options.out = report.RESULTS / "cpu.json"
    return options


def main() -> int | None:
    return terminal.run("hired bench", run)


@torch.inference_mode()
def run() -> int:
    options = parse()
    torch.set_num_threads(options.threads)
    environment = report.environment()
    if environment["load_average"] > 0.2 * (os.cpu_count() or 1):
        load = environment["load_average"]
        progress(f"note: load average {load:.1f}: other work will show")
    copy = timing.Copy(COPY_MEGABYTES)
    cases = []
    for operator in options.operators:
        for dtype in options.dtypes:
            for B in options.batches:
                progress(f"{operator} {dtype}, batch {B} ...")
                cases.append(run_case(Shape(B, DTYPES[dtype]), operator, copy, options))
    if options.out:
        method = {name: getattr(options, name) for name in ("seconds", "rotate", "sets", "seed")}
        method["copy_bytes"] = copy.bytes
        contents = {"environment": environment, "method": method, "cases": cases}
        try:
            report.write_json(options.out, contents)
        except OSError as error:
            terminal.complain("hired bench", f"out {options.out}: {error.strerror}")
            return 2
    print(f"{environment['cpu']}, {environment['threads']} threads, torch {torch.__version__}")
    print_table(cases)
    if options.out:
        print(f"written: {options.out}")
    return 0
