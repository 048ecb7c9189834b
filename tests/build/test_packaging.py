# SPDX-License-Identifier: Apache-2.0
"""From a checkout to an installed package: what setup.py says where something is missing, which
PyTorch it takes, what a source distribution and Hugging Face's layout of a kernel hold.

setup.py is run up to the metadata, which is where pip stops before it fetches dependencies.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from builds import LIBRARY, PACKAGE, ROOT, tool

# As pip does it: the environment's packages are taken out of sys.path by what PYTHONPATH names.
HIDES = """
import sys, sysconfig
sys.path[:] = [path for path in sys.path if path != sysconfig.get_path("purelib")]
"""


class Source:
    """A copy of the sources, and a setup.py that believes to be run by `python`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "source"
        self.bin = folder / "bin"
        self.bin.mkdir()
        ignored = shutil.ignore_patterns("*.so", "__pycache__", "data")
        shutil.copytree(ROOT / "hired_kernels", self.folder / "hired_kernels", ignore=ignored)
        shutil.copytree(ROOT / "tools", self.folder / "tools", ignore=ignored)
        for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, self.folder)
        for name, says in (("c++", ""), ("cmake", "cmake version 3.25.1"), ("ninja", "1.11")):
            self.program(name, f"echo '{says}'")

    def program(self, name: str, script: str) -> Path:
        path = self.bin / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return path

    def metadata(self, before: str = "", python: Path | None = None, **env: str) -> str:
        """What was said, of a build or of the metadata's folder; `before` runs before setup.py."""
        script = f"""
import runpy, sys
sys.argv = ["setup.py", "-q", "dist_info", "--output-dir", "."]
sys.executable = {str(python or self.bin / "python")!r}
{before}
runpy.run_path("setup.py", run_name="__main__")
"""
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("HIRED_", "CUDA", "CXX"))}
        clean |= {"PATH": str(self.bin), "HIRED_CUDA_ARCHS": "none", **env}
        result = subprocess.run(
            [sys.executable, "-c", script], cwd=self.folder, env=clean, capture_output=True,
            text=True, check=False,
        )  # fmt: skip
        found = [path.name for path in self.folder.glob("*.dist-info")]
        assert bool(found) is (result.returncode == 0), result.stderr
        return " ".join([*found, result.stderr])


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return Source(tmp_path)


TOOLS = 'pip install "setuptools>=77" cmake ninja pybind11, then try again'


@pytest.mark.parametrize(
    ("gone", "before", "said"),
    [
        ("cmake", "", "it needs cmake: " + TOOLS),
        ("ninja", "", "it needs ninja: " + TOOLS),
        (None, "sys.modules['pybind11'] = None", "it needs pybind11: " + TOOLS),
        (
            "cmake",
            "import importlib.metadata as m, setuptools; m.version = lambda name: '2.12.0'",
            "it needs cmake, pybind11 2.13 or later: " + TOOLS,
        ),
        (
            None,
            "import setuptools; setuptools.__version__ = '76.1.0'",
            "setuptools 76.1.0 is older than 77: " + TOOLS,
        ),
        (
            None,
            "import sysconfig; sysconfig.get_path = lambda name: '/none'",
            "Python's headers are missing (/none/Python.h; Debian: python3-dev)",
        ),
    ],
    ids=["cmake", "ninja", "pybind11", "old-pybind11", "old-setuptools", "headers"],
)
def test_a_missing_tool_is_one_line(source: Source, gone: str, before: str, said: str) -> None:
    if gone:
        (source.bin / gone).unlink()
    assert source.metadata(before).splitlines()[-1].strip() == f"hired_kernels: no build: {said}"


def test_an_old_cmake_is_named(source: Source) -> None:
    cmake = source.program("cmake", "echo cmake version 3.22.1")
    assert f"it needs cmake 3.25 or later ({cmake} is not): {TOOLS}" in source.metadata()


