# SPDX-License-Identifier: Apache-2.0
"""The model families that benchmarks run: shapes, one picture of several tiles, random weights.

`tiny` has the real number of visual tokens in small layers; the other size has the shapes of a
model that people run (LLaVA-NeXT-7B, LLaVA-OneVision-7B, InternVL3-8B).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import (
    InternVLConfig,
    InternVLVisionConfig,
    LlavaOnevisionConfig,
    PreTrainedConfig,
    Qwen2Config,
    SiglipVisionConfig,
)

from hired_kernels import geometry
from hired_kernels.models.accounting import Anatomy, Settings, placeholders

from . import llava_next
from .llava_next import IMAGE_TOKEN

QWEN_7B = (3584, 18944, 28, 28, 4, 152064)  # width, MLP, layers, heads, their keys, words
QWEN_TINY = (128, 256, 2, 4, 4, 512)


@dataclass(frozen=True)
class Family:
    """A model class, what it is configured with, and its picture of height x width pixels.

    configure: makes the configuration of a tower and a language model, "tiny" or "7b" each.
    newlines: whether the stock model puts newlines among a picture's tokens.
    """

    name: str
    model: str
    picture: tuple[int, int]
    configure: Callable[[str, str], PreTrainedConfig]
    newlines: bool = True

    @property
    def architecture(self) -> str:
        """The stock model's class."""
        return f"{self.model}ForConditionalGeneration"

    @property
    def named(self) -> tuple[str, ...]:
        """What names of results have of it: nothing for LLaVA-NeXT."""
        return () if self.name == "llava-next" else (self.name,)

    @property
    def full(self) -> str:
        """What the size "7b" has the shapes of."""
        return {"llava-next": "LLaVA-NeXT-7B", "llava-onevision": "LLaVA-OneVision-7B"}.get(
            self.name, "InternVL3-8B"
        )

    def make(self, size: str, device: str, *, tower_only: bool = False) -> nn.Module:
        """A model with seeded random weights on the device, in the dtype of its size.

        With `tower_only` its language model is tiny, and on a CPU it is in float32.
        """
        torch.manual_seed(0)
        dtype, text = llava_next.SIZES[size].dtype, "tiny" if tower_only else size
        if tower_only and device == "cpu":
            dtype = torch.float32
        with torch.device(device):
            cls = getattr(transformers, self.architecture)
            return cls._from_config(self.configure(size, text), dtype=dtype).eval()

    def layout(self, config: PreTrainedConfig) -> geometry.Layout:
        """How the picture is cut up."""
        return Anatomy.of(config).layout(*self.picture)

    def stock_tokens(self, config: PreTrainedConfig) -> int:
        """Tokens of the prompt that stand for the picture in the stock model."""
        settings = Settings(1.0, newlines=self.newlines)
        return placeholders(settings, Anatomy.of(config), *self.picture)

    def draw(self, model: nn.Module, B: int) -> Tensor:
        """Pixels (B, P, 3, tile, tile) of B pictures."""
        tile, generator = Anatomy.of(model.config).tile, torch.Generator().manual_seed(B)
        shape = (B, self.layout(model.config).partitions, 3, tile, tile)
        return torch.randn(shape, generator=generator).to(model.device, model.dtype)

    def arguments(self, model: nn.Module, pixels: Tensor, switched: bool) -> dict[str, Any]:
        """What a model is given of the pictures."""
        if self.name == "internvl":
            given: dict[str, Any] = {"pixel_values": pixels.flatten(0, 1)}
            if switched:
                grid = self.layout(model.config).grid
                given["hired_tiles"] = torch.tensor([[*grid, 0]] * len(pixels))
            return given
        return {"pixel_values": pixels, "image_sizes": torch.tensor([self.picture] * len(pixels))}


def _text(size: str) -> Qwen2Config:
    width, mlp, layers, heads, keys, words = QWEN_TINY if size == "tiny" else QWEN_7B
    return Qwen2Config(
        hidden_size=width,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=keys,
        vocab_size=words,
        max_position_embeddings=32768,
    )


def _tower(size: str, full: tuple[int, int, int, int]) -> dict[str, int]:
    D, mlp, layers, heads = llava_next.SIZES["tiny"].tower if size == "tiny" else full
    return {
        "hidden_size": D,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
    }


def _llava_next(size: str, text: str) -> PreTrainedConfig:
    shapes = llava_next.SIZES
    return llava_next.configure(replace(shapes[size], text=shapes[text].text))


def _onevision(size: str, text: str) -> PreTrainedConfig:
    vision = SiglipVisionConfig(
        **_tower(size, (1152, 4304, 26, 16)), image_size=384, patch_size=14, vision_use_head=False
    )
    return LlavaOnevisionConfig(
        vision_config=vision, text_config=_text(text), image_token_index=IMAGE_TOKEN
    )


def _internvl(size: str, text: str) -> PreTrainedConfig:
    vision = InternVLVisionConfig(
        **_tower(size, (1024, 4096, 24, 16)), image_size=448, patch_size=14, attention_bias=True
    )
    return InternVLConfig(vision_config=vision, text_config=_text(text), image_token_id=IMAGE_TOKEN)


FAMILIES = {
    family.name: family
    for family in (
        # As in the paper: 2 x 2 sub-images, 2,880 tokens.
        Family("llava-next", "LlavaNext", (672, 672), _llava_next),
        # 2 x 3 tiles each: 5,103 tokens, and 1,792.
        Family("llava-onevision", "LlavaOnevision", (768, 1152), _onevision),
        Family("internvl", "InternVL", (896, 1344), _internvl, newlines=False),
    )
}
