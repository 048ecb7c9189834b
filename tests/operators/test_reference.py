# SPDX-License-Identifier: Apache-2.0
"""The oracle against the published code's recorded selections, and rule by rule by hand.

Hand-worked cases use side 2 or 4, so that every expected number can be checked on paper. Merged
tokens, pooled pictures and means over queries are in test_reference_tokens.py, and what holds for
every input is in test_reference_invariants.py.
"""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from callers import reference as oracle
from cls_attention_calls import close, composed, seeded_attention_call
from strategies import same, seeded_qk_call
from vectors import SIDE, Case, cases, published_call

from hired_kernels import geometry, reference
from hired_kernels.reference import Picture

NAN, INF = math.nan, math.inf
RECORDED = [case for case in cases() if case.crash is None]
CRASHED = [case for case in cases() if case.crash is not None]
by_id = {"ids": lambda case: case.id}


def flat(values: list[tuple[int, ...]]) -> list[int]:
    return [value for entry in values for value in entry]


def identity(P: int, T: int) -> torch.Tensor:
    """Features [P, T, 1] that say where they come from: 1 + p * T + t."""
    return torch.arange(1.0, P * T + 1).view(P, T, 1)


# The published code.


def published(case: Case, grids: list[tuple[int, int]], **rules: object):
    return reference.select(**published_call(case, grids, **rules))


@pytest.mark.parametrize("case", RECORDED, **by_id)
def test_published_keeps_the_recorded_tokens(case: Case) -> None:
    _, indices, counts = published(case, case.grids, order="partition")
    assert indices[indices >= 0].tolist() == case.mask.reshape(-1).nonzero()[0].tolist()
    assert counts.tolist() == case.counts


@pytest.mark.parametrize("case", RECORDED, **by_id)
def test_published_packs_in_the_recorded_order(case: Case) -> None:
    grids = [(C, R) for R, C in case.grids]
    sizes = zip(case.sizes, grids, strict=True)
    crops = flat([geometry.unpad_crop(*size, grid, SIDE) for size, grid in sizes])
    _, indices, counts = published(case, grids, crops=crops)
    assert indices[indices >= 0].tolist() == case.order.tolist()
    lengths = [c.sum().item() for c in counts.split(case.num_partitions)]
    assert lengths == case.feature_lens


@pytest.mark.parametrize("case", CRASHED, **by_id)
def test_what_crashed_is_an_error(case: Case) -> None:
    with pytest.raises(RuntimeError, match=r"^hired::select: alpha: expected int\(T \* "):
        published(case, case.grids)


# Scores.


def test_heads_are_summed_in_ascending_order() -> None:
    assert reference.head_sums(torch.tensor([[1e8], [1.0], [-1e8]])).tolist() == [0.0]
    assert reference.head_sums(torch.tensor([[1e8], [-1e8], [1.0]])).tolist() == [1.0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_heads_are_widened_before_they_are_summed(dtype: torch.dtype) -> None:
    sums = reference.head_sums(torch.tensor([[2048.0], [1.0]], dtype=dtype))
    assert sums.dtype == torch.float32
    assert sums.tolist() == [2049.0]


def test_cls_scores_by_hand() -> None:
    # Logits 0, ln 2, ln 4: softmax 1/7, 2/7, 4/7; the other head has it in reverse.
    key = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64).log().view(3, 1, 1).expand(3, 2, 1)
    query = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    scores = reference.cls_scores(query, key, 1.0, tokens=2)
    assert scores.dtype == torch.float64
    assert scores.tolist() == pytest.approx([4 / 7, 5 / 7], rel=1e-14)
    scores = reference.cls_scores(query[:1], key[:, :1], 2.0, tokens=3)
    assert scores.tolist() == pytest.approx([1 / 21, 4 / 21, 16 / 21], rel=1e-14)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([1.0, 3.0, 2.0], [1, 2, 0]),
        ([5.0], [0]),
        ([1.0, 2.0, 1.0, 2.0], [1, 3, 0, 2]),
        ([-0.0, 0.0, -0.0, 1.0], [3, 0, 1, 2]),
        ([NAN, -INF, INF, NAN, 0.0], [2, 4, 1, 0, 3]),
        ([math.copysign(NAN, -1), NAN, -1.0], [2, 0, 1]),
        ([-1e-45, 0.0, 1e-45], [2, 1, 0]),
    ],
)
def test_rank(scores: list[float], expected: list[int]) -> None:
    assert reference.rank(torch.tensor(scores)) == expected


