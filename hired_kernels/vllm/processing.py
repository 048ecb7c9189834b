# SPDX-License-Identifier: Apache-2.0
"""From a request's pictures and budget to its placeholders, in vLLM's front end.

A picture travels to the workers with the token count its budget came to (`hired_budget`, -1 for
none) beside what says how it was cut up, and its placeholders are counted from these: the worker
keeps, by the same arithmetic, exactly as many tokens. What cannot be is refused here, where it ends
one request, and not in the worker, where it would end the engine.

`Info` and `Processor` stand before vLLM's own classes of a family (`families`). How pictures are
cut up, and what is written for their tokens, is said by `SubImages` for LLaVA's families and by
`Tiles` for InternVL's.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from vllm.inputs import MultiModalInput
from vllm.multimodal.inputs import MultiModalFieldConfig, MultiModalKwargsItems
from vllm.multimodal.parse import ImageProcessorItems, ImageSize, MultiModalDataItems
from vllm.multimodal.processing import (
    ProcessorInputs,
    PromptReplacement,
    PromptUpdate,
)

from .. import geometry
from ..models.accounting import refuse
from . import metrics
from .options import REQUEST, Options

_log = logging.getLogger(__name__)

NO_BUDGET = -1
# (pictures, 2): rows and columns of tiles that each was cut into, 0 where it is one tile.
TILES = "hired_tiles"

# What the worker has of a picture: how many partitions, and the shape of one.
Partitions = tuple[int, tuple[int, ...]]


class Info:
    """What all models' processing knows of the server's options."""

    @cached_property
    def hired(self) -> Options:
        """The server's options. Raises ValueError where they cannot be."""
        for name in self.ctx.get_mm_config().mm_processor_kwargs or {}:
            if name.startswith("hired"):
                expected = """a server's budget in --hf-overrides '{"hired": {"budget": ...}}'"""
                raise refuse("mm_processor_kwargs", expected, name)
        return Options.of(self.get_hf_config())

    @property
    def model_id(self) -> str:
        """What vLLM's caches know the model by: servers with other options keep other tokens."""
        options = getattr(self.get_hf_config(), "hired", None)
        name = super().model_id
        return f"{name} hired={json.dumps(options, sort_keys=True)}" if options else name

    @cached_property
    def hired_most(self) -> int | None:
        """What no picture may have more tokens than where there is no `max_budget`; None: any may
        have all of its own, as vLLM plans for as many."""
        return None


