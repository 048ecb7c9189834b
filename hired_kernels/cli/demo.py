# SPDX-License-Identifier: Apache-2.0
"""One picture through the method: `python -m hired_kernels demo`.

A picture is cut up, encoded and selected from; what is kept is counted, timed and drawn, each
beside what the published code does with the same picture. Without a picture and a model the demo
takes those that come along, small and trained, and asks a question with all tokens and with those
that are kept. A photograph without a model goes through random weights, which choose at random.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from .. import backends, geometry
from ..geometry import Layout
from . import comparison, ledger, loading, picture, question
from .loading import ModelError, VisionModel
from .photograph import upright
from .question import Answer
from .terminal import one_line

PHOTOGRAPH = Path(__file__).parents[1] / "data" / "photograph.jpg"
TOWERS = ("auto", *loading.TOWERS)
_LEAST_TILE = 336  # pixels a side of a partition in the drawing, where they can be had
_PATIENCE = 30.0  # seconds: a random tower that would take longer gives way to the small one

Say = Callable[[str], None]


class DemoError(Exception):
    """What stands in the way of the demo, in one line."""


@dataclass(frozen=True)
class Outcome:
    """What the demo kept, `kept` (P, T) bool, with its ledger, and the drawing at `path`.

    answers: of the model that comes along, with all tokens and with the kept ones; else empty.
    """

    layout: Layout
    kept: Tensor
    rows: list[ledger.Row]
    stages: list[ledger.Stage]
    path: Path
    answers: list[Answer]


def run(
    image: str | None = None,
    *,
    budget: float | int = 0.2,
    alpha: float = 0.5,
    policy: str = "exact",
    model: str | None = None,
    tower: str | None = None,
    out: str = "out/demo.png",
    say: Say = print,
) -> Outcome:
    """Run the demo; `say` gets its lines. `budget` is a share (float) or a count (int) of tokens.

    `model` is a LLaVA-NeXT or LLaVA folder or hub name. Without one, a `tower` of TOWERS gets
    random weights; without `image` and `tower` too, the trained model that comes along gets its own
    picture. Raises DemoError, with one line, for what a user can get wrong.
    """
    path = _writable(out)
    own = image is None and model is None and tower is None
    photograph = open_picture(str(question.PICTURE) if own else image)
    origin = "the one that comes along" if own else "the photograph that comes along"
    say(f"picture     {image or origin}, {photograph.width} x {photograph.height} pixels")
    if own:
        vision = loading.load_model(str(question.FOLDER))
        say("model       a small LLaVA-NeXT that comes along, trained on such pictures")
    else:
        vision = _vision_model(model, tower or "auto", photograph, say)
    layout = _layout(vision, photograph)
    try:
        tokens = {name: _tokens(layout, budget, name) for name in ("exact", "published")}
        _say_plan(layout, tokens[policy], budget, alpha, policy, say)
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
        raise DemoError(_first_line(error)) from error
    _say_ledger(layout, result, alpha, say)
    answers = _ask(photograph, budget, alpha, policy, say) if own else []
    drawing = picture.draw(
        _enlarged(vision.colours(result.pixels).numpy()),
        result.kept.numpy(),
        layout,
        _footer(layout, result.kept, vision, alpha, policy),
    )
    try:
        drawing.save(path, format="PNG")
    except OSError as error:
        raise DemoError(f"out {path}: {_reason(error)}") from None
    say(f"drawn       {path}, {drawing.width} x {drawing.height} pixels")
    return Outcome(layout, result.kept, result.rows, result.stages, path, answers)


def open_picture(path: str | None) -> Image.Image:
    """The picture at `path`, or the one that comes along, upright and in RGB."""
    try:
        with Image.open(PHOTOGRAPH if path is None else path) as file:
            return upright(file)
    except FileNotFoundError:
        raise DemoError(f"picture {path}: no such file") from None
    except IsADirectoryError:
        raise DemoError(f"picture {path}: expected a file, got a folder") from None
    except PermissionError:
        raise DemoError(f"picture {path}: not allowed to read it") from None
    except Exception as error:
        # Decoders raise what they like, SyntaxError and struct.error among it.
        raise DemoError(f"picture {path}: {_reason(error)}") from error


def _writable(out: str) -> Path:
    """Its path, if a file can be written there: found out before the tower runs, not after."""
    if not out:
        raise DemoError("out: expected a file name, got ''")
    path = Path(out)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        existed = path.exists()
        if path.is_fifo():
            raise DemoError(f"out {path}: expected a file, got a pipe")
        with path.open("ab"):
            pass
        if not existed:
            path.unlink()
    except FileExistsError:
        raise DemoError(f"out {path}: expected a folder, got a file: {path.parent}") from None
    except (OSError, ValueError) as error:
        raise DemoError(f"out {path}: {_reason(error)}") from None
    return path


def _vision_model(model: str | None, tower: str, photograph: Image.Image, say: Say) -> VisionModel:
    if model is not None:
        say(f"model       {model}")
        try:
            return loading.load_model(model)
        except ModelError as error:
            raise DemoError(str(error)) from error
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
    say("            Random weights choose at random: this shows how the method works and what it")
    say("            costs, not what a trained model would keep. For that, give --model.")
    return vision


def _layout(vision: VisionModel, photograph: Image.Image) -> Layout:
    try:
        return vision.layout(photograph.height, photograph.width)
    except Exception as error:
        # A model's pinpoints may be anything.
        raise DemoError(f"model {vision.name}: {_first_line(error)}") from error


def _tokens(layout: Layout, budget: float | int, policy: str) -> int:
    return layout.budget(budget, policy) if isinstance(budget, float) else budget


def _say_plan(
    layout: Layout, tokens: int, budget: float | int, alpha: float, policy: str, say: Say
) -> None:
    R, C = layout.grid
    parts = f"the full image and {R} x {C} sub-images" if R else "the full image alone"
    patches = layout.partitions * layout.tokens
    share = f"{budget:.0%} is " if isinstance(budget, float) else ""
    K = layout.kept(tokens, policy)
    say(f"partitions  {parts}: {patches:,} patches, {layout.valid:,} of them picture")
    say(f"budget      {share}{tokens:,} tokens, alpha {alpha:g}, policy {policy}")
    say(f"            K = {K:,}, known from the picture's size alone")
    say(f"backend     {backends.active('cpu')}")


def _say_ledger(layout: Layout, result: comparison.Comparison, alpha: float, say: Say) -> None:
    tables = ledger.token_lines(layout, result.rows), ledger.stage_lines(result.stages)
    for line in ("", *tables[0], "", *tables[1], ""):
        say(line)
    if result.rows[0].published is None:
        say(
            f"            As published, alpha {alpha:g} divides by zero where tokens are left over."
        )


def _ask(
    photograph: Image.Image, budget: float | int, alpha: float, policy: str, say: Say
) -> list[Answer]:
    """Put the first question to the model that comes along, with all tokens and with the budget."""
    (text, right), *_ = question.asked()
    try:
        found = question.answers(photograph, text, [1.0, budget], alpha=alpha, policy=policy)
    except ValueError as error:
        raise DemoError(_first_line(error)) from error
    say(f"question    {text.replace(' ?', '?')} (it is {right})")
    for name, answer in zip(("all tokens", "kept tokens"), found, strict=True):
        took = f"{answer.tokens:,} of the picture's tokens, {1e3 * answer.seconds:.1f} ms"
        say(f"            {name}: {answer.word}, {took}")
    say("")
    return found


def _enlarged(partitions: np.ndarray) -> np.ndarray:
    """Small partitions, (P, tile, tile, 3), a whole number of times as large: to be seen."""
    times = max(1, _LEAST_TILE // partitions.shape[1])
    return partitions.repeat(times, axis=1).repeat(times, axis=2)


def _footer(
    layout: Layout, kept: Tensor, vision: VisionModel, alpha: float, policy: str
) -> tuple[str, str]:
    count = int(kept.sum())
    said = f"{count:,} of {layout.valid:,} tokens, {count / layout.valid:.0%}"
    weights = (
        "random weights choose at random" if vision.random else one_line(Path(vision.name).name)
    )
    if vision.name == str(question.FOLDER):
        weights = "the small trained model that comes along"
    return f"{said}, policy {policy}, alpha {alpha:g}", weights


def _progress(layers: range) -> Iterator[int]:
    """A bar for the tower, where it takes longer than a moment and stderr is a terminal."""
    bar = tqdm(layers, desc="vision tower", unit="layer", delay=2.0, leave=False, disable=None)
    return iter(bar)


def _reason(error: Exception) -> str:
    """What the system says of an error of its own, without the file's name; else its first line."""
    return getattr(error, "strerror", None) or _first_line(error)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
