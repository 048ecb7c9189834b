# SPDX-License-Identifier: Apache-2.0
"""One picture through the method: `python -m hired_kernels demo`.

A picture is cut up, encoded and selected from; what is kept is counted and timed, beside what the
published code does with the same picture. A model is asked a question, with all tokens and with
the kept ones. All of it is drawn on a card and on a page with a slider for the budget. Without a
picture and a model the demo takes those that come along, small and trained.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from .. import backends
from ..geometry import Layout
from . import card, comparison, ledger, page, question, showing, steps, subjects
from .checkpoint import Checkpoint
from .files import DemoError, first_line, open_picture, page_beside, reason, writable
from .loading import VisionModel
from .question import Answer, Asked
from .steps import Step
from .subjects import Say

_RUNS = 40  # of both answers, at most: the fastest counts
_QUICK = 3.0  # seconds that answers at steps of the slider may take
_SPARSE = 10  # answers at every so many steps are worth having, at fewer not


@dataclass(frozen=True)
class Outcome:
    """What the demo kept, `kept` (P, T) bool, with its ledger, the card at `path` and the page.

    answers: with all tokens and with the kept ones; empty where nothing was asked.
    """

    layout: Layout
    kept: Tensor
    rows: list[ledger.Row]
    stages: list[ledger.Stage]
    steps: list[Step]
    path: Path
    page: Path | None
    answers: list[Answer]


def run(
    image: str | None = None,
    *,
    budget: float | int = 0.2,
    alpha: float = 0.5,
    policy: str = "exact",
    model: str | None = None,
    ask: str | None = None,
    longest: int = 20,
    tower: str | None = None,
    out: str = "out/demo.png",
    html: str | None = None,
    say: Say = print,
) -> Outcome:
    """Run the demo; `say` gets its lines. `budget` is a share (float) or a count (int) of tokens.

    `model` is the folder or hub name of a LLaVA model. It is asked `ask`, or what is in the
    picture, for an answer of `longest` tokens at most; with 0 only the part that sees is loaded.
    Without a model, a `tower` of `subjects.TOWERS` gets random weights; without `image` and
    `tower` too, the trained model that comes along gets its own picture. The card goes to `out`,
    the page to `html` or beside it. Raises DemoError, with one line, for what a user can get wrong.
    """
    path = writable("out", out)
    place = page_beside(path, html)
    own = image is None and model is None and tower is None
    if ask is not None and model is None and not own:
        raise DemoError("question: random weights cannot answer: give --model")
    if ask is not None and model is not None and longest == 0:
        raise DemoError("question: expected an answer of at least 1 token, got 0 new tokens")
    photograph = open_picture(str(question.PICTURE) if own else image)
    origin = "the one that comes along" if own else "the photograph that comes along"
    say(f"picture     {image or origin}, {photograph.width} x {photograph.height} pixels")
    # The small model's work is so little that a second thread is waited for, not helped by.
    with _threads(1 if own else torch.get_num_threads()):
        subject = subjects.find(own, model, ask, longest, tower or "auto", photograph, say)
        layout = _layout(subject.vision, photograph)
        result = _compared(subject.vision, photograph, layout, budget, alpha, policy, say)
        found = steps.of_picture(layout, result.keep, policy, budget)
        shown = showing.Shown(
            photograph,
            subject.vision.colours(result.pixels).numpy(),
            result.kept,
            layout,
            found,
            next(number for number, step in enumerate(found) if step.budget == budget),
            alpha,
            policy,
            subject.title,
            subjects.machine(subject.vision),
            why=subject.why,
        )
        if subject.whole and subject.asked:
            shown = _with_answers(shown, subject.whole, subject.asked, say)
    _write(shown, path, place, say)
    return Outcome(
        layout, result.kept, result.rows, result.stages, found, path, place, list(shown.answers)
    )


def _compared(
    vision: VisionModel,
    photograph: Image.Image,
    layout: Layout,
    budget: float | int,
    alpha: float,
    policy: str,
    say: Say,
) -> comparison.Comparison:
    """Runs both ways, and says where tokens and time went."""
    try:
        tokens = {name: _tokens(layout, budget, name) for name in ("exact", "published")}
        _say_plan(layout, tokens[policy], budget, alpha, policy, vision, say)
        result = comparison.compare(
            vision,
            photograph,
            layout,
            budget=tokens[policy],
            published_budget=tokens["published"],
            alpha=alpha,
            policy=policy,
            progress=_progress,
        )
    except ValueError as error:
        raise DemoError(first_line(error)) from error
    except (MemoryError, RuntimeError) as error:
        raise DemoError(f"model {vision.name}: {first_line(error)}") from error
    _say_ledger(layout, result, alpha, say)
    return result


def _write(shown: showing.Shown, path: Path, place: Path | None, say: Say) -> None:
    drawing = card.draw(shown.card())
    try:
        drawing.save(path, format="PNG")
    except OSError as error:
        raise DemoError(f"out {path}: {reason(error)}") from None
    say(f"drawn       {path}, {drawing.width} x {drawing.height} pixels")
    if place:
        try:
            place.write_text(page.write(shown.page()), encoding="utf-8")
        except OSError as error:
            raise DemoError(f"html {place}: {reason(error)}") from None
        say(f"            {place}, with a slider for the budget")


def _layout(vision: VisionModel, photograph: Image.Image) -> Layout:
    try:
        return vision.layout(photograph.height, photograph.width)
    except Exception as error:
        # A model's pinpoints may be anything.
        raise DemoError(f"model {vision.name}: {first_line(error)}") from error


def _tokens(layout: Layout, budget: float | int, policy: str) -> int:
    return layout.budget(budget, policy) if isinstance(budget, float) else budget


def _say_plan(
    layout: Layout,
    tokens: int,
    budget: float | int,
    alpha: float,
    policy: str,
    vision: VisionModel,
    say: Say,
) -> None:
    R, C = layout.grid
    parts = f"the full image and {R} x {C} sub-images" if R else "the full image alone"
    patches = layout.partitions * layout.tokens
    share = f"{budget:.0%} is " if isinstance(budget, float) else ""
    K = layout.kept(tokens, policy)
    say(f"partitions  {parts}: {patches:,} patches, {layout.valid:,} of them picture")
    say(f"budget      {share}{tokens:,} tokens, alpha {alpha:g}, policy {policy}")
    say(f"            K = {K:,}, known from the picture's size alone")
    say(f"backend     {backends.active(vision.device.type)}")


def _say_ledger(layout: Layout, result: comparison.Comparison, alpha: float, say: Say) -> None:
    tables = ledger.token_lines(layout, result.rows), ledger.stage_lines(result.stages)
    for line in ("", *tables[0], "", *tables[1], ""):
        say(line)
    if result.rows[0].published is None:
        say(
            f"            As published, alpha {alpha:g} divides by zero where tokens are left over."
        )


def _with_answers(shown: showing.Shown, whole: Checkpoint, asked: Asked, say: Say) -> showing.Shown:
    """Asks with all tokens and with the kept ones, and at every step where that is quick."""

    def answers(budgets: Sequence[float | int | None], runs: int) -> list[Answer]:
        return question.answers(
            whole,
            shown.photograph,
            asked,
            budgets,
            alpha=shown.alpha,
            policy=shown.policy,
            runs=runs,
        )

    known = "" if asked.right is None else f" (it is {asked.right})"
    say(f"question    {asked.text}{known}")
    try:
        every, few = answers([None if asked.stock else 1.0, shown.steps[shown.start].budget], _RUNS)
        few = replace(few, tokens=int(shown.kept.sum()))
        at_steps = {shown.start: few}
        stride = max(1, math.ceil(few.whole * len(shown.steps) / _QUICK))
        if stride <= _SPARSE:
            for number in range(stride - 1, len(shown.steps), stride):
                step = shown.steps[number]
                if step.kept.any() and number != shown.start:
                    (answer,) = answers([step.budget], 1)
                    at_steps[number] = replace(answer, tokens=int(step.kept.sum()))
    except ValueError as error:
        raise DemoError(first_line(error)) from error
    except (MemoryError, RuntimeError) as error:
        raise DemoError(f"model {whole.vision.name}: {first_line(error)}") from error
    for name, answer in (("all tokens", every), ("kept tokens", few)):
        took = f"{ledger.duration(answer.first)} to the first token"
        if answer.words > 1:
            took += f", {ledger.duration(answer.whole)} to the last"
        said = " ".join(answer.text.split()) or "(nothing)"
        say(f"            {name}: {said}; {answer.tokens:,} visual tokens, {took}")
    saved = showing.fewer(every.tokens, few.tokens), showing.less(every.first, few.first)
    say(f"            {saved[0]} tokens, {saved[1]} time")
    say("")
    return replace(shown, asked=asked, answers=[every, few], at_steps=at_steps)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """PyTorch with so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _progress(layers: range) -> Iterator[int]:
    """A bar for the tower, where it takes longer than a moment and stderr is a terminal."""
    bar = tqdm(layers, desc="vision tower", unit="layer", delay=2.0, leave=False, disable=None)
    return iter(bar)
