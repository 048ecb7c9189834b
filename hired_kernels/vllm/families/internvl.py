# SPDX-License-Identifier: Apache-2.0
"""InternVL in OpenGVLab's own format."""

from __future__ import annotations

from vllm.multimodal import MULTIMODAL_REGISTRY

from .. import processing
from ..stock import (
    InternVLChatModel,
    InternVLDummyInputsBuilder,
    InternVLMultiModalProcessor,
    InternVLProcessingInfo,
)
from .own_format import OwnFormat, OwnTiles


class Info(processing.Info, InternVLProcessingInfo):
    """InternVL's, with the server's options."""


class Processor(OwnTiles, InternVLMultiModalProcessor):
    """InternVL's."""


@MULTIMODAL_REGISTRY.register_processor(
    Processor, info=Info, dummy_inputs=InternVLDummyInputsBuilder
)
class HiredInternVLChatModel(OwnFormat, InternVLChatModel):
    """InternVL with a token budget for its pictures."""
