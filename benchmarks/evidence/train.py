# SPDX-License-Identifier: Apache-2.0
"""Trains a model of the evidence: the tower first, then the whole of it.

    python benchmarks evidence.train                              # signs, seed 1: 20 minutes
    python benchmarks evidence.train --subject pages --seed 2
    python benchmarks evidence.train --size large --device cuda   # a larger one, on a GPU
    python benchmarks evidence.train --help

Both stages write a checkpoint into `--work` every minute, and a run that finds one there goes on
from it. What a step sees depends on the seed and its number alone.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ..shared import command
from . import answering, card
from . import model as small
from .subject import Stage, Subject, moved
from .subjects import SUBJECTS

Loss = tuple[Tensor, dict[str, float]]
_RATE = 1e-3  # of learning, at its height
_EVERY = 60.0  # seconds between checkpoints


def main() -> None:
    """Train, and save the checkpoint with what its card says."""
    parser = command.parser(__doc__)
    parser.add_argument("--subject", choices=SUBJECTS, default="signs")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--size", choices=("small", "large"), default="small")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tower-steps", type=int, help="(default: the subject's)")
    parser.add_argument("--answer-steps", type=int, help="(default: the subject's)")
    parser.add_argument("--short-steps", type=int, help="the first of these")
    parser.add_argument("--few-steps", type=int, help="the first of these again")
    parser.add_argument("--pictures", type=int, help="of a step (default: the subject's)")
    parser.add_argument("--questions", type=int, help="of each kind about a picture")
    parser.add_argument("--work", type=Path, help="(default: out/evidence/SUBJECT-SIZE-SEED)")
    parser.add_argument("--out", type=Path, help="the checkpoint (default: where it is looked for)")
    parser.add_argument("--threads", type=int, default=1, help="more gain little here")
    parser.add_argument("--drawers", type=int, help="processes that draw (default: 8 for a GPU)")
    options = parser.parse_args()
    subject = SUBJECTS[options.subject]
    complete(options, subject)
    torch.set_num_threads(options.threads)
    options.work.mkdir(parents=True, exist_ok=True)
    model = small.build(subject, options.seed, options.size).to(options.device)
    # The backward pass of PyTorch's fused attention takes half of a tower's step on a CPU.
    model.set_attn_implementation("eager" if options.device == "cpu" else "sdpa")
    minutes = train_tower(model, subject, options) + train_answers(model, subject, options)
    card.write(model.to("cpu"), subject, options, minutes)


def complete(options: argparse.Namespace, subject: Subject) -> None:
    """Fill in what the subject says of its training, and where things go."""
    tower, answer = subject.tower_stage, subject.answer_stage
    for name, value in {
        "tower_steps": tower.steps,
        "answer_steps": answer.steps,
        "short_steps": answer.short,
        "few_steps": answer.few,
        "pictures": answer.pictures,
        "questions": answer.questions,
    }.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    if options.drawers is None:
        options.drawers = 0 if options.device == "cpu" else 8
    name = f"{subject.name}-{options.size}-{options.seed}"
    options.work = options.work or Path("out/evidence") / name
    if options.out is None:
        small_one = options.size == "small"
        place = small.checkpoint(subject.name, options.seed)
        options.out = place if small_one else options.work / "checkpoint"


def train_tower(model: nn.Module, subject: Subject, options: argparse.Namespace) -> float:
    """Stage 1; returns its minutes."""
    tower = model.model.vision_tower
    heads = subject.heads(subject.networks[options.size]).to(model.device)

    def draw(number: int) -> Any:
        rng = np.random.default_rng((options.seed, 1, number))
        return subject.draw_lesson(rng, subject.draw_size(rng), options.pictures)

    def loss(batch: Any) -> Loss:
        return subject.lesson(tower, heads, moved(batch, model.device))

    parts = nn.ModuleDict({"tower": tower, "heads": heads})
    return _run("tower", parts, draw, loss, options.tower_steps, subject.tower_stage, options)


def train_answers(
    model: nn.Module,
    subject: Subject,
    options: argparse.Namespace,
    original: bool = False,
    name: str = "answers",
) -> float:
    """Stage 2, at first with short prompts; returns its minutes. `original` goes to
    `answering.loss`, checkpoints are called `name`."""
    model.model.vision_tower.requires_grad_(False)
    parts = nn.ModuleDict(
        {
            "projector": model.model.multi_modal_projector,
            "language_model": model.model.language_model,
            "head": model.lm_head,
        }
    )

    def draw(number: int) -> answering.Lesson:
        rng = np.random.default_rng((options.seed, 2, number))
        how = {"short": number < options.short_steps, "few": number < options.few_steps}
        return answering.draw(subject, rng, options.pictures, options.questions, **how)

    def loss(lesson: answering.Lesson) -> Loss:
        return answering.loss(model, subject, lesson, original=original)

    return _run(name, parts, draw, loss, options.answer_steps, subject.answer_stage, options)


class _Lessons(Dataset):
    """What each step learns from, by its number."""

    def __init__(self, draw: Callable[[int], Any]) -> None:
        self.draw = draw

    def __getitem__(self, number: int) -> Any:
        return self.draw(number)


def _run(
    name: str,
    module: nn.Module,
    draw: Callable[[int], Any],
    loss_of: Callable[[Any], Loss],
    steps: int,
    stage: Stage,
    options: argparse.Namespace,
) -> float:
    """Take `steps` steps from where the last run stopped; returns the minutes of all runs."""
    parameters = [weight for weight in module.parameters() if weight.requires_grad]
    naming = [weight for key, weight in module.named_parameters() if _names(key)]
    groups = [{"params": naming, "rate": stage.naming * _RATE}] if naming else []
    others = [weight for weight in parameters if all(weight is not each for each in naming)]
    groups.append({"params": others, "rate": _RATE})
    optimizer = torch.optim.AdamW(groups, lr=_RATE, betas=(0.9, 0.98), weight_decay=0.02)
    path, first, minutes, told = options.work / f"{name}.pt", 0, 0.0, {}
    if path.exists():
        state = torch.load(path, map_location=parameters[0].device)
        module.load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])
        first, minutes = state["step"], state["minutes"]
    start = saved = time.monotonic()
    lessons = DataLoader(
        _Lessons(draw),
        batch_size=None,
        sampler=range(first, steps),
        num_workers=options.drawers,
        multiprocessing_context="fork" if options.drawers else None,
    )
    bar = tqdm(lessons, desc=name, initial=first, total=steps, mininterval=5)
    module.train()
    for number, lesson in enumerate(bar, first):
        for group in optimizer.param_groups:
            group["lr"] = group["rate"] * _schedule(number, steps, stage.warm)
        loss, now = loss_of(lesson)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        for key, value in {"loss": loss.item(), **now}.items():
            if math.isfinite(value):
                told[key] = value + 0.98 * (told.get(key, value) - value)
        bar.set_postfix({key: f"{value:.3f}" for key, value in told.items()}, refresh=False)
        if time.monotonic() - saved > _EVERY or number + 1 == steps:
            saved = time.monotonic()
            spent = minutes + (saved - start) / 60
            state = {"module": module.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save({**state, "step": number + 1, "minutes": spent}, path.with_suffix(".new"))
            path.with_suffix(".new").replace(path)
            with path.with_suffix(".log").open("a") as log:
                log.write(
                    json.dumps({"step": number + 1, "minutes": round(spent, 2), **told}) + "\n"
                )
    module.eval()
    return minutes + (time.monotonic() - start) / 60


def _names(key: str) -> bool:
    """Whether a weight is of the projector, or embeds words."""
    return key.startswith(("projector.", "head.")) or "embed_tokens" in key


def _schedule(number: int, steps: int, warm: int) -> float:
    """The share of the learning rate: up over `warm` steps, then down to a fiftieth as a cosine."""
    return min(1, (number + 1) / warm) * (0.51 + 0.49 * math.cos(math.pi * number / steps))
