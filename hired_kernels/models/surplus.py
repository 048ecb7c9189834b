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
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache

from .accounting import refuse
from .classes import Switched, turn_on
from .image_features import HiredImageOutput

IGNORED = -100  # transformers' label of a token that no loss is computed of

# Attributes of a cache: which of its columns are hidden, (B, columns) bool; what to add to their
# positions (`positions`), (B, 2, columns); and whether a call of `generate`, which sees to both
# beforehand, is filling it.
_REMEMBERED, _SHIFT, _GENERATING = "_hired_hidden", "_hired_shift", "_hired_generating"


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
    cache, prompt = cache_of(arguments), prompt_of(arguments)
    past = length_of(cache)
    surplus = None if output is None else output.surplus
    if prompt is None or (surplus is None and not remembers(cache)):
        return None
    B, L = prompt.shape[:2]
    new = L if columns is None else columns - past
    if not 0 < new <= L:
        return None
    before = _remembered(cache, B, past, new)
    if before is not None and before.shape[1] == past + new:
        return before
    if before is None and surplus is None:
        return None
    placeholder = placeholder_mask(model, arguments)[:, L - new :]
    if surplus is None or len(surplus) == 0:
        hidden = torch.zeros_like(placeholder)
    else:
        # `generate` repeats rows and features for its beams.
        copies = max(1, sum(map(len, output.pooler_output)) // len(surplus))
        rank = placeholder[::copies].flatten().long().cumsum(0) - 1
        surplus = surplus.to(placeholder.device)
        # Where prompt and pictures do not fit, the model itself says so a moment later.
        hidden = surplus[rank.clamp(min=0, max=len(surplus) - 1)].view(-1, new)
        hidden = hidden.repeat_interleave(copies, dim=0) & placeholder
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
    if mask is None and positions is not None and cache_of(arguments) is None:
        check_one_sequence(positions)
    unseen = hidden if mask is None else hide_from_mask(mask, hidden) != mask
    if positions is None:
        first, unseen = columns - prompt_of(arguments).shape[1], hidden
        positions = torch.arange(first, columns, device=hidden.device)[None]
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


def remember(
    cache: Any, hidden: Tensor | None, shift: Tensor | None = None, generating: bool = False
) -> None:
    """Note with a cache which of its columns are hidden, what to add to positions, and whether
    `generate` is at work."""
    if cache is not None and not (hidden is None and shift is None):
        turn_on(cache, _Remembering)
        setattr(cache, _REMEMBERED, hidden)
        setattr(cache, _SHIFT, shift)
        setattr(cache, _GENERATING, _AtWork() if generating else None)


def shift_in(cache: Any) -> Tensor | None:
    """What is to be added to the positions of a cache's columns, or None."""
    if remembers(cache) and not is_generating(cache) and length_of(cache) == 0:
        forget(cache)  # it was emptied
    return getattr(cache, _SHIFT, None)


def forget(cache: Any) -> None:
    """Note that nothing is in a cache."""
    if remembers(cache):
        for name in (_REMEMBERED, _SHIFT, _GENERATING):
            setattr(cache, name, None)


def generated(cache: Any) -> None:
    """Note that `generate` is done with a cache."""
    if is_generating(cache):
        setattr(cache, _GENERATING, None)


def is_generating(cache: Any) -> bool:
    """Whether a call of `generate` that has hidden what there is to hide is filling a cache."""
    return getattr(cache, _GENERATING, None) is not None


def remembers(cache: Any) -> bool:
    """Whether a cache may hold hidden columns, or such as have other positions."""
    return any(getattr(cache, name, None) is not None for name in (_REMEMBERED, _SHIFT))


def length_of(cache: Any) -> int:
    """How many tokens a cache holds, None none."""
    return 0 if cache is None else int(cache.get_seq_length())


def cache_of(arguments: Any) -> Any:
    """The cache among a call's arguments or results, under either of its names or by its class."""
    if isinstance(arguments, tuple):
        return next((each for each in arguments if isinstance(each, Cache)), None)
    found = arguments.get("cache")
    return arguments.get("past_key_values") if found is None else found


class _Remembering(Switched):
    """A cache that remembers: what is known of its rows goes where they go."""

    def _hired_follow(self, rows: Callable[[Tensor], Tensor]) -> None:
        for name in (_REMEMBERED, _SHIFT):
            noted = getattr(self, name, None)
            if noted is not None:
                setattr(self, name, rows(noted))

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)
        self._hired_follow(lambda hidden: hidden.index_select(0, beam_idx.to(hidden.device)))

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self._hired_follow(lambda hidden: hidden[indices.to(hidden.device)])

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        self._hired_follow(lambda hidden: hidden.repeat_interleave(repeats, dim=0))


