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
    tower_stage=Stage(steps=2600, pictures=4, warm=100),
    # `word` and `place` were at 94 and 89 % by step 1,575 of 2,600, seed 2. `cell`, which takes a row
    # and a column, had just come from 5 to 18 % when the long prompts began at 1,600, and fell back.
    answer_stage=Stage(
        steps=3400, pictures=4, short=2200, few=900, questions=8, others=16, naming=5.0
    ),
    # With what signs begin with, heads for a word's neighbours took the right column and any line:
    # `before` stood at 42 % from step 2,300 to 3,600 of 3,600, seed 2. Positions had shrunk to 2 %
    # of what tokens differ by. As it is here, 74 % at step 1,094. Until then louder positions alone
    # brought 15 %, and queries and keys that begin alike 13 %.
    fastest=2.5,
    loud=1.5,
    alike=True,
)
