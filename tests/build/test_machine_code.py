# SPDX-License-Identifier: Apache-2.0
"""Trips to memory, barriers and hand-overs in the machine code: that they are counted right, and
that the hot phases take no more of them than they did. No GPU is needed.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from builds import ROOT, built, tool

sys.path.insert(0, str(ROOT / "tools"))
sass = tool("sass")
sass_counts = tool("sass_counts")
device_code = tool("device_code")
source_functions = tool("source_functions")
machine_code = tool("machine_code")

# Of each hot phase (HOT in tools/machine_code.py): loads, past the first-level cache; waits, by
# registers and by scoreboards; barriers, atomics, fences, invalidations; loads and atomics of
# shared memory. Written by
#     python tools/machine_code.py --hot
EXPECTED = {
    ("scores, float16", "sm_61"): (32, 32, 1, 1, 0, 0, 0, 0, 0, 0),
    ("scores, float16", "sm_80"): (48, 48, 1, 1, 0, 0, 0, 0, 0, 0),
    ("scores, float16", "sm_90"): (48, 48, 1, 1, 0, 0, 0, 0, 0, 0),
    ("scores, float16", "sm_100"): (48, 48, 1, 1, 0, 0, 0, 0, 0, 0),
    ("scores, float32", "sm_61"): (32, 32, 1, 1, 0, 0, 0, 0, 0, 0),
    ("scores, float32", "sm_80"): (48, 48, 1, 1, 0, 0, 0, 0, 0, 0),
    ("scores, float32", "sm_90"): (48, 48, 1, 2, 0, 0, 0, 0, 0, 0),
    ("scores, float32", "sm_100"): (48, 48, 1, 1, 0, 0, 0, 0, 0, 0),
    ("scores of the full image, float16", "sm_61"): (32, 32, 1, 1, 0, 0, 0, 0, 0, 0),
    ("scores of the full image, float16", "sm_80"): (48, 48, 1, 1, 0, 0, 0, 0, 0, 0),
    ("scores of the full image, float16", "sm_90"): (48, 48, 1, 1, 0, 0, 0, 0, 0, 0),
    ("scores of the full image, float16", "sm_100"): (48, 48, 1, 1, 0, 0, 0, 0, 0, 0),
    ("scores of the full image, float32", "sm_61"): (32, 32, 1, 1, 0, 0, 0, 0, 0, 0),
    ("scores of the full image, float32", "sm_80"): (48, 48, 1, 1, 0, 0, 0, 0, 0, 0),
    ("scores of the full image, float32", "sm_90"): (48, 48, 1, 1, 0, 0, 0, 0, 0, 0),
    ("scores of the full image, float32", "sm_100"): (48, 48, 1, 1, 0, 0, 0, 0, 0, 0),
    ("a head", "sm_61"): (61, 24, 9, 9, 2, 0, 0, 0, 106, 0),
    ("a head", "sm_80"): (97, 24, 5, 5, 2, 0, 0, 0, 14, 0),
    ("a head", "sm_90"): (97, 24, 5, 5, 2, 0, 0, 0, 14, 0),
    ("a head", "sm_100"): (97, 24, 9, 9, 2, 0, 0, 0, 14, 0),
    ("its dot products", "sm_61"): (45, 24, 5, 5, 0, 0, 0, 0, 0, 0),
    ("its dot products", "sm_80"): (81, 24, 3, 3, 0, 0, 0, 0, 0, 0),
    ("its dot products", "sm_90"): (81, 24, 3, 3, 0, 0, 0, 0, 0, 0),
    ("its dot products", "sm_100"): (81, 24, 5, 5, 0, 0, 0, 0, 0, 0),
    ("its softmax", "sm_61"): (0, 0, 0, 0, 2, 0, 0, 0, 106, 0),
    ("its softmax", "sm_80"): (0, 0, 0, 0, 2, 0, 0, 0, 14, 0),
    ("its softmax", "sm_90"): (0, 0, 0, 0, 2, 0, 0, 0, 14, 0),
    ("its softmax", "sm_100"): (0, 0, 0, 0, 2, 0, 0, 0, 14, 0),
    ("a run of queries", "sm_61"): (36, 8, 17, 19, 23, 0, 0, 0, 211, 0),
    ("a run of queries", "sm_80"): (36, 8, 16, 16, 23, 0, 0, 0, 217, 0),
    ("a run of queries", "sm_90"): (36, 8, 16, 16, 23, 0, 0, 0, 217, 0),
    ("a run of queries", "sm_100"): (36, 8, 16, 16, 23, 0, 0, 0, 217, 0),
    ("its slices of keys", "sm_61"): (18, 0, 4, 6, 4, 0, 0, 0, 18, 0),
    ("its slices of keys", "sm_80"): (18, 0, 4, 4, 4, 0, 0, 0, 20, 0),
    ("its slices of keys", "sm_90"): (18, 0, 4, 4, 4, 0, 0, 0, 20, 0),
    ("its slices of keys", "sm_100"): (18, 0, 4, 4, 4, 0, 0, 0, 20, 0),
    ("its products", "sm_61"): (0, 0, 0, 0, 0, 0, 0, 0, 74, 0),
    ("its products", "sm_80"): (0, 0, 0, 0, 0, 0, 0, 0, 74, 0),
    ("its products", "sm_90"): (0, 0, 0, 0, 0, 0, 0, 0, 74, 0),
    ("its products", "sm_100"): (0, 0, 0, 0, 0, 0, 0, 0, 74, 0),
    ("scores of queries", "sm_61"): (16, 16, 1, 1, 0, 0, 0, 0, 0, 0),
    ("scores of queries", "sm_80"): (16, 16, 1, 1, 0, 0, 0, 0, 0, 0),
    ("scores of queries", "sm_90"): (16, 16, 1, 1, 0, 0, 0, 0, 0, 0),
    ("scores of queries", "sm_100"): (16, 16, 1, 1, 0, 0, 0, 0, 0, 0),
    ("first histogram", "sm_61"): (0, 0, 0, 0, 1, 0, 0, 0, 106, 1),
    ("first histogram", "sm_80"): (0, 0, 0, 0, 1, 0, 0, 0, 42, 1),
    ("first histogram", "sm_90"): (0, 0, 0, 0, 1, 0, 0, 0, 42, 1),
    ("first histogram", "sm_100"): (0, 0, 0, 0, 1, 0, 0, 0, 38, 5),
    ("radix selection", "sm_61"): (0, 0, 0, 0, 8, 0, 0, 0, 73, 2),
    ("radix selection", "sm_80"): (0, 0, 0, 0, 8, 0, 0, 0, 16, 2),
    ("radix selection", "sm_90"): (0, 0, 0, 0, 8, 0, 0, 0, 18, 2),
    ("radix selection", "sm_100"): (0, 0, 0, 0, 8, 0, 0, 0, 29, 12),
    ("radix selection, weighing", "sm_61"): (0, 0, 0, 0, 8, 0, 0, 0, 73, 2),
    ("radix selection, weighing", "sm_80"): (0, 0, 0, 0, 8, 0, 0, 0, 16, 2),
    ("radix selection, weighing", "sm_90"): (0, 0, 0, 0, 8, 0, 0, 0, 18, 2),
    ("radix selection, weighing", "sm_100"): (0, 0, 0, 0, 8, 0, 0, 0, 29, 12),
    ("a gather job", "sm_61"): (27, 11, 11, 11, 4, 0, 3, 3, 33, 0),
    ("a gather job", "sm_80"): (49, 33, 12, 12, 4, 0, 0, 3, 33, 0),
    ("a gather job", "sm_90"): (49, 33, 12, 12, 4, 0, 0, 3, 33, 0),
    ("a gather job", "sm_100"): (29, 13, 11, 11, 4, 0, 0, 3, 47, 0),
    ("its copy", "sm_61"): (16, 0, 4, 4, 0, 0, 0, 0, 0, 0),
    ("its copy", "sm_80"): (16, 0, 4, 4, 0, 0, 0, 0, 0, 0),
    ("its copy", "sm_90"): (16, 0, 4, 4, 0, 0, 0, 0, 0, 0),
    ("its copy", "sm_100"): (16, 0, 4, 4, 0, 0, 0, 0, 0, 0),
}  # fmt: skip


# Counting ----------------------------------------------------------------------------------------


def counted(listing: str) -> object:
    lines = [f"        /*{16 * i:04x}*/    {text} ;" for i, text in enumerate(listing.split("; "))]
    ((name, code),) = sass.read_listing(['\t.section\t.text.k,"ax",@progbits', *lines])
    assert name == "k"
    (counts,) = sass_counts.count(("", instruction) for instruction in code).values()
    return counts


BATCH = "LDG.E R4, [R2.64]; LDG.E R5, [R2.64+0x4]; LDG.E R6, [R2.64+0x8]; "
LOADED = "LDG.E R4, desc[UR4][R2.64]; "
HALVES = "LDG.E.U16.STRONG.GPU R4, desc[UR4][R2.64]; LDG.E.U16.STRONG.GPU R5, desc[UR4][R6.64]; "
# Name, listing, waits.
WAITS = [
    ("nothing is used", BATCH + "EXIT", 0),
    ("batch", BATCH + "FADD R7, R4, R5; FADD R7, R7, R6", 1),
    ("batch, last first", BATCH + "FADD R7, R6, R5; FADD R7, R7, R4", 1),
    ("load, use, load, use", LOADED + "FADD R8, R4, R8; " + LOADED + "FADD R8, R4, R8", 2),
    ("broken batch", HALVES + "HADD2.F32 R4, -RZ, R4.H0_H0; LDG.E R7, [R8.64]; FADD R9, R5, R7", 2),
    ("the rest of the batch has come, too", BATCH + "FADD R7, R4, R4; FADD R7, R5, R6", 1),
    ("pointers", LOADED.replace("LDG.E", "LDG.E.64") + "LDG.E R8, desc[UR4][R4.64]; MOV R9, R8", 2),
    ("half of a pointer", "LDG.E R5, [R2.64]; LDG.E R8, [R4.64]; MOV R9, R8", 2),
    ("a pointer of sm_61", "LDG.E R5, [R2]; LDG.E.CG R8, [R4]; MOV R9, R8", 2),
    ("overwritten", LOADED + "MOV R4, RZ", 1),
    ("overwritten by a load", LOADED + LOADED + "EXIT", 1),
    ("another register", LOADED + "FADD R44, R14, R40", 0),
    ("uniform registers are others", LOADED + "UMOV UR4, UR4", 0),
    ("64 bits, the second half", "LDG.E.64 R4, [R2.64]; MOV R9, R5", 1),
    ("64 bits, beyond", "LDG.E.64 R4, [R2.64]; MOV R9, R6", 0),
    ("128 bits, the last", "LDG.E.128.CONSTANT R4, [R2.64]; FFMA R9, R7.reuse, R1, |R1|", 1),
    ("128 bits, beyond", "LDG.E.128.CONSTANT R4, [R2.64]; FFMA R9, R8, R1, R1", 0),
    ("stored, 128 bits", "LDG.E R7, [R2.64]; STG.E.128 [R12.64], R4", 1),
    ("stored, 64 bits", "LDG.E R7, [R2.64]; STG.E.64 [R12.64], R4", 0),
    ("addressed 64 bits", "LDG.E R7, [R2.64]; STG.E [R6.64], R1", 1),
    ("addressed 32 bits", "LDG.E R7, [R2.64]; STS [R6], R1", 0),
    ("shared, 128 bits, overwrites", "LDG.E R7, [R2.64]; LDS.128 R4, [R1]", 1),
    ("wide sum", "LDG.E R7, [R2.64]; IMAD.WIDE R8, R1, R2, R6", 1),
    ("wide result", "LDG.E R7, [R2.64]; IMAD.WIDE.U32 R6, P0, R1, R2, R8", 1),
    ("wide sum after a predicate", "LDG.E R9, [R2.64]; IMAD.WIDE.U32 R6, P0, R1, R2, R8", 1),
    ("narrow factor", "LDG.E R7, [R2.64]; IMAD.WIDE R8, R1, R6, R12", 0),
    ("doubles", "LDG.E R7, [R2.64]; DADD R8, R10, R6", 1),
    ("pairs of floats", "LDG.E R7, [R2.64]; FFMA2 R8, R10, R6, R12", 1),
    ("two halves are one register", "LDG.E R7, [R2.64]; HADD2.F32 R8, -RZ, R6.H0_H0", 0),
    ("converted from 64 bits", "LDG.E R7, [R2.64]; I2F.U64.RP R8, R6", 1),
    ("converted to 64 bits", "LDG.E R7, [R2.64]; F2I.U64.TRUNC R6, R8", 1),
    ("converted from 32 bits", "LDG.E R7, [R2.64]; F2I.U64.TRUNC R8, R6", 0),
    ("nothing is brought", "LDG.E RZ, [R2.64]; MOV R4, RZ", 0),
    ("the same threads", "@!P0 LDG.E R4, [R2.64]; @!P0 FADD R5, R4, R5", 1),
    ("all threads", "@!P0 LDG.E R4, [R2.64]; FADD R5, R4, R5", 1),
    ("threads that loaded nothing", "@!P0 LDG.E R4, [R2.64]; @P0 MOV R4, RZ", 0),
    ("some that did", "@!P0 LDG.E R4, [R2.64]; ISETP.GE.AND P0, PT, R9, R8, PT; @P0 MOV R4, RZ", 1),
    ("other predicate", "@!P0 LDG.E R4, [R2.64]; @P1 MOV R4, RZ", 1),
    ("zero beforehand", "MOV R4, RZ; @!P0 LDG.E R4, [R2.64]; FADD R5, R4, R5", 1),
    ("generic", "LD.E R4, [R2]; FADD R5, R4, R5", 1),
    ("shared and constant", "LDS R4, [R2]; LDC R5, c[0x0][R1+0x10]; FADD R5, R4, R5", 0),
    ("what an atomic returns", "ATOMG.E.ADD.STRONG.GPU PT, R4, [R2.64], R5; STS [R1], R4", 1),
    ("what it takes is there", "ATOMG.E.ADD.STRONG.GPU PT, R4, [R2.64], R5; MOV R5, RZ", 0),
    ("returning nothing", "ATOM.E.ADD RZ, [R2], R4; RED.E.ADD [R2], R4; MOV R4, RZ", 0),
    ("straight into shared memory", "LDGSTS.E [R4], [R2.64]; LDGDEPBAR; DEPBAR.LE SB0, 0x0", 1),
]  # fmt: skip


@pytest.mark.parametrize(
    ("listing", "waits"), [case[1:] for case in WAITS], ids=[c[0] for c in WAITS]
)
def test_waits(listing: str, waits: int) -> None:
    assert counted(listing).waits == waits


COUNTS = [
    ("48 loads", "; ".join(f"LDG.E.CG R{n}, [R2]" for n in range(8, 56)) + "; FADD R1, R8, R55",
     {"loads": 48, "past_l1": 48, "waits": 1}),
    ("acquire", "LDG.E.STRONG.GPU R0, [R4.64]; CCTL.IVALL; ISETP.NE.AND P0, PT, R0, R1, PT",
     {"loads": 1, "past_l1": 1, "invalidations": 1, "waits": 1}),
    ("release", "MEMBAR.ALL.GPU; RED.E.ADD.STRONG.GPU [R2.64], R5", {"fences": 1, "atomics": 1}),
    ("fence", "MEMBAR.SC.GPU; ERRBAR; CGAERRBAR; CCTL.IVALL", {"fences": 1, "invalidations": 1}),
    ("fence of sm_61", "MEMBAR.GL.IVALLD", {"fences": 1, "invalidations": 1}),
    ("fence of the block", "BAR.SYNC 0x0; MEMBAR.CTA", {"barriers": 1}),
    ("barriers", "BAR.SYNC.DEFER_BLOCKING 0x0; BAR.RED.POPC 0x0; WARPSYNC.ALL; DEPBAR {0}",
     {"barriers": 2}),
    ("volatile", "LDG.E.STRONG.SYS R0, [R4.64+0x14]; LDG.E.CV R0, [R4]; LDG.E.CI R1, [R4]",
     {"loads": 3, "past_l1": 2, "waits": 1}),
    ("generic", "LD.E.128 R0, [R4]; ST.E.128 [R8], R12", {"loads": 1}),
    ("shared", "LDS.U.64 R0, [R4]; ATOMS.POPC.INC.32 RZ, [R5]; STS [R4], R9",
     {"shared_loads": 1, "shared_atomics": 1}),
    ("atomics", "ATOM.E.ADD R0, [R2], R4; ATOMG.E.CAS PT, R1, [R2], R4, R5; REDG.E.ADD [R2], R4",
     {"atomics": 3}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("listing", "counts"), [case[1:] for case in COUNTS], ids=[c[0] for c in COUNTS]
)
def test_counts(listing: str, counts: dict[str, int]) -> None:

    assert counted(listing) == sass_counts.Counts(**counts)


# Listing, and of each instruction the scoreboard that it sets and those it awaits; waits.
SHARED_BOARD = (
    "LDG.E R4, [R2.64]; LDC R8, c[0x0][0x10]; MOV R9, R8; LDG.E R5, [R2.64]; FADD R4, R4, R5"
)
BOARDS = [
    ("a scoreboard each", SHARED_BOARD, [(0, ()), (1, ()), (7, (1,)), (2, ()), (7, (0, 2))], 1),
    ("one for two", SHARED_BOARD, [(0, ()), (0, ()), (7, (0,)), (2, ()), (7, (0, 2))], 2),
    ("used by nobody", SHARED_BOARD, [(0, ()), (1, ()), (7, (1,)), (2, ()), (7, ())], 0),
    ("all but the last", "LDG.E R4, [R2]; LDG.E R5, [R2]; DEPBAR.LE SB5, 0x1; FADD R6, R4, R4",
     [(5, ()), (5, ()), (7, ()), (7, ())], 1),
    ("all but both", "LDG.E R4, [R2]; LDG.E R5, [R2]; DEPBAR.LE SB5, 0x2; FADD R6, R4, R4",
     [(5, ()), (5, ()), (7, ()), (7, ())], 0),
    ("of a set", "LDG.E R4, [R2]; DEPBAR {5,4}; FADD R6, R4, R4; EXIT",
     [(4, ()), (7, ()), (7, ()), (7, ())], 1),
]  # fmt: skip


@pytest.mark.parametrize("old", [False, True], ids=["128 bits", "64 bits"])
@pytest.mark.parametrize(
    ("listing", "boards", "waits"), [case[1:] for case in BOARDS], ids=[c[0] for c in BOARDS]
)
def test_scoreboards(listing: str, boards: list[tuple[int, tuple]], waits: int, old: bool) -> None:
    controls = [sets << 5 | sum(1 << board for board in awaits) << 11 for sets, awaits in boards]
    texts = listing.split("; ")
    assert len(texts) == len(controls)
    texts += ["NOP"] * (-len(texts) % 3)
    controls += [7 << 5] * (len(texts) - len(controls))
    lines = []
    for i, (text, control) in enumerate(zip(texts, controls, strict=True)):
        if old and i % 3 == 0:
            word = sum(bits << 21 * j for j, bits in enumerate(controls[i : i + 3]))
            lines.append(f"   /* 0x{word:016x} */")
        lines.append(f"        /*{8 * i:04x}*/    {text} ;   /* 0x{0xF << 60:016x} */")
        lines += [] if old else [f"   /* 0x{control << 41:016x} */"]
    ((_, code),) = sass.read_listing(["\t.section\t.text.k,", *lines])
    (counts,) = sass_counts.count(("", instruction) for instruction in code).values()
    assert counts.scoreboard_waits == waits


def test_paired_and_predicated_instructions_are_read() -> None:
    listing = """
	.section	.text._Z1kv,"ax",@progbits
	//## File "/k.h", line 3 inlined at "/k.cu", line 9
	//## File "/k.cu", line 9
        /*0008*/         {     @P2 IADD32I R16, R16, 0x100 ;
        /*0010*/              @!P0 LDG.E R8, [R2]         }
	//## File "/k.cu", line 10
        /*0018*/                   SYNC        (*"BRANCH_TARGETS .L_x_0"*)}
