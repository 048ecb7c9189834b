# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels compiled ahead of time, for GPUs that need not be there.

Calls on CPU tensors go through the package's own launcher and Triton's own specialisation; only the
launch itself is left out. So what is compiled here is what a GPU would be given, and how often.
`kernels()` yields the rows of kernel_report.py: NVIDIA's figures are ptxas's, AMD's those that its
assembler writes beside the code.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas

from hired_kernels.triton_kernels import cls_attention_triton, launching, select_triton

NVIDIA = (75, 80, 86, 89, 90, 100, 120)
AMD = {"gfx90a": 64, "gfx942": 64, "gfx1100": 32}  # and lanes of a wave
TARGETS = {
    **{f"sm_{arch}": GPUTarget("cuda", arch, 32) for arch in NVIDIA},
    **{arch: GPUTarget("hip", arch, lanes) for arch, lanes in AMD.items()},
}
# Where launching.widens says yes of 16-bit dtypes.
WIDENED = ("sm_75", "gfx90a")
# Of LLaVA-NeXT's shape: T = 576, H = 16, N = 577, Dh = 64, D = 1024.
CALLS = {
    "select<float16, exact>": ("select", torch.float16, {}),
    "select<bfloat16, published>": ("select", torch.bfloat16, {"policy": "published"}),
    "select<float16, pooled>": ("select", torch.float16, {"policy": "pooled"}),
    "select<float16, merged>": ("select", torch.float16, {"merge": 2, "order": "full_last"}),
    "select_qk<float16, exact>": ("select_qk", torch.float16, {}),
    "select_qk<float32, published>": ("select_qk", torch.float32, {"policy": "published"}),
    "select_qk<float16, queries>": ("select_qk", torch.float16, {"Q": 576}),
    "select_qk<float32, queries>": ("select_qk", torch.float32, {"Q": 576, "policy": "pooled"}),
    "cls_attention<float16>": ("cls_attention", torch.float16, {}),
    "cls_attention<float32>": ("cls_attention", torch.float32, {}),
    "cls_attention<float16, queries>": ("cls_attention", torch.float16, {"Q": 576}),
    "cls_attention<float32, queries>": ("cls_attention", torch.float32, {"Q": 576}),
}
OPERATORS = {
    "select": select_triton.select,
    "select_qk": select_triton.select_qk,
    "cls_attention": cls_attention_triton.cls_attention,
}
# Where a launcher finds its kernel.
KERNELS = ((select_triton, "select_kernel"), (cls_attention_triton, "cls_attention_kernel"))


def call(op: str, dtype: torch.dtype, policy: str = "exact", grids: tuple[int, ...] = (2, 2),
         budget: int = 576, order: str = "raster", T: int = 576, merge: int = 1,
         Q: int | None = None) -> dict[str, Any]:  # fmt: skip
    """Arguments of `op`, by name, on the CPU; their values do not matter. Q: None for queries
    without that dimension."""
    P = sum(1 + R * C for R, C in zip(grids[::2], grids[1::2], strict=True))
    if op == "select":
        rows = torch.zeros(P, 16, T + 1, dtype=dtype)[:, :, 1:]
        scores = {"attn_init": rows, "attn_final": rows}
    else:
        queries = (P, 16, 64) if Q is None else (P, Q, 16, 64)
        query, key = torch.zeros(queries, dtype=dtype), torch.zeros(P, T + 1, 16, 64, dtype=dtype)
        if op == "cls_attention":
            return {"query": query, "key": key, "tokens": T}
        scores = {f"query_{layer}": query for layer in ("init", "final")}
        scores |= {f"key_{layer}": key for layer in ("init", "final")}
    features = torch.zeros(P, T + 1, 1024, dtype=dtype)[:, 1:]
    budgets = [budget] * (len(grids) // 2)
    return {"features": features, **scores, "grids": list(grids), "budgets": budgets,
            "policy": policy, "order": order, "merge": merge}  # fmt: skip


class _Driver:
    """What Triton asks of a GPU's driver before it launches. A device for each target."""

    def __init__(self, target: str) -> None:
        self.device, self.target = list(TARGETS).index(target), TARGETS[target]

    def get_current_device(self) -> int:
        return self.device

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return self.target


class _Compiler:
    """In place of a kernel: compiles what it is launched with, once a shape class."""

    def __init__(self, kernel: Any, compiled: list[Any]) -> None:
        self.kernel, self.compiled = kernel, compiled

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def compile_for(*arguments: Any, **constants: Any) -> None:
            self.compiled.append(self.kernel.warmup(*arguments, grid=grid, **constants))

        return compile_for


@contextmanager
def compiling(target: str) -> Iterator[list[Any]]:
    """Calls made in here are compiled for a target of TARGETS: the list of what each was given."""
    compiled: list[Any] = []
    triton.runtime.driver.set_active(_Driver(target))  # and so it stays: there is no other to go to
    before = select_triton._needs_drain, launching.is_amd, launching.widens
    kernels = [getattr(module, name) for module, name in KERNELS]
    for (module, name), kernel in zip(KERNELS, kernels, strict=True):
        setattr(module, name, _Compiler(kernel, compiled))
    select_triton._needs_drain = lambda device: target.startswith("gfx9")
    launching.widens = lambda device, dtype: target in WIDENED and dtype != torch.float32
    select_triton._tiles.cache_clear()
    launching.is_amd = lambda: TARGETS[target].backend == "hip"
    try:
        yield compiled
    finally:
        for (module, name), kernel in zip(KERNELS, kernels, strict=True):
            setattr(module, name, kernel)
        select_triton._needs_drain, launching.is_amd, launching.widens = before
        select_triton._tiles.cache_clear()


def compile_call(name: str, target: str) -> Any:
    """A call of CALLS, compiled."""
    op, dtype, changes = CALLS[name]
    with compiling(target) as compiled:
        OPERATORS[op](**call(op, dtype, **changes))
    (kernel,) = compiled
    return kernel


def ptxas_log(ptx: str, arch: int) -> str:
    """What ptxas says of a kernel's PTX: registers, spills."""
    target = re.search(r"^\.target (\w+)", ptx, re.MULTILINE)[1]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(ptx)
        command = [get_ptxas(arch).path, "-v", f"--gpu-name={target}", source, "-o", "/dev/null"]
        return subprocess.run(command, check=True, capture_output=True, text=True).stderr


def amd_figures(assembly: str) -> dict[str, int]:
    """registers, stack and spills, as kernel_report.Kernel names them."""

    def figure(name: str) -> int:
        return int(re.search(rf"^\s*\.{name}:\s*(\d+)", assembly, re.MULTILINE)[1])

    # Scalar registers spill into vector ones, not to memory.
    spilled = figure("vgpr_spill_count")
    return {"registers": figure("vgpr_count"), "stack": figure("private_segment_fixed_size"),
            "spill_stores": 4 * spilled, "spill_loads": 4 * spilled}  # fmt: skip
