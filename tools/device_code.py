# SPDX-License-Identifier: Apache-2.0
"""A source of csrc/ as a listing of its machine code, each instruction with its lines.

Compiled as tools/cuda.cmake has it, and with line information, which changes no instruction. nvcc's
names all places that a line was inlined at. clang 19's PTX cannot: so its optimised code, where
they stand, is given numbers of places for lines before it is compiled on, and the listing gets the
places back.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cuda_toolchain
from sass import Place

ROOT = Path(__file__).resolve().parent.parent
FLAGS = ("-std=c++17", "-O3", "-I", str(ROOT / "csrc"), "-DHIRED_CUDA")


class Missing(Exception):
    """A tool that is not here; the message says which."""


@dataclass(frozen=True)
class Tools:
    arch: int
    compiler: Path
    nvcc: bool
    disassembler: Path


def run(*command: str | Path) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}:\n{result.stderr}")
    return result.stdout


# Tools ------------------------------------------------------------------------------------------


@lru_cache
def compilers() -> tuple[cuda_toolchain.Compiler | None, cuda_toolchain.Compiler | None]:
    return cuda_toolchain.find_nvcc(), cuda_toolchain.find_pascal_compiler()


def disassemblers() -> Iterator[Path]:
    """On PATH; beside nvcc; in Triton's package; of make pascal-compiler, the oldest."""
    if found := shutil.which("nvdisasm"):
        yield Path(found)
    nvcc, pascal = compilers()
    if nvcc:
        yield nvcc.program.parent / "nvdisasm"
        yield nvcc.root / "bin" / "nvdisasm"
    for folder in map(Path, sys.path):
        yield folder / "triton/backends/nvidia/bin/nvdisasm"
    if pascal:
        yield pascal.root / "bin" / "nvdisasm"


@lru_cache
def read_by(disassembler: Path) -> set[int]:
    """The architectures that it reads."""
    if not disassembler.exists():
        return set()
    return {int(arch) for arch in re.findall(r"'SM(\d+)'", run(disassembler, "--help"))}


@lru_cache
def tools(arch: int) -> Tools:
    makers = [maker for maker in compilers() if maker and arch in maker.archs]
    if not makers:
        raise Missing(f"no compiler for sm_{arch}: neither nvcc's nor make pascal-compiler's")
    reader = next((path for path in disassemblers() if arch in read_by(path)), None)
    if reader is None:
        wanted = " of CUDA 12 (make pascal-compiler brings it)" if arch < 75 else ""
        raise Missing(f"no nvdisasm{wanted} that reads sm_{arch}: neither on PATH nor beside a "
                      "compiler nor in Triton's package")  # fmt: skip
    return Tools(arch, makers[0].program, makers[0] is compilers()[0], reader)


# clang's places ---------------------------------------------------------------------------------

LOCATION = re.compile(
    r"^!(\d+) = ((?:distinct )?!DILocation)\(line: (\d+), (?:column: \d+, )?scope: !(\d+)"
    r"(?:, inlinedAt: !(\d+))?[^)]*\)$",
    re.MULTILINE,
)


def number_places(code: str) -> tuple[str, list[Place]]:
    """LLVM's optimised code, the line of each location its number in the list of places."""
    files = {
        number: str(Path(folder, name))
        for number, name, folder in re.findall(
            r'^!(\d+) = !DIFile\(filename: "([^"]*)", directory: "([^"]*)"', code, re.MULTILINE
        )
    }
    scopes = re.findall(r"^!(\d+) = .*!DI\w+\(.*\bfile: !(\d+)", code, re.MULTILINE)
    file_of = {scope: files.get(file, "") for scope, file in scopes}
    locations = {found[1]: found for found in LOCATION.finditer(code)}

    def place(number: str | None) -> Place:
        if number is None:
            return ()
        _, _, line, scope, inlined_at = locations[number].groups()
        return (*place(inlined_at), (file_of.get(scope, ""), int(line)))

    places: list[Place] = [()]

    def numbered(found: re.Match[str]) -> str:
        number, what, _, scope, inlined_at = found.groups()
        places.append(place(number))
        at = f", inlinedAt: !{inlined_at}" if inlined_at else ""
        return f"!{number} = {what}(line: {len(places) - 1}, column: 1, scope: !{scope}{at})"

    return LOCATION.sub(numbered, code), places


