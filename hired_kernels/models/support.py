# SPDX-License-Identifier: Apache-2.0
"""Which models HiRED can be switched on for, and which of them need the whole vision tower.

Everything here is read off a configuration; no weights are needed.
"""

from __future__ import annotations

from typing import Any

from .accounting import refuse
from .vision_tower import FeatureLayer, hidden_state_numbers, selection_layer

# What a model of each kind is called; LLaVA-1.5's class serves ShareGPT4V and others too.
MODEL_TYPES = {
    "llava": "LLaVA-1.5",
    "llava_next": "LLaVA-NeXT",
    "llava_next_video": "LLaVA-NeXT-Video",
    "vipllava": "VipLLaVA",
}


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
        raise refuse("model", f"one of {', '.join(MODEL_TYPES)}", kind)
    tower = config.vision_config.model_type
    if tower != "clip_vision_model":
        without_cls = " (which has no CLS token)" if "siglip" in tower else ""
        raise refuse(
            "model", "a CLIP vision tower, whose CLS token scores", f"{tower}{without_cls}"
        )
    check_strategy(config, strategy_of(config))
    feature_states(config, feature_layer_of(config))


def check_strategy(config: Any, strategy: str) -> None:
    """Raise ValueError for a `vision_feature_select_strategy` that is not served."""
    allowed = ("default",) if hasattr(config, "image_grid_pinpoints") else ("default", "full")
    if strategy not in allowed:
        raise refuse("vision_feature_select_strategy", " or ".join(allowed), strategy)


def feature_states(config: Any, feature_layer: FeatureLayer) -> tuple[int, ...]:
    """`hidden_state_numbers` of a model's tower. Raises ValueError as `apply_hired` does."""
    try:
        return hidden_state_numbers(config.vision_config.num_hidden_layers, feature_layer)
    except ValueError as error:
        raise ValueError(f"hired: vision_{error}") from None


def why_full_tower(config: Any, strategy: str | None = None, **asked: Any) -> str | None:
    """Why the whole vision tower has to run for a model or a call, or None where it need not.

    `asked` may hold the call's `output_hidden_states` and `output_attentions`.
    """
    if (strategy or strategy_of(config)) == "full":
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
    why = why_full_tower(config)
    if why is None:
        lines.append(("early exit", f"inside layer {last} of {layers}, counted from 0"))
    else:
        lines.append(("early exit", f"not possible because {why}"))
    if config.model_type == "llava_next_video":
        lines.append(("videos", "stay as they are: they are pooled, not selected from"))
    return lines
