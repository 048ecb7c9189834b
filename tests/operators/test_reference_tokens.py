# SPDX-License-Identifier: Apache-2.0
"""The oracle by hand, on what a token, a judge and a picture may be beyond LLaVA-NeXT.

Blocks of patches that are one token, means over queries, pictures whose partitions are pooled. The
other rules are in test_reference.py, and what holds for every input in
test_reference_invariants.py.
"""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from callers import reference as oracle
from cls_attention_calls import close, composed, seeded_attention_call
from strategies import same, seeded_qk_call
from torch import Tensor

from hired_kernels import reference

NAN, INF = math.nan, math.inf


# Blocks of patches.


@pytest.mark.parametrize(
    ("scores", "merge", "expected"),
    [
        pytest.param(range(16), 1, list(range(16)), id="none"),
        pytest.param(range(16), 2, [10, 18, 42, 50], id="quarters"),
        pytest.param(range(16), 4, [120], id="all-in-one"),
        pytest.param(range(36), 3, [63, 90, 225, 252], id="nine"),
        # In float32: 1e8 + 1 is 1e8.
        pytest.param([1e8, 1, -1e8, 1], 2, [1], id="raster-order"),
        pytest.param([1e8, -1e8, 1, 1], 2, [2], id="raster-order-again"),
        pytest.param([1e8, 1, 0, 0, -1e8, 1, 0, 0] + [0] * 8, 2, [1, 0, 0, 0], id="row-by-row"),
        pytest.param([0, NAN, 2, 3], 2, [NAN], id="nan"),
        pytest.param([0, INF, 2, 3], 2, [INF], id="inf"),
        pytest.param([0, INF, -INF, 3], 2, [NAN], id="inf-and-minus-inf"),
        pytest.param([3e38, 3e38, -INF, 3], 2, [NAN], id="overflow-and-minus-inf"),
    ],
)
def test_block_sums(scores: list[float], merge: int, expected: list[float]) -> None:
    sums = reference.block_sums(torch.tensor(list(scores)).float(), merge)
    assert torch.equal(sums.nan_to_num(7e37), torch.tensor(expected).float().nan_to_num(7e37))


def test_block_sums_are_as_wide_as_scores() -> None:
    scores = torch.tensor([1e8, 1, -1e8, 1], dtype=torch.float64)
    assert reference.block_sums(scores, 2).tolist() == [2.0]


def spread(sums: list[float], corner: int) -> list[float]:
    """Scores of 16 patches whose 2 x 2 blocks come to these sums. One patch of each block has more
    than all of it, so that whoever looks at patches goes wrong."""
    scores = [0.0] * 16
    for m, value in enumerate(sums):
        first = m // 2 * 8 + m % 2 * 2
        scores[first + (0, 1, 4, 5)[corner]] = value + 9 * (5 - value)
        scores[first + (5, 4, 1, 0)[corner]] = -9 * (5 - value)
    return scores


FIRST = [4.0, 1, 3, 2]  # the two best tokens, those of the left column, show the first sub-image
FINAL = [[1.0, 4, 3, 2], [5.0, 1, 9, 5], [9.0, 9, 9, 9]]


