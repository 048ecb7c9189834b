# SPDX-License-Identifier: Apache-2.0
"""What is said, and what still works, where a tool is missing: each check that looks for one is
tried with a PATH that has none. Machines with other CUDA compilers: test_cuda_toolchain.py.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from builds import ROOT

# What a make or a test around this one has set, and what names a tool by itself.
OTHERS = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "PYTHONPATH", "LD_PRELOAD", "CXX", "CMAKE_ARGS")
OTHERS += ("CUDACXX", "CUDA_HOME", "CUDA_PATH", "HIRED_PASCAL_COMPILER")


class Machine:
    """A folder `bin` that is the whole PATH, and the programs in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / "bin"
        self.bin.mkdir()

    def has(self, *names: str) -> None:
        for name in names:
            program = shutil.which(name)
            if program is None:
                pytest.skip(f"needs {name}")
            (self.bin / name).symlink_to(program)

    def pretends(self, name: str, script: str) -> None:
        path = self.bin / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def run(self, *command: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
        clean = {
            name: value
            for name, value in os.environ.items()
            if name not in OTHERS and not name.startswith(("HIRED_", "PYTEST_"))
        }
        return subprocess.run(
            list(map(str, command)),
            capture_output=True,
            text=True,
            check=False,
            cwd=self.folder,
            env={**clean, "PATH": str(self.bin), **env},
        )


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"tool_{name}", ROOT / "tools" / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look
    spec.loader.exec_module(module)
    return module


# --- the package without a C++ compiler ----------------------------------------------------------

SERVES = """
import torch, hired_kernels as hired
from hired_kernels import backends
attention = torch.rand(5, 2, 576)
kept = hired.select(torch.rand(5, 576, 8), attention, attention, grids=[(2, 2)], budget=0.2)
print(hired.__file__, backends.active("cpu"), len(kept.tokens))
"""


def source(machine: Machine) -> Path:
    """A copy of what is installed, so that nothing is written to this checkout."""
    folder = machine.folder / "source"
    folder.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    ignored = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(ROOT / "hired_kernels", folder / "hired_kernels", ignore=ignored)
    shutil.copytree(ROOT / "tools", folder / "tools", ignore=ignored)
    return folder


PIP = (sys.executable, "-m", "pip", "install", "-v", "--no-build-isolation", "--no-deps")


@pytest.mark.parametrize("named", [{}, {"CXX": "no-such-compiler"}], ids=["none", "named"])
def test_package_without_compiler(machine: Machine, named: dict[str, str]) -> None:
    installed = machine.folder / "installed"
    if named:
        machine.pretends("c++", "exit 1")  # there, but not what was asked for
    result = machine.run(*PIP, "--target", installed, source(machine), **named)
    assert result.returncode == 0, result.stderr
    assert "hired_kernels: no C++ compiler was found" in result.stdout + result.stderr
    # What pip says last, with or without -v.
    assert "Successfully installed hired-kernels-0.1.0+reference" in result.stdout
    assert (installed / "hired_kernels" / "py.typed").exists()

    info = machine.run(sys.executable, "-m", "hired_kernels", "info", PYTHONPATH=str(installed))
    assert info.returncode == 0, info.stderr
    why = "the native library was not built (no C++ compiler at installation"
    assert f"not available because: {why}" in info.stdout
    serves = machine.run(sys.executable, "-c", SERVES, PYTHONPATH=str(installed))
    file, backend, kept = serves.stdout.split()
    assert Path(file).is_relative_to(installed)
    assert backend == "reference"
    assert int(kept) == 5 * 576 // 5


def test_native_library_asked_for_without_compiler(machine: Machine) -> None:
    folder = source(machine)
    shutil.copy(ROOT / "CMakeLists.txt", folder)
    env = {"HIRED_NATIVE": "1", "HIRED_CUDA_ARCHS": "none", "CXX": "no-such-compiler"}
    result = machine.run(*PIP, "--target", machine.folder / "installed", folder, **env)
    assert result.returncode != 0
    assert "no C++ compiler was found (CXX=no-such-compiler): install" in result.stderr
    assert not (machine.folder / "installed").exists()


# --- make ----------------------------------------------------------------------------------------

# As a compiler without them answers, and its linker.
NO_SANITIZERS = """
case "$*" in
  -print-file-name=*) echo "${1#*=}" ;;
  *) echo "ld: cannot find -lasan" >&2; exit 1 ;;
esac"""
# A linker script, as Fedora has beside every compiler: it links, but cannot be preloaded.
ONLY_SCRIPTS = """
case "$*" in
  -print-file-name=*) echo "$0" ;;
  *) while [ "$1" != -o ]; do shift; done; cp "${0%/*}/true" "$2" ;;
esac"""


@pytest.mark.parametrize("target", ["test-sanitize", "test-emulated"])
@pytest.mark.parametrize(
    "compiler", [NO_SANITIZERS, ONLY_SCRIPTS, None], ids=["no-library", "script", "no-compiler"]
)
def test_make_without_sanitizers(machine: Machine, compiler: str | None, target: str) -> None:
    machine.has("make", "mkdir", "find", "cat", "cp", "true")
    if compiler:
        machine.pretends("c++", compiler)
    result = machine.run("make", "-f", ROOT / "Makefile", target)
    assert result.returncode != 0
    assert "expected a C++ compiler with libasan and libubsan" in result.stderr
    assert "got c++ without: install them (Debian: g++;" in result.stderr
    assert "pip" not in result.stdout + result.stderr  # before the set-up


# --- tools ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("root", "apt"),
    [(True, None), (False, ": > called"), (True, "exit 100"), (True, "exit 0")],
    ids=["no-apt-get", "not-root", "apt-get-fails", "nothing-installed"],
)
def test_pascal_compiler_without_clang(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, root: bool, apt: str | None
) -> None:
    if apt:
        machine.pretends("apt-get", apt)
    monkeypatch.setenv("PATH", str(machine.bin))
    monkeypatch.chdir(machine.folder)
    monkeypatch.setattr(os, "geteuid", lambda: 0 if root else 1000)
    monkeypatch.setattr(sys, "argv", ["make_pascal_compiler.py", str(machine.folder / "pascal")])
    with pytest.raises(SystemExit) as end:
        tool("make_pascal_compiler").main()
    assert "none of clang++-19, clang++-20, clang++-18 was found" in str(end.value)
    assert "sudo apt-get install" in str(end.value)
    assert not (machine.folder / "called").exists()
    assert not (machine.folder / "pascal").exists()


