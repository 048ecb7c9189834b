# SPDX-License-Identifier: Apache-2.0
"""SigLIP's tower, of LLaVA-OneVision and Granite Vision: no CLS token."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.models.siglip.modeling_siglip import (
    SiglipAttention,
    SiglipEncoder,
    SiglipEncoderLayer,
    SiglipVisionModel,
    eager_attention_forward,
)

from .family import TowerFamily


class Siglip(TowerFamily):
    name, model_type = "SigLIP", "siglip_vision_model"
    tower, encoder = SiglipVisionModel, SiglipEncoder
    layer, attention = SiglipEncoderLayer, SiglipAttention
    eager = staticmethod(eager_attention_forward)

    @staticmethod
    def begin(tower: Any, pixels: Tensor) -> Tensor:
        # Patches lie side by side in what a convolution returns, and with no CLS token put before
        # them they would stay so, layer after layer: a row of a token is to lie in one piece.
        return tower.embeddings(pixels, interpolate_pos_encoding=False).contiguous()
