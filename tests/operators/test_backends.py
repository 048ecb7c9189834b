# SPDX-License-Identifier: Apache-2.0
"""Who serves: the table, the two ways to overrule it, and a package without its native library.

Only the CPU backend has a limit of 4,096 heads; so a call with one head more says who serves it.
What is fixed when the package is imported is tried in processes of their own.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from callers import operator
from cls_attention_calls import agree, seeded_attention_call
from strategies import seeded_call, seeded_qk_call

import hired_kernels
from hired_kernels import backends

PACKAGE = Path(hired_kernels.__file__).parent
NATIVE = any(row.name == "cpu" and row.available for row in backends.table())
needs_native = pytest.mark.skipif(not NATIVE, reason="the native library was not built")

pytestmark = pytest.mark.usefixtures("one_thread")


def serving() -> str:
    """The backend that a call on this machine's CPU ends up in, by what it does."""
    H = 4097
    attention = torch.zeros(1, 1, 1).expand(1, H, 1)
    try:
        torch.ops.hired.select(torch.ones(1, 1, 1), attention, attention, [0, 0], [1])
    except RuntimeError as error:
        # "... expected H <= 4096 on the cpu backend, got H = 4097"
        return str(error).partition(" on the ")[2].partition(" backend")[0]
    return "reference"


@pytest.fixture(autouse=True)
def no_override() -> Iterator[None]:
    hired_kernels.backend("auto")
    yield
    hired_kernels.backend(os.environ.get("HIRED_BACKEND") or "auto")


# The table.


def test_table() -> None:
    rows = backends.table()
    names = [row.name for row in rows]
    assert len(names) == len(set(names))
    assert {"cpu", "reference"} <= set(names)
    assert names[-1] == "reference", "the one that serves what nobody else does"
    assert rows[-1].available
    assert rows[-1].devices == ("*",)
    assert all(bool(row.why) != row.available for row in rows), "who is not available says why"


def test_the_table_is_a_copy() -> None:
    backends.table().clear()
    assert backends.table()


def test_serves() -> None:
    row = backends.Backend("some", ("cuda",), True, "")
    assert row.serves("cuda")
    assert not row.serves("cpu")
    assert not backends.Backend("some", ("cuda",), False, "no GPU").serves("cuda")
    assert backends.Backend("some", ("*",), True, "").serves("anything")


@pytest.mark.parametrize("device_type", ["cpu", "meta", "xpu"])
def test_active_is_the_first_that_serves(device_type: str) -> None:
    first = next(row.name for row in backends.table() if row.serves(device_type))
    assert backends.active(device_type) == first


@needs_native
def test_the_native_backend_serves_the_cpu() -> None:
    assert backends.active("cpu") == serving() == "cpu"


# Overruling it from Python.


@needs_native
def test_for_a_block() -> None:
    with hired_kernels.backend("reference"):
        assert backends.active("cpu") == serving() == "reference"
        with hired_kernels.backend("cpu"):
            assert backends.active("cpu") == serving() == "cpu"
        assert backends.active("cpu") == serving() == "reference"
        with hired_kernels.backend("auto"):
            assert backends.active("cpu") == serving() == "cpu"
        assert backends.active("cpu") == serving() == "reference"
    assert backends.active("cpu") == serving() == "cpu"


@needs_native
def test_an_error_ends_the_block_too() -> None:
    with pytest.raises(ZeroDivisionError), hired_kernels.backend("reference"):
        1 / 0  # noqa: B018
    assert backends.active("cpu") == serving() == "cpu"


@needs_native
def test_for_good() -> None:
    hired_kernels.backend("reference")
    assert backends.active("cpu") == serving() == "reference"
    hired_kernels.backend("reference")
    hired_kernels.backend("auto")
    assert backends.active("cpu") == serving() == "cpu"


def test_a_forced_backend_leaves_other_devices_alone() -> None:
    name = backends.table()[0].name if backends.table()[0].available else "reference"
    before = backends.active("meta")
    with hired_kernels.backend(name):
        assert backends.active("meta") == before


@pytest.mark.parametrize("name", ["", "CPU", "cpu ", "nvidia", "*"])
def test_unknown_names(name: str) -> None:
    known = ", ".join([*(row.name for row in backends.table()), "auto"])
    with pytest.raises(ValueError, match="hired: backend: expected one of") as error:
        hired_kernels.backend(name)
    assert str(error.value) == f"hired: backend: expected one of {known}, got {name!r}"


def test_an_unknown_name_changes_nothing() -> None:
    with hired_kernels.backend("reference"):
        with pytest.raises(ValueError, match="expected one of"):
            hired_kernels.backend("nvidia")
        assert backends.active("cpu") == serving() == "reference"


