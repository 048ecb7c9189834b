#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Loads, waits, barriers and the like of each phase of each kernel, out of the machine code.

    python tools/machine_code.py [--archs "61;90"] [--hot]

A phase is a path of functions of the source: the job, or else the kernel, and in it what PHASES
names. Instructions are told apart by the lines that the compiler says they come from, through all
that was inlined; that changes no instruction (and of sm_61 some registers). What is counted how:
tools/sass_counts.py. --hot prints the hot phases alone, ready to be pasted into
tests/build/test_machine_code.py.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import cuda_toolchain
import device_code
import sass
import sass_counts
from kernel_report import demangle
from sass import Place
from sass_counts import Counts
from source_functions import functions_of

Chain = tuple[tuple[str, str], ...]  # file and function, from the kernel inwards
CSRC = device_code.ROOT / "csrc"
SOURCES = ("select_cuda", "cls_attention_cuda")
HOT_SOURCES = ("select_cuda",)
# What makes a path: the outermost function that ends so, or else the kernel; then the functions of
# these files, and those that wait for other blocks or are waited for.
JOB = "_job"
PHASES = ("phases/", "heads.cuh", "queries.cuh", "query_tile.cuh")
HAND_OVERS = ("wait_for", "arrive")
# The hot phases: kernel, then functions that enclose each other, with or without others between.
HOT_ARCHS = (61, 80, 90, 100)
HOT_GPUS = tuple(f"sm_{arch}" for arch in HOT_ARCHS)
HOT = {
    "scores, float16": ("select_kernel<Float16, FromRows, 4>", "choose_job", "score_attention"),
    "scores, float32": ("select_kernel<float, FromRows, 4>", "choose_job", "score_attention"),
    "scores of the full image, float16": (
        "select_kernel<Float16, FromRows, 4>", "weigh_job", "score_attention"),
    "scores of the full image, float32": (
        "select_kernel<float, FromRows, 4>", "weigh_job", "score_attention"),
    "a head": ("select_kernel<Float16, FromOneQuery, 4>", "heads_job", "attend"),
    "its dot products": ("select_kernel<Float16, FromOneQuery, 4>", "heads_job", "dot_by_pieces"),
    "its softmax": ("select_kernel<Float16, FromOneQuery, 4>", "heads_job", "add_softmax"),
    "a run of queries": ("select_kernel<Float16, FromQueries, 4>", "queries_job", "attend_run"),
    "its slices of keys": ("select_kernel<Float16, FromQueries, 4>", "queries_job", "stage_pieces"),
    "its products": ("select_kernel<Float16, FromQueries, 4>", "queries_job", "multiply"),
    "scores of queries": ("select_kernel<Float16, FromQueries, 4>", "choose_job", "score_queries"),
    "first histogram": ("select_kernel<Float16, FromRows, 4>", "choose_job", "survey"),
    "radix selection": ("select_kernel<Float16, FromRows, 4>", "choose_job", "choose"),
    "radix selection, weighing": ("select_kernel<Float16, FromRows, 4>", "weigh_job", "choose"),
    "a gather job": ("select_kernel<Float16, FromRows, 4>", "gather_job"),
    "its copy": ("select_kernel<Float16, FromRows, 4>", "gather_job", "WarpGroup::copy"),
}  # fmt: skip
HOT_KERNELS = {path[0] for path in HOT.values()}


# Phases -------------------------------------------------------------------------------------------


@lru_cache
def chain_of(place: Place) -> Chain:
    """File and function, from the kernel inwards; what is not of csrc/ is left out."""
    chain = []
    for name, line in place:
        path = Path(os.path.normpath(name))
        if path.is_relative_to(CSRC):
            lines = functions_of(str(path))
            if function := lines[line] if line < len(lines) else "":
                chain.append((str(path.relative_to(CSRC)), function))
    return tuple(chain)


@lru_cache
def phase_of(kernel: str, chain: Chain) -> str:
    """`choose_job / score_attention`"""
    jobs = [function for _, function in chain if function.endswith(JOB)]
    path = [jobs[0] if jobs else kernel.split("<")[0]]
    for file, function in chain:
        if file.startswith(PHASES) or function in HAND_OVERS:
            path = path[: path.index(function)] if function in path else path
            path.append(function)
    return " / ".join(path)


@dataclass(frozen=True)
class Part:
    """Instructions of a kernel with the same functions around them."""

    source: str
    kernel: str
    arch: int
    chain: Chain
    counts: Counts

    def holds(self, hot: tuple[str, ...]) -> bool:
        around = iter([function for _, function in self.chain])
        return self.kernel == hot[0] and all(name in around for name in hot[1:])


def completed(chains: Iterable[Chain], kernel: str) -> Iterator[Chain]:
    """Chains that a compiler has cut off at the outer end, as nvcc does in some loops that it
    unrolls, get what is missing from the last one before that has their beginning."""
    last: dict[tuple[str, str], Chain] = {}  # of a function, what is around it
    for chain in chains:
        if chain and chain[0][1] != kernel:
            chain = last.get(chain[0], ()) + chain
        yield chain
        if chain and chain[0][1] == kernel:
            last.update((function, chain[:at]) for at, function in enumerate(chain))


