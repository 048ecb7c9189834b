#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""`make test-gpu`: all tests that want a GPU, within five minutes on sixteen cores.

The short list alone first, by both backends; then the CUDA backend's tests and memcheck side by
side, then Triton's, the code for Pascal and the other tools of compute-sanitizer. A suite ends at
its third failure, hypothesis does not shrink, and what hangs is named by its own traceback. What
is said stands in $OUT/test-gpu.log, or out/, at once; the last lines are a table and the number of
tests.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

import package
from package import ROOT
from stages import Run, Stage, out

SECONDS = 295.0
TESTS = ROOT / "tests"
CUDA_SUITES = ("test_gpu", "test_gpu_calls", "test_parity", "test_invariants", "test_cls_attention")
PASCAL_SUITES = ("test_gpu", "test_gpu_calls", "test_parity")
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
HANGS = 40  # seconds in one test, after which it tells where it is
# In Triton a new shape takes seconds to compile, so that of tables of shapes some do.
TRITON = {"HIRED_BACKEND": "triton", "HIRED_TEST_TARGET": "triton"}
TRITON["HIRED_TEST_EXAMPLES"] = os.environ.get("HIRED_TEST_EXAMPLES", "5")
TABLES = ["-k", "not rows_of_any_dtype and not begin_anywhere"]


def environment(folder: Path, **more: str) -> dict[str, str]:
    cache = str(ROOT / "build" / "gpu" / "triton")
    ours = {"HIRED_TEST_TARGET": "cuda", "HIRED_TEST_SHRINK": "0", "TRITON_CACHE_DIR": cache}
    return package.environment(folder, **{**ours, **more})


def suite(
    name: str, folder: Path, limit: float, *arguments: str, prefix: str = "", **more: str
) -> Stage:
    """A file of tests. Python finds the package of the folder it starts in before any other."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--rootdir", str(ROOT)]
    # Twice verbose, since pyproject.toml says -q: each test is named before it runs.
    command += ["-c", str(ROOT / "pyproject.toml"), "-vvra", "--maxfail=3", "--tb=short"]
    command += [*arguments, "-o", f"faulthandler_timeout={HANGS}", str(TESTS / f"{name}.py")]
    variables = environment(folder, **more)
    return Stage(prefix + name, limit, command, variables, folder, unlogged=r" PASSED|^PASSED")


def short_list(folder: Path, limit: float, **more: str) -> Stage:
    name = f"{more.get('HIRED_BACKEND', 'cuda')} short list"
    command = [sys.executable, str(TESTS / "gpu_short_list.py")]
    return Stage(name, limit, command, environment(folder, **more), folder)


def checked(tool: str, folder: Path, limit: float, **more: str) -> Stage:
    """The short list under one of compute-sanitizer's tools. Memory comes straight from the driver:
    what lies beside a tensor is then nobody's, and the tool knows."""
    program = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    stage = short_list(folder, limit, PYTORCH_NO_CUDA_MEMORY_CACHING="1", **more)
    flags = ["--tool", tool, "--error-exitcode", "1", "--report-api-errors", "no"]
    stage.name = f"{more.get('HIRED_BACKEND', 'cuda')} {tool}"
    stage.command, stage.expected = [program, *flags, *stage.command], "ERROR SUMMARY: 0 errors"
    if tool == "racecheck":
        stage.expected = "RACECHECK SUMMARY: 0 hazards"
    return stage


def first(folder: Path, limit: float) -> list[Stage]:
    """Those of first contact, side by side."""
    examples = os.environ.get("HIRED_TEST_EXAMPLES", "30")
    return [
        *(suite(name, folder, limit, HIRED_TEST_EXAMPLES=examples) for name in CUDA_SUITES),
        short_list(folder, limit, **TRITON),
        checked("memcheck", folder, limit),
    ]


def second(folder: Path, limit: float) -> list[Stage]:
    return [
        *(suite(name, folder, limit) for name in (*CUDA_SUITES, "test_bad_calls")),
        checked("memcheck", folder, limit),
    ]


def third(folder: Path, limit: float, pascal: Path | None) -> list[Stage]:
    """`pascal` has code for sm_61 alone, whose PTX the driver compiles for the GPU that is here."""
    return [
        *(
            suite(name, folder, limit, *TABLES, prefix="triton ", **TRITON)
            for name in ("test_gpu", "test_gpu_calls")
        ),
        *(
            suite(name, folder, limit, "-m", "not whole_list", prefix="triton ", **TRITON)
            for name in ("test_parity", "test_invariants", "test_cls_attention")
        ),
        *(suite(name, pascal, limit, prefix="pascal ") for name in PASCAL_SUITES if pascal),
        *(checked(tool, folder, limit) for tool in TOOLS[1:]),
        *(checked(tool, folder, limit, **TRITON) for tool in TOOLS),
    ]


def counted(stages: Iterable[Stage]) -> str:
    """Tests over all suites; a tool, or a suite that did not get as far as to count, is one."""
    number = {"passed": 0, "failed": 0, "error": 0, "skipped": 0}
    for stage in stages:
        found = re.findall(r"(\d+) (passed|failed|error|skipped)", "\n".join(stage.lines[-1:]))
        for times, what in found:
            number[what] += int(times)
        if not found:
            number["passed" if stage.good else "failed"] += 1
    failed = number["failed"] + number["error"]
    return f"{number['passed']} passed, {failed} failed, {number['skipped']} skipped"


def main() -> int:
    run = Run(out() / "test-gpu.log", SECONDS)
    run.say(f"   commit {package.commit()}")
    built = package.obtain(run, "release", "pascal")
    if (release := built.get("release")) and run.one(short_list(release, 40)):
        run.one(short_list(release, 60, **TRITON))
        run.side_by_side(second(release, 140))
        run.side_by_side(third(release, 150, built.get("pascal")))
    return run.end([counted(run.stages)])


if __name__ == "__main__":
    sys.exit(main())
