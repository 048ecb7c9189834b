# SPDX-License-Identifier: Apache-2.0
"""Questions about a page, with answers of one word, and the words of both.

They end with the word that has to be found, and there the answer is read. In two tries of 650 and
1,300 steps a question mark behind it never came to attend to that word. Without one all of 48
`word` questions about simple pages were right at step 867.

`word` and `cell` need print of the body to be found and read; `place` asks in which column of a
table a number stands; `large` asks for print that can be read in the full image, too.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..subject import SPECIAL, Question
from .typesetting import BLOCKS, PRINTED, Page

KINDS = ("word", "cell", "place", "large")
ANSWERS = (*PRINTED, *BLOCKS)
WORDS = (
    *SPECIAL, *ANSWERS,
    "which", "word", "number", "stands", "right", "of", "under", "is", "the", "in",
)  # fmt: skip
LONGEST = 8


def ask_all(page: Page, kinds: Sequence[str] = KINDS) -> list[Question]:
    """Every question of these kinds that the page answers."""
    asked = []
    for word in page.words:
        if word.row_head is not None:
            text = f"which number stands under {word.column_head} right of {word.row_head}"
            asked.append(Question("cell", text, word.text))
            text = f"under which word stands {word.text}"
            asked.append(Question("place", text, word.column_head))
        if word.before is not None:
            text = f"which word stands right of {word.before}"
            asked.append(Question("word", text, word.text))
        if word.block == "heading":
            asked.append(Question("large", "which word is the heading", word.text))
        if word.block == "stamp":
            asked.append(Question("large", "which word is in the stamp", word.text))
    return [question for question in asked if question.kind in kinds]


def ask(
    rng: np.random.Generator, page: Page, each: int = 1, kinds: Sequence[str] = KINDS
) -> list[Question]:
    """`each` questions of each kind, drawn at random; again the same where there are no more."""
    asked, drawn = ask_all(page, kinds), []
    for kind in kinds:
        choice = [question for question in asked if question.kind == kind]
        drawn += [choice[number] for number in rng.integers(0, len(choice), each)]
    return drawn
