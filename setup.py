# SPDX-License-Identifier: Apache-2.0
"""Drives CMake and Ninja; pyproject.toml says everything else.

Environment:
    HIRED_NATIVE   auto (default): build if there is a C++ compiler; 1: fail without one; 0: do not.
    HIRED_SANITIZE sanitizers for the native code, as `-fsanitize=` takes them; without CUDA then.
    HIRED_CUDA_ARCHS
                   GPU architectures, like "61;90": the version names them, as in 0.1.0+sm61.90.
                   auto (default): the GPU that is here, else all that the compilers here can make;
                   all: sm_61 to sm_120; empty or none: the CPU alone, as without a CUDA compiler.
    HIRED_CUDA_PTX PTX to add to that of the newest architecture, like "61".
    HIRED_SPIN_LIMIT
                   debugging: a wait between blocks ends its kernel after so many polls, and says
                   what it was for.
    CUDACXX, CUDA_HOME, HIRED_PASCAL_COMPILER: where tools/cuda_toolchain.py looks first.
    CXX, CMAKE_ARGS, CMAKE_BUILD_PARALLEL_LEVEL: as CMake has them.

Without the native library the package serves from its reference implementation, and
`python -m hired_kernels info` says why.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
# What compilers read from the environment, and CMake only the first time, or never.
FLAGS = ("CXX", "CXXFLAGS", "CPPFLAGS", "LDFLAGS", "CUDACXX", "CUDA_HOME", "CUDA_PATH")
FLAGS += ("NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS", "HIRED_PASCAL_COMPILER")


def find_compiler() -> str | None:
    named = os.environ.get("CXX")
    if named:
        return shutil.which(shlex.split(named)[0])
    return next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)


def wants_native() -> bool:
    choice = os.environ.get("HIRED_NATIVE", "auto")
    if choice not in ("auto", "0", "1"):
        raise SystemExit(f"HIRED_NATIVE: expected auto, 0 or 1, got {choice}")
    if choice == "auto" and find_compiler() is None:
        print(
            "hired_kernels: no C++ compiler was found (c++, g++, clang++ or CXX): installing "
            "without the native library; operators will be served by the reference implementation",
            file=sys.stderr,
        )
        return False
    return choice != "0"


def cuda_archs() -> str:
    """As `61;90`; refused, with what to do about it, where no compiler here can make one."""
    if os.environ.get("HIRED_SANITIZE"):
        return ""
    plan = [sys.executable, str(ROOT / "tools" / "cuda_toolchain.py"), "--format", "archs"]
    result = subprocess.run(plan, stdout=subprocess.PIPE, text=True, check=False)
    if result.returncode:
        raise SystemExit("hired_kernels: no build: see above")
    return result.stdout.strip()


def torch_folder() -> Path:
    # Not imported: only its folder is needed, and that it is the torch that will be used.
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        raise SystemExit(
            "hired_kernels: building needs the PyTorch that is to be used, which pip hides from an "
            "isolated build. Install PyTorch 2.10 or later, then: "
            "pip install --no-build-isolation ."
        )
    return Path(spec.origin).parent


class CMakeBuild(build_ext):
    """One CMake build makes all native files: the operators' library and the module _C."""

    def run(self) -> None:
        into = ROOT if self.inplace else Path(self.build_lib).resolve()
        into = into / "hired_kernels"
        for stale in [*into.glob("_C.*.so"), *into.glob("libhired_kernels.so")]:
            stale.unlink()
        sanitize = os.environ.get("HIRED_SANITIZE", "")
        kind = "sanitize" if sanitize else sys.implementation.cache_tag
        # Not build_temp, which is new each time for an editable installation.
        base = ROOT / self.get_finalized_command("build").build_base
        build = base / f"cmake-{sysconfig.get_platform()}-{kind}{TAG}"
        scripts = str(Path(sys.executable).parent)
        env = dict(os.environ, PATH=scripts + os.pathsep + os.environ.get("PATH", ""))
        configure = [
            *("cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja"),
            f"-DHIRED_VERSION={self.distribution.get_version()}",
            f"-DHIRED_TORCH_DIR={torch_folder()}",
            f"-DHIRED_SANITIZE={sanitize}",
            f"-DHIRED_CUDA_ARCHS={ARCHS or 'none'}",
            f"-DHIRED_CUDA_PTX={os.environ.get('HIRED_CUDA_PTX', '')}",
            f"-DHIRED_SPIN_LIMIT={os.environ.get('HIRED_SPIN_LIMIT', '')}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={self.pybind11_folder()}",
            f"-DCMAKE_INSTALL_PREFIX={into}",
            *shlex.split(os.environ.get("CMAKE_ARGS", "")),
        ]
        self.begin_anew_if_changed(build, configure)
        for command in (configure, ["cmake", "--build", str(build), "--target", "install"]):
            subprocess.run(command, check=True, env=env, cwd=ROOT)

    @staticmethod
    def begin_anew_if_changed(build: Path, configure: list[str]) -> None:
        """Empties a build folder that was made by other commands, or with other flags."""
        flags = {name: os.environ[name] for name in FLAGS if name in os.environ}
        made_by = json.dumps({"configure": configure, "environment": flags}, indent=2)
        note = build / "made_by.json"
        if build.exists() and (not note.exists() or note.read_text() != made_by):
            shutil.rmtree(build)
        build.mkdir(parents=True, exist_ok=True)
        note.write_text(made_by)

    @staticmethod
    def pybind11_folder() -> str:
        import pybind11

        return pybind11.get_cmake_dir()

    def get_outputs(self) -> list[str]:
        folder = Path(self.build_lib) / "hired_kernels"
        return [str(path) for path in folder.glob("*.so")]


native = [Extension("hired_kernels._C", sources=[])] if wants_native() else []
ARCHS = cuda_archs() if native else ""
TAG = "+sm" + ARCHS.replace(";", ".") if ARCHS else ""
setup(
    ext_modules=native,
    cmdclass={"build_ext": CMakeBuild},
    options={"egg_info": {"tag_build": TAG}},
)
