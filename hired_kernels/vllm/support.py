# SPDX-License-Identifier: Apache-2.0
"""Which models the plugin can prune, and how they cut up pictures: read off a configuration."""

from __future__ import annotations

from typing import Any

from .. import geometry
from ..models import support
from ..models.accounting import Anatomy, Settings, one_side, refuse
from ..models.towers import TowerFamily, family_of_type

# InternVL as OpenGVLab saves it, and what differs from it in its language model alone.
OWN_FORMAT = ("internvl_chat", "qianfan_ocr")
# Those of transformers that have a vLLM class that the plugin derives from.
_SERVED = ("llava", "llava_next", "llava_onevision", "internvl")


def why_not(config: Any) -> str | None:
    """Why HiRED cannot serve a model of this configuration, or None."""
    try:
        _check(config)
    except ValueError as error:
        return str(error)
    return None


def anatomy_of(config: Any) -> Anatomy:
    """Of a model that is served."""
    if config.model_type not in OWN_FORMAT:
        return Anatomy.of(config)
    vision, merge = config.vision_config, round(1 / config.downsample_ratio)
    tile, patch = one_side(vision.image_size), one_side(vision.patch_size)
    return Anatomy(tile, patch, None, merge, geometry.INTERNVL_TILES)


def family_of(config: Any) -> type[TowerFamily]:
    """What transformers' tower of a served model is like; `towers` has vLLM's."""
    kind = config.vision_config.model_type
    family = family_of_type("internvl_vision" if config.model_type in OWN_FORMAT else kind)
    assert family is not None  # `why_not` has looked
    return family


def check_settings(config: Any, settings: Settings) -> None:
    """Raise ValueError for options that a served model cannot have."""
    support.check_rules(config.model_type, settings, anatomy_of(config), family_of(config))


def _check(config: Any) -> None:
    if config.model_type in OWN_FORMAT:
        _check_own_format(config)
        return
    if config.model_type not in _SERVED:
        raise refuse("model", f"one of {', '.join((*_SERVED, *OWN_FORMAT))}", config.model_type)
    support.check(config)
    strategy = support.strategy_of(config)
    if support.with_cls(config, strategy):
        raise refuse("vision_feature_select_strategy", "default", strategy)
    layer = support.feature_layer_of(config)
    if config.model_type == "internvl" and layer != -1:
        raise refuse("vision_feature_layer", "-1 in vLLM, which reads no other", layer)


def _check_own_format(config: Any) -> None:
    support.check_shape(config)
    if config.ps_version != "v2":
        raise refuse("ps_version", "v2, the order of patches in a token", config.ps_version)
    if config.dynamic_image_size and not config.use_thumbnail:
        raise refuse("use_thumbnail", "True: the full image weighs the tiles", False)
