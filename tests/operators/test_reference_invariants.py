# SPDX-License-Identifier: Apache-2.0
"""What holds of the oracle for every input, which hypothesis tries to break.

Small batches with few distinct scores, so that ties, NaN, empty crops and full partitions are
common. The checks state the rules a second time, by definition and not by construction.
"""

from __future__ import annotations

import math

import torch
from blocks import merged, scores_of_tokens
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import tokens_of

from hired_kernels import arguments, reference
from hired_kernels.reference import Picture


@st.composite
def batches(draw) -> dict:
    """Arguments of `select`; few distinct scores, so that ties and NaN are common."""
    policy = draw(st.sampled_from(arguments.POLICIES))
    side, merge = draw(st.integers(1, 4)), 1  # of tokens
    if policy != "published":
        merge = draw(st.sampled_from([1, 1, 2, 3]))
    M, H, P, grids, crops, budgets = side**2, draw(st.integers(1, 2)), 0, [], [], []
    T = M * merge**2
    divisors = [(R, C) for R in range(4) for C in range(4) if (R == 0) == (C == 0)]
    if policy == "published":
        divisors = [(R, C) for R, C in divisors if R == 0 or T % (R * C) == 0]
    for _ in range(draw(st.integers(0, 3))):
        R, C = draw(st.sampled_from(divisors))
        top, bottom = sorted(draw(st.integers(0, R * side)) for _ in range(2))
        left, right = sorted(draw(st.integers(0, C * side)) for _ in range(2))
        grids += [R, C]
        crops += [top, bottom, left, right]
        budgets.append(draw(st.integers(0, (2 + R * C) * M)))
        P += 1 + R * C
    values = torch.tensor([0.0, -0.0, 1.0, 2.0, -1.0, math.inf, -math.inf, math.nan])
    generator = torch.manual_seed(draw(st.integers(0, 2**32)))
    attn_init, attn_final = (
        values[torch.randint(draw(st.sampled_from([4, 8])), (P, H, T), generator=generator)]
        for _ in range(2)
    )
    top_alpha = 1 - 1 / T if policy == "published" else 1.0
    return {
        "features": torch.arange(1.0, P * T + 1).view(P, T, 1),
        "attn_init": attn_init, "attn_final": attn_final,
        "grids": grids, "budgets": budgets,
        "alpha": draw(st.floats(0, top_alpha)) if T > 1 else 0.0,
        "crops": draw(st.sampled_from([None, crops])), "policy": policy,
        "order": draw(st.sampled_from(arguments.ORDERS)), "merge": merge,
    }  # fmt: skip


def selected(batch: dict) -> list[tuple[Picture, list[int], list[int]]]:
    """Each picture with its rows of the output and the counts of its partitions."""
    tokens, indices, counts = reference.select(**batch)
    every = merged(batch["features"], batch["merge"]).flatten(0, 1)
    expected = every[indices.clamp(min=0)].masked_fill((indices < 0)[:, None], 0)
    assert torch.equal(tokens, expected)
    integers = (batch["grids"], batch["budgets"])
    owned = arguments.output_rows(*integers, tokens_of(batch), batch["crops"], batch["policy"])
    pictures = reference.pictures(*integers, batch["crops"])
    partitions = [1 + picture.R * picture.C for picture in pictures]
    assert len(indices) == sum(owned)
    assert len(counts) == sum(partitions)
    rows, lengths = indices.split(owned), counts.split(partitions)
    return [(p, r.tolist(), c.tolist()) for p, r, c in zip(pictures, rows, lengths, strict=True)]


@settings(max_examples=150, deadline=None)
@given(batches())
def test_rows_add_up_and_are_in_order(batch: dict) -> None:
    M = tokens_of(batch)
    side = math.isqrt(M)
    for picture, rows, counts in selected(batch):
        valid = reference.valid_patches(picture, M)
        assert all(0 <= n <= len(patches) for n, patches in zip(counts, valid, strict=True))
        kept = rows[: sum(counts)]
        assert rows[len(kept) :] == [-1] * (len(rows) - len(kept))
        if batch["policy"] != "published":
            assert len(kept) == len(rows) == min(picture.budget, sum(map(len, valid)))
        places = [divmod(index - picture.full_image * M, M) for index in kept]
        assert all(t in valid[i] for i, t in places)
        assert counts == [sum(i == j for j, _ in places) for i in range(len(counts))]
        if batch["order"] == "partition":
            assert places == sorted(set(places))
        elif batch["order"] == "full_last":
            assert places == sorted(set(places), key=lambda place: (place[0] == 0, place))
        else:
            raster = [
                (i > 0, (i - 1) // picture.C * side + t // side if i else 0,
                 (i - 1) % picture.C * side + t % side if i else t)
                for i, t in places
            ]  # fmt: skip
            assert raster == sorted(set(raster))


@settings(max_examples=100, deadline=None)
@given(batches())
def test_no_dropped_token_beats_a_kept_one(batch: dict) -> None:
    M, scores = tokens_of(batch), scores_of_tokens(batch["attn_final"], batch["merge"])
    flat = scores.flatten().tolist()

    def beats(a: int, b: int) -> bool:
        x, y = flat[a], flat[b]
        if math.isnan(x) or math.isnan(y) or x == y:
            return (math.isnan(y) and not math.isnan(x)) or (
                math.isnan(x) == math.isnan(y) and a < b
            )
        return x > y

    for picture, rows, counts in selected(batch):
        partitions = []  # the valid tokens of each, and those that it keeps
        for i, tokens in enumerate(reference.valid_patches(picture, M)):
            begin = (picture.full_image + i) * M
            kept = {index for index in rows if begin <= index < begin + M}
            assert len(kept) == counts[i]
            partitions.append(({begin + m for m in tokens}, kept))
        if batch["policy"] == "pooled":
            partitions = [tuple(set().union(*sets) for sets in zip(*partitions, strict=True))]
        for valid, kept in partitions:
            assert not any(beats(a, b) for a in valid - kept for b in kept)


@settings(max_examples=60, deadline=None)
@given(batches())
def test_a_picture_is_selected_alone_as_in_its_batch(batch: dict) -> None:
    M = tokens_of(batch)
    for b, (picture, rows, counts) in enumerate(selected(batch)):
        begin, end = picture.full_image, picture.full_image + len(counts)
        alone = dict(batch, grids=batch["grids"][2 * b : 2 * b + 2], budgets=[picture.budget])
        for name in ("features", "attn_init", "attn_final"):
            alone[name] = batch[name][begin:end]
        if batch["crops"] is not None:
            alone["crops"] = batch["crops"][4 * b : 4 * b + 4]
        _, indices, lengths = reference.select(**alone)
        assert [i + begin * M if i >= 0 else -1 for i in indices.tolist()] == rows
        assert lengths.tolist() == counts


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_shares_add_up_and_fit(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 6))
    most = data.draw(st.sampled_from([3, 20, 2**62]))
    weights = data.draw(st.lists(st.integers(0, most), min_size=size, max_size=size))
    capacities = data.draw(st.lists(st.integers(0, most), min_size=size, max_size=size))
    rest = data.draw(st.integers(0, sum(capacities)))
    shares = reference.share_out(rest, weights, capacities)
    assert sum(shares) == rest
    assert all(0 <= share <= room for share, room in zip(shares, capacities, strict=True))
    # Who is not full has at least as much a weight as who weighs less, but for one rounding.
    for i, j in ((i, j) for i in range(size) for j in range(size) if weights[i] > weights[j] > 0):
        assert shares[i] == capacities[i] or shares[i] >= shares[j] - 1
