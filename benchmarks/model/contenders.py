# SPDX-License-Identifier: Apache-2.0
"""A model three ways: stock, with the published method as published, with HiRED switched on.

Weights are random: they cost what trained ones cost. All three share one set of weights and one
way of decoding; a contender turns pictures and a prompt into the logits after the prompt and a
cache. The published method is LLaVA-NeXT's alone. Its pictures are square, 672 pixels a side: five
partitions, 2,880 tokens, as in the paper.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import DynamicCache

import hired_kernels as hired
from hired_kernels import published
from hired_kernels.models import vision_tower
from hired_kernels.models.accounting import Anatomy, Plan, Settings, plan

from ..shared.families import Family
from ..shared.llava_next import FIRST_WORD, GRID, IMAGE_TOKEN, SIDE_PIXELS, TEXT_TOKENS


class Begun(NamedTuple):
    """After the prompt: logits (B, V) of the next token, and the cache."""

    logits: Tensor
    cache: Any
    mask: Tensor | None


Contender = Callable[[], Begun]


@dataclass(frozen=True)
class Job:
    """Pictures of a family and a budget: pixels (B, P, 3, tile, tile)."""

    family: Family
    pixels: Tensor
    share: float

    @classmethod
    def draw(cls, family: Family, model: nn.Module, B: int, share: float) -> Job:
        return cls(family, family.draw(model, B), share)

    def plan(self, model: nn.Module) -> Plan:
        """What the switched model keeps of the pictures."""
        sizes = [self.family.picture] * len(self.pixels)
        return plan(Settings(self.share), Anatomy.of(model.config), sizes)

    def prompt(self, placeholders_each: int) -> Tensor:
        """Ids (B, L): half of the text, one picture, the other half."""
        words = torch.arange(TEXT_TOKENS, device=self.pixels.device) % 7 + FIRST_WORD
        picture = words.new_full((placeholders_each,), IMAGE_TOKEN)
        half = TEXT_TOKENS // 2
        return torch.cat((words[:half], picture, words[half:])).repeat(len(self.pixels), 1)


def stock(model: nn.Module, job: Job) -> Contender:
    """transformers as it is: all tokens and newlines."""
    ids = job.prompt(job.family.stock_tokens(model.config))
    given = job.family.arguments(model, job.pixels, switched=False)
    return lambda: _begin(model, input_ids=ids, **given)


def switched(model: nn.Module, job: Job) -> Contender:
    """HiRED switched on, the exact policy. `model` is switched for good: give it a shell of one."""
    hired.apply_hired(model, None, budget=job.share)
    ids = job.prompt(job.plan(model).rows[0])
    given = job.family.arguments(model, job.pixels, switched=True)
    return lambda: _begin(model, input_ids=ids, **given)


def as_published(model: nn.Module, job: Job) -> Contender:
    """The published method as published.

    Hooks keep the queries and keys of two layers of the whole tower, both attention matrices are
    built whole, all tokens are projected, and each sub-image is a top-k that the host waits for.
    """

    def begin() -> Begun:
        features, lengths = published_features(model, job)
        ids = job.prompt(max(lengths))
        mask = torch.ones_like(ids)
        embeds = model.get_input_embeddings()(ids)
        half = TEXT_TOKENS // 2
        for row, picture in enumerate(features.split(lengths)):
            # Shorter pictures are padded on the left.
            gap = max(lengths) - len(picture)
            embeds[row, gap : gap + half] = embeds[row, :half].clone()
            embeds[row, gap + half : half + max(lengths)] = picture
            mask[row, :gap] = 0
        every = len(set(lengths)) == 1
        return _begin(model, inputs_embeds=embeds, attention_mask=None if every else mask)

    return begin


def published_features(model: nn.Module, job: Job) -> tuple[Tensor, list[int]]:
    """Kept tokens (K, width of the language model) of all pictures, and how many of each."""
    inner, B = model.model, len(job.pixels)
    layers = vision_tower.encoder_layers(inner.vision_tower)
    final = vision_tower.selection_layer(len(layers))
    seen: dict[tuple[int, str], Tensor] = {}
    hooks = []
    for number in (vision_tower.INITIAL_LAYER, final):
        for name in ("q_proj", "k_proj"):

            def keep(
                module: nn.Module, args: Any, output: Tensor, key: Any = (number, name)
            ) -> None:
                seen[key] = output

            hooks.append(getattr(layers[number].self_attn, name).register_forward_hook(keep))
    whole = inner.vision_tower(job.pixels.flatten(0, 1), output_hidden_states=True)
    for hook in hooks:
        hook.remove()
    heads = layers[0].self_attn.num_heads
    split = {key: value.unflatten(-1, (heads, -1)) for key, value in seen.items()}
    kept = published.select(
        inner.multi_modal_projector(whole.hidden_states[-2][:, 1:]),
        split[0, "q_proj"],
        split[0, "k_proj"],
        split[final, "q_proj"],
        split[final, "k_proj"],
        grids=[GRID] * B,
        sizes=[(SIDE_PIXELS, SIDE_PIXELS)] * B,
        rate=job.share,
    )
    return kept.tokens, kept.lengths


def shell(model: nn.Module) -> nn.Module:
    """The same modules and weights in another model object, which can be switched by itself."""
    outer, inner = copy.copy(model), copy.copy(model.model)
    outer._modules = {**model._modules, "model": inner}
    inner._modules = dict(model.model._modules)
    return outer


def generate(model: nn.Module, begin: Contender, new: int, wait: Callable[[], None]) -> list[float]:
    """Greedy decoding of `new` tokens: seconds until the first one, and until the last."""
    wait()
    start = time.perf_counter()
    logits, cache, mask = begin()
    token = logits.argmax(-1, keepdim=True)
    wait()
    first = time.perf_counter() - start
    for _ in range(new - 1):
        if mask is not None:
            mask = torch.cat((mask, mask.new_ones(len(mask), 1)), dim=1)
        logits, cache, mask = _begin(
            model, input_ids=token, past_key_values=cache, attention_mask=mask
        )
        token = logits.argmax(-1, keepdim=True)
    wait()
    return [first, time.perf_counter() - start]


def _begin(model: nn.Module, **arguments: Any) -> Begun:
    mask = arguments.get("attention_mask")
    arguments.setdefault("past_key_values", DynamicCache())
    output = model(**arguments, use_cache=True, logits_to_keep=1)
    return Begun(output.logits[:, -1], output.past_key_values, mask)
