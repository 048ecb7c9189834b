# SPDX-License-Identifier: Apache-2.0
"""What the published HiRED code selects, recorded on seeded inputs: 120 cases.

`cases()` reads tests/data/reference_vectors.npz once. Attention is not stored but drawn again from
a case's seed, on first use. Arrays are NumPy's; a case whose `crash` is set recorded nothing else.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

T = 576
SIDE = 24

_FILE = Path(__file__).parent / "data" / "reference_vectors.npz"


@dataclass(frozen=True, eq=False)
class Case:
    """One batch: B pictures, P partitions, 16 heads, T = 576."""

    number: int
    seed: int
    scale: float
    rate: float  # token budget rate: int(P_i * 576 * rate) tokens for picture i
    alpha: float
    sizes: list[tuple[int, int]]  # (height, width) of each picture
    num_partitions: list[int]  # of each picture
    grids: list[tuple[int, int]]  # (R, C) of each picture
    crash: str | None  # what the published code raised
    counts: list[int] | None  # kept tokens of each partition, before the crop
    feature_lens: list[int] | None  # packed tokens of each picture, after the crop
    mask: np.ndarray | None  # [P, 576] bool: kept tokens, before the crop
    order: np.ndarray | None  # [K] int64: p * 576 + t as packed, after the crop

    @property
    def id(self) -> str:
        return f"{self.number}-{'x'.join(map(str, self.num_partitions))}-{self.rate}-{self.alpha}"

    @cached_property
    def attn_init(self) -> np.ndarray:
        """[P, 16, 576] float32, a CLS row for each head at the initial layer."""
        return rows(self.seed, sum(self.num_partitions), self.scale)

    @cached_property
    def attn_final(self) -> np.ndarray:
        """[P, 16, 576] float32, a CLS row for each head at the final layer."""
        return rows(self.seed + 100000, sum(self.num_partitions), self.scale)


def published_call(case: Case, grids: list[tuple[int, int]], **rules: Any) -> dict[str, Any]:
    """A case as arguments of `select`, by name; `rules` are further ones."""
    return {
        "features": torch.empty(sum(case.num_partitions), T, 0),
        "attn_init": torch.from_numpy(case.attn_init),
        "attn_final": torch.from_numpy(case.attn_final),
        "grids": [number for grid in grids for number in grid],
        "budgets": [int(P * T * case.rate) for P in case.num_partitions],
        "alpha": case.alpha,
        "policy": "published",
        **rules,
    }


def rows(seed: int, P: int, scale: float, H: int = 16) -> np.ndarray:
    """[P, H, 576] float32: softmax rows with heads that agree in part, their CLS column cut off."""
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((P, H, T + 1)) * scale
    z += rng.standard_normal((P, 1, T + 1)) * scale
    z -= z.max(-1, keepdims=True)
    e = np.exp(z)
    return (e / e.sum(-1, keepdims=True)).astype(np.float32)[:, :, 1:]


@cache
def cases() -> list[Case]:
    """All recorded cases, crashes included."""
    with np.load(_FILE) as recorded:
        meta = json.loads(bytes(recorded["meta"]))
        return [_case(number, entry, recorded) for number, entry in enumerate(meta)]


def _case(number: int, entry: dict, recorded: np.lib.npyio.NpzFile) -> Case:
    mask = order = None
    if "crash" not in entry:
        bits = np.unpackbits(recorded[f"mask{number}"])
        mask = bits.reshape(sum(entry["num_partitions"]), T).astype(bool)
        order = recorded[f"order{number}"].astype(np.int64)
    return Case(
        number=number,
        **{key: entry[key] for key in ("seed", "scale", "rate", "alpha", "num_partitions")},
        **{key: [tuple(pair) for pair in entry[key]] for key in ("sizes", "grids")},
        **{key: entry.get(key) for key in ("crash", "counts", "feature_lens")},
        mask=mask,
        order=order,
    )


def packed(case: Case, grids: list, crops: list) -> tuple[list[int], list[int]]:
    """`order` and `feature_lens` that a case's mask has on these grids and crops.

    The full image in index order, then what the crop leaves of the assembled grid in raster order.
    """
    order, lengths, start = [], [], 0
    for P, (R, C), (top, bottom, left, right) in zip(
        case.num_partitions, grids, crops, strict=True
    ):
        picture = slice(start, start + P)
        flat = np.arange(start * T, (start + P) * T).reshape(P, SIDE, SIDE)
        flat = np.where(case.mask[picture].reshape(P, SIDE, SIDE), flat, -1)
        raster = flat[1:].reshape(R, C, SIDE, SIDE).swapaxes(1, 2).reshape(R * SIDE, C * SIDE)
        rows = np.concatenate([flat[0].ravel(), raster[top:bottom, left:right].ravel()])
        order += rows[rows >= 0].tolist()
        lengths.append(int((rows >= 0).sum()))
        start += P
    return order, lengths
