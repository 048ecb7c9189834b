# SPDX-License-Identifier: Apache-2.0
"""What checkpoints in OpenGVLab's own format have in common, InternVL's and others'."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm.multimodal.parse import ImageSize
from vllm.multimodal.processing import PromptUpdate, PromptUpdateDetails

from ... import geometry
from ...models.towers import TowerFamily
from .. import processing, towers
from ..models import InternVlLike
from ..stock import calculate_internvl_targets


class OwnFormat(InternVlLike):
    """InternVL's class, and those that derive from it."""

    pixels = "pixel_values_flat"
    tower_name = "vision_model"
    connector = "mlp1"

    def _family(self) -> type[TowerFamily]:
        return towers.InternVit


class OwnTiles(processing.Tiles):
    """Their processors, which are vLLM's own."""

    pixels = "pixel_values_flat"

    def _stock_tokens(self, size: ImageSize, processor: Any, kwargs: Mapping[str, object]) -> int:
        sides = {"image_width": size.width, "image_height": size.height}
        return self.info.get_num_image_tokens(**sides, processor=processor)

    def _grid(self, size: ImageSize, processor: Any, kwargs: Any) -> geometry.Grid:
        side = processor.image_processor.image_size
        # Those that are cut: the full image is added to them.
        ratios = processor.resolve_target_ratios(use_thumbnail=False)
        _, columns, rows = calculate_internvl_targets(
            orig_width=size.width,
            orig_height=size.height,
            target_ratios=ratios,
            image_size=side,
            use_thumbnail=False,
        )
        return rows // side, columns // side

    def _written(self, update: PromptUpdate, count: int, processor: Any) -> PromptUpdateDetails:
        return processor.get_image_repl(None, num_features=count)
