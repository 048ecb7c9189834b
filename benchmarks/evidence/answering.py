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
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

import hired_kernels
from hired_kernels.cli import taken_apart

from .pictures import SIDE, Scene, draw_scene, draw_size, paint
from .questions import ANSWERS, KINDS, WORDS, WORDS_WITH_PLACE, Question, ask
from .seeing import placed
from .tiles import layout_of, partitions

_LENGTH = 9  # words of the longest question
_PAD, _BOS = WORDS.index("<pad>"), WORDS.index("<s>")
_ID = {word: number for number, word in enumerate(WORDS_WITH_PLACE)}


def loss(
    model: nn.Module,
    rng: np.random.Generator,
    pictures: int,
    each: int,
    *,
    short: bool,
    kinds: Sequence[str] = KINDS,
    original: bool = False,
) -> tuple[Tensor, dict[str, float]]:
    """The loss of `each` questions of each kind on each picture, and the shares answered right.

    `original`: a token keeps the position that it has in the prompt of all of them.

    `short`: prompts of the patches that show signs and few others, to begin with; what belongs
    together is found sooner among thirty tokens than among three hundred.
    """
    size = draw_size(rng)
    scenes = [draw_scene(rng, size) for _ in range(pictures)]
    pixels = partitions(paint(rng, scenes))
    asked = [ask(rng, scene, each, kinds) for scene in scenes]
    length = len(raster_order(*size))
    with torch.autocast("cpu", torch.bfloat16):
        tower = model.model.vision_tower
        tokens = features(tower, begin(tower, pixels), pictures)[:, raster_order(*size)]
        shown = _shown(scenes)
        kept = _some(rng, scenes, short)
        if kept is not None:
            tokens = tokens.gather(1, kept[..., None].expand(-1, -1, tokens.shape[2]))
            shown = shown.gather(1, kept[..., None].expand(-1, -1, shown.shape[2]))
        projected = model.model.multi_modal_projector(tokens)
        places = (kept, length) if original and kept is not None else None
        logits = answers(model, projected, asked, places)
    labels = torch.tensor([[_ID[each.answer] for each in row] for row in asked])
    total = functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    embedded = model.get_input_embeddings().weight[[WORDS.index(word) for word in ANSWERS]]
    sharp = shown[..., 0] >= 0
    total = total + len(ANSWERS) * functional.binary_cross_entropy_with_logits(
        (projected.float() @ embedded.T)[sharp], shown[sharp]
    )
    told = {}
    if kept is None or short:
        right = (logits.argmax(dim=2) == labels).float().mean(dim=0).unflatten(0, (len(kinds), -1))
        told = dict(zip(kinds, right.mean(dim=1).tolist(), strict=True))
    return total, told


def _shown(scenes: list[Scene]) -> Tensor:
    """Which of ANSWERS each token is about, in raster order: (B, V, ANSWERS) 0 or 1.

    Both patches of a sign are about its colour, its shape and its digit. -1 in full images.
    """
    order = raster_order(scenes[0].height, scenes[0].width).tolist()
    shown = torch.zeros(len(scenes), len(order), len(ANSWERS))
    shown[:, : SIDE * SIDE] = -1
    for b, scene in enumerate(scenes):
        for (p, t, _, _), sign in zip(placed(scene), scene.signs, strict=True):
            words = [ANSWERS.index(word) for word in (sign.colour, sign.shape, str(sign.digit))]
            for patch in (t, t + 1):
                shown[b, order.index(p * SIDE * SIDE + patch), words] = 1
    return shown


