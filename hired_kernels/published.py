# SPDX-License-Identifier: Apache-2.0
"""The published HiRED selection, stage by stage, with the work that its code does.

Written anew from the paper (arXiv 2408.10945) and the behaviour of github.com/hasanar1f/HiRED at
502d6dd: it is what the operators are measured against, not how they work. The whole attention
matrix of every partition is built where one row is used, each sub-image costs a `topk` whose k
lies on the device (one synchronisation), and the kept tokens come out of boolean masks. Which
tokens it keeps, `policy="published"` of the operators keeps too, up to ties.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Kept(NamedTuple):
    """What the published code hands to the language model.

    tokens (K, D): kept tokens, picture after picture, in the published packing.
    mask (P, T) bool: what was selected, before padding is cut away.
    lengths: tokens of each picture after the packing, padding cut away.
    """

    tokens: Tensor
    mask: Tensor
    lengths: list[int]


def token_budget(partitions: int, T: int, rate: float) -> int:
    """Tokens to keep of a picture: `int(P * T * rate)`, padding counted as picture."""
    return int(partitions * T * rate)


def attention_rows(queries: Tensor, keys: Tensor, T: int, scale: float | None = None) -> Tensor:
    """CLS rows of one layer, by way of the whole attention matrix.

    queries, keys (P, N, H, Dh), the CLS token first. Returns (P, H, T), a view of the materialised
    softmax(Q K^T * scale) of shape (P, H, N, N), which it keeps alive. `scale` is Dh ** -0.5
    unless given.
    """
    scale = queries.shape[-1] ** -0.5 if scale is None else scale
    attention = (queries.transpose(1, 2) @ keys.permute(0, 2, 3, 1)) * scale
    return attention.softmax(dim=-1)[:, :, 0, -T:]


def full_image_budget(budget: int, partitions: int, T: int, alpha: float) -> tuple[int, int]:
    """Tokens for the full image and for all sub-images together.

    A picture without sub-images gives its budget to the full image (the published code for
    LLaVA-NeXT never meets one).
    """
    if partitions == 1:
        return min(budget, T), 0
    full = min(int(budget * alpha), T)
    return full, min(budget - full, (partitions - 1) * T)


def sub_image_budgets(scores: Tensor, partitions: int, sub_budget: int, alpha: float) -> Tensor:
    """Tokens for each sub-image, from the full image's initial-layer scores (T,).

    The `int(T * (1 - alpha))` best patches are counted in contiguous runs of the flat map, one
    run a sub-image; shares are rounded in float32 twice and truncated, so that the remainder is
    lost. Returns (P - 1,) int32 on the device of the scores. Raises ValueError where no patch is
    left to count, on which the published code divides by zero, and where the runs do not fit T.
    """
    T = scores.shape[0]
    best = int(T * (1 - alpha))
    if best == 0:
        raise ValueError(
            "published: alpha: expected int(T * (1 - alpha)) >= 1 where tokens are left for "
            f"sub-images, got {alpha:g}"
        )
    if T % (partitions - 1) != 0:
        raise ValueError(
            f"published: partitions: expected sub-images to divide T = {T}, got {partitions - 1}"
        )
    chosen = torch.zeros_like(scores, dtype=torch.bool)
    chosen[scores.topk(best).indices] = True
    weights = chosen.view(partitions - 1, -1).sum(dim=-1)
    return ((weights / weights.sum()) * sub_budget).int().clamp(max=T)


def kept_mask(
    attn_init: Tensor,
    attn_final: Tensor,
    partitions: Sequence[int],
    budgets: Sequence[int],
    alpha: float = 0.5,
) -> Tensor:
    """Which tokens the published code selects, padding included.

    attn_init, attn_final (P, H, T): CLS rows at both layers. `partitions` and `budgets` hold one
    count for each picture. Returns (P, T) bool. Raises as `sub_image_budgets` does.
    """
    T = attn_final.shape[-1]
    masks = []
    for init, final, count, budget in zip(
        attn_init.split(list(partitions)),
        attn_final.split(list(partitions)),
        partitions,
        budgets,
        strict=True,
    ):
        init_scores, final_scores = init.sum(dim=1), final.sum(dim=1)
        mask = torch.zeros_like(final_scores, dtype=torch.bool)
        full, sub = full_image_budget(budget, count, T, alpha)
        mask[0, final_scores[0].topk(full).indices] = True
        if sub > 0:
            for p, k in enumerate(sub_image_budgets(init_scores[0], count, sub, alpha), start=1):
                # The host waits for k here, once for each sub-image.
                mask[p, final_scores[p].topk(k.item()).indices] = True
        masks.append(mask)
    return torch.cat(masks)


def gather(
    features: Tensor,
    mask: Tensor,
    grids: Sequence[tuple[int, int]],
    sizes: Sequence[tuple[int, int]],
) -> tuple[Tensor, list[int]]:
    """The published packing: kept tokens of each picture, padding cut away.

    features (P, T, D), mask (P, T) bool, `grids` the (R, C) and `sizes` the (height, width) in
    pixels of each picture. The code behind it reads a grid's rows as columns, and so does this.
    Returns (K, D) and the tokens of each picture.
    """
    side = int(features.shape[1] ** 0.5)
    tokens, start = [], 0
    for (R, C), (height, width) in zip(grids, sizes, strict=True):
        full, end = start, start + 1 + R * C
        kept = features[full][mask[full]]
        if R * C > 0:
            # (D, C * side, R * side): all tokens are copied once more, channels first.
            canvas = features[full + 1 : end].view(C, R, side, side, -1).permute(4, 0, 2, 1, 3)
            canvas = canvas.contiguous().flatten(1, 2).flatten(2, 3)
            chosen = mask[full + 1 : end].view(C, R, side, side).permute(0, 2, 1, 3).contiguous()
            chosen = chosen.flatten(0, 1).flatten(1, 2)
            rows, cols = _unpadded(height, width, C * side, R * side)
            canvas, chosen = canvas[:, rows, cols], chosen[rows, cols]
            sub = canvas.flatten(1, 2)[:, chosen.flatten()].transpose(0, 1)
            kept = torch.cat((kept, sub))
        tokens.append(kept)
        start = end
    return torch.cat(tokens), [len(picture) for picture in tokens]


def select(
    features: Tensor,
    queries_init: Tensor,
    keys_init: Tensor,
    queries_final: Tensor,
    keys_final: Tensor,
    *,
    grids: Sequence[tuple[int, int]],
    sizes: Sequence[tuple[int, int]],
    rate: float = 0.2,
    alpha: float = 0.5,
    scale: float | None = None,
) -> Kept:
    """All stages in turn, for a batch of pictures.

    features (P, T, D); queries and keys (P, N, H, Dh) of both layers, of every partition; `grids`
    the (R, C) and `sizes` the (height, width) in pixels of each picture; `rate` the share of its
    tokens to keep. Raises as `sub_image_budgets` does.
    """
    T = features.shape[1]
    partitions = [1 + R * C for R, C in grids]
    attn_final = attention_rows(queries_final, keys_final, T, scale)
    attn_init = attention_rows(queries_init, keys_init, T, scale)
    budgets = [token_budget(count, T, rate) for count in partitions]
    mask = kept_mask(attn_init, attn_final, partitions, budgets, alpha)
    tokens, lengths = gather(features, mask, grids, sizes)
    return Kept(tokens, mask, lengths)


def _unpadded(height: int, width: int, rows: int, cols: int) -> tuple[slice, slice]:
    """Rows and columns of a canvas that are picture, by the published rounding."""
    if width / height > cols / rows:
        padding = (rows - int(height * (cols / width))) // 2
        return slice(padding, rows - padding), slice(None)
    padding = (cols - int(width * (rows / height))) // 2
    return slice(None), slice(padding, cols - padding)
