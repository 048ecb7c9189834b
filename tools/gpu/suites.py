#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""`make test-gpu`: all tests that want a GPU, within five minutes on sixteen cores.

    python3 tools/gpu/suites.py [NAME ...]      only those of the table with these names

The short list alone first; then the CUDA backend's tests and memcheck side by side; then Triton's
and the code for Pascal; then the other tools of compute-sanitizer. A suite ends at its third
failure, hypothesis does not shrink, and what hangs is named by its own traceback. What is said
stands in $OUT/test-gpu.log, or out/, at once; the last lines are a table and the number of tests.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
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
SUMMARIES = {"racecheck": "RACECHECK SUMMARY: 0 hazards"}
ALL_RIGHT = r"^\d+ right$"  # of the short list
FEW_REPEATS = {"HIRED_TEST_REPEATS": os.environ.get("HIRED_TEST_REPEATS", "300")}
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
    (path,) = TESTS.glob(f"*/{name}.py")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--rootdir", str(ROOT)]
    # Twice verbose, since pyproject.toml says -q: each test is named before it runs.
    command += ["-c", str(ROOT / "pyproject.toml"), "-vvra", "--maxfail=3", "--tb=short"]
    command += [*arguments, "-o", f"faulthandler_timeout={HANGS}", str(path)]
    variables = environment(folder, **more)
    return Stage(prefix + name, limit, command, variables, folder, unlogged=r" PASSED|^PASSED")


def short_list(folder: Path, limit: float, **more: str) -> Stage:
    name = f"{more.get('HIRED_BACKEND', 'cuda')} short list"
    command = [sys.executable, str(TESTS / "gpu" / "gpu_short_list.py")]
    return Stage(name, limit, command, environment(folder, **more), folder, expected=[ALL_RIGHT])


def checked(tool: str, folder: Path, limit: float, **more: str) -> Stage:
    """The short list under one of compute-sanitizer's tools. Memory comes straight from the driver:
    what lies beside a tensor is then nobody's, and the tool knows."""
    program = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    stage = short_list(folder, limit, PYTORCH_NO_CUDA_MEMORY_CACHING="1", **more)
    flags = ["--tool", tool, "--error-exitcode", "1", "--target-processes", "application-only"]
    if tool == "memcheck":
        flags += ["--report-api-errors", "no"]
    stage.name = f"{more.get('HIRED_BACKEND', 'cuda')} {tool}"
    stage.command = [program, *flags, *stage.command]
    stage.expected = [ALL_RIGHT, SUMMARIES.get(tool, "ERROR SUMMARY: 0 errors")]
    return stage


def triton_serves() -> bool:
    """Whether the GPU that is here is one that Triton takes; where nobody knows, it is tried."""
    ask = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        said = subprocess.run(ask, capture_output=True, text=True, check=True).stdout.split()
        return not said or max(map(float, said)) >= 7.5
    except (OSError, ValueError, subprocess.CalledProcessError):
        return True


def first(folder: Path, limit: float) -> list[Stage]:
    """Those of first contact, side by side."""
    few = {"HIRED_TEST_EXAMPLES": os.environ.get("HIRED_TEST_EXAMPLES", "30"), **FEW_REPEATS}
    return [
        *(suite(name, folder, limit, **few) for name in CUDA_SUITES),
        *([short_list(folder, limit, **TRITON)] if triton_serves() else []),
        checked("memcheck", folder, limit),
    ]


def in_cuda(folder: Path, limit: float) -> list[Stage]:
    return [
        *(suite(name, folder, limit) for name in (*CUDA_SUITES, "test_bad_calls")),
        *([short_list(folder, limit, **TRITON)] if triton_serves() else []),
        checked("memcheck", folder, limit),
    ]


def in_triton(folder: Path, limit: float) -> list[Stage]:
    few = {**TRITON, **FEW_REPEATS, "prefix": "triton "}
    some = ("-m", "not whole_list")
    return [
        *(suite(name, folder, limit, *TABLES, **few) for name in CUDA_SUITES[:2]),
        *(suite(name, folder, limit, *some, **few) for name in CUDA_SUITES[2:]),
    ]


def for_pascal(folder: Path, limit: float) -> list[Stage]:
    """Code for sm_61 alone, whose PTX the driver compiles for the GPU that is here."""
    few = {**FEW_REPEATS, "prefix": "pascal "}
    return [suite(name, folder, limit, **few) for name in PASCAL_SUITES]


def other_tools(folder: Path, limit: float) -> list[Stage]:
    stages = [checked(tool, folder, limit) for tool in TOOLS[1:]]
    if triton_serves():
        stages += [checked(tool, folder, limit, **TRITON) for tool in TOOLS]
    return stages


def counted(stages: Iterable[Stage]) -> str:
    """Tests over all suites; a tool is one, and so is what went wrong without a test to show it."""
    number = {"passed": 0, "failed": 0, "error": 0, "skipped": 0}
    for stage in stages:
        summary = next((x for x in reversed(stage.lines) if re.match(r"=+ .* in [\d.]+s", x)), "")
        found = re.findall(r"(\d+) (passed|failed|error|skipped)", summary)
        for times, what in found:
            number[what] += int(times)
        if stage.good and not found:
            number["passed"] += 1
        if not stage.good and not any(what in ("failed", "error") for _, what in found):
            number["failed"] += 1
    failed = number["failed"] + number["error"]
    return f"{number['passed']} passed, {failed} failed, {number['skipped']} skipped"


def main() -> int:
    run = Run(out() / "test-gpu.log", SECONDS)
    names = sys.argv[1:]

    def asked(stages: list[Stage]) -> list[Stage]:
        return [stage for stage in stages if not names or stage.name in names]

    run.say(f"   commit {package.commit()}")
    built = package.obtain(run, "release", "pascal")
    if (release := built.get("release")) and run.one(short_list(release, 40)):
        run.side_by_side(asked(in_cuda(release, 110)))
        third = in_triton(release, 90) if triton_serves() else []
        third += for_pascal(built["pascal"], 90) if "pascal" in built else []
        run.side_by_side(asked(third))
        run.side_by_side(asked(other_tools(release, 50)))
    return run.end([counted(run.stages)])


if __name__ == "__main__":
    sys.exit(main())
