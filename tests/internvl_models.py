# SPDX-License-Identifier: Apache-2.0
"""Tiny InternVL models with random weights, with tokenizer and processor, built here."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from llava_models import spread
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import InternVLConfig, InternVLForConditionalGeneration, InternVLVisionConfig
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

TILE, PATCH, MERGE = 84, 14, 2  # 6 x 6 patches and 3 x 3 tokens a partition
SIZES = [(168, 168), (80, 240), (250, 90), (60, 70), (160, 250)]  # (height, width)
SPECIAL = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}
WORDS = ["<unk>", "<pad>", "<s>", "</s>", *SPECIAL.values(), "what", "is", "this", "shown"]
WORDS += ["Frame1", "Frame2", "Frame3", ":"]
IMAGE = WORDS.index("<IMG_CONTEXT>")

# What the towers of InternVL's versions differ in.
KINDS: dict[str, dict[str, Any]] = {
    "2": {},
    "2-26b": {"use_qk_norm": True, "norm_type": "rms_norm", "attention_bias": False},
    "3": {"attention_bias": True},
    "normed": {"use_mean_pooling": False},
}


def make(
    kind: str = "2",
    *,
    layers: int = 4,
    tiles: tuple[int, int] = (1, 6),
    seed: int = 0,
    padding_side: str = "left",
    attention: str | None = None,
    tile: int = TILE,
    width: int = 32,
    words: list[str] = WORDS,
    text: type = transformers.Qwen2Config,
    **changes: Any,
):
    """A model in evaluation mode and its processor. `changes` go to its config.

    `width` is that of the language model, which has two heads, `words` its vocabulary, `text` the
    class of its configuration.
    """
    vision = InternVLVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=2,
        image_size=[tile, tile],
        patch_size=[PATCH, PATCH],
        layer_scale_init_value=0.7,
        **KINDS[kind],
    )
    language = text(
        hidden_size=width,
        head_dim=width // 2,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=len(words),
        pad_token_id=1,
        bos_token_id=2,
        eos_token_id=3,
        max_position_embeddings=8192,
    )
    side = tile // PATCH // MERGE
    options = {"image_token_id": IMAGE, "image_seq_length": side**2, **changes}
    config = InternVLConfig(vision_config=vision, text_config=language, **options)
    if attention:
        config._attn_implementation = attention
    torch.manual_seed(seed)
    model = spread(InternVLForConditionalGeneration(config).eval())
    return model, make_processor(tile, tiles, padding_side, words)


def make_processor(
    tile: int = TILE,
    tiles: tuple[int, int] = (1, 6),
    padding_side: str = "left",
    words: list[str] = WORDS,
):
    splitter = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    splitter.pre_tokenizer = Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=splitter,
        unk_token="<unk>",
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens=SPECIAL,
        padding_side=padding_side,
    )
    least, most = tiles
    images = GotOcr2ImageProcessorPil(
        size={"height": tile, "width": tile}, min_patches=least, max_patches=most
    )
    return _Processor(
        image_processor=images,
        tokenizer=tokenizer,
        video_processor=Videos(tile),
        image_seq_length=(tile // PATCH // MERGE) ** 2,
    )


class Videos:
    """In place of the part for videos, which takes torchvision: frames as they are, (3, H, W)."""

    def __init__(self, tile: int) -> None:
        self.tile = tile

    def __call__(self, videos: Any, **_: Any) -> dict[str, torch.Tensor]:
        return {"pixel_values_videos": torch.stack([torch.as_tensor(one) for one in videos])}


class _Processor(transformers.InternVLProcessor):
    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        if argument_name != "video_processor":
            return super().check_argument_for_proper_class(argument_name, argument)
        return None


def video(frames: int, seed: int = 0, tile: int = TILE) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(frames, 3, tile, tile, generator=generator)
