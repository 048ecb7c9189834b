# SPDX-License-Identifier: Apache-2.0
"""The demo's picture, one card: the picture, what is kept of it, the question and both answers.

A card is composed first, every text and picture with its box, and then drawn. It is made to be
read at half its width, so small text has 28 pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..geometry import Layout
from . import picture, typesetting
from .picture import BACKGROUND, Box, Panels, Shape
from .terminal import one_line

WIDTH = 1800
_MARGIN, _GAP = 68, 40
_ROOM = WIDTH - 2 * _MARGIN
_TALLEST, _TALLEST_OF_THREE, _THINNEST = 792, 420, 24
_WIDE = 1.9  # a picture of this aspect ratio or more has its panels one below the other
_TITLE, _LARGE, _MEDIUM, _SMALL = 60, 40, 36, 28
_LEADING = 1.35  # from line to line, in sizes
_TEXT, _FAINT, _RULE = (236, 239, 244), (152, 161, 174), (44, 50, 61)
_GOOD, _BAD = (134, 205, 158), (241, 150, 120)
_ANSWER, _TOKENS, _FIRST, _WHOLE = 330, 1130, 1440, WIDTH - _MARGIN  # columns of the table

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Reply:
    """A line of the table of answers. `right` is None where nobody knows the right answer."""

    name: str
    text: str
    right: bool | None
    tokens: int
    first: str
    whole: str = ""


@dataclass(frozen=True)
class Content:
    """All that a card says. Without a `question` it has a `note`, which says why."""

    headline: str
    remark: str
    photograph: Image.Image
    partitions: np.ndarray  # (P, tile, tile, 3) uint8
    kept: np.ndarray  # (P, T) bool
    layout: Layout
    question: str = ""
    replies: Sequence[Reply] = ()
    # Tokens, time to the first token, time of the whole answer; whether that is a saving.
    saved: Sequence[tuple[str, bool]] = ()
    note: str = ""
    footer: tuple[str, str] = ("", "")


@dataclass(frozen=True)
class Label:
    """One line of text. `box` is the room that it has; `right` sets it to the right edge of it."""

    text: str
    face: ImageFont.FreeTypeFont
    colour: Colour
    box: Box
    right: bool = False


@dataclass
class Card:
    """A composed card; `rules` are thin lines."""

    size: Shape
    photograph: Box
    panels: Panels
    labels: list[Label] = field(default_factory=list)
    rules: list[Box] = field(default_factory=list)


def draw(content: Content) -> Image.Image:
    """The card as a picture. Raises ValueError where mask and partitions are not the layout's."""
    card = compose(content)
    sheet = np.empty((card.size[1], card.size[0], 3), dtype=np.uint8)
    sheet[:] = BACKGROUND
    left, top, right, bottom = card.photograph
    smooth = content.photograph.width >= right - left
    pixels = np.asarray(content.photograph.convert("RGB"))
    sheet[top:bottom, left:right] = picture.resized(
        pixels, (right - left, bottom - top), smooth=smooth
    )
    picture.paint(sheet, content.partitions, content.layout, card.panels)
    picture.light(sheet, content.kept, content.layout, card.panels)
    image = Image.fromarray(sheet)
    pen = ImageDraw.Draw(image)
    for rule in card.rules:
        pen.rectangle((rule[0], rule[1], rule[2] - 1, rule[3] - 1), fill=_RULE)
    for label in card.labels:
        x, anchor = (label.box[2], "rs") if label.right else (label.box[0], "ls")
        pen.text(
            (x, _baseline(label)), label.text, font=label.face, fill=label.colour, anchor=anchor
        )
    return image


def compose(content: Content) -> Card:
    """Place everything. No two boxes of a card overlap, and all lie on it."""
    labels: list[Label] = []
    y = _write(labels, content.headline, _TITLE, _TEXT, (_MARGIN, 56, WIDTH - _MARGIN), 2)
    y = _write(labels, content.remark, _SMALL, _FAINT, (_MARGIN, y + 4, WIDTH - _MARGIN), 3)
    card, y = _pictures(content, y + 44)
    card.labels[:0] = labels
    rules = card.rules
    if content.question:
        y += 50
        rules.append((_MARGIN, y, WIDTH - _MARGIN, y + 2))
        y = _questions(card, content, y + 36)
    elif content.note:
        y = _write(card.labels, content.note, _SMALL, _TEXT, (_MARGIN, y + 36, WIDTH - _MARGIN), 3)
    y += 44
    half = (_ROOM - _GAP) // 2
    boxes = ((_MARGIN, y, _MARGIN + half), (WIDTH - _MARGIN - half, y, WIDTH - _MARGIN))
    ends = [
        _write(card.labels, said, _SMALL, _FAINT, box, 1, right=number == 1)
        for number, (said, box) in enumerate(zip(content.footer, boxes, strict=True))
    ]
    return replace(card, size=(WIDTH, max(ends) + 36))


