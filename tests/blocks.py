# SPDX-License-Identifier: Apache-2.0
"""Blocks of patches that are one token, said a second time: by reshapes and plain sums."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def blocks(patches: Tensor, merge: int) -> Tensor:
    """(P, T, D) -> (P, M, merge^2, D): the patches of each token, in raster order."""
    P, T, D = patches.shape
    cells = math.isqrt(T) // merge
    if merge == 1 or T == 0:
        return patches[:, :, None]
    rows = patches.reshape(P, cells, merge, cells, merge, D)
    return rows.transpose(2, 3).reshape(P, cells**2, merge**2, D)


def merged(features: Tensor, merge: int) -> Tensor:
    """(P, T, D) -> (P, M, merge^2 * D): tokens as they are gathered."""
    return blocks(features, merge).flatten(2)


def scores_of_tokens(attention: Tensor, merge: int) -> Tensor:
    """(P, H, T) -> (P, M) float32: heads are added up in ascending order, then patches in raster
    order."""
    scores = torch.zeros(attention.shape[::2]) if attention.shape[0] == 0 else _sum(attention, 1)
    return _sum(blocks(scores[..., None], merge).squeeze(-1), 2)


def _sum(values: Tensor, dim: int) -> Tensor:
    first, *rest = values.float().unbind(dim)
    for value in rest:
        first = first + value
    return first