class Processor:
    """A processor that writes a placeholder for each token that is kept.

    pixels: what the processor's output calls the pixels. `processor` is the one that a request's
    options ask for, of transformers or vLLM.
    """

    pixels = "pixel_values"

    def _stock_tokens(self, size: ImageSize, processor: Any, kwargs: Mapping[str, object]) -> int:
        """Tokens that the stock model's prompt has for a picture."""
        raise NotImplementedError

    def _layouts(
        self, mm_items: MultiModalDataItems, output: MutableMapping[str, Any], kwargs: Any
    ) -> list[geometry.Layout]:
        """How a request's pictures were cut up."""
        raise NotImplementedError

    def _layout(self, data: Mapping[str, Any]) -> geometry.Layout:
        """How a picture was cut up, from what the worker is sent."""
        raise NotImplementedError

    def _partitions(self, output: MutableMapping[str, Any]) -> list[Partitions]:
        """What the worker will find of each picture."""
        raise NotImplementedError

    def _may_have(self, found: int, expected: int, budget: float | int | None) -> bool:
        """Whether the worker can read so many partitions of a picture where it expects others."""
        raise NotImplementedError

    def _written(self, update: PromptUpdate, count: int, processor: Any) -> Any:
        """What the prompt has for a picture of `count` tokens."""
        raise NotImplementedError

    def apply(self, inputs: ProcessorInputs, *args: Any, **kwargs: Any) -> MultiModalInput:
        prepared = super().apply(inputs, *args, **kwargs)
        try:
            self._count(inputs, prepared)
        except Exception:  # a metric is no reason to fail a request
            _log.warning("hired: a request was not counted", exc_info=True)
        return prepared

    def _count(self, inputs: ProcessorInputs, prepared: MultiModalInput) -> None:
        """Tell `metrics` what this request's pictures were spared."""
        own, ranges = inputs.hf_processor_mm_kwargs, prepared["mm_placeholders"].get("image")
        if not ranges or metrics.is_rehearsal() or self.info.hired.asked(own) is None:
            return
        pictures, kwargs = inputs.mm_data_items["image"], _without_ours(own)
        if not isinstance(pictures, ImageProcessorItems):
            return
        processor = self.info.get_hf_processor(**kwargs)
        for item, placeholders in enumerate(ranges):
            if pictures.get(item) is None:
                continue  # sent by its UUID alone, and so of a size unknown here
            stock = self._stock_tokens(pictures.get_image_size(item), processor, kwargs)
            metrics.count(placeholders.get_num_embeds(), stock)

    def get_dummy_inputs(self, *args: Any, **kwargs: Any) -> ProcessorInputs:
        """Inputs with the most tokens that a request may ask for."""
        inputs = super().get_dummy_inputs(*args, **kwargs)
        return replace(inputs, hf_processor_mm_kwargs={REQUEST: self.info.hired.max_budget})

    def get_dummy_mm_inputs(self, *args: Any, **kwargs: Any) -> MultiModalInput:
        with metrics.rehearsal():
            return super().get_dummy_mm_inputs(*args, **kwargs)

    def _apply_hf_processor_main(
        self, mm_items: MultiModalDataItems, hf_kwargs: Mapping[str, object]
    ) -> MutableMapping[str, Any]:
        hired, budget = self.info.hired, self.info.hired.asked(hf_kwargs)
        kwargs = _without_ours(hf_kwargs)
        output = super()._apply_hf_processor_main(mm_items, kwargs)
        if self.pixels in output and hired.anatomy is not None:
            layouts = self._layouts(mm_items, output, kwargs)
            self._check(output, layouts, budget)
            todo = hired.admit(budget, layouts, self.info.hired_most)
            budgets = [NO_BUDGET] * len(layouts) if todo is None else todo.budgets
            output[REQUEST] = torch.tensor(budgets, dtype=torch.int64)
            if hired.anatomy.tiles is not None:
                grids = [layout.grid for layout in layouts]
                output[TILES] = torch.tensor(grids, dtype=torch.int64).reshape(-1, 2)
        return output

    def _check(
        self,
        output: MutableMapping[str, Any],
        layouts: Sequence[geometry.Layout],
        budget: float | int | None,
    ) -> None:
        """Raise ValueError unless the worker will find the partitions that it expects.

        A request can ask for another preprocessing than the model's, and vLLM's own worker, too,
        would end with the engine over it.
        """
        side = self.info.hired.anatomy.tile
        tile = (3, side, side)
        for (found, shape), layout in zip(self._partitions(output), layouts, strict=True):
            if shape != tile or not self._may_have(found, layout.partitions, budget):
                expected = f"{layout.partitions} partition(s) of shape {tile}"
                raise refuse(self.pixels, expected, f"{found} of {shape}")

    def _get_mm_fields_config(
        self, hf_inputs: MutableMapping[str, Any], hf_processor_mm_kwargs: Mapping[str, object]
    ) -> Mapping[str, MultiModalFieldConfig]:
        fields = super()._get_mm_fields_config(hf_inputs, _without_ours(hf_processor_mm_kwargs))
        ours = MultiModalFieldConfig.batched("image", keep_on_cpu=True)
        return {**fields, REQUEST: ours, TILES: ours}

    def _get_prompt_updates(
        self,
        mm_items: MultiModalDataItems,
        hf_processor_mm_kwargs: Mapping[str, object],
        out_mm_kwargs: MultiModalKwargsItems,
    ) -> Sequence[PromptUpdate]:
        kwargs = _without_ours(hf_processor_mm_kwargs)
        updates = super()._get_prompt_updates(mm_items, kwargs, out_mm_kwargs)
        if "image" not in mm_items or not isinstance(mm_items["image"], ImageProcessorItems):
            return updates
        asked = self.info.hired.asked(hf_processor_mm_kwargs) is not None
        processor = self.info.get_hf_processor(**kwargs) if asked else None

        def counted(update: PromptUpdate) -> PromptUpdate:
            def placeholders(item: int) -> Any:
                if not asked:
                    return update.replacement(item)
                data = out_mm_kwargs["image"][item].get_data()
                todo = self.info.hired.plan([int(data[REQUEST])], [self._layout(data)])
                return self._written(update, todo.rows[0], processor)

            return PromptReplacement(
                modality="image", target=update.target, replacement=placeholders
            )

        return [counted(each) if each.modality == "image" else each for each in updates]


