# SPDX-License-Identifier: Apache-2.0
"""The architectures that the plugin adds: vLLM's LLaVA-NeXT and LLaVA-1.5 with a token budget.

Pictures that come without a budget go the stock model's way; those with one, of all requests of a
step, go through the tower together, one launch for their selection.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from vllm.config import VllmConfig
from vllm.model_executor.models.interfaces import MultiModalEmbeddings
from vllm.model_executor.models.llava import LlavaForConditionalGeneration
from vllm.model_executor.models.llava_next import LlavaNextForConditionalGeneration
from vllm.model_executor.models.utils import WeightsMapper
from vllm.multimodal import MULTIMODAL_REGISTRY

from ..models.accounting import Plan
from . import processing
from .options import REQUEST, Options
from .tower import keep

# transformers 5 saves the tower's weights without the name that vLLM has for its inside.
_TOWER_PARTS = ("embeddings.", "encoder.", "pre_layrnorm.", "post_layernorm.")
_WITHOUT_CORE = WeightsMapper(
    orig_to_new_prefix={
        f"vision_tower.{part}": f"vision_tower.vision_model.{part}" for part in _TOWER_PARTS
    }
)


class _Hired:
    """What both models do with pictures that have a budget."""

    # The tower's last layer and the projector run for kept rows alone, which adapters of these
    # modules would have to be told; those of the language model are served.
    supports_tower_connector_lora = False

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.hired = Options.of(vllm_config.model_config.hf_config)

    def embed_multimodal(self, **kwargs: object) -> MultiModalEmbeddings:
        budgets = kwargs.pop(REQUEST, None)
        budgets = [] if budgets is None else torch.as_tensor(budgets).flatten().tolist()
        pruned = [item for item, budget in enumerate(budgets) if budget != processing.STOCK]
        if not pruned:
            return super().embed_multimodal(**kwargs)
        pictures = kwargs["pixel_values"]
        sizes = kwargs.get("image_sizes")
        embeddings: list[Tensor | None] = [None] * len(budgets)
        stock = [item for item in range(len(budgets)) if item not in pruned]
        if stock:
            some = {"pixel_values": _some(pictures, stock)}
            if sizes is not None:
                some["image_sizes"] = _some(sizes, stock)
            for item, features in zip(stock, super().embed_multimodal(**some), strict=True):
                embeddings[item] = features
        tile = self.config.vision_config.image_size
        pixels = [picture.reshape(-1, 3, tile, tile) for picture in _some(pictures, pruned)]
        pairs = [(tile, tile)] * len(pruned)
        if sizes is not None:
            pairs = [tuple(size.tolist()) for size in _some(sizes, pruned)]
        todo = self.hired.plan([budgets[item] for item in pruned], pairs)
        for item, features in zip(pruned, self._kept(pixels, todo), strict=True):
            embeddings[item] = features
        return embeddings

    def _kept(self, pixels: Sequence[Tensor], todo: Plan) -> Sequence[Tensor]:
        """Features (K, width of the language model) of each picture.

        pixels: (partitions, 3, tile, tile) of each, maybe with padding up to another picture's.
        """
        parts = zip(pixels, todo.partitions, strict=True)
        batch = torch.cat([picture[:count] for picture, count in parts])
        layer = self.config.vision_feature_layer
        kept = keep(self.vision_tower, batch, layer, todo, self.hired.settings)
        features = self._filled(self.multi_modal_projector(kept.tokens), kept.indices)
        return features.split(todo.rows)

    def _filled(self, features: Tensor, indices: Tensor) -> Tensor:
        """The features, with something said in rows that no token was found for (published)."""
        return features


@MULTIMODAL_REGISTRY.register_processor(
    processing.HiredLlavaMultiModalProcessor,
    info=processing.HiredLlavaProcessingInfo,
    dummy_inputs=processing.LlavaDummyInputsBuilder,
)
class HiredLlavaForConditionalGeneration(_Hired, LlavaForConditionalGeneration):
    """LLaVA-1.5 (ShareGPT4V too) with a token budget."""

    hf_to_vllm_mapper = LlavaForConditionalGeneration.hf_to_vllm_mapper | _WITHOUT_CORE


@MULTIMODAL_REGISTRY.register_processor(
    processing.HiredLlavaNextMultiModalProcessor,
    info=processing.HiredLlavaNextProcessingInfo,
    dummy_inputs=processing.LlavaDummyInputsBuilder,
)
class HiredLlavaNextForConditionalGeneration(_Hired, LlavaNextForConditionalGeneration):
    """LLaVA-NeXT with a token budget."""

    hf_to_vllm_mapper = LlavaNextForConditionalGeneration.hf_to_vllm_mapper | _WITHOUT_CORE

    def _filled(self, features: Tensor, indices: Tensor) -> Tensor:
        """`image_newline` where the published policy leaves a row of zeros.

        vLLM attends to every placeholder, and this is the one that the language model was taught to
        read as no part of a picture.
        """
        return torch.where((indices < 0)[:, None], self.image_newline.to(features), features)


def _some(values: Any, items: Sequence[int]) -> Any:
    """Those of a batch, a tensor or a list of them."""
    if isinstance(values, Tensor):
        return values[list(items)]
    return [values[item] for item in items]
