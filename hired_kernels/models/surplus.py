# SPDX-License-Identifier: Apache-2.0
"""Placeholders that turn out to stand for nothing, hidden from the language model.

Under `policy="published"` and with `newlines=True` only the device knows how many tokens a picture
comes to; the prompt has room for the most there can be. What is left over is masked, not cut out:
the language model attends to none of it and numbers the positions of the others as if it were not
there, so what it computes is that of the shorter prompt, while shapes, labels and generated
sequences stay where their owner expects them and nothing waits for the device.

Callers never see the mask: attention masks and positions that they give speak of the prompt as it
was written, and what is hidden is taken off in every call. What a cache holds of it is remembered
with the cache itself, so that whoever continues from there, with text or with another picture, need
not know.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache

from .accounting import refuse
from .image_features import HiredImageOutput
from .state import ROWS

# Arguments of our own on their way through a call: a `Hidden` from a model to the one inside and to
# the loss; in `generate` the hidden columns themselves.
HIDDEN = "hired_hidden"

IGNORED = -100  # transformers' label of a token that no loss is computed of

# Attributes of a cache: which of its columns are hidden, (B, columns) bool; and whether a call of
# `generate`, which hides them beforehand, is filling it.
_REMEMBERED, _GENERATING = "_hired_hidden", "_hired_generating"


class Hidden:
    """Where the model inside leaves the columns (B, past + L) that it has hidden, for the loss."""

    columns: Tensor | None = None


def loss(function: Any, *args: Any, **kwargs: Any) -> Any:
    """A model's loss function, without labels on hidden columns, called as the stock model does."""
    found, labels = kwargs.pop(HIDDEN, None), kwargs.get("labels")
    kwargs.pop(ROWS, None)
    if found is not None and found.columns is not None and labels is not None:
        hidden = found.columns[:, -labels.shape[1] :].to(labels.device)
        kwargs["labels"] = labels.masked_fill(hidden, IGNORED)
    return function(*args, **kwargs)


def hidden_columns(
    model: nn.Module,
    arguments: dict[str, Any],
    output: HiredImageOutput | None,
    columns: int | None = None,
) -> Tensor | None:
    """Which columns of the attention mask are surplus placeholders, (B, past + L) bool.

    `arguments` are those of `forward` by name: input_ids (B, L) or inputs_embeds (B, L, D), and
    maybe a cache of past tokens; `output` has the features of its pictures. `columns` says how many
    there are where the prompt may repeat what is in the cache, as in `generate`. None if nothing
    can be hidden.
    """
    cache = cache_of(arguments)
    past = 0 if cache is None else int(cache.get_seq_length())
    placeholder = placeholder_mask(model, arguments)
    B, L = placeholder.shape
    new = L if columns is None else columns - past
    if not 0 < new <= L:
        return None
    before = _remembered(cache, B, past)
    surplus = None if output is None else output.surplus
    if before is None and surplus is None:
        return None
    placeholder = placeholder[:, L - new :]
    if surplus is None or len(surplus) == 0:
        hidden = torch.zeros_like(placeholder)
    else:
        rank = placeholder.flatten().long().cumsum(0) - 1
        surplus = surplus.to(placeholder.device)
        # Where prompt and pictures do not fit, the model itself says so a moment later.
        hidden = surplus[rank.clamp(min=0, max=len(surplus) - 1)].view_as(placeholder)
        hidden = hidden & placeholder
    if before is None:
        before = hidden.new_zeros(B, past)
    return torch.cat((before.to(hidden.device), hidden), dim=1)


def hide(arguments: dict[str, Any], hidden: Tensor) -> None:
    """Take hidden columns (B, past + L) off a call's arguments, in place.

    Of `arguments`, by name: attention_mask (B, past + L) and position_ids (B, L), each or None. A
    mask that hides them already is left as it is, and positions with it.
    """
    mask, positions = arguments.get("attention_mask"), arguments.get("position_ids")
    columns = hidden.shape[1]
    unseen = hidden if mask is None else hide_from_mask(mask, hidden) != mask
    if positions is None:
        positions = torch.arange(columns, device=hidden.device)[
            None, columns - _length(arguments) :
        ]
        unseen = hidden
    ones = hidden.new_ones(hidden.shape, dtype=torch.int64) if mask is None else mask
    arguments["attention_mask"] = hide_from_mask(ones, hidden)
    arguments["position_ids"] = shift_positions(positions, unseen)


