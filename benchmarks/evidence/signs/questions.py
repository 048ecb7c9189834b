# SPDX-License-Identifier: Apache-2.0
"""Questions about a scene, with answers of one word, and the words of both.

`digit` and `colour`, `shape` need a sign to be found and read in full resolution; `count` needs all
signs to be seen; `place`, which of the model that comes along is not asked (`places.py`), needs it
to be known where in the picture a sign stands.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..subject import PATCH, SPECIAL, Question
from .pictures import COLOURS, SHAPES, Scene, Sign

KINDS = ("digit", "colour", "shape", "count")
WITH_PLACE = (*KINDS, "place")
DIGITS = tuple(str(digit) for digit in range(10))
ANSWERS = (*DIGITS, *COLOURS, *SHAPES)
WORDS = (
    *SPECIAL, *ANSWERS,
    "which", "digit", "stands", "next", "to", "the", "colour", "has", "shape", "how", "many",
    "shapes", "are", "a", "there", "?",
)  # fmt: skip
# Of the models that are asked where something is: a vocabulary that begins with the other.
PLACES = ("northwest", "northeast", "southwest", "southeast")
WORDS_WITH_PLACE = (*WORDS, *PLACES, "where", "in", "picture", "is")


def ask_all(scene: Scene, kinds: Sequence[str] = KINDS) -> list[Question]:
    """Every question of these kinds that the scene answers."""
    asked = []
    for sign in scene.signs:
        text = f"which digit stands next to the {sign.colour} {sign.shape} ?"
        asked.append(Question("digit", text, str(sign.digit)))
        text = f"which colour has the shape next to {sign.digit} ?"
        asked.append(Question("colour", text, sign.colour))
        text = f"which shape stands next to the {sign.digit} ?"
        asked.append(Question("shape", text, sign.shape))
        text = f"where in the picture is the {sign.colour} {sign.shape} ?"
        asked.append(Question("place", text, _quarter(scene, sign)))
    for shape in SHAPES:
        count = sum(sign.shape == shape for sign in scene.signs)
        asked.append(Question("count", f"how many {shape} shapes are there ?", str(count)))
    return [question for question in asked if question.kind in kinds]


def _quarter(scene: Scene, sign: Sign) -> str:
    """The quarter of the picture that a sign's shape stands in."""
    south = 2 * sign.row + 1 > scene.height // PATCH
    east = 2 * sign.col + 1 > scene.width // PATCH
    return PLACES[2 * south + east]


def ask(
    rng: np.random.Generator, scene: Scene, each: int = 1, kinds: Sequence[str] = KINDS
) -> list[Question]:
    """`each` questions of each kind, drawn at random; the same one again where there are no more.

    How many of a shape there are is asked of a shape that is there as often as of any.
    """
    asked, drawn = ask_all(scene, kinds), []
    for kind in kinds:
        choice = [question for question in asked if question.kind == kind]
        if kind == "count" and rng.random() < 0.5:
            choice = [question for question in choice if question.answer != "0"]
        drawn += [choice[number] for number in rng.integers(0, len(choice), each)]
    return drawn
