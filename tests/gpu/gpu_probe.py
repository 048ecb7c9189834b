#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""First contact with a GPU, step by step: every call is named before it is made.

    python tests/gpu/gpu_probe.py --limit 40 machine small llava cold loop

Results are held to the oracle. Every line is flushed as it is said; `--limit` seconds after the
start a traceback of all threads ends the process, so that a call that hangs is the last one named.
In a build with a spin limit (HIRED_SPIN_LIMIT) a kernel that waits in vain says what for, and ends.

machine  PyTorch, the GPU, what serves it
small    the calls of gpu_short_list.py
llava    LLaVA-NeXT's size, all operators, three dtypes
cold     captured in a graph by a process that never called, then replayed on new data; of several
         --operators the first alone is cold
loop     3,000 calls each, compared bit by bit
"""

from __future__ import annotations

import argparse
import faulthandler
import sys
import time
from collections.abc import Callable
from pathlib import Path

START = time.perf_counter()


def say(*words: object) -> None:
    print(f"{time.perf_counter() - START:6.2f}", *words, flush=True)


parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--limit", type=float, default=40, help="seconds (default: %(default)s)")
parser.add_argument("--calls", type=int, default=3000, help="of `loop` (default: %(default)s)")
parser.add_argument("--operators", nargs="+", default=["select", "select_qk", "cls_attention"])
parser.add_argument("--spin", action="store_true", help="expects a build with a spin limit")
parser.add_argument("steps", nargs="+", choices=["machine", "small", "llava", "cold", "loop"])
options = parser.parse_args()
faulthandler.enable()
faulthandler.dump_traceback_later(options.limit, exit=True)

import torch  # noqa: E402  (the watch is set first: this may take half a minute, or hang)

say("PyTorch", torch.__version__, "CUDA", torch.version.cuda)
if not torch.cuda.is_available():
    say("WRONG: PyTorch sees no GPU")
    sys.exit(2)
say("a context:", torch.ones(8, device="cuda").sum().item() == 8)

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from callers import Results, operator, reference  # noqa: E402
from cls_attention_calls import agree  # noqa: E402
from gpu_short_list import CALLS, LLAVA_CALLS  # noqa: E402
from strategies import Call, bits  # noqa: E402
from targets import to_gpu  # noqa: E402
from torch import Tensor  # noqa: E402

import hired_kernels  # noqa: E402
from hired_kernels import _C, backends  # noqa: E402

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
wrong = 0


def on_gpu(call: Call) -> Call:
    return {k: to_gpu(v) if isinstance(v, Tensor) else v for k, v in call.items()}


def check(name: str, results: Results, expected: Results) -> str:
    """`right`, or where the first difference of each output is."""
    global wrong
    results = tuple(result.cpu() for result in results)
    if agree(results, expected):
        return "right"
    wrong += 1
    said = []
    for i, (a, b) in enumerate(zip(results, expected, strict=True)):
        if a.shape != b.shape:
            said.append(f"output {i}: {tuple(a.shape)}, expected {tuple(b.shape)}")
            continue
        # An attention row may differ in its last bits: agree().
        far = bits(a) != bits(b) if len(expected) > 1 else ~((a / b - 1).abs() < 2e-5)
        where = far.nonzero()
        if len(where):
            first = tuple(where[0].tolist())
            said.append(
                f"output {i}: {len(where)} of {a.numel()} differ, at {first}: "
                f"{a[first].item()}, expected {b[first].item()}"
            )
    return f"WRONG: {name}: " + ("; ".join(said) or "bits that compare equal")


def built() -> None:
    """Which package this is, before any of its calls."""
    build = _C.build_info()
    say(hired_kernels.__file__)
    say(f"built for {build['cuda_archs']}, PTX {build['cuda_ptx']}, {build['cuda_compiler']}")
    if bool(build["spin_limit"]) is not options.spin:
        say(f"WRONG: a build with spin limit {build['spin_limit']}")
        sys.exit(2)


def machine() -> None:
    gpu = torch.cuda.get_device_properties(torch.cuda.current_device())
    say(f"{gpu.name}, sm_{gpu.major}{gpu.minor}, {gpu.multi_processor_count} multiprocessors")
    for row in backends.table():
        say(f"{row.name}: {row.why or 'available'}")
    if (serving := backends.active("cuda")) != "cuda":
        say(f"WRONG: {serving} serves this GPU, not cuda")
        sys.exit(2)


def compare(calls: dict[str, Callable[[], tuple[str, Call]]]) -> None:
    for name, make in calls.items():
        op, call = make()
        expected, moved = reference(op, **call), on_gpu(call)
        torch.cuda.synchronize()
        say(name, "...")
        begin = time.perf_counter()
        results = operator(op, **moved)
        host = time.perf_counter() - begin
        torch.cuda.synchronize()
        device = time.perf_counter() - begin
        took = f"host {host * 1e3:.2f} ms, device {device * 1e3:.2f} ms"
        say(name, f"{took}: {check(name, results, expected)}")
        say(name, "again ...")
        say(name, "again:", check(name, operator(op, **moved), expected))


def small() -> None:
    compare({name: lambda make=make: make(1) for name, make in CALLS.items()})


def llava() -> None:
    compare(
        {
            f"{name} {str(dtype)[6:]}": lambda make=make, dtype=dtype: make(1, dtype)
            for name, make in LLAVA_CALLS.items()
            for dtype in DTYPES
        }
    )


def cold() -> None:
    """A graph is captured before anything was launched: code is loaded, counters are made then."""
    for name in options.operators:
        make = LLAVA_CALLS[name]
        op, call = make(1, torch.float16)
        moved, expected = on_gpu(call), reference(op, **call)
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        say(name, "captured ...")
        with torch.cuda.graph(graph):
            results = operator(op, **moved)
        for _ in range(100):
            graph.replay()
        torch.cuda.synchronize()
        say(name, "captured cold:", check(name, results, expected))
        _, call = make(2, torch.float16)
        for argument, value in on_gpu(call).items():
            if isinstance(value, Tensor):
                moved[argument].copy_(value)
        graph.replay()
        torch.cuda.synchronize()
        say(name, "replayed on new data:", check(name, results, reference(op, **call)))


def loop() -> None:
    for name in options.operators:
        op, call = LLAVA_CALLS[name](1, torch.float16)
        moved = on_gpu(call)
        say(name, f"{options.calls} times ...")
        first = operator(op, **moved)
        say(name, check(name, first, reference(op, **call)))
        different = torch.zeros((), dtype=torch.int64, device="cuda")
        for _ in range(options.calls):
            for a, b in zip(operator(op, **moved), first, strict=True):
                different += (bits(a) != bits(b)).sum()
        times = different.item()
        global wrong
        wrong += times > 0
        said = f"WRONG: {times} elements differ" if times else "the same bits"
        say(f"{name}: {options.calls} calls: {said}")


built()
for step in options.steps:
    say("--", step)
    {"machine": machine, "small": small, "llava": llava, "cold": cold, "loop": loop}[step]()
say(f"{wrong} WRONG" if wrong else "done")
sys.exit(wrong > 0)
