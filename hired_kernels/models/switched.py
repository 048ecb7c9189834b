# SPDX-License-Identifier: Apache-2.0
"""What a model, and the model inside it, do differently while HiRED is switched on.

Each mixin stands before a transformers class in a subclass made for it (`classes`). Its methods
fall back to that class where `self.hired`, the `Switch`, is not there.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import positions, support, surplus
from .accounting import Anatomy, Settings, refuse
from .classes import Switched, reaches
from .image_features import HiredImageOutput
from .state import ROWS, TILES, Switch, call_options, check_rows

_PICTURES = ("pixel_values", "mm_encoder_outputs")
_RAW = ("pixel_values", "image_sizes", "batch_num_images", TILES)
_HIDDEN, _SHIFT = "hired_hidden", "hired_shift"  # arguments that `generate` hands to itself


class _Model(Switched):
    """A model whose arguments `_hired_call` sees to, in `forward` or before one not of ours."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if reaches(self):
            return super().__call__(*args, **kwargs)
        return self._hired_call(super().__call__, args, kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._hired_call(super().forward, args, kwargs)


class Outer(_Model):
    """A `...ForConditionalGeneration`."""

    def _hired_call(
        self, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        rows, switch = kwargs.pop(ROWS, None), _switch_of(self)
        if switch is None or (rows is None and not switch.has_surplus):
            return call(*args, **kwargs)
        arguments = surplus.by_name(self, args, kwargs)
        check_rows(Anatomy.of(self.config), arguments.get("image_sizes"), rows)
        if switch.has_surplus:
            arguments = surplus.without_labels(self, arguments)
        return call(**arguments)

    @torch.no_grad()
    def generate(self, inputs: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        switch, cache = _switch_of(self), surplus.cache_of(kwargs)
        arguments = {**kwargs, "input_ids": kwargs.get("input_ids") if inputs is None else inputs}
        prompt = surplus.prompt_of(arguments)
        if switch is None or prompt is None or not (switch.sees_to or surplus.remembers(cache)):
            return super().generate(inputs, *args, **kwargs)
        if not _takes_encoded(self) and not _is_static(self, args, kwargs):
            # Where `generate` itself encodes nothing beforehand, each call of the model hides.
            return super().generate(inputs, *args, **kwargs)
        check_rows(Anatomy.of(self.config), kwargs.get("image_sizes"), kwargs.pop(ROWS, None))
        output = _encoded(self, arguments) if switch.sees_to else None
        mask, given = kwargs.get("attention_mask"), kwargs.get("position_ids")
        columns = (prompt if mask is None else mask).shape[1]
        hidden = surplus.hidden_columns(self, arguments, output, columns)
        shift = positions.shift_of(self, arguments, output, columns)
        if hidden is None and shift is None:
            return super().generate(inputs, *args, **kwargs)
        if hidden is not None and given is not None:
            shown = hidden if mask is None else hidden & mask.to(hidden.device).bool()
            kwargs["position_ids"] = surplus.shift_positions(given, shown)
        if hidden is not None and mask is not None:
            kwargs["attention_mask"] = surplus.hide_from_mask(mask, hidden)
        videos = kwargs.get("pixel_values_videos") is not None
        if output is not None and _takes_encoded(self) and not videos:
            _hand_over(self, kwargs, output)
        try:
            kwargs |= {_HIDDEN: hidden, _SHIFT: shift}
            result = super().generate(inputs, *args, **kwargs)
        finally:
            surplus.generated(cache)
        if isinstance(result, dict):
            surplus.generated(surplus.cache_of(result))
        return result

    # What `generate` calls on its way: to look at its arguments, to infer a mask from padding where
    # none was given, and, when the rows of all beams are there, to see to a cache.

    def _validate_model_kwargs(self, model_kwargs: dict[str, Any]) -> None:
        ours = (ROWS, TILES, _HIDDEN, _SHIFT)
        theirs = {name: value for name, value in model_kwargs.items() if name not in ours}
        super()._validate_model_kwargs(theirs)

    def _prepare_attention_mask_for_generation(
        self, inputs_tensor: Tensor, generation_config: Any, model_kwargs: dict[str, Any]
    ) -> Tensor:
        mask = super()._prepare_attention_mask_for_generation(
            inputs_tensor, generation_config, model_kwargs
        )
        hidden = model_kwargs.get(_HIDDEN)
        return mask if hidden is None else surplus.hide_from_mask(mask, hidden)

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        hidden, shift = (model_kwargs.pop(name, None) for name in (_HIDDEN, _SHIFT))
        done = super()._prepare_cache_for_generation(
            generation_config, model_kwargs, *args, **kwargs
        )
        cache = surplus.cache_of(model_kwargs)
        if hidden is not None or shift is not None:
            surplus.remember(cache, hidden, shift, generating=True)
        elif surplus.remembers(cache) and surplus.length_of(cache) == 0:
            surplus.forget(cache)  # one that the model has kept from another call
        return done


class Inner(_Model):
    """The model without its head: selects inside its vision tower, hides what stands for nothing.

    In its `forward`, where its own parameters are: FSDP and DeepSpeed gather them for that call.
    """

    _hired_encodes = False  # whether the class's own `forward` could not encode a call's pictures

    def _hired_call(
        self, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        switch, cache = _switch_of(self), surplus.cache_of(kwargs)
        rows, tiles = kwargs.pop(ROWS, None), kwargs.pop(TILES, None)
        # By position, pictures and cache come after input_ids in all models served.
        pictures = any(value is not None for value in (*args[1:], *map(kwargs.get, _PICTURES)))
        # Decoding steps, which may be compiled as one graph, are let through at once.
        if switch is None or not (pictures or surplus.remembers(cache)):
            return call(*args, **kwargs)
        arguments = surplus.by_name(self, args, kwargs)
        if tiles is not None:
            arguments[TILES] = tiles
        check_rows(Anatomy.of(self.config), arguments.get("image_sizes"), rows)
        strategy = arguments.get("vision_feature_select_strategy")
        expected = support.strategy_of(self.config)
        if strategy not in (None, expected):
            raise refuse("vision_feature_select_strategy", expected, strategy)
        cache = surplus.cache_of(arguments)
        if surplus.prompt_of(arguments) is None:
            return call(*args, **kwargs)
        encodes = switch.sees_to or self._hired_encodes
        output = _encoded(self, arguments) if encodes else None
        # `generate` has hidden what there is from the masks that it makes for such a cache.
        static = surplus.is_generating(cache) and cache.is_compileable
        hidden = None if static else surplus.hidden_columns(self, arguments, output)
        shift = positions.shift_of(self, arguments, output)
        if hidden is not None:
            surplus.hide(arguments, hidden)
        if shift is not None:
            positions.add(self, arguments, shift)
        if output is not None:
            _hand_over(self, arguments, output)
        result = call(**arguments)
        if not static:
            filled = surplus.cache_of(result) if cache is None else cache
            surplus.remember(filled, hidden, shift, surplus.is_generating(filled))
        return result

    def _hired_for_stock(self, output: HiredImageOutput) -> HiredImageOutput:
        """The output as the class's own `forward` takes it, and returns it."""
        if output.stock is None:
            return output
        theirs = {name: one for name, one in output.items() if name not in ("places", "stock")}
        return HiredImageOutput(**theirs)

    def get_placeholder_mask(self, *args: Any, **kwargs: Any) -> Any:
        switch = vars(self).get("hired")
        try:
            return super().get_placeholder_mask(*args, **kwargs)
        except ValueError as error:
            parameters = inspect.signature(super().get_placeholder_mask).parameters
            arguments = {**dict(zip(parameters, args, strict=False)), **kwargs}
            features = arguments.get("image_features")
            if switch is None or features is None:
                raise
            found = int(surplus.placeholder_mask(self, arguments).sum())
            expected = features.numel() // features.shape[-1]
            if found == expected:
                raise
            raise ValueError(_mismatch(found, expected, switch.settings)) from error


def _encoded(model: Any, arguments: dict[str, Any]) -> HiredImageOutput | None:
    """The features of a call's pictures, encoded now or before; None without pictures."""
    output = (arguments.get("mm_encoder_outputs") or {}).get("image")
    pixels = arguments.get("pixel_values")
    if output is None and pixels is not None and pixels.shape[0] > 0:
        names = (*_RAW, "vision_feature_layer", "vision_feature_select_strategy")
        given = {name: arguments[name] for name in names if arguments.get(name) is not None}
        output = model.get_image_features(**given, return_dict=True)
    return output if isinstance(output, HiredImageOutput) else None


def _switch_of(model: Any) -> Switch | None:
    """What is on: a switch may have been turned off, or over, for the model inside alone."""
    switch = vars(model).get("hired")
    return switch if switch is not None and switch.on else None


def _is_static(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether `generate` may fill a cache of a fixed size, and so make masks of rank 4."""
    cache, given = surplus.cache_of(kwargs), kwargs.get("generation_config", *args[:1])
    asked = [kwargs.get("cache_implementation")]
    asked += [
        getattr(one, "cache_implementation", None) for one in (given, model.generation_config)
    ]
    return any(asked) or getattr(cache, "is_compileable", False)


def _takes_encoded(model: Any) -> bool:
    """Whether this transformers has models that take encoded pictures."""
    return "mm_encoder_outputs" in inspect.signature(type(model).forward).parameters


def _hand_over(model: Any, arguments: dict[str, Any], output: HiredImageOutput) -> None:
    """Give a call the features of its pictures instead of the pictures, in place."""
    for name in _RAW:
        arguments.pop(name, None)
    encoded = arguments.pop("mm_encoder_outputs", None) or {}
    if isinstance(model, Inner):
        output = model._hired_for_stock(output)
    if _takes_encoded(model) and arguments.get("pixel_values_videos") is None:
        arguments["mm_encoder_outputs"] = {**encoded, "image": output}
        return
    placeholder = surplus.placeholder_mask(model, arguments)
    ids, embeds = arguments.pop("input_ids", None), arguments.get("inputs_embeds")
    if embeds is None:
        embeds = model.get_input_embeddings()(ids)
    features = torch.cat(list(output.pooler_output)).to(embeds)
    found = int(placeholder.sum())
    if found != len(features):
        raise ValueError(_mismatch(found, len(features), model.hired.settings))
    mask = placeholder[..., None].to(embeds.device).expand_as(embeds)
    arguments["inputs_embeds"] = embeds.masked_scatter(mask, features)


def _mismatch(found: int, expected: int, settings: Settings) -> str:
    options = call_options(settings)
    generated = (
        "If the language model has generated one (without a cache it is read again), keep it from "
        "that with `suppress_tokens`. Else the"
    )
    return (
        f"hired: input_ids: expected {expected} image placeholders for these pictures, got "
        f"{found}. {generated if found > expected else 'The'} inputs are not from a processor with "
        "this model's settings: call `model, processor = hired_kernels.apply_hired(model, "
        f"processor, {options})` and make them with that processor"
    )
