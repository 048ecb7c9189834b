# SPDX-License-Identifier: Apache-2.0
"""InternVL in transformers' format, of which vLLM's class is Intern-S1's."""

from __future__ import annotations

from typing import Any

from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.parse import ImageSize
from vllm.multimodal.processing import PromptUpdate

from ... import geometry
from ...models.towers import TowerFamily
from .. import processing, towers
from ..models import InternVlLike
from ..stock import (
    InternS1DummyInputsBuilder,
    InternS1ForConditionalGeneration,
    InternS1MultiModalProcessor,
    InternS1ProcessingInfo,
)


class Info(processing.Info, InternS1ProcessingInfo):
    """InternVL's, with the server's options."""

    def get_image_size_with_most_features(self) -> ImageSize:
        """Of the most tiles that a picture is cut into.

        vLLM asks the image processor for it, which by the released checkpoints cuts nothing: it is
        the processor around it that has it cut.
        """
        tile = self.get_hf_config().vision_config.image_size[0]
        most = self.get_hf_processor().image_processor.max_patches
        return ImageSize(width=tile, height=most * tile)


class Processor(processing.Tiles, InternS1MultiModalProcessor):
    """InternVL's, by transformers' processor."""

    def _stock_tokens(self, size: Any, kwargs: Any) -> int:
        processor = self.info.get_hf_processor(**kwargs)
        return self.info.get_num_image_tokens(
            image_width=size.width,
            image_height=size.height,
            processor=processor,
            mm_kwargs=kwargs,
        )

    def _grid(self, height: int, width: int, count: int, processor: Any, kwargs: Any) -> Any:
        asked, images = self.info.ctx.get_merged_mm_kwargs(kwargs), processor.image_processor
        least = max(1, asked.get("min_patches", images.min_patches))
        tiles = least, asked.get("max_patches", images.max_patches)
        tile = self.info.hired.anatomy.tile
        return geometry.tiled_grid(height, width, tiles=tiles, tile=tile)

    def _written(self, update: PromptUpdate, count: int, kwargs: Any) -> Any:
        processor = self.info.get_hf_processor(**kwargs)
        start, end = processor.start_image_token, processor.end_image_token
        tokenizer = self.info.get_tokenizer()
        return processing.written_between(tokenizer, start, processor.image_token, end, count)


@MULTIMODAL_REGISTRY.register_processor(
    Processor, info=Info, dummy_inputs=InternS1DummyInputsBuilder
)
class HiredInternVLForConditionalGeneration(InternVlLike, InternS1ForConditionalGeneration):
    """InternVL with a token budget for its pictures."""

    reads_norm = True

    def _family(self) -> type[TowerFamily]:
        return towers.InternVitHf
