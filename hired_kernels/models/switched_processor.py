# SPDX-License-Identifier: Apache-2.0
"""What a processor does differently while HiRED is switched on: it counts the kept tokens.

Each mixin stands before a transformers class in a subclass made for it (`classes`).
"""

from __future__ import annotations

from typing import Any

from .classes import Switched
from .state import ROWS, rows_of


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