# Regions, runs and capacities.


@pytest.mark.parametrize(
    ("R", "C", "side", "crop", "rows"),
    [
        pytest.param(2, 2, 4, None, ["0011", "0011", "2233", "2233"], id="quarters"),
        pytest.param(1, 3, 4, None, ["0112"] * 4, id="patches-wider-than-a-third"),
        pytest.param(2, 1, 3, None, ["000", "111", "111"], id="centre-on-the-border"),
        pytest.param(2, 2, 4, (2, 6, 0, 8), ["0011", "0011", "2233", "2233"], id="letterbox"),
        pytest.param(2, 2, 4, (0, 5, 3, 8), ["0111", "0111", "0111", "2333"], id="lopsided"),
        pytest.param(2, 2, 4, (0, 4, 0, 8), ["0011"] * 4, id="upper-half"),
        pytest.param(2, 2, 4, (8, 8, 8, 8), ["3333"] * 4, id="empty-at-the-end"),
        pytest.param(2, 3, 1, None, ["4"], id="one-patch"),
    ],
)
def test_regions(R: int, C: int, side: int, crop: reference.Crop | None, rows: list[str]) -> None:
    regions = reference.region_of_patches(R, C, side * side, crop)
    assert regions == [int(region) for region in "".join(rows)]


def test_runs() -> None:
    assert reference.run_of_patches(2, 2, 16) == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4
    assert reference.run_of_patches(3, 1, 9) == [0] * 3 + [1] * 3 + [2] * 3


def test_valid_patches() -> None:
    # Rows 1 to 3 and columns 0 to 2 of a 4 x 4 grid of patches.
    valid = reference.valid_patches(Picture(0, 2, 2, 0, (1, 4, 0, 3)), 4)
    assert [sorted(patches) for patches in valid] == [
        [0, 1, 2, 3],
        [2, 3],
        [2],
        [0, 1, 2, 3],
        [0, 2],
    ]


# Budgets.