class SubImages(Processor):
    """LLaVA's families: a picture's size says how it is cut up, and each token is a placeholder."""

    def _stock_tokens(self, size: ImageSize, processor: Any, kwargs: Mapping[str, object]) -> int:
        return self.info.get_num_image_tokens(image_width=size.width, image_height=size.height)

    def _layouts(
        self, mm_items: MultiModalDataItems, output: MutableMapping[str, Any], kwargs: Any
    ) -> list[geometry.Layout]:
        anatomy, sizes = self.info.hired.anatomy, output.get("image_sizes")
        if sizes is None:
            return [anatomy.tiled()] * len(output[self.pixels])
        return [anatomy.layout(*size) for size in torch.as_tensor(sizes).tolist()]

    def _layout(self, data: Mapping[str, Any]) -> geometry.Layout:
        size, anatomy = data.get("image_sizes"), self.info.hired.anatomy
        return anatomy.tiled() if size is None else anatomy.layout(*size.tolist())

    def _partitions(self, output: MutableMapping[str, Any]) -> list[Partitions]:
        shapes = [tuple(picture.shape) for picture in output[self.pixels]]
        return [(math.prod(shape[:-3]), shape[-3:]) for shape in shapes]

    def _may_have(self, found: int, expected: int, budget: float | int | None) -> bool:
        return found >= expected  # maybe with padding up to another picture's

    def _written(self, update: PromptUpdate, count: int, processor: Any) -> list[int]:
        return update.target * count


class Tiles(Processor):
    """InternVL's families: tiles and the full image, in one tensor with those of other pictures;
    their tokens stand between a start and an end."""

    def _grid(self, size: ImageSize, processor: Any, kwargs: Any) -> geometry.Grid:
        """Rows and columns that vLLM cuts a picture into that it cuts."""
        raise NotImplementedError

    def _layouts(
        self, mm_items: MultiModalDataItems, output: MutableMapping[str, Any], kwargs: Any
    ) -> list[geometry.Layout]:
        processor, layouts = self.info.get_hf_processor(**kwargs), []
        for item, count in enumerate(output["image_num_patches"].tolist()):
            size = mm_items["image"].get_image_size(item)
            grid = self._grid(size, processor, kwargs) if count > 1 else (0, 0)
            layout = self.info.hired.anatomy.tiled(*grid)
            layouts.append(replace(layout, height=size.height, width=size.width))
        return layouts

    def _layout(self, data: Mapping[str, Any]) -> geometry.Layout:
        return self.info.hired.anatomy.tiled(*data[TILES].tolist())

    def _partitions(self, output: MutableMapping[str, Any]) -> list[Partitions]:
        shape = tuple(output[self.pixels].shape[1:])
        return [(count, shape) for count in output["image_num_patches"].tolist()]

    def _may_have(self, found: int, expected: int, budget: float | int | None) -> bool:
        return found == expected or budget is None  # the stock model takes any number


def _without_ours(kwargs: Mapping[str, object]) -> dict[str, object]:
    """What vLLM's own code and transformers' is to be told of a request's options.

    vLLM asks for tensors where a request does not say otherwise.
    """
    ours = (REQUEST, "return_tensors")
    return {name: value for name, value in kwargs.items() if name not in ours}
