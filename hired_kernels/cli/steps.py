# SPDX-License-Identifier: Apache-2.0
"""What the operators keep of one picture at each budget of a slider."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ..geometry import Layout

SHARES = tuple(percent / 100 for percent in range(1, 101))


@dataclass(frozen=True)
class Step:
    """One budget, as it was given, and what is kept within it, (P, T) bool."""

    budget: float | int
    share: float  # of the picture's tokens
    kept: np.ndarray

    @property
    def name(self) -> str:
        """How the budget is said."""
        if isinstance(self.budget, int):
            return f"{self.budget:,} token{'s' * (self.budget != 1)}"
        return f"{self.budget:.4%}".rstrip("0%").rstrip(".") + " %"


def of_picture(
    layout: Layout, keep: Callable[[int], Tensor], policy: str, asked: float | int
) -> list[Step]:
    """Steps of a percent each, and the budget that was asked for; the smallest first.

    `keep` says what is kept within a number of tokens, (P, T) bool. Budgets with which the
    published method raises are left out.
    """
    most = max(layout.valid, 1)
    found = []
    for budget in dict.fromkeys((*SHARES, asked)):
        tokens = layout.budget(budget, policy) if isinstance(budget, float) else budget
        share = budget if isinstance(budget, float) else budget / most
        try:
            kept = keep(tokens).numpy()
        except ValueError:
            continue
        found.append(Step(budget, share, kept))
    return sorted(found, key=lambda step: step.share)
