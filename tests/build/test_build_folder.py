# SPDX-License-Identifier: Apache-2.0
"""Where a build goes and when it begins anew: setup.py, with a compiler that stops it at once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from builds import ROOT


@pytest.fixture
def stale(tmp_path: Path) -> Path:
    """A file in the build folder of a build that was begun in tmp_path."""
    begin(tmp_path)
    (folder,) = tmp_path.glob("base/cmake-*")
    file = folder / "stale.o"
    file.touch()
    return file


def begin(tmp_path: Path, **variables: str) -> str:
    """Begins a build, which fails; returns what CMake said."""
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\nexit 1\n")
    compiler.chmod(0o755)
    command = [sys.executable, "setup.py", "-q", "build", "--build-base", str(tmp_path / "base")]
    command += ["--build-lib", str(tmp_path / "lib")]
    ours = {"HIRED_CUDA_ARCHS": "none", "HIRED_NATIVE": "1", "CXX": str(compiler)}
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HIRED_")}
    result = subprocess.run(
        command, cwd=ROOT, env={**environment, **ours, **variables}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert result.returncode != 0
    assert "CMake Error" in result.stdout + result.stderr
    return result.stdout + result.stderr


def test_it_goes_where_build_base_says(tmp_path: Path) -> None:
    begin(tmp_path)
    assert len(list(tmp_path.glob("base/cmake-*/CMakeCache.txt"))) == 1


def test_the_same_flags_go_on(stale: Path, tmp_path: Path) -> None:
    begin(tmp_path)
    assert stale.exists()


@pytest.mark.parametrize(
    "variables",
    [
        {"CXXFLAGS": "-O1"},
        {"NVCC_APPEND_FLAGS": "-lineinfo"},
        {"CMAKE_ARGS": "-DCMAKE_BUILD_TYPE=Debug"},
        {"HIRED_SPIN_LIMIT": "1000"},
        {"HIRED_CUDA_PTX": "61"},
    ],
    ids=lambda variables: next(iter(variables)),
)
def test_other_flags_begin_anew(stale: Path, tmp_path: Path, variables: dict[str, str]) -> None:
    begin(tmp_path, **variables)
    assert not stale.exists()
