# SPDX-License-Identifier: Apache-2.0
"""Drives CMake and Ninja; pyproject.toml says everything else, docs/install.md how it is used.

The version says what was built, and pip prints it last: 0.1.0+sm61.90 with CUDA code for these,
0.1.0+cpu for the CPU alone, 0.1.0+reference where no C++ compiler was found.

Environment:
    HIRED_NATIVE   auto (default): build if there is a C++ compiler; 1: fail without one; 0: do not.
    HIRED_SANITIZE sanitizers for the native code, as `-fsanitize=` takes them; without CUDA then.
    HIRED_CUDA_ARCHS
                   GPU architectures, like "61;90": all of them, or no build.
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

import functools
import importlib.metadata
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import setuptools
from setuptools.command.build_ext import build_ext
from setuptools.command.egg_info import egg_info

ROOT = Path(__file__).parent.resolve()
# What compilers read from the environment, and CMake only the first time, or never.
FLAGS = ("CXX", "CXXFLAGS", "CPPFLAGS", "LDFLAGS", "CUDACXX", "CUDA_HOME", "CUDA_PATH")
FLAGS += ("NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS", "HIRED_PASCAL_COMPILER")
# Of pip's hooks the one before it fetches dependencies, gigabytes at times: what is missing is
# said then. A source distribution needs none of it.
BUILDING = {"dist_info", "bdist_wheel", "build", "build_ext", "editable_wheel", "develop"}
TOOLS = 'pip install "setuptools>=77" cmake ninja pybind11'
# Programs of packages, which are not on PATH where an environment was not activated.
PATH = str(Path(sys.executable).parent) + os.pathsep + os.environ.get("PATH", os.defpath)


def stop(why: str) -> SystemExit:
    return SystemExit(f"hired_kernels: no build: {why}")


def find_compiler() -> str | None:
    named = os.environ.get("CXX")
    if named:
        return shutil.which(shlex.split(named)[0])
    return next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)


def wants_native() -> bool:
    choice = os.environ.get("HIRED_NATIVE", "auto")
    if choice not in ("auto", "0", "1"):
        raise SystemExit(f"HIRED_NATIVE: expected auto, 0 or 1, got {choice}")
    if choice == "0":
        return False
    if find_compiler() is None:
        named = os.environ.get("CXX")
        why = f"no C++ compiler was found ({f'CXX={named}' if named else 'c++, g++, clang++, CXX'})"
        if choice == "1":
            raise stop(f"{why}: install one (Debian: g++; Fedora: gcc-c++)")
        print(
            f"hired_kernels: {why}: installing without the native library; operators will be "
            "served by the reference implementation",
            file=sys.stderr,
        )
        return False
    return True


def cuda_archs() -> str:
    """As `61;90`; refused, with what to do about it, where no compiler here can make one."""
    if os.environ.get("HIRED_SANITIZE"):
        return ""
    # -E: as below.
    plan = [sys.executable, "-E", str(ROOT / "tools" / "cuda_toolchain.py"), "--format", "archs"]
    result = subprocess.run(plan, stdout=subprocess.PIPE, text=True, check=False)
    if result.returncode:
        raise stop("see above")
    return result.stdout.strip()


def check_tools() -> None:
    """An isolated build has them from pyproject.toml; under --no-build-isolation nobody looked."""
    headers = Path(sysconfig.get_path("include")) / "Python.h"
    if not headers.exists():
        raise stop(f"Python's headers are missing ({headers}; Debian: python3-dev)")
    missing = []
    if cmake := shutil.which("cmake", path=PATH):
        asked = [cmake, "--version"]
        said = subprocess.run(asked, capture_output=True, text=True, check=False).stdout
        version = re.search(r"cmake version (\d+)\.(\d+)", said)
        if version is None or tuple(map(int, version.groups())) < (3, 25):
            missing.append(f"cmake 3.25 or later ({cmake} is not)")
    else:
        missing.append("cmake")
    if not any(shutil.which(name, path=PATH) for name in ("ninja", "ninja-build")):
        missing.append("ninja")
    if importlib.util.find_spec("pybind11") is None:
        missing.append("pybind11")
    elif tuple(map(int, importlib.metadata.version("pybind11").split(".")[:2])) < (2, 13):
        missing.append("pybind11 2.13 or later")
    if missing:
        raise stop(f"it needs {', '.join(missing)}: {TOOLS}, then try again")


@functools.cache
def torch_folder() -> Path:
    """The folder of an installed PyTorch: its headers and libraries are built against, by the
    stable ABI of 2.10, and so it need not be the one that will be used.

    It is not imported. From an isolated build pip hides it by means of PYTHONPATH: -E.
    """
    find = "import importlib.util as u; s = u.find_spec('torch'); print(s and s.origin or '')"
    for options in ((), ("-E",)):
        command = [sys.executable, *options, "-c", find]
        said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, cwd=ROOT)
        if origin := said.stdout.strip():
            break
    else:
        raise stop(
            "it needs PyTorch 2.10 or later, and none was found: pip install torch (without a GPU "
            "its CPU build: pytorch.org has the line), then try again. If it is installed: "
            f"{TOOLS}, then try again with --no-build-isolation. Without native code: "
            "HIRED_NATIVE=0"
        )
    folder = Path(origin).parent
    version = re.search(r"__version__ = '(\d+)\.(\d+)", (folder / "version.py").read_text())
    if version and tuple(map(int, version.groups())) < (2, 10):
        raise stop(
            f"PyTorch {version[1]}.{version[2]} ({folder}) is older than 2.10: "
            'pip install --upgrade "torch>=2.10", then try again'
        )
    return folder


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
        build = base / f"cmake-{sysconfig.get_platform()}-{kind}{SM}"
        env = dict(os.environ, PATH=PATH)
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


class EggInfo(egg_info):
    """With the tag of this build, whatever tag setup.cfg of a source distribution has."""

    def finalize_options(self) -> None:
        self.tag_build = TAG
        super().finalize_options()


if int(setuptools.__version__.split(".")[0]) < 77:
    raise stop(f"setuptools {setuptools.__version__} is older than 77: {TOOLS}, then try again")
native, SM, TAG = False, "", ""
if BUILDING.intersection(sys.argv):
    native = wants_native()
    if native:
        check_tools()
        torch_folder()
        ARCHS = cuda_archs()
        SM = "+sm" + ARCHS.replace(";", ".") if ARCHS else ""
        TAG = SM or "+cpu"
    elif os.environ.get("HIRED_NATIVE", "auto") == "auto":
        TAG = "+reference"
setuptools.setup(
    ext_modules=[setuptools.Extension("hired_kernels._C", sources=[])] if native else [],
    cmdclass={"build_ext": CMakeBuild, "egg_info": EggInfo},
)