def test_setuptools_missing_is_one_line() -> None:
    # -S: without site-packages.
    command = [sys.executable, "-S", "-c", "import build_backend"]
    result = subprocess.run(
        command, cwd=ROOT / "tools", capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert result.stderr == f"hired_kernels: no build: setuptools is missing: {TOOLS}\n"


def test_no_pytorch_is_said_before_anything_is_fetched(source: Source) -> None:
    source.program("python", "exit 0")  # and prints no folder
    said = source.metadata()
    assert "needs PyTorch 2.10 or later, and none was found: pip install torch" in said
    assert "cmake ninja pybind11, then try again with --no-build-isolation" in said
    assert len(said.strip().splitlines()) == 1


def test_an_old_pytorch_is_named(source: Source) -> None:
    folder = source.folder.parent / "torch"
    folder.mkdir()
    (folder / "version.py").write_text("__version__ = '2.9.1+cpu'\n")
    source.program("python", f"echo {folder}/__init__.py")
    said = source.metadata()
    assert f"PyTorch 2.9 ({folder}) is older than 2.10: pip install --upgrade" in said


def test_pytorch_is_found_from_an_isolated_build(source: Source) -> None:
    hides = source.folder.parent / "hides"
    hides.mkdir()
    (hides / "sitecustomize.py").write_text(HIDES)
    here = source.program("python", f'exec "{sys.executable}" "$@"')
    hidden = {**os.environ, "PYTHONPATH": str(hides)}
    seen = [here, "-c", "import importlib.util as u; print(u.find_spec('torch'))"]
    result = subprocess.run(seen, env=hidden, capture_output=True, text=True, check=True)
    assert result.stdout == "None\n"  # it is hidden

    before = f"import os; os.environ['PYTHONPATH'] = {str(hides)!r}"
    assert "hired_kernels-0.1.0+cpu.dist-info" in source.metadata(before, python=here)


def test_native_code_not_asked_for_needs_none_of_it(source: Source) -> None:
    for path in source.bin.iterdir():
        path.unlink()
    assert source.metadata(HIRED_NATIVE="0").split() == ["hired_kernels-0.1.0.dist-info"]


def test_a_source_distribution_holds_what_a_build_needs(tmp_path: Path) -> None:
    command = [sys.executable, "setup.py", "-q", "sdist", "--dist-dir", str(tmp_path)]
    egg_info = ["egg_info", "--egg-base", str(tmp_path)]  # nothing is written to the checkout
    subprocess.run([*command, *egg_info], cwd=ROOT, check=True, capture_output=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    assert archive.name == "hired_kernels-0.1.0.tar.gz"
    with tarfile.open(archive) as content:
        names = {name.partition("/")[2] for name in content.getnames()}
        content.extractall(tmp_path, filter="data")
    built_from = ["CMakeLists.txt", "LICENSE", "README.md", "hired_kernels/py.typed"]
    for folder in ("csrc", "python", "tools"):
        built_from += [
            str(path.relative_to(ROOT))
            for path in (ROOT / folder).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        ]
    assert set(built_from) <= names
    assert not [name for name in names if name.endswith((".so", ".pyc"))]

    # The version is again that of the build, not the one in the archive's setup.cfg.
    (folder,) = tmp_path.glob("hired_kernels-0.1.0")
    env = {"PATH": str(tmp_path), "HIRED_NATIVE": "auto"}
    command = [sys.executable, "setup.py", "-q", "dist_info", "--output-dir", str(tmp_path)]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, env=env)
    assert (tmp_path / "hired_kernels-0.1.0+reference.dist-info").exists()


# --- Hugging Face's `kernels` --------------------------------------------------------------------

# As kernels.importer does it: under a name of the metadata, and not as hired_kernels.
LOADS = """
import importlib.util, sys, torch
name, path, package = sys.argv[1:]
spec = importlib.util.spec_from_file_location(name, path)
module = sys.modules[name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
attention = torch.rand(5, 2, 576)
kept = module.select(torch.rand(5, 576, 8), attention, attention, grids=[(2, 2)], budget=0.2)
assert len(kept.tokens) == 576
backends = sys.modules[f"{name}.backends"]

class Importlib:
    def import_module(*args):
        print(*args)
        raise ImportError

backends.importlib = Importlib
try:
    backends._in_triton("select")(None)
except ImportError:
    print("hired_kernels" in sys.modules)
sys.path.insert(0, package)
try:
    import hired_kernels
except ImportError as error:
    print(error)
"""


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """The package as it is installed, as a wheel of a build for sm_61 and sm_90."""
    if not LIBRARY.exists():
        pytest.skip("the native library was not built: there was no C++ compiler")
    path = tmp_path / "hired_kernels-0.1.0+sm61.90-cp311-cp311-linux_x86_64.whl"
    with zipfile.ZipFile(path, "w") as content:
        for file in PACKAGE.rglob("*"):
            if file.is_file() and file.suffix in (".py", ".so"):
                content.write(file, f"hired_kernels/{file.relative_to(PACKAGE)}")
        content.writestr("hired_kernels-0.1.0+sm61.90.dist-info/METADATA", "")
    return path


def test_a_kernel_as_hugging_face_lays_it_out(wheel: Path, tmp_path: Path) -> None:
    folders = tool("hf_kernel").lay_out([wheel], tmp_path)
    names = [f"torch-stable-abi210-{name}-x86_64-linux" for name in ("cpu", "cu120", "cu130")]
    assert [folder.relative_to(tmp_path) for folder in folders] == [
        Path("build") / name for name in names
    ]
    said = [json.loads((folder / "metadata.json").read_text()) for folder in folders]
    assert len({entry["id"] for entry in said}) == 3
    assert said[0]["backend"] == {"type": "cpu"}
    assert said[1]["backend"] == {"type": "cuda", "archs": ["6.1", "9.0", "9.0+PTX"]}

    file = folders[0] / "__init__.py"
    command = [sys.executable, "-c", LOADS, said[0]["id"], file, PACKAGE.parent]
    env = {k: v for k, v in os.environ.items() if k != "HIRED_BACKEND"}
    result = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=tmp_path, env=env
    )
    assert result.returncode == 0, result.stderr
    launcher, imported, refused = result.stdout.splitlines()[-3:]
    assert launcher == f".select_triton {said[0]['id']}.triton_kernels"
    assert imported == "False"
    assert "torch.ops.hired is there already, from another copy" in refused


