# SPDX-License-Identifier: Apache-2.0
"""The package under test as its build left it, and the tools that look at builds."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

import hired_kernels

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = Path(hired_kernels.__file__).parent
LIBRARY = PACKAGE / "libhired_kernels.so"


def tool(name: str) -> ModuleType:
    """A script of tools/, as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def built() -> dict[str, object]:
    """What the library says of a build with CUDA; the test is skipped where there is none."""
    if not LIBRARY.exists():
        pytest.skip("the native library was not built: there was no C++ compiler")
    from hired_kernels import _C

    info = _C.build_info()
    if not info["cuda_archs"]:
        pytest.skip("the native library has no CUDA: no CUDA compiler was found or asked for")
    return info
