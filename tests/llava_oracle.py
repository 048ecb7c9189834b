# SPDX-License-Identifier: Apache-2.0
"""What a stock model and the reference implementation make of the same pictures.

The whole tower runs, attention materialised, in float64; `hired_kernels.reference` selects of its
CLS rows; the features are the stock model's own.
"""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

import hired_kernels as hired
from hired_kernels import geometry
from hired_kernels.models import support


class Oracle(NamedTuple):
    """tokens (K, D) before the projector, indices (K,), rows of each picture, counts (P,)."""

    tokens: Tensor
    indices: Tensor
    rows: list[int]
    counts: Tensor


def layouts_of(config, sizes):
    """The layout of each picture; LLaVA-1.5 has no sub-images and squeezes each into a tile."""
    vision = config.vision_config
    side = vision.image_size // vision.patch_size
    if not hasattr(config, "image_grid_pinpoints"):
        return [geometry.Layout(h, w, (0, 0), None, side) for h, w in sizes]
    pixels = {"tile": vision.image_size, "patch": vision.patch_size}
    pinpoints = config.image_grid_pinpoints
    return [geometry.layout(h, w, pinpoints=pinpoints, **pixels) for h, w in sizes]


def partitions_of(config, pixel_values, sizes):
    """(P, 3, tile, tile) of a processor's pixel_values."""
    if pixel_values.dim() == 4:
        return pixel_values
    layouts = layouts_of(config, sizes)
    return torch.cat([pixel_values[i, : one.partitions] for i, one in enumerate(layouts)])


def select_as_the_reference(
    model, pixel_values, sizes, *, budget=0.2, alpha=0.5, policy="exact", dtype=torch.float32
):
    """`Oracle` for a stock model: its tower in `dtype` gives tokens, in float64 the scores."""
    config, tower = model.config, model.model.vision_tower
    layers = support.feature_layer_of(config)
    layers = [layers] if isinstance(layers, int) else list(layers)
    layouts = layouts_of(config, sizes)
    pixels = partitions_of(config, pixel_values, sizes)
    fine = copy.deepcopy(tower).double()
    fine.set_attn_implementation("eager")
    with torch.no_grad():
        attentions = fine(pixels.double(), output_attentions=True).attentions
        states = tower.to(dtype)(pixels.to(dtype), output_hidden_states=True).hidden_states
    count = len(attentions)
    final = max(layer % (count + 1) for layer in layers) - 1
    features = torch.cat([states[layer][:, 1:] for layer in layers], dim=-1)
    if policy == "published":
        grids, crops = geometry.published_layout(layouts)
    else:
        grids = [layout.grid for layout in layouts]
        crops = [layout.crop or (0, 0, 0, 0) for layout in layouts]
    with hired.backend("reference"):
        kept = hired.select(
            features,
            attentions[0][:, :, 0, 1:].float(),
            attentions[final][:, :, 0, 1:].float(),
            grids=grids,
            budget=budget,
            alpha=alpha,
            crops=crops,
            policy=policy,
        )
    rows = kept.counts.split([layout.partitions for layout in layouts])
    kept = kept.compact()
    return Oracle(kept.tokens, kept.indices, [int(one.sum()) for one in rows], kept.counts)


def project(model, tokens, rows):
    """The stock projector's features of each picture."""
    with torch.no_grad():
        return list(model.model.multi_modal_projector(tokens).split(rows))


def logits_with_features(model, features, **inputs):
    """Logits of a stock model that is fed with features of pictures, (B, L, V)."""
    ids = inputs.pop("input_ids")
    with torch.no_grad():
        if hasattr(model.model, "hired") or "mm_encoder_outputs" not in _parameters(model):
            embeds = model.get_input_embeddings()(ids)
            mask = (ids == model.config.image_token_id)[..., None].expand_as(embeds)
            embeds = embeds.masked_scatter(mask, torch.cat(features))
            return model(inputs_embeds=embeds, **inputs).logits
        pooled = torch.stack(features) if model.config.model_type == "vipllava" else features
        encoded = {"image": BaseModelOutputWithPooling(pooler_output=pooled)}
        return model(input_ids=ids, mm_encoder_outputs=encoded, **inputs).logits


def _parameters(model):
    import inspect

    return inspect.signature(model.forward).parameters
