# SPDX-License-Identifier: Apache-2.0
"""A vision tower with selection inside: what its modules do differently while switched on.

Every module is called, and in the order of a plain forward pass: tower, encoder, each layer, its
attention, the projections. So whatever hangs on a call does its work: hooks, FSDP, DeepSpeed,
accelerate, gradient checkpointing, adapters. A pass that is to select hands a `Pass` down, as the
keyword argument `hired`; the encoder stops after the selection layer, the one whose output the
language model reads, and that layer finishes its kept tokens alone. Calls without a `Pass` are the
stock model's.

Attention goes through transformers' own interface, whatever implementation the tower was given
(SDPA, FlashAttention 2, eager, flex). What towers differ in is in `towers`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import index
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..arguments import SCORE_DTYPES
from ..geometry import patches_of
from ..ops import Selection
from . import judges, kept_rows
from .accounting import Anatomy, Plan, Settings, refuse
from .classes import Switched, turn_off, turn_on
from .towers import FAMILIES, TowerFamily, core, family_of

INITIAL_LAYER = 0

FeatureLayer = int | Sequence[int]


@dataclass(frozen=True)
class Reading:
    """What is read of a tower: the hidden states that are features, and the scores.

    wanted: the numbers of those states, counted from the embeddings. normed: the last of them is
    read after the tower's last norm. lines: rows and columns of the patches that judge, None where
    CLS does. side: patches a side. weighs: the initial layer's scores share out the budget.
    """

    family: type[TowerFamily]
    wanted: tuple[int, ...]
    normed: bool
    lines: tuple[int, ...] | None
    side: int
    weighs: bool

    @classmethod
    def of(
        cls, tower: nn.Module, feature_layer: FeatureLayer, anatomy: Anatomy, settings: Settings
    ) -> Reading:
        """For a tower of `towers`. Raises ValueError."""
        family = family_of(tower)
        assert family is not None  # `support` has looked
        wanted = hidden_state_numbers(len(encoder_layers(tower)), feature_layer)
        normed = anatomy.reads_norm and feature_layer == -1
        return cls.by(family, wanted, normed, anatomy, settings)

    @classmethod
    def by(
        cls,
        family: type[TowerFamily],
        wanted: tuple[int, ...],
        normed: bool,
        anatomy: Anatomy,
        settings: Settings,
    ) -> Reading:
        """For a tower of a family, by whatever library. Raises ValueError."""
        lines = judges.lines(settings.judge, family, anatomy.patches)
        weighs = lines is None and settings.policy != "pooled"
        return cls(family, wanted, normed, lines, anatomy.patches, weighs)

    @property
    def final(self) -> int:
        """The selection layer, counted from 0."""
        return max(self.wanted) - 1

    @property
    def scored(self) -> set[int]:
        """Layers whose queries and keys are read."""
        return {INITIAL_LAYER, self.final} if self.weighs else {self.final}

    def judging(self, tokens: Tensor) -> Tensor:
        """Of tokens (P, N, ...), those that judge: (P, ...) where CLS does, else (P, Q, ...)."""
        if self.lines is None:
            return tokens[:, 0]
        patches = tokens[:, self.family.prefix :]
        return judges.take(patches, self.lines, self.side)


class Pass:
    """One forward pass that selects: what its modules are to do, and what they note.

    choose: selects, given features (P, T, D), a view, and the scores' queries and keys; None in a
    pass through the whole tower.

    Noted: query_init (B, H, Dh) and key_init (B, N, H, Dh), of the full images alone, where they
    are weighed; query_final (P, H, Dh), or (P, Q, H, Dh), and key_final (P, N, H, Dh); kept, what
    was chosen.

    No dataclass: FSDP hands copies of those to the modules it wraps.
    """

    def __init__(
        self,
        reading: Reading,
        todo: Plan,
        choose: Callable[[Tensor, tuple[Tensor, ...]], Selection] | None = None,
    ) -> None:
        self.reading, self.todo, self.choose = reading, todo, choose
        self.query_init = self.key_init = self.query_final = self.key_final = None
        self.kept: Selection | None = None

    def note(self, number: int, query: Tensor, key: Tensor) -> None:
        """Take the judges' queries, (P, H, Dh) or (P, Q, H, Dh), and the keys of layer `number`."""
        if self.reading.weighs and number == INITIAL_LAYER:
            self.query_init = rows(query, self.todo.full_images)
            self.key_init = rows(key, self.todo.full_images)
        if number == self.reading.final:
            self.query_final, self.key_final = query, key

    def scores(self, device: torch.device) -> tuple[Tensor, ...]:
        """Query and key of the initial and of the selection layer, as `select_qk` takes them.

        Judges other than CLS weigh the full images where they judge, in the selection layer.
        """
        final = self.query_final, self.key_final
        initial = (self.query_init, self.key_init) if self.reading.weighs else final
        if initial[0] is None or final[0] is None:
            raise replaced_inside(self.reading.family)
        return as_scores((*initial, *final), device)


