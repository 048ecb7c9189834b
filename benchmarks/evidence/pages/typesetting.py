# SPDX-License-Identifier: Apache-2.0
"""Pages of print: what stands where.

A page is divided by the borders of its tiles, so that no word is cut in two. In each part blocks
stand one above the other: a heading, paragraphs of a few words a line, tables with a word at the
head of each row and column and numbers in their cells, a stamp set askew. A line of print is a row
of patches high and a word begins at a patch, a few pixels off. Nothing stands twice on a page.
"""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..subject import PATCH
from . import fonts

TILE = 168
SIDE = TILE // PATCH
# (height, width) in pixels, and how often of a hundred pages. The last two come with padding.
SIZES = {(336, 336): 60, (168, 336): 8, (336, 168): 8, (336, 252): 12, (224, 336): 12}
# Of four letters at most: a word is three patches wide.
NOUNS = tuple(
    """
    ant arch axe ball barn bee bell boat bone book bowl bud bus cake cap card cat coat coin crab
    cup desk dog door drum duck ear egg fan farm fish flag foot frog gate hand hat hill ink jar
    key kite lamp leaf lion map milk moon nail owl pan plum rain ring rope salt ship sock tent yarn
    """.split()  # noqa: SIM905
)
NUMBERS = tuple("13 17 20 24 28 31 35 39 42 46 50 53 57 61 64 68 72 79 86 95".split())  # noqa: SIM905
PRINTED = (*NOUNS, *NUMBERS)
BLOCKS = ("heading", "paragraph", "table", "stamp")
LARGE_PRINT = ("heading", "stamp")  # what can be read in the full image, too
_SHIFT = 2  # pixels that a word may begin off its patch
_BODY = ("sans", "serif", "round")


@dataclass(frozen=True)
class Word:
    """A word of print, `top` and `left` in pixels, degrees for a stamp's.

    before: what stands to the left of it in a paragraph's line; row_head, column_head: of a
    table's cell. None where there is none.
    """

    text: str
    block: str
    top: int
    left: int
    face: str
    size: int
    degrees: int | None = None
    before: str | None = None
    row_head: str | None = None
    column_head: str | None = None

    @property
    def ink(self) -> np.ndarray:
        """Its pixels, (height, width) from 0 to 1."""
        if self.degrees is None:
            return fonts.printed(self.text, self.face, self.size)
        return fonts.stamped(self.text, self.face, self.size, self.degrees)


