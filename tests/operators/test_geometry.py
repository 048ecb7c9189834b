# SPDX-License-Identifier: Apache-2.0
"""`hired_kernels.geometry` against transformers, against the recorded vectors, and its own rules.

A seeded sweep over picture sizes compares grids, crops and token counts with the functions that
LLaVA-NeXT itself uses; the recorded vectors pin the published budgets and the published packing.
"""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from blocks import blocks
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from transformers import LlavaNextProcessor
from transformers.models.llava_next import modeling_llava_next as llava_next
from vectors import SIDE, Case, T, cases, packed

from hired_kernels import arguments, geometry
from hired_kernels.geometry import Layout, kept_tokens, layout, resolve_budgets

UP_TO_SIX = [(336 * r, 336 * c) for r in range(1, 7) for c in range(1, 7) if r * c <= 6]
UP_TO_NINE = [(384 * r, 384 * c) for c in (1, 2, 3) for r in (3, 2, 1)]
MODELS = {
    "llava-next": {},
    "up-to-six-tiles": {"pinpoints": UP_TO_SIX},
    "odd-side": {"pinpoints": UP_TO_NINE, "tile": 384},
    "one-tile": {"pinpoints": [(336, 336)]},
}
RECORDED = [case for case in cases() if case.crash is None]


