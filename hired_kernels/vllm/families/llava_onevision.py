# SPDX-License-Identifier: Apache-2.0
"""LLaVA-OneVision. Its videos are vLLM's own."""

from __future__ import annotations

from functools import cached_property

from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.parse import ImageSize

from .. import processing
from ..models import LlavaLike
from ..stock import (
    LlavaOnevisionDummyInputsBuilder,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionMultiModalProcessor,
    LlavaOnevisionProcessingInfo,
)
from .weights import without_core


class Info(processing.Info, LlavaOnevisionProcessingInfo):
    """LLaVA-OneVision's, with the server's options."""

    def get_image_size_with_most_features(self) -> ImageSize:
        """Of which vLLM knows the one of the released checkpoints, without a budget.

        The stock model shrinks large pictures and a budget does not: another one has the most.
        """
        limit, anatomy = self.hired.max_budget, self.hired.anatomy
        sizes = [super().get_image_size_with_most_features()]
        if anatomy is not None:
            sizes += [ImageSize(width=width, height=height) for height, width in anatomy.pinpoints]

        def tokens(size: ImageSize) -> int:
            if limit is None:
                return self.get_num_image_tokens(image_width=size.width, image_height=size.height)
            return self.hired.plan([limit], [anatomy.layout(size.height, size.width)]).rows[0]

        return max(sizes, key=tokens)

    @cached_property
    def hired_most(self) -> int:
        return self.get_max_image_tokens()


class Processor(processing.SubImages, LlavaOnevisionMultiModalProcessor):
    """LLaVA-OneVision's."""


@MULTIMODAL_REGISTRY.register_processor(
    Processor, info=Info, dummy_inputs=LlavaOnevisionDummyInputsBuilder
)
class HiredLlavaOnevisionForConditionalGeneration(
    LlavaLike, LlavaOnevisionForConditionalGeneration
):
    """LLaVA-OneVision with a token budget for its pictures."""

    hf_to_vllm_mapper = without_core(LlavaOnevisionForConditionalGeneration)
