#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""`make first-contact`: the first five minutes with a GPU, in order of what each stage tells.

    machine     versions, tools, what serves the GPU
    spin        small calls on a build whose waits have a limit: a hang ends itself, and says where
    calls       the build itself: the same, and LLaVA-NeXT's size, all operators, three dtypes
    cold        each operator captured by a process that never called
    loop        3,000 calls each, bit by bit
    times       by graph replay; where a bundle has the build of an earlier commit, in turns
    suites      the tests side by side, Triton's short list, memcheck

What does not make sense ends the run: nothing after `machine`, `spin` and `calls` if one of them
fails. docs/gpu.md says how to read what comes out. In $OUT, or out/: first-contact.log, every line
as it was said, and first-contact.json, the times. The exit code is 1 where something was wrong.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import package
import suites
from package import ROOT
from stages import PATIENCE, Run, Stage, out

SECONDS = 275.0  # of all; what is killed may take ten more to die
# Rehearsals ask for less: HIRED_LOOP_CALLS, HIRED_FIRST_TIMES.
CALLS = os.environ.get("HIRED_LOOP_CALLS", "3000")
OPERATORS = ("select", "select_qk", "cls_attention")
TOOLS = ("nvidia-smi", "nvcc", "compute-sanitizer", "ncu", "cuobjdump")
VERSIONS = """
import importlib.metadata as m
names = "torch triton numpy transformers setuptools pybind11 cmake ninja pytest hypothesis".split()
for d in m.distributions():
    if d.name.lower() in names:
        print(d.name, d.version)
"""


def probe(name: str, limit: float, folder: Path, *arguments: str) -> Stage:
    own = str(limit * PATIENCE - 2)  # so that it can say where it hangs
    command = [sys.executable, str(ROOT / "tests" / "gpu" / "gpu_probe.py"), "--limit", own]
    command += ["--calls", CALLS, *arguments]
    return Stage(name, limit, command, package.environment(folder), folder)


def machine() -> Stage:
    """For the record: whatever becomes of it, the run goes on."""
    ask = "nvidia-smi; uname -a; nproc; head -n 1 /proc/meminfo"
    ask += "".join(f"; command -v {tool} || echo no {tool}" for tool in TOOLS)
    command = f"{ask}; {sys.executable} -c '{VERSIONS}'; true"
    return Stage("machine: tools", 30, ["bash", "-c", command])


def times(run: Run, release: Path, before: Path | None) -> None:
    builds = [("release", release, package.commit())]
    if before is not None:
        builds.append(("before", before, package.manifest().get("before", "")))
    results = out() / "first-contact.json"
    results.unlink(missing_ok=True)
    script = [sys.executable, str(ROOT / "benchmarks"), "gpu.first_times"]
    for label, folder, commit in builds * (2 if before is not None else 1):
        command = [*script, "--label", label, "--out", str(results)]
        command += os.environ.get("HIRED_FIRST_TIMES", "").split()
        variables = package.environment(folder, HIRED_COMMIT=commit)
        run.one(Stage(f"times: {label}", 45, command, variables, folder))


def stages(run: Run) -> None:
    """As far as they make sense. The limits up to the first figures add up to 125 seconds."""
    built = package.obtain(run, "release", "spin")
    if not {"release", "spin"} <= built.keys():
        return
    release = built["release"]
    gpu = probe("machine: GPU", 55, release, "machine")  # the first import of PyTorch is slow
    run.side_by_side([machine(), gpu])
    if not gpu.good:
        return
    if not run.one(probe("spin", 25, built["spin"], "small", "--spin")):
        return
    if not run.one(probe("calls", 20, release, "small", "llava")):
        return
    run.side_by_side(
        [probe(f"cold {name}", 12, release, "cold", "--operators", name) for name in OPERATORS]
    )
    run.one(probe("loop", 13, release, "loop"))
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