@pytest.mark.parametrize(
    ("rest", "weights", "capacities", "expected"),
    [
        pytest.param(7, [3, 2, 2], [9] * 3, [3, 2, 2], id="exact"),
        pytest.param(10, [1, 1, 1], [10] * 3, [4, 3, 3], id="tie-to-the-lower-index"),
        pytest.param(5, [1, 2, 3], [9] * 3, [1, 2, 2], id="largest-remainders"),
        pytest.param(9, [1, 2, 4], [9] * 3, [1, 3, 5], id="not-the-first"),
        pytest.param(10, [8, 1, 1], [4, 9, 9], [4, 3, 3], id="overflow"),
        pytest.param(12, [6, 5, 1], [2, 3, 20], [2, 3, 7], id="two-at-once"),
        pytest.param(12, [6, 3, 3], [2, 4, 20], [2, 4, 6], id="second-round"),
        pytest.param(3, [1, 1], [1, 5], [1, 2], id="left-over-overflows"),
        pytest.param(1, [1, 1], [0, 5], [0, 1], id="no-capacity"),
        pytest.param(3, [1, 1, 3], [1, 1, 3], [1, 0, 2], id="at-capacity-is-not-over"),
        pytest.param(6, [0, 0, 0], [2, 4, 6], [1, 2, 3], id="no-weights"),
        pytest.param(6, [1, 0, 0], [2, 4, 8], [2, 1, 3], id="no-weights-left"),
        pytest.param(4, [2, 0], [9, 9], [4, 0], id="no-weight-no-share"),
        pytest.param(2, [1, 0, 0], [2, 4, 8], [2, 0, 0], id="nothing-left"),
        pytest.param(0, [1, 2], [3, 3], [0, 0], id="nothing-to-share"),
        pytest.param(0, [0, 0], [0, 0], [0, 0], id="nothing-at-all"),
        pytest.param(2**62, [1, 2], [2**62] * 2, [2**62 // 3, 2**63 // 3 + 1], id="2^62"),
        pytest.param(2**62, [2**62, 2**62], [5, 2**62], [5, 2**62 - 5], id="2^62-overflow"),
    ],
)
def test_share_out(
    rest: int, weights: list[int], capacities: list[int], expected: list[int]
) -> None:
    assert reference.share_out(rest, weights, capacities) == expected


@pytest.mark.parametrize(
    ("picture", "alpha", "expected"),
    [
        # The 8 best patches, 0 to 7, lie in the two upper sub-images; 4 in each.
        pytest.param(Picture(0, 2, 2, 10, None), 0.5, [5, 3, 2, 0, 0], id="regions"),
        pytest.param(Picture(0, 2, 2, 60, None), 0.9, [16, 16, 10, 9, 9], id="k0-at-most-T"),
        pytest.param(Picture(0, 2, 2, 80, None), 0.5, [16] * 5, id="all"),
        pytest.param(Picture(0, 2, 2, 2**62, None), 0.5, [16] * 5, id="2^62"),
        pytest.param(Picture(0, 2, 2, 0, None), 0.5, [0] * 5, id="none"),
        pytest.param(Picture(0, 2, 2, 10, None), 0.0, [0, 3, 3, 2, 2], id="alpha-0"),
        pytest.param(Picture(0, 2, 2, 10, None), 1.0, [10, 0, 0, 0, 0], id="alpha-1"),
        pytest.param(Picture(0, 2, 2, 21, None), 1.0, [16, 2, 1, 1, 1], id="alpha-1-overflow"),
        pytest.param(Picture(0, 2, 2, 12, (3, 5, 3, 5)), 0.5, [8, 1, 1, 1, 1], id="k0-raised"),
        pytest.param(Picture(0, 2, 2, 99, (0, 1, 0, 1)), 0.5, [16, 1, 0, 0, 0], id="capacity"),
        pytest.param(Picture(0, 2, 2, 10, (8, 8, 0, 8)), 0.5, [10, 0, 0, 0, 0], id="empty-crop"),
        pytest.param(Picture(0, 0, 0, 10, None), 0.5, [10], id="no-sub-images"),
        pytest.param(Picture(0, 0, 0, 2**62, None), 0.0, [16], id="no-sub-images-2^62"),
    ],
)
def test_exact_budgets(picture: Picture, alpha: float, expected: list[int]) -> None:
    capacities = [len(patches) for patches in reference.valid_patches(picture, 16)]
    assert reference.exact_budgets(picture, capacities, alpha, range(16)) == expected


def test_products_with_alpha_are_truncated_doubles() -> None:
    # 100 * 0.29 is 28.999999999999996, and 100 * (1 - 0.9) is 9.999999999999998.
    picture = Picture(0, 1, 1, 100, None)
    assert reference.exact_budgets(picture, [100, 100], 0.29, range(100)) == [28, 72]
    assert reference.published_budgets(picture, 100, 0.29, range(100)) == [28, 72]
    assert reference.weigh(range(100), 0.9, [0] * 100, 1) == [9]


@pytest.mark.parametrize(
    ("sub", "weights", "T", "expected"),
    [
        pytest.param(10, [1, 1, 1], 16, [3, 3, 3], id="remainder-is-lost"),
        pytest.param(108, [7, 5], 576, [62, 45], id="quotient-rounded-down"),  # 7 / 12 * 108 = 63
        pytest.param(90, [7, 3], 576, [63, 27], id="product-rounded-up"),  # in doubles: 62, 27
        pytest.param(40, [3, 1], 16, [16, 10], id="at-most-T"),
        pytest.param(0, [0, 0], 16, [0, 0], id="no-weights"),
        # float32(2^24 + 3) is 2^24 + 4.
        pytest.param(2**24 + 3, [1, 0], 2**30, [2**24 + 3, 0], id="never-more-than-sub"),
    ],
)
def test_published_shares(sub: int, weights: list[int], T: int, expected: list[int]) -> None:
    assert reference.published_shares(sub, weights, T) == expected


@pytest.mark.parametrize(
    ("picture", "alpha", "expected"),
    [
        # The 8 best patches, 0 to 7, fill the first two runs.
        pytest.param(Picture(0, 2, 2, 10, None), 0.5, [5, 2, 2, 0, 0], id="runs"),
        pytest.param(Picture(0, 2, 2, 10, (8, 8, 8, 8)), 0.5, [5, 2, 2, 0, 0], id="no-crop"),
        pytest.param(Picture(0, 2, 2, 60, None), 0.5, [16, 16, 16, 0, 0], id="at-most-T"),
        pytest.param(Picture(0, 2, 2, 2**62, None), 0.5, [16, 16, 16, 0, 0], id="2^62"),
        pytest.param(Picture(0, 2, 2, 16, None), 1.0, [16, 0, 0, 0, 0], id="alpha-1"),
        pytest.param(Picture(0, 0, 0, 10, None), 0.5, [10], id="no-sub-images"),
        pytest.param(Picture(0, 0, 0, 2**62, None), 0.5, [16], id="no-sub-images-2^62"),
    ],
)
def test_published_budgets(picture: Picture, alpha: float, expected: list[int]) -> None:
    assert reference.published_budgets(picture, 16, alpha, range(16)) == expected


# Whole selections.

FIRST = [4.0, 3, 2, 1]  # of 4 patches 2 are counted: one in the first sub-image, one in the second
FINAL = [[1.0, 4, 3, 2], [5.0, 1, 9, 5], [7.0, 0, 0, 0], [9.0, 9, 9, 9], [9.0, 9, 9, 9]]


@pytest.mark.parametrize(
    ("policy", "order", "crop", "indices", "counts"),
    [
        # 6 tokens: 3 to the full image; shares 1.5 and 1.5 of the rest.
        ("exact", "partition", None, [1, 2, 3, 4, 6, 8], [3, 2, 1, 0, 0]),
        ("exact", "raster", None, [1, 2, 3, 4, 8, 6], [3, 2, 1, 0, 0]),
        ("exact", "full_last", None, [4, 6, 8, 1, 2, 3], [3, 2, 1, 0, 0]),
        # Only the upper row of patches is picture.
        ("exact", "raster", (0, 1, 0, 4), [1, 2, 3, 4, 5, 8], [3, 2, 1, 0, 0]),
        ("published", "partition", None, [1, 2, 3, 6, 8, -1], [3, 1, 1, 0, 0]),
        ("published", "raster", None, [1, 2, 3, 8, 6, -1], [3, 1, 1, 0, 0]),
        ("published", "raster", (0, 1, 0, 4), [1, 2, 3, 8, -1, -1], [3, 0, 1, 0, 0]),
        ("published", "full_last", (0, 1, 0, 4), [8, 1, 2, 3, -1, -1], [3, 0, 1, 0, 0]),
    ],
)
@pytest.mark.parametrize("rows_init", ["P", "B"])
def test_a_picture_by_hand(policy, order, crop, indices, counts, rows_init) -> None:
    attn_init = torch.full((5, 1, 4), NAN)  # of P rows only the full image's are read
    attn_init[0, 0] = torch.tensor(FIRST)
    kept = reference.select(
        identity(5, 4), attn_init[:1] if rows_init == "B" else attn_init,
        torch.tensor(FINAL)[:, None], [2, 2], [6], crops=crop, policy=policy, order=order,
    )  # fmt: skip
    assert kept[1].tolist() == indices
    assert kept[0][:, 0].tolist() == [i + 1 for i in indices]  # 0 where the index is -1
    assert kept[2].tolist() == counts
    assert kept[1].dtype == kept[2].dtype == torch.int64


@pytest.mark.parametrize(
    ("R", "C", "expected"),
    [
        (2, 2, [4, 5, 8, 9, 6, 7, 10, 11, 12, 13, 16, 17, 14, 15, 18, 19]),
        (1, 2, [4, 5, 8, 9, 6, 7, 10, 11]),
        (2, 1, [4, 5, 6, 7, 8, 9, 10, 11]),
    ],
)
def test_raster_order_by_hand(R: int, C: int, expected: list[int]) -> None:
    P, scores = 1 + R * C, torch.zeros(1 + R * C, 1, 4)
    _, indices, _ = reference.select(identity(P, 4), scores, scores, [R, C], [99])
    assert indices.tolist() == [0, 1, 2, 3, *expected]


def test_a_ragged_batch() -> None:
    # Two pictures with sub-images, one without between them; P = 7.
    attn_init = torch.full((7, 1, 4), NAN)
    attn_init[0, 0] = torch.tensor([1.0, 0, 1, 0])
    attn_init[4, 0] = torch.tensor([0.0, 1, 0, 1])
    attn_final = torch.arange(28.0).view(7, 1, 4)
    grids, budgets = [1, 2, 0, 0, 1, 2], [4, 1, 4]
    crops = [0, 2, 0, 4, -5, 2**62, 9, 3, 0, 2, 1, 4]
    for rows in (list(range(7)), [0, 3, 4]):
        _, indices, counts = reference.select(
            identity(7, 4), attn_init[rows], attn_final, grids, budgets, crops=crops
        )
        # Both patches counted show the first sub-image, then the second.
        assert indices.tolist() == [2, 3, 6, 7, 15, 18, 19, 26, 27]
        assert counts.tolist() == [2, 2, 0, 1, 2, 0, 2]


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]
)
def test_features_keep_their_dtype(dtype: torch.dtype) -> None:
    features = torch.randn(5, 5, 8, generator=torch.manual_seed(0)).to(dtype)[:, 1:, 2:]
    scores = torch.tensor(FINAL)[:, None]
    tokens, indices, _ = reference.select(features, scores, scores, [2, 2], [6], policy="published")
    assert tokens.dtype == dtype
    assert indices[-1] == -1
    expected = features.double().reshape(20, 6)[indices]
    expected[indices < 0] = 0
    assert torch.equal(tokens.double(), expected)


