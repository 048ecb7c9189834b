# SPDX-License-Identifier: Apache-2.0
"""Pictures to the features that the language model reads: tower, selection, projector, separators.

What the switched `get_image_features` computes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import logging

from .accounting import Plan, Settings
from .hired_tower import early_exit, full_tower
from .stock_order import stock_lengths, stock_places
from .vision_tower import FeatureLayer

logger = logging.get_logger(__name__)


@dataclass
class HiredImageOutput(BaseModelOutputWithPooling):
    """What the switched `get_image_features` returns.

    last_hidden_state: (K, D) kept tokens as they enter the projector; D times the number of feature
        layers where there are several.
    pooler_output: features of each picture, (its tokens, width of the language model), a list, or
        one tensor where the stock model has one.
    hidden_states, attentions: of the full tower, where they were asked for.
    indices: (K,) int64, `p * T + t` of each row of last_hidden_state; -1 for one without a token
        (published).
    counts: (P,) int64, kept tokens of each partition.
    surplus: (rows of all pictures,) bool, the rows of pooler_output that stand for nothing and that
        the language model does not see, first of each picture; None where there can be none.
    places: (rows of all pictures,) int64, where each row of pooler_output is in the run of the
        stock model's features of its picture, where positions are to be those; else None.
    stock: for each picture the number of its rows, and of the stock model's, with `places`.
    """

    indices: Tensor | None = None
    counts: Tensor | None = None
    surplus: Tensor | None = None
    places: Tensor | None = None
    stock: list[tuple[int, int]] | None = None


def image_features(
    model: Any,
    settings: Settings,
    pixels: Tensor,
    todo: Plan,
    feature_layer: FeatureLayer,
    *,
    why_full: str | None,
    with_cls: bool,
    **outputs: Any,
) -> HiredImageOutput:
    """Features of the pictures of `todo`, through the vision tower and projector of `model`.

    `why_full` says why the whole tower has to run, if it has to; `with_cls` puts each picture's CLS
    token before its kept ones.
    """
    if pixels.shape[0] != sum(todo.partitions):
        raise ValueError(
            f"hired: pixel_values: expected {sum(todo.partitions)} partitions for pictures of "
            f"these image_sizes, got {pixels.shape[0]}"
        )
    whole = None
    if why_full is None:
        kept = early_exit(model.vision_tower, pixels, feature_layer, todo, settings)
        tokens = kept.tokens
    else:
        logger.warning_once(f"hired: the whole vision tower runs, because {why_full}")
        kept, cls, whole = full_tower(
            model.vision_tower, pixels, feature_layer, todo, settings, **outputs
        )
        tokens = kept.tokens
        if with_cls:
            pictures = zip(cls.split(1), tokens.split(todo.rows), strict=True)
            tokens = torch.cat([part for picture in pictures for part in picture])
    lengths = [rows + with_cls for rows in todo.rows]
    projected = _with_a_part(model.multi_modal_projector(tokens), model, settings)
    features, surplus = list(projected.split(lengths)), None
    indices = kept.indices.to(projected.device)
    if settings.policy == "published" and any(R > 0 for R, _ in todo.grids):
        features, surplus = _with_empty_rows_first(features, indices.split(todo.rows))
    original = settings.positions == "original"
    places = _stock_places(indices, todo) if original else None
    if settings.newlines:
        features, surplus, places = _with_newlines(
            features, indices, todo, model.image_newline, places
        )
    stock, of_rows = None, None
    if places is not None:
        # CLS, where it is read, comes before the patches.
        of_rows = torch.cat([pad(one + with_cls, (int(with_cls), 0)) for one, _ in places])
        runs = zip(features, stock_lengths(todo), strict=True)
        stock = [(len(rows), length + with_cls) for rows, length in runs]
    return HiredImageOutput(
        last_hidden_state=tokens,
        pooler_output=features,
        hidden_states=None if whole is None else whole.hidden_states,
        attentions=None if whole is None else whole.attentions,
        indices=kept.indices,
        counts=kept.counts,
        surplus=surplus,
        places=of_rows,
        stock=stock,
    )


def _stock_places(indices: Tensor, todo: Plan) -> list[tuple[Tensor, Tensor]]:
    """Of each picture, the places of its tokens and of the newlines of their rows."""
    parts = enumerate(indices.split(todo.rows))
    firsts, T = todo.full_images, todo.anatomy.tokens
    return [stock_places(index - firsts[picture] * T, todo, picture) for picture, index in parts]


def _with_a_part(features: Tensor, model: nn.Module, settings: Settings) -> Tensor:
    """The features, and `image_newline` with a gradient of zeros where no token is made of it.

    In the stock model it has a part in every loss, and DistributedDataParallel waits for it.
    """
    newline = getattr(model, "image_newline", None)
    if settings.newlines or newline is None:
        return features
    if not (torch.is_grad_enabled() and newline.requires_grad):
        return features
    return torch.cat((features, newline[None].to(features)[:0]))


def _with_empty_rows_first(
    features: Sequence[Tensor], indices: Sequence[Tensor]
) -> tuple[list[Tensor], Tensor]:
    """Move each picture's rows of index -1 from its end to its beginning.

    A prompt may end with a picture, and it is the last token that the next one follows. Returns the
    features of each picture and which rows of all of them are empty.
    """
    packed, surplus = [], []
    for rows, index in zip(features, indices, strict=True):
        count, empty = torch.arange(len(rows), device=rows.device), (index < 0).sum()
        packed.append(rows.index_select(0, (count - empty) % max(1, len(rows))))
        surplus.append(count < empty)
    return packed, torch.cat(surplus)


_Places = list[tuple[Tensor, Tensor]]


def _with_newlines(
    features: Sequence[Tensor],
    indices: Tensor,
    todo: Plan,
    newline: Tensor,
    stock: _Places | None,
) -> tuple[list[Tensor], Tensor, _Places | None]:
    """Put `image_newline` after each assembled row that keeps a token, and after a picture without
    sub-images.

    How many rows do is known to the device alone, so each picture gets room for as many as there
    can be, and what is left over stands at its beginning. Returns the features of each picture,
    which rows of all of them are left over, and `stock`, the places of tokens and of their rows'
    newlines, for all rows.
    """
    packed, surplus, T = [], [], todo.anatomy.tokens
    of_rows: _Places = []
    of_pictures = features, indices.split(todo.rows), todo.grids, todo.separators, todo.full_images
    for tokens, index, (_, C), room, first in zip(*of_pictures, strict=True):
        # A picture without sub-images is one line.
        line = _lines(index - first * T, C, T) if C else torch.ones_like(index)
        # A line ends where the next token is of another one; the full image's, 0, has no end.
        ends = torch.ones_like(line, dtype=torch.bool)
        ends[:-1] = line[1:] != line[:-1]
        ends &= line > 0
        count = torch.arange(len(line) + room, device=line.device)
        left_over = room - ends.sum()
        places = count[: len(line)] + ends.cumsum(0) - ends.long() + left_over
        filled = newline.to(tokens).expand(len(count), -1)
        packed.append(filled.index_copy(0, places, tokens))
        surplus.append(count < left_over)
        if stock is not None:
            own, of_newline = stock[len(of_rows)]
            behind = torch.where(ends, places + 1, len(count))
            filled = own.new_zeros(len(count) + 1).index_copy(0, behind, of_newline)
            of_rows.append((filled[:-1].index_copy(0, places, own), of_newline))
    return packed, torch.cat(surplus), None if stock is None else of_rows


def _lines(index: Tensor, C: int, T: int) -> Tensor:
    """Row of the assembled grid, from 1, of tokens `p * T + t` of a picture; 0: full image."""
    side = math.isqrt(T)
    p, t = torch.div(index, T, rounding_mode="floor"), index % T
    r = torch.div(p - 1, C, rounding_mode="floor")
    return torch.where(p > 0, r * side + torch.div(t, side, rounding_mode="floor") + 1, 0)
