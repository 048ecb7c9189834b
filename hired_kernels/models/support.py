# SPDX-License-Identifier: Apache-2.0
"""Which models HiRED can be switched on for, and which of them need the whole vision tower.

Everything here is read off a configuration; no weights are needed.
"""

from __future__ import annotations

from typing import Any

from . import judges
from .accounting import Anatomy, Settings, one_side, refuse
from .towers import TowerFamily, family_of_type
from .vision_tower import FeatureLayer, hidden_state_numbers, selection_layer

# What a model of each kind is called; LLaVA-1.5's class serves ShareGPT4V and others too.
MODEL_TYPES = {
    "llava": "LLaVA-1.5",
    "llava_next": "LLaVA-NeXT",
    "llava_next_video": "LLaVA-NeXT-Video",
    "vipllava": "VipLLaVA",
    "llava_onevision": "LLaVA-OneVision",
    "internvl": "InternVL",
}
# The towers that each is served with, by their `model_type`.
_TOWERS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(MODEL_TYPES, ("clip_vision_model", "siglip_vision_model")),
    "vipllava": ("clip_vision_model",),
    "llava_onevision": ("siglip_vision_model",),
    "internvl": ("internvl_vision",),
}
# How checkpoints in InternVL's own format call their kind.
_OWN_FORMAT = "internvl_chat"


def feature_layer_of(config: Any) -> FeatureLayer:
    """`vision_feature_layer`, which VipLLaVA has called `vision_feature_layers`."""
    layer = getattr(config, "vision_feature_layer", None)
    return config.vision_feature_layers if layer is None else layer


def strategy_of(config: Any) -> str:
    """`vision_feature_select_strategy`; VipLLaVA has none and drops CLS."""
    return getattr(config, "vision_feature_select_strategy", None) or "default"


def check(config: Any) -> None:
    """Raise ValueError, as `apply_hired` does, unless HiRED serves models of this configuration."""
    kind = getattr(config, "model_type", type(config).__name__)
    if kind not in MODEL_TYPES:
        hint = ""
        if kind == _OWN_FORMAT:
            hint = ": InternVL's own format. Take the checkpoint with -hf or -HF in its name"
        raise refuse("model", f"one of {', '.join(MODEL_TYPES)}", f"{kind}{hint}")
    tower = config.vision_config.model_type
    if tower not in _TOWERS[kind]:
        names = " or ".join(family.name for family in map(family_of_type, _TOWERS[kind]) if family)
        raise refuse("model", f"a {names} vision tower for {MODEL_TYPES[kind]}", tower)
    check_shape(config)
    check_strategy(config, strategy_of(config))
    feature_states(config, feature_layer_of(config))


def check_settings(config: Any, settings: Settings) -> None:
    """Raise ValueError, as `apply_hired` does, for options that a served model cannot have."""
    check_rules(config.model_type, settings, Anatomy.of(config), tower_of(config))


def check_rules(kind: str, settings: Settings, anatomy: Anatomy, family: type[TowerFamily]) -> None:
    """`check_settings` for a model of this kind, anatomy and tower."""
    judges.lines(settings.judge, family, anatomy.patches)
    if settings.newlines and anatomy.pinpoints is None:
        raise refuse("newlines", f"False for {kind}, which has no separators", True)
    if settings.policy == "published" and family.prefix == 0:
        expected = f"exact or pooled for {family.name}, which has no CLS token"
        raise refuse("policy", expected, "'published'")
    if settings.policy == "published" and anatomy.merge > 1:
        expected = f"exact or pooled for {kind}, whose tokens are blocks of patches"
        raise refuse("policy", expected, "'published'")
    if settings.video_budget is not None and anatomy.tiles is None:
        expected = f"None for {kind}, whose videos are not encoded as pictures"
        raise refuse("video_budget", expected, settings.video_budget)


def tower_of(config: Any) -> type[TowerFamily]:
    """The family of a served model's tower."""
    family = family_of_type(config.vision_config.model_type)
    assert family is not None  # `check` has looked
    return family


def check_shape(config: Any) -> None:
    """Raise ValueError for a tower whose partitions are not square, or not whole tokens."""
    vision: Any = config.vision_config
    for name in ("image_size", "patch_size"):
        size = getattr(vision, name)
        if isinstance(size, list | tuple) and len(set(size)) > 1:
            raise refuse(name, "a square", size)
    ratio = getattr(config, "downsample_ratio", None)
    if ratio is None:
        return
    merge, patches = round(1 / ratio), one_side(vision.image_size) // one_side(vision.patch_size)
    if merge < 1 or ratio != 1 / merge or patches % merge:
        raise refuse("downsample_ratio", f"1 / g, g dividing the side of {patches} patches", ratio)


