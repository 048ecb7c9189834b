# SPDX-License-Identifier: Apache-2.0
"""Who serves a device: one table, and the two ways to overrule it.

`hired_kernels.backend("reference")` and the environment variable `HIRED_BACKEND` put one backend in
charge of `torch.ops.hired.*` on every device that it serves. Without them the first available row
of the table that lists the device serves it.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from . import reference

SCHEMAS = {
    "select": (
        "(Tensor features, Tensor attn_init, Tensor attn_final, SymInt[] grids, SymInt[] budgets, "
        'float alpha=0.5, *, SymInt[]? crops=None, str policy="exact", str order="raster", '
        "int merge=1) -> (Tensor tokens, Tensor indices, Tensor counts)"
    ),
    "select_qk": (
        "(Tensor features, Tensor query_init, Tensor key_init, Tensor query_final, "
        "Tensor key_final, SymInt[] grids, SymInt[] budgets, float alpha=0.5, *, "
        'float? scale=None, SymInt[]? crops=None, str policy="exact", str order="raster", '
        "int merge=1) -> (Tensor tokens, Tensor indices, Tensor counts)"
    ),
    "cls_attention": "(Tensor query, Tensor key, SymInt tokens, *, float? scale=None) -> Tensor",
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


def _installed_elsewhere() -> Path | None:
    """The folder of an installed package with its native library, if this is another one.

    Python puts the folder that it runs from first, so that in a checkout its source is imported.
    """
    ours = os.path.realpath(_LIBRARY.parent)
    for entry in sys.path:
        folder = Path(entry, _LIBRARY.parent.name)
        if (folder / _LIBRARY.name).exists() and os.path.realpath(folder) != ours:
            return folder.parent
    return None


def _load_native() -> str:
    """Load the native library; returns why it is not there, or an empty string."""
    if not _LIBRARY.exists():
        if installed := _installed_elsewhere():
            why = (
                f"this is the source in {_LIBRARY.parents[1]}, which hides the package installed "
                f"in {installed}: run from another folder, or use the command hired"
            )
            warnings.warn(f"hired_kernels: {why}", RuntimeWarning, stacklevel=2)
            return why
        return (
            "the native library was not built (no C++ compiler at installation, or HIRED_NATIVE=0)"
        )
    loaded = os.path.realpath(_LIBRARY) in torch.ops.loaded_libraries
    if not loaded and hasattr(torch.ops.hired, "select"):
        # Loading it would end the process, without a word.
        raise ImportError(
            "hired: torch.ops.hired is there already, from another copy of this package: a process "
            "can hold one"
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

_CPU = Backend("cpu", ("cpu",), not _why_not_native, _why_not_native)
_REFERENCE = Backend("reference", ("*",), True, "", {op: getattr(reference, op) for op in SCHEMAS})


def _build_info() -> dict[str, Any]:
    return importlib.import_module("._C", __package__).build_info()


def cuda_architectures() -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What this build holds: machine code for, and PTX of, (75, 90) and (90,) say."""
    if _why_not_native:
        return (), ()
    build = _build_info()
    return tuple(build["cuda_archs"]), tuple(build["cuda_ptx"])


def _why_no_cuda_code() -> str:
    built = _build_info().get("cuda_why_none") or "none was asked for"
    return (
        f"this build holds no CUDA code ({built}): build it again with nvcc 12.1 or later "
        "(docs/install.md)"
    )


def _has_code_for(card: int) -> bool:
    """Machine code runs on its major version, from its minor one on; PTX on all that is later."""
    code, ptx = cuda_architectures()
    return any(arch // 10 == card // 10 and arch <= card for arch in code) or any(
        arch <= card for arch in ptx
    )


def _why_no_code(cards: dict[int, str]) -> str:
    code, ptx = cuda_architectures()
    holds = ", ".join(f"sm_{arch}" for arch in code) or "no CUDA code"
    holds += "".join(f", PTX of compute_{arch}" for arch in ptx)
    wanted = ", ".join(f"{name} (sm_{card})" for card, name in cards.items())
    archs = ";".join(str(card) for card in sorted(cards))
    return (
        f"this build holds {holds}, and the card is {wanted}: install a wheel whose version names "
        f'it (+sm{archs}), or build one: make wheel ARCHS="{archs}"'
    )


@functools.cache
def _cuda() -> Backend:
    """The row of the CUDA kernels. Asks the driver, so not before somebody wants to know."""
    why = _why_not_native
    if not why and not cuda_architectures()[0] and not cuda_architectures()[1]:
        why = _why_no_cuda_code()
    elif not why and (torch.version.hip or not torch.cuda.is_available()):
        why = "PyTorch sees no NVIDIA GPU"
    elif not why and not any(map(_has_code_for, _cards())):
        why = _why_no_code(_cards())
    return Backend("cuda", ("cuda",), not why, why)


