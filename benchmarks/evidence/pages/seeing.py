# SPDX-License-Identifier: Apache-2.0
"""Stage 1 on pages: teaches the tower to read, by what its CLS token can tell about a tile.

From the CLS token alone, linear heads have to say which words stand in a tile, and how much of each
quarter of it is print, after every layer; so its attention has to fall on print, at the initial
layer and at the feature layer. Heads on the patches of the feature layer say which word each shows,
what stands before it or at the head of its row and column, and what kind of block it belongs to.
One after the second layer says which letters a patch shows, and one halfway which word, so that
words are read within minutes. Full images are asked the same, except that of words only headings
and stamps are, which can be read there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ..lessons import head, weight_on_cls
from ..subject import PATCH, Network, Shown
from ..tiles import layout_of, partitions
from . import fonts
from .pictures import paint
from .questions import ANSWERS
from .typesetting import BLOCKS, LARGE_PRINT, PRINTED, SIDE, TILE, Page, Word, draw_page

NOTHING = len(PRINTED)
LETTERS = sorted(set("".join(PRINTED)))
_RELATED = ("before", "row_head", "column_head")
# Of the loss on patches. column_head comes last: with 2.0 it was at 28 and 82 % by step 2,600.
_SHARES = {"words": 3.0, "before": 4.0, "row_head": 4.0, "column_head": 4.0, "blocks": 0.5}
_READ = 0.85  # of small words: before so many are read, nothing is asked about their neighbours
_INK = 0.12  # of a word's ink: a patch with less is not asked what it shows


@dataclass(frozen=True)
class Batch:
    """Partitions (P, 3, TILE, TILE) and what they show.

    words (P, T): the word that a patch shows, or NOTHING, or -1 where it is not asked; in full
    images of large print only. before, row_head, column_head, blocks (P, T): of that word the one
    before it, the heads of its row and column, and its block; -1 where there is none. letters
    (P, T, LETTERS): 0 or 1; -1 in full images. present (P, PRINTED): 0 or 1; of full images, where
    only large print can be read, -1 for all else. printed (P, 4): the share of each quarter's
    patches that show words.
    """

    pixels: Tensor
    words: Tensor
    before: Tensor
    row_head: Tensor
    column_head: Tensor
    blocks: Tensor
    letters: Tensor
    present: Tensor
    printed: Tensor


class Heads(nn.Module):
    """What is asked of CLS after each layer, and of the patches."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.cls = nn.ModuleList(head(network.D, NOTHING + 4) for _ in range(network.layers))
        self.letters = head(network.D, len(LETTERS))
        self.early = head(network.D, NOTHING + 1)
        outputs = dict.fromkeys(("words", *_RELATED), NOTHING)
        outputs |= {"words": NOTHING + 1, "blocks": len(BLOCKS)}
        self.patches = nn.ModuleDict(
            {name: head(network.D, count) for name, count in outputs.items()}
        )


def draw(rng: np.random.Generator, size: tuple[int, int], pictures: int) -> Batch:
    """A batch of pages of one size."""
    pages = [draw_page(rng, size) for _ in range(pictures)]
    return label(pages, partitions(paint(rng, pages), TILE))


def label(pages: list[Page], pixels: Tensor) -> Batch:
    """Pages of one size, with their partitions (B, P, 3, TILE, TILE)."""
    shape = (*pixels.shape[:2], SIDE * SIDE)
    words = np.full(shape, NOTHING)
    words[:, 0] = -1
    related = {name: np.full(shape, -1) for name in _RELATED}
    blocks = np.full(shape, -1)
    letters = np.zeros((*shape, len(LETTERS)), dtype=np.float32)
    letters[:, 0] = -1
    present = np.zeros((*shape[:2], NOTHING), dtype=np.float32)
    printed = np.zeros(shape, dtype=np.float32)
    for b, page in enumerate(pages):
        for word in page.words:
            number = PRINTED.index(word.text)
            for p, t, share in _seen(page, word):
                at = b, p, t
                printed[at] = max(printed[at], share >= _INK)
                if p == 0 and word.block not in LARGE_PRINT:
                    continue
                present[b, p, number] = 1
                if share < _INK:
                    words[at] = -1 if words[at] == NOTHING else words[at]
                    continue
                words[at], blocks[at] = number, BLOCKS.index(word.block)
                for name, labels in related.items():
                    other = getattr(word, name)
                    labels[at] = PRINTED.index(other) if other else -1
            for letter, row, col in _letters(word):
                letters[(b, *_patch(page, row, col))][LETTERS.index(letter)] = 1
            if word.block not in LARGE_PRINT:
                present[b, 0, number] = -1
    half = SIDE // 2
    quarters = printed.reshape(*shape[:2], 2, half, 2, half).mean(axis=(3, 5))
    labels = (words, *related.values(), blocks, letters, present, quarters.reshape(*shape[:2], 4))
    return Batch(pixels.flatten(0, 1), *(torch.from_numpy(each).flatten(0, 1) for each in labels))


