# SPDX-License-Identifier: Apache-2.0
"""Rows of kept tokens, sorted into their partitions for attention and back again.

Which partition keeps how many tokens is known to the device alone. So room is made beforehand,
either for as many rows in each partition as it may keep, or in blocks of a few rows, as many as the
kept tokens may need, each of which belongs to one partition. Shapes are known, and nothing waits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..ops import Selection

# A block needs keys and values of its own, copied. On a CPU, and on a GPU in half precision, the
# copy takes about as long as the attention of this many rows, by count of bytes and operations.
_ROWS_OF_A_COPY = 32
# Blocks are worth their bookkeeping from here on, in parts of the work without them.
_WORTH = 0.7


class Room(NamedTuple):
    """Rows of kept tokens, (blocks, size, W), zero where there is none; see `by_partition`.

    places (K,): of each kept token in the flattened room. partitions (blocks,): whose rows a block
    has; None where block p is partition p.
    """

    rows: Tensor
    places: Tensor
    partitions: Tensor | None

    def of(self, tensor: Tensor) -> Tensor:
        """What each block needs of (P, ...): (blocks, ...)."""
        return tensor if self.partitions is None else tensor.index_select(0, self.partitions)

    def back(self, rows: Tensor) -> Tensor:
        """The rows (K, W) of (blocks, size, W) in the order of the kept tokens."""
        flat = rows.flatten(0, 1)
        return flat.index_select(0, self.places.clamp(max=flat.shape[0] - 1))


def by_partition(rows: Tensor, kept: Selection, T: int, most: int) -> Room:
    """Rows (K, W) of kept tokens, partition by partition.

    T tokens a partition, of which none keeps more than `most`. Rows of index -1 lie nowhere.
    """
    K, P = rows.shape[0], kept.counts.shape[0]
    size, blocks = block_size(K, P, most)
    if blocks == P:
        firsts, partitions = torch.arange(P, device=rows.device), None
    else:
        needed = torch.div(kept.counts + size - 1, size, rounding_mode="floor").cumsum(0)
        firsts = torch.nn.functional.pad(needed[:-1], (1, 0))
        count = torch.arange(blocks, device=rows.device)
        partitions = torch.searchsorted(needed, count, right=True).clamp(max=P - 1)
    places = _places(kept, T, firsts, size).clamp(max=blocks * size)
    # A row past the last takes what belongs to no partition.
    room = rows.new_zeros(blocks * size + 1, rows.shape[-1]).index_copy(0, places, rows)
    return Room(room[:-1].view(blocks, size, rows.shape[-1]), places, partitions)


def block_size(K: int, P: int, most: int) -> tuple[int, int]:
    """Rows a block, and how many blocks there have to be: P of them where they are partitions."""
    most = max(1, min(most, K))
    # What partitions keep on average: fewer than 2 P blocks, and so many copies of keys and values.
    size = max(16, -(-K // max(1, P)))
    blocks = (K + P * (size - 1)) // size
    worth = blocks * (size + _ROWS_OF_A_COPY) < _WORTH * P * most
    return (size, blocks) if worth and blocks > P else (most, P)


def gather(hidden: Tensor, kept: Selection, prefix: int = 1) -> Tensor:
    """Rows (K, W) of hidden states (P, prefix + T, W); some row for one of index -1."""
    T = hidden.shape[1] - prefix
    return hidden.flatten(0, 1).index_select(0, _flat_rows(kept.indices, T, prefix))


def feature_columns(
    wanted: Sequence[int],
    states: Mapping[int, Tensor],
    kept: Selection,
    tokens: Tensor,
    prefix: int = 1,
) -> Tensor:
    """Kept tokens of all feature layers side by side: (K, n * D), those of the last as given.

    `wanted` are the numbers of the hidden states that are features, `states` those of them that lie
    before the last, each (P, prefix + T, D).
    """
    if len(wanted) == 1:
        return tokens
    parts = [
        gather(states[number].to(tokens.device), kept, prefix) if number in states else tokens
        for number in wanted
    ]
    return torch.cat(parts, dim=-1)


def _flat_rows(indices: Tensor, T: int, prefix: int) -> Tensor:
    """Rows of the flat (P * N, D) hidden states for indices p * T + t; a patch's for -1."""
    indices = indices.clamp(min=0)
    if prefix == 0:
        return indices
    return (torch.div(indices, T, rounding_mode="floor") + 1) * prefix + indices


def _places(kept: Selection, T: int, firsts: Tensor, size: int) -> Tensor:
    """A place of its own for each kept token: row r of partition p lies at `firsts[p] * size + r`.

    The largest integer for a row of index -1. Raster order mixes partitions, so a token's rank
    among those of its own comes from a stable sort.
    """
    P, K = kept.counts.shape[0], kept.indices.shape[0]
    empty = kept.indices < 0
    partition = torch.div(kept.indices, T, rounding_mode="floor").masked_fill(empty, P)
    order = partition.argsort(stable=True)
    ranks = torch.empty_like(order).scatter_(0, order, torch.arange(K, device=order.device))
    first = kept.counts.cumsum(0) - kept.counts
    in_bounds = partition.clamp(max=P - 1)
    ranks = ranks - first.index_select(0, in_bounds)
    places = firsts.index_select(0, in_bounds) * size + ranks
    return places.masked_fill(empty, torch.iinfo(places.dtype).max)
