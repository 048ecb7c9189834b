# SPDX-License-Identifier: Apache-2.0
"""The figures as Markdown, plots and JSON, and what the rule for the default makes of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..shared import report
from ..shared.report import ROOT
from .intervals import half_width
from .subjects import SEEDS, SUBJECTS

PAGE = ROOT / "docs" / "evidence.md"
RESULTS = report.RESULTS / "evidence.json"
DEFAULT, CANDIDATES = "exact", ("exact, α = 0.25", "pooled")
FEW, FIFTH = ("0.1", "0.05"), "0.2"  # the budgets that the rule for the default looks at
_COLOURS = (
    *("#1f5fbf", "#d1495b", "#6aaed6", "#8d6a9f", "#2a9d5c", "#e08e2b", "#c06c1f", "#e5b35c"),
    *("#c48ab8", "#74c69d", "#7a7a7a", "#b0a160", "#4a4a4a", "#0b7a75", "#7b2d26", "#3d348b"),
    *("#5f7a1f", "#b5179e"),
)
Cases = list[dict[str, Any]]


def write(found: dict[str, Cases], *, keep: bool) -> None:
    """Print the tables of each subject's cases; with `keep` write all files."""
    facts = json.loads(RESULTS.read_text()) if keep and RESULTS.exists() else {"subjects": {}}
    for name, cases in found.items():
        part = summary(name, cases)
        text = "\n\n".join(markdown(name, part))
        print(f"{name}\n\n{text}")
        facts["subjects"][name] = {"environment": report.environment(), "summary": part}
        if keep:
            put(name, text)
            (ROOT / "docs" / f"evidence-{name}.svg").write_text(plot(part["all"]))
    parts = {name: each["summary"] for name, each in facts["subjects"].items()}
    if keep:
        facts["method"] = {
            "questions": "one of each kind a picture, the same for all models of a subject",
            "interval": "95 %, over pictures and training seeds: two-way, random, Satterthwaite",
        }
        facts["decision"] = decision(parts)
        report.write_json(RESULTS, facts, indent=1)
        put("decision", decided(parts))
    else:
        print(decided(parts))


def put(name: str, text: str) -> None:
    """Put tables between the marks of this name in docs/evidence.md."""
    before, _, rest = PAGE.read_text().partition(f"<!-- {name} -->\n")
    after = rest.partition(f"<!-- end of {name} -->")[2]
    PAGE.write_text(f"{before}<!-- {name} -->\n{text}\n<!-- end of {name} -->{after}")


def shape_of(subject: str, size: Sequence[int]) -> str:
    """How a picture is cut, in words."""
    layout = SUBJECTS[subject].layout(*size)
    whole = (layout.valid - layout.tokens) == (layout.partitions - 1) * layout.tokens
    count = {2: "two", 4: "four"}[layout.partitions - 1]
    return f"{count} tiles" + ("" if whole else ", padded")


def summary(subject: str, cases: Cases) -> dict[str, Any]:
    """{"pictures": how many, and for "all", each kind of question and each shape of pictures:
    {contender: {budget: {accuracy, interval, to exact, interval to exact}}}}."""
    kinds = SUBJECTS[subject].kinds
    parts: dict[str, Any] = {"all": _figures(cases, kinds)}
    parts["few"] = _figures(cases, kinds, together=tuple(float(share) for share in FEW))
    parts |= {kind: _figures(cases, (kind,)) for kind in kinds}
    shapes = [shape_of(subject, case["size"]) for case in cases]
    for shape in dict.fromkeys(shapes):
        chosen = [case for case, its in zip(cases, shapes, strict=True) if its == shape]
        parts[shape] = _figures(chosen, kinds)
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
    shapes = [f"{shape} ({count})" for shape, count in pictures.items()]
    columns = [(name, FIFTH) for name in (*kinds, *pictures)]
    said += [
        "At 20 % by kinds of questions and shapes of pictures:",
        _table(parts, columns, [*kinds, *shapes], plain),
    ]
    return said


