# SPDX-License-Identifier: Apache-2.0
"""What vLLM is given to serve: a folder with configuration, tokenizer and processor, and requests.

Shapes are those of shared/families.py. There are no weights in the folder: `worker.py` draws them.
Words of the tokenizer are w2, w3, ...; a prompt is half of the text, a picture and the other half.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import transformers
from PIL import Image
from transformers import PreTrainedConfig, ProcessorMixin

from hired_kernels.models.accounting import Anatomy, Settings, placeholders

from ..shared import processor
from ..shared.families import Family
from ..shared.llava_next import FIRST_WORD, TEXT_TOKENS

IMAGE, VIDEO = "<image>", "<video>"


def save(family: Family, size: str, folder: Path) -> PreTrainedConfig:
    """Write the folder; returns the configuration."""
    config = family.configure(size, size)
    config.architectures = [family.architecture]
    _PROCESSORS[family.name](config).save_pretrained(folder)
    config.save_pretrained(folder)
    return config


def prompt() -> str:
    """TEXT_TOKENS words around one picture."""
    words = [f"w{i % 7 + FIRST_WORD}" for i in range(TEXT_TOKENS)]
    half = TEXT_TOKENS // 2
    return " ".join([*words[:half], IMAGE, *words[half:]])


def prompt_tokens(family: Family, config: PreTrainedConfig, budget: float | None) -> int:
    """Of a request, by the accounting. InternVL's processor writes a start and an end as well."""
    around = 2 if family.name == "internvl" else 0
    if budget is None:
        return TEXT_TOKENS + around + family.stock_tokens(config)
    kept = placeholders(Settings(budget), Anatomy.of(config), *family.picture)
    return TEXT_TOKENS + around + kept


def picture(size: tuple[int, int], seed: int) -> Image.Image:
    """Coarse noise of height x width pixels, another for each seed."""
    height, width = size
    noise = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.NEAREST)


def _llava_next(config: PreTrainedConfig) -> ProcessorMixin:
    anatomy, words = Anatomy.of(config), _words(config)
    cut = anatomy.tile, anatomy.patch, config.image_grid_pinpoints
    return processor.build(words, *cut, pad_token="<unk>")


def _onevision(config: PreTrainedConfig) -> ProcessorMixin:
    """Gives the configuration its token for videos, too."""
    anatomy, words = Anatomy.of(config), _words(config, VIDEO)
    size = {"height": anatomy.tile, "width": anatomy.tile}
    config.video_token_index = words.index(VIDEO)
    return transformers.LlavaOnevisionProcessor(
        image_processor=transformers.LlavaOnevisionImageProcessor(
            size=size, image_grid_pinpoints=config.image_grid_pinpoints
        ),
        tokenizer=processor.make_tokenizer(
            words, pad_token="<unk>", additional_special_tokens=[IMAGE, VIDEO]
        ),
        video_processor=transformers.LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=anatomy.tokens,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
    )


def _internvl(config: PreTrainedConfig) -> ProcessorMixin:
    anatomy, others = Anatomy.of(config), ("<img>", "</img>", VIDEO)
    size = {"height": anatomy.tile, "width": anatomy.tile}
    names = ("start_image_token", "end_image_token", "video_token", "context_image_token")
    return transformers.InternVLProcessor(
        image_processor=transformers.GotOcr2ImageProcessor(size=size),
        tokenizer=processor.make_tokenizer(
            _words(config, *others),
            pad_token="<unk>",
            extra_special_tokens=dict(zip(names, (*others, IMAGE), strict=True)),
        ),
        video_processor=transformers.InternVLVideoProcessor(size=size),
        image_seq_length=anatomy.tokens,
    )


def _words(config: PreTrainedConfig, *last: str) -> list[str]:
    """A language model's vocabulary, with these for its last words."""
    end = config.text_config.vocab_size - len(last)
    return ["<unk>", IMAGE, *(f"w{i}" for i in range(FIRST_WORD, end)), *last]


_PROCESSORS = {"llava-next": _llava_next, "llava-onevision": _onevision, "internvl": _internvl}
