# SPDX-License-Identifier: Apache-2.0
"""InternVL in transformers' format, of which vLLM's class is Intern-S1's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.parse import ImageSize
from vllm.multimodal.processing import PromptUpdate, PromptUpdateDetails, cached_encode

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
    """InternVL's, with the server's options.

    vLLM asks the image processor whether pictures are cut into tiles, which by the released
    checkpoints are not: it is the processor around it that has them cut.
    """

    def get_num_image_tokens(self, *, mm_kwargs: Mapping[str, object], **picture: Any) -> int:
        asked = {"crop_to_patches": True, **self.ctx.get_merged_mm_kwargs(mm_kwargs)}
        return super().get_num_image_tokens(mm_kwargs=asked, **picture)


class Processor(processing.Tiles, InternS1MultiModalProcessor):
    """InternVL's, by transformers' processor."""

    def _stock_tokens(self, size: ImageSize, processor: Any, kwargs: Mapping[str, object]) -> int:
        sides = {"image_width": size.width, "image_height": size.height}
        return self.info.get_num_image_tokens(**sides, processor=processor, mm_kwargs=kwargs)

    def _grid(self, size: ImageSize, processor: Any, kwargs: Any) -> geometry.Grid:
        asked, images = self.info.ctx.get_merged_mm_kwargs(kwargs), processor.image_processor
        asked = {**asked, **(asked.get("images_kwargs") or {})}
        least = max(1, asked.get("min_patches", images.min_patches))
        tiles = least, asked.get("max_patches", images.max_patches)
        tile = self.info.hired.anatomy.tile
        return geometry.tiled_grid(size.height, size.width, tiles=tiles, tile=tile)

    def _written(self, update: PromptUpdate, count: int, processor: Any) -> PromptUpdateDetails:
        texts = processor.start_image_token, processor.image_token, processor.end_image_token
        tokenizer = self.info.get_tokenizer()
        start, token, end = (
            cached_encode(tokenizer, text, add_special_tokens=False) for text in texts
        )
        return PromptUpdateDetails.select_token_id([*start, *token * count, *end], *token)


@MULTIMODAL_REGISTRY.register_processor(
    Processor, info=Info, dummy_inputs=InternS1DummyInputsBuilder
)
class HiredInternVLForConditionalGeneration(InternVlLike, InternS1ForConditionalGeneration):
    """InternVL with a token budget for its pictures."""

    reads_norm = True

    def _family(self) -> type[TowerFamily]:
        return towers.InternVitHf
