# SPDX-License-Identifier: Apache-2.0
"""What card and page say of a run of the demo: the same words on both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from torch import Tensor

from ..geometry import Layout
from . import card, page
from .ledger import duration
from .question import Answer, Asked
from .steps import Step
from .terminal import one_line

_WHAT = "HiRED keeps what the vision tower's CLS token attends to."


@dataclass(frozen=True)
class Shown:
    """A run of the demo. `asked` is None where nothing was asked, and `why` says why;
    `answers` are with all tokens and with the kept ones, `at_steps` by number of the step."""

    photograph: Image.Image
    partitions: np.ndarray  # (P, tile, tile, 3) uint8
    kept: Tensor
    layout: Layout
    steps: Sequence[Step]
    start: int
    alpha: float
    policy: str
    model: str
    machine: str
    asked: Asked | None = None
    answers: Sequence[Answer] = ()
    at_steps: Mapping[int, Answer] | None = None
    why: str = ""

    def card(self) -> card.Content:
        kept = self.kept.numpy()
        replies, saved = [], []
        if self.asked and len(self.answers) == 2:
            longer = any(answer.words > 1 for answer in self.answers)
            for name, answer in zip(("All tokens", "Kept tokens"), self.answers, strict=True):
                whole = duration(answer.whole) if longer else ""
                replies.append(
                    card.Reply(
                        name,
                        _said(answer),
                        _right(self.asked, answer),
                        answer.tokens,
                        duration(answer.first),
                        whole,
                    )
                )
            every, few = self.answers
            saved = [(fewer(every.tokens, few.tokens), few.tokens <= every.tokens)]
            times = [(every.first, few.first), (every.whole, few.whole)]
            # Of answers of different lengths, times to the end say nothing.
            compared = times if longer and every.words == few.words else times[:1]
            saved += [(less(*pair), pair[1] <= pair[0]) for pair in compared]
        return card.Content(
            headline=self._headline(),
            remark=f"{_WHAT} Budget {self.steps[self.start].name}, {self._how()}",
            photograph=self.photograph,
            partitions=self.partitions,
            kept=kept,
            layout=self.layout,
            question=self.asked.text if self.asked else "",
            replies=replies,
            saved=saved,
            note=self.why,
            footer=(self.model, self.machine),
        )

    def page(self) -> page.Content:
        every = _reply(self.asked, self.answers[0]) if self.asked else None
        replies = {
            number: _reply(self.asked, answer)
            for number, answer in (self.at_steps or {}).items()
            if self.asked
        }
        return page.Content(
            headline=self._headline(),
            remark=f"{_WHAT} {self._how().capitalize()}",
            photograph=self.photograph,
            partitions=self.partitions,
            layout=self.layout,
            steps=self.steps,
            start=self.start,
            question=self.asked.text if self.asked else "",
            everything=every,
            replies=replies,
            note=self.why,
            footer=f"{one_line(self.model)}. {self.machine}.",
        )

    def _headline(self) -> str:
        return f"{int(self.kept.sum()):,} of {self.layout.valid:,} visual tokens kept"

    def _how(self) -> str:
        return f"alpha {self.alpha:g}, policy {self.policy}."


def fewer(every: int, few: int) -> str:
    """Tokens of the second against those of the first."""
    if not every or few == every:
        return "as many"
    return f"{abs(1 - few / every):.0%} {'fewer' if few < every else 'more'}".replace("%", " %")


def less(every: float, few: float) -> str:
    """Time of the second against that of the first."""
    share = abs(1 - few / every)
    return f"{share:.0%} {'less' if few <= every else 'more'}".replace("%", " %")


def _said(answer: Answer) -> str:
    return " ".join(answer.text.split()) or "(nothing)"


def _right(asked: Asked, answer: Answer) -> bool | None:
    return None if asked.right is None else answer.text == asked.right


def _reply(asked: Asked | None, answer: Answer) -> page.Reply:
    assert asked
    return page.Reply(_said(answer), _right(asked, answer), answer.tokens, duration(answer.first))