def _sizes() -> list[tuple[int, int]]:
    rng = np.random.default_rng(0)
    sizes = np.exp(rng.uniform(0, math.log(12000), (2000, 2))).astype(int).tolist()
    sizes += np.exp(rng.uniform(math.log(200), math.log(2400), (1000, 2))).astype(int).tolist()
    for long_side in (1, 2, 13, 14, 335, 336, 337, 672, 1008, 4031, 100_000, 10**7):
        sizes += [(s, long_side) for s in (1, 2, 7)] + [(long_side, s) for s in (1, 2, 7)]
    # Where two grids tie, and where a picture has its grid's shape up to a pixel.
    around = ((0, 0), (0, 1), (1, 0), (0, -1), (-1, 0))
    for rows, cols in [(r * k // 4, c * k // 4) for r, c in UP_TO_SIX for k in (1, 2, 4, 12)]:
        sizes += [(rows + dy, cols + dx) for dy, dx in around]
    # Where doubles fall just below a whole patch, and the rounding decides.
    return [tuple(size) for size in sizes] + [(55, 176), (176, 110), (47, 1128), (1128, 47)]


SIZES = _sizes()


def test_sweep_is_wide() -> None:
    assert len(SIZES) >= 3000
    layouts = [layout(*size) for size in SIZES]
    assert {picture.grid for picture in layouts} == {(1, 2), (2, 1), (2, 2), (3, 1), (1, 3)}
    assert any(picture.valid == picture.tokens for picture in layouts)
    assert any(picture.valid == picture.partitions * picture.tokens for picture in layouts)


@pytest.mark.parametrize("name", MODELS)
def test_sweep_matches_transformers(name: str) -> None:
    tile = MODELS[name].get("tile", 336)
    pinpoints = list(MODELS[name].get("pinpoints", geometry.LLAVA_NEXT_PINPOINTS))
    processor = object.__new__(LlavaNextProcessor)
    processor.image_processor = SimpleNamespace(image_grid_pinpoints=pinpoints)
    processor.patch_size, processor.num_additional_image_tokens = 14, 0
    for size in SIZES:
        picture = layout(*size, **MODELS[name])
        (R, C), side = picture.grid, picture.side
        assert side == tile // 14
        assert llava_next.select_best_resolution(size, pinpoints) == (R * tile, C * tile), size
        assert llava_next.get_anyres_image_grid_shape(size, pinpoints, tile) == (R, C), size
        assert llava_next.image_size_to_num_patches(size, pinpoints, tile) == picture.partitions

        top, bottom, left, right = picture.crop
        assert 0 <= top <= bottom <= R * side, size
        assert 0 <= left <= right <= C * side, size
        patches = torch.arange(R * C * side * side).view(1, R * side, C * side)
        unpadded = llava_next.unpad_image(patches, size)
        assert torch.equal(unpadded, patches[:, top:bottom, left:right]), size

        placeholders = processor._get_number_of_features(*size, tile, tile)
        assert picture.valid == placeholders - (bottom - top), size  # less a newline a row


def test_valid_patches_are_what_the_model_packs() -> None:
    vision = SimpleNamespace(image_size=336, patch_size=14)
    pinpoints = list(geometry.LLAVA_NEXT_PINPOINTS)
    config = SimpleNamespace(vision_config=vision, image_grid_pinpoints=pinpoints)
    model = SimpleNamespace(config=config)
    for size in SIZES[::20]:
        picture = layout(*size)
        features = torch.zeros(picture.partitions, picture.tokens, 1)
        _, lengths = llava_next.LlavaNextModel.pack_image_features(
            model, [features], torch.tensor([size]), "default", image_newline=None
        )
        assert lengths.tolist() == [picture.valid], size


def test_crop_is_inside_past_the_precision_of_doubles() -> None:
    for k in range(1, 100):
        assert min(geometry.unpad_crop(3 * k, 5 * k, (3, 5), 2**55 + k)) >= 0, k


def test_capacities_count_the_patches_inside_any_crop() -> None:
    rng = np.random.default_rng(0)
    for R, C, side in rng.integers(1, 6, (500, 3)).tolist():
        top, bottom = sorted(rng.integers(0, R * side + 1, 2).tolist())
        left, right = sorted(rng.integers(0, C * side + 1, 2).tolist())
        inside = np.zeros((R * side, C * side), int)
        inside[top:bottom, left:right] = 1
        expected = inside.reshape(R, side, C, side).sum((1, 3)).ravel().tolist()
        assert geometry.capacities((R, C), (top, bottom, left, right), side)[1:] == expected


pictures = st.builds(
    layout,
    st.integers(1, 3000),
    st.integers(1, 3000),
    merge=st.sampled_from([1, 1, 2, 3, 4, 8, 24]),
)


@given(pictures, st.integers(0, 4000))
@settings(max_examples=300, deadline=None)
def test_kept_tokens(picture: Layout, budget: int) -> None:
    grid, tokens, crop = picture.grid, picture.tokens, picture.crop
    assert picture.kept(budget) == min(budget, sum(picture.capacities))
    assert kept_tokens(budget, grid, tokens, crop) == picture.kept(budget)
    everything = min(budget, tokens * picture.partitions)
    assert picture.kept(budget, "published") == everything
    assert kept_tokens(budget, grid, tokens, None, "published") == everything
    assert Layout(9, 9, grid, None, picture.side).kept(budget) == everything
    assert picture.kept(budget, "pooled") == picture.kept(budget)


@given(pictures, st.floats(0, 1, exclude_min=True))
@settings(max_examples=300, deadline=None)
def test_share_is_rounded_down(picture: Layout, share: float) -> None:
    above = math.nextafter(math.nextafter(share, 2), 2)
    exact, most = (math.floor(picture.valid * Fraction(value)) for value in (share, above))
    assert exact <= picture.budget(share) <= most
    assert picture.budget(1.0) == picture.valid
    assert picture.budget(share, "pooled") == picture.budget(share)
    everything = picture.partitions * picture.tokens
    assert picture.budget(share, "published") == int(everything * share)


@pytest.mark.parametrize("total", [2880, 1728, 1440, 960, 576, 2023])
def test_share_that_makes_a_whole_number(total: int) -> None:
    def count(share: object) -> int:
        return geometry.share_of_tokens(share, (0, 0), total)

    for k in range(1, total + 1):
        shares = k / total, Fraction(k, total), np.float32(k) / np.float32(total)
        assert [count(share) for share in shares] == [k, k, k]
        assert k == total or count(math.nextafter(k / total, 2)) == k
        assert count((k - 1e-9) / total) == k - 1
    for thousandth in range(1, 1001):
        shares = thousandth / 1000, thousandth / 10 * 0.01, np.float32(thousandth / 1000)
        assert {count(share) for share in shares} == {total * thousandth // 1000}


def test_published_share_is_the_double_product() -> None:
    picture = layout(672, 672)
    assert [picture.budget(share) for share in (0.35, 0.7)] == [1008, 2016]
    assert [picture.budget(share, "published") for share in (0.35, 0.7)] == [1007, 2015]


def test_a_layout_counts_in_tokens() -> None:
    # 24 x 24 patches a partition, the picture's 36 of 48 rows; or half as many tokens a side.
    patches, tokens = layout(504, 672), layout(504, 672, merge=2)
    assert (patches.grid, patches.side, patches.crop) == ((2, 2), 24, (6, 42, 0, 48))
    assert (tokens.grid, tokens.side, tokens.crop) == ((2, 2), 12, (3, 21, 0, 24))
    assert (patches.tokens, tokens.tokens) == (576, 144)
    assert (patches.valid, tokens.valid) == (576 + 36 * 48, 144 + 18 * 24)
    assert (patches.budget(0.5), tokens.budget(0.5)) == (1152, 288)
    assert tokens.kept(1000) == tokens.kept(1000, "pooled") == 576
    # InternVL: tiles of 448 pixels, 2 x 2 patches a token.
    tiles = [(448 * r, 448 * c) for r, c in ((1, 2), (2, 1), (2, 3))]
    picture = layout(896, 1344, pinpoints=tiles, tile=448, merge=2)
    assert (picture.grid, picture.tokens, picture.valid) == ((2, 3), 256, 7 * 256)
    assert resolve_budgets(0.25, [(2, 3), (0, 0)], 256, policy="pooled") == [448, 64]


@pytest.mark.parametrize(("side", "merge", "cells"), [(24, 1, 24), (24, 2, 12), (5, 5, 1)])
def test_tokens_a_side(side: int, merge: int, cells: int) -> None:
    assert geometry.tokens_a_side(side, merge) == cells


def test_patches_of() -> None:
    # Partitions of 4 x 4 patches, 2 x 2 of them a token.
    indices = torch.tensor([0, 3, -1, 4, 9])
    assert geometry.patches_of(indices, 4, 2).tolist() == [
        [0, 1, 4, 5],
        [10, 11, 14, 15],
        [-1, -1, -1, -1],
        [16, 17, 20, 21],
        [34, 35, 38, 39],
    ]
    assert geometry.patches_of(indices, 4, 4)[:2].tolist() == [
        list(range(16)),
        list(range(48, 64)),
    ]
    assert geometry.patches_of(indices, 4).tolist() == [[0], [3], [-1], [4], [9]]
    assert geometry.patches_of(indices[:0], 4, 2).shape == (0, 4)
    huge = torch.tensor([2**60])
    assert geometry.patches_of(huge, 2, 2).tolist() == [[2**62, 2**62 + 1, 2**62 + 2, 2**62 + 3]]


@given(st.integers(1, 6), st.integers(1, 4), st.integers(1, 3))
def test_patches_of_all_tokens_are_all_patches(cells: int, merge: int, P: int) -> None:
    side = cells * merge
    patches = geometry.patches_of(torch.arange(P * cells**2), side, merge)
    places = torch.arange(P * side**2).view(P, side**2, 1)
    assert torch.equal(patches, blocks(places, merge).view(-1, merge**2))


def test_crop_without_sub_images_is_ignored() -> None:
    for crop in ((5, 0, 0, 3), (9, 1, 9, 1), (0, 2**62, 0, 2**62), (1, 9, 9, 1)):
        assert kept_tokens(2**62, (0, 0), T, crop) == T
        assert kept_tokens(2**62, (0, 0), T, crop, "published") == T
        assert geometry.share_of_tokens(0.5, (0, 0), T, crop) == 288
        assert Layout(10, 10, (0, 0), crop, SIDE).capacities == [T]


def test_kept_tokens_takes_symbols_without_a_branch() -> None:
    # Unbacked symbols have no value: a branch on one, or int() of it, raises.
    env = ShapeEnv()
    budget, R, C, tokens, *crop = (env.create_unbacked_symint() for _ in range(8))
    for policy in arguments.POLICIES:
        for box in (None, tuple(crop)):
            assert isinstance(kept_tokens(budget, (R, C), tokens, box, policy), torch.SymInt)
    assert not env.guards
    assert resolve_budgets([budget, 5], [(R, C), (R, C)], tokens)[0] is budget


def test_resolve_budgets_compiles() -> None:
    @torch.compile(backend="eager", fullgraph=True, dynamic=True)
    def rows(x: torch.Tensor, budget: object, R: int, C: int) -> torch.Tensor:
        budgets = resolve_budgets(budget, [(R, C), (0, 0)], 576)
        return x.new_zeros(kept_tokens(budgets[0], (R, C), 576), budgets[1])

    for budget, R, C in ((7, 2, 2), (9, 1, 2), ([5, 6], 1, 3), (0.25, 2, 2)):
        expected = resolve_budgets(budget, [(R, C), (0, 0)], 576)
        assert list(rows(torch.zeros(1), budget, R, C).shape) == expected


GOOD = [(0.2, [316, 115]), (1.0, [1584, 576]), (1e-9, [0, 0]), (1, [1, 1]), (0, [0, 0])]
GOOD += [([0.5, 7], [792, 7]), ((1, 1.0), [1, 576]), (np.array([3, 4]), [3, 4])]
GOOD += [(np.float64(0.2), [316, 115]), (np.float32(0.5), [792, 288]), (np.int64(9), [9, 9])]
GOOD += [(Fraction(1, 5), [316, 115]), (Fraction(1), [1584, 576]), (np.float16(0.5), [792, 288])]
GOOD += [(np.int8(9), [9, 9]), (np.longdouble(0.5), [792, 288]), (torch.tensor([3, 4]), [3, 4])]
GOOD += [(torch.tensor([0.35, 0.25]), [554, 144]), (1 << 70, [1 << 70] * 2)]
BAD = [True, np.True_, -1, [3, -1], [0.5, True], [[1], [2]], [0.5], [1, 2, 3], None, "0.2", "ab"]
BAD += [0.0, -0.5, 1.5, math.nan, math.inf, np.array(0.5), np.ones((2, 2)), torch.tensor(3), 1j]
BAD += [Fraction(3, 2), Fraction(-1, 2), Decimal("0.2"), np.array([True, False]), object]


@pytest.mark.parametrize(("budget", "expected"), GOOD, ids=repr)
def test_resolve_budgets(budget: object, expected: list[int]) -> None:
    got = resolve_budgets(budget, [(2, 2), (0, 0)], T, [(13, 34, 0, 48), (0, 0, 0, 0)])
    assert got == expected
    assert all(type(count) is int for count in got)


@pytest.mark.parametrize("budget", BAD, ids=repr)
def test_resolve_budgets_refuses(budget: object) -> None:
    with pytest.raises(ValueError, match=r"^hired: budget: expected .+, got .+"):
        resolve_budgets(budget, [(2, 2), (0, 0)], T)


BAD_CALLS = [
    ("height", lambda: layout(0, 5)),
    ("width", lambda: layout(5, 5.0)),
    ("height", lambda: geometry.best_grid(True, 5)),
    ("height", lambda: Layout(0, 5, (1, 1), None, 24)),
    ("pinpoints", lambda: layout(5, 5, pinpoints=[])),
    ("pinpoints", lambda: layout(5, 5, pinpoints=[(336, 672), (336, 500)])),
    ("patch", lambda: layout(5, 5, patch=337)),
    ("merge", lambda: layout(5, 5, merge=5)),
    ("merge", lambda: layout(5, 5, merge=0)),
    ("merge", lambda: layout(5, 5, merge=2.0)),
    ("merge", lambda: geometry.tokens_a_side(24, 7)),
    ("merge", lambda: geometry.tokens_a_side(24, 48)),
    ("side", lambda: geometry.tokens_a_side(0, 1)),
    ("merge", lambda: geometry.patches_of(torch.tensor([0]), 4, 3)),
    ("grid", lambda: geometry.unpad_crop(5, 5, (0, 2), 24)),
    ("grid", lambda: geometry.capacities((True, 2, 2), None, 24)),
    ("side", lambda: geometry.capacities((1, 1), None, 0)),
    ("crop", lambda: geometry.capacities((1, 1), (0, 25, 0, 24), 24)),
    ("crop", lambda: Layout(5, 5, (1, 1), (5, 4, 0, 24), 24)),
    ("crop", lambda: Layout(5, 5, (1, 1), (0, 24, 5, 4), 24)),
    ("crop", lambda: Layout(5, 5, (1, 1), (-1, 24, 0, 4), 24)),
    ("crops", lambda: resolve_budgets(0.5, [(1, 1)], T, [])),
    ("policy", lambda: kept_tokens(1, (1, 1), T, None, "best")),
    ("budget", lambda: layout(5, 5).budget(1)),
    ("budget", lambda: layout(5, 5).kept(-1)),
    ("budget", lambda: layout(5, 5).budget(True)),
    ("budget", lambda: kept_tokens(0.5, (1, 1), T)),
    ("budget", lambda: kept_tokens(True, (1, 1), T)),
    ("grid", lambda: kept_tokens(1, (1, 1, 1), T)),
    ("grid", lambda: geometry.share_of_tokens(0.5, (1.0, 1), T)),
    ("crop", lambda: kept_tokens(1, (1, 1), T, (0, 1.5, 0, 2))),
    ("tokens", lambda: kept_tokens(1, (1, 1), None)),
]


@pytest.mark.parametrize(("argument", "call"), BAD_CALLS)
def test_bad_arguments(argument: str, call: object) -> None:
    message = rf"^hired: [a-z, ]*\b{argument}\b[a-z, ]*: expected .+, got"
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("case", RECORDED, ids=lambda case: case.id)
def test_recorded_counts_imply_the_published_budget(case: Case) -> None:
    layouts = [layout(*size) for size in case.sizes]
    assert [picture.grid for picture in layouts] == case.grids
    boxes = [picture.crop for picture in layouts]
    budgets = resolve_budgets(case.rate, case.grids, T, boxes, "published")
    counts = iter(case.counts)
    for picture, budget in zip(layouts, budgets, strict=True):
        assert budget == picture.budget(case.rate, "published")
        full, *subs = [next(counts) for _ in range(picture.partitions)]
        assert full == min(int(budget * case.alpha), T)
        # Truncation loses less than a token of each sub-image; a full one loses the rest.
        assert full + sum(subs) <= picture.kept(budget, "published") <= budget
        assert full + sum(subs) > budget - len(subs) - 1 or T in subs
    assert next(counts, None) is None


@pytest.mark.parametrize("case", RECORDED, ids=lambda case: case.id)
def test_published_layout_gives_the_recorded_order(case: Case) -> None:
    grids, crops = geometry.published_layout(layout(*size) for size in case.sizes)
    order, lengths = packed(case, grids, crops)
    assert order == case.order.tolist()
    assert lengths == case.feature_lens


def test_published_layout_is_needed() -> None:
    crops = [[layout(*size).crop for size in case.sizes] for case in RECORDED]
    pairs = zip(RECORDED, crops, strict=True)
    assert any(packed(case, case.grids, box)[0] != case.order.tolist() for case, box in pairs)
    bare = Layout(5, 5, (0, 0), None, SIDE)
    assert geometry.published_layout([bare]) == ([(0, 0)], [(0, 0, 0, 0)])
