# SPDX-License-Identifier: Apache-2.0
"""A small LLaVA-NeXT: transformers' own classes, a tenth of everything.

A CLIP tower of which LLaVA reads the last layer but one (feature layer -2, as in LLaVA-NeXT); a
projector; a Llama; a tokenizer with a word for each token. A subject says how large the tiles are:
T is 64 for signs and 144 for pages, so a picture of five partitions is 320 or 720 tokens.
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
from .subject import SPECIAL, Subject
from .tiles import GRIDS, PATCH


def checkpoint(subject: str, seed: int) -> Path:
    """Where a trained model lies. The first of signs comes with the package, for the demo."""
    if (subject, seed) == ("signs", 1):
        return ROOT / "hired_kernels" / "data" / "evidence"
    return Path(__file__).parent / "checkpoints" / f"{subject}-{seed}"


def build(subject: Subject, seed: int, size: str = "small") -> LlavaNextForConditionalGeneration:
    """The model, untrained; `size` is a key of the subject's networks."""
    network = subject.networks[size]
    vision = CLIPVisionConfig(
        hidden_size=network.D,
        intermediate_size=4 * network.D,
        num_hidden_layers=network.layers,
        num_attention_heads=network.heads,
        image_size=subject.tile,
        patch_size=PATCH,
    )
    text = LlamaConfig(
        hidden_size=network.text_D,
        intermediate_size=3 * network.text_D,
        num_hidden_layers=network.text_layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        vocab_size=len(subject.words),
        max_position_embeddings=1024,
        pad_token_id=SPECIAL.index("<pad>"),
        bos_token_id=SPECIAL.index("<s>"),
        eos_token_id=SPECIAL.index("</s>"),
        tie_word_embeddings=False,
    )
    torch.manual_seed(seed)
    model = LlavaNextForConditionalGeneration(
        LlavaNextConfig(
            vision_config=vision,
            text_config=text,
            image_token_index=SPECIAL.index("<image>"),
            image_grid_pinpoints=_pinpoints(subject),
            vision_feature_layer=-2,
            vision_feature_select_strategy="default",
        )
    )
    positions = model.model.vision_tower.embeddings.position_embedding.weight
    _place(positions, subject.side, subject.fastest, subject.loud)
    generator = torch.Generator().manual_seed(seed)
    for part in (model.model.multi_modal_projector, model.model.language_model):
        _spread(part, generator)
    if subject.alike:
        for layer in model.model.vision_tower.encoder.layers:
            _match(layer.self_attn, generator, 0.6)
        for layer in model.model.language_model.layers:
            _match(layer.self_attn, generator, 1.0)
    return model


def _pinpoints(subject: Subject) -> list[list[int]]:
    return [[rows * subject.tile, cols * subject.tile] for rows, cols in GRIDS]


@torch.no_grad()
def _spread(module: torch.nn.Module, generator: torch.Generator) -> None:
    """Matrices with variance 1 / fan-in; the usual 0.02 is for widths of thousands, and here leaves
    attention uniform for thousands of steps."""
    for weight in module.parameters():
        if weight.dim() > 1:
            weight.normal_(std=weight.shape[1] ** -0.5, generator=generator)


@torch.no_grad()
def _match(attention: torch.nn.Module, generator: torch.Generator, scale: float) -> None:
    """Keys made as queries are: a token begins by attending to those that stand near it or show the
    same (Trockman and Kolter, arXiv 2305.09828)."""
    _spread(attention.q_proj, generator)
    attention.q_proj.weight.mul_(scale)
    attention.k_proj.weight.copy_(attention.q_proj.weight)


@torch.no_grad()
def _place(positions: torch.Tensor, side: int, fastest: float, loud: float) -> None:
    """Positions to begin with: CLS, then `loud` sines and cosines of row and column, of up to
    `fastest` radians a patch.

    Noise a twentieth as loud, CLIP's own beginning, takes long to say what stands beside what.
    """
    rates = fastest * torch.logspace(0, -1.5, positions.shape[1] // 4)
    row, col = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    angles = [at.reshape(-1, 1) * rates for at in (row, col)]
    waves = torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1)
    positions[1:] = loud * waves


def build_processor(subject: Subject) -> LlavaNextProcessor:
    """Image processor and tokenizer: a prompt is `<s> <image> question`, words apart by spaces."""
    tokens = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    return processor.build(
        subject.words, subject.tile, PATCH, _pinpoints(subject), padding_side="left", **tokens
    )


def load(folder: Path) -> LlavaNextForConditionalGeneration:
    """A checkpoint in float32, to be run."""
    return LlavaNextForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()


def save(model: LlavaNextForConditionalGeneration, subject: Subject, folder: Path) -> None:
    """A checkpoint as transformers saves it, in float16."""
    model.to(torch.float16).save_pretrained(folder)
    build_processor(subject).save_pretrained(folder)