def _pictures(content: Content, y: int) -> tuple[Card, int]:
    """The panels with their titles, beside each other, or one below the other if they are wide."""
    layout, photograph = content.layout, content.photograph
    counts, capacities = content.kept.sum(axis=1).tolist(), layout.capacities
    full, grid = picture.shapes(layout)
    panels = [
        ("Picture", f"{photograph.width:,} x {photograph.height:,} pixels", photograph.size),
        ("Full image", f"{counts[0]:,} of {capacities[0]:,} tokens", full),
    ]
    if grid:
        R, C = layout.grid
        said = f"{sum(counts[1:]):,} of {sum(capacities[1:]):,} tokens"
        panels.append((f"Sub-images, {R} x {C}", said, grid))
    below = grid is not None and grid[0] >= _WIDE * grid[1]
    columns = 1 if below else len(panels)
    column = (_ROOM - (columns - 1) * _GAP) // columns
    tallest = _TALLEST_OF_THREE if below else _TALLEST
    sizes = [_fitting(shape, (column, tallest)) for _, _, shape in panels]
    labels: list[Label] = []
    boxes: list[Box] = []
    for number, ((title, said, _), (width, height)) in enumerate(zip(panels, sizes, strict=True)):
        x = _MARGIN if below else _MARGIN + number * (column + _GAP)
        room = (min(column, 812) - 20) // 2
        right = x + (max(width, 2 * room) if below else column)
        _write(labels, title, _SMALL, _TEXT, (x, y, x + room), 1)
        top = 12 + _write(labels, said, _SMALL, _FAINT, (right - room, y, right), 1, right=True)
        boxes.append((x, top, x + width, top + height))
        if below:
            y = top + height + 36
    end = max(box[3] for box in boxes)
    arranged = picture.arrange(layout, boxes[1], boxes[2] if grid else None)
    return Card((WIDTH, end), boxes[0], arranged, labels), end


def _questions(card: Card, content: Content, y: int) -> int:
    """The question, and a table of the answers with what they cost."""
    labels, right = card.labels, WIDTH - _MARGIN
    _write(labels, "Question", _SMALL, _FAINT, (_MARGIN, y + 12, _ANSWER - 20), 1)
    y = _write(labels, content.question, _LARGE, _TEXT, (_ANSWER, y, right), 3) + 30
    whole = any(reply.whole for reply in content.replies)
    first = _FIRST if whole else _WHOLE
    heads = [("Visual tokens", _TOKENS), ("First token after", first)]
    if whole:
        heads.append(("Whole answer", _WHOLE))
    _write(labels, "Answer", _SMALL, _FAINT, (_ANSWER, y, _TOKENS - 260), 1)
    for said, x in heads:
        end = _write(labels, said, _SMALL, _FAINT, (x - 250, y, x), 1, right=True)
    y = end + 10
    for reply in content.replies:
        _write(labels, reply.name, _SMALL, _FAINT, (_MARGIN, y + 8, _ANSWER - 20), 1)
        figures = [(f"{reply.tokens:,}", _TOKENS), (reply.first, first)]
        if whole:
            figures.append((reply.whole, _WHOLE))
        for said, x in figures:
            _write(labels, said, _MEDIUM, _TEXT, (x - 250, y, x), 1, right=True)
        y = _answer(labels, reply, y) + 12
    if content.saved:
        card.rules.append((_ANSWER, y + 6, right, y + 8))
        y += 24
        places = (_TOKENS, first, _WHOLE) if whole else (_TOKENS, first)
        ends = [
            _write(labels, said, _MEDIUM, _GOOD if good else _BAD, (x - 250, y, x), 1, right=True)
            for (said, good), x in zip(content.saved, places, strict=False)
        ]
        y = max(ends)
    return y


def _answer(labels: list[Label], reply: Reply, y: int) -> int:
    """An answer, with right or wrong behind it where that is known."""
    room = _TOKENS - 260 - _ANSWER
    if reply.right is None:
        return _write(labels, reply.text, _MEDIUM, _TEXT, (_ANSWER, y, _ANSWER + room), 4)
    verdict, colour = ("right", _GOOD) if reply.right else ("wrong", _BAD)
    x, count = _ANSWER, len(labels)
    _write(labels, reply.text, _MEDIUM, _TEXT, (x, y, x + room - 120), 1)
    for said in labels[count:]:
        x += typesetting.width(said.text, said.face)
        labels[count] = replace(said, box=(_ANSWER, y, x, said.box[3]))
    return _write(labels, verdict, _MEDIUM, colour, (x + 18, y, _ANSWER + room), 1)


def _fitting(shape: Shape, room: Shape) -> Shape:
    """A shape scaled into a room, in whole pixels a patch where they are many; never a thread."""
    scale = min(room[0] / shape[0], room[1] / shape[1])
    if scale >= 4:
        scale = int(scale)
    width, height = (
        min(max(round(edge * scale), _THINNEST), most)
        for edge, most in zip(shape, room, strict=True)
    )
    return width, height


def _write(
    labels: list[Label],
    said: str,
    size: int,
    colour: Colour,
    place: tuple[int, int, int],
    most: int,
    *,
    right: bool = False,
) -> int:
    """Add a text, in at most so many lines, from a left edge and a top to a right edge; returns the
    bottom, that of an empty line where there is no text."""
    x, y, end = place
    step = round(size * _LEADING)
    said = one_line(said)
    face = typesetting.font(said, size)
    found = typesetting.lines(said, face, end - x, most)
    for line in found:
        labels.append(Label(line, face, colour, (x, y, end, y + step), right))
        y += step
    return y if found else y + step


def _baseline(label: Label) -> int:
    return label.box[1] + round(label.face.size * 1.02)
