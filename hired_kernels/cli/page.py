# SPDX-License-Identifier: Apache-2.0
"""The demo's page: the same as its card, with a slider for the budget. One file, nothing fetched.

What is kept at each step of the slider is what the operators keep: the page holds a bit for each
patch and step. Pictures are dimmed by the page itself, as the card dims them.
"""

from __future__ import annotations

import base64
import html
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..geometry import Layout
from . import picture
from .picture import Box, Shape
from .steps import Step

TEMPLATE = Path(__file__).with_name("page.html")
_WIDEST, _TALLEST = 840, 840  # of a picture on the page, in pixels
_QUALITY = 84


@dataclass(frozen=True)
class Reply:
    """An answer as the page shows it."""

    text: str
    right: bool | None
    tokens: int
    first: str


@dataclass(frozen=True)
class Content:
    """All that a page says. `replies` are the answers at steps, by number of the step; `everything`
    is the answer with all tokens. Without a `question` there is a `note`, which says why."""

    headline: str
    remark: str
    photograph: Image.Image
    partitions: np.ndarray  # (P, tile, tile, 3) uint8
    layout: Layout
    steps: Sequence[Step]
    start: int  # number of the step that was asked for
    question: str = ""
    everything: Reply | None = None
    replies: Mapping[int, Reply] | None = None
    note: str = ""
    footer: str = ""


def write(content: Content) -> str:
    """The page's text."""
    photograph = content.photograph.convert("RGB")
    photograph.thumbnail((_WIDEST, _TALLEST))
    full, grid = panels(content.layout)
    images = [
        _painted(content, shape, number) for number, shape in enumerate((full, grid)) if shape
    ]
    arranged = picture.arrange(content.layout, _box(full), _box(grid) if grid else None)
    R, C = content.layout.grid
    data = {
        "steps": [
            {"name": step.name, "share": round(step.share, 6), "kept": _bits(step.kept)}
            for step in content.steps
        ],
        "start": content.start,
        "grid": [R, C],
        "capacities": content.layout.capacities,
        "tokens": content.layout.tokens,
        "side": content.layout.side,
        "shown": picture.shown(content.layout),
        "lines": picture.lines(content.layout, arranged),
        "images": [_address(image) for image in images],
        "dim": {
            "background": picture.BACKGROUND,
            "dim": picture.DIM,
            "grey": picture.GREY,
            "shade": picture.SHADE,
        },
        "everything": _reply(content.everything),
        "replies": {number: _reply(reply) for number, reply in (content.replies or {}).items()},
    }
    said = {
        "headline": content.headline,
        "remark": content.remark,
        "size": f"{content.photograph.width:,} × {content.photograph.height:,} pixels",
        "question": content.question,
        "note": content.note,
        "footer": content.footer,
        "grid": f"{R} × {C}",
    }
    parts = {name: html.escape(value) for name, value in said.items()}
    parts["photograph"] = _address(photograph)
    # "<" could end the script that holds the data.
    parts["data"] = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    template = TEMPLATE.read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], template)


def panels(layout: Layout) -> tuple[Shape, Shape | None]:
    """Width and height, in pixels, of the full image on the page and of the sub-images."""
    full, grid = picture.shapes(layout)
    return _scaled(full), None if grid is None else _scaled(grid)


def _scaled(shape: Shape) -> Shape:
    """As large as the page has room, in whole pixels a patch where they are many."""
    scale = min(_WIDEST / shape[0], _TALLEST / shape[1])
    if scale >= 1:
        scale = min(int(scale), 48)
    return max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale))


def _box(shape: Shape) -> Box:
    return (0, 0, *shape)


def _painted(content: Content, shape: Shape, number: int) -> Image.Image:
    """One panel, bright."""
    full, grid = panels(content.layout)
    # Both stand on a sheet, the other one beside: `paint` knows them together.
    right = full[0] + (grid[0] if grid else 0)
    sheet = np.zeros((max(full[1], grid[1] if grid else 0), right, 3), dtype=np.uint8)
    place = (full[0], 0, right, grid[1]) if grid else None
    arranged = picture.arrange(content.layout, _box(full), place)
    picture.paint(sheet, content.partitions, content.layout, arranged)
    left = full[0] if number else 0
    return Image.fromarray(sheet[: shape[1], left : left + shape[0]])


def _bits(kept: np.ndarray) -> str:
    return base64.b64encode(np.packbits(kept.reshape(-1)).tobytes()).decode()


def _address(image: Image.Image) -> str:
    """The picture in a `data:` address."""
    file = io.BytesIO()
    image.save(file, "jpeg", quality=_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def _reply(reply: Reply | None) -> dict[str, Any] | None:
    return None if reply is None else vars(reply)