class TowerModule(Switched):
    """A module of a switched tower. Layers and their attention know their number."""

    hired_number: int


class _Tower(TowerModule):
    def forward(
        self, pixel_values: Any = None, *args: Any, hired: Pass | None = None, **kwargs: Any
    ) -> Any:
        if hired is None or hired.choose is None:
            return super().forward(pixel_values, *args, **_with(hired, kwargs))
        family = hired.reading.family
        tokens = self.encoder(family.begin(self, pixel_values), hired=hired)
        if not hired.reading.normed:
            return tokens
        patches = tokens.unflatten(-1, (hired.todo.anatomy.merge**2, -1))
        return getattr(self, family.last_norm)(patches).flatten(1)


class _Encoder(TowerModule):
    def forward(self, *args: Any, hired: Pass | None = None, **kwargs: Any) -> Any:
        if hired is None or hired.choose is None:
            return super().forward(*args, **_with(hired, kwargs))
        (hidden,), reading = args, hired.reading
        mask, states = reading.family.mask, {}
        for number, layer in enumerate(getattr(self, reading.family.layers_name)):
            if number in reading.wanted:
                states[number] = hidden
            if number not in reading.scored:
                hidden = layer(hidden, *mask)
                continue
            hidden = layer(hidden, *mask, hired=hired)
            if number == reading.final:
                break
        kept, merge = hired.kept, hired.todo.anatomy.merge
        columns = kept_rows.feature_columns(
            reading.wanted, states, in_patches(kept, hired.todo), hidden, reading.family.prefix
        )
        return columns.reshape(kept.indices.shape[0], merge**2 * columns.shape[-1])


class _Layer(TowerModule):
    def forward(
        self, hidden_states: Tensor, *args: Any, hired: Pass | None = None, **kwargs: Any
    ) -> Tensor:
        """As the class's own; of the selection layer the kept patches, (K * merge^2, D)."""
        reading = None if hired is None else hired.reading
        selects = hired is not None and hired.choose is not None
        selects = selects and self.hired_number == reading.final
        if reading is None or (not selects and reading.family.hands_down):
            return super().forward(hidden_states, *args, **_with(hired, kwargs))
        family, entering = reading.family, hidden_states if selects else None
        attended, kept = family.attention_of(self)(
            family.norm(self, hidden_states), hired=hired, entering=entering
        )
        if not selects:
            return family.finish(self, hidden_states, attended)
        if not isinstance(kept, Selection):
            raise replaced_inside(family)
        hired.kept = kept
        return family.finish(self, in_patches(kept, hired.todo).tokens, attended)


