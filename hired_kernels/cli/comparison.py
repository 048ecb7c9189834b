# SPDX-License-Identifier: Apache-2.0
"""One picture through every stage twice: by the operators, and as the published code does it.

Both share the image processing and the vision tower; the published code also runs the layers that
nobody reads. What is quick is run a few times over and the fastest run counts: it is the one that
other work on the machine has disturbed least.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor

import hired_kernels

from .. import published
from ..geometry import Layout
from ..models import vision_tower
from . import taken_apart
from .ledger import Row, Stage
from .loading import VisionModel
from .taken_apart import Encoded

_RUNS, _LIMIT = 20, 1.5  # runs of a stage, and seconds after which there are no more
_TOWER_LIMIT = 0.3  # the same for stages of the tower


@dataclass(frozen=True)
class Comparison:
    """`pixels` (P, 3, tile, tile) is what the tower saw, `kept` (P, T) bool what the operators
    keep of it; a row for each partition and a stage for each line of the ledger. `keep` tells what
    they keep of the same picture within other budgets, in tokens: (P, T) bool."""

    pixels: Tensor
    kept: Tensor
    rows: list[Row]
    stages: list[Stage]
    keep: Callable[[int], Tensor]


@dataclass(frozen=True)
class _Published:
    """The published method: None where it raises before it has selected anything."""

    mask: Tensor | None
    rows: float
    selection: float | None
    gather: float | None
    projector: float

    @property
    def whole_selection(self) -> float | None:
        if self.selection is None or self.gather is None:
            return None
        return self.rows + self.selection + self.gather


@torch.no_grad()
def compare(
    vision: VisionModel,
    photograph: Image.Image,
    layout: Layout,
    *,
    budget: int,
    published_budget: int,
    alpha: float,
    policy: str,
    progress: Callable[[range], Iterator[int]] | None = None,
) -> Comparison:
    """Run both ways on one picture. Budgets are in tokens; `progress` is told of tower layers.

    Raises ValueError where the picture cannot be cut up, and as `hired_kernels.select_qk` does.
    """
    device = vision.device
    processing, pixels = _timed(device, lambda: vision.pixels(photograph))
    if pixels.shape[0] != layout.partitions:
        raise ValueError(
            f"picture: expected {layout.partitions} partitions from the image processor, got "
            f"{pixels.shape[0]}"
        )
    tower, layer = vision.tower, vision.feature_layer
    begin = partial(taken_apart.begin, tower, pixels, layer)
    start, encoded = _timed(device, lambda: begin(progress=progress))
    if start <= _TOWER_LIMIT:  # a large tower is run once, with its bar
        start, encoded = _measured(device, begin, _TOWER_LIMIT)
    select, selection = _measured(
        device, lambda: _select(encoded, layout, budget, alpha, policy).compact()
    )
    most = int(selection.counts.max())
    end, tokens = _measured(
        device, lambda: taken_apart.finish(tower, encoded, selection, most), _TOWER_LIMIT
    )
    kept = _mask(layout, selection)
    projector, _ = _measured(device, lambda: vision.projector(tokens))

    whole, hidden = _measured(device, lambda: taken_apart.finish_all(tower, encoded), _TOWER_LIMIT)
    unread, _ = _measured(
        device, lambda: taken_apart.run_remaining_layers(tower, hidden, layer), _TOWER_LIMIT
    )
    other = _as_published(vision, pixels, encoded, hidden, layout, published_budget, alpha)

    run, layers = vision.layers
    patches = layout.partitions * layout.tokens
    stages = [
        Stage("image processing", processing, processing),
        Stage(
            "vision tower",
            start + end,
            start + whole + unread,
            f"{run} layers of {layers}, the last of them for the kept tokens",
        ),
        Stage("select_qk", select, other.whole_selection, "one call instead of three stages:"),
        Stage("attention rows", None, other.rows, "of two whole matrices", part=True),
        Stage("budgets and top-k", None, other.selection, part=True),
        Stage("gather", None, other.gather, "after the projector", part=True),
        Stage("projector", projector, other.projector, f"{len(tokens):,} tokens, not {patches:,}"),
    ]

    @torch.no_grad()
    def keep(tokens: int) -> Tensor:
        return _mask(layout, _select(encoded, layout, tokens, alpha, policy).compact())

    return Comparison(pixels, kept, _rows(layout, kept, other.mask, policy), stages, keep)


def _mask(layout: Layout, selection: hired_kernels.Selection) -> Tensor:
    """Which tokens are kept, (P, T) bool."""
    kept = torch.zeros(layout.partitions, layout.tokens, dtype=torch.bool)
    kept.view(-1)[selection.indices.cpu()] = True
    return kept


def _select(
    encoded: Encoded, layout: Layout, budget: int, alpha: float, policy: str
) -> hired_kernels.Selection:
    return hired_kernels.select_qk(
        encoded.features,
        *encoded.scores(),
        grids=[layout.grid],
        budget=budget,
        alpha=alpha,
        crops=None if layout.crop is None else [layout.crop],
        policy=policy,
    )


def _as_published(
    vision: VisionModel,
    pixels: Tensor,
    encoded: Encoded,
    hidden: Tensor,
    layout: Layout,
    budget: int,
    alpha: float,
) -> _Published:
    device, T = vision.device, layout.tokens
    tower, initial = vision.tower, vision_tower.INITIAL_LAYER
    init = taken_apart.queries_and_keys(tower, initial, taken_apart.embed(tower, pixels))
    final = taken_apart.queries_and_keys(tower, encoded.layer, encoded.hidden)
    rows, attention = _measured(
        device, lambda: [published.attention_rows(*layer, T) for layer in (init, final)]
    )
    states = {**encoded.states, encoded.layer + 1: hidden}
    features = torch.cat([states[number][:, 1:] for number in encoded.wanted], dim=-1)
    projector, projected = _measured(device, lambda: vision.projector(features))
    try:
        selection, mask = _measured(
            device,
            lambda: published.kept_mask(
                attention[0], attention[1], [layout.partitions], [budget], alpha
            ),
        )
    except ValueError:
        return _Published(None, rows, None, None, projector)
    size = layout.height, layout.width
    gather, _ = _measured(device, lambda: published.gather(projected, mask, [layout.grid], [size]))
    return _Published(mask.cpu(), rows, selection, gather, projector)


def _rows(layout: Layout, kept: Tensor, mask: Tensor | None, policy: str) -> list[Row]:
    counts = kept.sum(dim=1).tolist()
    if mask is None:
        return [Row(count, count, None, None) for count in counts]
    selected = mask.sum(dim=1).tolist()
    lost = (mask & ~_valid(layout)).sum(dim=1).tolist()
    # "exact" keeps its budgets to the token; "published" loses what turns out to be padding.
    budgets = counts if policy == "exact" else selected
    return [Row(*row) for row in zip(budgets, counts, selected, lost, strict=True)]


def _valid(layout: Layout) -> Tensor:
    """Which patches are picture and not padding, (P, T) bool."""
    (R, C), side = layout.grid, layout.side
    valid = torch.ones(1, layout.tokens, dtype=torch.bool)
    if R == 0 or layout.crop is None:
        return valid.repeat(layout.partitions, 1)
    top, bottom, left, right = layout.crop
    grid = torch.zeros(R * side, C * side, dtype=torch.bool)
    grid[top:bottom, left:right] = True
    sub_images = grid.view(R, side, C, side).transpose(1, 2).reshape(R * C, -1)
    return torch.cat((valid, sub_images))


def _timed(device: torch.device, work: Callable[[], Any]) -> tuple[float, Any]:
    _wait(device)
    start = time.perf_counter()
    result = work()
    _wait(device)
    return time.perf_counter() - start, result


def _wait(device: torch.device) -> None:
    """For all that was begun on a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _measured(
    device: torch.device, work: Callable[[], Any], limit: float = _LIMIT
) -> tuple[float, Any]:
    """The fastest of a few runs, as many as the limit allows, and the result."""
    fastest, result = _timed(device, work)
    spent, runs = fastest, 1
    while runs < _RUNS and spent < limit:
        seconds, _ = _timed(device, work)
        fastest = min(fastest, seconds)
        spent, runs = spent + seconds, runs + 1
    return fastest, result
