# SPDX-License-Identifier: Apache-2.0
"""The checkpoint, with its card and the demo's picture beside it."""

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
from .pictures import draw_scene, paint
from .questions import KINDS, Question, ask_all

HELD_OUT_SEED, HELD_OUT = 99, 400  # pictures that neither training nor evaluate.py sees
DEMO_SEED = 11  # chosen for four signs, and a first question that the model answers right


def write(model: nn.Module, options: argparse.Namespace, minutes: float) -> None:
    """Save the checkpoint to `options.out`, and what it is worth on held-out pictures."""
    options.out.mkdir(parents=True, exist_ok=True)
    small.save(model, options.out)
    environment = report.environment()
    facts = {
        "seed": options.seed,
        "tower_steps": options.tower_steps,
        "answer_steps": options.answer_steps,
        "short_steps": options.short_steps,
        "pictures_a_step": options.pictures,
        "questions_a_picture": options.questions * len(KINDS),
        "minutes": round(minutes, 1),
        "machine": f"{environment['cpu']}, {options.threads} thread(s) of {os.cpu_count()} cores",
        "torch": environment["torch"],
        "date": environment["date"],
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "tower": {"width": small.D, "layers": small.LAYERS, "heads": small.HEADS},
        "language_model": {"width": small.TEXT_D, "layers": small.TEXT_LAYERS},
        "accuracy": accuracy(small.load(options.out)),
        "held_out_pictures": HELD_OUT,
    }
    report.write_json(options.out / "card.json", facts, indent=1)
    (options.out / "README.md").write_text(text(facts))
    picture, questions = demo_picture()
    Image.fromarray(picture).save(options.out / "scene.png", optimize=True)
    asked = [{"text": question.text, "answer": question.answer} for question in questions]
    report.write_json(options.out / "scene.json", asked, indent=1)
    print(text(facts))


def accuracy(model: nn.Module) -> dict[str, float]:
    """The share of questions answered right with all tokens, by kind and of all."""
    found = [
        evaluate.right(model, group, ["exact"], [1.0], HELD_OUT_SEED)["exact", 1.0]
        for group in evaluate.groups(HELD_OUT_SEED, HELD_OUT)
    ]
    matrix = np.concatenate(found)
    kinds = dict(zip(KINDS, matrix.mean(axis=0).round(4).tolist(), strict=True))
    return {**kinds, "all": round(float(matrix.mean()), 4)}


def demo_picture() -> tuple[np.ndarray, list[Question]]:
    """The picture that `python -m hired_kernels demo` shows, and all questions that it answers."""
    rng = np.random.default_rng(DEMO_SEED)
    scene = draw_scene(rng, (224, 224))
    return paint(rng, [scene])[0], ask_all(scene)


def text(facts: dict[str, Any]) -> str:
    """The card."""
    right = facts["accuracy"]
    kinds = "\n".join(f"| {kind} questions | {right[kind]:.1%} |" for kind in KINDS)
    return f"""# A small LLaVA-NeXT that looks closely

A `LlavaNextForConditionalGeneration` of {facts["parameters"] / 1e6:.2f} million parameters, float16,
trained by this project on pictures that it draws (`benchmarks/evidence/`), and on nothing else. It is
there to find out which visual tokens a model needs, and for the demo; it knows no photographs.

| | |
|---|---|
| tower | CLIP with CLS: {facts["tower"]["layers"]} layers of width {facts["tower"]["width"]}, {facts["tower"]["heads"]} heads, tiles of 112 pixels, patches of 14 (T = 64); feature layer -2 |
| language model | Llama: {facts["language_model"]["layers"]} layers of width {facts["language_model"]["width"]}, a word a token |
| data | grey, cluttered pictures of 112 to 336 pixels a side with 1 to 6 coloured shapes, a digit of 5 x 7 pixels beside each; questions for digit, colour, shape and count. Drawn anew in every step |
| stage 1 | the tower: CLS has to tell what is in a tile, after every layer; the feature layer's patches what they show and what stands beside. {facts["tower_steps"]:,} steps of {facts["pictures_a_step"]} pictures |
| stage 2 | projector and language model over the frozen tower, from patches to words and from questions to answers: {facts["answer_steps"]:,} steps of {facts["pictures_a_step"]} pictures, {facts["questions_a_picture"]} questions each. The first {facts["short_steps"]:,} with the patches that show signs and a few random others; then half with all tokens, half with a random share of them, uniformly drawn |
| seed | {facts["seed"]} |
| took | {facts["minutes"]:.0f} minutes, {facts["machine"]}, PyTorch {facts["torch"]}, {facts["date"][:10]} |

Right answers with all tokens, {facts["held_out_pictures"]} held-out pictures, a question of each kind:

| | |
|---|---:|
{kinds}
| all | {right["all"]:.1%} |

`scene.png` is one of its pictures, for the demo, chosen for a first question in `scene.json` that is
answered right with all tokens and with 20 %: an illustration; the figures are in docs/evidence.md. `make train-evidence` makes
all of this again. Licence: Apache-2.0, as the rest.
"""
