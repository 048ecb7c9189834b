#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Builds here what a machine with a GPU would else have to compile: build/gpu-bundle.

    python tools/gpu/bundle.py [--archs 90] [--python python3.12] [--torch 2.11.0]
                               [--before COMMIT]

For each variant of tools/gpu/package.py a folder to be put on PYTHONPATH, for the Python and
against the headers of the PyTorch that the other machine has. (The library itself goes by PyTorch's
stable ABI, and serves any from 2.10 on; `_C` is for one Python.) --before adds the release build of
another commit, for first contact to time in turns with this one. Ends with the bundle's size, which
has to stay below what travels, and the newest GLIBC that it needs.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import package
from package import BUNDLE, ROOT

LIMIT = 64 << 20  # bytes that travel, the working tree among them
ENVIRONMENT = ROOT / "build" / "gpu-bundle-env"
TOOLS = ("setuptools>=77", "wheel", "cmake", "ninja", "pybind11")


def find_python(wanted: str) -> str:
    """An interpreter that runs: pyenv has names for versions that are switched off, too."""
    names = [wanted, *map(str, sorted(Path.home().glob(f".pyenv/versions/*/bin/{wanted}")))]
    for name in names:
        try:
            subprocess.run([name, "-c", ""], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            continue
        return name
    sys.exit(
        f"gpu-bundle: no {wanted} was found, and the module _C is built for one Python. Install "
        "it, or name another: PYTHON_OF_BUNDLE=/path/to/python3.x make gpu-bundle"
    )


def environment_with(python: str, torch: str) -> str:
    """The Python of an environment with that PyTorch's headers and libraries, never imported."""
    interpreter, done = ENVIRONMENT / "bin" / "python", ENVIRONMENT / "complete"
    wanted = f"{python} torch=={torch}\n"
    if not done.exists() or done.read_text() != wanted:
        shutil.rmtree(ENVIRONMENT, ignore_errors=True)
        subprocess.run([python, "-m", "venv", str(ENVIRONMENT)], check=True)
        pip = [str(interpreter), "-m", "pip", "install", "-q"]
        subprocess.run([*pip, *TOOLS], check=True)
        subprocess.run([*pip, "--no-deps", f"torch=={torch}"], check=True)
        done.write_text(wanted)
    return str(interpreter)


def build(interpreter: str, sources: Path, name: str, variables: dict[str, str]) -> Path:
    base = ROOT / "build" / "gpu-bundle-build" / name
    command = [interpreter, "setup.py", "-q", "build", "--build-base", str(base)]
    environment = {**os.environ, "HIRED_NATIVE": "1", **variables}
    shutil.rmtree(base / "lib", ignore_errors=True)
    print(f"gpu-bundle: {name} ...", flush=True)
    result = subprocess.run(
        [*command, "--build-lib", str(base / "lib")],
        cwd=sources, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if result.returncode:
        sys.exit(f"{result.stdout[-3000:]}{result.stderr[-3000:]}\ngpu-bundle: {name}: no build")
    return base / "lib"


def put(built: Path, name: str) -> None:
    """Without the demonstration's data, which travels with the working tree as it is."""
    ignored = shutil.ignore_patterns("data", "__pycache__")
    shutil.copytree(built / "hired_kernels", BUNDLE / name / "hired_kernels", ignore=ignored)


def before(interpreter: str, commit: str, variables: dict[str, str]) -> str:
    """Builds another commit's release; returns its full name."""
    tree = ROOT / "build" / "gpu-bundle-before"
    git = ["git", "-C", str(ROOT)]
    subprocess.run([*git, "worktree", "remove", "--force", str(tree)], capture_output=True)
    subprocess.run([*git, "worktree", "add", "-q", "--detach", str(tree), commit], check=True)
    try:
        put(build(interpreter, tree, "before", variables), "before")
        head = ["git", "-C", str(tree), "rev-parse", "HEAD"]
        return subprocess.run(head, check=True, capture_output=True, text=True).stdout.strip()
    finally:
        subprocess.run([*git, "worktree", "remove", "--force", str(tree)], check=True)


def travelling() -> int:
    """Bytes of the working tree: tracked files and others that git does not ignore."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "-co", "--exclude-standard"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    paths = [ROOT / name for name in listed.split("\0") if name]
    return sum(path.stat().st_size for path in paths if path.is_file())


def newest_glibc() -> str:
    found = [(0,)]
    for library in BUNDLE.rglob("*.so"):
        text = library.read_bytes()
        found += [tuple(map(int, v.split(b"."))) for v in re.findall(rb"GLIBC_(2\.\d+)\0", text)]
    return ".".join(map(str, max(found)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--archs", default="90", help="machine code for (default: %(default)s: H100, H200)")
    add("--python", default=os.environ.get("PYTHON_OF_BUNDLE") or "python3.12")
    add("--torch", default="2.11.0", help="whose headers (default: %(default)s)")
    add("--before", default=os.environ.get("BEFORE") or None, help="a commit to compare with")
    options = parser.parse_args()
    python = find_python(options.python)
    version = "import sys; print('%d.%d' % sys.version_info[:2])"
    run = subprocess.run([python, "-c", version], check=True, capture_output=True, text=True)
    interpreter = environment_with(python, options.torch)
    shutil.rmtree(BUNDLE, ignore_errors=True)
    variables = {"HIRED_CUDA_ARCHS": options.archs, "HIRED_CUDA_PTX": "", "HIRED_SPIN_LIMIT": ""}
    said = {
        "python": run.stdout.strip(),
        "torch": options.torch,
        "archs": options.archs,
        "commit": package.commit(),
        "sources": package.digest(),
    }
    for name, own in package.VARIANTS.items():
        put(build(interpreter, ROOT, name, {**variables, **own}), name)
    if options.before:
        said["before"] = before(interpreter, options.before, variables)
    (BUNDLE / "manifest.json").write_text(json.dumps(said, indent=2) + "\n")

    size = sum(path.stat().st_size for path in BUNDLE.rglob("*") if path.is_file())
    tree = travelling()
    mib = 1 << 20
    holds = ", ".join(sorted(path.name for path in BUNDLE.iterdir() if path.is_dir()))
    print(f"{BUNDLE}: Python {said['python']}, sm_{options.archs}: {holds}")
    print(
        f"{size / mib:.1f} MiB, with the working tree {(size + tree) / mib:.1f} MiB "
        f"(at most {LIMIT / mib:.0f}); needs GLIBC {newest_glibc()}"
    )
    if size + tree > LIMIT:
        print("gpu-bundle: too large to travel: fewer architectures?", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
