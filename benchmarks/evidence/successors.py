# SPDX-License-Identifier: Apache-2.0
"""What others do with K tokens: a smaller picture, merging, distances, coverage.

Written from the papers, to be read, with the same K for a whole picture as all other contenders.
Where a method was made for one image, it gets the tokens of all partitions together.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from hired_kernels import reference

from . import answering, tiles
from .contenders import Contender, Kept, Seen
from .tiles import PATCH

DOMINANT = 54 / 64  # VisionZip's share of tokens that are kept as they are
IMPORTANT = 0.5  # VisPruner's share of tokens that attention chooses


def smaller_picture(seen: Seen, K: int, rng: np.random.Generator) -> Tensor:
    """VTC-Bench's control (arXiv 2510.07143): the picture shrunk until all of its tokens are K or
    fewer. It is cut into tiles as a large one; there is no full image, which would only repeat it.
    """
    B, height, width, _ = seen.pictures.shape
    side = seen.layout.side
    rows, cols = height / PATCH, width / PATCH
    shrink = min(1.0, (K / (rows * cols)) ** 0.5)
    rows, cols = max(int(rows * shrink), 1), max(int(cols * shrink), 1)
    if rows * (cols + 1) <= K and cols < width // PATCH:
        cols += 1  # nearer to K than whole patches of the true shape
    pixels = tiles.shrunk(seen.pictures, rows * PATCH, cols * PATCH)
    grid = -(-rows // side), -(-cols // side)
    cut = tiles.normal(tiles.sub_images(pixels, grid, seen.subject.tile))
    tokens = answering.features(seen.tower, answering.begin(seen.tower, cut), B)
    sheet = tokens.unflatten(1, (*grid, side, side)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
    return sheet[:, :rows, :cols].flatten(1, 2)


def visionzip(seen: Seen, K: int, rng: np.random.Generator) -> Tensor:
    """VisionZip (arXiv 2412.04467): in each partition dominant tokens, by the attention of CLS, and
    contextual ones. At even steps among the other tokens are targets; all that are left are merged,
    by a mean, each into the target whose key is most like its own. Every partition has its share of
    K, as theirs all have the same number."""
    valid = _valid(seen)
    P, T = seen.final.shape[1:]
    members = [(valid // T == p).nonzero()[:, 0] for p in range(P)]
    capacities = [len(row) for row in members]
    shares = reference.share_out(K, capacities, capacities)
    keys = functional.normalize(seen.encoded.key_final[:, -T:].flatten(2).float(), dim=2)
    keys = keys.unflatten(0, (-1, P)).flatten(1, 2)
    made = []
    for picture in range(len(seen.final)):
        scores, parts = seen.final[picture].flatten(), []
        for row, share in zip(members, shares, strict=True):
            mine = valid[row]
            best = scores[mine].argsort(descending=True, stable=True)
            dominant, rest = best[: round(DOMINANT * share)], best[round(DOMINANT * share) :]
            rest, count = mine[rest.sort().values], share - len(dominant)
            tokens = seen.tokens[picture]
            parts.append((mine[dominant], tokens[mine[dominant]]))
            if count:
                at = torch.arange(count) * len(rest) // count
                near = (keys[picture, rest] @ keys[picture, rest[at]].T).argmax(dim=1)
                near[at] = torch.arange(count)
                merged = torch.zeros(count, tokens.shape[1]).index_add(0, near, tokens[rest])
                sizes = torch.bincount(near, minlength=count)[:, None]
                parts.append((rest[at], merged / sizes))
        places, tokens = (torch.cat(each) for each in zip(*parts, strict=True))
        made.append(tokens[_rank_of(seen)[places].argsort()])
    return torch.stack(made)


def divprune(seen: Seen, K: int, rng: np.random.Generator) -> Kept:
    """DivPrune (arXiv 2503.02175): no attention; one after the other, the projected token whose
    smallest distance from those before it is largest. The first is the farthest from its neighbour.
    """
    return _first(seen, _by_distance(seen), K)


@lru_cache(maxsize=1)
def _by_distance(seen: Seen) -> Tensor:
    distance = 1 - _alike(seen, seen.projected)
    (B, V), each = distance.shape[:2], torch.arange(distance.shape[0])
    left = (distance + 2 * torch.eye(V)).amin(dim=2)  # a cosine distance is 2 at most
    chosen = [left.argmax(dim=1)]
    left = torch.full((B, V), torch.inf)
    for _ in range(V - 1):
        left = torch.minimum(left, distance[each, chosen[-1]])
        left[each, chosen[-1]] = -1
        chosen.append(left.argmax(dim=1))
    return torch.stack(chosen, dim=1)


def scope(seen: Seen, K: int, rng: np.random.Generator) -> Kept:
    """SCOPE (arXiv 2510.24214): one after the other, the token by which most is gained: how much
    more like one of the chosen all tokens become, times the attention that CLS pays to it."""
    return _first(seen, _by_coverage(seen), K)


@lru_cache(maxsize=1)
def _by_coverage(seen: Seen) -> Tensor:
    orders = []
    saliencies = seen.final.flatten(1)[:, _valid(seen)]
    for alike, saliency in zip(_alike(seen, seen.tokens), saliencies, strict=True):
        covered, left, chosen = torch.zeros_like(saliency), saliency.clone(), []
        for _ in saliency:
            gain = functional.relu(alike - covered).sum(dim=1)
            chosen.append(int((gain * left).argmax()))
            left[chosen[-1]] = -1
            covered = torch.maximum(covered, alike[chosen[-1]])
        orders.append(chosen)
    return torch.tensor(orders)


def vispruner(seen: Seen, K: int, rng: np.random.Generator) -> Kept:
    """VisPruner (arXiv 2412.01818): half of the tokens by the attention of CLS. Of the others those
    are removed, some in each round, that are most like one of every second token."""
    valid = _valid(seen)
    order = seen.final.flatten(1)[:, valid].argsort(dim=1, descending=True, stable=True)
    important, alike = round(IMPORTANT * K), _alike(seen, seen.tokens)
    rows = []
    for picture, ranked in enumerate(order):
        rest = ranked[important:]  # in the order of attention, as theirs
        while len(rest) > K - important:
            apart, others = rest[::2], rest[1::2]
            drop = min(len(rest) - (K - important), max(len(apart) // 2, 1))
            twins = alike[picture, apart][:, others].amax(dim=1) if len(others) else apart
            apart = apart[twins.argsort(stable=True)[: len(apart) - drop].sort().values]
            rest = torch.cat((apart, others))
        rows.append(torch.cat((ranked[:important], rest)))
    return _first(seen, torch.stack(rows), K)


SUCCESSORS: dict[str, Contender] = {
    "smaller picture": smaller_picture,
    "VisionZip": visionzip,
    "DivPrune": divprune,
    "SCOPE": scope,
    "VisPruner": vispruner,
}


def _valid(seen: Seen) -> Tensor:
    """All tokens that are not padding, `p * T + t` in reading order."""
    height, width = seen.pictures.shape[1:3]
    return answering.raster_order(height, width, seen.subject.tile)


def _rank_of(seen: Seen) -> Tensor:
    """When each of P * T tokens is read."""
    valid = _valid(seen)
    return torch.zeros(seen.tokens.shape[1], dtype=torch.long).index_copy(
        0, valid, torch.arange(len(valid))
    )


def _alike(seen: Seen, tokens: Tensor) -> Tensor:
    """Cosines between all tokens (B, P * T, D) that are not padding, (B, V, V)."""
    tokens = functional.normalize(tokens[:, _valid(seen)], dim=2)
    return tokens @ tokens.mT


def _first(seen: Seen, order: Tensor, K: int) -> Kept:
    """The first K of an order of the tokens that are not padding, (B, V)."""
    return _valid(seen)[order[:, :K].sort().values].tolist()
