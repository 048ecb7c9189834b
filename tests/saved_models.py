# SPDX-License-Identifier: Apache-2.0
"""Small LLaVA models with random weights, saved to a folder as transformers saves them."""

import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    Qwen2Config,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import (
    LlavaNextImageProcessorPil,
)

VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "image_size": 336,
    "patch_size": 14,
}
TEXT = {
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 64,
}
SIZES = {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}
MODELS = {
    "llava-next": (
        LlavaNextForConditionalGeneration,
        LlavaNextConfig,
        LlamaConfig,
        LlavaNextImageProcessorPil,
    ),
    "llava-next-qwen": (
        LlavaNextForConditionalGeneration,
        LlavaNextConfig,
        Qwen2Config,
        LlavaNextImageProcessorPil,
    ),
    "llava": (LlavaForConditionalGeneration, LlavaConfig, LlamaConfig, CLIPImageProcessorPil),
}


def save(kind, folder, **changes):
    """A small model of this kind with random weights, saved whole; returns it."""
    model_class, config_class, text_class, processor_class = MODELS[kind]
    config = config_class(
        vision_config=CLIPVisionConfig(**VISION),
        text_config=text_class(**TEXT),
        image_token_index=5,
        **changes,
    )
    torch.manual_seed(0)
    model = model_class(config).eval()
    model.save_pretrained(folder)
    processor_class(**SIZES).save_pretrained(folder)
    return model
