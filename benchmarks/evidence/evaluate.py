# SPDX-License-Identifier: Apache-2.0
"""Accuracy against budget: which way of choosing K tokens answers most questions right.

    python benchmarks evidence                       # all subjects and seeds: docs/evidence.*
    python benchmarks evidence --subject signs       # one of them: its part of these
    python benchmarks evidence --quick               # a few pictures; prints only

Other numbers of pictures, and some of the seeds of training only, are printed and not written.
Pictures and questions come from seeds that training does not use, and all models of a subject get
the same. The tower runs once a picture; every contender's tokens then go through the same projector
and language model.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..shared import command, report
from . import answering, tables
from . import contenders as field
from . import model as small
from .contenders import CONTENDERS
from .subject import Question, Subject
from .subjects import SEEDS, SUBJECTS
from .successors import SUCCESSORS

BUDGETS = (1.0, 0.6, 0.4, 0.2, 0.1, 0.05)
FIELD = {**CONTENDERS, **SUCCESSORS}
ANSWERS = Path("out/evidence/answers")  # of each model, question by question
PICTURES = 200  # of a seed, a question of each kind about each
_FIRST_SEED = 1000  # training's are below


@dataclass(frozen=True)
class Group:
    """Pictures of one size, and a question of each kind about each; the how-manieth of its seed."""

    number: int
    scenes: list[Any]
    pictures: np.ndarray
    asked: list[list[Question]]


def groups(subject: Subject, seed: int, count: int, batch: int = 20) -> Iterator[Group]:
    """`count` pictures in batches of one size, every size as often as `asked_sizes` says."""
    rng = np.random.default_rng((_FIRST_SEED, seed))
    total, number = sum(subject.asked_sizes.values()), 0
    for size, share in subject.asked_sizes.items():
        left = round(count * share / total)
        while left > 0:
            scenes = [subject.draw_scene(rng, size) for _ in range(min(batch, left))]
            pictures = subject.paint(rng, scenes)
            asked = [subject.ask(rng, scene, 1, subject.kinds) for scene in scenes]
            yield Group(number, scenes, pictures, asked)
            left, number = left - batch, number + 1


@torch.no_grad()
def right(
    model: torch.nn.Module,
    subject: Subject,
    group: Group,
    names: Sequence[str],
    shares: Sequence[float],
    seed: int,
) -> dict[tuple[str, float], np.ndarray]:
    """Which answers are right, (pictures, kinds) bool, of each contender at each budget."""
    seen = field.see(subject, group.pictures, model)
    labels = torch.tensor([[subject.ids[each.answer] for each in row] for row in group.asked])

    project = model.model.multi_modal_projector

    def answered(chosen: field.Kept | Tensor) -> np.ndarray:
        out = torch.empty_like(labels)
        lengths = [len(row) for row in chosen]
        for length in set(lengths):  # the published policy keeps fewer here and there
            rows = [b for b, mine in enumerate(lengths) if mine == length]
            if isinstance(chosen, Tensor):
                projected = project(chosen[rows])
            else:
                index = torch.tensor([chosen[b] for b in rows], dtype=torch.long)
                index = index.view(len(rows), -1, 1).expand(-1, -1, seen.projected.shape[2])
                projected = seen.projected[rows].gather(1, index)
            asked = [group.asked[b] for b in rows]
            out[rows] = answering.answers(model, subject, projected, asked).argmax(dim=2)
        return (out == labels).numpy()

    results = {}
    for share in shares:
        done: list[tuple[field.Kept, np.ndarray]] = []
        for name in names:
            if share == 1.0 and name in SUCCESSORS and "exact" in names:
                results[name, share] = results["exact", share]  # nothing to be left out
                continue
            rng = np.random.default_rng((_FIRST_SEED, seed, group.number))
            chosen = FIELD[name](seen, seen.layout.budget(share), rng)
            if isinstance(chosen, Tensor):
                results[name, share] = answered(chosen)
                continue
            # At 100 % most contenders keep the same.
            same = next((result for other, result in done if other == chosen), None)
            results[name, share] = answered(chosen) if same is None else same
            done.append((chosen, results[name, share]))
    return results


@dataclass(frozen=True)
class Asked:
    """What models are asked: so many pictures of each seed, for these contenders and budgets."""

    seeds: tuple[int, ...] = (0, 1)
    pictures: int = PICTURES
    names: tuple[str, ...] = tuple(FIELD)
    shares: tuple[float, ...] = BUDGETS


def ask_model(
    subject: Subject, training: int, asked: Asked, options: argparse.Namespace, what: str = ""
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """All cases of one model, and where they come from. They lie in a file that has `what` in its
    name; with `options.reuse` they are taken from it if they are of this checkpoint and `asked`."""
    path = ANSWERS / f"{subject.name}-{training}{what}.json"
    folder = checkpoint_of(subject, training)
    weights = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    source = json.loads(json.dumps({"weights": weights, "asked": asdict(asked)}))
    if options.reuse and path.exists():
        kept = json.loads(path.read_text())
        if kept["source"] == source:
            return kept["cases"], kept["environment"]
    batches = [
        (seed, group) for seed in asked.seeds for group in groups(subject, seed, asked.pictures)
    ]
    with ProcessPoolExecutor(options.workers, get_context("spawn")) as pool:
        found = pool.map(partial(_cases, subject.name, folder, asked), batches)
        bar = tqdm(found, desc=f"{subject.name} {training}", unit="batch", total=len(batches))
        cases = [{"training": training, **case} for batch in bar for case in batch]
    environment = {**report.environment(), "model": _training_of(folder)}
    facts = {"environment": environment, "source": source, "cases": cases}
    report.write_json(path, facts, indent=0)
    return cases, environment


def checkpoint_of(subject: Subject, training: int) -> Path:
    """The checkpoint's folder, which has to be there."""
    folder = small.checkpoint(subject.name, training)
    train = f"python benchmarks evidence.train --subject {subject.name} --seed {training}"
    command.require(folder.exists(), f"expected a trained model in {folder}: {train}")
    return folder


