# SPDX-License-Identifier: Apache-2.0
"""Stage 2: teaches projector and language model to answer, over a tower that stays as it is.

Several questions are asked about one picture at once: each sees the picture's tokens and itself,
and stands where it would if it were the only one. The first steps have short prompts. In half of
the others the language model gets a random share of the tokens, uniformly drawn, so that prompts
with tokens missing are nothing new to it and no way of choosing them is favoured.

The projector has to bring what a patch shows to the embeddings of the words for it, as the first
stage of LLaVA's own training does: a word of a question then finds its patch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

import hired_kernels
from hired_kernels.cli import taken_apart

from .subject import SPECIAL, Question, Shown, Size, Subject
from .tiles import layout_of

_PAD, _BOS = SPECIAL.index("<pad>"), SPECIAL.index("<s>")


@dataclass(frozen=True)
class Lesson:
    """A step's pictures of one size: their partitions, what is asked about each, which tokens the
    prompts keep, (B, K) places in reading order or None for all, and what those show. short: the
    prompts are of what shows something and little else."""

    size: Size
    pixels: Tensor
    asked: list[list[Question]]
    kept: Tensor | None
    shown: Shown
    short: bool


def draw(
    subject: Subject,
    rng: np.random.Generator,
    pictures: int,
    each: int,
    *,
    short: bool,
    few: bool = False,
) -> Lesson:
    """`each` questions of each kind on each picture, of scenes with little to see where `few`.

    `short`: prompts of the patches that show something and few others, to begin with; what belongs
    together is found sooner among thirty tokens than among three hundred.
    """
    size = subject.draw_size(rng)
    draw_scene = subject.draw_few if few else subject.draw_scene
    scenes = [draw_scene(rng, size) for _ in range(pictures)]
    pixels = subject.partitions(subject.paint(rng, scenes))
    asked = [subject.ask(rng, scene, each, subject.kinds) for scene in scenes]
    order, shown = raster_order(*size, subject.tile), subject.shown(scenes)
    shown = replace(
        shown,
        about=shown.about[:, order],
        own=None if shown.own is None else shown.own[:, order],
    )
    kept = _some(rng, shown, short, subject.answer_stage.others)
    if kept is not None:
        about = shown.about.gather(1, kept[..., None].expand(-1, -1, shown.about.shape[2]))
        own = None if shown.own is None else shown.own.gather(1, kept)
        shown = replace(shown, about=about, own=own)
    return Lesson(size, pixels, asked, kept, shown, short)


def loss(
    model: nn.Module, subject: Subject, lesson: Lesson, *, original: bool = False
) -> tuple[Tensor, dict[str, float]]:
    """The loss of a step's questions, and the shares answered right where the prompt has it all.

    `original`: a token keeps the position that it has in the prompt of all of them.
    """
    device, tower = model.device, model.model.vision_tower
    order, kept = raster_order(*lesson.size, subject.tile), lesson.kept
    with torch.autocast(device.type, torch.bfloat16):
        pixels = lesson.pixels.to(device)
        tokens = features(tower, begin(tower, pixels), len(pixels))[:, order.to(device)]
        if kept is not None:
            index = kept[..., None].to(device).expand(-1, -1, tokens.shape[2])
            tokens = tokens.gather(1, index)
        projected = model.model.multi_modal_projector(tokens)
        places = (kept, len(order)) if original and kept is not None else None
        logits = answers(model, subject, projected, lesson.asked, places)
    labels = [[subject.ids[each.answer] for each in row] for row in lesson.asked]
    labels = torch.tensor(labels, device=device)
    total = functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    total = total + _named(model, subject, projected.float(), lesson.shown)
    told = {}
    if kept is None or lesson.short:
        right = (logits.argmax(dim=2) == labels).float().mean(dim=0)
        kinds = right.unflatten(0, (len(subject.kinds), -1)).mean(dim=1)
        told = dict(zip(subject.kinds, kinds.tolist(), strict=True))
    return total, told


def _named(model: nn.Module, subject: Subject, projected: Tensor, shown: Shown) -> Tensor:
    """The loss of the projector by itself: a patch lies near the embeddings of the words that it is
    about, as in the first stage of LLaVA's own training, and near the output of its own word."""
    words = torch.tensor([subject.ids[word] for word in subject.answers], device=projected.device)
    embedded = model.get_input_embeddings().weight[words]
    about = shown.about.to(projected.device)
    asked = about[..., 0] >= 0
    logits = projected @ embedded.T
    if subject.alike:  # up to five words share a patch: cosines of 0.45
        logits = 20 * functional.normalize(projected, dim=-1) @ functional.normalize(embedded).T - 5
    total = len(words) * functional.binary_cross_entropy_with_logits(logits[asked], about[asked])
    if shown.own is not None:
        own = shown.own.to(projected.device)
        read = own >= 0
        logits = projected[read] @ model.lm_head.weight[words[: shown.readable]].T
        total = total + functional.cross_entropy(logits, own[read])
    return total