def name_places(lines: list[str], places: list[Place]) -> Iterator[str]:
    """A listing of such code, as if nvcc had made it."""
    for line in lines:
        if not (found := re.match(r'^\s*//## File "[^"]*", line (\d+)', line)):
            yield line
            continue
        number = int(found[1])
        for file, at in reversed(places[number] if number < len(places) else ()):
            yield f'\t//## File "{file}", line {at}'


# Listings ---------------------------------------------------------------------------------------


def clang_flags(arch: int, root: Path) -> list[str]:
    return [
        "-x", "cuda", f"--cuda-path={root}", *FLAGS, "-fPIC", "-fvisibility=hidden",
        "-include", str(ROOT / "tools" / "clang_cuda.h"), "-Wno-unknown-cuda-version",
        "-Wno-unknown-attributes", f"--cuda-gpu-arch=sm_{arch}", "--cuda-device-only",
    ]  # fmt: skip


def compile_plain(source: Path, tools: Tools, image: Path) -> None:
    """As the build compiles it."""
    if tools.nvcc:
        run(tools.compiler, *FLAGS, f"-arch=sm_{tools.arch}", "-cubin", source, "-o", image)
    else:
        flags = clang_flags(tools.arch, tools.compiler.parent.parent)
        run(tools.compiler, *flags, "-c", source, "-o", image)


def compile_by_clang(source: Path, tools: Tools, image: Path) -> list[Place]:
    root, arch = tools.compiler.parent.parent, f"sm_{tools.arch}"
    llvm, ptx = image.with_suffix(".ll"), image.with_suffix(".ptx")
    flags = [*clang_flags(tools.arch, root), "-gline-tables-only", "-S"]
    run(tools.compiler, *flags, "-emit-llvm", source, "-o", llvm)
    code, places = number_places(llvm.read_text())
    llvm.write_text(code)
    version = re.search(r"\+(ptx\d+)", code)
    target = ["--target=nvptx64-nvidia-cuda", f"-march={arch}", "-Xclang", "-target-feature"]
    target += ["-Xclang", f"+{version[1]}"] if version else []
    run(tools.compiler, "-x", "ir", *target, "-O3", "-Xclang", "-disable-llvm-passes", "-fPIC",
        "-Wno-unknown-cuda-version", "-S", llvm, "-o", ptx)  # fmt: skip
    run(root / "bin/ptxas", "-m64", "-O3", "-lineinfo", "--gpu-name", arch, ptx, "-o", image)
    return places


def listing(source: Path, tools: Tools, folder: Path) -> list[str]:
    """What `nvdisasm -c -gi -hex` says of a source."""
    image = folder / f"{source.stem}.sm_{tools.arch}.cubin"
    if tools.nvcc:
        run(tools.compiler, *FLAGS, f"-arch=sm_{tools.arch}", "-cubin", "-lineinfo", source,
            "-o", image)  # fmt: skip
        return run(tools.disassembler, "-c", "-gi", "-hex", image).splitlines()
    places = compile_by_clang(source, tools, image)
    lines = run(tools.disassembler, "-c", "-gi", "-hex", image).splitlines()
    return list(name_places(lines, places))


def instructions(image: Path, tools: Tools) -> list[str]:
    """What `nvdisasm -c` says of it, remarks on lines left out."""
    lines = run(tools.disassembler, "-c", image).splitlines()
    return [line for line in lines if not line.lstrip().startswith("//")]
