# SPDX-License-Identifier: Apache-2.0
"""The switched `get_image_features` of each kind of model: how its pictures come, and go on.

Each is a mixin of `switched.Inner` before a transformers class.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import support
from .accounting import Anatomy, Plan, plan, plan_of, refuse
from .hired_tower import full_images_first
from .image_features import HiredImageOutput, image_features
from .state import check_rows, sizes_of, tiles_of
from .switched import Inner
from .vision_tower import Reading
from .watchers import why_full


class _Features(Inner):
    """What all kinds do once it is known how their pictures are cut up."""

    def _hired_features(
        self,
        todo: Plan,
        pixels: Tensor,
        feature_layer: Any,
        strategy: str | None,
        *,
        return_dict: bool | None = None,
        output_hidden_states: Any = None,
        output_attentions: Any = None,
        **_: Any,
    ) -> HiredImageOutput | tuple:
        switch, config = vars(self)["hired"], self.config
        strategy = strategy or support.strategy_of(config)
        support.check_strategy(config, strategy)
        layer = support.feature_layer_of(config) if feature_layer is None else feature_layer
        support.feature_states(config, layer)
        asked = {
            "output_hidden_states": output_hidden_states,
            "output_attentions": output_attentions,
        }
        reading = Reading.of(self.vision_tower, layer, todo.anatomy, switch.settings)
        switch.why_full = support.why_full_tower(config, strategy, **asked) or why_full(
            self.vision_tower, reading.scored
        )
        output = image_features(
            self,
            switch.settings,
            pixels,
            todo,
            layer,
            why_full=switch.why_full,
            with_cls=support.with_cls(config, strategy),
            output_attentions=bool(output_attentions),
        )
        if config.model_type == "vipllava":
            output.pooler_output = torch.stack(output.pooler_output)
        return output.to_tuple() if return_dict is False else output


class OneImage(_Features):
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
        if "hired" not in vars(self):
            return super().get_image_features(pixel_values, **_named(layer, strategy), **kwargs)
        if self.config.model_type == "vipllava":
            layer = kwargs.pop("vision_feature_layers", layer)
        anatomy = Anatomy.of(self.config)
        sizes = [(anatomy.tile, anatomy.tile)] * pixel_values.shape[0]
        todo = plan(vars(self)["hired"].settings, anatomy, sizes)
        pixels = _partitions(pixel_values, todo.partitions, several=False)
        return self._hired_features(todo, pixels, layer, strategy, **kwargs)


class SubImages(_Features):
    """LLaVA-NeXT and LLaVA-NeXT-Video: a picture is a full image and its sub-images."""

    def get_image_features(
        self,
        pixel_values: Tensor,
        image_sizes: Any = None,
        vision_feature_layer: Any = None,
        vision_feature_select_strategy: str | None = None,
        hired_rows: Any = None,
        **kwargs: Any,
    ) -> HiredImageOutput | tuple:
        """Features of the kept tokens of pictures: `HiredImageOutput`.

        pixel_values (B, most partitions, 3, tile, tile), or (P, 3, tile, tile) without padding;
        image_sizes (B, 2), (height, width) in pixels; hired_rows (B,), from the switched processor,
        to check them by: rows of patches that the sub-images of each picture have.
        """
        layer, strategy = vision_feature_layer, vision_feature_select_strategy
        if "hired" not in vars(self):
            named = {"image_sizes": image_sizes, **_named(layer, strategy)}
            return super().get_image_features(pixel_values, **named, **kwargs)
        anatomy = Anatomy.of(self.config)
        sizes = sizes_of(image_sizes, pixel_values, anatomy)
        check_rows(anatomy, sizes, hired_rows)
        todo = plan(vars(self)["hired"].settings, anatomy, sizes)
        pixels = _partitions(pixel_values, todo.partitions, several=True)
        return self._hired_features(todo, pixels, layer, strategy, **kwargs)


class AnyResolution(SubImages):
    """LLaVA-OneVision: as LLaVA-NeXT, but of several pictures in a prompt each is one partition."""

    def get_image_features(
        self,
        pixel_values: Tensor,
        image_sizes: Any = None,
        vision_feature_layer: Any = None,
        vision_feature_select_strategy: str | None = None,
        vision_aspect_ratio: str | None = None,
        batch_num_images: Any = None,
        **kwargs: Any,
    ) -> HiredImageOutput | tuple:
        """Features of the kept tokens of pictures: `HiredImageOutput`.

        As of LLaVA-NeXT; batch_num_images has the number of pictures of each prompt, None where
        each has one. vision_aspect_ratio, by which the stock model shrinks large maps, is ignored:
        the budget does that.
        """
        layer, strategy = vision_feature_layer, vision_feature_select_strategy
        if "hired" not in vars(self):
            named = {"image_sizes": image_sizes, **_named(layer, strategy)}
            named |= {"vision_aspect_ratio": vision_aspect_ratio}
            named = {name: value for name, value in named.items() if value is not None}
            named["batch_num_images"] = batch_num_images
            return super().get_image_features(pixel_values, **named, **kwargs)
        anatomy = Anatomy.of(self.config)
        sizes = sizes_of(image_sizes, pixel_values, anatomy)
        alone = _alone(batch_num_images, len(sizes))
        layouts = [
            anatomy.layout(*size) if is_alone else anatomy.tiled()
            for size, is_alone in zip(sizes, alone, strict=True)
        ]
        todo = plan_of(vars(self)["hired"].settings, anatomy, layouts)
        pixels = _partitions(pixel_values, todo.partitions, several=True)
        return self._hired_features(todo, pixels, layer, strategy, **kwargs)


def _alone(batch_num_images: Any, pictures: int) -> list[bool]:
    """Whether each picture is the only one of its prompt."""
    if batch_num_images is None:
        return [True] * pictures
    counts = batch_num_images.tolist() if hasattr(batch_num_images, "tolist") else batch_num_images
    alone = [count == 1 for count in counts for _ in range(count)]
    if len(alone) != pictures:
        raise refuse("batch_num_images", f"{pictures} pictures by image_sizes", list(counts))
    return alone


class Tiles(_Features):
    """InternVL: a picture is its tiles, and then the full image; a frame of a video is one tile.

    The class's own `forward` hands nothing on that says which tile is whose, so pictures are
    encoded before it.
    """

    _hired_encodes = True

    def get_image_features(
        self,
        pixel_values: Tensor,
        vision_feature_layer: Any = None,
        vision_feature_select_strategy: str | None = None,
        hired_tiles: Any = None,
        **kwargs: Any,
    ) -> HiredImageOutput | tuple:
        """Features of the kept tokens of pictures, and of frames: `HiredImageOutput`.

        pixel_values (P, 3, tile, tile): of each picture its tiles and the full image after them;
        hired_tiles (pictures and frames, 3), from the switched processor: rows and columns of
        tiles, both 0 where there is one tile, and 1 for a frame of a video, else 0. Of frames that
        stay as they are only `pooler_output` speaks.
        """
        layer, strategy = vision_feature_layer, vision_feature_select_strategy
        if "hired" not in vars(self):
            return super().get_image_features(pixel_values, **_named(layer, strategy), **kwargs)
        anatomy, settings = Anatomy.of(self.config), vars(self)["hired"].settings
        tiles = tiles_of(hired_tiles, pixel_values, settings)
        parts = pixel_values.split([1 + R * C for R, C, _ in tiles])
        whole = [settings.video_budget is None and bool(frame) for *_, frame in tiles]
        features: list[Tensor] = [pixel_values] * len(tiles)
        output = HiredImageOutput()
        if any(whole):
            frames = torch.cat([part for part, stays in zip(parts, whole, strict=True) if stays])
            named = {**_named(layer, strategy), "return_dict": True}
            stock = super().get_image_features(frames, **named).pooler_output
            _put(stock, whole, features)
        chosen = [not stays for stays in whole]
        if any(chosen):
            asked = [settings.video_budget if frame else settings.budget for *_, frame in tiles]
            layouts = [anatomy.tiled(R, C) for R, C, _ in tiles]
            todo = plan_of(settings, anatomy, _only(layouts, chosen), _only(asked, chosen))
            pixels = torch.cat(_only(parts, chosen)) if any(whole) else pixel_values
            pixels = full_images_first(pixels.to(self.dtype), todo)
            given = {**kwargs, "return_dict": True}
            output = self._hired_features(todo, pixels, layer, strategy, **given)
            _put(output.pooler_output, chosen, features)
        output.pooler_output = features
        if settings.positions == "original" and any(whole):
            output.places, output.stock = _with_whole(output, whole, anatomy.tokens)
        return output.to_tuple() if kwargs.get("return_dict") is False else output

    def _hired_for_stock(self, output: HiredImageOutput) -> HiredImageOutput:
        output = super()._hired_for_stock(output)
        features = output.pooler_output
        if isinstance(features, Tensor):
            return output
        return HiredImageOutput(**{**output, "pooler_output": torch.cat(features)[None]})


def _with_whole(
    output: HiredImageOutput, whole: Sequence[bool], tokens: int
) -> tuple[Tensor, list[tuple[int, int]]]:
    """Places and stock rows of pictures and of the frames between them that stay as they are."""
    places: list[Any] = [torch.arange(tokens, device=output.pooler_output[0].device)] * len(whole)
    stock: list[Any] = [(tokens, tokens)] * len(whole)
    if output.places is not None:
        chosen = [not stays for stays in whole]
        _put(output.places.split([rows for rows, _ in output.stock]), chosen, places)
        _put(output.stock, chosen, stock)
    return torch.cat(places), stock


def _only(values: Sequence[Any], chosen: Sequence[bool]) -> list[Any]:
    return [value for value, is_chosen in zip(values, chosen, strict=True) if is_chosen]


def _put(values: Iterable[Any], chosen: Sequence[bool], into: list[Any]) -> None:
    """Put values into these places of a list, one after the other."""
    places = (place for place, is_chosen in enumerate(chosen) if is_chosen)
    for place, value in zip(places, values, strict=True):
        into[place] = value


def _named(layer: Any, strategy: str | None) -> dict[str, Any]:
    named = {"vision_feature_layer": layer, "vision_feature_select_strategy": strategy}
    return {name: value for name, value in named.items() if value is not None}


def _partitions(pixels: Tensor, counts: list[int], several: bool) -> Tensor:
    """(P, 3, tile, tile) of pixels, which may have one row a picture, padded with partitions."""
    if pixels.dim() == 4:
        return pixels
    if pixels.dim() != 5 or not several:
        expected = "rank 4 or 5" if several else "rank 4"
        raise refuse("pixel_values", expected, f"rank {pixels.dim()}")
    if len(counts) != pixels.shape[0]:
        got = f"{pixels.shape[0]} for {len(counts)} image_sizes"
        raise refuse("pixel_values", "a row for each picture", got)
    if all(count == pixels.shape[1] for count in counts):
        return pixels.flatten(0, 1)
    return torch.cat([picture[:count] for picture, count in zip(pixels, counts, strict=True)])
