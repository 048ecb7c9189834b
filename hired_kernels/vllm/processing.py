# SPDX-License-Identifier: Apache-2.0
"""From a request's pictures and budget to its placeholders, in vLLM's front end.

A picture travels to the workers with the token count its budget came to (`hired_budget`, -1 for
none) beside its size, and its placeholders are counted from these two numbers: the worker keeps, by
the same arithmetic, exactly as many tokens. What cannot be is refused here, where it ends one
request, and not in the worker, where it would end the engine.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.models.llava import (
    BaseLlavaMultiModalProcessor,
    BaseLlavaProcessingInfo,
    LlavaDummyInputsBuilder,
    LlavaMultiModalProcessor,
    LlavaProcessingInfo,
    PixtralHFMultiModalProcessor,
    PixtralHFProcessingInfo,
)
from vllm.model_executor.models.llava_next import (
    LlavaNextMultiModalProcessor,
    LlavaNextProcessingInfo,
)
from vllm.multimodal.inputs import MultiModalFieldConfig, MultiModalKwargsItems
from vllm.multimodal.parse import ImageProcessorItems, MultiModalDataItems
from vllm.multimodal.processing import (
    BaseMultiModalProcessor,
    InputProcessingContext,
    ProcessorInputs,
    PromptReplacement,
    PromptUpdate,
)

from ..models.accounting import refuse
from .options import REQUEST, Options

STOCK = -1


class _Info:
    """What both models' processing knows of the server's options."""

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


class HiredLlavaProcessingInfo(_Info, LlavaProcessingInfo):
    """LLaVA-1.5's, with the server's options."""


class HiredLlavaNextProcessingInfo(_Info, LlavaNextProcessingInfo):
    """LLaVA-NeXT's, with the server's options."""


class _Processor(BaseLlavaMultiModalProcessor):
    """A LLaVA processor that writes a placeholder for each token that is kept."""

    def get_dummy_inputs(self, *args: Any, **kwargs: Any) -> ProcessorInputs:
        """Inputs with the most tokens that a request may ask for."""
        inputs = super().get_dummy_inputs(*args, **kwargs)
        return replace(inputs, hf_processor_mm_kwargs={REQUEST: self.info.hired.max_budget})

    def _call_hf_processor(
        self, hf_data: Mapping[str, object], hf_kwargs: Mapping[str, object]
    ) -> MutableMapping[str, Any]:
        hired, budget = self.info.hired, self.info.hired.asked(hf_kwargs)
        # vLLM asks for tensors where a request does not say otherwise.
        ours = (REQUEST, "return_tensors")
        stock_kwargs = {name: value for name, value in hf_kwargs.items() if name not in ours}
        output = super()._call_hf_processor(hf_data, stock_kwargs)
        if "pixel_values" in output and hired.anatomy is not None:
            pictures, sizes = output["pixel_values"], self._sizes(output)
            self._check(pictures, sizes)
            todo = hired.admit(budget, sizes)
            budgets = [STOCK] * len(pictures) if todo is None else todo.budgets
            output[REQUEST] = torch.tensor(budgets, dtype=torch.int64)
        return output

    def _check(self, pictures: Sequence[Tensor], sizes: Sequence[tuple[int, int]]) -> None:
        """Raise ValueError unless the worker will find the partitions that it expects.

        A request can ask for another preprocessing than the model's, and vLLM's own worker, too,
        would end with the engine over it.
        """
        anatomy = self.info.hired.anatomy
        tile = (3, anatomy.tile, anatomy.tile)
        for picture, size in zip(pictures, sizes, strict=True):
            *found, _, _, _ = shape = tuple(picture.shape)
            partitions = anatomy.layout(*size).partitions
            if math.prod(found) < partitions or shape[-3:] != tile:
                expected = f"{partitions} partition(s) of shape {tile}"
                raise refuse("pixel_values", expected, f"{math.prod(found)} of {shape[-3:]}")

    def _sizes(self, output: MutableMapping[str, Any]) -> list[tuple[int, int]]:
        """(height, width) in pixels of the pictures of a processor's output."""
        tile = self.info.hired.anatomy.tile
        if "image_sizes" not in output:
            return [(tile, tile)] * len(output["pixel_values"])
        return [tuple(size) for size in torch.as_tensor(output["image_sizes"]).tolist()]

    def _get_mm_fields_config(
        self, hf_inputs: MutableMapping[str, Any], hf_processor_mm_kwargs: Mapping[str, object]
    ) -> Mapping[str, MultiModalFieldConfig]:
        fields = super()._get_mm_fields_config(hf_inputs, hf_processor_mm_kwargs)
        return {**fields, REQUEST: MultiModalFieldConfig.batched("image", keep_on_cpu=True)}

    def _get_prompt_updates(
        self,
        mm_items: MultiModalDataItems,
        hf_processor_mm_kwargs: Mapping[str, object],
        out_mm_kwargs: MultiModalKwargsItems,
    ) -> Sequence[PromptUpdate]:
        given = mm_items, hf_processor_mm_kwargs, out_mm_kwargs
        (stock,) = super()._get_prompt_updates(*given)
        is_picture = "image" in mm_items and isinstance(mm_items["image"], ImageProcessorItems)

        def placeholders(item: int) -> list[int]:
            data = out_mm_kwargs["image"][item].get_data() if is_picture else {}
            budget = int(data.get(REQUEST, STOCK))
            if budget == STOCK:
                return stock.replacement(item)
            size = data.get("image_sizes")
            tile = self.info.hired.anatomy.tile
            height, width = (tile, tile) if size is None else size.tolist()
            return stock.target * self.info.hired.plan([budget], [(height, width)]).rows[0]

        return [PromptReplacement(modality="image", target=stock.target, replacement=placeholders)]


class HiredLlavaMultiModalProcessor(_Processor, LlavaMultiModalProcessor):
    """LLaVA-1.5's."""


class HiredLlavaNextMultiModalProcessor(_Processor, LlavaNextMultiModalProcessor):
    """LLaVA-NeXT's."""


def llava_info(ctx: InputProcessingContext) -> BaseLlavaProcessingInfo:
    """As for vLLM's class, which also serves Pixtral's towers."""
    if ctx.get_hf_config().vision_config.model_type == "pixtral":
        return PixtralHFProcessingInfo(ctx)
    return HiredLlavaProcessingInfo(ctx)


def llava_processor(
    info: BaseLlavaProcessingInfo, dummy_inputs: LlavaDummyInputsBuilder, **more: Any
) -> BaseMultiModalProcessor:
    """As for vLLM's class, which also serves Pixtral's towers."""
    if isinstance(info, PixtralHFProcessingInfo):
        return PixtralHFMultiModalProcessor(info, dummy_inputs, **more)
    return HiredLlavaMultiModalProcessor(info, dummy_inputs, **more)
