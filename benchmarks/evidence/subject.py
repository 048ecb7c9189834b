# SPDX-License-Identifier: Apache-2.0
"""What a kind of picture has to offer, to be trained on and asked about."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from hired_kernels import geometry

from . import tiles

SPECIAL = ("<unk>", "<pad>", "<s>", "</s>", "<image>")
PATCH = tiles.PATCH
Size = tuple[int, int]  # height and width in pixels


class Scene(Protocol):
    """What a picture shows."""

    @property
    def height(self) -> int:
        """In pixels."""

    @property
    def width(self) -> int:
        """In pixels."""


@dataclass(frozen=True)
class Question:
    """One question, its answer of one word, and which of its subject's kinds it is."""

    kind: str
    text: str
    answer: str


@dataclass(frozen=True)
class Shown:
    """What the patches of B pictures of one size show, partition after partition, (B, P * T).

    about (B, P * T, ANSWERS): 1 for each of the subject's answers that a patch has to do with, else
    0; -1 in patches of which nobody asks. own (B, P * T): the one answer that can be read in a
    patch, one of the first `readable` answers, -1 where there is none; or None.
    """

    about: Tensor
    own: Tensor | None = None
    readable: int = 0


@dataclass(frozen=True)
class Network:
    """Widths, heads and layers of the tower and of the language model."""

    D: int
    heads: int
    layers: int
    text_D: int
    text_layers: int


LARGE = Network(D=384, heads=6, layers=8, text_D=384, text_layers=6)  # for a GPU


@dataclass(frozen=True)
class Stage:
    """Steps of a stage of training, pictures of a step, and steps until the learning rate is at its
    height.

    In stage 2 there are so many questions of each kind about a picture. The first `short` steps
    have prompts of what shows something and at most one in `others` of all tokens besides; the
    first `few` of these have scenes with little to see. The projector, and what words are embedded
    and named by, learn `naming` times as fast as the rest.
    """

    steps: int
    pictures: int
    warm: int = 200
    short: int = 0
    few: int = 0
    questions: int = 3
    others: int = 4
    naming: float = 1.0


@dataclass(frozen=True)
class Subject:
    """A kind of picture.

    tile: pixels a side. sizes: how often of a hundred training pictures; asked_sizes: the same of
    the evaluation's. answers: what a patch can be about; words: the vocabulary, these among them;
    longest: words of the longest question. fastest: radians a patch of the quickest wave among the
    positions that a tower begins with; near pi they tell a patch from its neighbour. loud: their
    amplitude. alike: whether queries and keys begin alike, and a patch is brought to the embeddings
    of its words by their cosine, so that a word of a question attends to its patches.

    draw_scene, paint: scenes of one size, and their pictures (B, height, width, 3) uint8. draw_few:
    scenes with little to see. ask: so many questions of each kind
    about a scene. shown: what the patches of scenes of one size show.

    Stage 1: heads of a network, a batch of so many pictures of a size, and the loss of a tower and
    heads on it, with shares that were right.
    """

    name: str
    tile: int
    sizes: Mapping[Size, int]
    asked_sizes: Mapping[Size, int]
    kinds: tuple[str, ...]
    answers: tuple[str, ...]
    words: tuple[str, ...]
    longest: int
    draw_scene: Callable[[np.random.Generator, Size], Any]
    draw_few: Callable[[np.random.Generator, Size], Any]
    paint: Callable[[np.random.Generator, list[Any]], np.ndarray]
    ask: Callable[[np.random.Generator, Any, int, Sequence[str]], list[Question]]
    shown: Callable[[list[Any]], Shown]
    heads: Callable[[Network], nn.Module]
    draw_lesson: Callable[[np.random.Generator, Size, int], Any]
    lesson: Callable[[nn.Module, Any, Any], tuple[Tensor, dict[str, float]]]
    networks: Mapping[str, Network]
    tower_stage: Stage
    answer_stage: Stage
    fastest: float = 1.0
    loud: float = 0.5
    alike: bool = False

    @property
    def side(self) -> int:
        """Patches a side of a tile."""
        return self.tile // PATCH

    @cached_property
    def ids(self) -> dict[str, int]:
        """Each word's number."""
        return {word: number for number, word in enumerate(self.words)}

    def draw_size(self, rng: np.random.Generator) -> Size:
        """A size, as often as `sizes` says."""
        sizes = list(self.sizes)
        return sizes[rng.choice(len(sizes), p=np.array(list(self.sizes.values())) / 100)]

    def layout(self, height: int, width: int) -> geometry.Layout:
        """How a picture is cut up."""
        return tiles.layout_of(height, width, self.tile)

    def partitions(self, pictures: np.ndarray) -> Tensor:
        """(B, height, width, 3) uint8 -> (B, partitions, 3, tile, tile), full image first."""
        return tiles.partitions(pictures, self.tile)


def moved(batch: Any, device: torch.device) -> Any:
    """A dataclass of tensors on another device."""
    return type(batch)(*(getattr(batch, field.name).to(device) for field in fields(batch)))