def loss(tower: nn.Module, heads: Heads, batch: Batch) -> tuple[Tensor, dict[str, float]]:
    """The loss, and the shares that patches and the feature layer's CLS get right."""
    with torch.autocast(batch.pixels.device.type, torch.bfloat16):
        states = tower(batch.pixels, output_hidden_states=True).hidden_states
    features, told = len(heads.cls) - 2, {}
    seen = states[features + 1][:, 1:].float()
    total = torch.zeros((), device=seen.device)
    numbers = [BLOCKS.index(block) for block in LARGE_PRINT]
    large = torch.isin(batch.blocks, batch.blocks.new_tensor(numbers))
    early = states[features // 2 + 1][:, 1:].float()
    for name, read, tokens in [
        ("words", heads.early, early),
        *((name, read, seen) for name, read in heads.patches.items()),
    ]:
        labels = getattr(batch, name)
        asked = labels >= 0
        logits, labels = read(tokens[asked]), labels[asked]
        weight = torch.where(large[asked], 2.0, 1.0)  # there is little of it
        if name == "words":
            weight[labels == NOTHING] = 0.03
        part = functional.cross_entropy(logits, labels, reduction="none")
        right, printed = logits.argmax(dim=1) == labels, labels != NOTHING
        told[name] = right[printed].float().mean().item()
        if name == "words":
            reading = right[printed & ~large[asked]].float().mean().item()
        if name not in _RELATED or reading > _READ:
            total = total + _SHARES[name] * (part * weight).sum() / weight.sum()
    asked = batch.letters[..., 0] >= 0
    logits = heads.letters(states[2][:, 1:].float()[asked])
    total = total + 20 * functional.binary_cross_entropy_with_logits(logits, batch.letters[asked])
    for number, read in enumerate(heads.cls):
        cls = states[number + 1][:, 0].float()
        if number == len(heads.cls) - 1:
            cls = tower.post_layernorm(cls)
        (logits, quarters), asked = read(cls).split((NOTHING, 4), dim=1), batch.present >= 0
        part = functional.binary_cross_entropy_with_logits(logits[asked], batch.present[asked])
        part = part + functional.binary_cross_entropy_with_logits(quarters, batch.printed)
        total = total + 5 * weight_on_cls(number, features) * part
        if number in (0, features):
            told[f"there {number}"] = (logits[batch.present == 1] > 0).float().mean().item()
            off = (quarters.sigmoid() - batch.printed).abs()
            told[f"off {number}"] = off.mean().item()
    return total, told


def shown(pages: list[Page]) -> Shown:
    """A patch is about its own word, the one before it, the heads of its row and column, and about
    its block; full images are asked where they show large print."""
    layout = layout_of(pages[0].height, pages[0].width, TILE)
    about = torch.zeros(len(pages), layout.partitions, SIDE * SIDE, len(ANSWERS))
    about[:, 0] = -1
    own = torch.full(about.shape[:3], -1)
    for b, page in enumerate(pages):
        for word in page.words:
            words = [word.text, word.block, word.before, word.row_head, word.column_head]
            numbers = [ANSWERS.index(text) for text in words if text]
            for p, t, share in _seen(page, word):
                if share >= _INK and (p or word.block in LARGE_PRINT):
                    at = b, p, t
                    about[at] = 0  # another word's corner may be there
                    about[at][numbers] = 1
                    own[at] = numbers[0]
    return Shown(about.flatten(1, 2), own.flatten(1, 2), readable=len(PRINTED))


def _patch(page: Page, row: int, col: int) -> tuple[int, int]:
    """The sub-image, counted from 1, and the patch in it of a patch of the page."""
    layout = layout_of(page.height, page.width, TILE)
    row, col = row + layout.crop[0], col + layout.crop[2]
    return 1 + row // SIDE * layout.grid[1] + col // SIDE, row % SIDE * SIDE + col % SIDE


def _seen(page: Page, word: Word) -> list[tuple[int, int, float]]:
    """Where a word is to be seen, in its sub-image and in the full image: (partition, patch, share
    of its ink)."""
    there = [(*_patch(page, row, col), share) for row, col, share in _cells(word, 1.0, 1.0)]
    full = _cells(word, TILE / page.height, TILE / page.width)
    return there + [(0, row * SIDE + col, share) for row, col, share in full]


def _cells(word: Word, high: float, wide: float) -> list[tuple[int, int, float]]:
    """Which patches a word covers if its page is so many times as high and wide: (row, col, share
    of its ink)."""
    ink = word.ink
    rows = ((word.top + np.arange(ink.shape[0]) + 0.5) * high // PATCH).astype(int)
    cols = ((word.left + np.arange(ink.shape[1]) + 0.5) * wide // PATCH).astype(int)
    shares = [
        (int(row), int(col), float(ink[rows == row][:, cols == col].sum() / ink.sum()))
        for row in range(rows[0], rows[-1] + 1)
        for col in range(cols[0], cols[-1] + 1)
    ]
    return [cell for cell in shares if cell[2] > 0]


def _letters(word: Word) -> list[tuple[str, int, int]]:
    """Each letter of a word that is not askew, with the row and column of its patch."""
    if word.degrees is not None:
        return []
    row = (word.top + word.ink.shape[0] // 2) // PATCH
    places = fonts.letters(word.text, word.face, word.size)
    return [
        (letter, row, (word.left + x) // PATCH) for letter, x in zip(word.text, places, strict=True)
    ]
