# SPDX-License-Identifier: Apache-2.0
"""What a model, the model inside it and a processor do differently while HiRED is switched on.

Each mixin stands before a transformers class in a subclass made for it (`_switched_class`). Its
methods fall back to that class where `self.hired`, the `Switch`, is not there.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from . import support
from .accounting import Anatomy, Settings, plan
from .image_features import HiredImageOutput, image_features
from .state import Switch
from .surplus import by_name, hide, placeholder_mask

_PICTURES = ("pixel_values", "mm_encoder_outputs")


class _Switched:
    """What all switched objects have in common."""

    _hired_base: type

    def __reduce_ex__(self, protocol: int) -> tuple:
        _, (_, *arguments), *rest = super().__reduce_ex__(protocol)
        return _remade, (self._hired_base, *arguments), *rest


class _Model(_Switched):
    """A model with or without its head: hides placeholders that stand for nothing."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        switch = self.__dict__.get("hired")
        # Decoding steps, which may be compiled as one graph, are let through at once. By position,
        # pixel_values comes after input_ids in all models served.
        pictures = any(value is not None for value in (*args[1:], *map(kwargs.get, _PICTURES)))
        if switch is None or not switch.has_surplus or not pictures or switch.holding:
            return super().__call__(*args, **kwargs)
        arguments = by_name(self.forward, args, kwargs)
        output = _encoded(self, arguments)
        if output is None:
            return super().__call__(*args, **kwargs)
        hide(self, output.surplus, arguments, generating=False)
        with switch.hold(arguments.get("pixel_values"), output):
            return super().__call__(**arguments)


