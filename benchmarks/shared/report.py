# SPDX-License-Identifier: Apache-2.0
"""Where a figure was taken, and how it is written down: environment, JSON, tables.

Every JSON file has `environment`, `method` and `cases`; a case keeps its shapes and bytes beside
its figures.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import subprocess
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch

import hired_kernels
from hired_kernels import backends

try:
    from hired_kernels.cli import info
except ImportError:  # a build from before there was cli/: BEFORE=<commit> make gpu-bundle
    from hired_kernels import info

    info.cpu_name, info.version = info._cpu_name, info._version

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def environment(device: str = "cpu") -> dict[str, Any]:
    """The machine, the versions and the commit; for "cuda" the current GPU as well."""
    found = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": _commit(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "backend": backends.active(device),
        "instruction_set": _build_info("isa"),
        "cpu": info.cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "last_cache_bytes": last_cache_bytes(),
        "load_average": load_average(),
    }
    return found if device == "cpu" else {**found, **_gpu()}


def _gpu() -> dict[str, Any]:
    """The current GPU, its driver, and what PyTorch was built with."""
    device = torch.cuda.current_device()
    properties = torch.cuda.get_device_properties(device)
    return {
        "gpu": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "l2_bytes": properties.L2_cache_size,
        "driver": _driver(),
        "cuda": torch.version.cuda,
        "triton": version("triton"),
        "built": _build_info("cuda_archs"),
        "cuda_compiler": _build_info("cuda_compiler"),
    }


def load_average() -> float:
    return round(os.getloadavg()[0], 2)


def version(package: str) -> str | None:
    return info.version(package)


def processor(environment: dict[str, Any]) -> str:
    """What took the figures: the GPU, or else the CPU."""
    return environment.get("gpu", environment["cpu"])


def headline(environment: dict[str, Any], *what: str) -> str:
    """What stands above tables."""
    return ", ".join((processor(environment), *what, environment["date"]))


def default_path(environment: dict[str, Any], *names: str) -> Path:
    """Where figures go, by what was measured and on which GPU: $OUT or benchmarks/results."""
    folder = Path(os.environ.get("OUT") or RESULTS)
    return folder / f"{'-'.join([*names, slug(environment.get('gpu', 'cpu'))])}.json"


def slug(name: str) -> str:
    """A name as part of a file's: "NVIDIA H200" as nvidia-h200."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def last_cache_bytes(otherwise: int = 32 << 20) -> int:
    """Size of the CPU's last cache, where the system tells."""
    sizes = []
    for path in _CACHES.glob("index*/size"):
        match = re.fullmatch(r"(\d+)([KMG]?)", path.read_text().strip())
        if match:
            sizes.append(int(match[1]) * _UNITS.get(match[2], 1))
    return max(sizes, default=otherwise)


def beside(path: Path) -> Path:
    """Where a file is written that is to take this one's place."""
    return path.with_name(f".{path.name}.{os.getpid()}")


def write_json(path: Path, contents: Any, indent: int = 2) -> None:
    """At once or not at all: a run may be killed at any time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = beside(path)
    whole.write_text(json.dumps(contents, indent=indent) + "\n")
    whole.replace(path)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as they need to be; all but the first are aligned to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = []
    for row in (header, ["-" * width for width in widths], *rows):
        cells = [
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def markdown(rows: Sequence[Sequence[str]], left: Collection[int] = (0,)) -> str:
    """The first row is the header; columns are aligned to the right, but for those of `left`."""
    lines = [f"| {' | '.join(row).lstrip()} |" for row in rows]  # nothing: one space, not two
    kinds = ("---" if i in left else "---:" for i in range(len(rows[0])))
    return "\n".join([lines[0], f"|{'|'.join(kinds)}|", *lines[1:]])


def microseconds(seconds: float) -> str:
    """Three digits, thousands separated: 41.2, 412, 41,200."""
    value = seconds * 1e6
    if value < 99.95:
        return f"{value:.1f}"
    step = 10 ** max(0, len(str(int(value))) - 3)
    return f"{round(value / step) * step:,}"


def times(ratio: float) -> str:
    return f"{ratio:.0f}x" if ratio >= 20 else f"{ratio:.1f}x" if ratio >= 3 else f"{ratio:.2f}x"


def _commit() -> str | None:
    """HIRED_COMMIT, or the commit of the sources, with a + where files differ from it; None outside
    of git."""
    if named := os.environ.get("HIRED_COMMIT"):
        return named
    root = Path(hired_kernels.__file__).parent.parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _build_info(field: str) -> Any:
    try:
        from hired_kernels import _C
    except ImportError:
        return None
    return _C.build_info().get(field)


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return result.stdout.split()[0] if result.stdout.split() else None
