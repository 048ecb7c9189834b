# SPDX-License-Identifier: Apache-2.0
"""The figures as Markdown, plots and JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..shared import command, report
from ..shared.report import ROOT
from .intervals import half_width
from .subjects import SUBJECTS

PAGE = ROOT / "docs" / "evidence.md"
RESULTS = report.RESULTS / "evidence.json"
DEFAULT, FIFTH = "exact", "0.2"
# Who else is compared with whom, on the same questions.
RIVALS = (
    *((name, "pooled") for name in ("VisionZip", "DivPrune", "SCOPE", "VisPruner")),
    ("patches, 1 in 4", "all patches"),
    ("patches, 1 in 16", "patches, 1 in 4"),
    ("mean query", "all patches"),
    ("pooled, 1 in 4", "patches, 1 in 4"),
)
_COLOURS = (
    *("#1f5fbf", "#d1495b", "#6aaed6", "#8d6a9f", "#2a9d5c", "#e08e2b", "#c06c1f", "#e5b35c"),
    *("#c48ab8", "#74c69d", "#7a7a7a", "#b0a160", "#4a4a4a", "#0b7a75", "#7b2d26", "#3d348b"),
    *("#5f7a1f", "#b5179e"),
)
Cases = list[dict[str, Any]]


def write(found: dict[str, list[tuple[Cases, dict[str, Any]]]], *, keep: bool) -> None:
    """Print the tables of each subject's cases, which come with their environments, one pair a
    model; with `keep` write all files."""
    facts = results()
    for name, models in found.items():
        part = summary(name, [case for cases, _ in models for case in cases])
        text = "\n\n".join(markdown(name, part))
        print(f"{name}\n\n{text}")
        environments = [environment for _, environment in models]
        facts["subjects"][name] = {"environments": environments, "summary": part}
        if keep:
            put(name, text)
            (ROOT / "docs" / f"evidence-{name}.svg").write_text(plot(part["all"]))
    if keep:
        facts["method"] = {
            "questions": "one of each kind a picture, the same for all models of a subject",
            "interval": "95 %, over pictures and training seeds: two-way, random, Satterthwaite",
        }
        report.write_json(RESULTS, facts, indent=1)


def results() -> dict[str, Any]:
    """What there is of benchmarks/results/evidence.json."""
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {"subjects": {}}


def put(name: str, text: str) -> None:
    """Put tables between the marks of this name in docs/evidence.md."""
    begin, end, page = f"<!-- {name} -->\n", f"<!-- end of {name} -->", PAGE.read_text()
    found = page.count(begin) == page.count(end) == 1
    command.require(found, f"expected {begin.strip()} and {end} once in {PAGE}")
    before, rest = page.split(begin)
    PAGE.write_text(f"{before}{begin}{text}\n{end}{rest.split(end)[1]}")


def shape_of(subject: str, size: Sequence[int]) -> str:
    """How a picture is cut, in words."""
    layout = SUBJECTS[subject].layout(*size)
    whole = (layout.valid - layout.tokens) == (layout.partitions - 1) * layout.tokens
    count = {2: "two", 4: "four"}[layout.partitions - 1]
    return f"{count} tiles" + ("" if whole else ", padded")


def summary(subject: str, cases: Cases) -> dict[str, Any]:
    """{"pictures": how many, and for "all", each kind of question and each shape of pictures:
    {contender: {budget: {accuracy, interval, to exact, interval to exact}}}, and for "rivals"
    {"one - another": {budget: {points, interval}}}}."""
    kinds = SUBJECTS[subject].kinds
    parts: dict[str, Any] = {"all": figures(cases, kinds), "rivals": rivals(cases, kinds)}
    parts |= {kind: figures(cases, (kind,)) for kind in kinds}
    shapes = [shape_of(subject, case["size"]) for case in cases]
    for shape in dict.fromkeys(shapes):
        chosen = [case for case, its in zip(cases, shapes, strict=True) if its == shape]
        parts[shape] = figures(chosen, kinds)
    one = [case for case in cases if (case["contender"], case["budget"]) == (DEFAULT, 1.0)]
    pictures = {
        shape: sum(
            len(case["right"][kinds[0]])
            for case in one
            if shape_of(subject, case["size"]) == shape and case["training"] == one[0]["training"]
        )
        for shape in dict.fromkeys(shapes)
    }
    models = len({case["training"] for case in cases})
    return {"pictures": pictures, "models": models, **parts}


def markdown(subject: str, parts: dict[str, Any]) -> list[str]:
    """The tables of one subject."""
    kinds, pictures = SUBJECTS[subject].kinds, parts["pictures"]
    shares = list(parts["all"][DEFAULT])
    percent = [f"{float(share):.0%}" for share in shares]
    asked = (
        f"{sum(pictures.values()):,} pictures, a question of each kind, models of "
        f"{parts['models']} training seeds"
    )
    said = [
        f"Right answers, {asked}:",
        _table(parts, [("all", share) for share in shares], percent, plain),
        "Percentage points to `exact` on the same questions:",
        _table(parts, [("all", share) for share in shares], percent, beside, skip=DEFAULT),
    ]
    between = [[name, *map(points, row.values())] for name, row in parts["rivals"].items()]
    said += ["Percentage points between others:", report.markdown([["", *percent], *between])]
    shapes = [f"{shape} ({count})" for shape, count in pictures.items()]
    columns = [(name, FIFTH) for name in (*kinds, *pictures)]
    said += [
        "At 20 % by kinds of questions and shapes of pictures:",
        _table(parts, columns, [*kinds, *shapes], plain),
    ]
    return said


def plain(figure: dict[str, Any]) -> str:
    return f"{figure['accuracy']:.1%} ± {100 * figure['interval']:.1f}"


def beside(figure: dict[str, Any]) -> str:
    return f"{100 * figure['to exact']:+.1f} ± {100 * figure['interval to exact']:.1f}"


def points(figure: dict[str, Any]) -> str:
    return f"{100 * figure['points']:+.1f} ± {100 * figure['interval']:.1f}"


def plot(rows: dict[str, Any]) -> str:
    """Accuracy over budget, a line for each contender with its interval, as SVG."""
    width, height, left, bottom, right = 840, 500, 60, 50, 190
    budgets = sorted(float(share) for share in next(iter(rows.values())))
    low, high = np.log(budgets[0]), np.log(budgets[-1])

    def x(share: float) -> float:
        return left + (np.log(share) - low) / (high - low) * (width - left - right)

    def y(accuracy: float) -> float:
        return height - bottom - accuracy * (height - bottom - 30)

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="13">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for tenth in range(0, 11, 2):
        lines.append(
            f'<line x1="{left}" x2="{width - right}" y1="{y(tenth / 10):.1f}" '
            f'y2="{y(tenth / 10):.1f}" stroke="#ddd"/><text x="{left - 8}" '
            f'y="{y(tenth / 10) + 4:.1f}" text-anchor="end">{10 * tenth} %</text>'
        )
    for share in budgets:
        lines.append(
            f'<text x="{x(share):.1f}" y="{height - bottom + 20}" '
            f'text-anchor="middle">{share:.0%}</text>'
        )
    lines.append(
        f'<text x="{(left + width - right) / 2}" y="{height - 10}" text-anchor="middle">'
        "tokens kept, of those that are not padding</text>"
        f'<text x="{left}" y="18">right answers</text>'
    )
    for number, (name, row) in enumerate(rows.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        points = [(x(share), row[str(share)]) for share in budgets]
        path = " ".join(f"{at:.1f},{y(figure['accuracy']):.1f}" for at, figure in points)
        stroke = 2.6 if name == "exact" else 1.5
        lines.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{stroke}"/>'
        )
        for at, figure in points:
            top = y(min(1, figure["accuracy"] + figure["interval"]))
            end = y(max(0, figure["accuracy"] - figure["interval"]))
            lines.append(
                f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{top:.1f}" y2="{end:.1f}" '
                f'stroke="{colour}"/>'
            )
        place = 60 + 22 * number
        lines.append(
            f'<rect x="{width - right + 18}" y="{place - 9}" width="16" height="4" '
            f'fill="{colour}"/><text x="{width - right + 42}" y="{place - 2}">{name}</text>'
        )
    return "\n".join([*lines, "</svg>\n"])


def figures(
    cases: Cases, kinds: Sequence[str], together: tuple[str, ...] | None = None
) -> dict[str, Any]:
    """Accuracy and its interval of each contender at each budget, also as paired with the default;
    or of some budgets `together`."""
    values = _values(cases, kinds)
    if together is not None:
        values = {
            (name, "together"): np.mean([values[name, share] for share in together], axis=0)
            for name in dict.fromkeys(name for name, _ in values)
        }
    found: dict[str, Any] = {}
    for (name, share), mine in values.items():
        difference = mine - values[DEFAULT, share]
        found.setdefault(name, {})[share] = {
            "accuracy": round(float(mine.mean()), 5),
            "interval": round(half_width(mine), 5),
            "to exact": round(float(difference.mean()), 5),
            "interval to exact": round(half_width(difference), 5),
        }
    return found


def rivals(cases: Cases, kinds: Sequence[str]) -> dict[str, Any]:
    """What one of RIVALS is ahead of the other, at each budget."""
    values, found = _values(cases, kinds), {}
    for one, other in RIVALS:
        found[f"{one} - {other}"] = row = {}
        for share in dict.fromkeys(share for _, share in values):
            difference = values[one, share] - values[other, share]
            mean, interval = float(difference.mean()), half_width(difference)
            row[share] = {"points": round(mean, 5), "interval": round(interval, 5)}
    return found


def _values(cases: Cases, kinds: Sequence[str]) -> dict[tuple[str, str], np.ndarray]:
    """The share of right answers of each contender and budget, (models, pictures)."""
    means: dict[tuple[str, str], dict[int, list[np.ndarray]]] = {}
    for case in cases:
        matrix = np.array([case["right"][kind] for kind in kinds])
        mine = means.setdefault((case["contender"], str(case["budget"])), {})
        mine.setdefault(case["training"], []).append(matrix.mean(axis=0))
    return {
        key: np.stack([np.concatenate(rows) for rows in mine.values()])
        for key, mine in means.items()
    }


def _table(
    parts: dict[str, Any],
    columns: Sequence[tuple[str, str]],
    heads: Sequence[str],
    cell: Callable[[dict[str, Any]], str],
    skip: str | None = None,
) -> str:
    """A row for each contender, a column for each (part, budget)."""
    rows = [["", *heads]]
    for name in parts["all"]:
        if name != skip:
            rows.append([name, *(cell(parts[part][name][share]) for part, share in columns)])
    return report.markdown(rows)
