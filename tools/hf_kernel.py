#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Lays wheels out as Hugging Face's `kernels` expects a kernel, for kernels.get_local_kernel().

    python tools/hf_kernel.py dist/hired_kernels-0.1.0+sm90-cp311-cp311-linux_x86_64.whl

Wheels of one version, one for each Python, make one folder: torch.ops.hired's library needs no
Python, and beside it stands one module _C for each. docs/install.md says what does not work there.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NAME = re.compile(
    r"hired_kernels-(?P<version>[\d.]+)\+(sm(?P<archs>[\d.]+)|cpu)-cp\d+-cp\d+-linux_(?P<cpu>\w+)"
)
ABI = "torch-stable-abi210"  # CMakeLists.txt: HIRED_TORCH_TARGET


def variants(archs: list[int]) -> dict[str, dict[str, object]]:
    """Backends by their names in `kernels`, with what its metadata says of them.

    A CUDA variant serves a PyTorch of the same CUDA major and no earlier minor. The runtime in the
    library is of CUDA 12 where an architecture is older than CUDA 13 makes: that runs under the
    drivers of both.
    """
    found: dict[str, dict[str, object]] = {"cpu": {"type": "cpu"}}
    if archs:
        names = [f"{arch // 10}.{arch % 10}" for arch in archs]
        cuda = {"type": "cuda", "archs": [*names, f"{names[-1]}+PTX"]}
        found |= dict.fromkeys(("cu120", "cu130") if archs[0] < 75 else ("cu130",), cuda)
    return found


def lay_out(wheels: list[Path], folder: Path) -> list[Path]:
    """Writes folder/build/<variant>; returns the variants' folders."""
    matches = {wheel: NAME.match(wheel.name) for wheel in wheels}
    said = {match.group("version", "archs", "cpu") for match in matches.values() if match}
    if None in matches.values() or len(said) != 1:
        raise SystemExit(
            "hf_kernel: expected wheels of one build with native code (hired_kernels-…+sm90-… or "
            f"…+cpu-…), got {', '.join(wheel.name for wheel in wheels)}"
        )
    ((version, archs, cpu),) = said
    written = []
    for name, backend in variants([int(arch) for arch in (archs or "").split(".") if arch]).items():
        into = folder / "build" / f"{ABI}-{name}-{cpu}-linux"
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as content:
                for entry in content.namelist():
                    if entry.startswith("hired_kernels/"):
                        path = into / entry.removeprefix("hired_kernels/")
                        path.parent.mkdir(parents=True, exist_ok=True)
                        path.write_bytes(content.read(entry))
        metadata = {
            "name": "hired-kernels",
            "id": f"_hired_kernels_{name}_{version.replace('.', '_')}",
            "version": 1,
            "license": "Apache-2.0",
            "python-depends": [],
            "backend": backend,
        }
        (into / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n")
        written.append(into)
    return written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheels", type=Path, nargs="+")
    parser.add_argument("--into", type=Path, default=ROOT / "build" / "hf-kernel")
    options = parser.parse_args()
    for path in lay_out(options.wheels, options.into):
        print(path, file=sys.stdout)


if __name__ == "__main__":
    main()
