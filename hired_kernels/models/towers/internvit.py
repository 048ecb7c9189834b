# SPDX-License-Identifier: Apache-2.0
"""InternViT, of InternVL 2 to 3.5: its CLS token was used in pre-training alone.

Queries and keys may be normalised over all heads before they are split into heads, both branches of
a layer are scaled, and the norms are of either kind.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.models.internvl.modeling_internvl import (
    InternVLVisionAttention,
    InternVLVisionEncoder,
    InternVLVisionLayer,
    InternVLVisionModel,
    eager_attention_forward,
)

from .family import TowerFamily


class InternVit(TowerFamily):
    name, model_type = "InternViT", "internvl_vision"
    tower, encoder = InternVLVisionModel, InternVLVisionEncoder
    layer, attention = InternVLVisionLayer, InternVLVisionAttention
    eager = staticmethod(eager_attention_forward)
    prefix = 1
    layers_name, last_norm = "layer", "layernorm"
    mask, hands_down = (), False
    noted = full_width_norms = ("q_norm", "k_norm")

    @staticmethod
    def begin(tower: Any, pixels: Tensor) -> Tensor:
        return tower.embeddings(pixels, bool_masked_pos=None)

    @staticmethod
    def attention_of(layer: Any) -> Any:
        return layer.attention

    @staticmethod
    def norm(layer: Any, hidden: Tensor) -> Tensor:
        return layer.layernorm_before(hidden)

    @staticmethod
    def query(attention: Any, normal: Tensor) -> Tensor:
        return attention.q_norm(attention.q_proj(normal))

    @staticmethod
    def key(attention: Any, normal: Tensor) -> Tensor:
        return attention.k_norm(attention.k_proj(normal))

    @classmethod
    def projected(cls, attention: Any, normal: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        parts = attention.q_proj, attention.k_proj, attention.v_proj
        query, key, value = (part(normal) for part in parts)
        return attention.q_norm(query), attention.k_norm(key), value

    @staticmethod
    def output(attention: Any, attended: Tensor) -> Tensor:
        return attention.projection_dropout(attention.projection_layer(attended))

    @staticmethod
    def dropout(attention: Any) -> float:
        return attention.attention_dropout

    @staticmethod
    def finish(layer: Any, entering: Tensor, attended: Tensor) -> Tensor:
        hidden = layer.lambda_1 * attended + entering
        more = layer.dropout(layer.mlp(layer.layernorm_after(hidden)))
        if layer.lambda_2 is not None:
            more = layer.lambda_2 * more
        return more + hidden
