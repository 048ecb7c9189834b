# SPDX-License-Identifier: Apache-2.0
"""InternVL in OpenGVLab's own format."""

from __future__ import annotations

from typing import Any

from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.processing import PromptUpdate

from ...models.towers import TowerFamily
from .. import processing, towers
from ..models import InternVlLike
from ..stock import (
    InternVLChatModel,
    InternVLDummyInputsBuilder,
    InternVLMultiModalProcessor,
    InternVLProcessingInfo,
    calculate_internvl_targets,
)


class OwnFormat(InternVlLike):
    """What vLLM's class for OpenGVLab's format does, and those that derive from it."""

    pixels = "pixel_values_flat"
    tower_name = "vision_model"
    connector = "mlp1"

    def _family(self) -> type[TowerFamily]:
        return towers.InternVit


class OwnTiles(processing.Tiles):
    """What their processors do, which are vLLM's own."""

    pixels = "pixel_values_flat"

    def _stock_tokens(self, size: Any, kwargs: Any) -> int:
        processor = self.info.get_hf_processor(**kwargs)
        sides = {"image_width": size.width, "image_height": size.height}
        return self.info.get_num_image_tokens(**sides, processor=processor)

    def _grid(self, height: int, width: int, count: int, processor: Any, kwargs: Any) -> Any:
        side = processor.image_processor.image_size
        # Those that are cut: the thumbnail is added to them.
        ratios = processor.resolve_target_ratios(use_thumbnail=False)
        _, columns, rows = calculate_internvl_targets(
            orig_width=width,
            orig_height=height,
            target_ratios=ratios,
            image_size=side,
            use_thumbnail=False,
        )
        return rows // side, columns // side

    def _written(self, update: PromptUpdate, count: int, kwargs: Any) -> Any:
        return self.info.get_hf_processor(**kwargs).get_image_repl(None, num_features=count)


class Info(processing.Info, InternVLProcessingInfo):
    """InternVL's, with the server's options."""


class Processor(OwnTiles, InternVLMultiModalProcessor):
    """InternVL's."""


@MULTIMODAL_REGISTRY.register_processor(
    Processor, info=Info, dummy_inputs=InternVLDummyInputsBuilder
)
class HiredInternVLChatModel(OwnFormat, InternVLChatModel):
    """InternVL with a token budget for its pictures."""
