# SPDX-License-Identifier: Apache-2.0
"""SigLIP's tower, of LLaVA-OneVision and Granite Vision: no CLS token."""

from __future__ import annotations

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
