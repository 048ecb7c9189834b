# SPDX-License-Identifier: Apache-2.0
"""`apply_hired` and `remove_hired`: HiRED on and off for a model and its processor.

Model, processor and the modules of the vision tower are switched on by giving them subclasses of
their classes (`classes`), and off by giving the classes back. Nothing of a class itself, of the
weights or the configuration changes; other models of the class see nothing. A copy or a pickle of a
switched object is switched on, what `save_pretrained` writes is stock.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.nn.utils import parametrize
from transformers import (
    InternVLProcessor,
    LlavaNextProcessor,
    LlavaNextVideoProcessor,
    LlavaOnevisionProcessor,
    LlavaProcessor,
    PreTrainedModel,
    ProcessorMixin,
)

from . import support
from .accounting import Anatomy, Settings, refuse
from .classes import Switched, turn_off, turn_on
from .state import Switch
from .switched import Outer
from .switched_features import AnyResolution, OneImage, SubImages, Tiles
from .switched_processor import (
    AnyResolutionProcessor,
    OneImageProcessor,
    SubImagesProcessor,
    TilesProcessor,
)
from .vision_tower import Reading, turn_off_tower, turn_on_tower
from .watchers import FEATURES, makes_stock_features, why_full


def apply_hired(
    model: Any,
    processor: Any,
    budget: float | int = 0.2,
    alpha: float = 0.5,
    policy: str = "exact",
    newlines: bool = False,
    judge: str | int = "auto",
    video_budget: float | int | None = None,
    positions: str = "kept",
) -> tuple[Any, Any]:
    """Switch HiRED on for a transformers model and its processor, both in place.

    Args:
        model: LLaVA-NeXT, LLaVA-1.5 (ShareGPT4V too), VipLLaVA or LLaVA-NeXT-Video with a CLIP or
            SigLIP vision tower, LLaVA-OneVision or InternVL; `...ForConditionalGeneration` or the
            model inside it.
        processor: the model's processor, which from now on writes as many placeholders for a
            picture as tokens of it are kept. None where it is patched elsewhere.
        budget: tokens to keep of a picture: a float in (0, 1] is a share of those that are not
            padding (of all under `published`), an int a number.
        alpha: share of the budget that the full image gets, in [0, 1].
        policy: "exact" keeps exactly the budget, shared out among the partitions; "pooled" the best
            tokens of all partitions together; "published" what the published code keeps, in its
            order, so that its accuracy tables carry over.
        newlines: keep one `image_newline` for each row of sub-images that keeps a token
            (LLaVA-NeXT, LLaVA-NeXT-Video, LLaVA-OneVision). The published method has none.
        judge: whose attention scores the tokens. "cls", the CLS token; "patches", all patches of a
            partition; an integer q, those on a lattice of r x r, r^2 <= q; "auto", CLS in a CLIP
            tower, and elsewhere a lattice of a quarter of the patches. Judges other than CLS weigh
            the sub-images by their scores in the selection layer.
        video_budget: tokens to keep of each frame of a video (InternVL), as `budget`; None leaves
            videos as they are.
        positions: "kept" numbers the kept tokens one after the other; "original" gives each the
            position that it has in the stock prompt, and so to the text after a picture.

    Returns model and processor. A second call replaces the settings of the first. `model.hired`
    says what is on: its `settings`, and in `why_full` why the vision tower cannot stop early, None
    if it can.
    Raises ValueError("hired: <argument>: expected ..., got ...") and changes nothing.
    """
    settings = Settings(budget, alpha, policy, newlines, judge, video_budget, positions)
    parts = _parts(model)
    inner = parts[-1]
    config = inner.config
    support.check(config)
    support.check_settings(config, settings)
    anatomy = Anatomy.of(config)
    if processor is not None:
        _check_processor(processor, config, anatomy)
        parts = (*parts, processor)
    _check_classes(parts)
    remove_hired(model, processor)
    turn_on_tower(inner.vision_tower)
    layer = support.feature_layer_of(config)
    reading = Reading.of(inner.vision_tower, layer, anatomy, settings)
    why = support.why_full_tower(config) or why_full(inner.vision_tower, reading.scored)
    with_cls = support.with_cls(config, support.strategy_of(config))
    switch = Switch(settings, anatomy, why, with_cls, has_head=inner is not model)
    for part in parts:
        turn_on(part, _mixin(part))
        part.hired = switch
    return model, processor


def remove_hired(model: Any, processor: Any = None) -> tuple[Any, Any]:
    """Switch HiRED off: model and processor are as they were before `apply_hired`.

    What was not switched on stays as it is. Returns both.
    """
    parts = [] if model is None else _parts(model)
    for part in (*parts, processor):
        if "hired" in getattr(part, "__dict__", {}):
            part.hired.on = False
            del part.hired
        if isinstance(part, Switched):
            turn_off(part)
    if isinstance(processor, ProcessorMixin) and hasattr(processor, "image_processor"):
        turn_off(processor.image_processor)  # InternVL's, switched on by the processor's calls
    for part in parts[-1:]:
        turn_off_tower(part.vision_tower)
    return model, processor


def _parts(model: Any) -> tuple[Any, ...]:
    """The objects to switch: a model with a head and the one inside, or that alone."""
    parts = (model, model.model) if hasattr(model, "model") else (model,)
    for part in parts:
        # A wrapper passes for what it wraps in all but its class.
        if not isinstance(part, PreTrainedModel) or not hasattr(parts[-1], "multi_modal_projector"):
            kinds = ", ".join(support.MODEL_TYPES.values())
            expected = f"a transformers model ({kinds}), before anything is wrapped around it"
            raise refuse("model", expected, type(part).__name__)
    return parts


def _mixin(part: Any) -> type[Switched]:
    if isinstance(part, ProcessorMixin):
        if isinstance(part, InternVLProcessor):
            return TilesProcessor
        if isinstance(part, LlavaOnevisionProcessor):
            return AnyResolutionProcessor
        sub_images = hasattr(part, "_get_number_of_features")
        return SubImagesProcessor if sub_images else OneImageProcessor
    if hasattr(part, "generate"):
        return Outer
    if hasattr(part, "pixel_shuffle"):
        return Tiles
    if part.config.model_type == "llava_onevision":
        return AnyResolution
    return SubImages if hasattr(part, "pack_image_features") else OneImage


def _check_classes(parts: Iterable[Any]) -> None:
    """Refuse classes that switching would get wrong.

    Parametrized ones, since only the topmost class of an object can be undone; and a model that
    makes features of its pictures in its own way.
    """
    for part in parts:
        if isinstance(part, PreTrainedModel) and not makes_stock_features(part):
            expected = f"transformers' own {', '.join(FEATURES)}"
            raise refuse("model", expected, f"those of {type(part).__name__}")
        own = isinstance(part, nn.Module) and not isinstance(part, Switched)
        if own and parametrize.is_parametrized(part):
            name = type(part).__name__
            expected = "no parametrization of its own parameters: switch the model first"
            raise refuse("model", expected, name)


# The processors of each kind of model, and which of an image processor's sizes is the tile.
_PROCESSORS: dict[str, tuple[tuple[type, ...], str]] = {
    "llava": ((LlavaProcessor,), "crop_size"),
    "vipllava": ((LlavaProcessor,), "crop_size"),
    "llava_next": ((LlavaNextProcessor, LlavaNextVideoProcessor), "crop_size"),
    "llava_next_video": ((LlavaNextProcessor, LlavaNextVideoProcessor), "crop_size"),
    "llava_onevision": ((LlavaOnevisionProcessor,), "size"),
    "internvl": ((InternVLProcessor,), "size"),
}
# Their attributes that say how many tokens a tile has.
_TOKENS_OF_A_TILE = {"llava_onevision": "num_image_tokens", "internvl": "image_seq_length"}


def _check_processor(processor: Any, config: Any, anatomy: Anatomy) -> None:
    kinds, argument = _PROCESSORS[config.model_type]
    if not issubclass(type(processor), kinds):
        named = " or ".join(kind.__name__ for kind in kinds)
        raise refuse("processor", f"a {named}, the model's", type(processor).__name__)
    images = processor.image_processor
    if anatomy.pinpoints is not None:
        pinpoints = tuple(tuple(pair) for pair in images.image_grid_pinpoints or ())
        if pinpoints != anatomy.pinpoints:
            expected = f"the model's image_grid_pinpoints {list(anatomy.pinpoints)}"
            raise refuse("processor", expected, list(pinpoints))
    if config.model_type in _TOKENS_OF_A_TILE:
        name = _TOKENS_OF_A_TILE[config.model_type]
        if getattr(processor, name) != anatomy.tokens:
            expected = f"{name} {anatomy.tokens}, the model's tokens a tile"
            raise refuse("processor", expected, getattr(processor, name))
    elif anatomy.pinpoints is None and not getattr(images, "do_center_crop", True):
        argument = "size"
    tile, size = anatomy.tile, getattr(images, argument, None)
    pixels = (_side(size, "height"), _side(size, "width"))
    if any(each not in (None, tile) for each in pixels):
        got = pixels[0] if pixels[0] == pixels[1] else pixels
        raise refuse("processor", f"{argument} {tile}, the model's image_size", got)


def _side(size: Any, name: str) -> int | None:
    return size.get(name) if isinstance(size, dict) else getattr(size, name, None)