def with_cls(config: Any, strategy: str) -> bool:
    """Whether the language model reads CLS beside the kept tokens."""
    return strategy == "full" and tower_of(config).prefix > 0


def check_strategy(config: Any, strategy: str) -> None:
    """Raise ValueError for a `vision_feature_select_strategy` that is not served."""
    allowed: tuple[str, ...] = ("default",)
    why = ""
    if tower_of(config).prefix == 0:
        allowed, why = ("full",), f" for {tower_of(config).name}, which has no CLS token to drop"
    elif not hasattr(config, "image_grid_pinpoints") and config.model_type != "internvl":
        allowed = ("default", "full")
    if strategy not in allowed:
        expected = f"{' or '.join(allowed)}{why}"
        raise refuse("vision_feature_select_strategy", expected, strategy)


def feature_states(config: Any, feature_layer: FeatureLayer) -> tuple[int, ...]:
    """`hidden_state_numbers` of a model's tower. Raises ValueError as `apply_hired` does."""
    if config.model_type == "internvl" and not isinstance(feature_layer, int):
        raise refuse("vision_feature_layer", "one layer, as the stock model does", feature_layer)
    try:
        return hidden_state_numbers(config.vision_config.num_hidden_layers, feature_layer)
    except ValueError as error:
        raise ValueError(f"hired: vision_{error}") from None


def why_full_tower(config: Any, strategy: str | None = None, **asked: Any) -> str | None:
    """Why the whole vision tower has to run for a model or a call, or None where it need not.

    `asked` may hold the call's `output_hidden_states` and `output_attentions`.
    """
    if with_cls(config, strategy or strategy_of(config)):
        return 'vision_feature_select_strategy is "full": the language model reads the CLS token'
    for output in ("output_hidden_states", "output_attentions"):
        if asked.get(output) or getattr(config.vision_config, output, False):
            return f"{output} asks for all of it"
    return None


def describe(config: Any) -> list[tuple[str, str]]:
    """Lines for `info`: what HiRED can do for a model of this configuration."""
    vision: Any = getattr(config, "vision_config", None)
    tower = getattr(vision, "model_type", "no vision tower")
    lines = [("model", f"{config.model_type} with {tower}")]
    try:
        check(config)
    except ValueError as error:
        return [*lines, ("HiRED", f"not available because: {error}")]
    lines.append(("HiRED", f"serves it as {MODEL_TYPES[config.model_type]}"))
    layers = vision.num_hidden_layers
    last = selection_layer(layers, feature_layer_of(config))
    lines.append(("a picture", _partitions(config)))
    lines.append(("judge", _judge(config)))
    why = why_full_tower(config)
    if why is None:
        lines.append(("early exit", f"inside layer {last} of {layers}, counted from 0"))
    else:
        lines.append(("early exit", f"not possible because {why}"))
    if config.model_type in ("llava_next_video", "llava_onevision"):
        lines.append(("videos", "stay as they are: they are pooled, not selected from"))
    if config.model_type == "internvl":
        lines.append(("videos", "stay as they are, unless there is a video_budget"))
    return lines


def _partitions(config: Any) -> str:
    """What becomes of a picture, in words."""
    anatomy = Anatomy.of(config)
    each = f"{anatomy.tokens} tokens each"
    if anatomy.tiles is not None:
        least, most = anatomy.tiles
        return f"{least} to {most} tiles, and the full image if there is more than one; {each}"
    if anatomy.pinpoints is None:
        return f"one partition, {each.removesuffix(' each')}"
    counts = [height * width // anatomy.tile**2 for height, width in anatomy.pinpoints]
    return f"the full image and {min(counts)} to {max(counts)} sub-images, {each}"


def _judge(config: Any) -> str:
    """Who scores the tokens by default, in words."""
    family, anatomy = tower_of(config), Anatomy.of(config)
    lines = judges.lines("auto", family, anatomy.patches)
    if lines is None:
        return "the CLS token"
    return f"{len(lines) ** 2} of the {anatomy.patches**2} patches of a partition, on a lattice"
