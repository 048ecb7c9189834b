# SPDX-License-Identifier: Apache-2.0
"""Hypothesis strategies: valid calls of both operators, all arguments by name.

Hypothesis draws what shrinks well: grids, crops, budgets, sizes, kinds of values, and how a tensor
lies in memory (layouts.py). The values themselves come from a drawn seed. Memory around every
tensor is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from typing import Any

import torch
from hypothesis import strategies as st
from layouts import embed, layouts
from torch import Tensor

from hired_kernels import arguments, reference

GRIDS = [(0, 0), (1, 1), (1, 2), (2, 1), (2, 2), (1, 3), (3, 1), (2, 3), (4, 1)]
SIDES = [1, 2, 3, 4, 5, 6, 7, 8, 9, 12]
ALPHAS = [0.0, 0.5, 1.0, 1 / 3, 5e-324, 1 - 2**-53]
FEATURE_DTYPES = [*arguments.SCORE_DTYPES, torch.float64, torch.float8_e5m2, torch.float8_e4m3fn]
QUERIES = [1, 1, 2, 3, 4, 5, 8, 13, 33]  # judges of a call
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

Call = dict[str, Any]


def bits(tensor: Tensor) -> Tensor:
    """The same tensor as integers, so that NaN equals itself and -0 does not equal 0."""
    return tensor.contiguous().view(INTEGERS[tensor.element_size()])


def tensors(call: Call) -> dict[str, Tensor]:
    return {name: value for name, value in call.items() if isinstance(value, Tensor)}


def tokens_of(call: Call) -> int:
    """Tokens of a partition, M: its patches, or as many as there are blocks of them."""
    return call["features"].shape[1] // call["merge"] ** 2


def same(results: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> bool:
    """Whether all outputs agree to the bit, dtype and shape included."""
    pairs = list(zip(results, expected, strict=True))
    return all(a.dtype == b.dtype and torch.equal(bits(a), bits(b)) for a, b in pairs)


# Values.


def random_bits(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Every bit pattern of the dtype, NaN with any payload and denormals included."""
    width = torch.empty(0, dtype=dtype).element_size()
    raw = torch.randint(0, 256, (*shape, width), dtype=torch.uint8, generator=generator)
    return raw.view(dtype).squeeze(-1) if math.prod(shape) else torch.empty(shape, dtype=dtype)


def score_values(
    kind: str, shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator
) -> Tensor:
    """Scores of one kind: those of attention, ties, and what floating point has at its edges.

    A sum of cancelling ones depends on the order of its heads.
    """
    if kind == "bits":
        return random_bits(shape, dtype, generator)
    tiny, huge = torch.finfo(dtype).smallest_normal, torch.finfo(dtype).max
    denormal = tiny * torch.finfo(dtype).eps
    palettes = {
        "ties": [0.0, 1.0, 2.0],
        "zeros": [0.0, -0.0, denormal, -denormal],
        "specials": [math.nan, math.inf, -math.inf, 0.0, -0.0, huge, -huge, tiny, denormal, 1.0],
        "cancelling": [2.0**15, -(2.0**15), 2.0**-14, 3 * 2.0**-14, -(2.0**-14)],
        "constant": [0.25],
    }
    normal = torch.randn(shape, generator=generator, dtype=torch.float64)
    if kind == "normal":
        return normal.to(dtype)
    if kind == "attention":
        return torch.softmax(normal * 2, -1).to(dtype)
    palette = torch.tensor(palettes[kind], dtype=torch.float64)
    return palette[torch.randint(len(palette), shape, generator=generator)].to(dtype)


KINDS = ["attention", "normal", "ties", "zeros", "specials", "cancelling", "constant", "bits"]


@st.composite
def generators(draw: st.DrawFn) -> torch.Generator:
    return torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))


