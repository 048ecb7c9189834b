# SPDX-License-Identifier: Apache-2.0
"""Which GPU architectures a build holds, and who makes the code for each: asked of
tools/cuda_toolchain.py and setup.py on machines that are pretended.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from builds import PACKAGE, ROOT, tool

NVCC_13 = (75, 80, 86, 87, 88, 89, 90, 100, 103, 110, 120, 121)


class Machine:
    """A folder with the project's tools and programs that pretend to be nvcc and nvidia-smi."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "bin").mkdir()
        (folder / "lib64").mkdir()
        (folder / "lib64" / "libcudart_static.a").touch()
        shutil.copytree(ROOT / "tools", folder / "tools")

    def program(self, name: str, script: str) -> Path:
        path = self.folder / "bin" / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return path

    def nvcc(self, version: str, archs: tuple[int, ...]) -> None:
        codes = "\n".join(f"sm_{arch}" for arch in archs)
        self.program(
            "nvcc",
            f"""case $1 in
              --version) echo "Cuda compilation tools, release {version}, V{version}.88" ;;
              --dryrun) echo "#$ TOP={self.folder}" >&2 ;;
              --list-gpu-code) echo "{codes}" ;;
            esac""",
        )

    def gpus(self, *capabilities: str) -> None:
        self.program("nvidia-smi", "\n".join(f"echo {capability}" for capability in capabilities))

    def pascal_compiler(self) -> None:
        root = self.folder / "build" / "pascal"
        (root / "bin").mkdir(parents=True)
        (root / "lib64").mkdir()
        (root / "lib64" / "libcudart_static.a").touch()
        (root / "complete").write_text("12.9\n")
        clang = self.program("clang", 'echo "clang version 19.1.7"')
        (root / "bin" / "clang++").symlink_to(clang)

    def ask(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        names = ("CUDACXX", "CUDA_HOME", "CUDA_PATH", "HIRED_PASCAL_COMPILER")
        names += ("HIRED_CUDA_ARCHS", "HIRED_CUDA_PTX")
        env = {name: value for name, value in os.environ.items() if name not in names}
        env["PATH"] = f"{self.folder / 'bin'}:/usr/bin:/bin"
        command = [sys.executable, str(self.folder / "tools" / "cuda_toolchain.py"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=env, check=False)

    def archs(self, *arguments: str) -> str:
        result = self.ask(*arguments)
        assert result.returncode == 0, result.stderr
        return result.stdout.strip()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_auto_takes_the_gpu_that_is_here(machine: Machine) -> None:
    machine.nvcc("13.0", NVCC_13)
    machine.gpus("8.6", "8.6", "9.0")
    assert machine.archs("--archs", "auto") == "86;90"


def test_auto_without_gpu_takes_all_that_can_be_made(machine: Machine) -> None:
    machine.nvcc("13.0", NVCC_13)
    machine.gpus()
    assert machine.archs("--archs", "auto") == "75;80;86;89;90;100;120"
    machine.pascal_compiler()
    assert machine.archs("--archs", "auto") == "61;75;80;86;89;90;100;120"


def test_auto_with_a_gpu_newer_than_the_compiler_leaves_it_to_ptx(machine: Machine) -> None:
    machine.nvcc("13.0", NVCC_13)
    machine.gpus("15.0")
    assert machine.archs("--archs", "auto") == "120"
    assert 'set(HIRED_CUDA_BUILT_PTX "120")' in machine.ask("--format", "cmake").stdout


@pytest.mark.parametrize("asked", ["none", ""])
def test_none(machine: Machine, asked: str) -> None:
    machine.nvcc("13.0", NVCC_13)
    assert machine.archs("--archs", asked) == ""
    assert "CPU only" in machine.ask("--archs", asked, "--format", "cmake").stdout


@pytest.mark.parametrize("asked", ["61", "61;90", "all"])
def test_pascal_without_its_compiler_says_what_to_do(machine: Machine, asked: str) -> None:
    machine.nvcc("13.0", NVCC_13)
    result = machine.ask("--archs", asked)
    assert result.returncode == 1
    for part in ("sm_61", "nvcc 13.0", "python tools/make_pascal_compiler.py", "CUDACXX="):
        assert part in result.stderr


def test_pascal_gpu_here_without_its_compiler_says_what_to_do(machine: Machine) -> None:
    machine.nvcc("13.0", NVCC_13)
    machine.gpus("6.1")
    assert "tools/make_pascal_compiler.py" in machine.ask("--archs", "auto").stderr


def test_who_makes_what(machine: Machine) -> None:
    machine.nvcc("13.0", NVCC_13)
    machine.pascal_compiler()
    lines = machine.ask("--archs", "90;61", "--ptx", "61", "--format", "cmake").stdout
    for line in (
        'set(HIRED_CUDA_BUILT "61;90")',
        'set(HIRED_CUDA_BUILT_PTX "61;90")',
        'set(HIRED_CUDA_BY_PASCAL "61")',
        'set(HIRED_CUDA_COMPILERS "clang 19.1.7 with CUDA 12.9, nvcc 13.0.88")',
        f'set(HIRED_CUDART "{machine.folder}/build/pascal/lib64/libcudart_static.a")',
    ):
        assert line in lines


def test_nvcc_of_cuda_12_makes_all_by_itself(machine: Machine) -> None:
    machine.nvcc("12.9", (50, 61, 70, *NVCC_13))
    machine.pascal_compiler()
    lines = machine.ask("--archs", "all", "--format", "cmake").stdout
    assert 'set(HIRED_CUDA_BY_PASCAL "")' in lines
    assert 'set(HIRED_CUDA_COMPILERS "nvcc 12.9.88")' in lines


@pytest.fixture
def toolchain(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """cuda_toolchain.py where the machine's nvcc is the only one."""
    toolchain = tool("cuda_toolchain")
    monkeypatch.setattr(toolchain, "nvcc_candidates", lambda: [None, f"{machine.folder}/bin/nvcc"])
    monkeypatch.setattr(toolchain, "ROOT", machine.folder)
    monkeypatch.setenv("PATH", f"{machine.folder / 'bin'}:/usr/bin:/bin")
    for name in ("CUDACXX", "CUDA_HOME", "CUDA_PATH", "HIRED_PASCAL_COMPILER"):
        monkeypatch.delenv(name, raising=False)
    return toolchain


def test_an_old_nvcc_is_named(machine: Machine, toolchain: ModuleType) -> None:
    machine.nvcc("11.8", (61, 75, 80, 90))
    machine.gpus("8.0")  # Triton serves it
    why = f"{machine.folder}/bin/nvcc is nvcc 11.8.88, and 12.1 is the oldest that will do"
    plan = toolchain.choose("auto", "")
    assert (plan.archs, plan.why_none) == ([], why)
    assert f'set(HIRED_CUDA_WHY_NONE "{why}")' in toolchain.cmake_lines(plan)
    with pytest.raises(toolchain.Refused, match=r"code for sm_80 was asked for, and .*12\.1"):
        toolchain.choose("80", "")


def test_a_pascal_card_without_compiler_is_no_build_for_the_cpu(
    machine: Machine, toolchain: ModuleType
) -> None:
    machine.gpus("6.1")
    with pytest.raises(toolchain.Refused) as refusal:
        toolchain.choose("auto", "")
    assert "the GPU here is sm_61, which CUDA code alone serves, and no CUDA" in str(refusal.value)
    assert "or build for the CPU alone with HIRED_CUDA_ARCHS=none" in str(refusal.value)
    assert toolchain.choose("none", "").archs == []


def test_a_broken_nvcc_and_a_cuda_home_without_are_named(
    machine: Machine, toolchain: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_HOME", str(machine.folder))
    assert toolchain.why_no_nvcc() == f"there is no nvcc in CUDA_HOME={machine.folder}, nor on PATH"
    machine.program("nvcc", "exit 1")
    assert "nvcc does not work: " in toolchain.why_no_nvcc()


@pytest.mark.parametrize("asked", ["sm_61", "6.1", "61;x"])
def test_nonsense_is_refused(machine: Machine, asked: str) -> None:
    assert "expected numbers like 61;90" in machine.ask("--archs", asked).stderr


@pytest.mark.parametrize(
    ("asked", "version"),
    [("61;90", "0.1.0+sm61.90"), ("120", "0.1.0+sm120"), ("none", "0.1.0+cpu")],
)
def test_version_names_the_architectures(machine: Machine, asked: str, version: str) -> None:
    machine.nvcc("13.0", NVCC_13)
    machine.pascal_compiler()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, machine.folder)
    shutil.copytree(
        PACKAGE, machine.folder / "hired_kernels", ignore=shutil.ignore_patterns("*.so")
    )
    (machine.folder / "out").mkdir()
    hook = "import build_backend as b; print(b.prepare_metadata_for_build_wheel('out'))"
    env = dict(os.environ, HIRED_CUDA_ARCHS=asked, CXX=sys.executable)
    env["PYTHONPATH"] = str(machine.folder / "tools")
    env["PATH"] = f"{machine.folder / 'bin'}:{env['PATH']}"
    for name in ("CUDACXX", "CUDA_HOME", "CUDA_PATH", "HIRED_PASCAL_COMPILER", "HIRED_SANITIZE"):
        env.pop(name, None)
    result = subprocess.run(
        [sys.executable, "-c", hook],
        capture_output=True,
        text=True,
        cwd=machine.folder,
        env=env,
        check=False,
    )
    assert result.stdout.split()[-1:] == [f"hired_kernels-{version}.dist-info"], result.stderr
