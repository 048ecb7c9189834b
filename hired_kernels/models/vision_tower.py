# SPDX-License-Identifier: Apache-2.0
"""A CLIP vision tower, run so that it yields what `hired_kernels.select_qk` takes.

Attention is computed by PyTorch's fused SDPA as always; transformers' attention interface lets us
see the queries and keys that pass by in two layers, as views, without a copy and without any
attention matrix. Layers after the one whose output LLaVA reads are not run: nothing uses them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

INITIAL_LAYER = 0

_INTERFACE = "hired_capture"
_MARK = "_hired_capture"


@dataclass(frozen=True)
class Encoded:
    """A picture after the vision tower, in the shapes of `select_qk`; all of them views.

    features (P, T, D): output of the feature layer without CLS, N = T + 1.
    queries_init, key_init, queries_final, key_final (P, N, H, Dh): queries and keys of the initial
    and of the selection layer. hidden (P, N, D): the feature layer's output as it is.
    """

    hidden: Tensor
    queries_init: Tensor
    key_init: Tensor
    queries_final: Tensor
    key_final: Tensor

    @property
    def features(self) -> Tensor:
        """Patch tokens, (P, T, D)."""
        return self.hidden[:, 1:]

    @property
    def query_init(self) -> Tensor:
        """The CLS token's queries at the initial layer, (P, H, Dh)."""
        return self.queries_init[:, 0]

    @property
    def query_final(self) -> Tensor:
        """The CLS token's queries at the selection layer, (P, H, Dh)."""
        return self.queries_final[:, 0]


def selection_layer(layers: int, feature_layer: int = -2) -> int:
    """The layer, counted from 0, whose output is `hidden_states[feature_layer]`.

    Of `layers` layers there are `layers + 1` hidden states, the embeddings first: -2 of 24 is the
    output of layer 22. Raises ValueError where that is no layer's output.
    """
    layer = (layers + 1 + feature_layer if feature_layer < 0 else feature_layer) - 1
    if not 0 <= layer < layers:
        raise ValueError(
            f"feature_layer: expected the output of one of {layers} layers, got {feature_layer}"
        )
    return layer


@contextmanager
def captured(tower: nn.Module, layers: tuple[int, ...]) -> Iterator[dict[int, tuple]]:
    """Collect queries and keys, each (P, N, H, Dh), of these layers of a CLIP tower while open.

    Yields a dictionary that a forward pass fills, `{layer: (queries, keys)}`. The tower's own
    attention implementation is put back at the end; in between it is SDPA.
    """
    seen: dict[int, tuple[Tensor, Tensor]] = {}
    modules = [encoder_layers(tower)[layer].self_attn for layer in layers]
    before = tower.config._attn_implementation
    AttentionInterface.register(_INTERFACE, _capture_attention)
    tower.set_attn_implementation(_INTERFACE)
    for layer, module in zip(layers, modules, strict=True):
        setattr(module, _MARK, (seen, layer))
    try:
        yield seen
    finally:
        for module in modules:
            if hasattr(module, _MARK):
                delattr(module, _MARK)
        tower.set_attn_implementation(before)


def encoder_layers(tower: nn.Module) -> nn.ModuleList:
    """The transformer layers of a CLIP vision tower."""
    return _core(tower).encoder.layers


@torch.no_grad()
def encode(
    tower: nn.Module,
    pixels: Tensor,
    feature_layer: int = -2,
    progress: Callable[[range], Iterator[int]] | None = None,
) -> Encoded:
    """Run a CLIP tower on pixels (P, 3, height, width), up to the layer that LLaVA reads.

    `progress` wraps the range of layers, as `tqdm.tqdm` does. Raises ValueError as
    `selection_layer` does.
    """
    layers = encoder_layers(tower)
    final = selection_layer(len(layers), feature_layer)
    core = _core(tower)
    with captured(tower, tuple(sorted({INITIAL_LAYER, final}))) as seen:
        hidden = core.pre_layrnorm(core.embeddings(pixels.to(_dtype(tower))))
        steps = range(final + 1)
        for layer in progress(steps) if progress else steps:
            hidden = layers[layer](hidden, None)
    return Encoded(hidden, *seen[INITIAL_LAYER], *seen[final])


@torch.no_grad()
def run_remaining_layers(tower: nn.Module, encoded: Encoded, feature_layer: int = -2) -> Tensor:
    """What a plain forward pass goes on to compute after the feature layer, for comparison.

    Returns the pooled output (P, D), which LLaVA never reads.
    """
    layers = encoder_layers(tower)
    hidden = encoded.hidden
    for layer in layers[selection_layer(len(layers), feature_layer) + 1 :]:
        hidden = layer(hidden, None)
    return _core(tower).post_layernorm(hidden[:, 0])


def _core(tower: nn.Module) -> nn.Module:
    """The module with the layers: a tower may come wrapped."""
    return getattr(tower, "vision_model", tower)


def _dtype(tower: nn.Module) -> torch.dtype:
    return next(tower.parameters()).dtype


def _capture_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs
) -> tuple[Tensor, None]:
    """SDPA that shows its queries and keys, (P, H, N, Dh), to an open `captured` on the way."""
    mark = getattr(module, _MARK, None)
    if mark is not None:
        seen, layer = mark
        seen[layer] = query.transpose(1, 2), key.transpose(1, 2)
    return sdpa_attention_forward(module, query, key, value, mask, **kwargs)