def test_overriding_is_silent(capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            with hired_kernels.backend("reference"):
                serving()
    assert caught == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("op", ["select", "select_qk"])
def test_gradients_do_not_depend_on_who_serves(op: str) -> None:
    call = seeded_call(op, 1) if op == "select" else seeded_qk_call(1)
    gradients = []
    for name in ("auto", "reference"):
        features = call["features"].clone().requires_grad_()
        with hired_kernels.backend(name):
            tokens = operator(op, **{**call, "features": features})[0]
        tokens.square().sum().backward()
        gradients.append(features.grad)
    assert torch.equal(*gradients)


# In a process of its own.

REPORT = """
import json, sys
import torch
import hired_kernels
from hired_kernels import backends
from test_backends import serving
print(json.dumps({
    "file": hired_kernels.__file__,
    "table": {row.name: row.why for row in backends.table()},
    "active": backends.active("cpu"),
    "serving": serving(),
    "schemas": {op: str(getattr(torch.ops.hired, op).default._schema) for op in backends.SCHEMAS},
}))
"""


def run(*arguments: str, folder: Path | None = None, **env: str) -> subprocess.CompletedProcess:
    """Python with these arguments, the package of `folder` before any other, and the tests."""
    before = [str(folder)] if folder else []
    tests = map(str, Path(__file__).parents[:2])
    path = os.pathsep.join([*before, os.environ.get("PYTHONPATH", ""), *tests])
    kept = {name: value for name, value in os.environ.items() if name != "HIRED_BACKEND"}
    return subprocess.run(
        [sys.executable, "-W", "always", *arguments], capture_output=True, text=True,
        env={**kept, "PYTHONPATH": path, **env}, cwd=folder,
    )  # fmt: skip


def report(**where: str | Path) -> dict:
    done = run("-c", REPORT, **where)
    assert done.returncode == 0, done.stderr
    assert "overrid" not in done.stderr.lower()
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", ["reference", pytest.param("cpu", marks=needs_native)])
def test_environment_variable(name: str) -> None:
    said = report(HIRED_BACKEND=name)
    assert said["active"] == said["serving"] == name


def test_environment_variable_of_an_unknown_name() -> None:
    done = run("-c", "import hired_kernels", HIRED_BACKEND="nvidia")
    assert done.returncode == 1
    assert "ValueError: hired: backend: expected one of" in done.stderr.splitlines()[-1]


@pytest.fixture(scope="module")
def without_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package as it is installed where there is no compiler."""
    folder = tmp_path_factory.mktemp("without-library")
    ignored = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(PACKAGE, folder / "hired_kernels", ignore=ignored)
    return folder


@pytest.fixture(scope="module")
def said_without_library(without_library: Path) -> dict:
    return report(folder=without_library)


def test_without_the_library_the_reference_serves(
    said_without_library: dict, without_library: Path
) -> None:
    said = said_without_library
    assert Path(said["file"]).is_relative_to(without_library)
    assert said["active"] == said["serving"] == "reference"
    assert said["table"]["reference"] == ""
    assert "the native library was not built" in said["table"]["cpu"]


@pytest.mark.parametrize("op", backends.SCHEMAS)
def test_schemas_are_those_of_the_library(said_without_library: dict, op: str) -> None:
    here = str(getattr(torch.ops.hired, op).default._schema)
    assert said_without_library["schemas"][op] == here == f"hired::{op}{backends.SCHEMAS[op]}"


def test_a_backend_that_is_not_there_says_why(without_library: Path) -> None:
    done = run("-c", "import hired_kernels", folder=without_library, HIRED_BACKEND="cpu")
    assert done.returncode == 1
    expected = "RuntimeError: hired: backend cpu is not available: the native library was not built"
    assert expected in done.stderr.splitlines()[-1]


def test_info_says_why(without_library: Path) -> None:
    done = run("-m", "hired_kernels", "info", folder=without_library)
    assert done.returncode == 0, done.stderr
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert any(
        line.startswith("cpu not available because: the native library was not built")
        for line in lines
    )
    assert "reference serves cpu" in " ".join(lines)


def test_a_library_that_does_not_load_says_why(without_library: Path, tmp_path: Path) -> None:
    shutil.copytree(without_library, tmp_path, dirs_exist_ok=True)
    (tmp_path / "hired_kernels" / "libhired_kernels.so").write_bytes(b"no library")
    said = report(folder=tmp_path)
    assert said["active"] == said["serving"] == "reference"
    assert "does not load" in said["table"]["cpu"]


def test_results_are_the_same_without_the_library(without_library: Path, tmp_path: Path) -> None:
    calls = {
        "select": seeded_call("select", 3, crops=[0, 8, 1, 7, 0, 0, 0, 0, 1, 4, 0, 8]),
        "select_qk": seeded_qk_call(3, policy="published", dtype=torch.bfloat16),
        "cls_attention": seeded_attention_call(3, dtype=torch.float16),
    }
    torch.save(calls, tmp_path / "calls.pt")
    code = (
        "import sys, torch, hired_kernels; from callers import operator;"
        "calls = torch.load(sys.argv[1]);"
        "torch.save({op: operator(op, **call) for op, call in calls.items()}, sys.argv[2])"
    )
    paths = [str(tmp_path / name) for name in ("calls.pt", "results.pt")]
    done = run("-c", code, *paths, folder=without_library)
    assert done.returncode == 0, done.stderr
    for op, results in torch.load(paths[1]).items():
        assert agree(results, operator(op, **calls[op]))


def test_a_build_without_cuda_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    why = "/opt/nvcc is nvcc 11.8.89, and 12.1 is the oldest that will do"
    said = {"cuda_archs": (), "cuda_ptx": (), "cuda_why_none": why}
    monkeypatch.setattr(backends, "_build_info", lambda: said)
    monkeypatch.setattr(backends, "_why_not_native", "")
    row = backends._cuda.__wrapped__()
    assert not row.available
    assert row.why == (
        f"this build holds no CUDA code ({why}): build it again with nvcc 12.1 or later "
        "(docs/install.md)"
    )
