# SPDX-License-Identifier: Apache-2.0
"""Rows of kept tokens find their partition, and come back in their order."""

import pytest
import torch

from hired_kernels.models import kept_rows
from hired_kernels.ops import Selection


def selection(P: int, T: int, K: int, seed: int, empty: int = 0) -> Selection:
    """K of P * T tokens in no order, and `empty` rows of index -1 among them."""
    generator = torch.Generator().manual_seed(seed)
    indices = torch.randperm(P * T, generator=generator)[:K]
    counts = torch.bincount(indices // T, minlength=P)
    places = torch.randperm(K + empty, generator=generator)
    indices = torch.cat((indices, torch.full((empty,), -1)))[places]
    return Selection(indices[:, None].float(), indices, counts)


@pytest.mark.parametrize("empty", [0, 3])
@pytest.mark.parametrize(
    ("P", "T", "K"), [(5, 576, 576), (13, 256, 650), (1, 36, 9), (6, 36, 0), (40, 16, 33)]
)
@pytest.mark.parametrize("room", ["of most", "of all"])
def test_rows_lie_with_their_partition_and_come_back(P, T, K, empty, room):
    kept = selection(P, T, K, seed=K, empty=empty)
    most = T if room == "of all" else int(kept.counts.max())
    made = kept_rows.by_partition(kept.tokens, kept, T, most)
    blocks, size, _ = made.rows.shape
    # What a row attends to is that of its block.
    whose = made.of(torch.arange(P, dtype=torch.float32))
    assert whose.shape == (blocks,)
    back = made.back(whose[:, None, None].expand(blocks, size, 1))
    seen = kept.indices >= 0
    assert torch.equal(back[seen, 0].long(), kept.indices[seen] // T)
    assert torch.equal(made.back(made.rows)[seen], kept.tokens[seen])
    assert len(made.places[seen].unique()) == K


def test_pooled_selections_are_no_room_of_everything():
    """Where any partition may keep most tokens, there is room for about K rows, not for P * K."""
    for P, K in ((5, 576), (13, 2662), (13, 13312)):
        size, blocks = kept_rows.block_size(K, P, most=min(K, 1024))
        assert size * blocks <= 2 * (K + P)
        assert blocks < 2 * P
    assert kept_rows.block_size(576, 5, 576) == (116, 9)
    assert kept_rows.block_size(576, 5, 288) == (288, 5)  # exact, as LLaVA-NeXT has it
    assert kept_rows.block_size(0, 3, 9) == (1, 3)
