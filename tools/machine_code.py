#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Loads, waits, barriers and the like of each phase of each kernel, out of the machine code.

    python tools/machine_code.py [--archs "61;90"] [--hot]

A phase is a path of functions of the source: the job, or else the kernel, and in it what PHASES
names. Instructions are told apart by the lines that the compiler says they come from, through all
that was inlined; that changes no instruction. What is counted how: tools/sass.py. --hot prints the
hot phases alone, ready to be pasted into tests/test_machine_code.py.
"""

from __future__ import annotations

import argparse
import os
import re
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
from kernel_report import demangle
from sass import Counts, Place

Chain = tuple[tuple[str, str], ...]  # file and function, from the kernel inwards
CSRC = device_code.ROOT / "csrc"
SOURCES = ("select_cuda", "cls_attention_cuda")
# What makes a path: the outermost function that ends so, or else the kernel; then the functions of
# these files, and those that wait for other blocks or are waited for.
JOB = "_job"
PHASES = ("phases/", "heads.cuh")
HAND_OVERS = ("wait_for", "arrive")
# The hot phases: kernel, then functions that enclose each other, with or without others between.
HOT_ARCHS = (61, 80, 90, 100)
HOT = {
    "scores, float16": ("select_kernel<Float16, false, 64>", "choose_job", "score_attention"),
    "scores, float32": ("select_kernel<float, false, 64>", "choose_job", "score_attention"),
    "scores of the full image, float16": (
        "select_kernel<Float16, false, 64>", "weigh_job", "score_attention"),
    "scores of the full image, float32": (
        "select_kernel<float, false, 64>", "weigh_job", "score_attention"),
    "a head": ("select_kernel<Float16, true, 64>", "heads_job", "attend"),
    "its dot products": ("select_kernel<Float16, true, 64>", "heads_job", "dot_by_pieces"),
    "its softmax": ("select_kernel<Float16, true, 64>", "heads_job", "add_softmax"),
    "radix selection": ("select_kernel<Float16, false, 64>", "choose_job", "choose"),
    "radix selection, weighing": ("select_kernel<Float16, false, 64>", "weigh_job", "choose"),
    "a gather job": ("select_kernel<Float16, false, 64>", "gather_job"),
    "its copy": ("select_kernel<Float16, false, 64>", "gather_job", "WarpGroup::copy"),
}  # fmt: skip


# Lines and functions ----------------------------------------------------------------------------


def bare(source: str) -> str:
    """The source without comments, strings and preprocessor lines; line by line the same."""
    kept = r"//[^\n]*|/\*.*?\*/|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])'|^[ \t]*#(?:\\\n|[^\n])*"
    blank = lambda found: re.sub(r"[^\n]", " ", found[0])  # noqa: E731
    return re.sub(kept, blank, source, flags=re.DOTALL | re.MULTILINE)


def opened(head: str) -> tuple[str, str]:
    """What a brace opens, from what stands before it: its sort and name."""
    head = re.sub(r"\s+", " ", head).strip()
    if re.search(r"\b(namespace|extern)\b[^()]*$", head):
        return "scope", ""
    if found := re.search(r"\b(?:class|struct|union)\s+(\w+)[^()=]*$", head):
        return "class", found[1]
    flat, depth = "", 0
    for char in head:  # parentheses, emptied
        depth -= char == ")"
        flat += char if depth == 0 else ""
        depth += char == "("
    flat = re.split(r"(?<!:):(?!:)", re.sub(r"\b(public|private|protected):", "", flat))[0]
    calls = re.findall(r"(operator\s*[^\s\w(]+|[\w~]+)\s*\(\)", flat)
    names = [name for name in calls if name not in ("noexcept", "requires", "alignas", "decltype")]
    return ("function", names[-1]) if names and "=" not in flat.split("()")[-1] else ("other", "")


def functions(source: str) -> list[str]:
    """For each line, the function that it stands in, its head included; "" outside. In a class
    `Class::function`; a lambda is part of its function."""
    text = bare(source)
    names = [""] * (text.count("\n") + 2)
    stack: list[tuple[str, str, int]] = []
    start = 0  # of the statement
    for at, char in enumerate(text):
        if char not in ";{}":
            continue
        if char == "{":
            inside = any(sort == "function" for sort, _, _ in stack)
            sort, name = ("other", "") if inside else opened(text[start:at])
            if sort == "function":
                start += len(text[start:at]) - len(text[start:at].lstrip())
                name = "::".join([*(outer for kind, outer, _ in stack if kind == "class"), name])
            stack.append((sort, name, start))
        elif char == "}" and stack:
            sort, name, begin = stack.pop()
            if sort == "function":
                first, last = text.count("\n", 0, begin) + 1, text.count("\n", 0, at) + 1
                names[first : last + 1] = [name] * (last + 1 - first)
        if not any(sort == "function" for sort, _, _ in stack):
            start = at + 1
    return names


@lru_cache
def functions_of(path: str) -> list[str]:
    return functions(Path(path).read_text())


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


# Phases -----------------------------------------------------------------------------------------


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


def parts_of(listing: Iterable[str], source: str, arch: int) -> Iterator[Part]:
    for symbol, code in sass.read_listing(listing):
        kernel = demangle(symbol)
        chains = completed((chain_of(one.place) for one in code), kernel.split("<")[0])
        for chain, counts in sass.count(zip(chains, code, strict=True)).items():
            yield Part(source, kernel, arch, chain, counts)


def parts(sources: Iterable[str], archs: Iterable[int]) -> list[Part]:
    """Compiled and counted, on two cores. Raises device_code.Missing where a tool lacks."""
    tools = {arch: device_code.tools(arch) for arch in archs}
    work = [(source, arch) for source in sources for arch in tools]
    with tempfile.TemporaryDirectory() as folder:

        def listing(job: tuple[str, int]) -> list[str]:
            source, arch = job
            return device_code.listing(CSRC / f"{source}.cu", tools[arch], Path(folder))

        with ThreadPoolExecutor(2) as pool:
            done = zip(work, pool.map(listing, work), strict=True)
            return [part for job, lines in done for part in parts_of(lines, *job)]


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


# Tables -----------------------------------------------------------------------------------------


def table(titles: tuple[str, ...], rows: dict[tuple[str, ...], Counts]) -> Iterator[str]:
    columns = tuple(title.replace("_", " ") for title in sass.TITLES)
    yield f"| {' | '.join((*titles, *columns))} |"
    yield "|" + "---|" * len(titles) + "---:|" * len(columns)
    for key, counts in rows.items():
        yield f"| {' | '.join((*key, *map(str, counts.row())))} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--archs", help='a list like "61;90"; else all that tools are here for')
    parser.add_argument("--hot", action="store_true", help="the hot phases, for the test")
    options = parser.parse_args()
    served = HOT_ARCHS if options.hot else cuda_toolchain.SERVED
    archs = cuda_toolchain.parse_list("--archs", options.archs) if options.archs else served
    able = []
    for arch in archs:
        try:
            device_code.tools(arch)
            able.append(arch)
        except device_code.Missing as missing:
            print(missing, file=sys.stderr)
    found = parts(SOURCES, able)
    if options.hot:
        print(f"# {', '.join(sass.TITLES)}")
        for (name, gpu), counts in hot_counts(found).items():
            print(f'    ("{name}", "{gpu}"): {counts.row()},')
    else:
        print("\n".join(table(("kernel", "phase", "GPU"), by_phase(found))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