def _some(rng: np.random.Generator, scenes: list[Scene], short: bool) -> Tensor | None:
    """Which tokens a step's prompts keep: (B, K) places in raster order, or None: all."""
    order = raster_order(scenes[0].height, scenes[0].width).tolist()
    chances = rng.random((len(scenes), len(order)))
    if short:
        for row, scene in zip(chances, scenes, strict=True):
            for p, t, _, _ in placed(scene):
                row[[order.index(p * SIDE * SIDE + t), order.index(p * SIDE * SIDE + t + 1)]] = -1
        count = 2 * max(len(scene.signs) for scene in scenes) + rng.integers(0, len(order) // 4)
    elif rng.random() < 0.5:
        return None
    else:
        count = int(rng.uniform(0.1, 1) * len(order))
    return torch.from_numpy(np.sort(chances.argsort(axis=1)[:, :count], axis=1))


@torch.no_grad()
def begin(tower: nn.Module, pixels: Tensor) -> taken_apart.Encoded:
    """The tower on (B, P, 3, TILE, TILE), up to what is selected by."""
    full_images = range(0, pixels.shape[0] * pixels.shape[1], pixels.shape[1])
    return taken_apart.begin(tower, pixels.flatten(0, 1), full_images=full_images)


@torch.no_grad()
def features(tower: nn.Module, encoded: taken_apart.Encoded, pictures: int) -> Tensor:
    """What LLaVA reads of all patches, (pictures, P * T, D), partition after partition."""
    tokens = taken_apart.finish_all(tower, encoded)[:, 1:]
    return tokens.unflatten(0, (pictures, -1)).flatten(1, 2).float()


@cache
def raster_order(height: int, width: int) -> Tensor:
    """All tokens of a picture that are not padding, as LLaVA-NeXT packs them."""
    layout = layout_of(height, width)
    flat = torch.zeros(layout.partitions, 1, layout.tokens)
    kept = hired_kernels.select(
        flat.mT, flat, flat, grids=[layout.grid], budget=1.0, crops=[layout.crop]
    )
    return kept.indices


def answers(
    model: nn.Module,
    tokens: Tensor,
    asked: list[list[Question]],
    places: tuple[Tensor, int] | None = None,
) -> Tensor:
    """Logits (B, questions, words) after each question, given projected tokens (B, K, width).

    `places` has where the tokens stand, (B, K), among how many; None: one after the other.
    """
    (B, K), count = tokens.shape[:2], len(asked[0])
    words = torch.full((B, count, _LENGTH), _PAD)
    ends = torch.empty(B, count, dtype=torch.long)
    for b, row in enumerate(asked):
        for number, question in enumerate(row):
            ids = [_ID[word] for word in question.text.split()]
            words[b, number, : len(ids)] = torch.tensor(ids)
            ends[b, number] = 1 + K + number * _LENGTH + len(ids) - 1
    words = torch.cat((torch.full((B, 1), _BOS), words.flatten(1)), dim=1)
    embedded = model.get_input_embeddings()(words).to(tokens.dtype)
    inputs = torch.cat((embedded[:, :1], tokens, embedded[:, 1:]), dim=1)
    mask, positions = _mask(K, count)
    if places is not None:
        before, behind = torch.zeros(B, 1, dtype=torch.long), positions[:, 1 + K :] - K + places[1]
        positions = torch.cat((before, 1 + places[0], behind.expand(B, -1)), dim=1)
    hidden = model.model.language_model(
        inputs_embeds=inputs,
        attention_mask=mask.expand(B, -1, -1, -1).to(inputs.dtype),
        position_ids=positions.expand(B, -1),
        use_cache=False,
    ).last_hidden_state
    last = hidden.gather(1, ends[..., None].expand(-1, -1, hidden.shape[2]))
    return model.lm_head(last).float()


@cache
def _mask(K: int, count: int) -> tuple[Tensor, Tensor]:
    """Who sees whom, as what is added to scores (1, 1, S, S), and positions (1, S)."""
    question = torch.cat((torch.full((1 + K,), -1), torch.arange(count * _LENGTH) // _LENGTH))
    position = torch.cat((torch.arange(1 + K), 1 + K + torch.arange(count * _LENGTH) % _LENGTH))
    sees = (question[:, None] == question) | (question == -1)
    sees &= torch.ones_like(sees).tril()
    hidden = torch.zeros(sees.shape).masked_fill(~sees, float("-inf"))
    return hidden[None, None], position[None]
