# SPDX-License-Identifier: Apache-2.0
"""What was built, what this machine has, and which backend serves it: `hired info`.

For every backend that cannot be used it says why. The facts are those of `hired_kernels.backends`
and of the native module `_C`; nothing here decides anything.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import torch

from .. import backends


def lines(model: str | None = None) -> list[str]:
    """The report, line by line; of a model, a folder or hub name, too.

    Raises `hired_kernels.cli.loading.ModelError` where there is no such model.
    """
    report = [*_versions(), "", *_built(), "", *_machine(), "", *_backends()]
    return report if model is None else [*report, "", *_model(model)]


def _line(name: str, text: str) -> str:
    return f"  {name:<18} {text}"


def _versions() -> Iterator[str]:
    yield f"hired_kernels {version('hired-kernels') or '(not installed, run from its source)'}"
    yield _line("Python", platform.python_version())
    yield _line("PyTorch", torch.__version__)
    for package in ("transformers", "triton"):
        yield _line(package, version(package) or "not installed")


def _built() -> Iterator[str]:
    yield "built"
    try:
        native = _native_module()
    except ImportError as error:
        yield _line("native library", f"not loaded: {error}")
        return
    build = native.build_info()
    yield _line("native library", f"{build['version']}, {build['compiler']}")
    if "torch_target" in build:
        yield _line("for PyTorch", f"{build['torch_target']} and later")
    yield _line("instruction sets", ", ".join(build["isas"]) or "none")
    yield _line("CUDA architectures", ", ".join(map(str, build["cuda_archs"])) or "none")
    if limit := build.get("spin_limit"):
        yield _line("for debugging", f"a wait between blocks ends after {limit} polls")


def _machine() -> Iterator[str]:
    yield "this machine"
    threads = torch.get_num_threads()
    yield _line("CPU", f"{cpu_name()}, {threads} thread{'s' * (threads != 1)}")
    try:
        yield _line("best of its sets", _native_module().build_info()["isa"])
    except ImportError:
        yield _line("best of its sets", torch.backends.cpu.get_cpu_capability().lower())
    if not torch.cuda.is_available():
        built = torch.version.cuda or torch.version.hip
        yield _line("GPU", "none" if built else "none that this PyTorch, built for CPUs, could use")
        return
    for device in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(device)
        memory = f"{gpu.total_memory / 2**30:.0f} GiB"
        yield _line(f"GPU {device}", f"{gpu.name}, sm_{gpu.major}{gpu.minor}, {memory}")


def _backends() -> Iterator[str]:
    yield "backends"
    devices = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    for row in backends.table():
        served = [device for device in devices if backends.active(device) == row.name]
        if served:
            yield _line(row.name, f"serves {' and '.join(served)}")
        elif row.available:
            able = "any device" if "*" in row.devices else " and ".join(row.devices)
            yield _line(row.name, f"available for {able}")
        else:
            yield _line(row.name, f"not available because: {row.why}")
    forced = os.environ.get("HIRED_BACKEND")
    if forced:
        yield _line("HIRED_BACKEND", forced)


def _model(name: str) -> Iterator[str]:
    from ..models import support
    from . import loading

    yield f"model {name}"
    config = loading.load_config(name)
    try:
        facts = list(support.describe(config))
    except Exception as error:
        # A configuration may hold anything: no list of what it then raises is complete.
        raise loading.ModelError(f"model {name!r}: {error!r}") from error
    for title, text in facts:
        yield _line(title, text)


def _native_module() -> ModuleType:
    from .. import _C

    return _C


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def cpu_name() -> str:
    """What the CPU calls itself: Linux has no other place for it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