.L_x_0:
        /*0028*/                   EXIT ;
"""
    ((symbol, code),) = sass.read_listing(listing.splitlines())
    assert symbol == "_Z1kv"
    assert [(i.name, i.guard) for i in code] == [
        ("IADD32I", "P2"), ("LDG.E", "!P0"), ("SYNC", ""), ("EXIT", "")]  # fmt: skip
    inner, outer = (("/k.cu", 9), ("/k.h", 3)), (("/k.cu", 10),)
    assert [i.place for i in code] == [inner, inner, outer, outer]


# Functions and phases ----------------------------------------------------------------------------

SOURCE = """\
namespace hired {
constexpr int kTwo{2};  // no function() {
struct Box {
  int y[2] = {1, 2};
  bool holds(int i) const { return i < kTwo; }
};
template <class T, int n = 2>
__global__ void __launch_bounds__(256, 2)
    kernel(const T params) {
#define BRACE {
  const auto add = [&](int i) {
    return i;
  };
  if (add(1)) {
  }
}
class Group : public Box {
 public:
  explicit Group(int* scratch) : scratch_(scratch), two_{2} {
  }
};
}
"""


def test_functions_of_lines() -> None:
    names = source_functions.functions(SOURCE)
    assert names[2] == names[3] == names[4] == names[6] == ""
    assert names[5] == "Box::holds"
    assert set(names[7:17]) == {"kernel"}
    assert names[17] == names[18] == names[21] == names[22] == ""
    assert names[19] == "Group::Group"


def test_phases() -> None:
    kernel, job = ("k.cuh", "kernel"), ("k.cuh", "choose_job")
    choose, digit, load = ("phases/c.h", "choose"), ("phases/c.h", "digit"), ("d.cuh", "load")
    phase = machine_code.phase_of
    assert phase("kernel<float>", ()) == phase("kernel<float>", (kernel, load)) == "kernel"
    assert phase("kernel<float>", (kernel, job, load)) == "choose_job"
    assert phase("kernel<float>", (kernel, job, choose, load)) == "choose_job / choose"
    within = (kernel, job, choose, digit)
    assert phase("kernel<float>", within) == "choose_job / choose / digit"
    assert phase("kernel<float>", (*within, choose)) == "choose_job / choose"  # its lambda
    cut = [within, (kernel,), (digit, load), (kernel, job, digit), (digit,)]
    assert list(machine_code.completed(cut, "kernel"))[2::2] == [
        (*within, load),
        (kernel, job, digit),
    ]


# The kernels -------------------------------------------------------------------------------------


def needed(gpu: str) -> object:
    built()  # where nothing is built for GPUs, nothing is compiled for them here
    try:
        return device_code.tools(int(gpu.removeprefix("sm_")))
    except device_code.Missing as missing:
        pytest.skip(str(missing))


@pytest.mark.parametrize("gpu", machine_code.HOT_GPUS)
def test_hot_phases_take_what_they_did(gpu: str) -> None:
    tools = needed(gpu)
    hot = machine_code.hot_counts(machine_code.parts([tools.arch], hot=True))
    counts = {key: counts.row() for key, counts in hot.items()}
    assert counts == {key: row for key, row in EXPECTED.items() if key[1] == gpu}


@pytest.mark.parametrize("gpu", ["sm_61", "sm_90"])  # of either compiler
def test_lines_change_no_instruction(gpu: str, tmp_path: Path) -> None:
    """What is counted is what the build compiles."""
    tools = needed(gpu)
    source = machine_code.CSRC / "cls_attention_cuda.cu"
    device_code.compile_plain(source, tools, tmp_path / "plain.cubin")
    device_code.listing(source, tools, tmp_path)
    plain, lined = (
        device_code.instructions(tmp_path / name, tools)
        for name in ("plain.cubin", f"cls_attention_cuda.{gpu}.cubin")
    )
    if gpu == "sm_61":  # with lines, clang gives some values another register
        plain, lined = ([re.sub(r"\bR\d+\b", "R", x) for x in code] for code in (plain, lined))
    assert plain == lined
    assert any("LDG" in line for line in plain)
