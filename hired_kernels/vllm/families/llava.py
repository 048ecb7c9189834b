# SPDX-License-Identifier: Apache-2.0
"""LLaVA-1.5, ShareGPT4V and others of their class."""

from __future__ import annotations

from typing import Any

from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.processing import BaseMultiModalProcessor, InputProcessingContext

from .. import processing
from ..models import LlavaLike
from ..stock import (
    BaseLlavaProcessingInfo,
    LlavaDummyInputsBuilder,
    LlavaForConditionalGeneration,
    LlavaMultiModalProcessor,
    LlavaProcessingInfo,
    PixtralHFMultiModalProcessor,
    PixtralHFProcessingInfo,
)
from .weights import without_core


class Info(processing.Info, LlavaProcessingInfo):
    """LLaVA-1.5's, with the server's options."""


class Processor(processing.SubImages, LlavaMultiModalProcessor):
    """LLaVA-1.5's."""


def info_of(context: InputProcessingContext) -> BaseLlavaProcessingInfo:
    """As for vLLM's class, which also serves Pixtral's towers."""
    if context.get_hf_config().vision_config.model_type == "pixtral":
        return PixtralHFProcessingInfo(context)
    return Info(context)


def processor_of(
    info: BaseLlavaProcessingInfo, dummy_inputs: LlavaDummyInputsBuilder, **more: Any
) -> BaseMultiModalProcessor:
    """As for vLLM's class, which also serves Pixtral's towers."""
    if isinstance(info, PixtralHFProcessingInfo):
        return PixtralHFMultiModalProcessor(info, dummy_inputs, **more)
    return Processor(info, dummy_inputs, **more)


@MULTIMODAL_REGISTRY.register_processor(
    processor_of, info=info_of, dummy_inputs=LlavaDummyInputsBuilder
)
class HiredLlavaForConditionalGeneration(LlavaLike, LlavaForConditionalGeneration):
    """LLaVA-1.5 with a token budget."""

    hf_to_vllm_mapper = without_core(LlavaForConditionalGeneration)
