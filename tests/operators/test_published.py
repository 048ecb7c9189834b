# SPDX-License-Identifier: Apache-2.0
"""The published method as published agrees with what its code was recorded to select.

Masks are compared before padding is cut away, and the published packing after; where the recorded
code crashed, ours raises. The attention rows are compared with a softmax of the CLS row alone.
"""

import pytest
import torch
from vectors import SIDE, T, cases

from hired_kernels import published

FINE = [case for case in cases() if case.crash is None]
CRASHING = [case for case in cases() if case.crash is not None]


def kept_mask(case):
    budgets = [published.token_budget(P, T, case.rate) for P in case.num_partitions]
    rows = torch.from_numpy(case.attn_init), torch.from_numpy(case.attn_final)
    return published.kept_mask(*rows, case.num_partitions, budgets, case.alpha)


def test_every_recorded_case_is_here():
    assert len(FINE) == 111
    assert len(CRASHING) == 9


@pytest.mark.parametrize("case", FINE, ids=lambda case: case.id)
def test_keeps_and_packs_what_was_recorded(case):
    mask = kept_mask(case)
    torch.testing.assert_close(mask, torch.from_numpy(case.mask))
    assert mask.sum(dim=1).tolist() == case.counts

    flat = torch.arange(mask.numel()).view(-1, T, 1)
    tokens, lengths = published.gather(flat, mask, case.grids, case.sizes)
    torch.testing.assert_close(tokens[:, 0], torch.from_numpy(case.order))
    assert lengths == case.feature_lens


@pytest.mark.parametrize("case", CRASHING, ids=lambda case: case.id)
def test_raises_where_the_published_code_crashed(case):
    with pytest.raises(ValueError, match=r"published: alpha: expected int\(T \* \(1 - alpha\)\)"):
        kept_mask(case)


@pytest.mark.parametrize("scale", [None, 0.3])
def test_attention_rows_are_the_cls_rows(scale):
    generator = torch.Generator().manual_seed(1)
    queries, keys = torch.randn(2, 2, 10, 3, 8, generator=generator)
    rows = published.attention_rows(queries, keys, 9, scale)
    logits = torch.einsum("phd,pnhd->phn", queries[:, 0], keys) * (scale or 8**-0.5)
    torch.testing.assert_close(rows, logits.softmax(dim=-1)[:, :, 1:])


def test_select_is_all_stages_in_turn():
    generator = torch.Generator().manual_seed(2)
    features = torch.randn(5, T, 4, generator=generator)
    queries_init, keys_init, queries_final, keys_final = torch.randn(
        4, 5, T + 1, 2, 8, generator=generator
    )
    kept = published.select(
        features,
        queries_init,
        keys_init,
        queries_final,
        keys_final,
        grids=[(2, 2)],
        sizes=[(672, 672)],
        rate=0.1,
        alpha=0.25,
    )
    budget = int(5 * T * 0.1)
    assert int(budget * 0.25) == kept.mask[0].sum()
    assert kept.mask.sum() <= budget
    assert kept.lengths == [len(kept.tokens)] == [int(kept.mask.sum())]
    torch.testing.assert_close(kept.tokens[: kept.mask[0].sum()], features[0][kept.mask[0]])


def test_a_picture_without_sub_images_keeps_its_budget():
    attention = torch.rand(1, 2, SIDE * SIDE, generator=torch.Generator().manual_seed(3))
    assert published.kept_mask(attention, attention, [1], [57], 0.5).sum() == 57
    assert published.kept_mask(attention, attention, [1], [T + 1], 0.5).sum() == T


def test_runs_must_divide_the_map():
    attention = torch.rand(6, 2, T)
    with pytest.raises(ValueError, match="published: partitions: expected sub-images to divide"):
        published.kept_mask(attention, attention, [6], [100], 0.5)
