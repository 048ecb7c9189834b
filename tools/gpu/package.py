# SPDX-License-Identifier: Apache-2.0
"""Which built packages a run on a GPU uses: those of a bundle, or what is built on the spot.

    python3 tools/gpu/package.py [release|spin|pascal ...]

prints their folders, for PYTHONPATH, or an empty line for one that cannot be had:


release  the package, for the GPU that is here
spin     the same, its waits with a limit (HIRED_SPIN_LIMIT)
pascal   code for sm_61 alone, whose PTX newer GPUs run; skipped where no compiler makes it
before   another commit's release, to be compared with: in a bundle alone (bundle.py --before)

A bundle (tools/gpu/bundle.py, build/gpu-bundle) is taken where it was made from the sources that
are here and for the Python that runs; the reason is said where it is not.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from stages import ROOT, Run, Stage, out

BUNDLE = Path(os.environ.get("HIRED_GPU_BUNDLE") or ROOT / "build" / "gpu-bundle")
BUILT = ROOT / "build" / "gpu"
VARIANTS = {
    "release": {"HIRED_SPIN_LIMIT": ""},
    # About two seconds on any card: a poll takes half a microsecond.
    "spin": {"HIRED_SPIN_LIMIT": "4194304"},
    "pascal": {"HIRED_SPIN_LIMIT": "", "HIRED_CUDA_ARCHS": "61", "HIRED_CUDA_PTX": ""},
}


def sources() -> Iterator[Path]:
    """All that a built package comes from."""
    yield from (ROOT / "CMakeLists.txt", ROOT / "setup.py")
    for folder, patterns in (
        ("tools", ("cuda*", "clang_cuda.h", "logged_compile.py", "bundle.py")),
        ("csrc", ("*.h", "*.cpp", "*.cu", "*.cuh")),
        ("python", ("*.h", "*.cpp")),
        ("hired_kernels", ("*.py",)),
    ):
        for pattern in patterns:
            yield from (ROOT / folder).rglob(pattern)


def digest() -> str:
    """Of the sources, as they are here."""
    sha = hashlib.sha256()
    for path in sorted(sources()):
        sha.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes() + b"\0")
    return sha.hexdigest()


def commit() -> str:
    """With a + where tracked files differ from it; outside of git the bundle's, or HIRED_COMMIT."""
    git = ["git", "-C", str(ROOT)]
    try:
        run = {"capture_output": True, "text": True, "check": True}
        head = subprocess.run([*git, "rev-parse", "HEAD"], **run).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], **run).stdout.strip()
        return head + "+" * bool(changed)
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("HIRED_COMMIT") or manifest().get("commit", "")


def manifest() -> dict[str, str]:
    """What the bundle says of itself; empty where there is none."""
    try:
        return json.loads((BUNDLE / "manifest.json").read_text())
    except (OSError, ValueError):
        return {}


def why_not_the_bundle() -> str:
    """Empty where it serves."""
    said = manifest()
    if not said:
        return f"no {BUNDLE}"
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    if said["python"] != here:
        return f"the bundle is for Python {said['python']}, and this is {here}"
    if said["sources"] != digest():
        return "the bundle was made from other sources: make gpu-bundle"
    return ""


def build(name: str) -> Path | None:
    """Builds a variant here, and returns its folder; None where that cannot be."""
    base = BUILT / name
    environment = {"HIRED_CUDA_ARCHS": "auto", **os.environ, "HIRED_NATIVE": "1", **VARIANTS[name]}
    if name == "pascal":
        asked = [sys.executable, str(ROOT / "tools" / "cuda_toolchain.py"), "--archs", "61"]
        if subprocess.run(asked, stdout=sys.stderr, check=False).returncode:
            return None  # it has said why, and what to do
    command = [sys.executable, "setup.py", "-q", "build", "--build-base", str(base)]
    result = subprocess.run(
        [*command, "--build-lib", str(base / "lib")],
        cwd=ROOT, env=environment, stdout=sys.stderr, check=False,
    )  # fmt: skip
    if result.returncode:
        raise SystemExit(f"package: the build of {name} failed: see above")
    return base / "lib"


def bundled(name: str) -> Path | None:
    """A variant of the bundle, where the bundle serves and has it."""
    found = BUNDLE / name
    return found if not why_not_the_bundle() and found.exists() else None


def folder(name: str) -> Path | None:
    """Of a variant, from the bundle or built here."""
    if found := bundled(name):
        return found
    print(f"{name}: {why_not_the_bundle() or 'not in the bundle'}: building", file=sys.stderr)
    return build(name)


def obtain(run: Run, *names: str) -> dict[str, Path]:
    """Variants by name, taken or built side by side in a run; those that are there."""
    command = [sys.executable, str(Path(__file__).resolve())]
    stages = [Stage(f"package: {name}", 240, [*command, name]) for name in names]
    run.side_by_side(stages)
    said = {name: stage.lines[-1] for name, stage in zip(names, stages, strict=True) if stage.good}
    for name, stage in zip(names, stages, strict=True):
        if not said.get(name):
            stage.remark = "skipped: the log says why"
    return {name: Path(path) for name, path in said.items() if path}


def environment(folder: Path, **more: str) -> dict[str, str]:
    """In which Python finds a built package before any other."""
    path = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        "PYTHONPATH": os.pathsep.join(path),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HIRED_COMMIT": commit(),
        **({"OUT": str(out())} if "OUT" in os.environ else {}),
        **more,
    }


def main() -> None:
    for name in sys.argv[1:] or ["release"]:
        print(folder(name) or "")


if __name__ == "__main__":
    main()