@pytest.mark.parametrize("corner", range(4))
@pytest.mark.parametrize(
    ("order", "crop", "indices"),
    [
        # 6 tokens: 3 to the full image, 3 to the first sub-image.
        ("raster", None, [1, 2, 3, 4, 6, 7]),
        ("partition", None, [1, 2, 3, 4, 6, 7]),
        ("full_last", None, [4, 6, 7, 1, 2, 3]),
        # Of the first sub-image the lower right token is picture, of the second the lower row.
        ("raster", (1, 2, 1, 4), [1, 2, 3, 7, 10, 11]),
        ("full_last", (0, 2, 1, 2), [5, 7, 0, 1, 2, 3]),
    ],
)
def test_a_merged_picture_by_hand(order: str, crop, indices: list[int], corner: int) -> None:
    attn_init = torch.full((3, 1, 16), NAN)
    attn_init[0, 0] = torch.tensor(spread(FIRST, corner))
    attn_final = torch.tensor([spread(sums, corner) for sums in FINAL])[:, None]
    features = torch.arange(48.0).view(3, 16, 1)
    tokens, kept, counts = reference.select(
        features, attn_init, attn_final, [1, 2], [6], crops=crop, order=order, merge=2
    )
    assert kept.tolist() == indices
    assert counts.tolist() == [sum(i // 4 == p for i in indices) for p in range(3)]
    blocks = [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    assert tokens.tolist() == [[i // 4 * 16 + t for t in blocks[i % 4]] for i in indices]


def test_the_patches_of_a_token_lie_side_by_side() -> None:
    scores = torch.zeros(1, 1, 4)
    features = torch.arange(12.0).view(1, 4, 3)
    tokens, indices, _ = reference.select(features, scores, scores, [0, 0], [9], merge=2)
    assert indices.tolist() == [0]
    assert tokens.tolist() == [list(range(12))]


def test_raster_order_is_of_tokens() -> None:
    scores = torch.zeros(5, 1, 16)
    rest = ([2, 2], [99])
    _, indices, _ = reference.select(torch.zeros(5, 16, 1), scores, scores, *rest, merge=2)
    rows = [0, 1, 2, 3], [4, 5, 8, 9], [6, 7, 10, 11], [12, 13, 16, 17], [14, 15, 18, 19]
    assert indices.view(5, 4).tolist() == list(rows)


# Pooled pictures.

# Best first: 4; 1, 6, 8, 10, which tie; 2; 3; 0, 5, which tie; 11; 9; 7.
POOL = [[1.0, 4, 3, 2], [5.0, 1, 4, NAN], [4.0, -INF, 4, -0.0]]
BEST = [4, 1, 6, 8, 10, 2, 3, 0, 5, 11, 9, 7]


def pooled(scores: list[list[float]], grids: list[int], budgets: list[int], **rules: object):
    """Indices and counts, of scores of a single head; the initial layer is never read."""
    attention = torch.tensor(scores)[:, None]
    P, T = len(scores), len(scores[0])
    features = torch.arange(1.0, P * T + 1).view(P, T, 1)
    rules = {"order": "partition", "policy": "pooled", **rules}
    tokens, indices, counts = reference.select(
        features, torch.full_like(attention, NAN), attention, grids, budgets, **rules
    )
    if rules.get("merge", 1) == 1:
        assert tokens.flatten().tolist() == [i + 1 for i in indices.tolist()]
    return indices.tolist(), counts.tolist()


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("budget", [*range(14), 2**62])
def test_the_best_of_all_partitions(budget: int, alpha: float) -> None:
    indices, counts = pooled(POOL, [1, 2], [budget], alpha=alpha)
    assert indices == sorted(BEST[:budget])
    assert counts == [sum(i // 4 == p for i in BEST[:budget]) for p in range(3)]


@pytest.mark.parametrize(
    ("budget", "crop", "order", "indices"),
    [
        # Only the upper row is picture: 0 to 3, 4, 5, 8 and 9.
        (3, (0, 1, 0, 4), "partition", [1, 4, 8]),
        (7, (0, 1, 0, 4), "partition", [0, 1, 2, 3, 4, 5, 8]),
        (99, (0, 1, 0, 4), "raster", [0, 1, 2, 3, 4, 5, 8, 9]),
        (4, (0, 2, 1, 3), "full_last", [8, 10, 1, 2]),  # 5, 7, 8 and 10
        (2, (2, 2, 0, 4), "partition", [1, 2]),
        (99, (2, 2, 0, 4), "partition", [0, 1, 2, 3]),
        (5, None, "full_last", [4, 6, 8, 10, 1]),
        (5, None, "raster", [1, 4, 8, 6, 10]),
    ],
)
def test_a_pooled_picture_by_hand(budget: int, crop, order: str, indices: list[int]) -> None:
    counts = [sum(i // 4 == p for i in indices) for p in range(3)]
    assert pooled(POOL, [1, 2], [budget], crops=crop, order=order) == (indices, counts)


def test_pictures_have_pools_of_their_own() -> None:
    grids = [0, 0, 1, 1, 0, 0]
    scores = [[9.0, 9, 9, 9], [1.0, 2, 3, 4], [4.0, 3, 2, 1], [0.0, 0, 0, 0]]
    assert pooled(scores, grids, [1, 3, 2]) == ([0, 6, 7, 8, 12, 13], [1, 2, 1, 2])
    assert pooled(scores, grids, [0, 0, 9]) == ([12, 13, 14, 15], [0, 0, 0, 4])


def test_a_pool_needs_no_square() -> None:
    scores = [[1.0, 5, 3], [3.0, 4, 0], [3.0, 3, 9]]
    assert pooled(scores, [2, 1], [5]) == ([1, 2, 3, 4, 8], [2, 2, 1])
    assert pooled(scores, [2, 1], [5], order="full_last") == ([3, 4, 8, 1, 2], [2, 2, 1])
    assert pooled(scores, [2, 1], [99]) == (list(range(9)), [3, 3, 3])


def test_a_pool_of_merged_tokens() -> None:
    for corner in range(4):
        scores = [spread(sums, corner) for sums in FINAL]
        assert pooled(scores, [1, 2], [6], merge=2) == ([4, 6, 8, 9, 10, 11], [0, 2, 4])
        crop = (0, 1, 0, 4)  # 4, 5, 8 and 9
        assert pooled(scores, [1, 2], [4], merge=2, crops=crop) == ([1, 4, 8, 9], [1, 1, 2])


# Means over queries.


def test_a_mean_of_queries_by_hand() -> None:
    # Logits 0, ln 2, ln 4: softmax 1/7, 2/7, 4/7; the other query has it in reverse, and a head
    # that looks at nothing has thirds.
    key = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64).log().view(3, 1, 1).expand(3, 2, 1)
    query = torch.tensor([[1.0, 0], [-1.0, 0]], dtype=torch.float64)[:, :, None]
    rows = reference.cls_row(query, key, 1.0, tokens=3)
    assert rows.dtype == torch.float64
    assert rows[0].tolist() == pytest.approx([5 / 14, 2 / 7, 5 / 14], rel=1e-14)
    assert rows[1].tolist() == pytest.approx([1 / 3] * 3, rel=1e-14)
    scores = reference.cls_scores(query, key, 1.0, tokens=2)
    assert scores.tolist() == pytest.approx([2 / 7 + 1 / 3, 5 / 14 + 1 / 3], rel=1e-14)
    assert reference.cls_scores(query[:1], key, 2.0, tokens=3).tolist() == pytest.approx(
        [1 / 21 + 1 / 3, 4 / 21 + 1 / 3, 16 / 21 + 1 / 3], rel=1e-14
    )


def test_one_query_has_the_bits_of_no_dimension() -> None:
    call = seeded_attention_call(1)
    rows = reference.cls_attention(**call)
    assert torch.equal(reference.cls_attention(**{**call, "query": call["query"][:, None]}), rows)


@pytest.mark.parametrize("Q", [1, 2, 63, 64, 65, 200])
def test_a_mean_is_pytorchs(Q: int) -> None:
    call = seeded_attention_call(2, N=21, Q=Q)
    query, key = (call[name].double().transpose(1, 2) for name in ("query", "key"))
    every = torch.eye(21, dtype=torch.float64).expand(*key.shape[:2], 21, 21)
    rows = F.scaled_dot_product_attention(query, key, every).mean(2)
    assert close(reference.cls_attention(**call), rows[..., -16:], 1e-7)


def test_equal_tokens_tie_whoever_judges() -> None:
    call = seeded_attention_call(3, N=37, T=37, Q=33, H=2)
    call["key"] = call["key"][:, :1].expand(-1, 37, -1, -1)
    rows = reference.cls_attention(**call)
    assert torch.equal(rows, rows[..., :1].expand_as(rows))


def test_a_query_that_is_nan_makes_its_head_nan() -> None:
    call = seeded_attention_call(4, Q=70)
    call["query"][1, 69, 2] = NAN
    rows = reference.cls_attention(**call)
    assert rows.isnan().nonzero()[:, :2].unique(dim=0).tolist() == [[1, 2]]


def judged(query: Tensor, key: Tensor, T: int) -> Tensor:
    """(P, H, T): by the book, all at once."""
    logits = torch.einsum("pqhd,pnhd->phqn", query.double(), key.double()) / query.shape[-1] ** 0.5
    return logits.softmax(-1).mean(2)[..., -T:].float()


@pytest.mark.parametrize("merge", [1, 2])
def test_layers_have_queries_of_their_own(merge: int) -> None:
    generator = torch.manual_seed(1)
    P, N, T, H, Dh = 8, 19, 16, 3, 5
    q0, q1 = (torch.randn(P, Q, H, Dh, generator=generator) for Q in (3, 7))
    k0, k1 = (torch.randn(P, N, H, Dh, generator=generator) for _ in range(2))
    features, rest = torch.arange(128.0).view(P, T, 1), ([2, 2, 1, 2], [9, 5])
    rows = (judged(q0, k0, T), judged(q1, k1, T))
    expected = reference.select(features, *rows, *rest, merge=merge)
    full_images = torch.tensor([0, 5])
    for init in ((q0, k0), (q0[full_images], k0[full_images])):
        kept = reference.select_qk(features, *init, q1, k1, *rest, merge=merge)
        assert all(map(torch.equal, kept, expected))
    rows = (judged(q0[:, :1], k0, T), judged(q1[:, 1::4], k1, T))
    expected = reference.select(features, *rows, *rest, merge=merge)
    kept = reference.select_qk(features, q0[:, 0], k0, q1[:, 1::4], k1, *rest, merge=merge)
    assert all(map(torch.equal, kept, expected))


def test_attention_of_any_judges_composes_up_to_rounding() -> None:
    for seed in range(20):
        rules = {"merge": 1 + seed % 2, "policy": ("exact", "pooled")[seed % 3 % 2]}
        call = seeded_qk_call(seed, Q=1 + seed % 5, **rules)
        assert same(composed(oracle, call), oracle("select_qk", **call))
