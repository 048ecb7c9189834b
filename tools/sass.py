# SPDX-License-Identifier: Apache-2.0
"""NVIDIA machine code, as nvdisasm lists it: instructions, where they come from, the registers that
they name. Loads, atomics and what else is counted by their names: sass_counts.py."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

Place = tuple[tuple[str, int], ...]  # file and line, from the kernel inwards


@dataclass(frozen=True)
class Instruction:
    text: str
    guard: str = ""  # P0, !P0
    place: Place = ()
    control: int = 7 << 5  # sets no scoreboard, waits for none

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
GLOBAL_MEMORY = LOADS + ATOMICS + ("ST", "STG", "CCTL")
MEMORY = (*GLOBAL_MEMORY, *SHARED_LOADS, *SHARED_ATOMICS, "STS", "LDC", "LDL", "STL")


def _controls(words: list[int], count: int) -> list[int]:
    """Of each instruction, from the encoding; of none where the listing has no encoding."""
    if not words:
        return [Instruction.control] * count
    if len(words) == 2 * count:  # sm_70 and later: 128 bits each
        return [word >> 41 & 0x1FFFFF for word in words[1::2]]
    if 3 * len(words) == 4 * count:  # before: 64 bits each, and before every three 64 for them
        return [words[i // 3 * 4] >> 21 * (i % 3) & 0x1FFFFF for i in range(count)]
    raise ValueError(f"{count} instructions of {len(words)} words: not an encoding that is known")


def read_listing(lines: Iterable[str]) -> Iterator[tuple[str, list[Instruction]]]:
    """The kernels of what `nvdisasm -c -gi -hex` wrote: symbol, instructions."""
    kernel = ""
    code: list[tuple[str, str, Place]] = []
    words: list[int] = []
    place: list[tuple[str, int]] = []
    fresh = True  # the next remark on a line begins a new chain
    source = re.compile(r'^\s*//## File "([^"]*)", line (\d+)')
    instruction = re.compile(r"^\s*/\*[0-9a-f]+\*/\s+(?:\{\s*)?(?:@(\S+)\s+)?([^;}]+)")
    encoding = re.compile(r"/\* 0x([0-9a-f]{16}) \*/\s*$")

    def done() -> tuple[str, list[Instruction]]:
        controls = _controls(words, len(code))
        return kernel, [Instruction(*one, at) for one, at in zip(code, controls, strict=True)]

    for line in lines:
        if found := re.match(r"^\s*\.section\s+\.text\.([\w$.]+)", line):
            if code:
                yield done()
            kernel, code, words, place = found[1], [], [], []
            continue
        if found := source.match(line):
            place = [] if fresh else place
            place.insert(0, (found[1], int(found[2])))
            fresh = False
            continue
        if found := encoding.search(line):
            words.append(int(found[1], 16))
            line = line[: found.start()]
        if found := instruction.match(line):
            text = re.sub(r"\(\*.*?\*\)", "", found[2]).strip()
            code.append((text, found[1] or "", tuple(place)))
            fresh = True
    if code:
        yield done()


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


def registers(instruction: Instruction) -> tuple[set[int], set[int]]:
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
