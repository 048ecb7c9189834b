# SPDX-License-Identifier: Apache-2.0
"""`python benchmarks NAME`: what is found by it, and what is in its way."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import benchmarks
from benchmarks.__main__ import COMMANDS

FOLDER = Path(benchmarks.__file__).parent


def run(*arguments: str, cwd: Path, path: Path | str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(FOLDER), *arguments],
        cwd=cwd, env={**os.environ, "PYTHONPATH": str(path)}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip


def test_every_folder_has_a_command() -> None:
    folders = {path.parent.name for path in FOLDER.glob("*/__init__.py")} - {"shared"}
    assert {name.partition(".")[0] for name in COMMANDS} == folders


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_there(name: str) -> None:
    module, _ = COMMANDS[name]
    try:
        assert callable(importlib.import_module(f"benchmarks.{module}").main)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("benchmarks"):
            raise
        pytest.skip(f"needs {error.name}")


def test_commands_are_listed(tmp_path: Path) -> None:
    done = run("--help", cwd=tmp_path)
    assert done.returncode == 0
    assert [line.split()[0] for line in done.stdout.splitlines()[2:]] == list(COMMANDS)


@pytest.mark.parametrize("arguments", [(), ("operator",)], ids=["none", "another"])
def test_an_unknown_command_is_one_line(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    done = run(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("benchmarks: expected one of operators, ")
    assert done.stderr.count("\n") == 1


def test_anothers_benchmarks_are_not_run(tmp_path: Path) -> None:
    """Packages of that name have been seen in site-packages."""
    other = tmp_path / "benchmarks"
    other.mkdir()
    (other / "__init__.py").write_text("raise SystemExit('not to be run')")
    done = run("vllm.tables", "x.json", cwd=tmp_path, path=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    expected = f"expected {FOLDER}, got {other}: it comes first on sys.path"
    assert done.stderr == f"benchmarks: {expected}\n"


def test_an_installed_package_comes_before_the_checkouts(tmp_path: Path) -> None:
    """On a machine with a GPU it is a bundle's, on PYTHONPATH."""
    (tmp_path / "hired_kernels").mkdir()
    (tmp_path / "hired_kernels" / "__init__.py").write_text("raise SystemExit('the installed one')")
    for cwd in (tmp_path, FOLDER.parent, FOLDER):
        done = run("vllm.tables", "x.json", cwd=cwd, path=tmp_path)
        assert done.stderr == "the installed one\n"