def _cards() -> dict[int, str]:
    """The NVIDIA GPUs that are there: {90: "NVIDIA H200"}, the number being that of sm_90."""
    cards = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    return {10 * card.major + card.minor: card.name for card in cards}


TRITON_FROM = 75  # sm_75: older ones lack what its atomics need
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def _in_triton(op: str) -> Callable[..., object]:
    launcher = ".cls_attention_triton" if op == "cls_attention" else ".select_triton"

    def call(*args: object, **kwargs: object) -> object:
        # The first to import Triton.
        module = importlib.import_module(launcher, f"{__package__}.triton_kernels")
        return getattr(module, op)(*args, **kwargs)

    return call


@functools.cache
def _triton() -> Backend:
    """The row of the Triton kernels. Looks for Triton without importing it."""
    why = ""
    if importlib.util.find_spec("triton") is None:
        why = "Triton is not installed: pip install triton"
    elif not _INTERPRETED and not torch.cuda.is_available():
        why = "PyTorch sees no GPU (TRITON_INTERPRET=1 runs the kernels on the CPU, slowly)"
    elif not _INTERPRETED and not torch.version.hip and max(_cards()) < TRITON_FROM:
        cards = ", ".join(f"{name} (sm_{card})" for card, name in _cards().items())
        why = f"Triton takes sm_{TRITON_FROM} or later, and the card is {cards}"
    devices = ("cpu",) if _INTERPRETED else ("cuda",)
    return Backend("triton", devices, not why, why, {op: _in_triton(op) for op in SCHEMAS})


def _register(backend: Backend, key: str) -> torch.library.Library:
    library = torch.library.Library("hired", "IMPL")
    with warnings.catch_warnings():
        # Standing in front of another kernel is the purpose here; torch warns of it.
        warnings.filterwarnings("ignore", message=".*[oO]verrid", category=UserWarning)
        for op, function in (backend.functions or {}).items():
            library.impl(op, function, key, allow_override=True)
    return library


def _without_cuda(op: str) -> Callable[..., object]:
    """For GPUs that the native library has no code for: Triton, or the reason why not."""

    argument = SCHEMAS[op].removeprefix("(Tensor ").partition(",")[0]

    def call(first: torch.Tensor, *args: object, **kwargs: object) -> object:
        if _triton().available and not _INTERPRETED and _triton_takes(first.device):
            return _in_triton(op)(first, *args, **kwargs)
        raise RuntimeError(
            f"hired::{op}: {argument}: expected a device that this build serves, got "
            f"{first.device}: {_cuda().why}; {_triton().why or 'Triton does not know it'}. "
            "hired_kernels.backend('reference') serves any"
        )

    return call


def _triton_takes(device: torch.device) -> bool:
    """Of several cards one may be too old."""
    major, minor = torch.cuda.get_device_capability(device)
    return bool(torch.version.hip) or 10 * major + minor >= TRITON_FROM


def _stand_in_for_cuda() -> None:
    if not _cuda().available:
        row = Backend("none", (), False, "", {op: _without_cuda(op) for op in SCHEMAS})
        _registrations.append(_register(row, "CUDA"))


# The reference serves every device that nothing else is registered for. A GPU without kernels is
# refused: whoever has one did not come for a slow path. Whether the native library's CUDA code is
# for the cards that are there is asked when PyTorch first touches one of them.
_registrations.append(_register(_REFERENCE, "CompositeExplicitAutograd"))
if any(cuda_architectures()):
    torch.cuda._lazy_call(_stand_in_for_cuda)
else:
    _stand_in_for_cuda()


def table() -> list[Backend]:
    """All backends in order of preference."""
    native = [_cuda(), _triton(), _CPU, _REFERENCE]
    # Interpreted, Triton is there to be asked for: never before anything else.
    return sorted(native, key=lambda row: row.name == "triton") if _INTERPRETED else native


# Dispatch keys at which a native kernel may be registered, which a forced backend has to cover.
_KEYS = {"cpu": "CPU", "cuda": "CUDA"}
_forced: Backend | None = None
_overrides: list[torch.library.Library] = []


def active(device_type: str) -> str:
    """Name of the backend that serves tensors of this device type (`"cpu"`, `"cuda"`, ...)."""
    if _forced is not None and _forced.serves(device_type):
        return _forced.name
    return next(row.name for row in table() if row.serves(device_type))


def _force(row: Backend | None) -> None:
    global _forced
    if row == _forced:  # registering it anew would take it away from who is calling it
        return
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
        rows = {row.name: row for row in table()}
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
