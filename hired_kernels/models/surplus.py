# SPDX-License-Identifier: Apache-2.0
"""Placeholders that turn out to stand for nothing, hidden from the language model.

Under `policy="published"` and with `newlines=True` only the device knows how many tokens a picture
comes to; the prompt has room for the most there can be. What is left over is masked, not cut out:
the language model attends to none of it and numbers the positions of the others as if it were not
there, so what it computes is that of the shorter prompt, while shapes, labels and generated
sequences stay where their owner expects them and nothing waits for the device.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

IGNORED = -100  # transformers' label of a token that no loss is computed of


def hide(model: nn.Module, surplus: Tensor, arguments: dict[str, Any], generating: bool) -> None:
    """Hide the placeholders of surplus rows (rows,) from a call's arguments, in place.

    `arguments` are those of `forward` or `generate` by name: input_ids (B, L) or inputs_embeds
    (B, L, D); attention_mask (B, past + L), position_ids (B, L), labels (B, L) or None.
    """
    placeholder = placeholder_mask(model, arguments)
    rank = placeholder.flatten().long().cumsum(0) - 1
    hidden = surplus.to(placeholder.device)
    # Where prompt and pictures do not fit, the model itself says so a moment later.
    hidden = hidden[rank.clamp(min=0, max=len(surplus) - 1)].view_as(placeholder) & placeholder
    mask = arguments.get("attention_mask")
    if mask is None:
        mask = _mask_of(model, arguments, placeholder, generating)
    if mask.dim() != 2:
        raise ValueError(
            "hired: attention_mask: expected rank 2 where surplus placeholders are hidden "
            f"(published, newlines), got rank {mask.dim()}"
        )
    past = mask.shape[1] - hidden.shape[1]
    visible = mask[:, past:].masked_fill(hidden.to(mask.device), 0)
    arguments["attention_mask"] = torch.cat((mask[:, :past], visible), dim=1)
    if arguments.get("labels") is not None:
        labels = arguments["labels"]
        arguments["labels"] = labels.masked_fill(hidden.to(labels.device), IGNORED)
    positions = arguments.get("position_ids")
    if positions is None and generating:
        return  # `generate` numbers what the mask shows
    if positions is None:
        positions = torch.arange(hidden.shape[1], device=hidden.device) + past
    earlier = (hidden.long().cumsum(1) - hidden.long()).to(positions.device)
    arguments["position_ids"] = positions - earlier


def by_name(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call of a bound method, all by name."""
    parameters = inspect.signature(function).parameters
    names = [name for name, kind in parameters.items() if kind.kind != kind.VAR_KEYWORD]
    return {**dict(zip(names, args, strict=False)), **kwargs}


def placeholder_mask(model: nn.Module, arguments: dict[str, Any]) -> Tensor:
    """Which tokens of the prompt are placeholders of pictures, (B, L) bool."""
    token = model.config.image_token_id
    if arguments.get("input_ids") is not None:
        return arguments["input_ids"] == token
    embeds = arguments["inputs_embeds"]
    table = model.get_input_embeddings()
    return (embeds == table(torch.full((), token, device=embeds.device))).all(-1)


def _mask_of(
    model: nn.Module, arguments: dict[str, Any], placeholder: Tensor, generating: bool
) -> Tensor:
    """The attention mask that transformers takes where there is none, (B, past + L)."""
    if generating and arguments.get("input_ids") is not None:
        config = model.generation_config
        pad, ends = config.pad_token_id, config.eos_token_id
        if pad is not None and pad not in (ends if isinstance(ends, list) else [ends]):
            return (arguments["input_ids"] != pad).long()
    cache = arguments.get("past_key_values")
    past = 0 if cache is None else int(cache.get_seq_length())
    B, L = placeholder.shape
    return torch.ones(B, past + L, dtype=torch.int64, device=placeholder.device)
