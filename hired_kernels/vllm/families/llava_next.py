# SPDX-License-Identifier: Apache-2.0
"""LLaVA-NeXT and Granite Vision 3."""

from __future__ import annotations

import torch
from torch import Tensor
from vllm.multimodal import MULTIMODAL_REGISTRY

from .. import processing
from ..models import LlavaLike
from ..stock import (
    LlavaDummyInputsBuilder,
    LlavaNextForConditionalGeneration,
    LlavaNextMultiModalProcessor,
    LlavaNextProcessingInfo,
)
from .weights import without_core


class Info(processing.Info, LlavaNextProcessingInfo):
    """LLaVA-NeXT's, with the server's options."""


class Processor(processing.SubImages, LlavaNextMultiModalProcessor):
    """LLaVA-NeXT's."""


@MULTIMODAL_REGISTRY.register_processor(Processor, info=Info, dummy_inputs=LlavaDummyInputsBuilder)
class HiredLlavaNextForConditionalGeneration(LlavaLike, LlavaNextForConditionalGeneration):
    """LLaVA-NeXT with a token budget."""

    hf_to_vllm_mapper = without_core(LlavaNextForConditionalGeneration)

    def _filled(self, features: Tensor, indices: Tensor) -> Tensor:
        """`image_newline` where the published policy leaves a row of zeros.

        vLLM attends to every placeholder, and this is the one that the language model was taught to
        read as no part of a picture.
        """
        return torch.where((indices < 0)[:, None], self.image_newline.to(features), features)
