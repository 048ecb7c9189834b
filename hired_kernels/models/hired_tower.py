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
from .accounting import Anatomy, Plan, Settings, plan, refuse
from .state import pairs_of
from .vision_tower import (
    FeatureLayer,
    Pass,
    core,
    encoder_layers,
    hidden_state_numbers,
    is_clip_tower,
    is_on,
    turn_on_tower,
)
from .watchers import noting, replaced


class HiredTower(nn.Module):
    """A CLIP vision tower that returns the kept tokens alone, for a forward pass of one's own.

    Its parameters are those of `tower`, whose modules are given subclasses of their classes: for
    everybody else it does what it did. `feature_layer` is LLaVA's `vision_feature_layer`,
    `pinpoints` LLaVA-NeXT's grid pinpoints ((height, width) in pixels), None where pictures have no
    sub-images; the rest is as for `hired_kernels.apply_hired`.

    Raises ValueError("hired: <argument>: expected ..., got ...").
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
        self.settings = Settings(budget, alpha, policy)
        if not (isinstance(tower, nn.Module) and is_clip_tower(tower)):
            raise refuse("tower", "a CLIP vision tower of transformers", type(tower).__name__)
        try:
            _wanted(tower, feature_layer)
        except ValueError as error:
            raise ValueError(f"hired: {error}") from None
        if pinpoints is not None:
            pinpoints = tuple(pairs_of("pinpoints", pinpoints))
        config: Any = tower.config
        self.anatomy = Anatomy(config.image_size, config.patch_size, pinpoints)
        self.tower, self.feature_layer = tower, feature_layer
        turn_on_tower(tower)

    def rows(self, sizes: Sequence[tuple[int, int]]) -> list[int]:
        """Tokens that pictures of these (height, width) in pixels keep: no picture is needed."""
        return plan(self.settings, self.anatomy, pairs_of("sizes", sizes)).rows

    def forward(self, pixels: Tensor, sizes: Sequence[tuple[int, int]]) -> Selection:
        """Kept tokens of B pictures, ready for the projector.

        pixels (P, 3, tile, tile): all partitions, picture after picture, full image first. `sizes`
        has the (height, width) of each picture in pixels. Returns tokens (K, D) with their indices
        and counts; K is `sum(self.rows(sizes))`. Raises ValueError, as the class does.
        """
        todo = plan(self.settings, self.anatomy, pairs_of("sizes", sizes))
        P = sum(todo.partitions)
        if pixels.dim() != 4 or pixels.shape[0] != P or P == 0:
            expected = f"({P or 'at least 1'}, 3, tile, tile) for pictures of these sizes"
            raise refuse("pixels", expected, tuple(pixels.shape))
        return early_exit(self.tower, pixels, self.feature_layer, todo, self.settings)


def early_exit(
    tower: nn.Module, pixels: Tensor, feature_layer: FeatureLayer, todo: Plan, settings: Settings
) -> Selection:
    """Run a tower on pixels (P, 3, tile, tile) for the kept tokens alone.

    One of which nothing that a pass has to reach was replaced (`watchers`).
    """
    scale = _scale(tower)

    def choose(features: Tensor, scores: tuple[Tensor, ...]) -> Selection:
        return _select(features, scores, scale, todo, settings)

    hired = Pass(_wanted(tower, feature_layer), todo.full_images, choose, todo.most)
    tokens = _switched(tower)(pixels, hired=hired)
    if hired.kept is None:
        raise refuse("vision tower", "CLIP's own forward methods", "one that was replaced")
    return hired.kept._replace(tokens=tokens)


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
    hired = Pass(_wanted(tower, feature_layer), todo.full_images)
    outputs = {**outputs, "output_hidden_states": True, "return_dict": True}
    run = _switched(tower)
    if replaced(tower, hired.final) is None:
        whole = run(pixels, hired=hired, **outputs)
    else:
        with noting(tower, hired):
            whole = run(pixels, **outputs)
    states = whole.hidden_states
    features = torch.cat([states[number] for number in hired.wanted], dim=-1)
    scores = hired.scores(features.device)
    kept = _select(features[:, 1:], scores, _scale(tower), todo, settings)
    return kept, features[:, 0], whole


def _select(
    features: Tensor, scores: tuple[Tensor, ...], scale: float, todo: Plan, settings: Settings
) -> Selection:
    return select_qk(features, *scores, scale=scale, **todo.rules(settings))


def _switched(tower: nn.Module) -> nn.Module:
    """What is to be called; it may have been switched off with another model that it is part of."""
    if not is_on(tower):
        turn_on_tower(tower)
    return core(tower)


def _wanted(tower: nn.Module, feature_layer: FeatureLayer) -> tuple[int, ...]:
    return hidden_state_numbers(len(encoder_layers(tower)), feature_layer)


def _scale(tower: nn.Module) -> float:
    return encoder_layers(tower)[0].self_attn.scale
