# SPDX-License-Identifier: Apache-2.0
"""Pages: printed words in paragraphs and tables, a heading and a stamp, to be read."""

from __future__ import annotations

from functools import partial

from ..subject import LARGE, Network, Stage, Subject
from . import seeing
from .pictures import paint
from .questions import ANSWERS, KINDS, LONGEST, WORDS, ask
from .typesetting import SIZES, TILE, draw_page

SUBJECT = Subject(
    name="pages",
    tile=TILE,
    sizes=SIZES,
    asked_sizes=SIZES,
    kinds=KINDS,
    answers=ANSWERS,
    words=WORDS,
    longest=LONGEST,
    draw_scene=draw_page,
    draw_few=partial(draw_page, few=True),
    paint=paint,
    ask=ask,
    shown=seeing.shown,
    heads=seeing.Heads,
    draw_lesson=seeing.draw,
    lesson=seeing.loss,
    networks={
        "small": Network(D=160, heads=5, layers=6, text_D=160, text_layers=3),
        "large": LARGE,
    },
    tower_stage=Stage(steps=3200, pictures=4, warm=100),
    # `cell`, for which a row and a column are needed, comes last. Of 3,400 steps with 2,200 short
    # ones, seed 2, it was at 15 % after 1,675 and at 33 % after 2,200; `word` and `place` were at
    # 95 and 91 %.
    answer_stage=Stage(
        steps=3800, pictures=4, short=2800, few=900, questions=8, others=16, naming=5.0
    ),
    # With what signs begin with, heads for a word's neighbours took the right column and any line:
    # `before` stood at 42 % from step 2,300 to 3,600 of 3,600, seed 2. Positions had shrunk to 2 %
    # of what tokens differ by. As it is here, 74 % at step 1,094. Until then louder positions alone
    # brought 15 %, and queries and keys that begin alike 13 %.
    fastest=2.5,
    loud=1.5,
    alike=True,
)
