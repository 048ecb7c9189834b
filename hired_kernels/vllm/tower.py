# SPDX-License-Identifier: Apache-2.0
"""vLLM's CLIP vision tower, run for the tokens that are kept and for no others.

As `hired_kernels.models.vision_tower` does it for transformers' tower, with what vLLM's has of its
own: queries, keys and values come out of one projection, which therefore runs for all tokens, and
heads may be split over tensor-parallel ranks. Each rank then scores its own heads, the ranks gather
the attention rows of all of them, and every one selects from the same rows: the same tokens, and
those that one rank alone would keep.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from vllm.distributed import tensor_model_parallel_all_gather

from .. import ops
from ..models import kept_rows
from ..models.accounting import Plan, Settings
from ..models.vision_tower import INITIAL_LAYER, FeatureLayer, as_scores, hidden_state_numbers

_Heads = tuple[Tensor, Tensor, Tensor]


def keep(
    tower: nn.Module, pixels: Tensor, feature_layer: FeatureLayer, todo: Plan, settings: Settings
) -> ops.Selection:
    """Run a tower on pixels (P, 3, tile, tile), full images first, for the kept tokens alone.

    Returns them as they enter the projector, (K, D), or (K, n * D) of n feature layers.
    """
    core = tower.vision_model
    wanted = hidden_state_numbers(core.config.num_hidden_layers, feature_layer)
    final = max(wanted) - 1
    hidden = core.pre_layrnorm(core.embeddings(pixels))
    states: dict[int, Tensor] = {}
    initial: _Heads | None = None
    for number, layer in enumerate(core.encoder.layers[:final]):
        if number in wanted:
            states[number] = hidden
        if number == INITIAL_LAYER:
            initial = _heads(layer, hidden)
            attended = layer.self_attn.attn(*(part.flatten(2) for part in initial))
            hidden = _close(layer, hidden, attended)
        else:
            hidden = layer(hidden)
    if final in wanted:
        states[final] = hidden
    layer = core.encoder.layers[final]
    query, key, value = _heads(layer, hidden)
    scores = [(query, key) if initial is None else initial[:2], (query, key)]
    kept = _select(layer.self_attn, hidden[:, 1:], scores, todo, settings)
    # Queries are independent of each other: of this layer's only the kept ones are attended with.
    queries = kept_rows.gather(query.flatten(2), kept)
    room = kept_rows.by_partition(queries, kept, hidden.shape[1] - 1, todo.most)
    attended = _attend(layer.self_attn, room.rows, room.of(key), room.of(value))
    tokens = _close(layer, kept.tokens, room.back(attended))
    return kept._replace(tokens=kept_rows.feature_columns(wanted, states, kept, tokens))


def _select(
    attn: nn.Module,
    features: Tensor,
    scores: list[tuple[Tensor, Tensor]],
    todo: Plan,
    settings: Settings,
) -> ops.Selection:
    rules = todo.rules(settings)
    tensors = [part for query, key in scores for part in (query[:, 0], key)]
    tensors = as_scores(tensors, features.device)
    if attn.tp_size == 1:
        return ops.select_qk(features, *tensors, scale=attn.scale, **rules)
    full = [torch.stack([part[row] for row in todo.full_images]) for part in tensors[:2]]
    rows = [
        ops.cls_attention(query, key, features.shape[1], scale=attn.scale)
        for query, key in (full, tensors[2:])
    ]
    rows = [tensor_model_parallel_all_gather(attention, dim=1) for attention in rows]
    return ops.select(features, *rows, **rules)


def _heads(layer: nn.Module, hidden: Tensor) -> _Heads:
    """Queries, keys and values of this rank's heads, (P, N, H, Dh) each: views of one tensor."""
    attn = layer.self_attn
    projected, _ = attn.qkv_proj(layer.layer_norm1(hidden))
    query, key, value = projected.unflatten(-1, (3, -1, attn.head_dim)).unbind(2)
    return query, key, value


def _attend(attn: nn.Module, queries: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention of queries (P, Q, H * Dh) to (P, N, H, Dh): (P, Q, H * Dh).

    By PyTorch: vLLM's own attention takes as many queries as keys.
    """
    parts = (queries.unflatten(-1, (-1, attn.head_dim)), key, value)
    query, key, value = (part.transpose(1, 2) for part in parts)
    attended = F.scaled_dot_product_attention(query, key, value, scale=attn.scale)
    return attended.transpose(1, 2).flatten(2)


def _close(layer: nn.Module, residual: Tensor, attended: Tensor) -> Tensor:
    """The rest of a layer after its attention, for tokens of any leading shape."""
    projected, _ = layer.self_attn.out_proj(attended)
    hidden = residual + projected
    return hidden + layer.mlp(layer.layer_norm2(hidden))
