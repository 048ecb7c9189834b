# SPDX-License-Identifier: Apache-2.0
"""Signs: coloured shapes with a digit beside each, few of them on a large, cluttered ground."""

from __future__ import annotations

from ..subject import LARGE, Network, Stage, Subject
from . import seeing
from .pictures import SIZES, TILE, draw_scene, paint
from .questions import ANSWERS, KINDS, WORDS, ask

SUBJECT = Subject(
    name="signs",
    tile=TILE,
    sizes=SIZES,
    # The published code cannot divide 64 tokens among three sub-images.
    asked_sizes={size: share for size, share in SIZES.items() if size != (336, 112)},
    kinds=KINDS,
    answers=ANSWERS,
    words=WORDS,
    longest=9,
    draw_scene=draw_scene,
    draw_few=draw_scene,
    paint=paint,
    ask=ask,
    shown=seeing.shown,
    heads=seeing.Heads,
    draw_lesson=seeing.draw,
    lesson=seeing.loss,
    networks={
        "small": Network(D=128, heads=4, layers=5, text_D=128, text_layers=3),
        "large": LARGE,
    },
    tower_stage=Stage(steps=1400, pictures=12),
    answer_stage=Stage(steps=2200, pictures=12, short=1600),
)
