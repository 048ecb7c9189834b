# SPDX-License-Identifier: Apache-2.0
"""What the linker may mix up: code for wider processors, which the others must never come upon."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys
import sysconfig

import pytest
from builds import LIBRARY, ROOT

_C = pytest.importorskip("hired_kernels._C", reason="the native library was not built")


def disassembled() -> dict[str, set[str]]:
    """Functions of the library, demangled, and what each has that only wider processors have."""
    command = ["objdump", "-d", "-C", "--no-show-raw-insn", str(LIBRARY)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    functions: dict[str, set[str]] = {}
    name = ""
    for line in lines:
        if header := re.match(r"[0-9a-f]+ <(.*)>:$", line):
            name = header[1]
            functions.setdefault(name, set())
        elif name:
            functions[name].update(re.findall(r"%[yz]mm|%k[1-7]|\tv[a-z0-9]+ ", line))
    return functions


def in_namespace(symbol: str) -> bool:
    """Whether a demangled name is of a namespace that only one instruction set has."""
    return re.search(r"hired::(avx2|avx512)::", symbol) is not None


def needs(tool: str) -> None:
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("the other instruction sets are those of x86")
    if shutil.which(tool) is None:
        pytest.skip(f"needs {tool}")


def test_code_for_wider_processors_is_in_its_namespace() -> None:
    needs("objdump")
    functions = disassembled()
    wide = {name for name, registers in functions.items() if registers}
    if not any("select_kernel" in name for name in functions):
        pytest.skip("the library was stripped of its symbols")
    for isa in ("avx2", "avx512"):
        assert any(f"hired::{isa}::" in name for name in wide)
    assert [name for name in wide if not in_namespace(name)] == []


@pytest.mark.parametrize("isa", ["avx2", "avx512"])
def test_objects_share_no_symbol_that_is_not_of_their_instruction_set(isa: str) -> None:
    # A weak symbol may stand in for its namesakes in all other objects.
    needs("nm")
    archs = "".join(f".{arch}" for arch in _C.build_info()["cuda_archs"])
    tag = f"+sm{archs[1:]}" if archs else ""
    build = f"build/cmake-{sysconfig.get_platform()}-{sys.implementation.cache_tag}{tag}"
    folder = ROOT / build / "CMakeFiles" / f"hired_cpu_{isa}.dir"
    objects = list(folder.glob("**/*.o"))
    if not objects:
        pytest.skip("the objects of the build are not there")
    for path in objects:
        command = ["nm", "-C", "--defined-only", "--extern-only", str(path)]
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        rows = [line.split(maxsplit=2) for line in lines.splitlines()]
        symbols = [name for _, kind, name in rows if kind != "V"]  # V: a constant, which is no code
        kernel = path.name.partition("_cpu_")[0] + "_kernel"
        assert any(f"hired::{isa}::{kernel}" in symbol for symbol in symbols)
        assert [symbol for symbol in symbols if f"hired::{isa}::" not in symbol] == []
