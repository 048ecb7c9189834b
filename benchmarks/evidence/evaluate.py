# SPDX-License-Identifier: Apache-2.0
"""Accuracy against budget: which way of choosing K tokens answers most questions right.

    python benchmarks evidence            # eight minutes on two cores; docs/evidence.*
    python benchmarks evidence --quick    # a few pictures; prints only

Pictures and questions come from seeds that training does not use. The tower runs once a picture;
every contender's tokens then go through the same projector and language model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ..shared import command
from . import answering
from . import contenders as field
from . import model as small
from .contenders import CONTENDERS
from .pictures import SIZES, Scene, draw_scene, paint
from .questions import KINDS, WORDS, ask
from .tables import write
from .tiles import layout_of, partitions

BUDGETS = (1.0, 0.6, 0.4, 0.2, 0.1, 0.05)
# The published code cannot divide 64 tokens among three sub-images: no pictures of that size here.
ASKED_SIZES = {size: share for size, share in SIZES.items() if size != (336, 112)}
_FIRST_SEED = 1000  # training's are below


@dataclass(frozen=True)
class Group:
    """Pictures of one size, and a question of each kind about each."""

    scenes: list[Scene]
    pictures: np.ndarray
    asked: list[list[Any]]


def groups(seed: int, count: int, batch: int = 20, kinds: Sequence[str] = KINDS) -> Iterator[Group]:
    """`count` pictures in batches of one size, every size as often as `ASKED_SIZES` says."""
    rng = np.random.default_rng((_FIRST_SEED, seed))
    total = sum(ASKED_SIZES.values())
    for size, share in ASKED_SIZES.items():
        left = round(count * share / total)
        while left > 0:
            scenes = [draw_scene(rng, size) for _ in range(min(batch, left))]
            pictures = paint(rng, scenes)
            yield Group(scenes, pictures, [ask(rng, scene, kinds=kinds) for scene in scenes])
            left -= batch


@torch.no_grad()
def right(
    model: torch.nn.Module, group: Group, names: Sequence[str], shares: Sequence[float], seed: int
) -> dict[tuple[str, float], np.ndarray]:
    """Which answers are right, (pictures, KINDS) bool, of each contender at each budget."""
    height, width = group.pictures.shape[1:3]
    layout, tower = layout_of(height, width), model.model.vision_tower
    pixels = partitions(group.pictures)
    encoded = answering.begin(tower, pixels)
    tokens = answering.features(tower, encoded, len(pixels))
    projected = model.model.multi_modal_projector(tokens)
    seen = field.see(layout, encoded, tower)
    labels = torch.tensor([[WORDS.index(each.answer) for each in row] for row in group.asked])

    def answered(kept: field.Kept) -> np.ndarray:
        out = torch.empty_like(labels)
        for length in {len(row) for row in kept}:  # the published policy keeps fewer here and there
            rows = [b for b, row in enumerate(kept) if len(row) == length]
            index = torch.tensor([kept[b] for b in rows], dtype=torch.long).view(len(rows), -1, 1)
            chosen = projected[rows].gather(1, index.expand(-1, -1, projected.shape[2]))
            asked = [group.asked[b] for b in rows]
            out[rows] = answering.answers(model, chosen, asked).argmax(dim=2)
        return (out == labels).numpy()

    results = {}
    for share in shares:
        done: list[tuple[field.Kept, np.ndarray]] = []
        for name in names:
            rng = np.random.default_rng((_FIRST_SEED, seed, height, width))
            kept = CONTENDERS[name](seen, layout.budget(share), rng)
            # At 100 % most contenders keep the same.
            same = next((result for other, result in done if other == kept), None)
            results[name, share] = answered(kept) if same is None else same
            done.append((kept, results[name, share]))
    return results


def _cases(folder: Path, batch: tuple[int, Group]) -> list[dict[str, Any]]:
    """What every contender gets right in a batch of pictures, as it is written down."""
    torch.set_num_threads(1)
    (seed, group), cases = batch, []
    found = right(_loaded(folder), group, list(CONTENDERS), BUDGETS, seed)
    for (name, share), matrix in found.items():
        case = {"seed": seed, "size": list(group.pictures.shape[1:3]), "contender": name}
        case["budget"] = share
        case["right"] = dict(zip(KINDS, matrix.T.astype(int).tolist(), strict=True))
        cases.append(case)
    return cases


@cache
def _loaded(folder: Path) -> torch.nn.Module:
    return small.load(folder)


def main() -> None:
    """Evaluate, and write docs/evidence.md, its plot, and the figures as JSON."""
    parser = command.parser(__doc__)
    parser.add_argument("--model", type=Path, default=small.CHECKPOINT)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--pictures", type=int, default=200, help="of a seed, four questions each")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--quick", action="store_true", help="one seed of 40 pictures; prints only")
    options = parser.parse_args()
    seeds, count = (1, 40) if options.quick else (options.seeds, options.pictures)
    batches = [(seed, group) for seed in range(seeds) for group in groups(seed, count)]
    with ProcessPoolExecutor(options.workers, get_context("spawn")) as pool:
        found = pool.map(partial(_cases, options.model), batches)
        bar = tqdm(found, desc="pictures", unit="batch", total=len(batches))
        cases = [case for batch in bar for case in batch]
    write(cases, quick=options.quick)
