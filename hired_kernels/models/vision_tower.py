# SPDX-License-Identifier: Apache-2.0
"""A CLIP vision tower with selection inside: what its modules do differently while switched on.

Every module is called, and in the order of a plain forward pass: tower, encoder, each layer, its
attention, the projections. So whatever hangs on a call does its work: hooks, FSDP, DeepSpeed,
accelerate, gradient checkpointing, adapters. A pass that is to select hands a `Pass` down, as the
keyword argument `hired`; the encoder stops after the selection layer, the one whose output LLaVA
reads, and that layer finishes its kept tokens alone. Calls without a `Pass` are the stock model's.

Attention goes through transformers' own interface, whatever implementation the tower was given
(SDPA, FlashAttention 2, eager, flex).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import index
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.clip.modeling_clip import (
    CLIPAttention,
    CLIPEncoder,
    CLIPEncoderLayer,
    CLIPVisionModel,
    eager_attention_forward,
)

from ..arguments import SCORE_DTYPES
from ..ops import Selection
from . import kept_rows
from .accounting import refuse
from .classes import Switched, turn_off, turn_on

INITIAL_LAYER = 0

FeatureLayer = int | Sequence[int]


class Pass:
    """One forward pass that selects: what its modules are to do, and what they note.

    wanted: which hidden states are features, counted from the embeddings; final: the selection
    layer, counted from 0. full_images: which of the P partitions are full images, all if None.
    choose: selects, given features (P, T, D), a view, and the scores' queries and keys; None in a
    pass through the whole tower. most: no partition keeps more of its tokens.

    Noted: query_init (B, H, Dh) and key_init (B, N, H, Dh), of the full images alone; query_final
    (P, H, Dh) and key_final (P, N, H, Dh); kept, what was chosen.

    No dataclass: FSDP hands copies of those to the modules it wraps.
    """

    def __init__(
        self,
        wanted: tuple[int, ...],
        full_images: Sequence[int] | None,
        choose: Callable[[Tensor, tuple[Tensor, ...]], Selection] | None = None,
        most: int = 0,
    ) -> None:
        self.wanted, self.final = wanted, max(wanted) - 1
        self.full_images, self.choose, self.most = full_images, choose, most
        self.query_init = self.key_init = self.query_final = self.key_final = None
        self.kept: Selection | None = None

    def note(self, number: int, query: Tensor, key: Tensor) -> None:
        """Take the CLS query (P, H, Dh) and the keys (P, N, H, Dh) of layer `number`."""
        if number == INITIAL_LAYER:
            self.query_init = rows(query, self.full_images)
            self.key_init = rows(key, self.full_images)
        if number == self.final:
            self.query_final, self.key_final = query, key

    def scores(self, device: torch.device) -> tuple[Tensor, ...]:
        """Query and key of the initial and of the selection layer, as `select_qk` takes them."""
        noted = self.query_init, self.key_init, self.query_final, self.key_final
        if self.query_init is None:
            raise refuse("vision tower", "CLIP's own forward methods", "one that was replaced")
        return as_scores(noted, device)


class TowerModule(Switched):
    """A module of a switched tower. Layers and their attention know their number."""

    hired_number: int


class _Tower(TowerModule):
    def forward(
        self,
        pixel_values: Tensor | None = None,
        *args: Any,
        hired: Pass | None = None,
        **kwargs: Any,
    ) -> Any:
        if hired is None or hired.choose is None:
            return super().forward(pixel_values, *args, **_with(hired, kwargs))
        hidden = self.pre_layrnorm(self.embeddings(pixel_values, interpolate_pos_encoding=False))
        return self.encoder(inputs_embeds=hidden, hired=hired)


class _Encoder(TowerModule):
    def forward(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor | None = None,
        *args: Any,
        hired: Pass | None = None,
        **kwargs: Any,
    ) -> Any:
        if hired is None or hired.choose is None:
            return super().forward(inputs_embeds, attention_mask, *args, **_with(hired, kwargs))
        hidden, states = inputs_embeds, {}
        for number, layer in enumerate(self.layers):
            if number in hired.wanted:
                states[number] = hidden
            if number < hired.final and number != INITIAL_LAYER:
                hidden = layer(hidden, None)
                continue
            hidden = layer(hidden, None, hired=hired)
            if number == hired.final:
                break
        return kept_rows.feature_columns(hired.wanted, states, hired.kept, hidden)


class _Layer(TowerModule):
    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        *args: Any,
        hired: Pass | None = None,
        **kwargs: Any,
    ) -> Tensor:
        if hired is None or hired.choose is None or self.hired_number != hired.final:
            return super().forward(hidden_states, attention_mask, *args, **_with(hired, kwargs))
        attended, kept = self.self_attn(
            hidden_states=self.layer_norm1(hidden_states),
            attention_mask=attention_mask,
            hired=hired,
            entering=hidden_states,
        )
        if not isinstance(kept, Selection):
            raise refuse("vision tower", "CLIP's own forward methods", "one that was replaced")
        hired.kept, tokens = kept, kept.tokens + attended
        return tokens + self.mlp(self.layer_norm2(tokens))


class _Attention(TowerModule):
    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        *args: Any,
        hired: Pass | None = None,
        entering: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Any]:
        """As the class's own; of the selection layer (K, D) for kept tokens, and the selection.

        `entering` (P, N, D) is what enters that layer, `hidden_states` the same normalised.
        """
        if hired is None or self.hired_number not in (INITIAL_LAYER, hired.final):
            return super().forward(hidden_states, attention_mask, *args, **kwargs)
        if entering is None:
            query = heads(self, self.q_proj(hidden_states))
            key, value = (heads(self, part(hidden_states)) for part in (self.k_proj, self.v_proj))
            hired.note(self.hired_number, query[:, 0], key)
            attended, weights = attend(self, query, key, value, **kwargs)
            return self.out_proj(attended), weights
        query = heads(self, self.q_proj(hidden_states[:, :1]))
        key, value = (heads(self, part(hidden_states)) for part in (self.k_proj, self.v_proj))
        hired.note(self.hired_number, query[:, 0], key)
        kept = hired.choose(entering[:, 1:], hired.scores(entering.device))
        # Queries are independent of each other: of this layer's only the kept ones attend.
        queries = self.q_proj(kept_rows.gather(hidden_states, kept))
        T, most = hidden_states.shape[1] - 1, max(1, hired.most)
        room, places = kept_rows.by_partition(queries, kept, T, most)
        attended, _ = attend(self, heads(self, room), key, value)
        return self.out_proj(kept_rows.from_partitions(attended, places)), kept


_MIXINS = {
    CLIPVisionModel: _Tower,
    CLIPEncoder: _Encoder,
    CLIPEncoderLayer: _Layer,
    CLIPAttention: _Attention,
}


def turn_on_tower(tower: nn.Module) -> None:
    """Let the modules of a CLIP tower take a `Pass`. What else calls them sees no difference."""
    for module in tower.modules():
        for kind, mixin in _MIXINS.items():
            if isinstance(module, kind):
                turn_on(module, mixin)
            if kind is CLIPEncoder and isinstance(module, kind):
                for number, layer in enumerate(module.layers):
                    for part in layer.modules():
                        if isinstance(part, CLIPEncoderLayer | CLIPAttention):
                            part.hired_number = number


def is_clip_tower(tower: nn.Module) -> bool:
    """Whether this is, in a wrapper or without, a CLIP vision tower of transformers."""
    towers = (module for module in tower.modules() if isinstance(module, CLIPVisionModel))
    return hasattr(core(tower), "encoder") and next(towers, None) is not None


def is_on(tower: nn.Module) -> bool:
    """Whether the modules of a CLIP tower take a `Pass`."""
    encoders = (module for module in tower.modules() if isinstance(module, CLIPEncoder))
    return isinstance(next(encoders), TowerModule)


def turn_off_tower(tower: nn.Module) -> None:
    """Undo `turn_on_tower`."""
    for module in tower.modules():
        if isinstance(module, TowerModule):
            vars(module).pop("hired_number", None)
            turn_off(module)


def hidden_state_numbers(layers: int, feature_layer: FeatureLayer = -2) -> tuple[int, ...]:
    """Which of the `layers + 1` hidden states are features, counted from 0, the embeddings.

    Raises ValueError where one does not exist, or none of them is a layer's output.
    """
    try:
        several = isinstance(feature_layer, Sequence) and not isinstance(feature_layer, str)
        asked = tuple(map(index, feature_layer if several else (feature_layer,)))
    except TypeError:
        asked = ()
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


def encoder_layers(tower: nn.Module) -> Any:
    """The transformer layers of a CLIP vision tower."""
    return core(tower).encoder.layers


def core(tower: nn.Module) -> Any:
    """The tower itself, where it is given with a projection on top."""
    return getattr(tower, "vision_model", tower)


def as_scores(tensors: Sequence[Tensor], device: torch.device) -> tuple[Tensor, ...]:
    """Queries and keys beside the features, in a dtype the operators take, without gradient."""
    tensors = tuple(tensor.detach().to(device) for tensor in tensors)
    if any(tensor.dtype not in SCORE_DTYPES for tensor in tensors):
        tensors = tuple(tensor.float() for tensor in tensors)
    return tensors


def heads(attn: nn.Module, projected: Tensor) -> Tensor:
    """(P, S, H * Dh) -> (P, S, H, Dh), of all heads. Raises ValueError for some of them."""
    if projected.shape[-1] != attn.embed_dim:
        expected = f"all {attn.num_heads} heads in each process"
        raise refuse("vision tower", expected, projected.shape[-1] // attn.head_dim)
    return projected.unflatten(-1, (-1, attn.head_dim))


def rows(tensor: Tensor, numbers: Sequence[int] | None) -> Tensor:
    """These rows, by views and a copy: an index on the host would have to be sent to the device."""
    if numbers is None:
        return tensor
    return torch.stack([tensor[number] for number in numbers])


def attend(
    attn: nn.Module, query: Tensor, key: Tensor, value: Tensor, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """Attention of (P, Q, H, Dh) to (P, N, H, Dh) by the tower's own implementation.

    Returns (P, Q, D), and the weights (P, H, Q, N) of an implementation that has them.
    """
    name = attn.config._attn_implementation
    function = eager_attention_forward if name == "eager" else ALL_ATTENTION_FUNCTIONS[name]
    attended, weights = function(
        attn,
        *(tensor.transpose(1, 2) for tensor in (query, key, value)),
        None,
        scaling=attn.scale,
        dropout=attn.dropout if attn.training else 0.0,
        **kwargs,
    )
    return attended.reshape(*query.shape[:2], -1).contiguous(), weights


def _with(hired: Pass | None, kwargs: dict[str, Any]) -> dict[str, Any]:
    return kwargs if hired is None else {**kwargs, "hired": hired}
