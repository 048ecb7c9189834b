# SPDX-License-Identifier: Apache-2.0
"""Trips to memory, barriers and hand-overs, counted out of machine code as nvdisasm lists it.

A *wait* is the first use of something outstanding: what a global load, or an atomic that returns a
value, brings. Instructions are walked in program order. The first that reads or overwrites a
register of a load that was issued since the last wait is a wait, and then every load issued before
it counts as returned: 48 loads and then their uses are one wait, load, use, load, use are two. It
is told of the place whose load is waited for, not of the one that uses it. Copies that unrolling
made are all counted; a loop counts once, and so do branches of which a thread takes one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from functools import cached_property

Place = tuple[tuple[str, int], ...]  # file and line, from the kernel inwards


@dataclass(frozen=True)
class Instruction:
    text: str
    guard: str = ""  # P0, !P0
    place: Place = ()

    @cached_property
    def name(self) -> str:
        return self.text.split(None, 1)[0]

    @cached_property
    def kind(self) -> str:
        return self.name.split(".")[0]

    @cached_property
    def suffixes(self) -> frozenset[str]:
        return frozenset(self.name.split(".")[1:])

    @property
    def operands(self) -> list[str]:
        rest = self.text.split(None, 1)[1:]
        return re.split(r",\s*", rest[0]) if rest else []

    def has(self, *suffixes: str) -> bool:
        return not self.suffixes.isdisjoint(suffixes)


LOADS = ("LD", "LDG", "LDGSTS")
SHARED_LOADS = ("LDS", "LDSM")
ATOMICS = ("ATOM", "ATOMG", "RED", "REDG")
SHARED_ATOMICS = ("ATOMS",)
BARRIERS = ("BAR", "UCGABAR_WAIT")
FENCES = ("MEMBAR",)
GLOBAL_MEMORY = LOADS + ATOMICS + ("ST", "STG", "CCTL")
MEMORY = (*GLOBAL_MEMORY, *SHARED_LOADS, *SHARED_ATOMICS, "STS", "LDC", "LDL", "STL")


@dataclass
class Counts:
    """Of a phase. The comments say what is counted, in the words of the machine code."""

    loads: int = 0  # LDG, LD (generic), LDGSTS
    past_l1: int = 0  # loads that the first-level cache does not answer: .STRONG; sm_61: .CG, .CV
    waits: int = 0
    barriers: int = 0  # BAR
    atomics: int = 0  # ATOM, ATOMG, RED
    fences: int = 0  # MEMBAR for more than the block: of __threadfence, of a release, of an acquire
    invalidations: int = 0  # CCTL.IVALL; sm_61: MEMBAR with .IVALLD: of an acquire, of a fence
    shared_loads: int = 0  # LDS
    shared_atomics: int = 0  # ATOMS

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(a + b for a, b in zip(self.row(), other.row(), strict=True)))

    def row(self) -> tuple[int, ...]:
        return tuple(getattr(self, name) for name in TITLES)


TITLES = tuple(column.name for column in fields(Counts))


def read_listing(lines: Iterable[str]) -> Iterator[tuple[str, list[Instruction]]]:
    """The kernels of what `nvdisasm -c -gi` wrote: symbol, instructions."""
    kernel, code = "", []
    place: list[tuple[str, int]] = []
    fresh = True  # the next remark on a line begins a new chain
    source = re.compile(r'^\s*//## File "([^"]*)", line (\d+)')
    instruction = re.compile(r"^\s*/\*[0-9a-f]+\*/\s+(?:\{\s*)?(?:@(\S+)\s+)?([^;}]+)")
    for line in lines:
        if found := re.match(r"^\s*\.section\s+\.text\.([\w$.]+)", line):
            if code:
                yield kernel, code
            kernel, code, place = found[1], [], []
        elif found := source.match(line):
            place = [] if fresh else place
            place.insert(0, (found[1], int(found[2])))
            fresh = False
        elif found := instruction.match(line):
            text = re.sub(r"\(\*.*?\*\)", "", found[2]).strip()
            code.append(Instruction(text, found[1] or "", tuple(place)))
            fresh = True
    if code:
        yield kernel, code


PREDICATE = re.compile(r"!?U?P[\dT]$")
PAIRS = re.compile(r"(D(ADD|MUL|FMA|SETP|SET|MNMX)|F(ADD|MUL|FMA)2)$")  # doubles; two floats


def _converted(instruction: Instruction, index: int) -> int:
    """Of F2I.U64.F32 and the like: to, from. The latter may go without saying, or the former."""
    types = [part for part in instruction.name.split(".") if re.match(r"[FSU]\d\d$", part)]
    if len(types) == 1:
        says_from = (instruction.kind == "F2I") == types[0].startswith("F")
        types.insert(0 if says_from else 1, "32")
    return 2 if index < len(types) and types[index].endswith("64") else 1


def _width(instruction: Instruction, index: int, operand: str) -> int:
    """How many registers operand `index`, predicates not counted, names the first of."""
    kind = instruction.kind
    if kind in MEMORY and "[" in operand:
        if kind not in GLOBAL_MEMORY:
            return 1
        # sm_61 has no sign for a pair: every global address is one.
        return 2 if ".64" in operand or not re.search(r"UR|\.U32", operand) else 1
    if instruction.has("128", "256"):
        return 4
    if instruction.has("64") or ".64" in operand or PAIRS.match(kind):
        return 2
    if kind == "CS2R":
        return 1 if instruction.has("32") else 2
    if instruction.has("WIDE"):  # two of 32 bits multiplied to one of 64, and one of 64 added
        return 2 if index in (0, 3) else 1
    if kind in ("F2F", "I2F", "F2I", "I2I"):
        return _converted(instruction, index)
    return 1


def _registers(instruction: Instruction, index: int, operand: str) -> set[int]:
    names = re.findall(r"(?<![\w.])R(\d+)", operand)
    width = _width(instruction, index, operand)
    return {int(name) + i for name in names for i in range(width)}


def _split(instruction: Instruction) -> tuple[set[int], set[int]]:
    """Registers that a load or atomic brings something into; all that the instruction names."""
    brought: set[int] = set()
    every: set[int] = set()
    address_seen = False
    operands = [word for word in instruction.operands if not PREDICATE.match(word)]
    for index, operand in enumerate(operands):
        address_seen = address_seen or "[" in operand
        registers = _registers(instruction, index, operand)
        every |= registers
        if not address_seen:
            brought |= registers
    return brought, every


def _opposite(guard: str) -> str:
    return guard[1:] if guard.startswith("!") else f"!{guard}"


@dataclass
class _Outstanding:
    registers: set[int]
    guard: str
    key: object


def _returned(load: _Outstanding, instruction: Instruction, touched: set[int]) -> bool:
    if not load.registers:  # LDGSTS brings nothing into registers: DEPBAR waits for it
        return instruction.kind == "DEPBAR" or instruction.has("ARRIVES")
    if load.guard and instruction.guard == _opposite(load.guard):
        return False  # no thread does both
    return not load.registers.isdisjoint(touched)


def waits(code: Iterable[tuple[object, Instruction]]) -> Iterator[object]:
    """For each wait, the key of the load that is waited for: of several, the one issued last."""
    outstanding: list[_Outstanding] = []
    for key, instruction in code:
        brings = instruction.kind in LOADS + ATOMICS
        brought, every = _split(instruction)
        late = [load for load in outstanding if _returned(load, instruction, every)]
        if late:
            yield late[-1].key
            outstanding = []
        # A predicate that is computed anew says no longer which threads loaded.
        for name in re.findall(r"\bP\d\b", " ".join(instruction.operands[:2])):
            for load in outstanding:
                load.guard = "" if load.guard.lstrip("!") == name else load.guard
        if brings and (brought or instruction.kind == "LDGSTS"):
            outstanding.append(_Outstanding(brought, instruction.guard, key))


def _count(instruction: Instruction) -> Counts:
    kind = instruction.kind
    load = kind in LOADS
    fence = kind in FENCES
    return Counts(
        loads=load,
        past_l1=load and instruction.has("STRONG", "ACQUIRE", "CG", "CV"),
        barriers=kind in BARRIERS,
        atomics=kind in ATOMICS,
        fences=fence and not instruction.has("CTA"),
        invalidations=(kind == "CCTL" and instruction.has("IVALL")) or instruction.has("IVALLD"),
        shared_loads=kind in SHARED_LOADS,
        shared_atomics=kind in SHARED_ATOMICS,
    )


def count(code: Iterable[tuple[object, Instruction]]) -> dict[object, Counts]:
    """The counts of each key; keys say where instructions belong."""
    code = list(code)
    counts: dict[object, Counts] = {}
    for key, instruction in code:
        counts[key] = counts.get(key, Counts()) + _count(instruction)
    for key in waits(code):
        counts[key].waits += 1
    return counts
