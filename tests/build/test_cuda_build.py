# SPDX-License-Identifier: Apache-2.0
"""What the CUDA build made, as far as no GPU is needed: the architectures in the library, what its
kernels take, what it depends on.
"""

from __future__ import annotations

import struct
import subprocess
import sys

import pytest
from builds import LIBRARY, ROOT, built, tool

report = tool("kernel_report")


def test_library_holds_what_was_declared() -> None:
    info = built()
    held = list(report.fatbins(LIBRARY.read_bytes()))
    for kind, declared in ((report.ELF, info["cuda_archs"]), (report.PTX, info["cuda_ptx"])):
        assert set().union(*(found[kind] for found in held)) == set(declared)


def test_library_needs_no_cuda_libraries() -> None:
    built()
    needed = subprocess.run(["readelf", "-d", LIBRARY], capture_output=True, text=True, check=True)
    names = [line for line in needed.stdout.splitlines() if "(NEEDED)" in line]
    assert names
    assert not [name for name in names if "cuda" in name]


def test_kernels_spill_nothing() -> None:
    info = built()
    tag = "+sm" + ".".join(map(str, info["cuda_archs"]))
    folders = list(ROOT.glob(f"build/cmake-*-{sys.implementation.cache_tag}{tag}"))
    if not folders:
        pytest.skip("the library was built elsewhere: what ptxas said of it is not here")
    command = [sys.executable, ROOT / "tools" / "kernel_report.py", folders[0]]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.endswith(" 0 faults\n")


LOG = """\
ptxas info    : Compiling entry function '_Z1kv' for 'sm_{arch}'
ptxas info    : Function properties for _Z1kv
    {stack} bytes stack frame, {spill} bytes spill stores, 0 bytes spill loads
ptxas info    : Used 32 registers, used 1 barriers, {shared} bytes smem, 400 bytes cmem[0]
"""


@pytest.mark.parametrize(
    ("arch", "stack", "spill", "shared", "faults"),
    [
        (61, 0, 0, 49152, 0),
        (61, 0, 0, 49153, 1),
        (61, 8, 0, 0, 1),
        (90, 8, 4, 0, 2),
        (75, 8, 4, 49153, 0),
    ],
)
def test_report_finds_faults(arch: int, stack: int, spill: int, shared: int, faults: int) -> None:
    log = LOG.format(arch=arch, stack=stack, spill=spill, shared=shared)
    (kernel,) = report.read_log("source", log)
    assert (kernel.name, kernel.gpu) == ("k", f"sm_{arch}")
    assert (kernel.registers, kernel.shared) == (32, shared)
    assert len(list(kernel.faults())) == faults


@pytest.mark.parametrize(
    ("name", "gpu", "registers", "faults"),
    [
        ("select_kernel<float, FromRows, 4>", "sm_90", 80, 0),
        ("select_kernel<float, FromRows, 4>", "sm_90", 81, 1),
        ("select_kernel<float, FromRows, 4>", "sm_86", 81, 0),
        ("select_kernel<float, FromMergedRows, 4>", "sm_90", 81, 0),
    ],
)
def test_three_blocks_of_rows_have_registers(
    name: str, gpu: str, registers: int, faults: int
) -> None:
    kernel = report.Kernel("source", name, gpu, registers, 0, 0, 0, 0)
    assert len(list(kernel.faults())) == faults


def test_report_reads_fat_binaries() -> None:
    images = [(report.ELF, 61), (report.PTX, 90), (report.ELF, 90)]
    body = b"".join(
        struct.pack("<HHIQQIII", kind, 0x101, 64, 8, 0, 7, arch, 0).ljust(72, b"\0")
        for kind, arch in images
    )
    fatbin = struct.pack("<IHHQ", report.FATBIN_MAGIC, 1, 16, len(body)) + body
    held = list(report.fatbins(b"before" + fatbin + b"\x50\xed\x55\xba" + fatbin))
    assert held == [{report.PTX: {90}, report.ELF: {61, 90}}] * 2