class _Attention(TowerModule):
    def forward(
        self,
        hidden_states: Tensor,
        *args: Any,
        hired: Pass | None = None,
        entering: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Any]:
        """As the class's own; of the selection layer what it gives the kept patches, (K * merge^2,
        D), and the selection.

        `entering` (P, N, D) is what enters that layer, `hidden_states` the same normalised.
        """
        reading = None if hired is None else hired.reading
        if reading is None or self.hired_number not in reading.scored:
            return super().forward(hidden_states, *args, **kwargs)
        family = reading.family
        if entering is None:
            parts = family.projected(self, hidden_states)
            query, key, value = (heads(self, part) for part in parts)
            hired.note(self.hired_number, reading.judging(query), key)
            kwargs.pop("attention_mask", None)  # None, of all towers
            attended, weights = attend(self, query, key, value, **kwargs)
            return family.output(self, attended), weights
        everybody = reading.lines is not None and len(reading.lines) == reading.side
        asked = hidden_states if everybody else reading.judging(hidden_states)
        query = family.query(self, asked)
        projections = family.key, family.value
        key, value = (heads(self, part(self, hidden_states)) for part in projections)
        judging = reading.judging(query) if everybody else query
        hired.note(self.hired_number, heads(self, judging), key)
        prefix, todo = family.prefix, hired.todo
        kept = hired.choose(entering[:, prefix:], hired.scores(entering.device))
        # Queries are independent of each other: of this layer's only the kept ones attend.
        patches = in_patches(kept, todo)
        if everybody:
            queries = kept_rows.gather(query, patches, prefix)
        else:
            queries = family.query(self, kept_rows.gather(hidden_states, patches, prefix))
        room = kept_rows.by_partition(
            queries, patches, reading.side**2, todo.most * todo.anatomy.merge**2
        )
        attended, _ = attend(self, heads(self, room.rows), room.of(key), room.of(value))
        return family.output(self, room.back(attended)), kept


_MIXINS = {"tower": _Tower, "encoder": _Encoder, "layer": _Layer, "attention": _Attention}


def in_patches(kept: Selection, todo: Plan) -> Selection:
    """A selection of merged tokens as one of the patches that they are made of."""
    merge = todo.anatomy.merge
    if merge == 1:
        return kept
    tokens = kept.tokens.unflatten(-1, (merge**2, -1)).flatten(0, 1)
    indices = patches_of(kept.indices, todo.anatomy.patches, merge).flatten()
    return Selection(tokens, indices, kept.counts * merge**2)


def turn_on_tower(tower: nn.Module) -> None:
    """Let the modules of a tower take a `Pass`. What else calls them sees no difference."""
    family = family_of(tower)
    for module in tower.modules():
        for part, mixin in _MIXINS.items():
            if isinstance(module, getattr(family, part)):
                turn_on(module, mixin)
        if isinstance(module, family.encoder):
            for number, layer in enumerate(getattr(module, family.layers_name)):
                for part in layer.modules():
                    if isinstance(part, (family.layer, family.attention)):
                        part.hired_number = number


def is_on(tower: nn.Module) -> bool:
    """Whether the modules of a tower take a `Pass`."""
    kinds = tuple(family.encoder for family in FAMILIES)
    encoders = (module for module in tower.modules() if isinstance(module, kinds))
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
    """The transformer layers of a vision tower."""
    family = family_of(tower)
    return getattr(core(tower).encoder, "layers" if family is None else family.layers_name)


def replaced_inside(family: type[TowerFamily]) -> ValueError:
    """The error of a tower whose modules do not do what they should."""
    return refuse("vision tower", f"{family.name}'s own forward methods", "one that was replaced")


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
    name, family = attn.config._attn_implementation, _family_of_attention(attn)
    function = family.eager if name == "eager" else ALL_ATTENTION_FUNCTIONS[name]
    attended, weights = function(
        attn,
        *(tensor.transpose(1, 2) for tensor in (query, key, value)),
        None,
        scaling=attn.scale,
        dropout=family.dropout(attn) if attn.training else 0.0,
        **kwargs,
    )
    return attended.reshape(*query.shape[:2], -1).contiguous(), weights


def _family_of_attention(attn: nn.Module) -> type[TowerFamily]:
    return next(family for family in FAMILIES if isinstance(attn, family.attention))


def _with(hired: Pass | None, kwargs: dict[str, Any]) -> dict[str, Any]:
    return kwargs if hired is None else {**kwargs, "hired": hired}