def test_pascal_compiler_whose_clang_is_gone(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = machine.folder / "pascal"
    (root / "bin").mkdir(parents=True)
    (root / "complete").write_text("12.9\n")
    (root / "bin" / "ptxas").touch()
    (root / "bin" / "clang++").symlink_to(machine.folder / "removed")
    monkeypatch.setenv("PATH", str(machine.bin))
    monkeypatch.setattr(sys, "argv", ["make_pascal_compiler.py", str(root)])
    with pytest.raises(SystemExit, match="none of clang"):
        tool("make_pascal_compiler").main()


@pytest.mark.parametrize("there", [False, True])
def test_pascal_compiler_without_disassembler(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, there: bool
) -> None:
    """A folder that is complete but for it gets it, nothing else is fetched; or does without."""
    root = machine.folder / "pascal"
    (root / "bin").mkdir(parents=True)
    (root / "complete").write_text("12.9\n")
    (root / "bin" / "clang++").touch()
    maker = tool("make_pascal_compiler")
    asked = []

    def download(wheels: Path, *requirements: str) -> int:
        asked.append(requirements[-1])
        if there:
            with zipfile.ZipFile(wheels / "triton.whl", "w") as wheel:
                wheel.writestr(maker.DISASSEMBLER, f"#!{machine.bin}/sh\n")
        return 0 if there else 1

    machine.has("sh")
    monkeypatch.setattr(maker, "download", download)
    monkeypatch.setattr(maker.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(sys, "argv", ["make_pascal_compiler.py", str(root)])
    maker.main()
    maker.main()
    assert asked == [maker.TRITON] * (1 if there else 2)
    assert ("could not be fetched" in capsys.readouterr().out) is not there
    assert sorted(path.name for path in (root / "bin").iterdir()) == [
        "clang++", *(["nvdisasm"] if there else [])]  # fmt: skip


@pytest.fixture
def no_cuda(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """tools/cuda_toolchain.py where no CUDA compiler is, in no place that it looks in."""
    for name in OTHERS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(machine.bin))
    toolchain = tool("cuda_toolchain")
    looked_in = toolchain.nvcc_candidates()
    elsewhere = [path for path in looked_in if path and path.startswith("/usr/local/cuda")]
    assert elsewhere  # it is not left to PATH alone
    monkeypatch.setattr(toolchain, "nvcc_candidates", lambda: [None, "/no/such/nvcc"])
    monkeypatch.setattr(toolchain, "ROOT", machine.folder)
    return toolchain


def test_cuda_without_compiler(no_cuda: ModuleType) -> None:
    plan = no_cuda.choose("auto", "")
    assert plan.archs == []
    assert plan.why_none.startswith("no CUDA compiler was found (CUDACXX, CUDA_HOME, PATH")
    for archs in ("90", "61;90", "all"):
        with pytest.raises(no_cuda.Refused, match=r"no CUDA compiler was found \(CUDACXX"):
            no_cuda.choose(archs, "")


@pytest.mark.parametrize(
    ("name", "words"),
    [("CUDACXX", "no such program"), ("HIRED_PASCAL_COMPILER", "make_pascal_compiler.py")],
)
def test_cuda_compiler_named_and_not_there(
    no_cuda: ModuleType, monkeypatch: pytest.MonkeyPatch, name: str, words: str
) -> None:
    monkeypatch.setenv(name, "/no/such/place")
    with pytest.raises(no_cuda.Refused, match=f"{name}=/no/such/place: .*{words}"):
        no_cuda.choose("auto", "")


def test_bundle_without_its_python(machine: Machine) -> None:
    command = (sys.executable, ROOT / "tools" / "gpu" / "bundle.py", "--python", "python3.99")
    result = machine.run(*command)
    assert result.returncode == 1
    for part in ("no python3.99 was found", "PYTHON_OF_BUNDLE=/path/to/python3.x make gpu-bundle"):
        assert part in result.stderr


# --- tests that are skipped ----------------------------------------------------------------------


def skips(machine: Machine, *arguments: str) -> str:
    options = ("-p", "no:cacheprovider", "-p", "no:xdist", "-rs", "--rootdir", str(ROOT))
    result = machine.run(sys.executable, "-m", "pytest", *options, *arguments)
    assert result.returncode == 0, result.stdout
    assert "passed" not in result.stdout
    return result.stdout


def no_gxx(machine: Machine) -> str:
    return skips(machine, str(ROOT / "tests/emulator/test_emulator.py"))


def no_libasan(machine: Machine) -> str:
    machine.pretends("g++", NO_SANITIZERS)
    return skips(machine, str(ROOT / "tests/emulator/test_emulator.py"))


def no_binutils(machine: Machine) -> str:
    return skips(machine, str(ROOT / "tests/build/test_symbols.py"))


@pytest.mark.parametrize(
    ("case", "reasons"),
    [
        (no_gxx, ["no g++"]),
        (no_libasan, ["g++ has no libasan", "ld: cannot find -lasan"]),
        (no_binutils, ["needs objdump", "needs nm"]),
    ],
)
def test_skips_say_why(
    machine: Machine, case: Callable[[Machine], str], reasons: list[str]
) -> None:
    said = case(machine)
    for reason in reasons:
        assert reason in said
