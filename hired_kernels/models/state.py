# SPDX-License-Identifier: Apache-2.0
"""What is switched on: `model.hired`, shared by a model, the model inside it and its processor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .accounting import Anatomy, Settings, placeholders, plan_of, refuse

# What the switched processor hands to the model: beside `image_sizes`, and where a model is given
# no sizes (InternVL).
ROWS, TILES = "hired_rows", "hired_tiles"

Sizes = Sequence[tuple[int, int]]


@dataclass(eq=False)
class Switch:
    """What is switched on, shared by a model and its processor.

    settings: as given to `apply_hired`. anatomy: of the model's configuration at that time.
    why_full: why the vision tower cannot stop early, as of the last picture, None if it does.
    with_cls: each picture's CLS token is kept before its patches. on: False once the model was
    switched off or over, which makes a processor left behind say so. has_head: the model with its
    head is switched on, not only the one inside.
    """

    settings: Settings
    anatomy: Anatomy
    why_full: str | None
    with_cls: bool
    has_head: bool = True
    on: bool = True

    @property
    def has_surplus(self) -> bool:
        """Whether a picture may come to fewer tokens than it has placeholders."""
        published = self.settings.policy == "published" and self.anatomy.pinpoints is not None
        return published or self.settings.newlines

    @property
    def sees_to(self) -> bool:
        """Whether pictures have to be encoded before the language model's masks or positions are
        known."""
        return self.has_surplus or self.settings.positions == "original"

    def placeholders(self, height: int, width: int, pinpoints: Any) -> int:
        """Tokens of the prompt that stand for one picture of height x width pixels.

        `pinpoints` are the processor's own, which cuts the picture up.
        """
        self._check_on()
        anatomy = self.anatomy.with_pinpoints(pinpoints)
        return placeholders(self.settings, anatomy, height, width) + self.with_cls

    def tiled_placeholders(self, partitions: int, frame: bool = False) -> int:
        """Tokens that stand for a picture of as many tiles, the full image among them, or for a
        frame of a video (InternVL). How its tiles lie makes no difference."""
        self._check_on()
        budget = self.settings.video_budget if frame else self.settings.budget
        if budget is None:
            return partitions * self.anatomy.tokens
        grid = (1, partitions - 1) if partitions > 1 else (0, 0)
        return plan_of(self.settings, self.anatomy, [self.anatomy.tiled(*grid)], [budget]).rows[0]

    def one_tile_placeholders(self) -> int:
        """Tokens that stand for a picture without sub-images, of several in a prompt
        (LLaVA-OneVision)."""
        self._check_on()
        todo = plan_of(self.settings, self.anatomy, [self.anatomy.tiled()])
        return todo.rows[0] + todo.separators[0]

    def _check_on(self) -> None:
        if not self.on:
            raise ValueError(
                "hired: processor: expected the settings of its model, got older ones: HiRED was "
                "switched off or over for the model alone. Call remove_hired(model, processor) or "
                "apply_hired(model, processor, ...) with both"
            )


def sizes_of(image_sizes: Any, pixels: Tensor, anatomy: Anatomy) -> Sizes:
    """(height, width) of each picture. Waits for the device where `image_sizes` lies on one."""
    if anatomy.pinpoints is None:
        return [(anatomy.tile, anatomy.tile)] * pixels.shape[0]
    return pairs_of("image_sizes", image_sizes)


def tiles_of(tiles: Any, pixels: Tensor, settings: Settings) -> list[tuple[int, int, int]]:
    """R, C of each picture or frame, and 1 for a frame. Waits for the device where they lie on one.

    Raises ValueError where they are missing, or are not those of `pixels`, (P, 3, tile, tile).
    """
    if tiles is None:
        options = call_options(settings)
        expected = (
            "the tiles of each picture, which the switched processor returns beside pixel_values: "
            "call `model, processor = hired_kernels.apply_hired(model, processor, "
            f"{options})` and make inputs with that processor"
        )
        raise refuse(TILES, expected, None)
    try:
        values = tiles.tolist() if hasattr(tiles, "tolist") else tiles
        found = [(int(R), int(C), int(frame)) for R, C, frame in values]
    except (TypeError, ValueError, OverflowError):
        found = [(-1, -1, -1)]
    if not all(_is_tiled(*each) for each in found):
        raise refuse(TILES, "(R, C, 1 for a frame) of each picture or frame", tiles)
    P = sum(1 + R * C for R, C, _ in found)
    if pixels.shape[0] != P:
        raise refuse("pixel_values", f"{P} partitions by {TILES}", pixels.shape[0])
    return found


def _is_tiled(R: int, C: int, frame: int) -> bool:
    one_tile = R == C == 0
    return (frame == 0 and (one_tile or min(R, C) >= 1)) or (frame == 1 and one_tile)


def call_options(settings: Settings) -> str:
    """The options of a call of `apply_hired` with these settings, the budget and what differs from
    the defaults."""
    usual = vars(Settings())
    options = [
        f"{name}={value!r}"
        for name, value in vars(settings).items()
        if name == "budget" or value != usual[name]
    ]
    return ", ".join(options)


def rows_of(anatomy: Anatomy, image_sizes: Any) -> Any:
    """Rows of patches that the sub-images of pictures have, in the kind that the sizes come in."""
    rows = [_rows(anatomy, *size) for size in pairs_of("image_sizes", image_sizes)]
    if isinstance(image_sizes, Tensor):
        return torch.tensor(rows, dtype=torch.int64)
    return np.array(rows, dtype=np.int64) if isinstance(image_sizes, np.ndarray) else rows


def check_rows(anatomy: Anatomy, image_sizes: Any, rows: Any) -> None:
    """Raise ValueError for sizes that do not come to the rows that the processor counted."""
    if rows is None or image_sizes is None or anatomy.pinpoints is None:
        return
    sizes = pairs_of("image_sizes", image_sizes)
    try:
        counted = [int(count) for count in (rows.tolist() if hasattr(rows, "tolist") else rows)]
    except (TypeError, ValueError):
        counted = []
    if len(counted) != len(sizes):
        raise refuse(ROWS, f"an integer for each of {len(sizes)} pictures", rows)
    ours = [_rows(anatomy, *size) for size in sizes]
    if counted == ours:
        return
    if counted == [_rows(anatomy, width, height) for height, width in sizes]:
        expected = f"(height, width) in pixels of pictures of {counted} rows of patches"
        raise refuse("image_sizes", expected, [list(size) for size in sizes])
    expected = f"{ours} rows of patches by image_sizes and the model's image_grid_pinpoints"
    got = f"{counted} from the processor: call apply_hired with model and processor"
    raise refuse(ROWS, expected, got)


def _rows(anatomy: Anatomy, height: int, width: int) -> int:
    top, bottom, *_ = anatomy.layout(height, width).crop or (0, 0)
    return bottom - top


def pairs_of(argument: str, image_sizes: Any) -> Sizes:
    """(height, width) of each picture as integers. Raises ValueError for what is none."""
    sizes = image_sizes.tolist() if hasattr(image_sizes, "tolist") else image_sizes
    try:
        found = [(int(height), int(width)) for height, width in sizes]
    except (TypeError, ValueError, OverflowError):
        found = [(0, 0)]
    if any(min(size) < 1 for size in found):
        raise refuse(argument, "(height, width) in pixels of each picture", image_sizes)
    return found