class _Outer(_Model):
    """A `...ForConditionalGeneration`."""

    @torch.no_grad()
    def generate(self, inputs: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        switch = self.__dict__.get("hired")
        if switch is None or not switch.has_surplus:
            return super().generate(inputs, *args, **kwargs)
        arguments = {**kwargs, "input_ids": kwargs.get("input_ids") if inputs is None else inputs}
        output = _encoded(self, arguments)
        if output is None:
            return super().generate(inputs, *args, **kwargs)
        hide(self, output.surplus, arguments, generating=True)
        for name in ("attention_mask", "position_ids"):
            if arguments.get(name) is not None:
                kwargs[name] = arguments[name]
        with switch.hold(arguments.get("pixel_values"), output):
            return super().generate(inputs, *args, **kwargs)


class _Inner(_Model):
    """The model without its head: selects inside its vision tower."""

    def _hired_features(
        self,
        pixels: Tensor,
        image_sizes: Any,
        feature_layer: Any,
        strategy: str | None,
        *,
        return_dict: bool | None = None,
        output_hidden_states: Any = None,
        output_attentions: Any = None,
        **_: Any,
    ) -> HiredImageOutput | tuple:
        switch = self.hired
        output = switch.encoded(pixels)
        if output is None:
            asked = {
                "output_hidden_states": output_hidden_states,
                "output_attentions": output_attentions,
            }
            strategy = strategy or support.strategy_of(self.config)
            layer = (
                support.feature_layer_of(self.config) if feature_layer is None else feature_layer
            )
            sizes = _sizes(image_sizes, pixels, switch.anatomy)
            todo = plan(switch.settings, switch.anatomy, sizes)
            output = image_features(
                self,
                switch.settings,
                _partitions(pixels, todo.partitions),
                todo,
                layer,
                why_full=support.why_full_tower(self.config, strategy, **asked),
                with_cls=strategy == "full",
                output_attentions=bool(output_attentions),
            )
            if self.config.model_type == "vipllava":
                output.pooler_output = torch.stack(output.pooler_output)
        return output.to_tuple() if return_dict is False else output

    def get_placeholder_mask(self, *args: Any, **kwargs: Any) -> Any:
        switch = self.__dict__.get("hired")
        try:
            return super().get_placeholder_mask(*args, **kwargs)
        except ValueError as error:
            arguments = by_name(super().get_placeholder_mask, args, kwargs)
            features = arguments.get("image_features")
            if switch is None or features is None:
                raise
            rows, found = (
                features.numel() // features.shape[-1],
                int(placeholder_mask(self, arguments).sum()),
            )
            if found == rows:
                raise
            raise ValueError(_mismatch(found, rows, switch.settings)) from error


class _OneImage(_Inner):
    """LLaVA-1.5 and VipLLaVA: a picture is one partition."""

    def get_image_features(
        self,
        pixel_values: Tensor,
        vision_feature_layer: Any = None,
        vision_feature_select_strategy: str | None = None,
        image_sizes: Any = None,
        **kwargs: Any,
    ) -> HiredImageOutput | tuple:
        """Features of the kept tokens of pixel_values (B, 3, tile, tile): `HiredImageOutput`.

        image_sizes is for towers that take any size; CLIP's pictures are all of one.
        """
        layer, strategy = vision_feature_layer, vision_feature_select_strategy
        if "hired" not in self.__dict__:
            named = {"vision_feature_layer": layer, "vision_feature_select_strategy": strategy}
            named = {name: value for name, value in named.items() if value is not None}
            return super().get_image_features(pixel_values, **named, **kwargs)
        layer = kwargs.pop("vision_feature_layers", layer)
        return self._hired_features(pixel_values, None, layer, strategy, **kwargs)


class _SubImages(_Inner):
    """LLaVA-NeXT and LLaVA-NeXT-Video: a picture is a full image and its sub-images."""

    def get_image_features(
        self,
        pixel_values: Tensor,
        image_sizes: Any,
        vision_feature_layer: Any = None,
        vision_feature_select_strategy: str | None = None,
        **kwargs: Any,
    ) -> HiredImageOutput | tuple:
        """Features of the kept tokens of pictures: `HiredImageOutput`.

        pixel_values (B, most partitions, 3, tile, tile), or (P, 3, tile, tile) without padding;
        image_sizes (B, 2), (height, width) in pixels.
        """
        layer, strategy = vision_feature_layer, vision_feature_select_strategy
        if "hired" not in self.__dict__:
            return super().get_image_features(pixel_values, image_sizes, layer, strategy, **kwargs)
        return self._hired_features(pixel_values, image_sizes, layer, strategy, **kwargs)


class _OneImageProcessor(_Switched):
    """LLaVA-1.5's processor counts the patches of a picture and adds this."""

    @property
    def num_additional_image_tokens(self) -> int:
        own = self.__dict__["num_additional_image_tokens"]
        switch = self.__dict__.get("hired")
        if switch is None:
            return own
        tile = switch.anatomy.tile
        dropped = self.vision_feature_select_strategy == "default"
        return switch.placeholders(tile, tile) - (tile // self.patch_size) ** 2 + dropped

    @num_additional_image_tokens.setter
    def num_additional_image_tokens(self, value: int) -> None:
        self.__dict__["num_additional_image_tokens"] = value


class _SubImagesProcessor(_Switched):
    """LLaVA-NeXT's processor asks this, and takes one off where CLS is dropped."""

    def _get_number_of_features(
        self, orig_height: int, orig_width: int, height: int, width: int
    ) -> int:
        switch = self.__dict__.get("hired")
        if switch is None:
            return super()._get_number_of_features(orig_height, orig_width, height, width)
        dropped = self.vision_feature_select_strategy == "default"
        return switch.placeholders(int(orig_height), int(orig_width)) + dropped


def turn_on(part: Any, switch: Switch) -> None:
    """Give `part`, a model or a processor, the switched subclass of its class."""
    # A switched class may have been asked for an object by name: `type(model).from_pretrained`.
    part.__class__ = _switched_class(getattr(type(part), "_hired_base", type(part)))
    part.hired = switch


def turn_off(part: Any) -> None:
    """Give `part` its own class back. The switch is off for whatever else still holds it."""
    part.hired.on = False
    del part.hired
    part.__class__ = part._hired_base


def is_on(part: Any) -> bool:
    return isinstance(part, _Switched) and "hired" in part.__dict__


@cache
def _switched_class(base: type) -> type:
    """A subclass of `base` that passes for it, name and all: transformers goes by the names."""
    names = {"__module__": base.__module__, "__qualname__": base.__qualname__, "_hired_base": base}
    return type(base.__name__, (_mixin(base), base), {"__doc__": base.__doc__, **names})


def _mixin(base: type) -> type:
    if hasattr(base, "get_attributes"):  # a processor
        sub_images = hasattr(base, "_get_number_of_features")
        return _SubImagesProcessor if sub_images else _OneImageProcessor
    if hasattr(base, "generate"):
        return _Outer
    return _SubImages if hasattr(base, "pack_image_features") else _OneImage


def _remade(base: type, *arguments: Any) -> Any:
    made = _switched_class(base)
    return made.__new__(made, *arguments)


def _encoded(model: Any, arguments: dict[str, Any]) -> HiredImageOutput | None:
    """The features of a call's pictures, encoded now or before; None without pictures."""
    output = (arguments.get("mm_encoder_outputs") or {}).get("image")
    if isinstance(output, HiredImageOutput) and output.surplus is not None:
        return output
    if output is not None or arguments.get("pixel_values") is None:
        return None
    names = (
        "pixel_values",
        "image_sizes",
        "vision_feature_layer",
        "vision_feature_select_strategy",
    )
    given = {name: arguments[name] for name in names if arguments.get(name) is not None}
    return model.get_image_features(**given, return_dict=True)


def _sizes(image_sizes: Any, pixels: Tensor, anatomy: Anatomy) -> list[tuple[int, int]]:
    """(height, width) of each picture. Waits for the device where `image_sizes` lies on one."""
    if anatomy.pinpoints is None:
        return [(anatomy.tile, anatomy.tile)] * pixels.shape[0]
    sizes = image_sizes.tolist() if isinstance(image_sizes, Tensor) else image_sizes
    return [(int(height), int(width)) for height, width in sizes]


def _partitions(pixels: Tensor, counts: list[int]) -> Tensor:
    """(P, 3, tile, tile) of pixels, which may have one row a picture, padded with partitions."""
    if pixels.dim() == 4:
        return pixels
    if pixels.dim() != 5:
        raise ValueError(f"hired: pixel_values: expected rank 4 or 5, got rank {pixels.dim()}")
    if len(counts) != pixels.shape[0]:
        got = f"{pixels.shape[0]} for {len(counts)} image_sizes"
        raise ValueError(f"hired: pixel_values: expected a row for each picture, got {got}")
    if all(count == pixels.shape[1] for count in counts):
        return pixels.flatten(0, 1)
    return torch.cat([picture[:count] for picture, count in zip(pixels, counts, strict=True)])


def _mismatch(found: int, expected: int, settings: Settings) -> str:
    options = ", ".join(
        f"{name}={value!r}" for name, value in vars(settings).items() if value is not None
    )
    return (
        f"hired: input_ids: expected {expected} image placeholders for these pictures, got "
        f"{found}: the inputs are not from a processor with this model's settings. Call "
        f"`model, processor = hired_kernels.apply_hired(model, processor, {options})` and make "
        "the inputs with that processor"
    )
