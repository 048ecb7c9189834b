# SPDX-License-Identifier: Apache-2.0
"""A checkpoint, with its card, and the demo's picture beside the one that comes along."""

# ruff: noqa: E501 (a table of the card is a line each)

from __future__ import annotations

import argparse
import os
from typing import Any

import numpy as np
from PIL import Image
from torch import nn

from ..shared import report
from . import evaluate
from . import model as small
from .signs.pictures import draw_scene, paint
from .signs.questions import ask_all
from .subject import Question, Subject

HELD_OUT_SEED, HELD_OUT = 99, 400  # about so many pictures, which nothing else sees
DEMO_SEED = 11  # chosen for four signs, and a first question that the model answers right
_DATA = {
    "signs": "grey, cluttered pictures of 112 to 336 pixels a side with 1 to 6 coloured shapes, a digit of 5 x 7 pixels beside each; questions for digit, colour, shape and count",
    "pages": "pages of print of 168 to 336 pixels a side with headings, paragraphs, tables and stamps, 60 words and 20 numbers in four fonts of 12 to 25 pixels; questions for the word to the right of another, for a table's cell, for the column in which a number stands, and for what is printed large",
}
_LESSONS = {
    "signs": "CLS has to tell what is in a tile, after every layer; the feature layer's patches what they show and what stands beside",
    "pages": "CLS has to tell which words are in a tile, and how much of each quarter is print, after every layer; the feature layer's patches which word they show, which stand before it and at the head of its row and column, and in what block; the second layer's which letters",
}


def write(model: nn.Module, subject: Subject, options: argparse.Namespace, minutes: float) -> None:
    """Save the checkpoint to `options.out`, and what it is worth on held-out pictures."""
    options.out.mkdir(parents=True, exist_ok=True)
    small.save(model, subject, options.out)
    environment = report.environment(options.device)
    network = subject.networks[options.size]
    processor = report.processor(environment)
    facts = {
        "subject": subject.name,
        "seed": options.seed,
        "tower_steps": options.tower_steps,
        "answer_steps": options.answer_steps,
        "short_steps": options.short_steps,
        "few_steps": options.few_steps,
        "pictures_a_step": options.pictures,
        "questions_a_picture": options.questions * len(subject.kinds),
        "minutes": round(minutes, 1),
        "machine": f"{processor}, {options.threads} thread(s) of {os.cpu_count()} cores",
        "torch": environment["torch"],
        "date": environment["date"],
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "tower": {"width": network.D, "layers": network.layers, "heads": network.heads},
        "language_model": {"width": network.text_D, "layers": network.text_layers},
    }
    facts["accuracy"], facts["held_out_pictures"] = accuracy(small.load(options.out), subject)
    report.write_json(options.out / "card.json", facts, indent=1)
    (options.out / "README.md").write_text(text(facts, subject))
    if options.out == small.checkpoint("signs", 1):
        picture, questions = demo_picture()
        Image.fromarray(picture).save(options.out / "scene.png", optimize=True)
        asked = [{"text": question.text, "answer": question.answer} for question in questions]
        report.write_json(options.out / "scene.json", asked, indent=1)
    print(text(facts, subject))


def accuracy(model: nn.Module, subject: Subject) -> tuple[dict[str, float], int]:
    """The share of questions answered right with all tokens, by kind and of all; of how many
    pictures."""
    found = [
        evaluate.right(model, subject, group, ["exact"], [1.0], HELD_OUT_SEED)["exact", 1.0]
        for group in evaluate.groups(subject, HELD_OUT_SEED, HELD_OUT)
    ]
    matrix = np.concatenate(found)
    kinds = dict(zip(subject.kinds, matrix.mean(axis=0).round(4).tolist(), strict=True))
    return {**kinds, "all": round(float(matrix.mean()), 4)}, len(matrix)


def demo_picture() -> tuple[np.ndarray, list[Question]]:
    """The picture that `python -m hired_kernels demo` shows, and all questions that it answers."""
    rng = np.random.default_rng(DEMO_SEED)
    scene = draw_scene(rng, (224, 224))
    return paint(rng, [scene])[0], ask_all(scene)


def text(facts: dict[str, Any], subject: Subject) -> str:
    """The card."""
    right = facts["accuracy"]
    kinds = "\n".join(f"| {kind} questions | {right[kind]:.1%} |" for kind in subject.kinds)
    T, few = subject.side**2, facts.get("few_steps")
    simple = f", the first {few:,} of these about pictures with little on them" if few else ""
    card = f"""# A small LLaVA-NeXT that looks closely: {subject.name}

A `LlavaNextForConditionalGeneration` of {facts["parameters"] / 1e6:.2f} million parameters, float16,
trained by this project on pictures that it draws (`benchmarks/evidence/`), and on nothing else. It is
there to find out which visual tokens a model needs; it knows no photographs.

| | |
|---|---|
| tower | CLIP with CLS: {facts["tower"]["layers"]} layers of width {facts["tower"]["width"]}, {facts["tower"]["heads"]} heads, tiles of {subject.tile} pixels, patches of 14 (T = {T}); feature layer -2 |
| language model | Llama: {facts["language_model"]["layers"]} layers of width {facts["language_model"]["width"]}, a word a token |
| data | {_DATA[subject.name]}. Drawn anew in every step |
| stage 1 | the tower: {_LESSONS[subject.name]}. {facts["tower_steps"]:,} steps of {facts["pictures_a_step"]} pictures |
| stage 2 | projector and language model over the frozen tower, from patches to words and from questions to answers: {facts["answer_steps"]:,} steps of {facts["pictures_a_step"]} pictures, {facts["questions_a_picture"]} questions each. The first {facts["short_steps"]:,} with the patches that show something and a few random others{simple}; then half with all tokens, half with a random share of them, uniformly drawn |
| seed | {facts["seed"]} |
| took | {facts["minutes"]:.0f} minutes, {facts["machine"]}, PyTorch {facts["torch"]}, {facts["date"][:10]} |

Right answers with all tokens, {facts["held_out_pictures"]} held-out pictures, a question of each kind:

| | |
|---|---:|
{kinds}
| all | {right["all"]:.1%} |

"""
    if (subject.name, facts["seed"]) == ("signs", 1):
        card += """`scene.png` is one of its pictures, for the demo, chosen for a first question in `scene.json` that is
answered right with all tokens and with 20 %: an illustration; the figures are in docs/evidence.md. """
    return (
        card
        + """`make train-evidence` makes all of this again. Licence: Apache-2.0, as the rest.
"""
    )
