# SPDX-License-Identifier: Apache-2.0
"""What vLLM's models do with pictures that have a token budget.

Pictures that come without a budget go the stock model's way; those with one go through the tower
together, whatever their requests, with one launch for their selection. The mixins stand before
vLLM's own classes in `families`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from vllm.config import VllmConfig

from .. import geometry
from ..models.accounting import Plan, refuse
from ..models.support import feature_layer_of
from ..models.towers import TowerFamily, core
from ..models.vision_tower import Reading, hidden_state_numbers
from . import support, towers
from .options import REQUEST, Options
from .processing import NO_BUDGET, TILES
from .tower import keep


class Hired:
    """What all models do.

    pixels, connector: what vLLM calls the pixels and the projector. reads_norm: whether the last
    hidden state is read after the tower's last norm.
    """

    pixels = "pixel_values"
    tower_name = "vision_tower"
    connector = "multi_modal_projector"
    reads_norm = False
    # The tower's last layer and the projector run for kept rows alone, which adapters of these
    # modules would have to be told; those of the language model are served.
    supports_tower_connector_lora = False
    supports_encoder_tp_data = False

    def _family(self) -> type[TowerFamily]:
        """What the tower is like: of `towers`."""
        raise NotImplementedError

    def _feature_states(self) -> tuple[int, ...]:
        """The numbers of the tower's hidden states that are features, counted from 0."""
        raise NotImplementedError

    def _some(self, kwargs: dict[str, Any], items: Sequence[int]) -> dict[str, Any]:
        """What vLLM hands over of these pictures alone."""
        raise NotImplementedError

    def _pictures(self, kwargs: dict[str, Any]) -> list[Tensor]:
        """Partitions (partitions, 3, tile, tile) of each picture, maybe with padding up to another
        picture's."""
        raise NotImplementedError

    def _layouts(self, kwargs: dict[str, Any], tiles: Any) -> list[geometry.Layout]:
        """How each picture was cut up; `tiles` as `processing` has told."""
        raise NotImplementedError

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        if vllm_config.compilation_config.cudagraph_mm_encoder:
            # They yield all tokens of a picture, whatever its placeholders.
            raise refuse("compilation_config.cudagraph_mm_encoder", "False", True)
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.hired = Options.of(vllm_config.model_config.hf_config)
        # vLLM bounds a step by the tokens that it yields, of which a pruned picture has few: by
        # themselves a hundred pictures could meet in the tower. It takes them in turns, with as
        # many patches at a time as the step may have tokens.
        self.patches_at_a_time = vllm_config.scheduler_config.max_num_batched_tokens

    def embed_multimodal(self, **kwargs: Any) -> Any:
        budgets, tiles = kwargs.pop(REQUEST, None), kwargs.pop(TILES, None)
        budgets = [] if budgets is None else torch.as_tensor(budgets).flatten().tolist()
        pruned = [item for item, budget in enumerate(budgets) if budget != NO_BUDGET]
        if not pruned:
            return super().embed_multimodal(**kwargs)
        embeddings: list[Tensor | None] = [None] * len(budgets)
        stock = [item for item in range(len(budgets)) if item not in pruned]
        if stock:
            features = super().embed_multimodal(**self._some(kwargs, stock))
            for item, rows in zip(stock, features, strict=True):
                embeddings[item] = rows
        layouts, pictures = self._layouts(kwargs, tiles), self._pictures(kwargs)
        for items in self._in_turns(pruned, layouts):
            todo = self.hired.plan(
                [budgets[item] for item in items], [layouts[item] for item in items]
            )
            kept = self._kept([pictures[item] for item in items], todo)
            for item, rows in zip(items, kept, strict=True):
                embeddings[item] = rows
        return embeddings

    def _in_turns(
        self, items: Sequence[int], layouts: Sequence[geometry.Layout]
    ) -> list[list[int]]:
        """Pictures that go through the tower together, in their order, at least one."""
        each, turns, patches = self.reading.side**2, [], 0
        for item in items:
            more = layouts[item].partitions * each
            if not turns or patches + more > self.patches_at_a_time:
                turns.append([])
                patches = 0
            turns[-1].append(item)
            patches += more
        return turns

    def _kept(self, pictures: Sequence[Tensor], todo: Plan) -> list[Tensor]:
        """Features (K, width of the language model) of each picture, of `_pictures`."""
        partitions = zip(pictures, todo.partitions, strict=True)
        batch = torch.cat([picture[:count] for picture, count in partitions])
        tower, settings = getattr(self, self.tower_name), self.hired.settings
        kept = keep(tower, batch, self.reading, todo, settings)
        features = self._filled(getattr(self, self.connector)(kept.tokens), kept.indices)
        # vLLM keeps pictures apart: views would keep each other's memory.
        return [picture.clone() for picture in features.split(todo.rows)]

    def _filled(self, features: Tensor, indices: Tensor) -> Tensor:
        """The features, with something said in rows that no token was found for (published)."""
        return features

    @cached_property
    def reading(self) -> Reading:
        """What is read of the tower. Of a model that is served."""
        settings, anatomy = self.hired.settings, self.hired.anatomy
        assert anatomy is not None, self.hired.why_not
        states = self._feature_states()
        return Reading.by(self._family(), states, self.reads_norm, anatomy, settings)


