# SPDX-License-Identifier: Apache-2.0
"""Tiny LLaVA models of every class that HiRED serves, with tokenizer and processor, built here.

Random weights, seeded; spread out so that scores differ by more than rounding.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipVisionConfig,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import (
    LlavaNextImageProcessorPil,
)
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
    LlavaOnevisionImageProcessorPil,
)

TILE, PATCH = 84, 14  # 6 x 6 patches a partition
WORDS = ["<unk>", "<pad>", "<s>", "</s>", "<image>", "<video>", "what", "is", "this", "shown"]
PINPOINTS = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))  # in tiles: LLaVA-NeXT's
SIZES = [(168, 168), (100, 200), (240, 80), (90, 250), (200, 99)]  # (height, width): five grids


@dataclass(frozen=True)
class Kind:
    """A class of transformers, and how a model of it differs from LLaVA-NeXT's defaults."""

    name: str
    text: type = LlamaConfig
    options: dict = field(default_factory=dict)
    processor: str = "LlavaNextProcessor"

    @property
    def sub_images(self) -> bool:
        return "Next" in self.name or "Onevision" in self.name

    @property
    def siglip(self) -> bool:
        return self.options.get("tower") == "siglip"


KINDS = {
    "llava-next-llama": Kind("LlavaNext"),
    "llava-next-mistral": Kind("LlavaNext", MistralConfig),
    "llava": Kind("Llava", processor="LlavaProcessor"),
    "sharegpt4v": Kind("Llava", MistralConfig, {"tile": 112, "layer": -1}, "LlavaProcessor"),
    "llava-layers": Kind("Llava", LlamaConfig, {"layer": [1, -2]}, "LlavaProcessor"),
    "vipllava": Kind("VipLlava", LlamaConfig, {"layer": [-2, 1, 2]}, "LlavaProcessor"),
    "llava-next-video": Kind("LlavaNextVideo", processor="LlavaNextVideoProcessor"),
    "llava-siglip": Kind("Llava", options={"tower": "siglip"}, processor="LlavaProcessor"),
    "granite-vision": Kind("LlavaNext", options={"tower": "siglip", "layer": [1, 3, -1]}),
    # 90 pixels are 6 patches of 14 and a rest, as SigLIP's 384 are 27.
    "llava-onevision": Kind("LlavaOnevision", Qwen2Config, {"tower": "siglip", "tile": 90},
                            "LlavaOnevisionProcessor"),
}  # fmt: skip
WITH_CLS = [name for name, kind in KINDS.items() if not kind.siglip]


def make(
    kind: str = "llava-next-llama",
    *,
    tile: int | None = None,
    layers: int = 4,
    pinpoints: tuple = PINPOINTS,
    seed: int = 0,
    padding_side: str = "left",
    attention: str | None = None,
    width: int = 32,
    words: list[str] = WORDS,
    **changes,
):
    """A model of `KINDS` in evaluation mode and its processor. `changes` go to its config.

    `width` is that of the language model, which has two heads, `words` its vocabulary.
    """
    chosen = KINDS[kind]
    tile = tile or chosen.options.get("tile", TILE)
    tower = SiglipVisionConfig if chosen.siglip else CLIPVisionConfig
    vision = tower(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=2,
        image_size=tile,
        patch_size=PATCH,
        **({"vision_use_head": False} if chosen.siglip else {}),
    )
    text = chosen.text(
        hidden_size=width,
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
    if chosen.siglip:
        changes.setdefault("vision_feature_select_strategy", "full")
    options = {"vision_config": vision, "text_config": text, "image_token_index": 4, **changes}
    if "layer" in chosen.options:
        name = "vision_feature_layer"
        if chosen.name == "VipLlava" and not hasattr(transformers.VipLlavaConfig(), name):
            name = "vision_feature_layers"
        options.setdefault(name, chosen.options["layer"])
    if chosen.sub_images:
        pixels = [[rows * tile, cols * tile] for rows, cols in pinpoints]
        options["image_grid_pinpoints"] = pixels
    if chosen.name in ("LlavaNextVideo", "LlavaOnevision"):
        options["video_token_index"] = 5
    config = getattr(transformers, f"{chosen.name}Config")(**options)
    if attention:
        config._attn_implementation = attention
    torch.manual_seed(seed)
    model = spread(getattr(transformers, f"{chosen.name}ForConditionalGeneration")(config).eval())
    processor = make_processor(
        chosen, tile, options.get("image_grid_pinpoints"), padding_side, words, changes
    )
    return model, processor


def spread(model):
    """The model with weights that are spread out, so that scores differ by more than rounding."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=1.5 * parameter[0].numel() ** -0.5)
    return model


def make_processor(chosen, tile, pinpoints, padding_side, words, changes):
    vocabulary = {word: i for i, word in enumerate(words)}
    splitter = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    splitter.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=splitter,
        unk_token="<unk>",
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<image>", "<video>"],
        padding_side=padding_side,
    )
    sizes = {"size": {"shortest_edge": tile}, "crop_size": {"height": tile, "width": tile}}
    if chosen.name == "LlavaOnevision":
        images = LlavaOnevisionImageProcessorPil(size=sizes["crop_size"])
        images.image_grid_pinpoints = pinpoints
    elif chosen.sub_images:
        images = LlavaNextImageProcessorPil(**sizes, image_grid_pinpoints=pinpoints)
    else:
        images = CLIPImageProcessorPil(**sizes)
    options = {
        "image_processor": images,
        "tokenizer": tokenizer,
        "patch_size": PATCH,
        "vision_feature_select_strategy": changes.get("vision_feature_select_strategy", "default"),
        "num_additional_image_tokens": 0 if chosen.siglip else 1,
    }
    if chosen.name == "LlavaOnevision":
        options |= {"video_processor": None, "num_image_tokens": (tile // PATCH) ** 2}
        return OnevisionWithoutVideos(**options)
    if chosen.name == "LlavaNextVideo":
        options["video_processor"] = None
        return WithoutVideos(**options)
    return getattr(transformers, chosen.processor)(**options)


class _WithoutVideos:
    """A processor without its part for videos, which takes torchvision."""

    def check_argument_for_proper_class(self, argument_name, argument):
        if argument_name != "video_processor":
            super().check_argument_for_proper_class(argument_name, argument)


class WithoutVideos(_WithoutVideos, transformers.LlavaNextVideoProcessor):
    pass


class OnevisionWithoutVideos(_WithoutVideos, transformers.LlavaOnevisionProcessor):
    pass


def picture(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """A picture of (height, width) pixels, coarse noise: every region looks different."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randint(0, 256, (8, 8, 3), generator=generator, dtype=torch.uint8).numpy()
    return Image.fromarray(noise).resize((size[1], size[0]), Image.Resampling.NEAREST)


def pictures(sizes) -> list[Image.Image]:
    return [picture(size, seed) for seed, size in enumerate(sizes)]


def twin(model):
    """A stock model with the same weights."""
    return copy.deepcopy(model)
