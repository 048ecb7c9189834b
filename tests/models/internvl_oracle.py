# SPDX-License-Identifier: Apache-2.0
"""What a stock InternVL and the reference implementation make of the same pictures.

As `llava_oracle`: the whole tower runs with attention materialised in float64, the reference
selects, and the features are the stock model's own, merged by its own `pixel_shuffle`.
"""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from internvl_models import PATCH, make
from llava_models import pictures, twin
from llava_oracle import queries_of
from torch import Tensor

import hired_kernels as hired
from hired_kernels import geometry

PROMPTS = [
    "what <IMG_CONTEXT> this",
    "<IMG_CONTEXT>",
    "is <IMG_CONTEXT> shown what is this",
    "this <IMG_CONTEXT>",
]


class Oracle(NamedTuple):
    """tokens (K, g^2 * D) before the projector, indices (K,), rows of each picture."""

    tokens: Tensor
    indices: Tensor
    rows: list[int]


def select_as_the_reference(
    model, pixels, tiles, *, budget=0.2, alpha=0.5, policy="exact", judge="auto", layer=None
) -> Oracle:
    """`Oracle` for a stock model, pixels (P, 3, tile, tile) and the (R, C) of each picture."""
    tower, merge = model.model.vision_tower, round(1 / model.config.downsample_ratio)
    layer = model.config.vision_feature_layer if layer is None else layer
    side = tower.config.image_size[0] // PATCH
    counts = [1 + R * C for R, C in tiles]
    parts = torch.arange(len(pixels)).split(counts)
    full_first = torch.cat([torch.cat((part[-1:], part[:-1])) for part in parts])
    fine = copy.deepcopy(tower).double()
    fine.set_attn_implementation("eager")
    with torch.no_grad():
        attentions = fine(pixels[full_first].double(), output_attentions=True).attentions
        whole = tower(pixels[full_first], output_hidden_states=True)
        hidden = whole.last_hidden_state if layer == -1 else whole.hidden_states[layer]
        square = hidden[:, 1:].unflatten(1, (side, side))
        features = model.model.pixel_shuffle(square, 1 / merge).flatten(1, 2)
    final = layer % (len(attentions) + 1) - 1
    asked = queries_of(max(1, side // 2) ** 2 if judge == "auto" else judge, side)

    def scores(number: int) -> Tensor:
        """(P, H, M): attention of the judges to the patches, block by block."""
        rows = attentions[number][:, :, asked, 1:].mean(dim=2)
        cells = side // merge
        blocks = rows.unflatten(2, (cells, merge, cells, merge))
        return blocks.sum(dim=(3, 5)).flatten(2).float()

    with hired.backend("reference"):
        kept = hired.select(
            features,
            scores(0 if judge == "cls" else final),
            scores(final),
            grids=tiles,
            budget=budget,
            alpha=alpha,
            policy=policy,
            order="full_last",
        )
    rows = kept.counts.split(counts)
    return Oracle(kept.tokens, kept.indices, [int(one.sum()) for one in rows])


def tiles_of(sizes, tiles=(1, 6), tile=84):
    return [geometry.tiled_grid(*size, tiles=tiles, tile=tile) for size in sizes]


def features_of(stock, inputs, **settings):
    """Features of each picture for the language model."""
    tiles = [tuple(each[:2]) for each in inputs["hired_tiles"].tolist()]
    found = select_as_the_reference(stock, inputs["pixel_values"], tiles, **settings)
    with torch.no_grad():
        return list(stock.model.multi_modal_projector(found.tokens).split(found.rows))


def switched(kind="2", *, sizes, text=None, padding_side="left", options=None, **settings):
    """A stock model, a switched one, and the inputs of its processor."""
    stock, processor = make(kind, padding_side=padding_side, **(options or {}))
    model, processor = hired.apply_hired(twin(stock), processor, **settings)
    text = PROMPTS[: len(sizes)] if text is None else text
    padding = {"padding": True, "padding_side": padding_side}
    inputs = processor(images=pictures(sizes), text=text, return_tensors="pt", **padding)
    return stock, model, inputs
