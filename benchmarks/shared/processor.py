# SPDX-License-Identifier: Apache-2.0
"""Tokenizers with a word a token, words apart by spaces, and LLaVA-NeXT's processor with one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlavaNextProcessor, PreTrainedTokenizerFast
from transformers.models.llava_next.image_processing_pil_llava_next import (
    LlavaNextImageProcessorPil,
)


def make_tokenizer(words: Sequence[str], **options: Any) -> PreTrainedTokenizerFast:
    """Words by their ids, `<unk>` among them."""
    splitter = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    splitter.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=splitter, unk_token="<unk>", **options)


def build(
    words: Sequence[str],
    tile: int,
    patch: int,
    pinpoints: Sequence[Sequence[int]],
    **tokenizer: str,
) -> LlavaNextProcessor:
    """Words by their ids, `<unk>` and `<image>` among them; `tokenizer` is its other options."""
    return LlavaNextProcessor(
        image_processor=LlavaNextImageProcessorPil(
            size={"shortest_edge": tile},
            crop_size={"height": tile, "width": tile},
            image_grid_pinpoints=pinpoints,
        ),
        tokenizer=make_tokenizer(words, additional_special_tokens=["<image>"], **tokenizer),
        patch_size=patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
