# SPDX-License-Identifier: Apache-2.0
"""Tiny InternVL and LLaVA-OneVision with the processors that `AutoProcessor` loads, which need
torchvision, and with a chat template."""

import internvl_models
import llava_models
import transformers
from transformers import AutoProcessor

TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE {% elif part['type'] == 'video' %}<video> "
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
)


def internvl(folder):
    """A model, its processor, saved to the folder and loaded, and one that needs no torchvision."""
    model, plain = internvl_models.make("3")
    size = {"height": 84, "width": 84}
    processor = transformers.InternVLProcessor(
        image_processor=transformers.GotOcr2ImageProcessor(size=size, max_patches=6),
        tokenizer=plain.tokenizer,
        video_processor=transformers.InternVLVideoProcessor(size=size),
        image_seq_length=9,
        chat_template=TEMPLATE.replace("IMAGE", "<IMG_CONTEXT>"),
    )
    processor.save_pretrained(folder)
    return model, AutoProcessor.from_pretrained(folder), plain


def onevision(folder):
    """As `internvl`."""
    model, plain = llava_models.make("llava-onevision")
    size, pinpoints = {"height": 90, "width": 90}, model.config.image_grid_pinpoints
    processor = transformers.LlavaOnevisionProcessor(
        image_processor=transformers.LlavaOnevisionImageProcessor(
            size=size, image_grid_pinpoints=pinpoints
        ),
        tokenizer=plain.tokenizer,
        video_processor=transformers.LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=36,
        vision_feature_select_strategy="full",
        chat_template=TEMPLATE.replace("IMAGE", "<image>"),
    )
    processor.save_pretrained(folder)
    return model, AutoProcessor.from_pretrained(folder), plain
