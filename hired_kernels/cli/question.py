# SPDX-License-Identifier: Apache-2.0
"""A question about a picture, answered with all tokens and with fewer, each timed.

The model that comes along has its pictures and questions beside it. It knows the words of these
questions and no others, and says a word an answer.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import StoppingCriteria, StoppingCriteriaList

from ..models.switch import apply_hired, remove_hired
from . import loading
from .checkpoint import Checkpoint, load

FOLDER = Path(__file__).parents[1] / "data" / "evidence"
PICTURE = FOLDER / "scene.png"
DEFAULT = "What is in this picture?"
_FORMS = (
    "which digit stands next to the COLOUR SHAPE?",
    "which colour has the shape next to DIGIT?",
    "which shape stands next to the DIGIT?",
    "how many SHAPE shapes are there?",
)
_LIMIT = 3.0  # seconds after which an answer is not asked for once more


class QuestionError(ValueError):
    """A question that the model does not understand, in one line."""


@dataclass(frozen=True)
class Answer:
    """What the model says with a budget, None for the stock model. `tokens` of the prompt are the
    picture's. Seconds count from the prompt to the first token, `first`, and to the last, `whole`.
    """

    budget: float | int | None
    tokens: int
    text: str
    words: int  # tokens of the answer
    first: float
    whole: float


@dataclass(frozen=True)
class Asked:
    """A question as the model is asked it, the `prompt`, and as people read it, the `text`.

    `right` is the right answer, where it is known. `longest` is what an answer may have, in tokens;
    `stock` says that all tokens are had from the stock model, not from a budget of all.
    """

    text: str
    prompt: str
    longest: int
    right: str | None = None
    stock: bool = True


def asked() -> list[tuple[str, str]]:
    """What can be asked about the picture that comes along, with the right answers."""
    questions = json.loads((FOLDER / "scene.json").read_text())
    return [(question["text"], question["answer"]) for question in questions]


def own(checkpoint: Checkpoint, text: str | None) -> Asked:
    """A question for the model that comes along, its first one if `text` is None.

    Raises QuestionError where it has a word that the model does not know.
    """
    known = dict(asked())
    spaced = next(iter(known)) if text is None else text.lower().replace("?", " ? ")
    words = spaced.split()
    vocabulary = {word for word in checkpoint.processor.tokenizer.get_vocab() if word[0] != "<"}
    strange = [word for word in words if word not in vocabulary]
    if strange or not words:
        what = f"the word {strange[0]!r} is not among those it knows" if strange else "it is empty"
        raise QuestionError(f"{what}; it can be asked: {', '.join(_FORMS)}")
    if words[-1] != "?":
        words.append("?")
    prompt = " ".join(words)
    # It was trained without the stock model's newlines, so all tokens are a budget of all.
    return Asked(
        text=prompt.replace(" ?", "?").capitalize(),
        prompt=f"<s> <image> {prompt}",
        longest=1,
        right=known.get(prompt),
        stock=False,
    )


def general(checkpoint: Checkpoint, text: str | None, longest: int) -> Asked:
    """A question for any other model, in its chat template if it has one."""
    text = DEFAULT if text is None else text
    processor = checkpoint.processor
    if getattr(processor, "chat_template", None):
        content = [{"type": "image"}, {"type": "text", "text": text}]
        turns = [{"role": "user", "content": content}]
        prompt = processor.apply_chat_template(turns, add_generation_prompt=True)
    else:
        prompt = f"USER: {processor.image_token}\n{text} ASSISTANT:"
    return Asked(text, prompt, longest)


def load_own() -> Checkpoint:
    """The model that comes along: on the CPU, for which it is small enough."""
    return load(str(FOLDER), gpu=False)


@torch.inference_mode()
def answers(
    checkpoint: Checkpoint,
    picture: Image.Image,
    question: Asked,
    budgets: Sequence[float | int | None],
    *,
    alpha: float = 0.5,
    policy: str = "exact",
    runs: int = 1,
) -> list[Answer]:
    """One answer for each budget, in turns; of a few runs the fastest counts.

    Model and processor are stock before and after. Raises ValueError as `apply_hired` and the
    operators do.
    """
    found: list[Answer] = []
    start = time.perf_counter()
    with loading.quiet():
        for run in range(runs):
            for number, budget in enumerate(budgets):
                answer = _answer(checkpoint, picture, question, budget, alpha, policy)
                if run == 0:
                    found.append(answer)
                else:
                    found[number] = min(found[number], answer, key=lambda each: each.whole)
            if time.perf_counter() - start > _LIMIT:
                break
    return found


def _answer(
    checkpoint: Checkpoint,
    picture: Image.Image,
    question: Asked,
    budget: float | int | None,
    alpha: float,
    policy: str,
) -> Answer:
    model, processor = checkpoint.model, checkpoint.processor
    if budget is not None:
        apply_hired(model, processor, budget=budget, alpha=alpha, policy=policy)
    try:
        # A chat template writes the beginning itself.
        begun = question.prompt.startswith(processor.tokenizer.bos_token or "\0")
        inputs = processor(
            images=picture,
            text=question.prompt,
            return_tensors="pt",
            add_special_tokens=not begun,
        ).to(model.device, model.dtype)
        length = inputs["input_ids"].shape[1]
        clock = _Clock(model.device)
        output = model.generate(
            **inputs,
            max_new_tokens=question.longest,
            do_sample=False,
            stopping_criteria=StoppingCriteriaList([clock]),
        )
        first, whole = clock.seconds()
    finally:
        remove_hired(model, processor)
    said = output[0, length:]
    text = processor.tokenizer.decode(said, skip_special_tokens=True).strip()
    tokens = int((inputs["input_ids"] == checkpoint.image_token).sum())
    return Answer(budget, tokens, text, len(said), first, whole)


class _Clock(StoppingCriteria):
    """Stops nothing; it is asked after every token, and notes when the first came."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._first: float | None = None
        self._start = self._now()

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        if self._first is None:
            self._first = self._now()
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)

    def seconds(self) -> tuple[float, float]:
        """To the first token, and until now."""
        now = self._now()
        return (now if self._first is None else self._first) - self._start, now - self._start

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()