class _AtWork:
    """The mark of a cache that `generate` is filling. A copy of the cache has none."""

    def __reduce__(self) -> tuple:
        return type(None), ()


def without_labels(model: nn.Module, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call with no label on a placeholder, and so no loss of it.

    labels (B, L), or shift_labels (B, L), which have the label of the next token.
    """
    labels, shifted = arguments.get("labels"), arguments.get("shift_labels")
    if (labels is None and shifted is None) or prompt_of(arguments) is None:
        return arguments
    placeholder, changed = placeholder_mask(model, arguments), dict(arguments)
    if labels is not None:
        changed["labels"] = labels.masked_fill(placeholder.to(labels.device), IGNORED)
    if shifted is not None:
        ahead = torch.nn.functional.pad(placeholder[:, 1:], (0, 1)).to(shifted.device)
        changed["shift_labels"] = shifted.masked_fill(ahead, IGNORED)
    return changed


def by_name(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call of a model, all by name.

    Its classes are asked, one of which knows: somebody may have put a `forward` without a signature
    in the object, or in a class.
    """
    names: list[str] = ["input_ids"]
    for each in type(model).__mro__:
        known = (
            inspect.signature(vars(each)["forward"]).parameters if "forward" in vars(each) else {}
        )
        if "input_ids" in known:
            named = (one for one in known.values() if one.kind == one.POSITIONAL_OR_KEYWORD)
            names = [one.name for one in named][1:]
            break
    if len(args) > len(names):
        raise refuse("forward", "arguments by name, since its signature was replaced", "others")
    return {**dict(zip(names, args, strict=False)), **kwargs}


def prompt_of(arguments: dict[str, Any]) -> Tensor | None:
    """input_ids (B, L) or inputs_embeds (B, L, D) of a call, or None."""
    ids = arguments.get("input_ids")
    return arguments.get("inputs_embeds") if ids is None else ids


def placeholder_mask(model: nn.Module, arguments: dict[str, Any]) -> Tensor:
    """Which tokens of the prompt are placeholders of pictures, (B, L) bool."""
    token = model.config.image_token_id
    if arguments.get("input_ids") is not None:
        return arguments["input_ids"] == token
    embeds = arguments["inputs_embeds"]
    table = model.get_input_embeddings()
    return (embeds == table(torch.full((), token, device=embeds.device))).all(-1)


def check_one_sequence(positions: Tensor) -> None:
    """Raise ValueError for positions with a leap: with no mask they say where sequences begin.

    Waits for the device, as transformers does to find that out.
    """
    if bool((positions.diff() != 1).any()):
        expected = "one sequence in a row, since positions are counted anew"
        raise refuse("position_ids", expected, "several, packed")


def _remembered(cache: Any, B: int, past: int, new: int) -> Tensor | None:
    """Which of a cache's `past` columns are hidden, (B, past); None if there can be none.

    While `generate` fills it, also of the new ones, (B, past + new).
    """
    if past == 0 and not is_generating(cache):
        forget(cache)  # it was emptied
    hidden = getattr(cache, _REMEMBERED, None)
    if hidden is None:
        return None
    if hidden.shape[0] != B:
        raise refuse("cache", f"a batch of {hidden.shape[0]}, as it was filled with", B)
    known = hidden.shape[1]
    # A prompt that is longer than it was when `generate` began has had something put before it.
    if is_generating(cache) and (past > 0 or new <= known):
        past += new
    return torch.nn.functional.pad(hidden[:, :past], (0, max(0, past - known)))
