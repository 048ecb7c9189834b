# SPDX-License-Identifier: Apache-2.0
"""Who chooses which K tokens of a picture stay: HiRED, the published code, and controls.

All get the same pictures, the same layers of the tower and the same K. What the operators can do
is done by them; the controls are written to be read, from the sections of
`hired_kernels/reference.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

import hired_kernels
from hired_kernels import geometry, reference
from hired_kernels.cli.taken_apart import Encoded, queries_and_keys

from . import answering
from .subject import Subject

ALPHA = 0.5


@dataclass(frozen=True, eq=False)
class Seen:
    """B pictures of one size: what was painted, where it is cut, and what the tower makes of it.

    pictures (B, height, width, 3) uint8. tokens (B, P * T, D): all that LLaVA could read; projected
    (B, P * T, width): the same as the language model reads them.
    initial (B, T), final (B, P, T): attention of the initial layer in the full image and of the
    feature layer in every partition, summed over heads. encoded: the same as queries and keys.
    patches (B * P, T, H, Dh): the feature layer's queries of all patches.
    """

    subject: Subject
    pictures: np.ndarray
    tower: nn.Module
    layout: geometry.Layout
    encoded: Encoded
    tokens: Tensor
    projected: Tensor
    initial: Tensor
    final: Tensor
    patches: Tensor


Kept = list[list[int]]  # of each picture, `p * T + t` in the order in which they are read
# Who does not choose among tokens but makes its own gives those: (B, at most K, D).
Contender = Callable[[Seen, int, np.random.Generator], Kept | Tensor]


def see(subject: Subject, pictures: np.ndarray, model: nn.Module) -> Seen:
    """Pictures of one size through a LLaVA's tower and projector."""
    tower = model.model.vision_tower
    layout = subject.layout(*pictures.shape[1:3])
    T, P = layout.tokens, layout.partitions
    encoded = answering.begin(tower, subject.partitions(pictures))
    tokens = answering.features(tower, encoded, len(pictures))
    projected = model.model.multi_modal_projector(tokens)
    scale = tower.encoder.layers[0].self_attn.scale
    patches = queries_and_keys(tower, encoded.layer, encoded.hidden)[0][:, -T:]

    def rows(query: Tensor, key: Tensor) -> Tensor:
        attention = torch.einsum("phd,pnhd->phn", query.float(), key.float()) * scale
        return reference.head_sums(attention.softmax(dim=-1))[:, -T:]

    query, key, *final = encoded.scores()
    initial, feature = rows(query, key), rows(*final).unflatten(0, (-1, P))
    attention = initial, feature
    return Seen(subject, pictures, tower, layout, encoded, tokens, projected, *attention, patches)


def hired(seen: Seen, K: int, rng: np.random.Generator, alpha: float = ALPHA) -> Kept:
    """`policy="exact"`, by the operator."""
    return _select_qk(seen, K, alpha)


def less_full_image(seen: Seen, K: int, rng: np.random.Generator) -> Kept:
    """`exact` with a quarter of the tokens, not half, for the full image."""
    return hired(seen, K, rng, alpha=0.25)


def published(seen: Seen, K: int, rng: np.random.Generator) -> Kept:
    """`policy="published"`, by the operator, packed as the published code packs."""
    (grid,), (crop,) = geometry.published_layout([seen.layout])
    return _select_qk(seen, K, policy="published", grid=grid, crop=crop)


def attention_mass(seen: Seen, K: int, rng: np.random.Generator) -> Kept:
    """`exact`, but a sub-image weighs what attention falls on it, not how many best patches."""
    kept = []
    for initial, final in zip(seen.initial, seen.final, strict=True):
        picture, valid, capacities = _picture(seen.layout, K)
        _, R, C, _, crop = picture
        weights = [0] * (R * C)
        region = reference.region_of_patches(R, C, seen.layout.tokens, crop)
        for score, i in zip((initial * 2**30).long().tolist(), region, strict=True):
            weights[i] += score
        k0 = max(min(int(K * ALPHA), capacities[0]), K - sum(capacities[1:]))
        budgets = [k0, *reference.share_out(K - k0, weights, capacities[1:])]
        best = [
            reference.keep(scores, budget, patches, "exact")
            for scores, budget, patches in zip(final, budgets, valid, strict=True)
        ]
        kept.append(reference.reading_order(picture, best, seen.layout.tokens, "raster"))
    return kept


def pooled(seen: Seen, K: int, rng: np.random.Generator) -> Kept:
    """`policy="pooled"`: the K best of all partitions at once, no allocation."""
    return _select_qk(seen, K, policy="pooled")


def judged(judges: Callable[[Seen], Tensor], policy: str = "exact") -> Contender:
    """A contender that asks queries of the patches (P, Q, H, Dh) in place of CLS. Where budgets are
    weighed, the full image's scores at the feature layer stand for those at the initial one."""

    def keep(seen: Seen, K: int, rng: np.random.Generator) -> Kept:
        return _select_qk(seen, K, policy=policy, judges=judges(seen))

    return keep


