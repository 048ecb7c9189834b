#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Puts together a CUDA 12.9 compiler for Pascal GPUs (sm_61), which CUDA 13 no longer serves.

    python tools/make_pascal_compiler.py [FOLDER]      FOLDER: build/pascal unless given

Headers, ptxas, libdevice and the static runtime come from PyPI's CUDA 12.9 packages, fatbinary from
its CUDA 13 ones. PyPI has no nvcc of CUDA 12, so clang, which compiles CUDA by itself, takes its
place: one that is installed, else Debian's clang-19. About 55 MB are fetched. The build finds the
result under build/pascal, or where HIRED_PASCAL_COMPILER points.

For tools/machine_code.py a disassembler comes along. PyPI's package of it is CUDA 13's, which reads
no Pascal; but an older Triton carries CUDA 12's, in a wheel of 155 MB, for x86-64. Where it cannot
be fetched, the compiler does without.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CUDA = "12.9"
CLANGS = ("clang++-19", "clang++-20", "clang++-18")  # 19 is what is tested
NVCC = "nvidia-cuda-nvcc-cu12==12.9.86"
RUNTIME = "nvidia-cuda-runtime-cu12==12.9.79"
# Package, what is taken of its folder nvidia/, and where to.
PACKAGES = (
    (NVCC, "cuda_nvcc/bin/ptxas", "bin/ptxas"),
    (NVCC, "cuda_nvcc/nvvm/libdevice", "nvvm/libdevice"),
    (NVCC, "cuda_nvcc/include", "include"),
    (RUNTIME, "cuda_runtime/include", "include"),
    (RUNTIME, "cuda_runtime/lib/libcudart_static.a", "lib64/libcudart_static.a"),
    ("nvidia-cuda-cccl-cu12==12.9.27", "cuda_cccl/include", "include"),
    ("nvidia-cuda-nvcc==13.0.88", "cu13/bin/fatbinary", "bin/fatbinary"),
)
# What carries nvdisasm, of CUDA 12.8. There is a wheel for each Python, and any will do.
TRITON = "triton==3.4.0"
DISASSEMBLER = "triton/backends/nvidia/bin/nvdisasm"
ANY_PYTHON = ("--python-version=312", "--implementation=cp", "--platform=manylinux_2_27_x86_64")
# clang includes this header of another library, to rename what it declares. Without the library
# there is nothing to rename.
EMPTY_HEADER = "include/curand_mtgp32_kernel.h"
PROBE = """
__global__ void probe(float* out) { out[threadIdx.x] = __shfl_xor_sync(~0u, out[0], 1); }
void launch(float* out) { probe<<<1, 32>>>(out); }
"""


def find_clang() -> str:
    for name in CLANGS:
        if found := shutil.which(name):
            return found
    install = ["apt-get", "install", "-y", "-q", "--no-install-recommends", "clang-19"]
    if os.geteuid() == 0 and shutil.which("apt-get"):
        print("no clang was found: installing Debian's clang-19", flush=True)
        environment = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
        for command in (["apt-get", "update", "-q"], install):
            subprocess.run(command, check=False, stdout=subprocess.DEVNULL, env=environment)
        if found := shutil.which(CLANGS[0]):
            return found
    sys.exit(f"none of {', '.join(CLANGS)} was found. Install one: sudo {' '.join(install)}")


def download(wheels: Path, *requirements: str) -> int:
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:"]
    return subprocess.run([*command, "-d", wheels, *requirements], check=False).returncode


def fetch(wheels: Path) -> None:
    if download(wheels, *sorted({package for package, _, _ in PACKAGES})):
        sys.exit("pip could not fetch the packages: see above")


def unpack(wheels: Path, root: Path) -> None:
    for package, source, target in PACKAGES:
        name, version = package.split("==")
        (wheel,) = wheels.glob(f"{name.replace('-', '_')}-{version}-*.whl")
        prefix, taken = f"nvidia/{source}", 0
        with zipfile.ZipFile(wheel) as archive:
            for member in archive.namelist():
                inside = member.removeprefix(prefix)
                if inside == member or member.endswith("/") or inside[:1] not in ("", "/"):
                    continue
                path = root / (target + inside)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(archive.read(member))
                taken += 1
        if not taken:
            sys.exit(f"{wheel.name}: expected {prefix}, found none")
    for program in (root / "bin").iterdir():
        program.chmod(0o755)


def add_disassembler(root: Path) -> None:
    program, begun = root / "bin/nvdisasm", root / "bin/nvdisasm.part"
    if program.exists() or platform.machine() != "x86_64":
        return
    with tempfile.TemporaryDirectory() as wheels:
        if download(Path(wheels), *ANY_PYTHON, TRITON):
            print(f"{root}: no disassembler for sm_61: {TRITON} could not be fetched")
            return
        (wheel,) = Path(wheels).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            begun.write_bytes(archive.read(DISASSEMBLER))
    begun.chmod(0o755)
    subprocess.run([begun, "--version"], check=True, stdout=subprocess.DEVNULL)
    begun.rename(program)
    print(f"{root}: {program.name} of {TRITON}")


def check(root: Path) -> None:
    """The three steps of the build: machine code, a fat binary around it, the host's half."""
    folder = root / "check"
    folder.mkdir()
    (folder / "probe.cu").write_text(PROBE)
    clang = [root / "bin/clang++", "-x", "cuda", f"--cuda-path={root}", "--cuda-gpu-arch=sm_61"]
    clang += ["-Wno-unknown-cuda-version", "-c", "probe.cu"]
    image = "--image3=kind=elf,sm=61,file=probe.cubin"
    include = ["-Xclang", "-fcuda-include-gpubinary", "-Xclang", "probe.fatbin"]
    for command in (
        [*clang, "--cuda-device-only", "-o", "probe.cubin"],
        [root / "bin/fatbinary", "-64", "--create", "probe.fatbin", image],
        [*clang, "--cuda-host-only", *include, "-o", "probe.o"],
    ):
        subprocess.run(command, check=True, cwd=folder)
    shutil.rmtree(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "build" / "pascal")
    root = parser.parse_args().folder.resolve()
    done = root / "complete"
    if done.exists() and (root / "bin/clang++").exists():  # clang may have been removed since
        print(f"{root}: there already")
        add_disassembler(root)  # folders of before have none
        return
    if root.exists() and any(root.iterdir()) and not (root / "bin/ptxas").exists():
        sys.exit(f"{root}: expected an empty folder, or one that this script began")
    clang = find_clang()
    shutil.rmtree(root, ignore_errors=True)
    (root / "bin").mkdir(parents=True)
    with tempfile.TemporaryDirectory() as wheels:
        fetch(Path(wheels))
        unpack(Path(wheels), root)
    (root / EMPTY_HEADER).write_text("// Empty: see tools/make_pascal_compiler.py\n")
    (root / "bin/clang++").symlink_to(clang)
    check(root)
    done.write_text(CUDA + "\n")
    print(f"{root}: {clang} with CUDA {CUDA}")
    add_disassembler(root)


if __name__ == "__main__":
    main()
