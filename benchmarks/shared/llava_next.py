# SPDX-License-Identifier: Apache-2.0
"""LLaVA-NeXT models with random weights, and what they are asked: shapes, pictures, words."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaNextConfig

from hired_kernels import geometry

SIDE_PIXELS = 672
GRID = (2, 2)
TEXT_TOKENS = 40
IMAGE_TOKEN, FIRST_WORD = 1, 2


@dataclass(frozen=True)
class Size:
    """Shapes of a model. tower: D, MLP, layers, heads. text: width, MLP, layers, heads, words."""

    name: str
    tower: tuple[int, int, int, int]
    text: tuple[int, int, int, int, int]
    dtype: torch.dtype


SIZES = {
    "tiny": Size("tiny", (64, 128, 6, 2), (128, 256, 2, 4, 512), torch.float32),
    "7b": Size("7b", (1024, 4096, 24, 16), (4096, 11008, 32, 32, 32064), torch.float16),
}


def configure(size: Size) -> LlavaNextConfig:
    """The configuration of a model of these shapes."""
    D, mlp, layers, heads = size.tower
    width, text_mlp, text_layers, text_heads, words = size.text
    return LlavaNextConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=D,
            intermediate_size=mlp,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            image_size=336,
            patch_size=14,
        ),
        text_config=LlamaConfig(
            hidden_size=width,
            intermediate_size=text_mlp,
            num_hidden_layers=text_layers,
            num_attention_heads=text_heads,
            vocab_size=words,
            max_position_embeddings=16384,
        ),
        image_grid_pinpoints=[list(pair) for pair in geometry.LLAVA_NEXT_PINPOINTS],
        image_token_index=IMAGE_TOKEN,
    )
