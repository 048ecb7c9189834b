# SPDX-License-Identifier: Apache-2.0
"""A CLIP vision tower, run for the tokens that are kept and for no others.

`begin` runs it up to the scores: all layers before the selection layer, the one whose output LLaVA
reads, and of that one the keys and values of all tokens and the query of CLS. `finish` computes
queries, attention, output projection and MLP of the kept tokens alone; `finish_all` of all, which
is what a plain forward pass does. Later layers are not run: nothing reads them.

Attention goes through transformers' own interface, whatever implementation the tower was given
(SDPA, FlashAttention 2, eager, flex), and weights are only touched by calling their modules, so
that hooks on them (accelerate, PEFT) do their work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.clip.modeling_clip import eager_attention_forward

from ..arguments import SCORE_DTYPES
from ..ops import Selection
from . import kept_rows

INITIAL_LAYER = 0

FeatureLayer = int | Sequence[int]


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


def as_scores(tensors: Sequence[Tensor], device: torch.device) -> tuple[Tensor, ...]:
    """Queries and keys beside the features, in a dtype the operators take, without gradient."""
    tensors = tuple(tensor.detach().to(device) for tensor in tensors)
    if any(tensor.dtype not in SCORE_DTYPES for tensor in tensors):
        tensors = tuple(tensor.float() for tensor in tensors)
    return tensors


def hidden_state_numbers(layers: int, feature_layer: FeatureLayer = -2) -> tuple[int, ...]:
    """Which of the `layers + 1` hidden states are features, counted from 0, the embeddings.

    Raises ValueError where one does not exist, or none of them is a layer's output.
    """
    asked = (feature_layer,) if isinstance(feature_layer, int) else tuple(feature_layer)
    numbers = tuple(layers + 1 + number if number < 0 else number for number in asked)
    if not numbers or not all(0 <= number <= layers for number in numbers) or max(numbers) == 0:
        raise ValueError(
            f"feature_layer: expected the output of one of {layers} layers, got {feature_layer}"
        )
    return numbers


def selection_layer(layers: int, feature_layer: FeatureLayer = -2) -> int:
    """The layer, counted from 0, whose output is `hidden_states[feature_layer]`; of several, the
    last.

    Of `layers` layers there are `layers + 1` hidden states, the embeddings first: -2 of 24 is the
    output of layer 22. Raises ValueError where that is no layer's output.
    """
    return max(hidden_state_numbers(layers, feature_layer)) - 1


def encoder_layers(tower: nn.Module) -> nn.ModuleList:
    """The transformer layers of a CLIP vision tower."""
    return _core(tower).encoder.layers


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
    hidden = _beside(hidden, layer)
    attn, normed = layer.self_attn, layer.layer_norm1(hidden)
    query = _heads(attn, attn.q_proj(normed[:, :1]))[:, 0]
    key, value = _heads(attn, attn.k_proj(normed)), _heads(attn, attn.v_proj(normed))
    if init is None:  # the selection layer is the initial one
        init = _rows(query, full_images), _rows(key, full_images)
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
        room, places = kept_rows.by_partition(queries, kept, encoded.features.shape[1], most)
        attended = _attend(attn, _heads(attn, room), encoded.key_final, encoded.value)
        tokens = _close(layer, tokens, kept_rows.from_partitions(attended, places))
    return kept_rows.feature_columns(encoded.wanted, encoded.states, kept, tokens)


def finish_all(tower: nn.Module, encoded: Encoded) -> Tensor:
    """Output of the selection layer for all tokens, (P, N, D), as a plain forward pass has it."""
    layer = encoder_layers(tower)[encoded.layer]
    attn = layer.self_attn
    queries = _heads(attn, attn.q_proj(layer.layer_norm1(encoded.hidden)))
    return _close(layer, encoded.hidden, _attend(attn, queries, encoded.key_final, encoded.value))


def run_remaining_layers(tower: nn.Module, hidden: Tensor, feature_layer: int = -2) -> Tensor:
    """What a plain forward pass goes on to compute after the feature layer, for comparison.

    hidden (P, N, D) as `finish_all` returns it. Returns the pooled output (P, D), which LLaVA
    never reads.
    """
    layers = encoder_layers(tower)
    for layer in layers[selection_layer(len(layers), feature_layer) + 1 :]:
        hidden = layer(hidden, None)
    return _core(tower).post_layernorm(hidden[:, 0])


def embed(tower: nn.Module, pixels: Tensor) -> Tensor:
    """`hidden_states[0]` of a CLIP tower, (P, N, D)."""
    core = _core(tower)
    return core.pre_layrnorm(core.embeddings(_beside(pixels, core.embeddings)))


def queries_and_keys(tower: nn.Module, number: int, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys (P, N, H, Dh) of layer `number`, given what enters it, (P, N, D)."""
    layer = encoder_layers(tower)[number]
    attn, normed = layer.self_attn, layer.layer_norm1(_beside(hidden, layer))
    return _heads(attn, attn.q_proj(normed)), _heads(attn, attn.k_proj(normed))


def _first_layer(
    layer: nn.Module, hidden: Tensor, full_images: Sequence[int] | None
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """A whole layer, and the CLS query (B, H, Dh) and keys (B, N, H, Dh) of the full images."""
    hidden = _beside(hidden, layer)
    attn, normed = layer.self_attn, layer.layer_norm1(hidden)
    projections = (attn.q_proj, attn.k_proj, attn.v_proj)
    query, key, value = (_heads(attn, projection(normed)) for projection in projections)
    init = _rows(query[:, 0], full_images), _rows(key, full_images)
    return _close(layer, hidden, _attend(attn, query, key, value)), init


def _attend(attn: nn.Module, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention of (P, Q, H, Dh) to (P, N, H, Dh) by the tower's own implementation: (P, Q, D)."""
    name = attn.config._attn_implementation
    attend = eager_attention_forward if name == "eager" else ALL_ATTENTION_FUNCTIONS[name]
    attended, _ = attend(
        attn,
        *(tensor.transpose(1, 2) for tensor in (query, key, value)),
        None,
        scaling=attn.scale,
        dropout=attn.dropout if attn.training else 0.0,
    )
    return attended.reshape(*query.shape[:2], -1).contiguous()


def _close(layer: nn.Module, residual: Tensor, attended: Tensor) -> Tensor:
    """The rest of a layer after its attention, for tokens of any leading shape."""
    hidden = residual + layer.self_attn.out_proj(attended)
    return hidden + layer.mlp(layer.layer_norm2(hidden))


def _heads(attn: nn.Module, projected: Tensor) -> Tensor:
    """(P, S, H * Dh) -> (P, S, H, Dh)"""
    return projected.view(*projected.shape[:-1], -1, attn.head_dim)


def _rows(tensor: Tensor, rows: Sequence[int] | None) -> Tensor:
    """These rows, by views and a copy: an index on the host would have to be sent to the device."""
    if rows is None:
        return tensor
    return torch.stack([tensor[row] for row in rows])


def _beside(tensor: Tensor, module: nn.Module) -> Tensor:
    """The tensor on the device of a module that is entered otherwise than by calling it.

    accelerate moves inputs where a module is called. Weights that it has offloaded are on the meta
    device; its hooks on their modules know where these run.
    """
    device = next(module.parameters()).device
    if device.type == "meta":
        hooks = (getattr(part, "_hf_hook", None) for part in module.modules())
        devices = (getattr(hook, "execution_device", None) for hook in hooks)
        device = next((found for found in devices if found is not None), tensor.device)
    return tensor.to(device)


def _core(tower: nn.Module) -> nn.Module:
    return getattr(tower, "vision_model", tower)
