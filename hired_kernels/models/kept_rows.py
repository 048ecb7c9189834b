# SPDX-License-Identifier: Apache-2.0
"""Rows of kept tokens, sorted into their partitions for attention and back again.

Which partition keeps how many tokens is known to the device alone. Each gets room for as many as it
may keep, so that shapes are known beforehand and nothing waits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..ops import Selection


def by_partition(rows: Tensor, kept: Selection, T: int, most: int) -> tuple[Tensor, Tensor]:
    """Rows (K, W) of kept tokens, partition by partition with room for `most` in each.

    Returns (P, most, W), zero where there is no token, and the places that `from_partitions` takes.
    """
    P, places = kept.counts.shape[0], _places(kept, T, most)
    # A row past the last takes what belongs to no partition.
    room = rows.new_zeros(P * most + 1, rows.shape[-1]).index_copy(0, places, rows)
    return room[:-1].view(P, most, -1), places


def from_partitions(room: Tensor, places: Tensor) -> Tensor:
    """The rows (K, W) of (P, most, W) in the order of the kept tokens."""
    rows = room.flatten(0, 1)
    return rows.index_select(0, places.clamp(max=rows.shape[0] - 1))


def gather(hidden: Tensor, kept: Selection) -> Tensor:
    """Rows (K, W) of hidden states (P, 1 + T, W), CLS first; some row for one of index -1."""
    return hidden.flatten(0, 1).index_select(0, _flat_rows(kept.indices, hidden.shape[1] - 1))


def feature_columns(
    wanted: Sequence[int], states: Mapping[int, Tensor], kept: Selection, tokens: Tensor
) -> Tensor:
    """Kept tokens of all feature layers side by side: (K, n * D), those of the last as given.

    `wanted` are the numbers of the hidden states that are features, `states` those of them that lie
    before the last, each (P, 1 + T, D).
    """
    if len(wanted) == 1:
        return tokens
    parts = [
        gather(states[number].to(tokens.device), kept) if number in states else tokens
        for number in wanted
    ]
    return torch.cat(parts, dim=-1)


def _flat_rows(indices: Tensor, T: int) -> Tensor:
    """Rows of the flat (P * N, D) hidden states for indices p * T + t; row 1 for -1."""
    indices = indices.clamp(min=0)
    return torch.div(indices, T, rounding_mode="floor") + indices + 1


def _places(kept: Selection, T: int, most: int) -> Tensor:
    """A place of its own, below P * most, for each kept token: partition by partition.

    P * most for a row of index -1. Raster order mixes partitions, so a token's rank among those of
    its own comes from a stable sort.
    """
    P, K = kept.counts.shape[0], kept.indices.shape[0]
    empty = kept.indices < 0
    partition = torch.div(kept.indices, T, rounding_mode="floor").masked_fill(empty, P)
    order = partition.argsort(stable=True)
    ranks = torch.empty_like(order).scatter_(0, order, torch.arange(K, device=order.device))
    first = kept.counts.cumsum(0) - kept.counts
    in_bounds = partition.clamp(max=P - 1)
    places = in_bounds * most + ranks - first.index_select(0, in_bounds)
    return places.masked_fill(empty, P * most)
