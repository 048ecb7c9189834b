# SPDX-License-Identifier: Apache-2.0
"""CLIP's tower, of LLaVA-1.5 and LLaVA-NeXT: its CLS token was trained to match a caption."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.models.clip.modeling_clip import (
    CLIPAttention,
    CLIPEncoder,
    CLIPEncoderLayer,
    CLIPVisionModel,
    eager_attention_forward,
)

from .family import TowerFamily


class Clip(TowerFamily):
    name, model_type = "CLIP", "clip_vision_model"
    tower, encoder = CLIPVisionModel, CLIPEncoder
    layer, attention = CLIPEncoderLayer, CLIPAttention
    eager = staticmethod(eager_attention_forward)
    prefix, cls_judges = 1, True

    @staticmethod
    def begin(tower: Any, pixels: Tensor) -> Tensor:
        return tower.pre_layrnorm(tower.embeddings(pixels, interpolate_pos_encoding=False))
