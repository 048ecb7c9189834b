# SPDX-License-Identifier: Apache-2.0
"""Who serves a device: one table, and the two ways to overrule it.

`hired_kernels.backend("reference")` and the environment variable `HIRED_BACKEND` put one backend in
charge of `torch.ops.hired.*` on every device that it serves. Without them the first available row
of the table that lists the device serves it.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch

from . import reference

SCHEMAS = {
    "select": (
        "(Tensor features, Tensor attn_init, Tensor attn_final, SymInt[] grids, SymInt[] budgets, "
        'float alpha=0.5, *, SymInt[]? crops=None, str policy="exact", str order="raster") '
        "-> (Tensor tokens, Tensor indices, Tensor counts)"
    ),
    "select_qk": (
        "(Tensor features, Tensor query_init, Tensor key_init, Tensor query_final, "
        "Tensor key_final, SymInt[] grids, SymInt[] budgets, float alpha=0.5, *, "
        'float? scale=None, SymInt[]? crops=None, str policy="exact", str order="raster") '
        "-> (Tensor tokens, Tensor indices, Tensor counts)"
    ),
}

_LIBRARY = Path(__file__).parent / "libhired_kernels.so"


@dataclass(frozen=True)
class Backend:
    """A row of the table. `devices` are device types, `("*",)` for all; `why` says why not."""

    name: str
    devices: tuple[str, ...]
    available: bool
    why: str
    # For backends written in Python: operator name -> implementation. Native ones register in C++.
    functions: dict[str, Callable[..., object]] | None = None

    def serves(self, device_type: str) -> bool:
        return self.available and (device_type in self.devices or "*" in self.devices)


def _load_native() -> str:
    """Load the native library; returns why it is not there, or an empty string."""
    if not _LIBRARY.exists():
        return (
            "the native library was not built (no C++ compiler at installation, or HIRED_NATIVE=0)"
        )
    try:
        torch.ops.load_library(str(_LIBRARY))
    except OSError as error:
        return f"the native library does not load: {error}"
    return ""


_why_not_native = _load_native()
_registrations: list[torch.library.Library] = []  # a Library's registrations live as long as it

if _why_not_native:
    _definitions = torch.library.Library("hired", "DEF")
    for _op, _schema in SCHEMAS.items():
        _definitions.define(_op + _schema, tags=torch.Tag.pt2_compliant_tag)
    _registrations.append(_definitions)

_TABLE = (
    Backend("cpu", ("cpu",), not _why_not_native, _why_not_native),
    Backend(
        "reference",
        ("*",),
        True,
        "",
        {"select": reference.select, "select_qk": reference.select_qk},
    ),
)


def _register(backend: Backend, key: str) -> torch.library.Library:
    library = torch.library.Library("hired", "IMPL")
    with warnings.catch_warnings():
        # Standing in front of another kernel is the purpose here; torch warns of it.
        warnings.filterwarnings("ignore", message=".*[oO]verrid", category=UserWarning)
        for op, function in (backend.functions or {}).items():
            library.impl(op, function, key)
    return library


# The last row of the table serves every device that no native kernel is registered for.
_registrations.append(_register(_TABLE[-1], "CompositeExplicitAutograd"))


def table() -> list[Backend]:
    """All backends in order of preference."""
    return list(_TABLE)


# Dispatch keys at which a native kernel may be registered, which a forced backend has to cover.
_KEYS = {"cpu": "CPU", "cuda": "CUDA"}
_forced: Backend | None = None
_overrides: list[torch.library.Library] = []


def active(device_type: str) -> str:
    """Name of the backend that serves tensors of this device type (`"cpu"`, `"cuda"`, ...)."""
    if _forced is not None and _forced.serves(device_type):
        return _forced.name
    return next(row.name for row in _TABLE if row.serves(device_type))


def _force(row: Backend | None) -> None:
    global _forced
    while _overrides:
        _overrides.pop()._destroy()
    _forced = row
    if row is not None and row.functions is not None:
        keys = [key for device_type, key in _KEYS.items() if row.serves(device_type)]
        _overrides.extend(_register(row, key) for key in keys)


class backend:
    """Put one backend in charge, for good or for a `with` block.

    Args:
        name: a name of `table()`, or `"auto"` for the table's own choice.

    It holds for the process, not for a thread, and for the devices that the backend serves; others
    keep theirs. Raises `ValueError` for a name that is not in the table, and `RuntimeError` for a
    backend that is not available, with the reason.
    """

    def __init__(self, name: str) -> None:
        rows = {row.name: row for row in _TABLE}
        if name != "auto" and name not in rows:
            known = ", ".join([*rows, "auto"])
            raise ValueError(f"hired: backend: expected one of {known}, got {name!r}")
        row = rows.get(name)
        if row is not None and not row.available:
            raise RuntimeError(f"hired: backend {name} is not available: {row.why}")
        self._before = _forced
        _force(row)

    def __enter__(self) -> backend:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _force(self._before)


if os.environ.get("HIRED_BACKEND"):
    backend(os.environ["HIRED_BACKEND"])
