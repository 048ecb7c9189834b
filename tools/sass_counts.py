# SPDX-License-Identifier: Apache-2.0
"""Trips to memory, barriers and hand-overs, counted out of machine code as nvdisasm lists it.

A *wait* is the first use of something outstanding: what a global load, or an atomic that returns a
value, brings. Instructions are walked in program order. The first that reads or overwrites a
register of a load that was issued since the last wait is a wait, and then every load issued before
it counts as returned: 48 loads and then their uses are one wait, load, use, load, use are two. It
is told of the place whose load is waited for, not of the one that uses it. Copies that unrolling
made are all counted; a loop counts once, and so do branches of which a thread takes one.

The machine itself keeps no account of registers. A load is given one of six scoreboards, an
instruction says which of them it waits for, and loads that share one are waited for together. So
there may be more waits than the registers call for: a *scoreboard wait* is counted in the same way,
but where the code says that it waits. Its place in the encoding is found out, not documented: 21
bits an instruction, of which bits 5 to 7 say which scoreboard it sets, 11 to 16 which it awaits.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields

from sass import ATOMICS, LOADS, SHARED_ATOMICS, SHARED_LOADS, Instruction, registers

BARRIERS = ("BAR", "UCGABAR_WAIT")
FENCES = ("MEMBAR",)


@dataclass
class Counts:
    """Of a phase. The comments say what is counted, in the words of the machine code."""

    loads: int = 0  # LDG, LD (generic), LDGSTS
    past_l1: int = 0  # loads that the first-level cache does not answer: .STRONG; sm_61: .CG, .CV
    waits: int = 0
    scoreboard_waits: int = 0
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


def _opposite(guard: str) -> str:
    return guard[1:] if guard.startswith("!") else f"!{guard}"


@dataclass
class _Load:
    registers: set[int]
    guard: str
    scoreboard: int
    key: object


def _used(outstanding: list[_Load], instruction: Instruction, named: set[int]) -> list[_Load]:
    """Those whose registers it reads or overwrites, in some thread."""
    return [
        load
        for load in outstanding
        if not load.registers.isdisjoint(named)
        and not (load.guard and instruction.guard == _opposite(load.guard))
    ]


def _awaited(outstanding: list[_Load], instruction: Instruction, _: set[int]) -> list[_Load]:
    """Those that it waits for by their scoreboards."""
    awaited = instruction.control >> 11 & 63
    but = -1
    if instruction.kind == "DEPBAR":
        if found := re.search(r"SB(\d), 0x([0-9a-f]+)", instruction.text):
            board, but = int(found[1]), int(found[2], 16)  # for all but so many of the last
        elif found := re.search(r"\{([\d,]+)", instruction.text):
            awaited |= sum(1 << int(number) for number in found[1].split(","))
    late = [load for load in outstanding if awaited >> load.scoreboard & 1]
    if but >= 0:
        of_board = [load for load in outstanding if load.scoreboard == board]
        late += of_board[: max(0, len(of_board) - but)]
    return late


Returned = Callable[[list[_Load], Instruction, set[int]], list[_Load]]


def waits(
    code: Iterable[tuple[object, Instruction]], returned: Returned = _used
) -> Iterator[object]:
    """For each wait, the key of the load that is waited for: of several, the one issued last."""
    outstanding: list[_Load] = []
    for key, instruction in code:
        brought, named = registers(instruction)
        late = returned(outstanding, instruction, named) if outstanding else []
        if instruction.kind == "DEPBAR":  # what goes straight into shared memory
            late += [load for load in outstanding if not load.registers]
        if late:
            yield late[-1].key
            outstanding = []
        # A predicate that is computed anew says no longer which threads loaded.
        for name in re.findall(r"\bP\d\b", " ".join(instruction.operands[:2])):
            for load in outstanding:
                load.guard = "" if load.guard.lstrip("!") == name else load.guard
        brings = instruction.kind in LOADS + ATOMICS and brought
        if brings or instruction.kind == "LDGSTS":
            brought = set() if instruction.kind == "LDGSTS" else brought
            board = instruction.control >> 5 & 7
            outstanding.append(_Load(brought, instruction.guard, board, key))


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
    for key in waits(code, _awaited):
        counts[key].scoreboard_waits += 1
    return counts
