# SPDX-License-Identifier: Apache-2.0
"""A question about a picture, answered with all tokens and with fewer, each timed.

For the model that comes along, whose pictures and questions lie beside it; its language model says
a word an answer.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoProcessor, LlavaNextForConditionalGeneration

from ..models.switch import apply_hired
from .loading import quiet

FOLDER = Path(__file__).parents[1] / "data" / "evidence"
PICTURE = FOLDER / "scene.png"
_RUNS = 5


@dataclass(frozen=True)
class Answer:
    """What the model says with a budget: `tokens` of the prompt are the picture's."""

    budget: float | int
    tokens: int
    word: str
    seconds: float


def asked() -> list[tuple[str, str]]:
    """What can be asked about the picture that comes along, with the right answers."""
    questions = json.loads((FOLDER / "scene.json").read_text())
    return [(question["text"], question["answer"]) for question in questions]


@torch.inference_mode()
def answers(
    picture: Image.Image,
    text: str,
    budgets: Sequence[float | int],
    *,
    alpha: float = 0.5,
    policy: str = "exact",
) -> list[Answer]:
    """One answer for each budget, by the model that comes along; the fastest of a few runs counts.

    Raises ValueError as `apply_hired` and the operators do.
    """
    with quiet():
        model = LlavaNextForConditionalGeneration.from_pretrained(FOLDER, dtype=torch.float32)
        processor = AutoProcessor.from_pretrained(FOLDER, backend="pil")
    model.eval()
    found = []
    for budget in budgets:
        # All tokens go the same way: the model was trained without the stock model's newlines.
        apply_hired(model, processor, budget=budget, alpha=alpha, policy=policy)
        inputs = processor(images=picture, text=f"<s> <image> {text}", return_tensors="pt")
        tokens = int((inputs["input_ids"] == model.config.image_token_index).sum())
        fastest = float("inf")
        for _ in range(_RUNS):
            start = time.perf_counter()
            output = model.generate(**inputs, max_new_tokens=1, do_sample=False)
            fastest = min(fastest, time.perf_counter() - start)
        word = processor.tokenizer.decode(output[0, -1:])
        found.append(Answer(budget, tokens, word, fastest))
    return found
