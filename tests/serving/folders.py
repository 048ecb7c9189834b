# SPDX-License-Identifier: Apache-2.0
"""Tiny models of every family in folders that vLLM serves, each with its transformers twin.

`save(kind, folder)` writes one and returns the twin and its processor. vLLM's prompts have
`<image>` for a picture, whatever the family.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoProcessor

sys.path.insert(0, str(Path(__file__).parents[1]))

import internvl_models
import llava_models
import own_format

WORDS = [*llava_models.WORDS, *(f"w{i}" for i in range(118))]
_INTERNVL_WORDS = [*internvl_models.WORDS, "<image>", *(f"w{i}" for i in range(112))]
CHAT_TEMPLATE = (
    "<s>{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %} <image>{% else %} {{ part['text'] }}{% endif %}"
    "{% endfor %}{% endfor %}"
)
# vLLM's attention on a CPU takes heads of 32 at the least.
WIDTH = 64
# What tiny models are made of, by kind: `llava_models.KINDS`, and these.
_INTERNVL: dict[str, dict[str, Any]] = {
    "internvl": {"kind": "3"},
    "internvl-26b": {"kind": "2-26b"},
    "internvl-own": {"kind": "2"},
    "internvl-own-26b": {"kind": "2-26b"},
    "qianfan-ocr": {"kind": "3", "text": transformers.Qwen3Config},
}


def save(kind: str, folder: Path, **changes: Any) -> tuple[Any, Any]:
    """Write a tiny model; returns its twin in evaluation mode and the twin's processor."""
    if kind in own_format.KINDS:
        return own_format.save(kind, *_make_internvl(kind), folder, CHAT_TEMPLATE)
    if kind in _INTERNVL:
        return _save_internvl(kind, folder)
    model, processor = llava_models.make(kind, width=WIDTH, words=WORDS, **changes)
    if kind == "llava-onevision":
        processor = _with_videos(model, processor)
    processor.chat_template = CHAT_TEMPLATE
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    # The one that vLLM finds, too: which backend resizes pictures shows in the third digit.
    return model, AutoProcessor.from_pretrained(folder)


def architecture(kind: str, model: Any) -> str:
    """The plugin's, for a kind."""
    own = own_format.KINDS.get(kind)
    return f"Hired{own.architecture if own else type(model).__name__}"


def _with_videos(model: Any, plain: Any) -> Any:
    """LLaVA-OneVision's processor with the part for videos, which vLLM asks for."""
    tile = model.config.vision_config.image_size
    size, pinpoints = {"height": tile, "width": tile}, model.config.image_grid_pinpoints
    images = transformers.LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=pinpoints)
    return transformers.LlavaOnevisionProcessor(
        image_processor=images,
        tokenizer=plain.tokenizer,
        video_processor=transformers.LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=plain.num_image_tokens,
        vision_feature_select_strategy="full",
    )


def _make_internvl(kind: str) -> tuple[Any, Any]:
    options = {"width": WIDTH, "words": _INTERNVL_WORDS, **_INTERNVL[kind]}
    model, processor = internvl_models.make(**options)
    processor.tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    return model, processor


def _save_internvl(kind: str, folder: Path) -> tuple[Any, Any]:
    """In transformers' format. Its tokens are called `<image>` here, as its pictures are."""
    model, plain = _make_internvl(kind)
    plain.tokenizer.context_image_token = "<image>"
    for config in (model.config, model.model.config):
        config.image_token_id = _INTERNVL_WORDS.index("<image>")
    size = {"height": internvl_models.TILE, "width": internvl_models.TILE}
    processor = transformers.InternVLProcessor(
        image_processor=transformers.GotOcr2ImageProcessor(size=size, max_patches=6),
        tokenizer=plain.tokenizer,
        video_processor=transformers.InternVLVideoProcessor(size=size),
        image_seq_length=plain.image_seq_length,
        chat_template=CHAT_TEMPLATE,
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model, AutoProcessor.from_pretrained(folder)
