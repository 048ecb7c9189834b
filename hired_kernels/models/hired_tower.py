# SPDX-License-Identifier: Apache-2.0
"""The vision tower with selection inside: pixels in, kept tokens out.

`early_exit` computes nothing that no kept token needs; `full_tower` runs all of it and selects
afterwards, for what wants more of the tower than that. Both give the same tokens, to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..ops import Selection, select_qk
from . import vision_tower
from .accounting import Anatomy, Plan, Settings, plan
from .vision_tower import FeatureLayer


class HiredTower(nn.Module):
    """A CLIP vision tower that returns the kept tokens alone, for a forward pass of one's own.

    Its parameters are those of `tower`, which stays as it is. `feature_layer` is LLaVA's
    `vision_feature_layer`, `pinpoints` LLaVA-NeXT's grid pinpoints ((height, width) in pixels),
    None where pictures have no sub-images; the rest is as for `hired_kernels.apply_hired`.
    """

    def __init__(
        self,
        tower: nn.Module,
        feature_layer: FeatureLayer = -2,
        pinpoints: Sequence[Sequence[int]] | None = None,
        budget: float | int = 0.2,
        alpha: float = 0.5,
        policy: str = "exact",
    ) -> None:
        super().__init__()
        self.tower, self.feature_layer = tower, feature_layer
        self.settings = Settings(budget, alpha, policy)
        pairs = None if pinpoints is None else tuple(tuple(pair) for pair in pinpoints)
        self.anatomy = Anatomy(tower.config.image_size, tower.config.patch_size, pairs)

    def rows(self, sizes: Sequence[tuple[int, int]]) -> list[int]:
        """Tokens that pictures of these (height, width) in pixels keep: no picture is needed."""
        return plan(self.settings, self.anatomy, sizes).rows

    def forward(self, pixels: Tensor, sizes: Sequence[tuple[int, int]]) -> Selection:
        """Kept tokens of B pictures, ready for the projector.

        pixels (P, 3, tile, tile): all partitions, picture after picture, full image first. `sizes`
        has the (height, width) of each picture in pixels. Returns tokens (K, D) with their indices
        and counts; K is `sum(self.rows(sizes))`.
        """
        picture_plan = plan(self.settings, self.anatomy, sizes)
        return early_exit(self.tower, pixels, self.feature_layer, picture_plan, self.settings)


def early_exit(
    tower: nn.Module, pixels: Tensor, feature_layer: FeatureLayer, todo: Plan, settings: Settings
) -> Selection:
    """Run a tower on pixels (P, 3, tile, tile) for the kept tokens alone."""
    encoded = vision_tower.begin(tower, pixels, feature_layer, full_images=todo.full_images)
    attn = vision_tower.encoder_layers(tower)[encoded.layer].self_attn
    kept = _select(encoded.features, encoded.scores(), attn.scale, todo, settings)
    return kept._replace(tokens=vision_tower.finish(tower, encoded, kept, todo.most))


def full_tower(
    tower: nn.Module,
    pixels: Tensor,
    feature_layer: FeatureLayer,
    todo: Plan,
    settings: Settings,
    **outputs: Any,
) -> tuple[Selection, Tensor, Any]:
    """Run the whole tower, then select of its features.

    Returns the selection, the CLS tokens (P, D) of the feature layers, and the tower's own output.
    `outputs` goes to the tower.
    """
    whole = tower(pixels, **{**outputs, "output_hidden_states": True, "return_dict": True})
    states, layers = whole.hidden_states, vision_tower.encoder_layers(tower)
    wanted = vision_tower.hidden_state_numbers(len(layers), feature_layer)
    final = max(wanted) - 1
    features = torch.cat([states[number] for number in wanted], dim=-1)
    initial = vision_tower.INITIAL_LAYER
    full_images = torch.stack([states[initial][p] for p in todo.full_images])
    queries_init, keys_init = vision_tower.queries_and_keys(tower, initial, full_images)
    queries_final, keys_final = vision_tower.queries_and_keys(tower, final, states[final])
    scores = queries_init[:, 0], keys_init, queries_final[:, 0], keys_final
    scores = vision_tower.as_scores(scores, features.device)
    scale = layers[final].self_attn.scale
    kept = _select(features[:, 1:], scores, scale, todo, settings)
    return kept, features[:, 0], whole


def _select(
    features: Tensor, scores: Sequence[Tensor], scale: float, todo: Plan, settings: Settings
) -> Selection:
    return select_qk(features, *scores, scale=scale, **todo.rules(settings))
