#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs a benchmark on the GPU that is here, with a bundle's package or one built for it.

    python tools/gpu/benchmark.py SECONDS NAME [ARGUMENTS]      `make bench`: 295 gpu

It is ended after SECONDS; the benchmark has then written what it had. All it says stands in
$OUT/bench-NAME.log, or out/.
"""

from __future__ import annotations

import sys

import package
from stages import Run, Stage, out


def main() -> int:
    seconds, name, *arguments = sys.argv[1:]
    run = Run(out() / f"bench-{name}.log", float(seconds))
    if release := package.obtain(run, "release").get("release"):
        command = [sys.executable, str(package.ROOT / "benchmarks"), name, *arguments]
        variables = package.environment(release)
        run.one(Stage(f"bench {name}", float(seconds), command, variables, release, shown=True))
    return run.end()


if __name__ == "__main__":
    sys.exit(main())
