# SPDX-License-Identifier: Apache-2.0
"""What selecting inside a vision tower needs to know of it: `TowerFamily`.

Towers differ in the names of their modules, in their norms and scales, and in whether a CLS token
stands before the patches. All of that is here; what a pass does with it is in `vision_tower`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn


class TowerFamily:
    """The towers of one class of transformers. Subclasses have no instances.

    name: as messages call it. model_type: of its configuration. tower, encoder, layer, attention:
    the classes of its modules. eager: its own attention, materialised.

    prefix: tokens before the patches: 1, the CLS token, or none. cls_judges: whether CLS was
    trained to say what matters, and is asked by default. layers_name: the encoder's list of layers;
    last_norm: the tower's norm after them. mask: what layers are called with beside hidden states.
    hands_down: whether the forward methods pass keyword arguments that they do not know down to the
    modules inside. noted: the attention's modules whose outputs are the queries and the keys of all
    heads, ready for the dot products. full_width_norms: those of its norms that are over all heads,
    before queries and keys are split into them. Ranks that have some of the heads each have to
    gather before these.
    """

    name: ClassVar[str]
    model_type: ClassVar[str]
    tower: ClassVar[type[nn.Module]]
    encoder: ClassVar[type[nn.Module]]
    layer: ClassVar[type[nn.Module]]
    attention: ClassVar[type[nn.Module]]
    eager: ClassVar[Callable[..., Any]]

    prefix: ClassVar[int] = 0
    cls_judges: ClassVar[bool] = False
    layers_name: ClassVar[str] = "layers"
    last_norm: ClassVar[str] = "post_layernorm"
    mask: ClassVar[Sequence[Any]] = (None,)
    hands_down: ClassVar[bool] = True
    noted: ClassVar[tuple[str, str]] = ("q_proj", "k_proj")
    full_width_norms: ClassVar[Sequence[str]] = ()

    # The usual names of a pre-norm layer. A family that has others, or more, overrides these.

    @staticmethod
    def begin(tower: Any, pixels: Tensor) -> Tensor:
        """What enters the first layer, (P, N, D), given pixels (P, 3, tile, tile)."""
        return tower.embeddings(pixels, interpolate_pos_encoding=False)

    @staticmethod
    def attention_of(layer: Any) -> Any:
        """The attention of a layer."""
        return layer.self_attn

    @staticmethod
    def norm(layer: Any, hidden: Tensor) -> Tensor:
        """What enters the attention of a layer, (..., D), given what enters the layer."""
        return layer.layer_norm1(hidden)

    @staticmethod
    def query(attention: Any, normal: Tensor) -> Tensor:
        """Queries of all heads, (..., H * Dh), normalised where they are."""
        return attention.q_proj(normal)

    @staticmethod
    def key(attention: Any, normal: Tensor) -> Tensor:
        """Keys, as `query`."""
        return attention.k_proj(normal)

    @staticmethod
    def value(attention: Any, normal: Tensor) -> Tensor:
        """Values of all heads, (..., H * Dh)."""
        return attention.v_proj(normal)

    @classmethod
    def projected(cls, attention: Any, normal: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of all heads, made in the order of the class's own `forward`."""
        query, key = cls.query(attention, normal), cls.key(attention, normal)
        return query, key, cls.value(attention, normal)

    @staticmethod
    def output(attention: Any, attended: Tensor) -> Tensor:
        """What leaves the attention, (..., D), of attended values (..., H * Dh)."""
        return attention.out_proj(attended)

    @staticmethod
    def dropout(attention: Any) -> float:
        """Of the attention's weights, while training."""
        return attention.dropout

    @staticmethod
    def finish(layer: Any, entering: Tensor, attended: Tensor) -> Tensor:
        """What leaves a layer, given what entered it and what left its attention, (..., D) each."""
        hidden = entering + attended
        return hidden + layer.mlp(layer.layer_norm2(hidden))


def core(tower: Any) -> Any:
    """The tower itself, where it is given with a projection on top."""
    return getattr(tower, "vision_model", tower)
