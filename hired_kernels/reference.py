# SPDX-License-Identifier: Apache-2.0
"""The oracle: the operators in plain Python, to be read beside the paper (arXiv 2408.10945).

Extract, allocate, select, gather: one section each. Only the scores and the kept tokens are
tensors; everything between them is Python integers, which never overflow, so this serves every
size, dtype and device that PyTorch does. It synchronises with the host and is not fast.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from . import arguments, geometry
from .arguments import first_share

Crop = tuple[int, int, int, int]


class Picture(NamedTuple):
    full_image: int  # the partition that holds it; those of its R * C sub-images follow
    R: int
    C: int
    budget: int
    crop: Crop | None  # top, bottom, left, right in tokens; None: the sub-images have no padding


def pictures(
    grids: Sequence[int], budgets: Sequence[int], crops: Sequence[int] | None
) -> list[Picture]:
    """The flat integer arguments of the operators, picture by picture."""
    batch, partition = [], 0
    boxes = [None] * len(budgets) if crops is None else arguments.quads(crops)
    for (R, C), budget, crop in zip(arguments.pairs(grids), budgets, boxes, strict=True):
        batch.append(Picture(partition, R, C, budget, crop))
        partition += 1 + R * C
    return batch


# Extract: the attention that the CLS token, or the mean of any judges, pays to each patch.


def head_sums(attention: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """[..., H, T] -> [..., T] of `dtype`: `((a0 + a1) + a2) + ...`, each head widened first."""
    total, *heads = attention.to(dtype).unbind(-2)
    for head in heads:
        total = total + head
    return total


def cls_row(query: Tensor, key: Tensor, scale: float, tokens: int) -> Tensor:
    """[H, Dh] or [Q, H, Dh], and [N, H, Dh] -> [H, tokens] float64: softmax over N, the mean over
    Q, the last of them."""
    # On the host: not every device has float64.
    query, key = query.to("cpu", torch.float64), key.to("cpu", torch.float64)
    total = torch.zeros(*query.shape[-2:-1], len(key), dtype=torch.float64)
    for judges in query.reshape(-1, *query.shape[-2:]).split(64):
        logits = torch.einsum("qhd,nhd->qhn", judges, key) * scale
        # One after the other: torch.sum may add up one column otherwise than its neighbour, and
        # equal columns would not tie.
        for row in torch.softmax(logits, dim=-1):
            total += row
    count = 1 if query.dim() == 2 else len(query)
    return (total / count)[:, -tokens:]


def cls_scores(query: Tensor, key: Tensor, scale: float, tokens: int) -> Tensor:
    """Queries and keys as above -> [tokens] float64: the sum of cls_row over heads."""
    return head_sums(cls_row(query, key, scale, tokens), torch.float64)


def block_sums(scores: Tensor, merge: int) -> Tensor:
    """[T] -> [M], dtype as it is: a block of merge x merge patches is a token, whose score is the
    sum of theirs, one after the other in raster order."""
    if merge == 1:
        return scores
    cells = math.isqrt(len(scores)) // merge
    blocks = scores.view(cells, merge, cells, merge).transpose(1, 2).flatten(2).flatten(0, 1)
    return head_sums(blocks.T, scores.dtype)


def scale_or_default(scale: float | None, query: Tensor) -> float:
    return max(query.shape[-1], 1) ** -0.5 if scale is None else scale


def rank(scores: Tensor) -> list[int]:
    """Indices of `scores` [T], best first: higher, then lower index; NaN last; -0 equals +0."""
    values = scores.tolist()
    keys = [(True, 0.0) if math.isnan(value) else (False, -value) for value in values]
    return sorted(range(len(values)), key=lambda t: (keys[t], t))


# Allocate: a budget for each partition. From here on T and patches are M and tokens where patches
# are merged. `ranking` holds the full image's patches by initial-layer
# score, best first; it is not looked at where a picture has no sub-images.


def valid_patches(picture: Picture, T: int) -> list[range | set[int]]:
    """The patches of each partition that are not padding; their numbers are the capacities."""
    _, R, C, _, crop = picture
    if crop is None:
        return [range(T)] * (1 + R * C)
    side, (top, bottom, left, right) = math.isqrt(T), crop
    valid: list[range | set[int]] = [range(T)]
    for r in range(R):
        rows = [y for y in range(side) if top <= r * side + y < bottom]
        for c in range(C):
            cols = [x for x in range(side) if left <= c * side + x < right]
            valid.append({y * side + x for y in rows for x in cols})
    return valid


def region_of_patches(R: int, C: int, T: int, crop: Crop | None) -> list[int]:
    """The sub-image that shows the same spot as each of the full image's T patches."""
    side = math.isqrt(T)
    top, bottom, left, right = crop or (0, R * side, 0, C * side)

    def cell(patch: int, begin: int, end: int, cells: int) -> int:
        # The full image shows no padding: its patches are stretched over [begin, end).
        centre = 2 * side * begin + (2 * patch + 1) * (end - begin)
        return min(centre // (2 * side**2), cells - 1)

    rows = [cell(y, top, bottom, R) for y in range(side)]
    cols = [cell(x, left, right, C) for x in range(side)]
    return [r * C + c for r in rows for c in cols]


def run_of_patches(R: int, C: int, T: int) -> list[int]:
    """What the published code takes for that sub-image: contiguous runs of the flat map."""
    return [t // (T // (R * C)) for t in range(T)]


def weigh(
    ranking: Sequence[int], alpha: float, sub_image_of: Sequence[int], sub_images: int
) -> list[int]:
    """How many of the full image's `int(T * (1 - alpha))` best patches lie in each sub-image."""
    best = ranking[: first_share(len(ranking), 1 - alpha)]
    hits = [sub_image_of[t] for t in best]
    return [hits.count(i) for i in range(sub_images)]


def largest_remainder(rest: int, weights: Sequence[int]) -> list[int]:
    """`rest` in proportion to `weights`, in integers; equal remainders: the lower index first."""
    W = sum(weights) or 1  # all of them are 0 only where `rest` is
    shares = [rest * w // W for w in weights]
    by_remainder = sorted(range(len(weights)), key=lambda i: (-(rest * weights[i] % W), i))
    for i in by_remainder[: rest - sum(shares)]:
        shares[i] += 1
    return shares


def share_out(rest: int, weights: Sequence[int], capacities: Sequence[int]) -> list[int]:
    """Largest remainder under capacity; `rest` is at most the sum of `capacities`."""
    shares, sharing = list(capacities), list(range(len(capacities)))
    while sharing:
        basis = weights if any(weights[i] for i in sharing) else capacities
        proposal = largest_remainder(rest, [basis[i] for i in sharing])
        for i, share in zip(sharing, proposal, strict=True):
            shares[i] = share
        full = [i for i in sharing if shares[i] > capacities[i]]
        if not full:
            break
        for i in full:
            shares[i] = capacities[i]
            sharing.remove(i)
            rest -= capacities[i]
    return shares


def exact_budgets(
    picture: Picture, capacities: Sequence[int], alpha: float, ranking: Sequence[int]
) -> list[int]:
    """The budget of each partition; they add up to the picture's, or to all capacities."""
    T, *of_sub_images = capacities
    K = min(picture.budget, sum(capacities))
    k0 = max(min(first_share(K, alpha), T), K - sum(of_sub_images))
    if not of_sub_images:
        return [k0]  # which is K
    _, R, C, _, crop = picture
    weights = weigh(ranking, alpha, region_of_patches(R, C, T, crop), R * C)
    return [k0, *share_out(K - k0, weights, of_sub_images)]


def published_shares(sub: int, weights: Sequence[int], T: int) -> list[int]:
    """`sub` in proportion to `weights`, rounded in float32 twice and truncated; at most T each."""
    W = sum(weights) or 1  # all of them are 0 only where `sub` is
    shares: list[int] = []
    for w in weights:
        share = int(np.float32(w) / np.float32(W) * np.float32(sub))
        # Above 2^22 or so float32 may round up: never hand out more than is left.
        shares.append(min(share, T, sub - sum(shares)))
    return shares


def published_budgets(picture: Picture, T: int, alpha: float, ranking: Sequence[int]) -> list[int]:
    """The budget of each partition as the published code has it: remainders are lost."""
    _, R, C, budget, _ = picture
    if R == 0:
        return [min(budget, T)]
    k0 = min(first_share(budget, alpha), T)
    sub = min(budget - k0, R * C * T)
    weights = weigh(ranking, alpha, run_of_patches(R, C, T), R * C)
    return [k0, *published_shares(sub, weights, T)]


def pooled_budgets(
    picture: Picture, valid: Sequence[Collection[int]], scores: Sequence[Tensor]
) -> list[int]:
    """How many of the picture's best valid patches, of all partitions together, lie in each; equal
    scores: the lower partition, then the lower index."""
    T = len(scores[0])
    places = [divmod(i, T) for i in rank(torch.cat(list(scores)))]
    best = [p for p, t in places if t in valid[p]][: picture.budget]
    return [best.count(p) for p in range(len(valid))]


# Select: the best patches of each partition, in the order in which the language model reads them.


def keep(scores: Tensor, budget: int, valid: Collection[int], policy: str) -> list[int]:
    """The kept patches of one partition, ascending."""
    best = rank(scores)
    if policy != "published":  # which learns what is padding only after it has chosen
        best = [t for t in best if t in valid]
    return sorted(t for t in best[:budget] if t in valid)


def reading_order(picture: Picture, kept: Sequence[Sequence[int]], T: int, order: str) -> list[int]:
    """The kept patches of a picture's partitions as indices `p * T + t`, in output order."""
    side = math.isqrt(T)

    def raster(place: tuple[int, int]) -> tuple[int, int]:
        (r, c), (y, x) = divmod(place[0], picture.C), divmod(place[1], side)
        return r * side + y, c * side + x

    full_image, *sub_images = kept
    places = [(i, t) for i, patches in enumerate(sub_images) for t in patches]
    if order == "raster":
        places.sort(key=raster)
    p = picture.full_image
    full = [p * T + t for t in full_image]
    subs = [(p + 1 + i) * T + t for i, t in places]
    return subs + full if order == "full_last" else full + subs


# Gather, and the operators.


def gather(features: Tensor, indices: Tensor, merge: int = 1) -> Tensor:
    """[P, T, D] and [K] of `p * M + m` -> [K, merge^2 * D]; rows of index -1 are zero."""
    _, T, D = features.shape
    if merge > 1 and T > 0:
        indices = geometry.patches_of(indices, math.isqrt(T), merge).flatten()
    tokens = features.flatten(0, 1)[indices.clamp(min=0)]
    tokens = torch.where(indices[:, None] < 0, torch.zeros_like(tokens), tokens)
    return tokens.reshape(len(indices) // merge**2, merge**2 * D)


Scores = Callable[[int], Tensor]  # row of an attention tensor -> [T]


def _run(
    features: Tensor, batch: list[Picture], rows_init: int, init: Scores, final: Scores,
    alpha: float, policy: str, order: str, merge: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    T = features.shape[1] // merge**2
    indices, counts = [], []
    for b, picture in enumerate(batch):
        p, valid = picture.full_image, valid_patches(picture, T)
        scores = [block_sums(final(p + i), merge) for i in range(len(valid))]
        if policy == "pooled":
            budgets = pooled_budgets(picture, valid, scores)
        else:
            row = b if rows_init == len(batch) else p
            ranking = rank(block_sums(init(row), merge)) if picture.R else []
            if policy == "exact":
                capacities = [len(patches) for patches in valid]
                budgets = exact_budgets(picture, capacities, alpha, ranking)
            else:
                budgets = published_budgets(picture, T, alpha, ranking)
        K = min(picture.budget, len(valid) * T) if policy == "published" else sum(budgets)
        kept = [keep(scores[i], budgets[i], valid[i], policy) for i in range(len(valid))]
        counts += [len(patches) for patches in kept]
        read = reading_order(picture, kept, T, order)
        indices += read + [-1] * (K - len(read))
    index = torch.tensor(indices, dtype=torch.int64, device=features.device)
    count = torch.tensor(counts, dtype=torch.int64, device=features.device)
    return gather(features, index, merge), index, count


def select(
    features: Tensor, attn_init: Tensor, attn_final: Tensor, grids: Sequence[int],
    budgets: Sequence[int], alpha: float = 0.5, *, crops: Sequence[int] | None = None,
    policy: str = "exact", order: str = "raster", merge: int = 1,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Keep each picture's budget of tokens, chosen by the CLS rows of the attention.

    features [P, T, D], floating; attn_init [P or B, H, T] and attn_final [P, H, T], float32,
    float16 or bfloat16; grids: R, C a picture; budgets: tokens a picture; crops: top, bottom, left,
    right a picture, in tokens: blocks of merge x merge patches. Returns tokens [K, merge^2 * D],
    indices [K] (`p * M + m`, M = T / merge^2; -1 for a row that is empty) and counts [P], both
    int64. Raises RuntimeError for arguments outside the contract.
    """
    arguments.check_select(
        features, attn_init, attn_final, grids, budgets, alpha, crops, policy, order, merge
    )
    return _run(
        features, pictures(grids, budgets, crops), attn_init.shape[0],
        lambda row: head_sums(attn_init[row]), lambda p: head_sums(attn_final[p]),
        alpha, policy, order, merge,
    )  # fmt: skip


def select_qk(
    features: Tensor, query_init: Tensor, key_init: Tensor, query_final: Tensor, key_final: Tensor,
    grids: Sequence[int], budgets: Sequence[int], alpha: float = 0.5, *, scale: float | None = None,
    crops: Sequence[int] | None = None, policy: str = "exact", order: str = "raster",
    merge: int = 1,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """`select` by attention rows `softmax(q . k * scale)`, computed here in float64.

    query_init [P or B, H, Dh] and query_final [P, H, Dh] are the CLS token's, or have a dimension Q
    behind the first for as many judges; key_init [P or B, N, H, Dh] and key_final [P, N, H, Dh]
    hold all keys, the patches' last. scale is `Dh ** -0.5` unless given. The rest, the results and
    the errors are those of `select`.
    """
    arguments.check_select_qk(
        features, query_init, key_init, query_final, key_final,
        grids, budgets, alpha, scale, crops, policy, order, merge,
    )  # fmt: skip
    T, factor = features.shape[1], scale_or_default(scale, query_final)
    return _run(
        features, pictures(grids, budgets, crops), query_init.shape[0],
        lambda row: cls_scores(query_init[row], key_init[row], factor, T),
        lambda p: cls_scores(query_final[p], key_final[p], factor, T),
        alpha, policy, order, merge,
    )  # fmt: skip


def cls_attention(query: Tensor, key: Tensor, tokens: int, *, scale: float | None = None) -> Tensor:
    """The CLS token's attention, `softmax(q . k * scale)` over all N keys: the last `tokens`.

    query [P, H, Dh] or [P, Q, H, Dh], of which the mean is taken, key [P, N, H, Dh]; returns
    [P, H, tokens] float32, rounded from float64. So a
    `select` of these rows is the `select_qk` of their queries and keys but for that rounding, where
    every other backend gives the same bits.
    """
    arguments.check_cls_attention(query, key, tokens, scale)
    factor = scale_or_default(scale, query)
    P, H = query.shape[0], query.shape[-2]
    attention = query.new_empty(P, H, tokens, dtype=torch.float32)
    for row, q, k in zip(attention, query, key, strict=True):
        row.copy_(cls_row(q, k, factor, tokens))
    return attention
