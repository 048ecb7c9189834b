# SPDX-License-Identifier: Apache-2.0
"""Stage 1: teaches the tower to see, by what its CLS token can tell about a tile.

From the CLS token alone, linear heads have to say which shapes in which colours are there, which
digits, and which digit stands beside which shape. There is a head after every layer, the first
included: what CLS has not collected by then it cannot tell, so attention at the initial layer and
at the feature layer has to fall on what matters. A head on the patches of the feature layer says
what each of them shows and what stands beside it, so that digits are read, and known to belong to a
shape, within minutes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ..lessons import head, weight_on_cls
from ..subject import Network, Shown
from ..tiles import layout_of, partitions
from .pictures import COLOURS, SHAPES, SIDE, TILE, Scene, draw_scene, paint
from .questions import ANSWERS

LOOKS = len(SHAPES) * len(COLOURS)
NOTHING = LOOKS + 10  # what a patch shows: a look, a digit, or nothing


@dataclass(frozen=True)
class Batch:
    """Partitions (P, 3, TILE, TILE) and what they show.

    looks (P, LOOKS), digits (P, 10): 0 or 1. beside (P, LOOKS): the digit beside it, -1 where there
    is none. patches (P, T): what each shows; neighbours (P, T): the digit beside a shape, the look
    beside a digit, -1 of other patches. Of full images, where no digit can be read, digits are
    not asked: `sharp` (P,) bool, and -1 in patches.
    """

    pixels: Tensor
    looks: Tensor
    digits: Tensor
    beside: Tensor
    patches: Tensor
    neighbours: Tensor
    sharp: Tensor


class Heads(nn.Module):
    """What is asked of CLS after each layer, and of the patches of the feature layer."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        outputs = LOOKS + 10 + 10 * LOOKS
        self.cls = nn.ModuleList(head(network.D, outputs) for _ in range(network.layers))
        self.patches = head(network.D, NOTHING + 1)
        self.neighbours = head(network.D, NOTHING)


def draw(rng: np.random.Generator, size: tuple[int, int], pictures: int, most: int = 10) -> Batch:
    """A batch of pictures of one size, crowded ones: up to `most` signs."""
    scenes = [draw_scene(rng, size, most) for _ in range(pictures)]
    pixels = partitions(paint(rng, scenes), TILE)
    P = pixels.shape[1]
    looks, digits = torch.zeros(pictures, P, LOOKS), torch.zeros(pictures, P, 10)
    beside = torch.full((pictures, P, LOOKS), -1)
    patches = torch.full((pictures, P, SIDE * SIDE), NOTHING)
    patches[:, 0] = -1
    neighbours = torch.full_like(patches, -1)
    for b, scene in enumerate(scenes):
        for p, t, look, digit in placed(scene):
            looks[b, 0, look] = looks[b, p, look] = 1
            digits[b, p, digit], beside[b, p, look] = 1, digit
            patches[b, p, t], patches[b, p, t + 1] = look, LOOKS + digit
            neighbours[b, p, t], neighbours[b, p, t + 1] = LOOKS + digit, look
    sharp = torch.ones(pictures, P, dtype=torch.bool)
    sharp[:, 0] = False
    labels = (looks, digits, beside, patches, neighbours, sharp)
    return Batch(pixels.flatten(0, 1), *(label.flatten(0, 1) for label in labels))


def loss(tower: nn.Module, heads: Heads, batch: Batch) -> tuple[Tensor, dict[str, float]]:
    """The loss, and the shares that the feature layer's CLS and patches get right."""
    with torch.autocast(batch.pixels.device.type, torch.bfloat16):
        states = tower(batch.pixels, output_hidden_states=True).hidden_states
    features, present = len(heads.cls) - 2, batch.beside >= 0
    weight = torch.ones(NOTHING + 1, device=batch.pixels.device)
    weight[NOTHING] = 0.1
    seen = heads.patches(states[features + 1][:, 1:].float())
    total = 2 * functional.cross_entropy(
        seen.flatten(0, 1), batch.patches.flatten(), weight, ignore_index=-1
    )
    told = {}
    asked = batch.neighbours >= 0
    beside = heads.neighbours(states[features + 1][:, 1:].float()[asked])
    total = total + 2 * functional.cross_entropy(beside, batch.neighbours[asked])
    right = beside.argmax(dim=1) == batch.neighbours[asked]
    told["neighbours"] = right.float().mean().item()
    for number, read in enumerate(heads.cls):
        cls = states[number + 1][:, 0].float()
        if number == len(heads.cls) - 1:
            cls = tower.post_layernorm(cls)
        looks, digits, beside = read(cls).split((LOOKS, 10, 10 * LOOKS), dim=1)
        beside = beside.unflatten(1, (LOOKS, 10))[present]
        part = 5 * functional.binary_cross_entropy_with_logits(looks, batch.looks)
        part = part + 5 * functional.binary_cross_entropy_with_logits(
            digits[batch.sharp], batch.digits[batch.sharp]
        )
        part = part + functional.cross_entropy(beside, batch.beside[present])
        total = total + weight_on_cls(number, features) * part
        if number in (0, features):
            sharp = batch.sharp
            right = ((looks > 0) == (batch.looks > 0))[sharp].all(dim=1)
            told[f"looks {number}"] = right.float().mean().item()
            right = beside.argmax(dim=1) == batch.beside[present]
            told[f"beside {number}"] = right.float().mean().item()
    signs = (batch.patches >= LOOKS) & (batch.patches < NOTHING)
    told["read"] = (seen.argmax(dim=2) == batch.patches)[signs].float().mean().item()
    return total, told


def placed(scene: Scene) -> list[tuple[int, int, int, int]]:
    """Of each sign: its sub-image, the patch of its shape there, its look, its digit."""
    layout, placed = layout_of(scene.height, scene.width, TILE), []
    for sign in scene.signs:
        row, col = sign.row + layout.crop[0], sign.col + layout.crop[2]
        p = 1 + (row // SIDE) * layout.grid[1] + col // SIDE
        look = SHAPES.index(sign.shape) * len(COLOURS) + list(COLOURS).index(sign.colour)
        placed.append((p, row % SIDE * SIDE + col % SIDE, look, sign.digit))
    return placed


def shown(scenes: list[Scene]) -> Shown:
    """Both patches of a sign are about its colour, its shape and its digit; full images are not
    asked, since digits cannot be read there."""
    layout = layout_of(scenes[0].height, scenes[0].width, TILE)
    about = torch.zeros(len(scenes), layout.partitions, SIDE * SIDE, len(ANSWERS))
    about[:, 0] = -1
    for b, scene in enumerate(scenes):
        for (p, t, _, _), sign in zip(placed(scene), scene.signs, strict=True):
            words = [ANSWERS.index(word) for word in (sign.colour, sign.shape, str(sign.digit))]
            for patch in (t, t + 1):
                about[b, p, patch, words] = 1
    return Shown(about.flatten(1, 2))
