#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Which GPU architectures a build holds, and which compiler makes the code for each.

    python tools/cuda_toolchain.py --archs auto --format cmake

Machine code is made by nvcc for all that it knows, and for older GPUs by the compiler that
tools/make_pascal_compiler.py puts together. PTX of the newest architecture goes in beside it, for
GPUs yet to come. CMakeLists.txt reads `--format cmake`, setup.py `--format archs`.

Environment: CUDACXX, CUDA_HOME, PATH (where nvcc is), HIRED_PASCAL_COMPILER (a folder).
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SERVED = (61, 75, 80, 86, 89, 90, 100, 120)  # what `all` means, and `auto` where there is no GPU
NOTHING = ("HIRED_CUDA_BUILT", "HIRED_CUDA_BUILT_PTX", "HIRED_CUDA_COMPILERS")
OLDEST = (12, 1)  # before 12.1 no kernel has more than 4 KB of parameters
TRITON_FROM = 75  # hired_kernels/backends.py: older cards are served by CUDA code or not at all
CLANG_ARCHS = (60, 61, 62, 70, 72, 75, 80, 86, 87, 89, 90)


class Refused(Exception):
    """A request that cannot be met; the message says what to do."""


def run(*command: str | Path) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout + result.stderr if result.returncode == 0 else ""


