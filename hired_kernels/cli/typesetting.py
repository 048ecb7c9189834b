# SPDX-License-Identifier: Apache-2.0
"""Text in pixels: how wide it is, and how it breaks into lines.

The font is the one that Pillow carries. It has Latin letters; for others the fonts that systems
come with are tried, and where none of them is there, a letter is an empty box.
"""

from __future__ import annotations

import math
from functools import lru_cache

from PIL import ImageFont

ELLIPSIS = "…"
# What Linux, macOS and Windows have for other scripts.
_OTHERS = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "NotoSansCJK-Regular.ttc",
    "NotoSansArabic-Regular.ttf",
    "NotoSansDevanagari-Regular.ttf",
    "wqy-zenhei.ttc",
    "Arial Unicode.ttf",
    "PingFang.ttc",
    "msyh.ttc",
    "Nirmala.ttf",
)
_NO_LETTER = "\U0010fffd"  # one that no font has


def font(text: str, size: int) -> ImageFont.FreeTypeFont:
    """The first font with all letters of the text, or the one that lacks least."""
    letters = {letter for letter in text if not letter.isspace()}
    if all(letter < "\x7f" for letter in letters):
        return _own(size)
    fonts = [_own(size), *(each for name in _OTHERS if (each := _installed(name, size)))]
    return min(fonts, key=lambda each: sum(not _has(each, letter) for letter in letters))


def width(text: str, face: ImageFont.FreeTypeFont) -> int:
    """How many pixels a line takes."""
    return math.ceil(face.getlength(text))


def lines(text: str, face: ImageFont.FreeTypeFont, room: int, most: int) -> list[str]:
    """The text in at most so many lines of at most `room` pixels, with an ellipsis if it is cut.

    Lines break between words, and inside a word that is wider than a line.
    """
    rest = " ".join(text.split())
    found: list[str] = []
    while rest:
        if len(found) == most:
            found[-1] = _cut(found[-1], face, room)
            break
        line = rest[: _fitting(rest, face, room)]
        if len(line) < len(rest) and " " in line.rstrip() and rest[len(line)] != " ":
            line = line[: line.rindex(" ")]
        found.append(line.strip())
        rest = rest[len(line) :].strip()
    return found


def _fitting(text: str, face: ImageFont.FreeTypeFont, room: int) -> int:
    """How many letters fit, at least one."""
    least, most = 1, len(text)
    while least < most:
        middle = (least + most + 1) // 2
        if width(text[:middle], face) <= room:
            least = middle
        else:
            most = middle - 1
    return least


def _cut(head: str, face: ImageFont.FreeTypeFont, room: int) -> str:
    """A text with an ellipsis behind it, and as many letters less as that takes."""
    while head and width(head + ELLIPSIS, face) > room:
        head = head[:-1].rstrip()
    return head + ELLIPSIS


@lru_cache(maxsize=64)
def _own(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


@lru_cache(maxsize=256)
def _installed(name: str, size: int) -> ImageFont.FreeTypeFont | None:
    try:
        return ImageFont.truetype(name, size)
    except OSError:
        return None


@lru_cache(maxsize=4096)
def _has(face: ImageFont.FreeTypeFont, letter: str) -> bool:
    """Whether a font has a letter: what it lacks looks like what no font has."""
    missing = face.getmask(_NO_LETTER)
    mask = face.getmask(letter)
    return mask.size != missing.size or bytes(mask) != bytes(missing)
