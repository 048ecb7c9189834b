#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What each kernel takes of each GPU, and whether the library holds all that was asked for.

    python tools/kernel_report.py [BUILD] [--triton] [--machine-code] [--markdown FILE]

BUILD is a CMake build folder; without one, the last under build/. --triton compiles the Triton
kernels too, for GPUs of two makers. --machine-code prints what tools/machine_code.py counts in each
phase, of the build's architectures and of the page's. Fails on: a spill or any local memory in code
for sm_61, sm_80, sm_90 or sm_100; static shared memory past 48 KB on sm_61; `select` of rows with
too many registers for three blocks; a kernel that lacks one of its source's architectures, under
the same name; machine code or PTX in the library that is not the declared.

Figures are what ptxas said (`-v`), which the build keeps; the architectures are read from the fat
binaries of the library itself.
"""

from __future__ import annotations

import argparse
import ctypes
import re
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STRICT = ("sm_61", "sm_80", "sm_90", "sm_100")
PASCAL_SHARED = 48 * 1024
# Where `select` of rows leaves registers for three blocks of a multiprocessor: docs/design.md.
THREE_BLOCKS, THREE_BLOCKS_REGISTERS = ("sm_61", "sm_75", "sm_80", "sm_90"), 80
FATBIN = struct.Struct("<IHHQ")  # magic, version, bytes of this header, bytes after it
FATBIN_MAGIC = 0xBA55ED50
IMAGE = struct.Struct("<HHIQQII I")  # kind, version, header, bytes, -, version of the code, arch
PTX, ELF = 1, 2
TITLES = ("source", "kernel", "GPU", "registers", "shared", "stack", "spilled", "reloaded", "local")


@dataclass(frozen=True)
class Kernel:
    source: str
    name: str
    gpu: str  # sm_90, gfx942
    registers: int
    shared: int
    stack: int
    spill_stores: int
    spill_loads: int
    local: int = 0

    def faults(self) -> Iterator[str]:
        at = f"{self.source}: {self.name}: {self.gpu}"
        if self.gpu in STRICT:
            if self.spill_stores or self.spill_loads:
                yield f"{at}: spills {self.spill_stores} + {self.spill_loads} bytes"
            if self.stack or self.local:
                yield f"{at}: {self.stack + self.local} bytes of local memory"
        if self.gpu == "sm_61" and self.shared > PASCAL_SHARED:
            yield f"{at}: {self.shared} bytes of shared memory"
        three_blocks = ", FromRows, " in self.name and self.gpu in THREE_BLOCKS
        if three_blocks and self.registers > THREE_BLOCKS_REGISTERS:
            yield f"{at}: {self.registers} registers, too many for three blocks"


def demangle(symbol: str) -> str:
    """`select_kernel<float, FromRows, 64>`; the symbol itself where there is no C++ runtime."""
    try:
        runtime = ctypes.CDLL("libstdc++.so.6")
    except OSError:
        return symbol
    runtime.__cxa_demangle.restype = ctypes.c_char_p
    name = runtime.__cxa_demangle(symbol.encode(), None, None, None)
    if name is None:
        return symbol
    text = re.sub(r"\(anonymous namespace\)", "{unnamed}", name.decode())
    return re.sub(r"\b(hired|portable)::", "", text.split("(")[0]).removeprefix("void ")


def number(text: str, pattern: str) -> int:
    found = re.search(rf"(\d+) {pattern}", text)
    return int(found[1]) if found else 0


def read_log(source: str, text: str) -> Iterator[Kernel]:
    entry = re.compile(r"Compiling entry function '(\w+)' for 'sm_(\d+)a?f?'")
    starts = list(entry.finditer(text))
    ends = [start.start() for start in starts[1:]] + [len(text)]
    for start, end in zip(starts, ends, strict=False):
        account = text[start.end() : end]
        yield Kernel(
            source,
            demangle(start[1]),
            f"sm_{start[2]}",
            number(account, "registers"),
            number(account, "bytes smem"),
            number(account, "bytes stack frame"),
            number(account, "bytes spill stores"),
            number(account, "bytes spill loads"),
            number(account, "bytes lmem"),
        )


def fatbins(library: bytes) -> Iterator[dict[int, set[int]]]:
    """For each fat binary, the architectures of its PTX and of its machine code."""
    at = -1
    while (at := library.find(struct.pack("<I", FATBIN_MAGIC), at + 1)) >= 0:
        if at + FATBIN.size > len(library):
            return
        _, version, header, size = FATBIN.unpack_from(library, at)
        end = at + header + size
        if version != 1 or header != FATBIN.size or end > len(library):
            continue
        found: dict[int, set[int]] = {PTX: set(), ELF: set()}
        image = at + header
        while image + IMAGE.size <= end:
            kind, _, header, size, _, _, arch, _ = IMAGE.unpack_from(library, image)
            found.setdefault(kind, set()).add(arch)
            image += header + size
        yield found


def declared(folder: Path) -> tuple[set[int], set[int]]:
    plan = (folder / "plan.cmake").read_text()
    lists = [
        re.search(rf'set\({name} "([\d;]*)"\)', plan)
        for name in ("HIRED_CUDA_BUILT", "HIRED_CUDA_BUILT_PTX")
    ]
    archs, ptx = ({int(n) for n in (found[1] if found else "").split(";") if n} for found in lists)
    return archs, ptx


def faults_of_library(library: Path, kernels: list[Kernel], folder: Path) -> Iterator[str]:
    archs, ptx = declared(folder)
    built = list(fatbins(library.read_bytes()))
    for what, kind, expected in (("machine code", ELF, archs), ("PTX", PTX, ptx)):
        held = set().union(*(found[kind] for found in built))
        if held != expected:
            yield f"{library.name}: {what} of {sorted(held)}, expected {sorted(expected)}"
    by_source: dict[str, dict[int, set[str]]] = {}
    for kernel in kernels:
        arch = int(kernel.gpu.removeprefix("sm_"))
        names = by_source.setdefault(kernel.source, {}).setdefault(arch, set())
        names.add(kernel.name)
    compiled = sorted(sorted(names) for names in by_source.values())
    if compiled != (held := sorted(sorted(found[ELF]) for found in built if found[ELF])):
        yield f"{library.name}: fat binaries for {held}, of sources compiled for {compiled}"
    for source, names_of in by_source.items():
        every = set().union(*names_of.values())
        for arch, names in names_of.items():
            for name in sorted(every - names):
                yield f"{source}: {name}: not there for sm_{arch}"


def table(kernels: list[Kernel]) -> Iterator[str]:
    yield f"| {' | '.join(TITLES)} |"
    yield "|---|---|---|" + "---:|" * (len(TITLES) - 3)
    for k in kernels:
        figures = (k.registers, k.shared, k.stack, k.spill_stores, k.spill_loads, k.local)
        yield f"| {k.source} | `{k.name}` | {k.gpu} | {' | '.join(map(str, figures))} |"


def triton_kernel(name: str, gpu: str) -> Kernel:
    """One of the calls that tools/triton_report.py has, compiled for one of its targets."""
    import triton_report

    compiled, target = triton_report.compile_call(name, gpu), triton_report.TARGETS[gpu]
    if target.backend == "cuda":
        log = triton_report.ptxas_log(compiled.asm["ptx"], target.arch)
        (kernel,) = read_log("triton_kernels", log)
    else:
        figures = triton_report.amd_figures(compiled.asm["amdgcn"])
        kernel = Kernel("triton_kernels", name, gpu, shared=0, **figures)
    return replace(kernel, name=name, gpu=gpu, shared=compiled.metadata.shared)


def triton_kernels() -> Iterator[Kernel]:
    import triton_report

    for name in triton_report.CALLS:
        for gpu in triton_report.TARGETS:
            yield triton_kernel(name, gpu)


def machine_code_page(kernels: list[Kernel]) -> str:
    """Prints the counts of every phase; a section on the hot ones."""
    import machine_code

    built = {int(k.gpu[3:]) for k in kernels if re.fullmatch(r"sm_\d+", k.gpu)}
    able, missing = machine_code.able({*built, *machine_code.HOT_ARCHS})
    found = machine_code.parts(able)
    print("\n".join(machine_code.table(("kernel", "phase", "GPU"), machine_code.by_phase(found))))
    print("\n".join(["", *missing]))
    return machine_code.page(found)


def last_build() -> Path:
    found = sorted(ROOT.glob("build/*/cuda/logs.txt"), key=lambda path: path.stat().st_mtime)
    found = [path for path in found if path.stat().st_size]
    if not found:
        sys.exit("no build with CUDA kernels under build/: name a CMake build folder")
    return found[-1].parent.parent


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("build", nargs="?", type=Path)
    parser.add_argument("--triton", action="store_true", help="compile the Triton kernels too")
    parser.add_argument(
        "--machine-code", action="store_true", help="count loads, waits and the like"
    )
    parser.add_argument("--markdown", type=Path, help="write the table there too, as a page")
    options = parser.parse_args()
    build = options.build or last_build()
    folder = build / "cuda"
    library = build / "libhired_kernels.so"
    for path in (folder / "logs.txt", library):
        if not path.exists() or not path.stat().st_size:
            sys.exit(f"{path}: expected a build with CUDA kernels")

    kernels, seconds = [], 0.0
    for line in (folder / "logs.txt").read_text().splitlines():
        source, log = line.split()
        text = (folder / log).read_text()
        kernels += read_log(source, text)
        seconds += float(re.match(r"seconds ([\d.]+)", text)[1])
    kernels.sort(key=lambda k: (k.source, k.name, int(k.gpu.removeprefix("sm_"))))
    faults = list(faults_of_library(library, kernels, folder))
    if options.triton:
        kernels += triton_kernels()

    rows = list(table(kernels))
    faults += [fault for kernel in kernels for fault in kernel.faults()]
    faults += [] if kernels else ["no kernels"]
    print("\n".join(rows), end="\n\n")
    section = machine_code_page(kernels) if options.machine_code else ""
    print(f"{library.name}: {library.stat().st_size / 1e6:.1f} MB, {seconds:.0f} s of compiling")
    for fault in faults:
        print(f"FAULT {fault}")
    print(f"{len(kernels)} kernels, {len(faults)} faults")
    if options.markdown:
        import triton

        head = f"""\
# Kernels

What each takes of each GPU, in bytes beside the registers; local memory of any kind is a fault on
sm_61, sm_80, sm_90 and sm_100. Shared memory is what is fixed when it is compiled. AMD's registers
are its vector registers. The Triton kernels are compiled for one shape of call, LLaVA-NeXT's, by
Triton {triton.__version__}. Written by `make kernel-report`.
"""
        options.markdown.write_text(head + "\n" + "\n".join(rows) + "\n" + section)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
