# SPDX-License-Identifier: Apache-2.0
"""The path that a Tesla P40 takes, on the GPU that is here.

A library made for sm_61 alone holds machine code that no newer GPU runs and PTX of compute_61,
which the driver compiles for the GPU at hand. It takes the place of the library of the package
under test, in a process of its own. CUDA_FORCE_PTX_JIT would not do: it takes PyTorch's own machine
code away too, and of several PTX versions the driver prefers the newest.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import gpu_cases  # noqa: F401  (skips where there is no GPU)
import pytest
from test_cuda_build import PACKAGE, report

ROOT = Path(__file__).resolve().parent.parent
PASCAL = ROOT / "build" / "gpu" / "pascal" / "lib" / "hired_kernels" / "libhired_kernels.so"
LIBRARY = Path(os.environ.get("HIRED_TEST_PASCAL_LIBRARY", PASCAL))
TESTS = ["test_parity.py", "test_gpu.py", "test_gpu_calls.py"]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package under test, its library exchanged."""
    if not LIBRARY.exists():
        pytest.skip(
            f"no {LIBRARY}: `make test-gpu` makes it where there is a compiler for sm_61 "
            "(make pascal-compiler)"
        )
    images = list(report.fatbins(LIBRARY.read_bytes()))
    assert images
    assert all(archs == {61} for image in images for archs in image.values())
    folder = tmp_path_factory.mktemp("pascal")
    shutil.copytree(PACKAGE, folder / "hired_kernels")
    shutil.copy(LIBRARY, folder / "hired_kernels" / "libhired_kernels.so")
    return folder


@pytest.mark.parametrize("tests", TESTS)
def test_the_code_for_pascal(package: Path, tests: str) -> None:
    # The package of the folder that Python starts in is found before any other.
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-c"]
    command += [str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT), str(ROOT / "tests" / tests)]
    env = {**os.environ, "HIRED_TEST_TARGET": "cuda", "PYTHONPATH": str(package)}
    result = subprocess.run(
        command, cwd=package, env=env, capture_output=True, text=True, timeout=150, check=False
    )
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
    # All of them skipped is no success, and pytest calls it one.
    assert " passed" in result.stdout.splitlines()[-1], result.stdout[-1000:]
