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

from .. import geometry
from ..ops import Selection, select_qk
from . import judges, towers
from .accounting import Anatomy, Plan, Settings, one_side, plan, refuse
from .state import pairs_of
from .towers import core
from .vision_tower import (
    FeatureLayer,
    Pass,
    Reading,
    encoder_layers,
    hidden_state_numbers,
    is_on,
    replaced_inside,
    turn_on_tower,
)
from .watchers import replaced, run_noting


class HiredTower(nn.Module):
    """A vision tower that returns the kept tokens alone, for a forward pass of one's own.

    Its parameters are those of `tower` (CLIP, SigLIP, InternViT), whose modules are given
    subclasses of their classes: for everybody else it does what it did. `feature_layer` is the
    model's `vision_feature_layer`; `pinpoints` LLaVA-NeXT's grid pinpoints ((height, width) in
    pixels), `tiles` InternVL's fewest and most tiles, both None where pictures have no sub-images.
    `merge` patches a side are a token. The rest is as for `hired_kernels.apply_hired`.

    With `tiles` the thumbnail comes after a picture's tiles, in pixels and in tokens, and the
    feature layer -1 is read after the tower's last norm, as InternVL does.

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
        judge: str | int = "auto",
        tiles: tuple[int, int] | None = None,
        merge: int = 1,
    ) -> None:
        super().__init__()
        self.settings = Settings(budget, alpha, policy, judge=judge)
        family = towers.family_of(tower)
        if family is None:
            expected = f"a {towers.names()} vision tower of transformers"
            raise refuse("tower", expected, type(tower).__name__)
        try:
            _wanted(tower, feature_layer)
        except ValueError as error:
            raise ValueError(f"hired: {error}") from None
        if pinpoints is not None:
            pinpoints = tuple(pairs_of("pinpoints", pinpoints))
        if tiles is not None:
            if pinpoints is not None:
                raise refuse("tiles", "None beside pinpoints", tiles)
            geometry.tiled_grid(1, 1, tiles=tiles)
        config: Any = tower.config
        tile, patch = one_side(config.image_size), one_side(config.patch_size)
        geometry.tokens_a_side(tile // patch, merge)
        self.anatomy = Anatomy(tile, patch, pinpoints, merge, tiles)
        judges.lines(judge, family, self.anatomy.patches)
        self.tower, self.feature_layer = tower, feature_layer
        turn_on_tower(tower)

    def rows(self, sizes: Sequence[tuple[int, int]]) -> list[int]:
        """Tokens that pictures of these (height, width) in pixels keep: no picture is needed."""
        return plan(self.settings, self.anatomy, pairs_of("sizes", sizes)).rows

    def forward(self, pixels: Tensor, sizes: Sequence[tuple[int, int]]) -> Selection:
        """Kept tokens of B pictures, ready for the projector.

        pixels (P, 3, tile, tile): all partitions, picture after picture, full image first (last,
        with `tiles`). `sizes` has the (height, width) of each picture in pixels. Returns tokens
        (K, merge^2 * D) with their indices and counts, which count the full image first always; K
        is `sum(self.rows(sizes))`. Raises ValueError, as the class does.
        """
        todo = plan(self.settings, self.anatomy, pairs_of("sizes", sizes))
        P = sum(todo.partitions)
        if pixels.dim() != 4 or pixels.shape[0] != P or P == 0:
            expected = f"({P or 'at least 1'}, 3, tile, tile) for pictures of these sizes"
            raise refuse("pixels", expected, tuple(pixels.shape))
        pixels = full_images_first(pixels, todo)
        return early_exit(self.tower, pixels, self.feature_layer, todo, self.settings)


def early_exit(
    tower: nn.Module, pixels: Tensor, feature_layer: FeatureLayer, todo: Plan, settings: Settings
) -> Selection:
    """Run a tower on pixels (P, 3, tile, tile), full images first, for the kept tokens alone.

    One of which nothing that a pass has to reach was replaced (`watchers`).
    """
    scale = _scale(tower)

    def choose(features: Tensor, scores: tuple[Tensor, ...]) -> Selection:
        return _select(features, scores, scale, todo, settings)

    reading = Reading.of(tower, feature_layer, todo.anatomy, settings)
    hired = Pass(reading, todo, choose)
    tokens = _switched(tower)(pixels, hired=hired)
    if hired.kept is None:
        raise replaced_inside(reading.family)
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

    Returns the selection, the first tokens (P, D) of the feature layers, CLS where there is one,
    and the tower's own output. `outputs` goes to the tower.
    """
    reading = Reading.of(tower, feature_layer, todo.anatomy, settings)
    hired = Pass(reading, todo)
    outputs = {**outputs, "output_hidden_states": True, "return_dict": True}
    run = _switched(tower)
    if reading.family.hands_down and replaced(tower, reading.scored) is None:
        whole = run(pixels, hired=hired, **outputs)
    else:
        whole = run_noting(tower, run, pixels, hired, **outputs)
    states = whole.hidden_states
    features = whole.last_hidden_state
    if not reading.normed:
        features = torch.cat([states[number] for number in reading.wanted], dim=-1)
    scores = hired.scores(features.device)
    kept = _select(features[:, reading.family.prefix :], scores, _scale(tower), todo, settings)
    return kept, features[:, 0], whole


def full_images_first(pixels: Tensor, todo: Plan) -> Tensor:
    """Partitions (P, ...) with each picture's full image before its sub-images, not after."""
    if todo.anatomy.tiles is None or all(count == 1 for count in todo.partitions):
        return pixels
    pictures = pixels.split(todo.partitions)
    return torch.cat([part for picture in pictures for part in (picture[-1:], picture[:-1])])


def _select(
    features: Tensor, scores: tuple[Tensor, ...], scale: float, todo: Plan, settings: Settings
) -> Selection:
    if features.stride(-1) != 1:
        features = features.contiguous()  # SigLIP's, of the whole tower
    return select_qk(features, *scores, scale=scale, **todo.rules(settings))


def _switched(tower: nn.Module) -> nn.Module:
    """What is to be called; it may have been switched off with another model that it is part of."""
    if not is_on(tower):
        turn_on_tower(tower)
    return core(tower)


def _wanted(tower: nn.Module, feature_layer: FeatureLayer) -> tuple[int, ...]:
    return hidden_state_numbers(len(encoder_layers(tower)), feature_layer)


def _scale(tower: nn.Module) -> float:
    family = towers.family_of(tower)
    assert family is not None
    return family.attention_of(encoder_layers(tower)[0]).scale