def all_patches(seen: Seen) -> Tensor:
    """What a patch gets from all patches together: attention received."""
    return seen.patches


def one_in(count: int) -> Callable[[Seen], Tensor]:
    """One in so many of the patches, on an even lattice."""

    def judges(seen: Seen) -> Tensor:
        side = seen.layout.side
        return seen.patches[:, geometry.lattice(side, int(side / count**0.5))]

    return judges


def mean_query(seen: Seen) -> Tensor:
    """One query: the mean of all patches'."""
    return seen.patches.mean(dim=1, keepdim=True)


def full_image_only(seen: Seen, K: int, rng: np.random.Generator) -> Kept:
    """The best of the full image, as many as it has, and no sub-image."""
    return [sorted(reference.rank(scores[0])[:K]) for scores in seen.final]


def uniform_grid(seen: Seen, K: int, rng: np.random.Generator) -> Kept:
    """Evenly spread over each partition, each in proportion to its size."""
    picture, _, capacities = _picture(seen.layout, K)
    shares = reference.share_out(K, capacities, capacities)
    side = seen.layout.side
    spread = _dither(side)
    crop = picture.crop
    kept = []
    for p, share in enumerate(shares):
        ranks = spread
        if p > 0:  # the window of the picture may begin anywhere in a tile
            r, c = divmod(p - 1, picture.C)
            ranks = np.roll(spread, (crop[0] - r * side, crop[2] - c * side), (0, 1))
        valid = reference.valid_patches(picture, side * side)[p]
        kept.append(sorted(sorted(valid, key=ranks.ravel().tolist().__getitem__)[:share]))
    order = reference.reading_order(picture, kept, side * side, "raster")
    return [order] * len(seen.final)


def at_random(seen: Seen, K: int, rng: np.random.Generator) -> Kept:
    """Any K that are not padding."""
    scores = torch.from_numpy(rng.random(seen.final.shape))
    return [_best(seen.layout, row, K) for row in scores]


CONTENDERS: dict[str, Contender] = {
    "exact": hired,
    "published": published,
    "exact, α = 0.25": less_full_image,
    "attention mass": attention_mass,
    "pooled": pooled,
    "all patches": judged(all_patches),
    "patches, 1 in 4": judged(one_in(4)),
    "patches, 1 in 16": judged(one_in(16)),
    "mean query": judged(mean_query),
    "pooled, 1 in 4": judged(one_in(4), "pooled"),
    "random": at_random,
    "uniform grid": uniform_grid,
    "full image only": full_image_only,
}


def _select_qk(
    seen: Seen,
    K: int,
    alpha: float = ALPHA,
    policy: str = "exact",
    *,
    judges: Tensor | None = None,
    grid: geometry.Grid | None = None,
    crop: geometry.Crop | None = None,
) -> Kept:
    """By the operator. judges (B * P, Q, H, Dh): in place of CLS; grid, crop: of the layout."""
    B, P = seen.final.shape[:2]
    scores = seen.encoded.scores()
    if judges is not None:
        key = scores[3]
        judges = judges.to(key.dtype)
        scores = judges[::P], key[::P], judges, key
    kept = hired_kernels.select_qk(
        seen.encoded.features,
        *scores,
        grids=[grid or seen.layout.grid] * B,
        budget=K,
        alpha=alpha,
        crops=[crop or seen.layout.crop] * B,
        policy=policy,
    )
    # The operator counts partitions through the batch.
    rows = kept.indices.unflatten(0, (B, -1)) - torch.arange(B)[:, None] * P * seen.layout.tokens
    return [row[row >= 0].tolist() for row in rows]


def _picture(
    layout: geometry.Layout, K: int
) -> tuple[reference.Picture, list[range | set[int]], list[int]]:
    picture = reference.Picture(0, *layout.grid, K, layout.crop)
    valid = reference.valid_patches(picture, layout.tokens)
    return picture, valid, [len(patches) for patches in valid]


def _best(layout: geometry.Layout, scores: Tensor, K: int) -> list[int]:
    """The K best patches that are not padding, of scores (P, T), in reading order."""
    picture, valid, _ = _picture(layout, K)
    T, kept = layout.tokens, [[] for _ in valid]
    best = [divmod(flat, T) for flat in reference.rank(scores.flatten())]
    for p, t in [(p, t) for p, t in best if t in valid[p]][:K]:
        kept[p].append(t)
    return reference.reading_order(picture, [sorted(row) for row in kept], T, "raster")


def _dither(side: int) -> np.ndarray:
    """A rank for each patch; the first k are spread evenly, for every k: Bayer's matrix."""
    matrix = np.zeros((1, 1), dtype=np.int64)
    while len(matrix) < side:
        matrix = np.block([[4 * matrix, 4 * matrix + 2], [4 * matrix + 3, 4 * matrix + 1]])
    return matrix[:side, :side]