class LlavaLike(Hired):
    """LLaVA's families: pictures one by one, with their sizes where they have sub-images."""

    def _family(self) -> type[TowerFamily]:
        clip = support.family_of(self.config).prefix == 1
        return towers.Clip if clip else towers.Siglip

    def _feature_states(self) -> tuple[int, ...]:
        layers = self.config.vision_config.num_hidden_layers
        return hidden_state_numbers(layers, feature_layer_of(self.config))

    def _some(self, kwargs: dict[str, Any], items: Sequence[int]) -> dict[str, Any]:
        return {name: _some(values, items) for name, values in kwargs.items()}

    def _pictures(self, kwargs: dict[str, Any]) -> list[Tensor]:
        return [each if each.dim() == 4 else each[None] for each in kwargs[self.pixels]]

    def _layouts(self, kwargs: dict[str, Any], tiles: Any) -> list[geometry.Layout]:
        sizes, anatomy = kwargs.get("image_sizes"), self.hired.anatomy
        if sizes is None:
            return [anatomy.tiled()] * len(kwargs[self.pixels])
        return [anatomy.layout(*size.tolist()) for size in sizes]


class InternVlLike(Hired):
    """InternVL's families: the partitions of all pictures in one tensor."""

    def _feature_states(self) -> tuple[int, ...]:
        tower, family = getattr(self, self.tower_name), self._family()
        return (len(getattr(core(tower).encoder, family.layers_name)),)

    def _some(self, kwargs: dict[str, Any], items: Sequence[int]) -> dict[str, Any]:
        pictures, counts = self._pictures(kwargs), kwargs["image_num_patches"]
        pixels = torch.cat([pictures[item] for item in items])
        return {**kwargs, self.pixels: pixels, "image_num_patches": _some(counts, items)}

    def _pictures(self, kwargs: dict[str, Any]) -> list[Tensor]:
        counts = torch.as_tensor(kwargs["image_num_patches"]).flatten().tolist()
        return list(kwargs[self.pixels].split(counts))

    def _layouts(self, kwargs: dict[str, Any], tiles: Any) -> list[geometry.Layout]:
        return [self.hired.anatomy.tiled(*each.tolist()) for each in tiles]


def _some(values: Any, items: Sequence[int]) -> Any:
    """Those of a batch, one tensor where vLLM has one."""
    chosen = [values[item] for item in items]
    return torch.stack(chosen) if isinstance(values, Tensor) else chosen
