#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""`make first-contact`: the first five minutes with a GPU, in order of what each stage tells.

    machine     versions, tools, what serves the GPU
    spin        small calls on a build whose waits have a limit: a hang ends itself, and says where
    calls       the build itself: the same, and LLaVA-NeXT's size, all operators, three dtypes
    cold graph  captured by a process that never called
    loop        3,000 calls each, bit by bit
    times       by graph replay; where a bundle has the build of an earlier commit, in turns
    suites      the tests side by side, Triton's short list, memcheck

What does not make sense ends the run: nothing after `machine`, `spin` and `calls` if one of them
fails. docs/gpu.md says how to read what comes out. In $OUT, or out/: first-contact.log, every line
as it was said, and first-contact.json, the times. The exit code is 1 where something was wrong.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import package
import suites
from package import ROOT
from stages import Run, Stage, out

SECONDS = 290.0  # of all; the first figures stand within 150, the sum of the limits before them
CALLS = os.environ.get("HIRED_LOOP_CALLS", "3000")
TOOLS = ("nvidia-smi", "nvcc", "compute-sanitizer", "ncu", "cuobjdump")
PACKAGES = r"^(torch|triton|numpy|transformers|setuptools|pybind11|cmake|ninja|pytest|hypothesis) "


def probe(name: str, limit: float, folder: Path, *steps: str) -> Stage:
    limit = min(limit, float(os.environ.get("HIRED_STAGE_SECONDS", limit)))
    command = [sys.executable, str(ROOT / "tests" / "gpu_probe.py"), "--limit", str(limit - 2)]
    command += ["--calls", CALLS, *steps]
    return Stage(name, limit, command, package.environment(folder), folder)


def machine(run: Run) -> bool:
    for tool in TOOLS:
        run.say(f"   {tool}: {shutil.which(tool) or 'none'}")
    pip = f"{sys.executable} -m pip list 2>/dev/null | grep -E '{PACKAGES}'"
    ask = f"{pip}; nvidia-smi; uname -a; nproc; head -n 1 /proc/meminfo; true"
    return run.one(Stage("machine: tools", 20, ["bash", "-c", ask]))


def times(run: Run, release: Path, before: Path | None) -> None:
    builds = [("release", release, package.commit())]
    if before is not None:
        builds.insert(0, ("before", before, package.manifest().get("before", "")))
    results = out() / "first-contact.json"
    results.unlink(missing_ok=True)
    script = ROOT / "benchmarks" / "gpu_first_times.py"
    for label, folder, commit in builds * (2 if before is not None else 1):
        command = [sys.executable, str(script), "--label", label, "--out", str(results)]
        command += os.environ.get("HIRED_FIRST_TIMES", "").split()
        variables = package.environment(folder, HIRED_COMMIT=commit)
        run.one(Stage(f"times: {label}", 45, command, variables, folder))


def stages(run: Run) -> None:
    """As far as they make sense. The limits up to the first figures add up to 150 seconds."""
    if not machine(run):
        return
    built = package.obtain(run, "release", "spin")
    if not {"release", "spin"} <= built.keys():
        return
    release = built["release"]
    for stage in (
        probe("machine: GPU", 40, release, "machine"),
        probe("spin", 35, built["spin"], "small"),
        probe("calls", 25, release, "small", "llava"),
    ):
        if not run.one(stage):
            return
    run.one(probe("cold graph", 15, release, "cold"))
    run.one(probe("loop", 15, release, "loop"))
    times(run, release, package.bundled("before"))
    run.side_by_side(suites.first(release, limit=110))


def lines_of(run: Run, word: str) -> Sequence[str]:
    return [line for stage in run.stages for line in stage.lines if line.startswith(word)]


def main() -> int:
    run = Run(out() / "first-contact.log", SECONDS)
    run.say(f"first contact: {package.why_not_the_bundle() or package.BUNDLE}; {package.commit()}")
    stages(run)
    return run.end(lines_of(run, "TIME"))


if __name__ == "__main__":
    sys.exit(main())
