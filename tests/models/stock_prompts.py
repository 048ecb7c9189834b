# SPDX-License-Identifier: Apache-2.0
"""Where the tokens of a switched model's prompt stand in the stock prompt.

The stock model says so itself: its own packing is run over features that are their numbers.
"""

from __future__ import annotations

from typing import NamedTuple

import internvl_models
import torch
from internvl_models import IMAGE
from llava_models import make, pictures, twin
from llava_oracle import layouts_of, names_of
from torch import Tensor

import hired_kernels as hired
from hired_kernels.models.accounting import Anatomy

NEWLINE = -1


class Row(NamedTuple):
    """A prompt of a switched model, without padding and surplus, as the stock model is fed with it.

    embeds (n, D), positions (n,): where each is in the stock prompt. seen (L,): the columns of the
    switched prompt that these are. length: of the stock prompt.
    """

    embeds: Tensor
    positions: Tensor
    seen: Tensor
    length: int


class Case(NamedTuple):
    stock: torch.nn.Module
    model: torch.nn.Module
    inputs: dict
    rows: list[Row]


def llava_runs(stock, sizes, alone):
    """Numbers `p * T + t` of each picture's stock tokens, in their order; NEWLINE for a newline."""
    runs, newline = [], torch.tensor([float(NEWLINE)])
    for size, layout, is_alone in zip(sizes, layouts_of(stock.config, sizes), alone, strict=True):
        P = layout.partitions if is_alone else 1
        numbers = torch.arange(P * layout.tokens, dtype=torch.float32).view(P, -1, 1)
        if hasattr(stock.model, "pack_image_features"):
            names = names_of(stock.model.pack_image_features)
            more = {"vision_feature_select_strategy": "default"}
            more = {name: value for name, value in more.items() if name in names}
            pack = stock.model.pack_image_features
            numbers = pack([numbers], [size], image_newline=newline, **more)[0][0]
        runs.append(numbers.flatten().long().tolist())
    return runs


def tiled_runs(grids, tokens):
    """The same of InternVL: tiles, then the full image, which is partition 0."""
    orders = [[*range(1, 1 + R * C), 0] for R, C in grids]
    return [[p * tokens + m for p in order for m in range(tokens)] for order in orders]


def case(kind, *, sizes, text, padding_side="left", **settings):
    """A stock model, one with `positions="original"`, its inputs, and what they are in the stock
    prompt. `kind` is one of `llava_models`, or "internvl"."""
    internvl = kind == "internvl"
    stock, processor = (
        internvl_models.make("2", padding_side=padding_side)
        if internvl
        else make(kind, padding_side=padding_side)
    )
    given = {"images": pictures(sizes), "text": text, "padding": True, "return_tensors": "pt"}
    given["padding_side"] = padding_side
    alone = [True] * len(sizes)
    if internvl:
        given["text"] = [one.replace("<image>", "<IMG_CONTEXT>") for one in text]
    elif kind == "llava-onevision":
        counts, images = [one.count("<image>") for one in text], iter(given["images"])
        given["images"] = [[next(images) for _ in range(count)] for count in counts if count]
        alone = [count == 1 for count in counts for _ in range(count)]
    whole = processor(**given)
    model, processor = hired.apply_hired(twin(stock), processor, positions="original", **settings)
    inputs = processor(**given)
    names = names_of(model.model.get_image_features)
    with torch.no_grad():
        output = model.get_image_features(**{n: inputs[n] for n in names if n in inputs})
    if internvl:
        runs = tiled_runs(inputs["hired_tiles"][:, :2].tolist(), 9)
    else:
        runs = llava_runs(stock, sizes, alone)
    token = IMAGE if internvl else 4
    rows = list(_rows(stock, inputs, whole, output, runs, token, settings.get("newlines", False)))
    return Case(stock, model, inputs, rows)


def _rows(stock, inputs, whole, output, runs, token, newlines):
    T = Anatomy.of(stock.config).tokens
    pictures_of = iter(_pictures(output, runs, T, newlines))
    table = stock.get_input_embeddings()
    surplus = output.surplus
    hidden = iter(torch.zeros_like(output.places).bool() if surplus is None else surplus)
    for ids, mask, whole_ids, whole_mask in zip(
        inputs["input_ids"], inputs["attention_mask"], whole["input_ids"], whole["attention_mask"],
        strict=True,
    ):  # fmt: skip
        prompt, parts, positions, at = whole_ids[whole_mask.bool()].tolist(), [], [], 0
        while token in prompt[at:]:
            start = at + prompt[at:].index(token)
            features, places, length = next(pictures_of)
            parts += [table(torch.tensor(prompt[at:start], dtype=torch.int64)), features]
            positions += [*range(at, start), *(start + place for place in places)]
            at = start + length
        parts.append(table(torch.tensor(prompt[at:], dtype=torch.int64)))
        positions += range(at, len(prompt))
        seen = mask.bool().clone()
        for column in (ids == token).nonzero()[:, 0]:
            seen[column] = not next(hidden)
        embeds = torch.cat(parts).detach()
        assert len(embeds) == len(positions) == int(seen.sum())
        yield Row(embeds, torch.tensor(positions), seen, len(prompt))


def _pictures(output, runs, T, newlines):
    """Of each picture: features, the places of its tokens and newlines in its run, its length."""
    indices, counts, first = iter(output.indices.tolist()), output.counts.tolist(), 0
    features = list(output.pooler_output)
    if output.surplus is not None:
        parts = output.surplus.split(list(map(len, features)))
        features = [one[~part] for one, part in zip(features, parts, strict=True)]
    for run, rows in zip(runs, features, strict=True):
        P = (max(run) + 1) // T
        K = sum(counts[first : first + P])
        places = [run.index(next(indices) - first * T) for _ in range(K)]
        if newlines:
            # Of a picture with sub-images the full image's tokens have no line.
            with_line = [place for place in places if P == 1 or run[place] >= T]
            places += {run.index(NEWLINE, place) for place in with_line}
        yield rows, sorted(places), len(run)
        first += P