def _cases(
    subject: str, folder: Path, asked: Asked, batch: tuple[int, Group]
) -> list[dict[str, Any]]:
    """What every contender gets right in a batch of pictures, as it is written down."""
    torch.set_num_threads(1)
    (seed, group), cases = batch, []
    model = _loaded(folder)
    found = right(model, SUBJECTS[subject], group, asked.names, asked.shares, seed)
    for (name, share), matrix in found.items():
        case = {"seed": seed, "size": list(group.pictures.shape[1:3]), "contender": name}
        case["budget"] = share
        kinds = zip(SUBJECTS[subject].kinds, matrix.T.astype(int).tolist(), strict=True)
        cases.append({**case, "right": dict(kinds)})
    return cases


@cache
def _loaded(folder: Path) -> torch.nn.Module:
    return small.load(folder)


def _training_of(folder: Path) -> dict[str, Any]:
    """How a checkpoint was trained, from its card."""
    facts = json.loads((folder / "card.json").read_text())
    return {key: facts[key] for key in ("seed", "minutes", "machine", "torch", "date")}


def parser(text: str | None) -> argparse.ArgumentParser:
    """What all who ask models can be told."""
    made = command.parser(text)
    made.add_argument("--subject", choices=SUBJECTS, help="(default: all)")
    made.add_argument("--training", type=int, nargs="+", default=SEEDS, help="seeds of training")
    made.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    made.add_argument("--reuse", action="store_true", help=f"answers that lie in {ANSWERS}")
    return made


def subjects_of(options: argparse.Namespace) -> list[Subject]:
    """Those that are asked about, with a checkpoint of each seed of training."""
    subjects = [SUBJECTS[options.subject]] if options.subject else list(SUBJECTS.values())
    for subject in subjects:
        for training in options.training:
            checkpoint_of(subject, training)
    return subjects


def main() -> None:
    """Evaluate, and write docs/evidence.md, its plots, and the figures as JSON."""
    made = parser(__doc__)
    made.add_argument("--seeds", type=int, default=2, help="of pictures")
    made.add_argument("--pictures", type=int, default=PICTURES, help="of a seed")
    made.add_argument("--quick", action="store_true", help="one seed of 40 pictures; prints only")
    options = made.parse_args()
    asked = Asked(tuple(range(options.seeds)), options.pictures)
    if options.quick:
        options.training, asked = options.training[:1], Asked((0,), 40)
    whole = tuple(options.training) == SEEDS and asked == Asked()
    what = "" if whole else "-some"
    found = {
        subject.name: [
            ask_model(subject, training, asked, options, what) for training in options.training
        ]
        for subject in subjects_of(options)
    }
    tables.write(found, keep=whole)
