# SPDX-License-Identifier: Apache-2.0
"""The emulator's own test (tests/emulator/self_test.cpp): right kernels pass, planted errors are
caught. Built with AddressSanitizer, as `make test-emulated` builds the kernels."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
SOURCES = [FOLDER / f"{stem}.cpp" for stem in ("self_test", "scheduler", "primitives", "blocks")]


def build(compiler: str, program: Path, sources: list[Path], *flags: str) -> str:
    """What the compiler complained of; empty where it did not."""
    command = [compiler, "-std=c++17", *flags, *map(str, sources), "-o"]
    result = subprocess.run([*command, str(program)], capture_output=True, text=True, check=False)
    return result.stderr if result.returncode else ""


def test_self_test(tmp_path: Path) -> None:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++")
    sanitize = "-fsanitize=address"
    probe = tmp_path / "probe.cpp"
    probe.write_text("int main() {}")
    if complaint := build(compiler, tmp_path / "probe", [probe], sanitize):
        pytest.skip(f"{compiler} has no libasan; on Debian: apt-get install g++\n{complaint}")

    program = tmp_path / "self_test"
    flags = ["-O1", "-g", "-Wall", "-Wextra", "-Werror", "-DHIRED_EMULATE", "-ffp-contract=off"]
    assert build(compiler, program, SOURCES, *flags, sanitize) == ""
    result = subprocess.run([program], capture_output=True, text=True, check=False, timeout=600)
    assert result.returncode == 0, result.stdout + result.stderr
    last = result.stdout.splitlines()[-1]
    passed = re.fullmatch(r"(\d+) passed, 0 failed", last)
    assert passed, last
    assert int(passed[1]) > 100
