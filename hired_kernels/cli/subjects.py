# SPDX-License-Identifier: Apache-2.0
"""What the demo looks with, and whom it asks: the model that comes along, one that is named, or a
tower with random weights, which cannot answer."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from .. import geometry
from . import checkpoint, info, loading, question
from .checkpoint import Checkpoint
from .files import DemoError, first_line
from .loading import ModelError, VisionModel
from .question import Asked, QuestionError

TOWERS = ("auto", *loading.TOWERS)
_PATIENCE = 30.0  # seconds: a random tower that would take longer gives way to the small one

Say = Callable[[str], None]


@dataclass(frozen=True)
class Subject:
    """A model and what it is asked; `whole` is None where it only sees, `why` then says why."""

    vision: VisionModel
    whole: Checkpoint | None
    asked: Asked | None
    title: str
    why: str = ""


def find(
    own: bool,
    model: str | None,
    ask: str | None,
    longest: int,
    tower: str,
    photograph: Image.Image,
    say: Say,
) -> Subject:
    """The demo's model: its `own`, `model` or a random `tower`. `say` is told of it.

    Raises DemoError, with one line, for whatever goes wrong.
    """
    try:
        if own:
            title = "A small LLaVA-NeXT, trained on such pictures"
            say(f"model       {title[0].lower()}{title[1:]}; it comes along")
            whole = question.load_own()
            return Subject(whole.vision, whole, question.own(whole, ask), title)
        if model is None:
            vision = random_tower(tower, photograph, say)
            why = "Random weights choose at random, and cannot answer: no question was asked."
            return Subject(vision, None, None, f"{vision.name}, random weights", why)
        title = Path(model).name if Path(model).is_dir() else model
        say(f"model       {model}")
        if longest == 0:
            vision = loading.load_model(model)
            return Subject(vision, None, None, title, "No question was asked.")
        whole = checkpoint.load(model)
        say(f"            on {whole.vision.device}, {str(whole.model.dtype).rpartition('.')[2]}")
        return Subject(whole.vision, whole, question.general(whole, ask, longest), title)
    except ModelError as error:
        raise DemoError(str(error)) from error
    except QuestionError as error:
        raise DemoError(f"question: {error}") from error
    except Exception as error:
        # A chat template is a program of somebody else's.
        raise DemoError(f"model {model}: {first_line(error)}") from error


def random_tower(tower: str, photograph: Image.Image, say: Say) -> VisionModel:
    """One of TOWERS; "auto" is the large one, or the small one where that would take too long."""
    size = tower
    if tower == "auto":
        size = "large"
        partitions = geometry.layout(photograph.height, photograph.width).partitions
        expected = loading.seconds_for("large", partitions)
        if expected > _PATIENCE:
            size = "small"
            say(f"tower       the large one would take {expected:.0f} s here, so a smaller one")
    vision = loading.random_model(size)
    say(f"model       {vision.name}, random weights")
    say("            Random weights choose at random. What a trained model keeps: --model")
    return vision


def machine(vision: VisionModel) -> str:
    """What the times were measured on."""
    if vision.device.type == "cuda":
        return torch.cuda.get_device_name(vision.device)
    threads = torch.get_num_threads()
    name = re.sub(r"\((R|TM)\)", "", info.cpu_name())
    return f"{name}, {threads} thread{'s' * (threads != 1)}"
