# SPDX-License-Identifier: Apache-2.0
"""The architectures that the plugin adds: vLLM's LLaVA-NeXT and LLaVA-1.5 with a token budget.

Pictures that come without a budget go the stock model's way; those with one go through the tower
together, whatever their requests, with one launch for their selection.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from vllm.config import VllmConfig
from vllm.model_executor.models.interfaces import MultiModalEmbeddings
from vllm.model_executor.models.llava import (
    LlavaDummyInputsBuilder,
    LlavaForConditionalGeneration,
)
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
        # vLLM bounds a step by the tokens that it yields, of which a pruned picture has few: by
        # themselves a hundred pictures could meet in the tower. It takes them in turns, with as
        # many patches at a time as the step may have tokens.
        self.patches_at_a_time = vllm_config.scheduler_config.max_num_batched_tokens

    def embed_multimodal(self, **kwargs: object) -> MultiModalEmbeddings:
        budgets = kwargs.pop(REQUEST, None)
        budgets = [] if budgets is None else torch.as_tensor(budgets).flatten().tolist()
        pruned = [item for item, budget in enumerate(budgets) if budget != processing.STOCK]
        if not pruned:
            return super().embed_multimodal(**kwargs)
        embeddings: list[Tensor | None] = [None] * len(budgets)
        stock = [item for item in range(len(budgets)) if item not in pruned]
        if stock:
            some = {name: _some(values, stock) for name, values in kwargs.items()}
            for item, features in zip(stock, super().embed_multimodal(**some), strict=True):
                embeddings[item] = features
        pixels, sizes = kwargs["pixel_values"], kwargs.get("image_sizes")
        tile = self.config.vision_config.image_size
        for items in self._in_turns(pruned, sizes):
            pairs = [(tile, tile) if sizes is None else tuple(sizes[i].tolist()) for i in items]
            todo = self.hired.plan([budgets[item] for item in items], pairs)
            kept = self._kept([pixels[item] for item in items], todo)
            for item, features in zip(items, kept, strict=True):
                embeddings[item] = features
        return embeddings

    def _in_turns(self, items: Sequence[int], sizes: Any) -> list[list[int]]:
        """Pictures that go through the tower together, in their order, at least one."""
        anatomy, turns, patches = self.hired.anatomy, [], 0
        for item in items:
            size = (1, 1) if sizes is None else sizes[item].tolist()
            more = anatomy.layout(*size).partitions * anatomy.tokens
            if not turns or patches + more > self.patches_at_a_time:
                turns.append([])
                patches = 0
            turns[-1].append(item)
            patches += more
        return turns

    def _kept(self, pictures: Sequence[Tensor], todo: Plan) -> list[Tensor]:
        """Features (K, width of the language model) of each picture.

        pictures: (partitions, 3, tile, tile) of each, maybe with padding up to another picture's,
        or (3, tile, tile).
        """
        partitions = [
            picture[:count] if picture.dim() == 4 else picture[None]
            for picture, count in zip(pictures, todo.partitions, strict=True)
        ]
        layer = self.config.vision_feature_layer
        batch = torch.cat(partitions)
        kept = keep(self.vision_tower, batch, layer, todo, self.hired.settings)
        features = self._filled(self.multi_modal_projector(kept.tokens), kept.indices)
        # vLLM keeps pictures apart: views would keep each other's memory.
        return [picture.clone() for picture in features.split(todo.rows)]

    def _filled(self, features: Tensor, indices: Tensor) -> Tensor:
        """The features, with something said in rows that no token was found for (published)."""
        return features


@MULTIMODAL_REGISTRY.register_processor(
    processing.llava_processor,
    info=processing.llava_info,
    dummy_inputs=LlavaDummyInputsBuilder,
)
class HiredLlavaForConditionalGeneration(_Hired, LlavaForConditionalGeneration):
    """LLaVA-1.5 (ShareGPT4V too) with a token budget."""

    hf_to_vllm_mapper = LlavaForConditionalGeneration.hf_to_vllm_mapper | _WITHOUT_CORE


@MULTIMODAL_REGISTRY.register_processor(
    processing.HiredLlavaNextMultiModalProcessor,
    info=processing.HiredLlavaNextProcessingInfo,
    dummy_inputs=LlavaDummyInputsBuilder,
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
    """Those of a batch, one tensor where vLLM has one."""
    chosen = [values[item] for item in items]
    return torch.stack(chosen) if isinstance(values, Tensor) else chosen