def _some(rng: np.random.Generator, shown: Shown, short: bool, others: int) -> Tensor | None:
    """Which tokens a step's prompts keep: (B, K) places in raster order, or None: all. A short
    prompt has up to one in `others` of them besides those that show something."""
    B, V, _ = shown.about.shape
    chances = rng.random((B, V))
    if short:
        needed = (shown.about > 0).any(dim=2).numpy()
        chances[needed] = -1
        count = int(needed.sum(axis=1).max()) + int(rng.integers(0, V // others))
    elif rng.random() < 0.5:
        return None
    else:
        count = int(rng.uniform(0.1, 1) * V)
    return torch.from_numpy(np.sort(chances.argsort(axis=1)[:, :count], axis=1))


@torch.no_grad()
def begin(tower: nn.Module, pixels: Tensor) -> taken_apart.Encoded:
    """The tower on (B, P, 3, tile, tile), up to what is selected by."""
    full_images = range(0, pixels.shape[0] * pixels.shape[1], pixels.shape[1])
    return taken_apart.begin(tower, pixels.flatten(0, 1), full_images=full_images)


@torch.no_grad()
def features(tower: nn.Module, encoded: taken_apart.Encoded, pictures: int) -> Tensor:
    """What LLaVA reads of all patches, (pictures, P * T, D), partition after partition."""
    tokens = taken_apart.finish_all(tower, encoded)[:, 1:]
    return tokens.unflatten(0, (pictures, -1)).flatten(1, 2).float()


@cache
def raster_order(height: int, width: int, tile: int) -> Tensor:
    """All tokens of a picture that are not padding, as LLaVA-NeXT packs them."""
    layout = layout_of(height, width, tile)
    flat = torch.zeros(layout.partitions, 1, layout.tokens)
    kept = hired_kernels.select(
        flat.mT, flat, flat, grids=[layout.grid], budget=1.0, crops=[layout.crop]
    )
    return kept.indices


def answers(
    model: nn.Module,
    subject: Subject,
    tokens: Tensor,
    asked: Sequence[Sequence[Question]],
    places: tuple[Tensor, int] | None = None,
) -> Tensor:
    """Logits (B, questions, words) after each question, given projected tokens (B, K, width).

    `places` has where the tokens stand, (B, K), among how many; None: one after the other.
    """
    (B, K), count, length = tokens.shape[:2], len(asked[0]), subject.longest
    words = torch.full((B, count, length), _PAD)
    ends = torch.empty(B, count, dtype=torch.long)
    for b, row in enumerate(asked):
        for number, question in enumerate(row):
            ids = [subject.ids[word] for word in question.text.split()]
            words[b, number, : len(ids)] = torch.tensor(ids)
            ends[b, number] = 1 + K + number * length + len(ids) - 1
    words = torch.cat((torch.full((B, 1), _BOS), words.flatten(1)), dim=1)
    embedded = model.get_input_embeddings()(words.to(tokens.device)).to(tokens.dtype)
    inputs = torch.cat((embedded[:, :1], tokens, embedded[:, 1:]), dim=1)
    mask, positions = _mask(K, count, length)
    if places is not None:
        before, behind = torch.zeros(B, 1, dtype=torch.long), positions[:, 1 + K :] - K + places[1]
        positions = torch.cat((before, 1 + places[0], behind.expand(B, -1)), dim=1)
    hidden = model.model.language_model(
        inputs_embeds=inputs,
        attention_mask=mask.to(inputs).expand(B, -1, -1, -1),
        position_ids=positions.to(inputs.device).expand(B, -1),
        use_cache=False,
    ).last_hidden_state
    last = hidden.gather(1, ends[..., None].to(hidden.device).expand(-1, -1, hidden.shape[2]))
    return model.lm_head(last).float()


@cache
def _mask(K: int, count: int, length: int) -> tuple[Tensor, Tensor]:
    """Who sees whom, as what is added to scores (1, 1, S, S), and positions (1, S)."""
    behind = torch.arange(count * length)
    question = torch.cat((torch.full((1 + K,), -1), behind // length))
    position = torch.cat((torch.arange(1 + K), 1 + K + behind % length))
    sees = (question[:, None] == question) | (question == -1)
    sees &= torch.ones_like(sees).tril()
    hidden = torch.zeros(sees.shape).masked_fill(~sees, float("-inf"))
    return hidden[None, None], position[None]
