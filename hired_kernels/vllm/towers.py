# SPDX-License-Identifier: Apache-2.0
"""vLLM's modules of the vision towers, described as those of transformers are.

The families of `hired_kernels.models.towers` with the names that vLLM has. Most towers have
queries, keys and values in one projection, and under tensor parallelism some of the heads in each
rank.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from vllm.distributed import split_tensor_along_last_dim, tensor_model_parallel_all_gather

from ..models import towers


class _Fused:
    """The projections of CLIP's and SigLIP's attention."""

    @classmethod
    def projected(cls, attention: Any, normal: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return _thirds(attention.qkv_proj, normal)

    @staticmethod
    def output(attention: Any, attended: Tensor) -> Tensor:
        return attention.out_proj(attended)[0]


class Clip(_Fused, towers.clip.Clip):
    """`clip.CLIPVisionModel`, of LLaVA-1.5 and LLaVA-NeXT."""

    @staticmethod
    def begin(tower: Any, pixels: Tensor) -> Tensor:
        return tower.pre_layrnorm(tower.embeddings(pixels))


class Siglip(_Fused, towers.siglip.Siglip):
    """`siglip.SiglipVisionModel`, of LLaVA-OneVision and Granite Vision."""

    @staticmethod
    def begin(tower: Any, pixels: Tensor) -> Tensor:
        return tower.embeddings(pixels).contiguous()  # for the reason that the base class has


class InternVit(towers.internvit.InternVit):
    """`intern_vit.InternVisionModel`, of checkpoints in OpenGVLab's own format.

    Norms over all heads have all of them gathered first. Where the number of heads does not divide
    by the number of ranks, dummy heads fill it up, or else every rank has all heads.
    """

    layers_name = "layers"

    @staticmethod
    def begin(tower: Any, pixels: Tensor) -> Tensor:
        return tower.embeddings(pixels)

    @staticmethod
    def attention_of(layer: Any) -> Any:
        return layer.attn

    @staticmethod
    def norm(layer: Any, hidden: Tensor) -> Tensor:
        return layer.norm1(hidden)

    @classmethod
    def projected(cls, attention: Any, normal: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = _thirds(attention.qkv, normal)
        if attention.qk_normalization:
            query = _over_all_heads(attention, attention.q_norm, query)
            key = _over_all_heads(attention, attention.k_norm, key)
        return query, key, value

    @staticmethod
    def output(attention: Any, attended: Tensor) -> Tensor:
        return attention.proj(attended)[0]

    @staticmethod
    def finish(layer: Any, entering: Tensor, attended: Tensor) -> Tensor:
        hidden = entering + attended * layer.ls1
        return hidden + layer.mlp(layer.norm2(hidden)) * layer.ls2


class InternVitHf(towers.internvit.InternVit):
    """`interns1_vit.InternS1VisionModel`, of checkpoints in transformers' format.

    Every rank has all heads.
    """

    @staticmethod
    def begin(tower: Any, pixels: Tensor) -> Tensor:
        return tower.embeddings(pixels)[0]

    @classmethod
    def projected(cls, attention: Any, normal: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        parts = attention.q_proj, attention.k_proj, attention.v_proj
        query, key, value = (part(normal) for part in parts)
        if attention.qk_normalization:
            query, key = attention.q_norm(query), attention.k_norm(key)
        return query, key, value

    @staticmethod
    def output(attention: Any, attended: Tensor) -> Tensor:
        return attention.projection_layer(attended)

    @staticmethod
    def finish(layer: Any, entering: Tensor, attended: Tensor) -> Tensor:
        hidden = entering + attended * layer.lambda_1
        return hidden + layer.mlp(layer.layernorm_after(hidden)) * layer.lambda_2


def ranks_of(attention: Any) -> int:
    """Over how many ranks the heads of an attention are split."""
    return getattr(attention, "tp_size", 1)


def _thirds(projection: Any, normal: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of this rank's heads, (..., H * Dh) each: views of one tensor."""
    query, key, value = projection(normal)[0].chunk(3, dim=-1)
    return query, key, value


def _over_all_heads(attention: Any, norm: Any, part: Tensor) -> Tensor:
    """Queries or keys of this rank's heads, normalised over the heads of all ranks."""
    ranks = ranks_of(attention)
    if ranks == 1:
        return norm(part.contiguous())
    whole = norm(tensor_model_parallel_all_gather(part.contiguous()))
    return split_tensor_along_last_dim(whole, num_partitions=ranks)[attention.tp_rank]
