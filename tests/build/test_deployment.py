# SPDX-License-Identifier: Apache-2.0
"""Ways out of eager Python: torch.export, and an AOTInductor package run by a C++ program.

The program links libtorch alone; `torch.ops.hired` reaches it through libhired_kernels.so, which
needs no Python.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from builds import LIBRARY
from torch import Tensor

TORCH = Path(torch.__file__).parent

needs_library = pytest.mark.skipif(
    not LIBRARY.exists(), reason="the native library was not built: there was no C++ compiler"
)


class Tower(torch.nn.Module):
    """All operators, in every flavour of their arguments."""

    def forward(
        self, values: Tensor, query: Tensor, key: Tensor, attention: Tensor
    ) -> tuple[Tensor, ...]:
        first = torch.ops.hired.select_qk(
            values, query, key, query, key, [2, 2], [57], 0.25, scale=0.5, crops=[2, 14, 0, 16]
        )
        second = torch.ops.hired.select(
            values * 2, attention[:1], attention, [2, 2], [90], policy="published"
        )
        rows = torch.ops.hired.cls_attention(query, key, 60, scale=0.5)
        return first[0] + 1, first[1], first[2], *second, rows


def inputs() -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(11)
    sizes = ((5, 64, 32), (5, 4, 16), (5, 65, 4, 16), (5, 4, 64))
    return tuple(torch.randn(*size, generator=generator) for size in sizes)


def test_export() -> None:
    program = torch.export.export(Tower(), inputs())
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert {f"hired.{op}.default" for op in ("select", "select_qk", "cls_attention")} <= called
    assert all(map(torch.equal, program.module()(*inputs()), Tower()(*inputs())))


def test_export_with_open_budget() -> None:
    """The budget may stay open: K is an expression of it."""

    class Open(torch.nn.Module):
        def forward(self, values: Tensor, attention: Tensor, budget: int) -> tuple[Tensor, ...]:
            return torch.ops.hired.select(values, attention, attention, [2, 2], [budget])

    values, attention = inputs()[0], inputs()[3]
    shapes = {"values": None, "attention": None, "budget": torch.export.Dim.DYNAMIC}
    program = torch.export.export(Open(), (values, attention, 30), dynamic_shapes=shapes)
    for budget in (30, 77, 400):
        result = program.module()(values, attention, budget)
        assert all(map(torch.equal, result, Open()(values, attention, budget)))


def test_export_with_open_tokens() -> None:
    class Open(torch.nn.Module):
        def forward(self, query: Tensor, key: Tensor, tokens: int) -> Tensor:
            return torch.ops.hired.cls_attention(query, key, tokens)

    _, query, key, _ = inputs()
    shapes = {"query": None, "key": None, "tokens": torch.export.Dim.DYNAMIC}
    program = torch.export.export(Open(), (query, key, 30), dynamic_shapes=shapes)
    for tokens in (30, 2, 65):
        assert torch.equal(program.module()(query, key, tokens), Open()(query, key, tokens))


@needs_library
def test_library_needs_no_python() -> None:
    needed = subprocess.run(["ldd", str(LIBRARY)], capture_output=True, text=True, check=True)
    assert "torch" in needed.stdout
    assert "python" not in needed.stdout


@needs_library
def test_package_runs_without_python(tmp_path: Path) -> None:
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))))
    program, package = tmp_path / "run_package", tmp_path / "tower.pt2"
    link = [f"-L{TORCH / 'lib'}", f"-Wl,-rpath,{TORCH / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10"]
    includes = [f"-isystem{TORCH / 'include'}"]
    includes += [f"-isystem{TORCH / 'include/torch/csrc/api/include'}"]
    source = Path(__file__).parent / "native" / "run_package.cpp"
    flags = ["-std=c++20", "-O0", "-Wl,--no-as-needed"]
    build = [compiler, *flags, *includes, str(source), "-o", str(program), *link, "-ldl"]
    subprocess.run(build, check=True)

    exported = torch.export.export(Tower(), inputs())
    torch._inductor.aoti_compile_and_package(exported, package_path=str(package))
    torch.save(list(inputs()), tmp_path / "inputs.pt")
    torch.save(list(Tower()(*inputs())), tmp_path / "expected.pt")
    files = [LIBRARY, package, tmp_path / "inputs.pt", tmp_path / "expected.pt"]
    result = subprocess.run([program, *files], capture_output=True, text=True)
    assert result.stdout == "7 of 7 outputs equal\n", result.stderr
    assert result.returncode == 0