@dataclass(frozen=True)
class Part:
    """What lies between borders of tiles, in rows and columns of patches, the ends not included."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def slot(self) -> int:
        """Patches a word has to itself: three words a line."""
        return (self.right - self.left) // 3


@dataclass(frozen=True)
class Page:
    """What a picture of height x width pixels shows.

    rules: lines of tables, (top, left, height, width) in pixels; blank: parts of rows of patches
    with nothing to be read, for clutter, as Part.
    """

    height: int
    width: int
    words: tuple[Word, ...]
    rules: tuple[tuple[int, int, int, int], ...]
    blank: tuple[Part, ...]


def draw_page(rng: np.random.Generator, size: tuple[int, int], few: bool = False) -> Page:
    """A page with a heading, a table, a paragraph with two words in a line, and more.

    `few`: none of these larger than it must be, and nothing more.
    """
    parts = list(_parts(*size))
    order = rng.permutation(len(parts))
    blocks: list[list[str]] = [[] for _ in parts]
    for number, part in enumerate(order):
        drawn = (["table"], ["paragraph"], [])[rng.choice(3, p=(0.2, 0.5, 0.3))]
        blocks[part] += (["table"], ["paragraph"], [] if few else drawn)[min(number, 2)]
    blocks[rng.integers(len(parts))].insert(0, "heading")
    if rng.random() < (0.3 if few else 0.7):
        blocks[rng.integers(len(parts))].append("stamp")
    setter = _Setter(rng, few)
    for part, wanted in zip(parts, blocks, strict=True):
        setter.fill(part, wanted)
    return Page(*size, tuple(setter.words), tuple(setter.rules), tuple(setter.blank))


class _Setter:
    """Sets blocks into parts of one page."""

    def __init__(self, rng: np.random.Generator, few: bool) -> None:
        self.rng, self.few = rng, few
        self.nouns, self.numbers = self._shuffled(NOUNS), self._shuffled(NUMBERS)
        self.words: list[Word] = []
        self.rules: list[tuple[int, int, int, int]] = []
        self.blank: list[Part] = []

    def _shuffled(self, words: tuple[str, ...]) -> list[str]:
        return [words[number] for number in self.rng.permutation(len(words))]

    def fill(self, part: Part, blocks: list[str]) -> None:
        """Blocks from top to bottom with the rest of the rows as gaps between them."""
        heights = [self._height(block, part) for block in blocks]
        while blocks and sum(heights) > part.bottom - part.top:  # a stamp that has no room
            blocks, heights = blocks[:-1], heights[:-1]
        spare = part.bottom - part.top - sum(heights)
        cuts = np.sort(self.rng.integers(0, spare + 1, len(blocks)))
        if blocks and blocks[0] == "heading":
            cuts[0] -= cuts[0] % 2  # so its line is a row of patches in the full image, too
        row, before = part.top, 0
        for block, height, cut in zip(blocks, heights, cuts.tolist(), strict=True):
            self._leave(part, row, row + cut - before)
            row += cut - before
            before = cut
            getattr(self, "_" + block)(Part(row, row + height, part.left, part.right))
            row += height
        self._leave(part, row, part.bottom)

    def _leave(self, part: Part, top: int, bottom: int) -> None:
        if bottom - top >= 2:
            self.blank.append(Part(top, bottom, part.left, part.right))

    def _height(self, block: str, part: Part) -> int:
        high = part.bottom - part.top
        lines = 1 if self.few else int(self.rng.integers(2, 5 if high >= 10 else 4))
        return {"heading": 2, "paragraph": lines, "table": min(lines + 1, 4), "stamp": 4}.get(
            block, 0
        )

    def _set(self, block: str, text: str, row: int, col: int, room: int, **how: Any) -> None:
        """A word at a patch with so much room to the right, in the middle of so many rows."""
        rows = how.pop("rows", 1)
        word = Word(text, block, 0, 0, **how)
        height, width = word.ink.shape
        shift = max(0, min(_SHIFT, room * PATCH - width - 2))
        left = col * PATCH + 1 + int(self.rng.integers(0, shift + 1))
        top = row * PATCH + max(0, (rows * PATCH - height) // 2)
        self.words.append(dataclasses.replace(word, top=top, left=left))

    def _heading(self, part: Part) -> None:
        face = ("sans bold", "serif")[self.rng.integers(2)]
        col = part.left + 2 * int(self.rng.integers(0, (part.right - part.left - 5) // 2 + 1))
        self._set("heading", self.nouns.pop(), part.top, col, 5, face=face, size=25, rows=2)

    def _paragraph(self, part: Part) -> None:
        face, size = _BODY[self.rng.integers(len(_BODY))], int(self.rng.integers(12, 14))
        for row in range(part.top, part.bottom):
            before = None
            for number in range(3 if row == part.top else self.rng.integers(1, 4)):
                text, col = self.nouns.pop(), part.left + number * part.slot
                self._set(
                    "paragraph", text, row, col, part.slot, face=face, size=size, before=before
                )
                before = text

    def _table(self, part: Part) -> None:
        face, size = _BODY[self.rng.integers(len(_BODY))], int(self.rng.integers(12, 14))
        how = {"face": face, "size": size}
        cols = [part.left + number * part.slot for number in range(3)]
        heads = [self.nouns.pop(), self.nouns.pop()]
        for head, col in zip(heads, cols[1:], strict=True):
            self._set("table", head, part.top, col, part.slot, **how)
        for row in range(part.top + 1, part.bottom):
            name = self.nouns.pop()
            self._set("table", name, row, cols[0], part.slot, **how)
            for head, col in zip(heads, cols[1:], strict=True):
                number = self.numbers.pop()
                self._set(
                    "table", number, row, col, part.slot, row_head=name, column_head=head, **how
                )
        width = 3 * part.slot * PATCH
        for row in range(part.top, part.bottom + 1):
            self.rules.append((row * PATCH, part.left * PATCH, 1, width))
        for col in (*cols[1:],):
            self.rules.append(
                (part.top * PATCH, col * PATCH - 1, (part.bottom - part.top) * PATCH, 1)
            )

    def _stamp(self, part: Part) -> None:
        how = {"face": "sans bold", "size": 22, "degrees": (-8, 8)[self.rng.integers(2)]}
        col = part.left + int(self.rng.integers(0, part.right - part.left - 5))
        self._set("stamp", self.nouns.pop(), part.top, col, 6, rows=4, **how)


def _parts(height: int, width: int) -> list[Part]:
    """The page between the borders of its tiles."""
    rows, cols = _spans(height // PATCH), _spans(width // PATCH)
    return [Part(*row, *col) for row in rows for col in cols]


def _spans(length: int) -> list[tuple[int, int]]:
    """(first, last + 1) of the patches of a length in each tile; padding is half on either side."""
    before = -length % SIDE // 2
    cuts = [0, *range(SIDE - before, length, SIDE), length]
    return list(itertools.pairwise(cuts))