@st.composite
def features(draw: st.DrawFn, P: int, T: int) -> Tensor:
    """(P, T, D) of random bits: copying is all that happens to them."""
    shape = (P, T, draw(st.sampled_from([0, 1, 2, 3, 5, 8, 17])))
    values = random_bits(shape, draw(st.sampled_from(FEATURE_DTYPES)), draw(generators()))
    return embed(values, draw(layouts(3, unit_last=True)))


@st.composite
def attention_rows(draw: st.DrawFn, P: int, H: int, T: int, dtype: torch.dtype) -> Tensor:
    """(P, H, T), any strides; now and then as the view that transformers' attention offers."""
    values = score_values(draw(st.sampled_from(KINDS)), (P, H, T), dtype, draw(generators()))
    if T <= 36 and draw(st.integers(0, 5)) == 5:
        N = T + draw(st.integers(0, 2))
        attention = torch.full((P, H, N, N), math.nan, dtype=dtype)
        attention[:, :, 0, -T:] = values
        return attention[:, :, 0, -T:]
    return embed(values, draw(layouts(3, unit_last=False)))


# The integers.


@st.composite
def budgets(draw: st.DrawFn, grid: tuple[int, int], T: int) -> int:
    total = (1 + grid[0] * grid[1]) * T
    edges = [0, 1, T - 1, T, T + 1, total - 1, total, total + 1, 2**62]
    return draw(st.one_of(st.sampled_from(edges), st.integers(0, total)))