def parts_of(listing: Iterable[str], source: str, arch: int, hot: bool) -> Iterator[Part]:
    for symbol, code in sass.read_listing(listing):
        kernel = demangle(symbol)
        if hot and kernel not in HOT_KERNELS:
            continue
        chains = completed((chain_of(one.place) for one in code), kernel.split("<")[0])
        for chain, counts in sass_counts.count(zip(chains, code, strict=True)).items():
            yield Part(source, kernel, arch, chain, counts)


def parts(archs: Iterable[int], hot: bool = False) -> list[Part]:
    """Compiled and counted, on two cores; of all sources, or the hot phases' kernels. Raises
    device_code.Missing where a tool lacks."""
    tools = {arch: device_code.tools(arch) for arch in archs}
    work = [(source, arch) for source in (HOT_SOURCES if hot else SOURCES) for arch in tools]
    with tempfile.TemporaryDirectory() as folder:

        def listing(job: tuple[str, int]) -> list[str]:
            source, arch = job
            return device_code.listing(CSRC / f"{source}.cu", tools[arch], Path(folder))

        with ThreadPoolExecutor(2) as pool:
            done = zip(work, pool.map(listing, work), strict=True)
            return [part for job, lines in done for part in parts_of(lines, *job, hot)]


def by_phase(found: Iterable[Part]) -> dict[tuple[str, str, str], Counts]:
    """The counts of each kernel, phase and architecture, in that order; phases of none left out."""
    phases: dict[tuple[str, str, int], Counts] = {}
    for part in found:
        key = (part.kernel, phase_of(part.kernel, part.chain), part.arch)
        phases[key] = phases.get(key, Counts()) + part.counts
    ordered = sorted((key, counts) for key, counts in phases.items() if any(counts.row()))
    return {(k, phase, f"sm_{arch}"): counts for (k, phase, arch), counts in ordered}


def hot_counts(found: Iterable[Part]) -> dict[tuple[str, str], Counts]:
    """Of each hot phase and architecture. A phase that a kernel has not is not among them."""
    found = list(found)
    hot: dict[tuple[str, str], Counts] = {}
    for name, path in HOT.items():
        for part in found:
            if part.holds(path):
                key = (name, f"sm_{part.arch}")
                hot[key] = hot.get(key, Counts()) + part.counts
    return hot


HEAD = """
## Trips to memory

What a picture takes is a chain of trips to memory, barriers and hand-overs, of which each begins
when the one before it has ended. This is counted out of the machine code: global loads, and those
of them that pass by the first-level cache; *waits*, the first uses of what is under way, upon which
all of it counts as returned (48 loads and then their uses are one wait; load, use, load, use are
two); scoreboard waits, those that the code makes the machine take, more where loads share one of
its six scoreboards with something else; barriers of the block; global atomics; fences for more than
the block; invalidations of the first-level cache; loads and atomics of shared memory. A row counts
what stands in the code, not what a thread runs: a loop once, each copy that unrolling made of it,
every branch, so that a copy has its four widths of access. Read it for how many waits there are to
so many loads, and for what grows from one version to the next. Scores and selection are those of
the job `choose`, or where it says so of `weigh`; a head is all of `attend`, its dot products are
those by 16 bytes, and a run of queries is all of `attend_run`, both of its tiles. All phases of all
kernels are printed by `make kernel-report`, and tests/build/test_machine_code.py holds those here.

"""


# Tables -----------------------------------------------------------------------------------------


def table(titles: tuple[str, ...], rows: dict[tuple[str, ...], Counts]) -> Iterator[str]:
    columns = tuple(title.replace("_", " ").replace("l1", "L1") for title in sass_counts.TITLES)
    yield f"| {' | '.join((*titles, *columns))} |"
    yield "|" + "---|" * len(titles) + "---:|" * len(columns)
    for key, counts in rows.items():
        yield f"| {' | '.join((*key, *map(str, counts.row())))} |"


def page(found: Iterable[Part]) -> str:
    """The section of docs/kernels.md on the hot phases."""
    rows = {key: counts for key, counts in hot_counts(found).items() if key[1] in HOT_GPUS}
    return HEAD + "\n".join(table(("phase", "GPU"), rows)) + "\n"


def able(archs: Iterable[int]) -> tuple[list[int], list[str]]:
    """Those that there are tools for; what lacks for the others."""
    here, missing = [], []
    for arch in sorted(archs):
        try:
            device_code.tools(arch)
            here.append(arch)
        except device_code.Missing as what:
            missing.append(f"not counted: {what}")
    return here, missing


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--archs", help='a list like "61;90"; else all that tools are here for')
    parser.add_argument("--hot", action="store_true", help="the hot phases, for the test")
    options = parser.parse_args()
    served = HOT_ARCHS if options.hot else cuda_toolchain.SERVED
    archs = cuda_toolchain.parse_list("--archs", options.archs) if options.archs else served
    here, missing = able(archs)
    print(*missing, sep="\n", end="\n" if missing else "", file=sys.stderr)
    found = parts(here, options.hot)
    if options.hot:
        print(f"# {', '.join(sass_counts.TITLES)}")
        for (name, gpu), counts in hot_counts(found).items():
            print(f'    ("{name}", "{gpu}"): {counts.row()},')
    else:
        print("\n".join(table(("kernel", "phase", "GPU"), by_phase(found))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
