# SPDX-License-Identifier: Apache-2.0
"""Qianfan-OCR: InternVL in its own format with another language model, and without videos."""

from __future__ import annotations

from vllm.multimodal import MULTIMODAL_REGISTRY

from .. import processing
from ..stock import (
    BaseInternVLDummyInputsBuilder,
    BaseInternVLMultiModalProcessor,
    QianfanOCRForConditionalGeneration,
    QianfanOCRProcessingInfo,
)
from .own_format import OwnFormat, OwnTiles


class Info(processing.Info, QianfanOCRProcessingInfo):
    """Qianfan-OCR's, with the server's options."""


class Processor(OwnTiles, BaseInternVLMultiModalProcessor):
    """Qianfan-OCR's."""


@MULTIMODAL_REGISTRY.register_processor(
    Processor, info=Info, dummy_inputs=BaseInternVLDummyInputsBuilder
)
class HiredQianfanOCRForConditionalGeneration(OwnFormat, QianfanOCRForConditionalGeneration):
    """Qianfan-OCR with a token budget."""
