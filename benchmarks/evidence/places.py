# SPDX-License-Identifier: Apache-2.0
"""Where something is: positions of kept tokens, renumbered or those of the whole prompt.

    python benchmarks evidence.places           # 40 minutes on two cores; docs/evidence.md
    python benchmarks evidence.places --quick   # a few steps and pictures; prints only

Two language models are trained over the tower of the checkpoint that comes along, alike but for the
positions of the tokens that are left where some are missing: `kept`, one after the other, or
`original`. Both learn a fifth kind of question: in which quarter of the picture a sign stands. Each
is then asked with both, at each budget. Training goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..shared import command, report
from . import answering, tables, train
from . import contenders as field
from . import model as small
from .contenders import CONTENDERS
from .evaluate import BUDGETS, Group, groups
from .signs import SUBJECT
from .signs.questions import WITH_PLACE, WORDS_WITH_PLACE

ASKED = dataclasses.replace(SUBJECT, name="places", kinds=WITH_PLACE, words=WORDS_WITH_PLACE)
POSITIONS = ("kept", "original")
POLICIES = ("exact", "pooled")
RESULTS = report.RESULTS / "positions.json"


def main() -> None:
    """Train both, ask both, and write the figures as JSON and into docs/evidence.md."""
    parser = command.parser(__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--answer-steps", type=int, default=3200)
    parser.add_argument("--short-steps", type=int, default=1600, help="the first of these")
    parser.add_argument("--pictures", type=int, default=12, help="of a step (default: %(default)s)")
    parser.add_argument("--questions", type=int, default=3, help="of each kind about a picture")
    parser.add_argument("--work", type=Path, default=Path("out/evidence-places"))
    parser.add_argument("--threads", type=int, default=1, help="of each of the two processes")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--asked", type=int, default=200, help="pictures of a seed")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    options.drawers = options.few_steps = 0
    if options.quick:
        options.answer_steps, options.short_steps, options.pictures = 4, 2, 2
        options.seeds, options.asked, options.work = 1, 12, options.work / "quick"
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        found = list(pool.map(partial(_trained_and_asked, options), POSITIONS))
    minutes = {name: spent for name, (spent, _) in zip(POSITIONS, found, strict=True)}
    cases = [case for _, asked in found for case in asked]
    text = markdown(cases)
    print(text)
    if options.quick:
        return
    method = {
        "questions": "one of each kind a picture",
        "interval": "95 %, over pictures",
        "training": {
            "steps": options.answer_steps,
            "short steps": options.short_steps,
            "seed": options.seed,
            "minutes": {name: round(spent, 1) for name, spent in minutes.items()},
        },
    }
    facts = {"environment": report.environment(), "method": method, "cases": cases}
    report.write_json(RESULTS, facts, indent=1)
    tables.put("positions", text)


def _trained_and_asked(
    options: argparse.Namespace, positions: str
) -> tuple[float, list[dict[str, Any]]]:
    """Train one model; minutes, and what it answers right with either positions."""
    torch.set_num_threads(options.threads)
    model = small.build(ASKED, options.seed)
    tower = small.load(small.checkpoint("signs", 1)).model.vision_tower
    model.model.vision_tower.load_state_dict(tower.state_dict())
    options.work.mkdir(parents=True, exist_ok=True)
    original = positions == "original"
    minutes = train.train_answers(model, ASKED, options, original=original, name=positions)
    cases = []
    for seed in range(options.seeds):
        for group in groups(ASKED, seed, options.asked):
            cases += _asked(model.eval(), group, seed, positions)
    return minutes, _merged(cases)


@torch.no_grad()
def _asked(model: nn.Module, group: Group, seed: int, trained: str) -> list[dict[str, Any]]:
    """How many answers are right in a batch of pictures, by kind."""
    seen = field.see(ASKED, group.pictures, model)
    order = answering.raster_order(*group.pictures.shape[1:3], ASKED.tile)
    place = torch.empty(seen.tokens.shape[1], dtype=torch.long).index_copy(
        0, order, torch.arange(len(order))
    )
    labels = torch.tensor([[ASKED.ids[each.answer] for each in row] for row in group.asked])
    cases = []
    for share in BUDGETS:
        for policy in POLICIES:
            rng = np.random.default_rng(seed)
            kept = torch.tensor(CONTENDERS[policy](seen, seen.layout.budget(share), rng))
            places = kept[..., None].expand(-1, -1, seen.projected.shape[2])
            chosen = seen.projected.gather(1, places)
            for positions in POSITIONS:
                places = (place[kept], len(order)) if positions == "original" else None
                right = _right(model, chosen, group, places, labels)
                cases.append(
                    {
                        "trained": trained,
                        "asked": positions,
                        "policy": policy,
                        "budget": share,
                        "right": dict(zip(WITH_PLACE, right.T.tolist(), strict=True)),
                    }
                )
    return cases


def _right(
    model: nn.Module,
    chosen: Tensor,
    group: Group,
    places: tuple[Tensor, int] | None,
    labels: Tensor,
) -> Tensor:
    """Which answers are right, (pictures, kinds) 0 or 1."""
    logits = answering.answers(model, ASKED, chosen, group.asked, places)
    return (logits.argmax(dim=2) == labels).long()


def _merged(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The cases of all batches together: accuracy and interval of each kind."""
    together: dict[tuple, dict[str, list[int]]] = {}
    for case in cases:
        key = case["trained"], case["asked"], case["policy"], case["budget"]
        mine = together.setdefault(key, {kind: [] for kind in WITH_PLACE})
        for kind, right in case["right"].items():
            mine[kind] += right
    merged = []
    for (trained, asked, policy, budget), kinds in together.items():
        figures = {}
        others = np.mean([kinds[kind] for kind in WITH_PLACE if kind != "place"], axis=0)
        for name, right in [("place", np.array(kinds["place"])), ("others", others)]:
            spread = 1.96 * right.std(ddof=1) / len(right) ** 0.5
            figures[name] = {"accuracy": round(float(right.mean()), 4)}
            figures[name]["interval"] = round(float(spread), 4)
        facts = {"trained": trained, "asked": asked, "policy": policy, "budget": budget}
        merged.append({**facts, "pictures": len(others), **figures})
    return merged


def markdown(cases: list[dict[str, Any]]) -> str:
    """The tables of docs/evidence.md: a row for each model and its positions, for each policy."""
    said = []
    for kind, title in (("place", "Where is it?"), ("others", "All other questions.")):
        said.append(f"{title} Right answers, {cases[0]['pictures']:,} pictures:")
        rows = [
            "| trained with | asked with | policy | "
            + " | ".join(f"{budget:.0%}" for budget in BUDGETS)
            + " |"
        ]
        rows.append("|---|---|---|" + "---:|" * len(BUDGETS))
        for policy in POLICIES:
            for trained in POSITIONS:
                for asked in POSITIONS:
                    mine = {
                        case["budget"]: case[kind]
                        for case in cases
                        if (case["trained"], case["asked"], case["policy"])
                        == (trained, asked, policy)
                    }
                    cells = (
                        f"{mine[b]['accuracy']:.1%} ± {100 * mine[b]['interval']:.1f}"
                        for b in BUDGETS
                    )
                    rows.append(f"| {trained} | {asked} | {policy} | " + " | ".join(cells) + " |")
        said.append("\n".join(rows))
    return "\n\n".join(said)


if __name__ == "__main__":
    main()