def decision(parts: dict[str, Any]) -> dict[str, Any]:
    """What the rule in docs/evidence.md makes of the figures: for each candidate and subject
    whether the default loses to it, and which default there is below 20 %; None where a subject or
    a seed of training is missing."""
    found: dict[str, Any] = {}
    for candidate in CANDIDATES:
        found[candidate] = {}
        for subject, part in parts.items():
            few = part["few"][candidate]["together"]
            fifth = part["all"][candidate][FIFTH]
            gains = few["to exact"] - few["interval to exact"] > 0
            keeps = fifth["to exact"] + fifth["interval to exact"] >= 0
            found[candidate][subject] = {
                "below 20 %": [few["to exact"], few["interval to exact"]],
                "at 20 %": [fifth["to exact"], fifth["interval to exact"]],
                "the default loses": gains and keeps,
            }
    beaten = {
        candidate: min(each["below 20 %"][0] for each in subjects.values())
        for candidate, subjects in found.items()
        if all(each["the default loses"] for each in subjects.values())
    }
    winner = max(beaten, key=lambda name: beaten[name]) if beaten else DEFAULT
    whole = all(name in parts and parts[name]["models"] == len(SEEDS) for name in SUBJECTS)
    return {"candidates": found, "default below 20 %": winner if whole else None}


def decided(parts: dict[str, Any]) -> str:
    """The same as a table."""
    found = decision(parts)
    rows = [["candidate", "pictures", "10 and 5 %", "20 %", "the default loses"]]
    for candidate, subjects in found["candidates"].items():
        for subject, each in subjects.items():
            points = [
                f"{100 * each[where][0]:+.1f} ± {100 * each[where][1]:.1f}"
                for where in ("below 20 %", "at 20 %")
            ]
            verdict = "yes" if each["the default loses"] else "no"
            rows.append([candidate, subject, *points, verdict])
    text = report.markdown(rows, left=(0, 1, 4))
    default = found["default below 20 %"]
    verdict = f"the default below 20 % is `{default}`" if default else "nothing is decided yet"
    return f"{text}\n\nBy the rule {verdict}."


def plain(figure: dict[str, Any]) -> str:
    return f"{figure['accuracy']:.1%} ± {100 * figure['interval']:.1f}"


def beside(figure: dict[str, Any]) -> str:
    return f"{100 * figure['to exact']:+.1f} ± {100 * figure['interval to exact']:.1f}"


def plot(figures: dict[str, Any]) -> str:
    """Accuracy over budget, a line for each contender with its interval, as SVG."""
    width, height, left, bottom, right = 840, 500, 60, 50, 190
    budgets = sorted(float(share) for share in next(iter(figures.values())))
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
    for number, (name, row) in enumerate(figures.items()):
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


def _figures(
    cases: Cases, kinds: Sequence[str], together: tuple[float, ...] | None = None
) -> dict[str, Any]:
    """Accuracy and its interval of each contender at each budget, also as paired with the default;
    or of some budgets `together`."""
    means: dict[tuple[str, str], dict[int, list[np.ndarray]]] = {}
    for case in cases:
        matrix = np.array([case["right"][kind] for kind in kinds])
        mine = means.setdefault((case["contender"], str(case["budget"])), {})
        mine.setdefault(case["training"], []).append(matrix.mean(axis=0))
    values = {
        key: np.stack([np.concatenate(rows) for rows in mine.values()])
        for key, mine in means.items()
    }
    if together is not None:
        values = {
            (name, "together"): np.mean([values[name, str(share)] for share in together], axis=0)
            for name in dict.fromkeys(name for name, _ in values)
        }
    figures: dict[str, Any] = {}
    for (name, share), mine in values.items():
        difference = mine - values[DEFAULT, share]
        figures.setdefault(name, {})[share] = {
            "accuracy": round(float(mine.mean()), 5),
            "interval": round(half_width(mine), 5),
            "to exact": round(float(difference.mean()), 5),
            "interval to exact": round(half_width(difference), 5),
        }
    return figures


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
