# SPDX-License-Identifier: Apache-2.0
"""A machine that has no GPU and pretends to: its bundle, its environment, its log."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import hired_kernels

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = Path(hired_kernels.__file__).parent
FAKE = Path(__file__).resolve().parent / "fake_gpu"
# What the package says it was built for; the rest of `_C` is its own.
BUILD_INFO = """
from ._native import _C
from ._native._C import plan, share_out
def build_info():
    cuda = {{"cuda_archs": (90,), "cuda_ptx": (90,), "cuda_compiler": "none, pretended"}}
    cuda["spin_limit"] = {spin_limit}
    return {{**_C.build_info(), **cuda}}
"""


@dataclass
class Machine:
    """With a bundle in `folder`, whose variants are this package, told that they are for sm_90."""

    folder: Path

    def __post_init__(self) -> None:
        sys.path.insert(0, str(ROOT / "tools" / "gpu"))
        try:
            import package
        finally:
            sys.path.pop(0)
        for name in ("release", "spin", "pascal", "before"):
            copy = self.folder / "bundle" / name / "hired_kernels"
            shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("data", "__pycache__"))
            native = copy / "_native"
            native.mkdir()
            (native / "__init__.py").touch()
            for library in copy.glob("_C.*"):
                library.rename(native / library.name)
            limit = 1000 if name == "spin" else None
            (copy / "_C.py").write_text(BUILD_INFO.format(spin_limit=limit))
        said = {
            "python": f"{sys.version_info.major}.{sys.version_info.minor}",
            "sources": package.digest(),
            "commit": "0123456789",
            "before": "abcdef0123",
        }
        (self.folder / "bundle" / "manifest.json").write_text(json.dumps(said))

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def file(self, variant: str, name: str) -> Path:
        return self.folder / "bundle" / variant / "hired_kernels" / name

    def run(
        self, script: str, *arguments: str, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """A script of tools/gpu. Calls are few, so that it is quick."""
        environment = {
            **os.environ,
            "PATH": f"{FAKE / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(FAKE),
            "HIRED_GPU_BUNDLE": str(self.folder / "bundle"),
            "OUT": str(self.out),
            "OMP_NUM_THREADS": "1",
            "HIRED_PATIENCE": "6",
            "PYTEST_ADDOPTS": "-p one_of_each",
            "HIRED_TEST_EXAMPLES": "1",
            "HIRED_TEST_REPEATS": "4",
            "HIRED_LOOP_CALLS": "3",
            "HIRED_FIRST_TIMES": "--batches 1 --dtypes float16 --tokens 64 --copy 8 --runs 3",
            **variables,
        }
        for name in ("HIRED_TEST_TARGET", "HIRED_BACKEND", "HIRED_COMMIT", "PYTEST_CURRENT_TEST"):
            environment.pop(name, None)
        command = [sys.executable, str(ROOT / "tools" / "gpu" / script), *arguments]
        return subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False
        )

    def log(self, name: str) -> str:
        return (self.out / f"{name}.log").read_text()