@dataclass
class Compiler:
    program: Path
    root: Path  # holds include/ and the static runtime
    name: str
    archs: tuple[int, ...]

    def runtime(self) -> Path:
        folders = ("lib64", "lib", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib")
        for folder in folders:
            if (found := self.root / folder / "libcudart_static.a").exists():
                return found
        raise Refused(
            f"{self.program}: no libcudart_static.a in {self.root}: the static CUDA runtime is "
            "part of the toolkit (PyPI: nvidia-cuda-runtime)"
        )

    def include(self) -> Path:
        folders = (self.root / "include", *self.root.glob("targets/*/include"))
        return next((path for path in folders if (path / "cuda_runtime.h").exists()), folders[0])


def nvcc_candidates() -> list[str | None]:
    """Most explicit first; last the PyPI packages, which put no nvcc on PATH."""
    homes = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")]
    spec = importlib.util.find_spec("nvidia")
    packages = list(spec.submodule_search_locations or []) if spec else []
    return [
        *(f"{home}/bin/nvcc" for home in homes if home),
        shutil.which("nvcc"),
        "/usr/local/cuda/bin/nvcc",
        *(str(path) for package in packages for path in Path(package).glob("cu*/bin/nvcc")),
    ]


def find_nvcc() -> Compiler | None:
    named = os.environ.get("CUDACXX")
    if named and not shutil.which(named):
        raise Refused(f"CUDACXX={named}: no such program")
    for candidate in [named] if named else nvcc_candidates():
        if not candidate or not (program := shutil.which(candidate)):
            continue
        version = re.search(r"release [\d.]+, V([\d.]+)", run(program, "--version"))
        top = re.search(
            r"^#\$ TOP=(.+)$", run(program, "--dryrun", "-c", "-x", "cu", os.devnull), re.M
        )
        archs = re.findall(r"^sm_(\d+)$", run(program, "--list-gpu-code"), re.M)
        recent = version and tuple(map(int, version[1].split(".")[:2])) >= OLDEST
        if version and recent and top and archs:
            root = Path(top[1].strip()).resolve()
            return Compiler(Path(program), root, f"nvcc {version[1]}", tuple(map(int, archs)))
        if named:
            raise Refused(f"CUDACXX={named}: expected an nvcc of CUDA 12.1 or later")
    return None


def why_no_nvcc() -> str:
    """Of nvcc where find_nvcc has none: what is there in its place."""
    for candidate in nvcc_candidates():
        if candidate and (program := shutil.which(candidate)):
            version = re.search(r"release [\d.]+, V([\d.]+)", run(program, "--version"))
            if version and tuple(map(int, version[1].split(".")[:2])) < OLDEST:
                return f"{program} is nvcc {version[1]}, and 12.1 is the oldest that will do"
            return f"{program} does not work: {program} --version says why"
    for name in ("CUDA_HOME", "CUDA_PATH"):
        if home := os.environ.get(name):
            return f"there is no nvcc in {name}={home}, nor on PATH"
    return "no CUDA compiler was found (CUDACXX, CUDA_HOME, PATH, PyPI's nvidia-cuda-nvcc)"


def find_pascal_compiler() -> Compiler | None:
    root = Path(os.environ.get("HIRED_PASCAL_COMPILER") or ROOT / "build" / "pascal").resolve()
    program = root / "bin" / "clang++"
    if not (root / "complete").exists() or not program.exists():
        if os.environ.get("HIRED_PASCAL_COMPILER"):
            raise Refused(
                f"HIRED_PASCAL_COMPILER={root}: expected a folder made by "
                "tools/make_pascal_compiler.py"
            )
        return None
    version = re.search(r"clang version (\d+[\d.]*)", run(program, "--version"))
    cuda = (root / "complete").read_text().strip()
    name = f"clang {version[1] if version else '?'} with CUDA {cuda}"
    return Compiler(program, root, name, CLANG_ARCHS)


def gpus_here() -> list[int]:
    if not (program := shutil.which("nvidia-smi")):
        return []
    found = run(program, "--query-gpu=compute_cap", "--format=csv,noheader")
    return sorted(
        {int(major + minor) for major, minor in re.findall(r"^(\d+)\.(\d)$", found, re.M)}
    )


def parse_list(name: str, text: str) -> list[int]:
    words = [word for word in re.split(r"[;, ]+", text.strip()) if word]
    for word in words:
        if not re.fullmatch(r"\d{2,3}", word):
            raise Refused(f"{name}: expected numbers like 61;90, auto, all or none, got {word}")
    return sorted(set(map(int, words)))


def refuse(arch: int, nvcc: Compiler | None) -> Refused:
    lines = [f"machine code for sm_{arch} was asked for, and "]
    if nvcc is None:
        lines[0] += why_no_nvcc() + "."
    else:
        lines[0] += f"{nvcc.name} ({nvcc.program}) cannot make it."
    if arch in CLANG_ARCHS:
        lines += [
            f"CUDA 12.9 is the last that compiles for sm_{arch}." if arch < 75 else "",
            "Either put such a compiler together, from PyPI and Debian packages, and try again:",
            "    python tools/make_pascal_compiler.py",
            "or name an nvcc of CUDA 12:",
            "    CUDACXX=/path/to/cuda-12.9/bin/nvcc",
            "or leave it out of HIRED_CUDA_ARCHS.",
        ]
    elif nvcc is not None:
        lines += [f"It knows {', '.join(map(str, nvcc.archs))}; a newer CUDA may know more."]
    return Refused("\n".join(line for line in lines if line))


@dataclass
class Plan:
    archs: list[int]
    ptx: list[int]
    nvcc: Compiler | None
    pascal: Compiler | None
    why_none: str = ""

    def maker(self, arch: int) -> Compiler:
        for compiler in (self.nvcc, self.pascal):
            if compiler and arch in compiler.archs:
                return compiler
        raise refuse(arch, self.nvcc)


def choose(archs: str, ptx: str) -> Plan:
    if archs.strip(" ;,") in ("", "none"):
        return Plan([], [], None, None, f"HIRED_CUDA_ARCHS={archs}")
    nvcc, pascal = find_nvcc(), find_pascal_compiler()
    able = {arch for compiler in (nvcc, pascal) if compiler for arch in compiler.archs}
    plan = Plan([], parse_list("HIRED_CUDA_PTX", ptx), nvcc, pascal)
    if archs == "auto":
        if not able:
            plan.why_none = why_no_nvcc()
            cards = gpus_here()
            if cards and max(cards) < TRITON_FROM:
                raise Refused(
                    f"the GPU here is sm_{max(cards)}, which CUDA code alone serves, and "
                    f"{plan.why_none}. Name an nvcc from 12.1 to 12.9 with CUDACXX=, or build for "
                    "the CPU alone with HIRED_CUDA_ARCHS=none."
                )
            return plan
        # A GPU newer than the compiler is served by PTX.
        newest = max(set(SERVED) & able)
        plan.archs = sorted(
            {min(arch, newest) if arch > max(able) else arch for arch in gpus_here()}
        )
        plan.archs = plan.archs or [arch for arch in SERVED if arch in able]
    else:
        plan.archs = list(SERVED) if archs == "all" else parse_list("HIRED_CUDA_ARCHS", archs)
    plan.ptx = sorted({plan.archs[-1], *plan.ptx})
    for arch in (*plan.archs, *plan.ptx):
        plan.maker(arch)
    return plan


def cmake_lines(plan: Plan) -> list[str]:
    """Variables for tools/cuda.cmake. The host half of a source and the runtime it links against
    are of one CUDA version: nvcc's, or where the other compiler has a part in it, 12.9, which also
    runs under the older drivers that Pascal cards have."""
    if not plan.archs:
        summary = f"CPU only, without CUDA: {plan.why_none}"
        return [
            *(f"set({name})" for name in NOTHING),
            f'set(HIRED_CUDA_WHY_NONE "{plan.why_none}")',
            f'set(HIRED_CUDA_SUMMARY "{summary}")',
            f'message(STATUS "hired_kernels: {summary}")',
        ]
    every = {*plan.archs, *plan.ptx}
    by_pascal = sorted(arch for arch in every if plan.maker(arch) is plan.pascal)
    host = plan.pascal if by_pascal else plan.nvcc
    assert host is not None
    makers = [plan.nvcc] if not by_pascal else [plan.pascal, plan.nvcc]
    names = [maker.name for maker in makers if maker and any(plan.maker(a) is maker for a in every)]
    values = {
        "HIRED_CUDA_BUILT": ";".join(map(str, plan.archs)),
        "HIRED_CUDA_BUILT_PTX": ";".join(map(str, plan.ptx)),
        "HIRED_CUDA_BY_PASCAL": ";".join(map(str, by_pascal)),
        "HIRED_CUDA_COMPILERS": ", ".join(names),
        "HIRED_NVCC": plan.nvcc.program if plan.nvcc else "",
        "HIRED_PASCAL": plan.pascal.root if by_pascal and plan.pascal else "",
        "HIRED_CUDA_INCLUDE": host.include(),
        "HIRED_CUDART": host.runtime(),
    }
    built = ", ".join(f"sm_{arch}" for arch in plan.archs)
    built += "".join(f", PTX of compute_{arch}" for arch in plan.ptx)
    summary = f"CPU, and CUDA code for {built}: {', '.join(names)}"
    return [
        *(f'set({name} "{value}")' for name, value in values.items()),
        'set(HIRED_CUDA_WHY_NONE "")',
        f'set(HIRED_CUDA_SUMMARY "{summary}")',
        f'message(STATUS "hired_kernels: {summary}")',
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--archs", default=os.environ.get("HIRED_CUDA_ARCHS", "auto"))
    parser.add_argument("--ptx", default=os.environ.get("HIRED_CUDA_PTX", ""))
    parser.add_argument("--format", choices=("archs", "cmake"), default="archs")
    options = parser.parse_args()
    try:
        plan = choose(options.archs, options.ptx)
        lines = [";".join(map(str, plan.archs))]
        if options.format == "cmake":
            lines = cmake_lines(plan)
    except Refused as refusal:
        sys.exit(f"hired_kernels: {refusal}")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