@st.composite
def crops(draw: st.DrawFn, grid: tuple[int, int], side: int) -> tuple[int, int, int, int]:
    """Whole, letterboxed, lopsided or empty; anything for a picture without sub-images."""
    if grid[0] == 0:
        return draw(st.sampled_from([(0, 0, 0, 0), (-5, 2**62, 9, 3)]))
    sides = []
    for parts in grid:
        low, high = sorted(draw(st.integers(0, parts * side)) for _ in range(2))
        margin = draw(st.integers(0, parts * side // 2))
        sides.append(
            draw(
                st.sampled_from(
                    [(0, parts * side), (margin, parts * side - margin), (low, high), (low, low)]
                )
            )
        )
    return (*sides[0], *sides[1])


@st.composite
def batches(draw: st.DrawFn, largest_side: int = 12) -> tuple[int, int, Call]:
    """P, T and the integer arguments of a ragged batch that is valid."""
    policy = draw(st.sampled_from(arguments.POLICIES))
    order = draw(st.sampled_from(arguments.ORDERS))
    cropped, square = draw(st.booleans()), draw(st.integers(0, 3)) < 3
    side = draw(st.sampled_from([side for side in SIDES if side <= largest_side]))
    T = side**2 if square else draw(st.integers(1, largest_side**2))
    merge = 1
    if square and policy != "published" and draw(st.integers(0, 2)) == 2:
        merge = draw(st.sampled_from([g for g in range(1, side + 1) if side % g == 0]))
    M, cells = T // merge**2, side // merge
    # Where nothing asks for rows and columns of patches, T need not be a square.
    free = square or (policy != "exact" and order != "raster" and not cropped)
    fits = [
        (R, C) for R, C in GRIDS
        if R == 0 or (free and (policy != "published" or T % (R * C) == 0))
    ]  # fmt: skip
    B = draw(st.sampled_from([1, 1, 2, 2, 3, 4, 0]))
    grids = draw(st.lists(st.sampled_from(fits), min_size=B, max_size=B))
    alpha = draw(st.one_of(st.sampled_from(ALPHAS), st.floats(0, 1)))
    call: Call = {
        "grids": [size for grid in grids for size in grid],
        "budgets": [draw(budgets(grid, M)) for grid in grids],
        "alpha": alpha,
        "crops": [x for grid in grids for x in draw(crops(grid, cells))] if cropped else None,
        "policy": policy,
        "order": order,
        "merge": merge,
    }
    if policy == "published" and arguments.first_share(T, 1 - alpha) == 0:
        # Tokens left for sub-images of which none has a weight would be an error.
        for i, (R, _) in enumerate(grids):
            budget = call["budgets"][i]
            if R and budget > min(arguments.first_share(budget, alpha), T):
                call["budgets"][i] = 0
    return sum(1 + R * C for R, C in grids), T, call


# Whole calls.


@st.composite
def select_calls(draw: st.DrawFn) -> Call:
    P, T, integers = draw(batches())
    H = draw(st.integers(1, 6))
    dtype = draw(st.sampled_from(arguments.SCORE_DTYPES))
    rows_init = draw(st.sampled_from([P, len(integers["budgets"])]))
    return {
        "features": draw(features(P, T)),
        "attn_init": draw(attention_rows(rows_init, H, T, dtype)),
        "attn_final": draw(attention_rows(P, H, T, dtype)),
        **integers,
    }


HEAD_WIDTHS = [1, 2, 3, 4, 7, 8, 15, 16, 17, 20, 32, 33, 64, 65, 80, 128, 256]
EXTREMES = ["none", "none", "none", "nan-query", "nan-key", "inf-query", "inf-key"]


@st.composite
def queries_keys(
    draw: st.DrawFn, P: int, N: int, H: int, Dh: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Normal queries and keys, some with an element that is not finite, in one buffer or in two.

    The queries are those of one token, or of every other or fourth from some token on.
    """
    Q, generator = draw(st.sampled_from(QUERIES)), draw(generators())
    alone = Q == 1 and draw(st.booleans())
    first, step = (0, 1) if alone else draw(st.sampled_from([(0, 1), (1, 1), (0, 2), (1, 4)]))
    rows = max(N, first + step * Q)
    qkv = torch.randn((P, rows, 3, H, Dh), generator=generator).to(dtype)
    query, key = qkv[:, first : first + step * Q : step, 0], qkv[:, :N, 1]
    extreme = draw(st.sampled_from(EXTREMES))
    if P and extreme != "none":
        where = query if extreme.endswith("query") else key
        place = tuple(draw(st.integers(0, size - 1)) for size in where.shape)
        values = [math.nan] if extreme.startswith("nan") else [math.inf, -math.inf]
        where[place] = draw(st.sampled_from(values))
    query = query[:, 0] if alone else query
    if draw(st.booleans()):  # a fused projection: (P, N, 3 * H * Dh), split without a copy
        return query, key
    query, key = query.clone(), key.clone()
    return embed(query, draw(layouts(query.dim(), True))), embed(key, draw(layouts(4, True)))


@st.composite
def select_qk_calls(draw: st.DrawFn) -> Call:
    P, T, integers = draw(batches(largest_side=8))
    N, H = T + draw(st.sampled_from([0, 1, 1, 1, 5])), draw(st.integers(1, 4))
    Dh = draw(st.sampled_from(HEAD_WIDTHS))
    dtype = draw(st.sampled_from(arguments.SCORE_DTYPES))
    rows_init = draw(st.sampled_from([P, len(integers["budgets"])]))
    query_init, key_init = draw(queries_keys(rows_init, N, H, Dh, dtype))
    query_final, key_final = draw(queries_keys(P, N, H, Dh, dtype))
    return {
        "features": draw(features(P, T)),
        "query_init": query_init, "key_init": key_init,
        "query_final": query_final, "key_final": key_final,
        "scale": draw(st.sampled_from([None, None, 0.0, 0.25, -0.5, 1.0])),
        **integers,
    }  # fmt: skip


def seeded_call(
    op: str, seed: int, *, grids: tuple = ((2, 2), (0, 0), (1, 2)), share: float = 0.3, T: int = 16,
    H: int = 3, D: int = 4, N: int | None = None, Dh: int = 8, Q: int | None = None,
    dtype: torch.dtype = torch.float32, **changes: Any,
) -> Call:  # fmt: skip
    """A plain call, contiguous and finite, of normal values from a seed. Q: None is one query in a
    tensor without a dimension for it."""
    generator = torch.Generator().manual_seed(seed)
    P = sum(1 + R * C for R, C in grids)

    def normal(*shape: int, to: torch.dtype = dtype) -> Tensor:
        return torch.randn(shape, generator=generator).to(to)

    call: Call = {"features": normal(P, T, D, to=torch.float32)}
    if op == "select":
        call |= {"attn_init": normal(P, H, T), "attn_final": normal(P, H, T)}
    else:
        N = T + 1 if N is None else N
        judges = (P, H, Dh) if Q is None else (P, Q, H, Dh)
        call |= {"query_init": normal(*judges), "key_init": normal(P, N, H, Dh)}
        call |= {"query_final": normal(*judges), "key_final": normal(P, N, H, Dh), "scale": None}
    M = T // changes.get("merge", 1) ** 2
    budgets = [int((1 + R * C) * M * share) for R, C in grids]
    integers = {"grids": [size for grid in grids for size in grid], "budgets": budgets}
    rules = {"alpha": 0.5, "crops": None, "policy": "exact", "order": "raster", "merge": 1}
    return {**call, **integers, **rules, **changes}


def seeded_qk_call(seed: int, **sizes: Any) -> Call:
    """The first call from `seed` on whose cuts are `apart`, so that all backends must agree."""
    calls = (seeded_call("select_qk", seed, **sizes) for seed in range(seed, seed + 100))
    return next(call for call in calls if apart(call))


def apart(call: Call) -> bool:
    """Whether all cuts of a `select_qk` call fall between scores that float32 can tell apart.

    The error of a logit is bounded by Dh roundings of the sum of |q| |k|; e^x makes an absolute
    error of x a relative one of the score, and so are those of the sums over keys, queries and
    patches of a token. Exact ties (NaN, no attention at all, scale 0) are fine.
    """
    T, M, Dh = call["features"].shape[1], tokens_of(call), call["query_final"].shape[-1]
    scale = Dh**-0.5 if call["scale"] is None else call["scale"]
    batch = reference.pictures(call["grids"], call["budgets"], call["crops"])
    uncropped = {**call, "crops": None} if call["policy"] == "published" else call
    kept = reference.select_qk(**uncropped)[2].tolist()

    def clear(layer: str, rows: Iterable[int], valid: Iterable[Collection[int]], k: int) -> bool:
        """Whether this can be said of the k best of the valid tokens of all these rows."""
        scores, error = [], 0.0
        for row, tokens in zip(rows, valid, strict=True):
            query, key = call[f"query_{layer}"][row], call[f"key_{layer}"][row]
            all_scores = reference.cls_scores(query, key, scale, T)
            scores.append(reference.block_sums(all_scores, call["merge"])[sorted(tokens)])
            judges = query.reshape(-1, *query.shape[-2:])
            sizes = (x.double().abs().nan_to_num(0, 0, 0) for x in (judges, key))
            size = torch.einsum("qhd,nhd->qhn", *sizes).max().item()
            sums = len(key) + len(judges) + call["merge"] ** 2
            error = max(error, size * abs(scale) * (Dh + 8) + sums + 16)
        together = torch.cat(scores)
        if not 0 < k < len(together):
            return True
        a, b = together[reference.rank(together)[k - 1 : k + 1]].tolist()
        if math.isnan(b) or (a == b and (a == 0 or scale == 0)):
            return True
        return a > 1e-30 and a - b > 4 * a * error * 2**-24

    for b, picture in enumerate(batch):
        p, valid = picture.full_image, reference.valid_patches(picture, M)
        partitions = range(p, p + len(valid))
        if call["policy"] == "pooled":
            if not clear("final", partitions, valid, sum(kept[p : p + len(valid)])):
                return False
            continue
        row = b if call["query_init"].shape[0] == len(batch) else p
        counted = arguments.first_share(M, 1 - call["alpha"])
        if picture.R and not clear("init", [row], [range(M)], counted):
            return False
        choices = [range(M)] * len(valid) if call["policy"] == "published" else valid
        for i, tokens in zip(partitions, choices, strict=True):
            if not clear("final", [i], [tokens], kept[i]):
                return False
    return True
