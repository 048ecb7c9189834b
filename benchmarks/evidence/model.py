# SPDX-License-Identifier: Apache-2.0
"""A small LLaVA-NeXT: transformers' own classes, a tenth of everything.

Tiles of 112 pixels and 8 x 8 patches, so T = 64 and a picture of five partitions is 320 tokens. A
CLIP tower of 5 layers, of which LLaVA reads the fourth (feature layer -2, as in LLaVA-NeXT); a
projector; a Llama of 3 layers; a tokenizer with a word for each token.
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
)

from ..shared import processor
from ..shared.report import ROOT
from .pictures import PATCH, SIDE, TILE
from .questions import WORDS

D, HEADS, LAYERS = 128, 4, 5
TEXT_D, TEXT_LAYERS = 128, 3
PINPOINTS = [[rows * TILE, cols * TILE] for rows, cols in ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))]
CHECKPOINT = ROOT / "hired_kernels" / "data" / "evidence"


def build(seed: int, words: int = len(WORDS)) -> LlavaNextForConditionalGeneration:
    """The model, untrained, with a vocabulary of `words`."""
    vision = CLIPVisionConfig(
        hidden_size=D,
        intermediate_size=4 * D,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        image_size=TILE,
        patch_size=PATCH,
    )
    text = LlamaConfig(
        hidden_size=TEXT_D,
        intermediate_size=3 * TEXT_D,
        num_hidden_layers=TEXT_LAYERS,
        num_attention_heads=4,
        num_key_value_heads=4,
        vocab_size=words,
        max_position_embeddings=1024,
        pad_token_id=WORDS.index("<pad>"),
        bos_token_id=WORDS.index("<s>"),
        eos_token_id=WORDS.index("</s>"),
        tie_word_embeddings=False,
    )
    torch.manual_seed(seed)
    model = LlavaNextForConditionalGeneration(
        LlavaNextConfig(
            vision_config=vision,
            text_config=text,
            image_token_index=WORDS.index("<image>"),
            image_grid_pinpoints=PINPOINTS,
            vision_feature_layer=-2,
            vision_feature_select_strategy="default",
        )
    )
    _place(model.model.vision_tower.embeddings.position_embedding.weight)
    generator = torch.Generator().manual_seed(seed)
    for part in (model.model.multi_modal_projector, model.model.language_model):
        _spread(part, generator)
    return model


@torch.no_grad()
def _spread(module: torch.nn.Module, generator: torch.Generator) -> None:
    """Matrices with variance 1 / fan-in; the usual 0.02 is for widths of thousands, and here leaves
    attention uniform for thousands of steps."""
    for weight in module.parameters():
        if weight.dim() > 1:
            weight.normal_(std=weight.shape[1] ** -0.5, generator=generator)


@torch.no_grad()
def _place(positions: torch.Tensor) -> None:
    """Positions to begin with: CLS, then sines and cosines of row and column, as loud as a patch.

    Noise a twentieth as loud, CLIP's own beginning, takes long to say what stands beside what.
    """
    rates = torch.logspace(0, -1.5, D // 4)
    row, col = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    angles = [at.reshape(-1, 1) * rates for at in (row, col)]
    waves = torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1)
    positions[1:] = waves / 2


def build_processor() -> LlavaNextProcessor:
    """Image processor and tokenizer: a prompt is `<s> <image> question`, words apart by spaces."""
    tokens = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    return processor.build(WORDS, TILE, PATCH, PINPOINTS, padding_side="left", **tokens)


def load(folder: Path) -> LlavaNextForConditionalGeneration:
    """A checkpoint in float32, to be run."""
    return LlavaNextForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()


def save(model: LlavaNextForConditionalGeneration, folder: Path) -> None:
    """A checkpoint as transformers saves it, in float16."""
    model.to(torch.float16).save_pretrained(folder)
    build_processor().save_pretrained(folder)
