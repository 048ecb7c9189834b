# SPDX-License-Identifier: Apache-2.0
"""What a processor does differently while HiRED is switched on: it counts the kept tokens.

Each mixin stands before a transformers class in a subclass made for it (`classes`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers.image_utils import get_image_size, infer_channel_dimension_format

from .. import geometry
from .accounting import refuse
from .classes import Switched, turn_on
from .state import ROWS, TILES, rows_of


class OneImageProcessor(Switched):
    """LLaVA-1.5's processor counts the patches of a picture and adds this."""

    @property
    def num_additional_image_tokens(self) -> int:
        own = self.__dict__["num_additional_image_tokens"]
        switch = vars(self).get("hired")
        if switch is None:
            return own
        tile = switch.anatomy.tile
        dropped = self.vision_feature_select_strategy == "default"
        return switch.placeholders(tile, tile, None) - (tile // self.patch_size) ** 2 + dropped

    @num_additional_image_tokens.setter
    def num_additional_image_tokens(self, value: int) -> None:
        self.__dict__["num_additional_image_tokens"] = value


class SubImagesProcessor(Switched):
    """LLaVA-NeXT's processor."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As the class's own, with `hired_rows`, (pictures,) integers, beside `image_sizes`.

        Rows of patches that each picture's sub-images have, 0 without: what the stock model counts
        newlines by, and so finds sizes that are not (height, width). Not where the model inside is
        switched on alone: the stock model around it would refuse them.
        """
        inputs, switch = super().__call__(*args, **kwargs), vars(self).get("hired")
        if switch is not None and switch.has_head and inputs.get("image_sizes") is not None:
            pinpoints = self.image_processor.image_grid_pinpoints
            inputs[ROWS] = rows_of(switch.anatomy.with_pinpoints(pinpoints), inputs["image_sizes"])
        return inputs

    def _get_number_of_features(
        self, orig_height: int, orig_width: int, height: int, width: int
    ) -> int:
        # The processor takes one off where CLS is dropped.
        switch = vars(self).get("hired")
        if switch is None:
            return super()._get_number_of_features(orig_height, orig_width, height, width)
        dropped = self.vision_feature_select_strategy == "default"
        pinpoints = self.image_processor.image_grid_pinpoints
        return switch.placeholders(int(orig_height), int(orig_width), pinpoints) + dropped


# Whether the number of patch tokens that is asked for stands for a picture without sub-images.
_ONE_TILE: ContextVar[bool] = ContextVar("hired_one_tile", default=False)


class AnyResolutionProcessor(SubImagesProcessor):
    """LLaVA-OneVision's processor, which counts `num_image_tokens` and a newline for each of
    several pictures of a prompt."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # Without `hired_rows`: the number of pictures of each prompt would have to go with it.
        return super(SubImagesProcessor, self).__call__(*args, **kwargs)

    @property
    def num_image_tokens(self) -> int:
        switch = vars(self).get("hired")
        if switch is None or not _ONE_TILE.get():
            return self.__dict__["num_image_tokens"]
        # The class adds a newline, and takes one off where CLS is dropped.
        dropped = self.vision_feature_select_strategy == "default"
        return switch.one_tile_placeholders() - 1 + dropped

    @num_image_tokens.setter
    def num_image_tokens(self, value: int) -> None:
        self.__dict__["num_image_tokens"] = value

    def replace_image_token(self, *args: Any, **kwargs: Any) -> str:
        with _one_tile():
            return super().replace_image_token(*args, **kwargs)

    def _expand_image_tokens(self, *args: Any, **kwargs: Any) -> Any:
        """What older versions of transformers have in its place."""
        with _one_tile():
            return super()._expand_image_tokens(*args, **kwargs)


@contextmanager
def _one_tile() -> Iterator[None]:
    token = _ONE_TILE.set(True)
    try:
        yield
    finally:
        _ONE_TILE.reset(token)


@dataclass
class _Call:
    """What a call of InternVL's processor comes upon: the grid of each picture, and the number of
    frames of each video. `counts` where it is to count tokens, not tiles of as many tokens."""

    tile: int
    grids: list[geometry.Grid] = field(default_factory=list)
    frames: list[int] = field(default_factory=list)
    counts: bool = False


_CALL: ContextVar[_Call | None] = ContextVar("hired_call", default=None)


class TilesProcessor(Switched):
    """InternVL's processor."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As the class's own, with `hired_tiles` beside `pixel_values`.

        (pictures and frames, 3) integers, in the order of the prompts: rows and columns of tiles,
        both 0 where there is one tile, and 1 for a frame of a video, else 0.
        """
        switch = vars(self).get("hired")
        if switch is None:
            return super().__call__(*args, **kwargs)
        turn_on(self.image_processor, TilesImageProcessor)
        call = _Call(switch.anatomy.tile)
        token = _CALL.set(call)
        try:
            inputs = super().__call__(*args, **kwargs)
        finally:
            _CALL.reset(token)
        pixels = inputs.get("pixel_values")
        if pixels is not None:
            text = kwargs.get("text", args[1] if len(args) > 1 else None)
            inputs[TILES] = _like(pixels, self._hired_tiles(text, call))
        return inputs

    def _hired_tiles(self, text: Any, call: _Call) -> list[list[int]]:
        """Pictures and frames in the order of the prompts, as the class's own method sorts them."""
        grids, frames, tiles = iter(call.grids), iter(call.frames), []
        tokens = f"{re.escape(self.image_token)}|{re.escape(self.video_token)}"
        for prompt in [text] if isinstance(text, str) else text:
            for token in re.findall(tokens, prompt):
                if token == self.image_token:
                    tiles.append([*next(grids), 0])
                else:
                    tiles.extend([0, 0, 1] for _ in range(next(frames)))
        return tiles

    def replace_image_token(self, image_inputs: Any, image_idx: int, **kwargs: Any) -> str:
        switch = vars(self).get("hired")
        if switch is None:
            return super().replace_image_token(image_inputs, image_idx, **kwargs)
        count = switch.tiled_placeholders(int(image_inputs["num_patches"][image_idx]))
        return f"{self.start_image_token}{self.image_token * count}{self.end_image_token}"

    def replace_video_token(self, video_inputs: Any, video_idx: int, **kwargs: Any) -> str:
        written, call = super().replace_video_token(video_inputs, video_idx, **kwargs), _CALL.get()
        if call is not None:
            call.frames.append(len(video_inputs["pixel_values_videos"][video_idx]))
        switch = vars(self).get("hired")
        if switch is None:
            return written
        count = switch.tiled_placeholders(1, frame=True)
        stock = self.image_token * self.image_seq_length
        return written.replace(stock, self.image_token * count)

    def _get_num_multimodal_tokens(self, image_sizes: Any = None, **kwargs: Any) -> Any:
        data = super()._get_num_multimodal_tokens(image_sizes, **kwargs)
        switch = vars(self).get("hired")
        if switch is not None and image_sizes is not None:
            counts = map(switch.tiled_placeholders, data["num_image_patches"])
            data.num_image_tokens = [2 + count for count in counts]  # start and end
        return data

    # Older versions of transformers have no methods that write what stands for one picture or
    # video, but one that writes `image_seq_length` tokens for each of their tiles.

    @property
    def image_seq_length(self) -> int:
        call = _CALL.get()
        return 1 if call is not None and call.counts else self.__dict__["image_seq_length"]

    @image_seq_length.setter
    def image_seq_length(self, value: int) -> None:
        self.__dict__["image_seq_length"] = value

    def _insert_media_placeholders(
        self, text: Any, images: Any, videos: Any, tiles: Any, frames: Any, *ends: Any
    ) -> Any:
        switch, call = vars(self).get("hired"), _CALL.get()
        if switch is not None and call is not None:
            call.frames, call.counts = np.diff(ends[-1]).tolist(), True
            tiles = [switch.tiled_placeholders(int(count)) for count in tiles]
            frames = [switch.tiled_placeholders(1, frame=True)] * len(frames)
        return super()._insert_media_placeholders(text, images, videos, tiles, frames, *ends)


class TilesImageProcessor(Switched):
    """InternVL's image processor, which knows the grids that nobody else is told."""

    def _preprocess(self, images: Any, *args: Any, **kwargs: Any) -> Any:
        call = _CALL.get()
        if call is not None:
            size = kwargs["size"]
            if (size.height, size.width) != (call.tile, call.tile):
                expected = f"{call.tile}, the model's image_size"
                raise refuse("size", expected, (size.height, size.width))
            tiles = (max(1, kwargs["min_patches"]), kwargs["max_patches"])
            for image in images:
                pixels = get_image_size(image, infer_channel_dimension_format(image))
                cut = kwargs["crop_to_patches"] and tiles[1] > 1
                grid = geometry.tiled_grid(*pixels, tiles=tiles, tile=call.tile) if cut else (0, 0)
                call.grids.append(grid)
        return super()._preprocess(images, *args, **kwargs)


def _like(pixels: Any, tiles: list[list[int]]) -> Any:
    """In the kind that the pixels come in."""
    if isinstance(pixels, torch.Tensor):
        return torch.tensor(tiles, dtype=torch.int64).reshape(-1, 3)
    return np.array(tiles, dtype=np.int64) if isinstance(pixels, np.ndarray) else tiles