def hide_from_mask(mask: Tensor, hidden: Tensor) -> Tensor:
    """An attention mask (B, past + L) without the hidden columns."""
    if mask.shape != hidden.shape:
        expected = f"{tuple(hidden.shape)} where surplus placeholders are hidden"
        raise refuse("attention_mask", expected, tuple(mask.shape))
    return mask.masked_fill(hidden.to(mask.device), 0)


def shift_positions(positions: Tensor, hidden: Tensor) -> Tensor:
    """Positions (B or 1, L) of the last L columns, counted as if the hidden ones were not there."""
    earlier = hidden.long().cumsum(1) - hidden.long()
    return positions - earlier[:, -positions.shape[-1] :].to(positions.device)


def remember(cache: Any, hidden: Tensor, generating: bool = False) -> None:
    """Note with a cache which of its columns are hidden, and whether `generate` is at work."""
    if cache is not None:
        setattr(cache, _REMEMBERED, hidden)
        setattr(cache, _GENERATING, _AtWork() if generating else None)


def generated(cache: Any) -> None:
    """Note that `generate` is done with a cache."""
    if is_generating(cache):
        setattr(cache, _GENERATING, None)


def is_generating(cache: Any) -> bool:
    """Whether a call of `generate` that has hidden what there is to hide is filling a cache."""
    return getattr(cache, _GENERATING, None) is not None


def remembers(cache: Any) -> bool:
    """Whether a cache may hold hidden columns."""
    return getattr(cache, _REMEMBERED, None) is not None


def cache_of(arguments: Any) -> Any:
    """The cache among a call's arguments or results, under either of its names or by its class."""
    if isinstance(arguments, tuple):
        return next((each for each in arguments if isinstance(each, Cache)), None)
    found = arguments.get("cache")
    return arguments.get("past_key_values") if found is None else found


class _AtWork:
    """The mark of a cache that `generate` is filling. A copy of the cache has none."""

    def __reduce__(self) -> tuple:
        return type(None), ()


def by_name(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call of a model, all by name.

    Its class is asked: somebody may have put a `forward` without a signature in the object.
    """
    parameters = list(inspect.signature(type(model).forward).parameters.values())[1:]
    names = [one.name for one in parameters if one.kind == one.POSITIONAL_OR_KEYWORD]
    return {**dict(zip(names, args, strict=False)), **kwargs}


def placeholder_mask(model: nn.Module, arguments: dict[str, Any]) -> Tensor:
    """Which tokens of the prompt are placeholders of pictures, (B, L) bool."""
    token = model.config.image_token_id
    if arguments.get("input_ids") is not None:
        return arguments["input_ids"] == token
    embeds = arguments["inputs_embeds"]
    table = model.get_input_embeddings()
    return (embeds == table(torch.full((), token, device=embeds.device))).all(-1)


def _remembered(cache: Any, B: int, past: int) -> Tensor | None:
    """Which of a cache's `past` columns are hidden, (B, past); None if there can be none."""
    hidden = getattr(cache, _REMEMBERED, None)
    if hidden is None or past == 0:
        return None
    if hidden.shape[0] != B:
        if B % hidden.shape[0]:
            raise refuse("cache", f"a batch of {hidden.shape[0]}, as it was filled with", B)
        hidden = hidden.repeat_interleave(B // hidden.shape[0], dim=0)
    hidden = hidden[:, :past]
    return torch.nn.functional.pad(hidden, (0, past - hidden.shape[1]))


def _length(arguments: dict[str, Any]) -> int:
    ids = arguments.get("input_ids")
    return (arguments["inputs_embeds"] if ids is None else ids).shape[1]
