# SPDX-License-Identifier: Apache-2.0
"""Positions of kept tokens: `positions="original"` gives each the one that it has in the stock
prompt, and the text after a picture stands where it stood.

`stock_order` says where in a picture's stock run of placeholders each kept token would be. Of that
`shift_of` makes what is to be added to the positions of a prompt as it is written, column by
column, which a cache remembers, so that decoding and later turns go on from there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from . import surplus
from .accounting import refuse
from .image_features import HiredImageOutput


def shift_of(
    model: nn.Module,
    arguments: dict[str, Any],
    output: HiredImageOutput | None,
    columns: int | None = None,
) -> Tensor | None:
    """What to add to the positions of the columns of a cache and a prompt, (B, 2, past + L): to
    each column's own, and to all that would follow if it were the last.

    Positions are counted as if surplus placeholders were not there. The arguments are those of
    `surplus.hidden_columns`. None where nothing is to be added.
    """
    cache, prompt = surplus.cache_of(arguments), surplus.prompt_of(arguments)
    places = None if output is None else output.places
    if prompt is None or (places is None and not surplus.remembers(cache)):
        return None
    before = surplus.shift_in(cache)
    if before is None and places is None:
        return None
    B, L = prompt.shape[:2]
    if before is not None and before.shape[0] != B:
        raise refuse("cache", f"a batch of {before.shape[0]}, as it was filled with", B)
    if before is not None and surplus.is_generating(cache):
        return before
    past = surplus.length_of(cache)
    if before is not None:
        before = _of_columns(before, past)
    new = L if columns is None else columns - past
    if output is None or places is None or not 0 < new <= L:
        return before
    placeholder = surplus.placeholder_mask(model, arguments)[:, L - new :]
    inside, after = placeholder.new_zeros(2, B, new, dtype=torch.int64)
    if len(places) > 0:
        features: Any = output.pooler_output
        copies = max(1, sum(len(rows) for rows in features) // len(places))
        rank = placeholder[::copies].flatten().long().cumsum(0) - 1
        rank = rank.clamp(min=0, max=len(places) - 1)
        inside, after = (
            one.to(rank.device)[rank].view(-1, new).repeat_interleave(copies, dim=0) * placeholder
            for one in _of_rows(places, output.stock or [], output.surplus)
        )
    total = after.cumsum(1)
    shift = torch.stack((inside + total - after, total), dim=1)
    if before is None:
        before = shift.new_zeros(B, 2, past)
    elif past > 0:
        before = before.to(shift.device)
        shift = shift + before[:, 1:, -1:]
    return torch.cat((before, shift), dim=2)


def add(model: Any, arguments: dict[str, Any], shift: Tensor) -> None:
    """Add to the positions of a call, in place, what `shift_of` says.

    Of `arguments`, by name: position_ids (B or 1, L) or None, and attention_mask, which is made
    where there is none: without one, positions would say where sequences begin.
    """
    cache, prompt = surplus.cache_of(arguments), surplus.prompt_of(arguments)
    assert prompt is not None  # nothing is to be added without one
    B, L = prompt.shape[:2]
    past = 0 if cache is None else cache.get_seq_length()
    _check_attention(model, cache, B, L)
    columns = torch.arange(L, device=shift.device) + past
    positions = arguments.get("position_ids")
    if arguments.get("attention_mask") is None:
        if positions is not None and cache is None:
            surplus.check_one_sequence(positions)
        ones = shift.new_ones(B, surplus.length_of(cache) + L)
        arguments["attention_mask"] = ones
    if positions is None:
        positions = columns[None]
    C = shift.shape[2]
    own = shift[:, 0].index_select(1, columns.clamp(max=C - 1))
    own = torch.where(columns < C, own, shift[:, 1, -1:])
    arguments["position_ids"] = positions + own.to(positions.device)


def _of_columns(shift: Tensor, count: int) -> Tensor:
    """Of (B, 2, columns) the first `count`: a cache may have been cropped, or have gone on."""
    more = count - shift.shape[2]
    if more <= 0:
        return shift[:, :, :count]
    return torch.cat((shift, shift[:, 1:, -1:].expand(-1, 2, more)), dim=2)


def _check_attention(model: Any, cache: Any, B: int, L: int) -> None:
    """Raise ValueError where transformers would take gaps between positions for ends of sequences:
    its flash attention does so in one prompt without padding that goes on from a cache."""
    implementation = getattr(model.config.get_text_config(), "_attn_implementation", None) or ""
    if "flash" in implementation and B == 1 and L > 1 and surplus.length_of(cache) > 0:
        expected = f"kept where a prompt goes on from a cache under {implementation}"
        raise refuse("positions", expected, "'original'")


def _of_rows(
    places: Tensor, stock: list[tuple[int, int]], hidden: Tensor | None
) -> tuple[Tensor, Tensor]:
    """For each row of features of all pictures: what to add to its position, counted from the
    picture's first row; and, for the last row of a picture, what to add for all behind it.

    `places`, `stock` and `hidden`, the surplus, are those of `HiredImageOutput`.
    """
    inside, after, counts = [], [], [count for count, _ in stock]
    shown = torch.ones_like(places) if hidden is None else (~hidden).long()
    pictures = places.split(counts), shown.split(counts), stock
    for own, visible, (count, length) in zip(*pictures, strict=True):
        ranks = visible.cumsum(0)
        inside.append(own - ranks + 1)
        left_out = torch.zeros_like(own)
        if count > 0:
            left_out[-1:] = length - ranks[-1:]
        after.append(left_out)
    return torch.cat(inside), torch.cat(after)
