# SPDX-License-Identifier: Apache-2.0
"""The public functions as an outsider calls them, for `mypy` in `make lint`: nothing runs this.

Each ignored error is one that has to be found: mypy complains of an ignore that it does not need.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import hired_kernels as hired


def right(features: Tensor, rows: Tensor, query: Tensor, key: Tensor) -> Tensor:
    kept = hired.select(features, rows, rows, grids=[(2, 2)], budget=0.2, crops=[(0, 48, 0, 48)])
    again = hired.select_qk(
        features, query, key, query, key, grids=[(2, 2), (0, 0)], budget=[0.2, 500], scale=0.125
    )
    pooled = hired.select_qk(
        features, None, None, query, key, grids=[(2, 2)], budget=0.2, policy="pooled", merge=2
    )
    patches: Tensor = hired.geometry.patches_of(pooled.indices, 24, 2)
    with hired.backend("reference"):
        attention: Tensor = hired.cls_attention(query, key, 576)
    selection: hired.Selection = kept.compact()
    tokens, indices, counts = again
    sums = indices + counts.sum() + patches.sum()
    return torch.cat([selection.tokens, tokens, attention.flatten(0, 1), sums])


def models(tower: nn.Module) -> None:
    on = hired.HiredTower(tower, feature_layer=-2, budget=500)
    numbers: list[int] = on.rows([(1024, 768)])
    layout = hired.geometry.layout(1024, 768)
    grid: tuple[int, int] = layout.grid
    print(numbers, grid)


def wrong(features: Tensor, rows: Tensor) -> None:
    hired.select(features, rows, rows, grids=[(2, 2)], budget="most")  # type: ignore[arg-type]
    hired.select(features, rows, rows, grids=[(2,)], budget=0.2)  # type: ignore[list-item]
    hired.select(features, rows, rows, budget=0.2)  # type: ignore[call-arg]
    hired.cls_attention(features, rows, "576")  # type: ignore[arg-type]
    hired.select(features, rows, None, grids=[(2, 2)], budget=5)  # type: ignore[arg-type]
    hired.select(features, rows, rows, grids=[(2, 2)], budget=5, merge=0.5)  # type: ignore[arg-type]
    kept = hired.select(features, rows, rows, grids=[(2, 2)], budget=5)
    count: int = kept  # type: ignore[assignment]
    print(count, kept.token)  # type: ignore[attr-defined]
