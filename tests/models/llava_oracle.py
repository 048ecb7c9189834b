# SPDX-License-Identifier: Apache-2.0
"""What a stock model and the reference implementation make of the same pictures.

The whole tower runs, attention materialised, in float64; `hired_kernels.reference` selects of its
CLS rows; the features are the stock model's own.
"""

from __future__ import annotations

import copy
import inspect
import math
from typing import NamedTuple

import torch
from llava_models import SIZES, make, pictures, twin
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

import hired_kernels as hired
from hired_kernels import geometry
from hired_kernels.models import support

PROMPTS = ["what is <image> this", "<image>", "is <image> shown what is this", "this <image>"]
CLOSE = {"rtol": 1e-4, "atol": 1e-4}  # logits are of size 10; float32


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


def queries_of(judge, side, prefix=1):
    """Which of N = prefix + side^2 queries judge."""
    if judge == "cls" or (judge == "auto" and prefix):
        return [0]
    if judge == "patches":
        return [prefix + t for t in range(side**2)]
    r = max(1, side // 2) if judge == "auto" else math.isqrt(judge)
    lines = [(2 * i + 1) * side // (2 * r) for i in range(r)]
    return [prefix + y * side + x for y in lines for x in lines]


def select_as_the_reference(
    model, pixel_values, sizes, *, budget=0.2, alpha=0.5, policy="exact", judge="auto"
):
    """`Oracle` for a stock model: its tower gives the tokens, and in float64 the scores."""
    config, tower = model.config, model.model.vision_tower
    layers = support.feature_layer_of(config)
    layers = [layers] if isinstance(layers, int) else list(layers)
    layouts = layouts_of(config, sizes)
    pixels = partitions_of(config, pixel_values, sizes)
    fine = copy.deepcopy(tower).double()
    fine.set_attn_implementation("eager")
    with torch.no_grad():
        attentions = fine(pixels.double(), output_attentions=True).attentions
        states = tower(pixels, output_hidden_states=True).hidden_states
    count = len(attentions)
    final = max(layer % (count + 1) for layer in layers) - 1
    side = layouts[0].side
    prefix = states[0].shape[1] - side**2  # CLS, where there is one
    features = torch.cat([states[layer][:, prefix:] for layer in layers], dim=-1)
    if policy == "published":
        grids, crops = geometry.published_layout(layouts)
    else:
        grids = [layout.grid for layout in layouts]
        crops = [layout.crop or (0, 0, 0, 0) for layout in layouts]
    asked = queries_of(judge, side, prefix)
    initial = 0 if prefix and asked == [0] else final
    with hired.backend("reference"):
        kept = hired.select(
            features,
            attentions[initial][:, :, asked, prefix:].mean(dim=2).float(),
            attentions[final][:, :, asked, prefix:].mean(dim=2).float(),
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
        if "mm_encoder_outputs" not in names_of(model.forward):
            embeds = model.get_input_embeddings()(ids)
            mask = (ids == model.config.image_token_id)[..., None].expand_as(embeds)
            embeds = embeds.masked_scatter(mask, torch.cat(features))
            return model(inputs_embeds=embeds, **inputs).logits
        pooled = torch.stack(features) if model.config.model_type == "vipllava" else features
        if model.config.model_type == "internvl":
            pooled = torch.cat(features)[None]
        encoded = {"image": BaseModelOutputWithPooling(pooler_output=pooled)}
        return model(input_ids=ids, mm_encoder_outputs=encoded, **inputs).logits


def switched(
    kind="llava-next-llama", *, padding_side="left", text=None, sizes=SIZES[:3], **settings
):
    """A stock model, a switched one, and the inputs of its processor."""
    stock, processor = make(kind, padding_side=padding_side)
    model, processor = hired.apply_hired(twin(stock), processor, **settings)
    text = PROMPTS[: len(sizes)] if text is None else text
    inputs = processor(images=pictures(sizes), text=text, padding=True, return_tensors="pt")
    return stock, model, inputs


def stock_inputs(inputs, padding_side="left", sizes=SIZES[:3]):
    """The same prompts and pictures from a LLaVA-NeXT processor that was never switched on."""
    processor = make(padding_side=padding_side)[1]
    text = PROMPTS[: len(inputs["input_ids"])]
    return processor(images=pictures(sizes), text=text, padding=True, return_tensors="pt")


def features_of(stock, inputs, sizes=SIZES[:3], **settings):
    found = select_as_the_reference(stock, inputs["pixel_values"], sizes, **settings)
    return project(stock, found.tokens, found.rows)


def text_of(inputs):
    return {name: inputs[name] for name in ("input_ids", "attention_mask")}


@torch.no_grad()
def logits_of(model, inputs, **more):
    return model(**inputs, **more).logits


def without_surplus(inputs, features, padding_side):
    """The prompts with as many placeholders as there are features, and which tokens remained."""
    ids, visible, counts = [], [], [len(one) for one in features]
    for row, mask in zip(inputs["input_ids"], inputs["attention_mask"].bool(), strict=True):
        places = (row == 4).nonzero()[:, 0]
        mask = mask.clone()
        assert len(places) >= counts[0]
        mask[places[: len(places) - counts.pop(0)]] = False
        visible.append(mask)
        ids.append(row[mask].flip(0) if padding_side == "left" else row[mask])
    ids = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=1)
    ids = ids.flip(1) if padding_side == "left" else ids
    return {"input_ids": ids, "attention_mask": (ids != 1).long()}, visible


def note_calls(module, calls):
    """Note each call of a module by a `forward` of one's own in the object, without a hook."""
    forward = module.forward

    def noting(*args, **kwargs):
        calls.append(1)
        return forward(*args, **kwargs)

    module.forward = noting


def names_of(function):
    """Names of a function's parameters."""
    return inspect.signature(function).parameters