def test_other_wheels_are_no_kernel(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"expected wheels of one build with native code"):
        tool("hf_kernel").lay_out(
            [Path("hired_kernels-0.1.0+reference-py3-none-any.whl")], tmp_path
        )


@pytest.mark.skipif(not LIBRARY.exists(), reason="the native library was not built")
def test_a_checkout_that_hides_the_installed_package_says_so(tmp_path: Path) -> None:
    """After `pip install .`, Python in the checkout imports the source, which has no library."""
    checkout, installed = tmp_path / "checkout", tmp_path / "installed"
    sources = shutil.ignore_patterns("*.so", "__pycache__", "data")
    shutil.copytree(PACKAGE, checkout / "hired_kernels", ignore=sources)
    (installed / "hired_kernels").mkdir(parents=True)
    shutil.copy(LIBRARY, installed / "hired_kernels")
    env = dict(os.environ, PYTHONPATH=str(installed))
    command = [sys.executable, "-m", "hired_kernels", "info"]
    done = subprocess.run(command, cwd=checkout, env=env, capture_output=True, text=True)
    why = f"this is the source in {checkout}, which hides the package installed in {installed}"
    assert f"RuntimeWarning: hired_kernels: {why}" in done.stderr
    assert f"cpu                not available because: {why}" in done.stdout
    alone = subprocess.run(
        command, cwd=checkout, env=dict(env, PYTHONPATH=""), capture_output=True, text=True
    )
    assert "hides" not in alone.stdout + alone.stderr
    assert "the native library was not built" in alone.stdout
