# SPDX-License-Identifier: Apache-2.0
"""The integers of a call, picture by picture, and the programs that they take."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import triton

from .. import arguments
from ..arguments import first_share
from .pictures import Picture

# Programs that copy rows: more than a large GPU runs at a time, no more than each has some to copy.
GATHER_PROGRAMS = 1024


def plan(
    M: int, grids: Sequence[int], budgets: Sequence[int], alpha: float,
    crops: Sequence[int] | None, policy: str,
) -> Iterator[Picture]:  # fmt: skip
    """Each picture of a batch in numbers, of M tokens a partition; arguments are checked, positions
    count in the batch."""
    side, partition, row = math.isqrt(M), 0, 0
    for b, (R, C) in enumerate(arguments.pairs(grids)):
        box, in_subs = (0, R * side, 0, C * side), R * C * M
        if crops is not None and R > 0:
            top, bottom, left, right = crops[4 * b : 4 * b + 4]
            box = (top, bottom, left, right)
            if policy != "published":  # which learns what is padding only after it has chosen
                in_subs = (bottom - top) * (right - left)
        rows = full = min(budgets[b], M + in_subs)
        if R > 0 and policy == "exact":
            full = max(min(first_share(rows, alpha), M), rows - in_subs)
        elif R > 0:
            full = min(first_share(budgets[b], alpha), M)
        rest = min(budgets[b] - full, in_subs)
        if policy == "pooled":
            full = rest = 0  # only the device knows
        yield Picture(R, C, *box, partition, row, rows, full, rest)
        partition += 1 + R * C
        row += rows


def gather_programs(
    pictures: list[Picture], M: int, pieces: int, block_rows: int, policy: str
) -> tuple[int, int]:
    """Programs that copy a full image's rows of `pieces` each, and a sub-image's, of which only the
    device knows how many there are: an even share is taken for it, under `pooled` twice that."""
    rows = pieces * sum(picture.output_rows for picture in pictures)
    per_program = block_rows * max(1, rows // (block_rows * GATHER_PROGRAMS))
    if policy == "pooled":
        full = sub = max(min(M, triton.cdiv(2 * p.output_rows, 1 + p.R * p.C)) for p in pictures)
    else:
        full = max(p.full_budget for p in pictures)
        sub = max(triton.cdiv(p.rest, max(1, p.R * p.C)) for p in pictures)
    return tuple(max(1, triton.cdiv(pieces * kept, per_program)) for kept in (full, sub))
