# SPDX-License-Identifier: Apache-2.0
"""Whose attention says what matters: the CLS token, all patches, or some on a lattice.

`judge` is an option of `apply_hired`: "cls"; "patches", all T of them; an integer q, those on a
lattice of r x r patches, r the largest with r^2 <= q; "auto", CLS in a tower whose CLS token was
trained to judge, and elsewhere a lattice of half the patches a side.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from .. import geometry
from .accounting import refuse
from .towers import TowerFamily

Judge = str | int


def lines(judge: Judge, family: type[TowerFamily], side: int) -> tuple[int, ...] | None:
    """Rows, and columns, of the patches that judge, of side x side; None where CLS judges.

    Raises ValueError for a judge that a tower of this family does not have.
    """
    if judge == "auto":
        judge = "cls" if family.cls_judges else max(1, side // 2) ** 2
    if judge == "cls":
        if family.prefix == 0:
            expected = f"auto, patches or a number of patches: {family.name} has no CLS token"
            raise refuse("judge", expected, "'cls'")
        return None
    if judge == "patches":
        return tuple(range(side))
    count = int(judge)
    if count > side**2:
        raise refuse("judge", f"at most the {side**2} patches of a partition", count)
    r = math.isqrt(count)
    return tuple(patch % side for patch in geometry.lattice(side, r)[:r])


def take(patches: Tensor, lines: tuple[int, ...], side: int) -> Tensor:
    """Those of patches (P, side^2, ...) that lie on these rows and columns: (P, Q, ...).

    By views, and a copy where they are not evenly spaced: an index on the host would have to be
    sent to the device.
    """
    if len(lines) == side:
        return patches
    square = patches.unflatten(1, (side, side))
    steps = {after - before for before, after in pairwise(lines)}
    if len(steps) <= 1:
        step = slice(lines[0], lines[-1] + 1, *steps)
        return square[:, step, step].flatten(1, 2)
    some = torch.stack([square[:, line] for line in lines], 1)
    return torch.stack([some[:, :, line] for line in lines], 2).flatten(1, 2)
