# SPDX-License-Identifier: Apache-2.0
"""A CLIP vision tower taken apart, for whoever times or compares its stages: demo, benchmarks.

`begin` runs it up to the scores: all layers before the selection layer, the one whose output LLaVA
reads, and of that one the keys and values of all tokens and the query of CLS. `finish` computes
queries, attention, output projection and MLP of the kept tokens alone; `finish_all` of all, which
is what a plain forward pass does. Models are served by `models/vision_tower.py`, which calls every
module whole; here a layer's parts are called past the layer, for a plain tower without wrappers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from ..models import kept_rows
from ..models.towers import core
from ..models.vision_tower import (
    INITIAL_LAYER,
    FeatureLayer,
    as_scores,
    attend,
    encoder_layers,
    heads,
    hidden_state_numbers,
    rows,
    selection_layer,
)
from ..ops import Selection


@dataclass(frozen=True)
class Encoded:
    """A batch of partitions after `begin`: all that is needed to select tokens, and to finish them.

    hidden (P, N, D): what enters the selection layer, N = T + 1 tokens, CLS first.
    query_init (B, H, Dh), key_init (B, N, H, Dh): of the initial layer, full images only (P rows
    where `begin` was not told which they are).
    query_final (P, H, Dh), key_final, value (P, N, H, Dh): of the selection layer, `layer`.
    wanted: which hidden states are features, counted from the embeddings; states: those of them
    that lie before the selection layer, each (P, N, D).
    """

    layer: int
    hidden: Tensor
    query_init: Tensor
    key_init: Tensor
    query_final: Tensor
    key_final: Tensor
    value: Tensor
    wanted: tuple[int, ...]
    states: dict[int, Tensor]

    @property
    def features(self) -> Tensor:
        """Patch tokens as they enter the selection layer, (P, T, D): a view."""
        return self.hidden[:, 1:]

    def scores(self) -> tuple[Tensor, ...]:
        """Query and key of the initial and of the selection layer, as `select_qk` takes them."""
        initial, final = (self.query_init, self.key_init), (self.query_final, self.key_final)
        return as_scores((*initial, *final), self.hidden.device)


def begin(
    tower: nn.Module,
    pixels: Tensor,
    feature_layer: FeatureLayer = -2,
    *,
    full_images: Sequence[int] | None = None,
    progress: Callable[[range], Iterator[int]] | None = None,
) -> Encoded:
    """Run a CLIP tower on pixels (P, 3, height, width), up to the scores of the selection layer.

    `full_images` says which of the P partitions are full images: of the initial layer the others'
    queries and keys are not kept. `progress` wraps the range of layers, as `tqdm.tqdm` does.
    Raises ValueError as `selection_layer` does.
    """
    layers = encoder_layers(tower)
    wanted = hidden_state_numbers(len(layers), feature_layer)
    final = max(wanted) - 1
    hidden = embed(tower, pixels)
    states: dict[int, Tensor] = {}
    init: tuple[Tensor, Tensor] | None = None
    steps = range(final)
    for number in progress(steps) if progress else steps:
        if number in wanted:
            states[number] = hidden
        if number == INITIAL_LAYER:
            hidden, init = _first_layer(layers[number], hidden, full_images)
        else:
            hidden = layers[number](hidden, None)
    if final in wanted:
        states[final] = hidden
    layer = layers[final]
    attn, normed = layer.self_attn, layer.layer_norm1(hidden)
    query = heads(attn, attn.q_proj(normed[:, :1]))[:, 0]
    key, value = heads(attn, attn.k_proj(normed)), heads(attn, attn.v_proj(normed))
    if init is None:  # the selection layer is the initial one
        init = rows(query, full_images), rows(key, full_images)
    return Encoded(final, hidden, *init, query, key, value, wanted, states)


def finish(tower: nn.Module, encoded: Encoded, kept: Selection, most: int) -> Tensor:
    """Features of the kept tokens, (K, D) or, of n feature layers, (K, n * D).

    `kept` was selected from `encoded.features`; no partition keeps more than `most` of its tokens.
    Nothing here waits for the device. Rows of index -1 are finite and mean nothing.
    """
    layer = encoder_layers(tower)[encoded.layer]
    attn, tokens = layer.self_attn, kept.tokens
    if tokens.shape[0] > 0:
        # Queries are independent of each other.
        queries = attn.q_proj(layer.layer_norm1(tokens))
        room = kept_rows.by_partition(queries, kept, encoded.features.shape[1], most)
        key, value = room.of(encoded.key_final), room.of(encoded.value)
        attended, _ = attend(attn, heads(attn, room.rows), key, value)
        tokens = _close(layer, tokens, room.back(attended))
    return kept_rows.feature_columns(encoded.wanted, encoded.states, kept, tokens)


def finish_all(tower: nn.Module, encoded: Encoded) -> Tensor:
    """Output of the selection layer for all tokens, (P, N, D), as a plain forward pass has it."""
    layer = encoder_layers(tower)[encoded.layer]
    attn = layer.self_attn
    queries = heads(attn, attn.q_proj(layer.layer_norm1(encoded.hidden)))
    attended, _ = attend(attn, queries, encoded.key_final, encoded.value)
    return _close(layer, encoded.hidden, attended)


def run_remaining_layers(
    tower: nn.Module, hidden: Tensor, feature_layer: FeatureLayer = -2
) -> Tensor:
    """What a plain forward pass goes on to compute after the feature layer, for comparison.

    hidden (P, N, D) as `finish_all` returns it. Returns the pooled output (P, D), which LLaVA
    never reads.
    """
    layers = encoder_layers(tower)
    for layer in layers[selection_layer(len(layers), feature_layer) + 1 :]:
        hidden = layer(hidden, None)
    return core(tower).post_layernorm(hidden[:, 0])


def embed(tower: nn.Module, pixels: Tensor) -> Tensor:
    """`hidden_states[0]` of a CLIP tower, (P, N, D)."""
    return core(tower).pre_layrnorm(core(tower).embeddings(pixels))


def queries_and_keys(tower: nn.Module, number: int, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys (P, N, H, Dh) of layer `number`, given what enters it, (P, N, D)."""
    layer = encoder_layers(tower)[number]
    attn, normed = layer.self_attn, layer.layer_norm1(hidden)
    return heads(attn, attn.q_proj(normed)), heads(attn, attn.k_proj(normed))


def _first_layer(
    layer: nn.Module, hidden: Tensor, full_images: Sequence[int] | None
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """A whole layer, and the CLS query (B, H, Dh) and keys (B, N, H, Dh) of the full images."""
    attn, normed = layer.self_attn, layer.layer_norm1(hidden)
    projections = (attn.q_proj, attn.k_proj, attn.v_proj)
    query, key, value = (heads(attn, projection(normed)) for projection in projections)
    init = rows(query[:, 0], full_images), rows(key, full_images)
    attended, _ = attend(attn, query, key, value)
    return _close(layer, hidden, attended), init


def _close(layer: nn.Module, residual: Tensor, attended: Tensor) -> Tensor:
    """The rest of a layer after its attention, for tokens of any leading shape."""
    hidden = residual + layer.self_attn.out_proj(attended)
    return hidden + layer.mlp(layer.layer_norm2(hidden))
