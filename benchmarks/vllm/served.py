# SPDX-License-Identifier: Apache-2.0
"""What vLLM is given to serve: a folder with configuration, tokenizer and processor, and requests.

Shapes and counts are those of shared/llava_next.py. There are no weights in the folder: `worker.py`
draws them. Words of the tokenizer are w2, w3, ...; a prompt is half of the text, a picture and the
other half.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from transformers import LlavaNextConfig

from hired_kernels.models.accounting import Anatomy, Settings, placeholders

from ..shared import processor
from ..shared.llava_next import FIRST_WORD, TEXT_TOKENS, Size, configure

TILE, PATCH = 336, 14


def save(size: Size, folder: Path) -> LlavaNextConfig:
    """Write the folder; returns the configuration."""
    config = configure(size)
    config.architectures = ["LlavaNextForConditionalGeneration"]
    config.save_pretrained(folder)
    words = [
        "<unk>",
        "<image>",
        *(f"w{i}" for i in range(FIRST_WORD, config.text_config.vocab_size)),
    ]
    pinpoints = config.image_grid_pinpoints
    processor.build(words, TILE, PATCH, pinpoints, pad_token="<unk>").save_pretrained(folder)
    return config


def prompt() -> str:
    """TEXT_TOKENS words around one picture."""
    words = [f"w{i % 7 + FIRST_WORD}" for i in range(TEXT_TOKENS)]
    half = TEXT_TOKENS // 2
    return " ".join([*words[:half], "<image>", *words[half:]])


def prompt_tokens(config: LlavaNextConfig, budget: float | None, side: int) -> int:
    """Of a request, by the accounting; the stock model, without a budget, has newlines too."""
    anatomy = Anatomy.of(config)
    settings = Settings(1.0, newlines=True) if budget is None else Settings(budget)
    return TEXT_TOKENS + placeholders(settings, anatomy, side, side)


def picture(side: int, seed: int) -> Image.Image:
    """A square of coarse noise, another for each seed."""
    noise = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((side, side), Image.Resampling.NEAREST)
