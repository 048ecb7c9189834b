# SPDX-License-Identifier: Apache-2.0
"""vLLM's vision towers, run for the tokens that are kept and for no others.

As `hired_kernels.models.vision_tower` does it for transformers' towers, with what vLLM's have of
their own: queries, keys and values may come out of one projection, which therefore runs for all
tokens, and heads may be split over tensor-parallel ranks. Each rank then scores its own heads, the
ranks gather the attention rows of all of them, and every one selects from the same rows: the same
tokens, and those that one rank alone would keep.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from vllm.distributed import tensor_model_parallel_all_gather

from .. import ops
from ..models import kept_rows
from ..models.accounting import Plan, Settings
from ..models.hired_tower import full_images_first
from ..models.towers import core
from ..models.vision_tower import Pass, Reading, in_patches
from .towers import ranks_of

_Heads = tuple[Tensor, Tensor, Tensor]


def keep(
    tower: nn.Module, pixels: Tensor, reading: Reading, todo: Plan, settings: Settings
) -> ops.Selection:
    """Run a tower on pixels (P, 3, tile, tile) of the pictures of `todo` for the kept tokens alone.

    Returns them as they enter the projector, (K, D), or (K, n * D) of n feature layers, or (K,
    g * g * D) where g x g patches are a token.
    """
    inside, family, final = core(tower), reading.family, reading.final
    layers: Any = getattr(inside.encoder, family.layers_name)
    noted, states = Pass(reading, todo), {}
    hidden = family.begin(inside, full_images_first(pixels, todo))
    for number, layer in enumerate(layers[:final]):
        if number in reading.wanted:
            states[number] = hidden
        if number not in reading.scored:
            hidden = layer(hidden)
            hidden = hidden[0] if isinstance(hidden, tuple) else hidden
            continue
        parts, attention = _heads(reading, layer, hidden), family.attention_of(layer)
        _note(noted, number, attention, parts)
        attended = attention.attn(*(part.flatten(2) for part in parts))
        hidden = family.finish(layer, hidden, family.output(attention, attended))
    if final in reading.wanted:
        states[final] = hidden
    layer = layers[final]
    attention = family.attention_of(layer)
    query, key, value = _heads(reading, layer, hidden)
    _note(noted, final, attention, (query, key, value))
    kept = _select(attention, hidden[:, family.prefix :], noted, settings)
    patches, merge = in_patches(kept, todo), todo.anatomy.merge
    # Queries are independent of each other: of this layer's only the kept ones are attended with.
    queries = kept_rows.gather(query.flatten(2), patches, family.prefix)
    room = kept_rows.by_partition(queries, patches, reading.side**2, todo.most * merge**2)
    attended = _attend(attention, room.rows, room.of(key), room.of(value))
    attended = family.output(attention, room.back(attended))
    tokens = family.finish(layer, patches.tokens, attended)
    columns = kept_rows.feature_columns(reading.wanted, states, patches, tokens, family.prefix)
    if reading.normed:
        columns = getattr(inside, family.last_norm)(columns)
    width = merge**2 * columns.shape[-1]
    return kept._replace(tokens=columns.reshape(kept.indices.shape[0], width))


def _heads(reading: Reading, layer: nn.Module, hidden: Tensor) -> _Heads:
    """Queries, keys and values of this rank's heads, (P, N, H, Dh) each."""
    family: Any = reading.family
    attention = family.attention_of(layer)
    parts = family.projected(attention, family.norm(layer, hidden))
    query, key, value = (part.unflatten(-1, (-1, attention.head_dim)) for part in parts)
    return query, key, value


def _note(noted: Pass, number: int, attention: Any, parts: _Heads) -> None:
    """Take what the scores are made of. One rank has dummy heads behind the others, if any."""
    judges, key = noted.reading.judging(parts[0]), parts[1]
    if ranks_of(attention) == 1:
        judges, key = judges[..., : attention.num_heads, :], key[..., : attention.num_heads, :]
    noted.note(number, judges, key)


def _select(attention: Any, features: Tensor, noted: Pass, settings: Settings) -> ops.Selection:
    rules, scores = noted.todo.rules(settings), noted.scores(features.device)
    if ranks_of(attention) == 1:
        return ops.select_qk(features, *scores, scale=attention.scale, **rules)
    T = noted.reading.side**2
    final = initial = _rows_of_all_heads(attention, scores[2], scores[3], T)
    if noted.reading.weighs:
        initial = _rows_of_all_heads(attention, scores[0], scores[1], T)
    return ops.select(features, initial, final, **rules)


def _rows_of_all_heads(attention: Any, query: Tensor, key: Tensor, T: int) -> Tensor:
    """Attention rows (P, H, T) of the heads of all ranks, without the dummy heads at the end."""
    rows = ops.cls_attention(query, key, T, scale=attention.scale)
    rows = tensor_model_parallel_all_gather(rows, dim=1)
    return rows[:, : attention.num_heads].contiguous()


def _attend(attention: Any, queries: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention of queries (P, Q, H * Dh) to (P, N, H, Dh): (P, Q, H * Dh).

    By PyTorch: vLLM's own attention takes as many queries as keys.
    """
    parts = (queries.unflatten(-1, (-1, attention.head_dim)), key, value)
    query, key, value = (part.transpose(1, 2) for part in parts)
    attended = F.scaled_dot_product_attention(query, key, value, scale=attention.scale)
    return attended.transpose(1, 2).flatten(2)
