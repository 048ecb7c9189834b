# SPDX-License-Identifier: Apache-2.0
"""The demo's two tables, as text: where the tokens went, and where the time went.

Beside each figure stands that of the published method on the same picture, done as its code does
it (`hired_kernels.published`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from ..geometry import Layout

_Figure = TypeVar("_Figure", int, float)


@dataclass(frozen=True)
class Row:
    """Tokens of one partition; those of the published method None where it raises.

    `budget` is what the partition was allotted, `kept` what came of it; `published` what the
    published method selects, `lost` how much of that is padding, cut away afterwards.
    """

    budget: int
    kept: int
    published: int | None
    lost: int | None


@dataclass(frozen=True)
class Stage:
    """Seconds that one stage takes here and as published; None where there is no such figure.

    `part` marks a stage that is contained in the one before it.
    """

    name: str
    ours: float | None
    published: float | None
    remark: str = ""
    part: bool = False


def token_lines(layout: Layout, rows: Sequence[Row]) -> list[str]:
    """A line for each partition and their sum."""
    lines = [
        f"{'':16}{'':8}{'':9}{'':8}{'':8}   {'as published':>20}",
        f"{'partition':<16}{'patches':>8}{'padding':>9}{'budget':>8}{'kept':>8}"
        f"   {'selected':>10}{'padding':>10}",
    ]
    for p, (row, capacity) in enumerate(zip(rows, layout.capacities, strict=True)):
        name = "full image"
        if p > 0:
            name = "sub-image {}, {}".format(*divmod(p - 1, layout.grid[1]))
        lines.append(_token_line(name, layout.tokens, capacity, row))
    if len(rows) > 1:
        total = Row(
            sum(row.budget for row in rows),
            sum(row.kept for row in rows),
            _sum(row.published for row in rows),
            _sum(row.lost for row in rows),
        )
        patches = layout.partitions * layout.tokens
        lines.append(_token_line("the picture", patches, layout.valid, total))
    return lines


def stage_lines(stages: Sequence[Stage]) -> list[str]:
    """A line for each stage and the sum of all."""
    lines = [f"{'stage':<22}{'hired_kernels':>15}{'as published':>15}{'ratio':>9}"]
    lines += [_stage_line(stage) for stage in stages]
    whole = [stage for stage in stages if not stage.part]
    ours = _sum(stage.ours for stage in whole)
    return [*lines, _stage_line(Stage("all", ours, _sum(stage.published for stage in whole)))]


def duration(seconds: float) -> str:
    """Seconds from 1 up, milliseconds below, in three figures."""
    if seconds >= 1:
        return f"{seconds:.1f} s"
    milliseconds = seconds * 1e3
    figures = 0 if milliseconds >= 100 else 1 if milliseconds >= 10 else 2
    return f"{milliseconds:.{figures}f} ms"


def _sum(figures: Iterable[_Figure | None]) -> _Figure | int | None:
    """Their sum, None where one is missing."""
    found = list(figures)
    there = [figure for figure in found if figure is not None]
    return sum(there) if len(there) == len(found) else None


def _token_line(name: str, patches: int, capacity: int, row: Row) -> str:
    share = f"{1 - capacity / patches:.0%}"
    selected = "-" if row.published is None else f"{row.published:,}"
    lost = "-" if row.lost is None else f"{row.lost:,}"
    return (
        f"{name:<16}{patches:>8,}{share:>9}{row.budget:>8,}{row.kept:>8,}"
        f"   {selected:>10}{lost:>10}"
    )


def _stage_line(stage: Stage) -> str:
    name = f"  {stage.name}" if stage.part else stage.name
    ours = "" if stage.ours is None else duration(stage.ours)
    published = "-" if stage.published is None else duration(stage.published)
    ratio = ""
    if stage.ours and stage.published is not None:
        speed_up = stage.published / stage.ours
        ratio = f"{speed_up:,.0f}x" if speed_up >= 10 else f"{speed_up:.1f}x"
    return f"{name:<22}{ours:>15}{published:>15}{ratio:>9}   {stage.remark}".rstrip()
