# SPDX-License-Identifier: Apache-2.0
"""`apply_hired` and `remove_hired`: HiRED on and off for a model and its processor.

An object is switched on by giving it a subclass of its class, with the same name and a few methods
of `switched.py`, and switched off by giving the class back. Nothing of the class itself, of the
weights, the configuration or the vision tower changes; other models of the class see nothing. A
copy or a pickle of a switched object is switched on, what `save_pretrained` writes is stock.
"""

from __future__ import annotations

from typing import Any

from transformers import LlavaNextProcessor, LlavaNextVideoProcessor, LlavaProcessor

from . import support
from .accounting import Anatomy, Settings, refuse
from .state import Switch
from .switched import is_on, turn_off, turn_on


def apply_hired(
    model: Any,
    processor: Any,
    budget: float | int = 0.2,
    alpha: float = 0.5,
    policy: str = "exact",
    newlines: bool = False,
) -> tuple[Any, Any]:
    """Switch HiRED on for a transformers model and its processor, both in place.

    Args:
        model: LLaVA-NeXT, LLaVA-1.5 (ShareGPT4V too), VipLLaVA or LLaVA-NeXT-Video with a CLIP
            vision tower; `...ForConditionalGeneration` or the model inside it.
        processor: the model's processor, which from now on writes as many placeholders for a
            picture as tokens of it are kept. None where it is patched elsewhere.
        budget: tokens to keep of a picture: a float in (0, 1] is a share of those that are not
            padding (of all under `published`), an int a number.
        alpha: share of the budget that the full image gets, in [0, 1].
        policy: "exact" keeps exactly the budget; "published" what the published code keeps, in its
            order, so that its accuracy tables carry over.
        newlines: keep one `image_newline` for each row of sub-images that keeps a token
            (LLaVA-NeXT, LLaVA-NeXT-Video). The published method has none.

    Returns model and processor. A second call replaces the settings of the first. `model.hired`
    says what is on: its `settings`, and in `why_full` why the vision tower cannot stop early, None
    if it can.
    Raises ValueError("hired: <argument>: expected ..., got ...") and changes nothing.
    """
    settings = Settings(budget, alpha, policy, newlines)
    parts = _parts(model)
    config = parts[-1].config
    support.check(config)
    anatomy = Anatomy.of(config)
    if newlines and anatomy.pinpoints is None:
        raise refuse("newlines", f"False for {config.model_type}, which has no separators", True)
    if processor is not None:
        _check_processor(processor, anatomy)
    remove_hired(model, processor)
    with_cls = support.strategy_of(config) == "full"
    switch = Switch(settings, anatomy, support.why_full_tower(config), with_cls)
    for part in parts if processor is None else (*parts, processor):
        turn_on(part, switch)
    return model, processor


def remove_hired(model: Any, processor: Any = None) -> tuple[Any, Any]:
    """Switch HiRED off: model and processor are as they were before `apply_hired`.

    What was not switched on stays as it is. Returns both.
    """
    parts = [] if model is None else _parts(model)
    for part in (*parts, processor):
        if part is not None and is_on(part):
            turn_off(part)
    return model, processor


def _parts(model: Any) -> tuple[Any, ...]:
    """The objects to switch: a model with a head and the one inside, or that alone."""
    inner = getattr(model, "model", model)
    if not hasattr(inner, "vision_tower") or not hasattr(inner, "multi_modal_projector"):
        kinds = ", ".join(support.MODEL_TYPES.values())
        raise refuse("model", f"a transformers model ({kinds})", type(model).__name__)
    return (inner,) if inner is model else (model, inner)


def _check_processor(processor: Any, anatomy: Anatomy) -> None:
    several = (LlavaNextProcessor, LlavaNextVideoProcessor)
    expected = LlavaProcessor if anatomy.pinpoints is None else several
    if not isinstance(processor, expected):
        names = expected.__name__ if anatomy.pinpoints is None else "LlavaNext(Video)Processor"
        raise refuse("processor", f"a {names}, the model's", type(processor).__name__)
    images = processor.image_processor
    if anatomy.pinpoints is not None:
        pinpoints = tuple(tuple(pair) for pair in images.image_grid_pinpoints)
        if pinpoints != anatomy.pinpoints:
            expected = f"the model's image_grid_pinpoints {list(anatomy.pinpoints)}"
            raise refuse("processor", expected, list(pinpoints))
    crop = getattr(images, "crop_size", None)
    height = crop.get("height") if isinstance(crop, dict) else getattr(crop, "height", None)
    if height is not None and height != anatomy.tile:
        raise refuse("processor", f"crop_size {anatomy.tile}, the model's image_size", height)