def test_gradient_goes_back_to_the_kept_rows() -> None:
    features = torch.zeros(5, 4, 2, requires_grad=True)
    scores = torch.tensor(FINAL)[:, None]
    tokens, indices, _ = reference.select(features, scores, scores, [2, 2], [6], policy="published")
    tokens.backward(torch.arange(1.0, 7.0)[:, None].expand(6, 2))
    expected = torch.zeros(20, 2)
    for row, index in enumerate(indices.tolist()):
        if index >= 0:
            expected[index] = row + 1
    assert torch.equal(features.grad.view(20, 2), expected)


def test_select_qk_reads_the_attention_that_it_computes() -> None:
    generator = torch.manual_seed(1)
    P, N, T, H, Dh = 8, 19, 16, 3, 5
    q0, q1 = (torch.randn(P, H, Dh, generator=generator) for _ in range(2))
    k0, k1 = (torch.randn(P, N, H, Dh, generator=generator) for _ in range(2))
    rest = ([2, 2, 1, 2], [20, 12])
    for given_scale, scale in ((None, Dh**-0.5), (0.25, 0.25)):
        attn_init, attn_final = (
            torch.softmax((q[:, None] * k).sum(-1).mul(scale), dim=1).mT[..., -T:]
            for q, k in ((q0, k0), (q1, k1))
        )
        expected = reference.select(identity(P, T), attn_init, attn_final, *rest)
        full_images = torch.tensor([0, 5])
        for init in ((q0, k0), (q0[full_images], k0[full_images])):
            kept = reference.select_qk(identity(P, T), *init, q1, k1, *rest, scale=given_scale)
            assert all(map(torch.equal, kept, expected))


# Attention.


def test_attention_is_pytorchs() -> None:
    """Its product with values that pick one key each is the attention row."""
    call = seeded_attention_call(10, N=21)
    query, key = call["query"].double()[:, :, None], call["key"].double().transpose(1, 2)
    every = torch.eye(21, dtype=torch.float64).expand(*key.shape[:2], 21, 21)
    rows = F.scaled_dot_product_attention(query, key, every)[:, :, 0]
    assert close(reference.cls_attention(**call), rows[..., -16:], 1e-7)


def test_attention_composes_up_to_rounding() -> None:
    for seed in range(20):
        call = seeded_qk_call(seed)
        assert same(composed(oracle, call), oracle("select_qk", **call))
