# SPDX-License-Identifier: Apache-2.0
"""Trains the model of the evidence: the tower first, then the whole of it.

    python benchmarks evidence.train           # about 20 minutes on a core
    python benchmarks evidence.train --help

Both stages write a checkpoint into `--work` every minute, and a run that finds one there goes on
from it. What a step sees depends on the seed and its number alone.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..shared import command
from . import answering, card, seeing
from . import model as small
from .questions import KINDS

_EVERY = 60.0  # seconds between checkpoints


def main() -> None:
    """Train, and save the checkpoint with what its card says."""
    parser = command.parser(__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tower-steps", type=int, default=1400)
    parser.add_argument("--answer-steps", type=int, default=2200)
    parser.add_argument("--short-steps", type=int, default=1600, help="the first of these")
    parser.add_argument("--pictures", type=int, default=12, help="of a step (default: %(default)s)")
    parser.add_argument("--questions", type=int, default=3, help="of each kind about a picture")
    parser.add_argument("--work", type=Path, default=Path("out/evidence"))
    parser.add_argument("--out", type=Path, default=small.CHECKPOINT, help="the checkpoint")
    parser.add_argument("--threads", type=int, default=1, help="more gain little here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.work.mkdir(parents=True, exist_ok=True)
    model = small.build(options.seed)
    minutes = train_tower(model, options) + train_answers(model, options)
    card.write(model, options, minutes)


def train_tower(model: nn.Module, options: argparse.Namespace) -> float:
    """Stage 1; returns its minutes."""
    tower = model.model.vision_tower
    heads = seeing.Heads(small.D, small.LAYERS)

    def step(number: int) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng((options.seed, 1, number))
        batch = seeing.draw(rng, options.pictures, most=10)
        return seeing.loss(tower, heads, batch)

    parts = nn.ModuleDict({"tower": tower, "heads": heads})
    return _run("tower", parts, step, options.tower_steps, 1e-3, options.work)


def train_answers(
    model: nn.Module,
    options: argparse.Namespace,
    kinds: Sequence[str] = KINDS,
    original: bool = False,
    name: str = "answers",
) -> float:
    """Stage 2, at first with short prompts; returns its minutes. `kinds` and `original` go to
    `answering.loss`, checkpoints are called `name`."""
    model.model.vision_tower.requires_grad_(False)
    parts = nn.ModuleDict(
        {
            "projector": model.model.multi_modal_projector,
            "language_model": model.model.language_model,
            "head": model.lm_head,
        }
    )

    def step(number: int) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng((options.seed, 2, number))
        short = number < options.short_steps
        asked = {"short": short, "kinds": kinds, "original": original}
        return answering.loss(model, rng, options.pictures, options.questions, **asked)

    return _run(name, parts, step, options.answer_steps, 1e-3, options.work)


def _run(
    name: str,
    module: nn.Module,
    step: Callable[[int], tuple[Tensor, dict[str, float]]],
    steps: int,
    rate: float,
    work: Path,
) -> float:
    """Take `steps` steps from where the last run stopped; returns the minutes of all runs."""
    parameters = [weight for weight in module.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.98), weight_decay=0.02)
    path, first, minutes, told = work / f"{name}.pt", 0, 0.0, {}
    if path.exists():
        state = torch.load(path)
        module.load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])
        first, minutes = state["step"], state["minutes"]
    start = saved = time.monotonic()
    bar = tqdm(range(first, steps), desc=name, initial=first, total=steps, mininterval=5)
    module.train()
    for number in bar:
        for group in optimizer.param_groups:
            group["lr"] = rate * _schedule(number, steps)
        loss, now = step(number)
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


def _schedule(number: int, steps: int) -> float:
    """The share of the learning rate: up over 200 steps, then down to a fiftieth as a cosine."""
    return min(1, (number + 1) / 200) * (0.51 + 0.49 * math.cos(math.pi * number / steps))
