# SPDX-License-Identifier: Apache-2.0
"""The figures of `evaluate.py` as JSON, as tables in docs/evidence.md, and as a plot.

Intervals are 95 %: 1.96 standard errors over pictures, whose four questions are not independent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..shared import report
from ..shared.report import ROOT
from .questions import KINDS

PAGE, PLOT = ROOT / "docs" / "evidence.md", ROOT / "docs" / "evidence.svg"
RESULTS = report.RESULTS / "evidence.json"
SHAPES_OF_PICTURES = {
    "four tiles": lambda size: size == [224, 224],
    "two tiles": lambda size: 112 in size,
    "four tiles, padded": lambda size: size in ([224, 168], [140, 224]),
}
_COLOURS = (
    *("#1f5fbf", "#d1495b", "#6aaed6", "#8d6a9f", "#2a9d5c", "#e08e2b", "#c06c1f", "#e5b35c"),
    *("#c48ab8", "#74c69d", "#7a7a7a", "#b0a160", "#4a4a4a"),
)


def write(cases: list[dict[str, Any]], *, quick: bool) -> None:
    """Print the tables; unless `quick`, write all three files."""
    text = "\n\n".join(markdown(cases))
    print(text)
    if quick:
        return
    method = {"questions": "one of each kind a picture", "interval": "95 %, over pictures"}
    found = {"environment": report.environment(), "method": method, "summary": summary(cases)}
    report.write_json(RESULTS, found, indent=1)
    put("figures", text)
    PLOT.write_text(plot(found["summary"]["all"]))


def put(name: str, text: str) -> None:
    """Put tables between the marks of this name in docs/evidence.md."""
    before, _, rest = PAGE.read_text().partition(f"<!-- {name} -->\n")
    after = rest.partition(f"<!-- end of {name} -->")[2]
    PAGE.write_text(f"{before}<!-- {name} -->\n{text}\n<!-- end of {name} -->{after}")


def summary(cases: list[dict[str, Any]]) -> dict[str, Any]:
    """{"all", kinds, shapes of pictures: {contender: {budget: {accuracy, interval, ...}}}}."""
    parts = {"all": _figures(cases, KINDS)}
    parts |= {kind: _figures(cases, (kind,)) for kind in KINDS}
    for name, fits in SHAPES_OF_PICTURES.items():
        parts[name] = _figures([case for case in cases if fits(case["size"])], KINDS)
    return parts


def markdown(cases: list[dict[str, Any]]) -> list[str]:
    """The tables of docs/evidence.md."""
    parts = summary(cases)
    pictures = next(iter(next(iter(parts["all"].values())).values()))["pictures"]
    seeds = len({case["seed"] for case in cases})

    def plain(figure: dict[str, Any]) -> str:
        return f"{figure['accuracy']:.1%} ± {100 * figure['interval']:.1f}"

    def beside(figure: dict[str, Any]) -> str:
        return f"{100 * figure['to exact']:+.1f} ± {100 * figure['interval to exact']:.1f}"

    said = [
        f"Right answers, {pictures:,} pictures of {seeds} seeds, four questions each:",
        _table(parts["all"], plain),
        "Percentage points to `exact` on the same questions:",
        _table(parts["all"], beside, skip="exact"),
    ]
    for name in (*KINDS, *SHAPES_OF_PICTURES):
        count = next(iter(next(iter(parts[name].values())).values()))["pictures"]
        what = f"Questions for a {name} only" if name in KINDS else f"Pictures of {name} ({count})"
        said += [f"{what}:", _table(parts[name], plain)]
    return said


def plot(figures: dict[str, Any]) -> str:
    """Accuracy over budget, a line for each contender with its interval, as SVG."""
    width, height, left, bottom, right = 820, 460, 60, 50, 190
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


def _figures(cases: Sequence[dict[str, Any]], kinds: Sequence[str]) -> dict[str, Any]:
    """Accuracy and its interval of each contender at each budget, also as paired with `exact`."""
    means: dict[tuple[str, float], list[float]] = {}
    for case in cases:
        matrix = np.array([case["right"][kind] for kind in kinds])
        means.setdefault((case["contender"], case["budget"]), []).extend(matrix.mean(axis=0))
    figures: dict[str, Any] = {}
    for (name, share), values in means.items():
        difference = np.array(values) - np.array(means["exact", share])
        figures.setdefault(name, {})[str(share)] = {
            "accuracy": float(np.mean(values)),
            "interval": _interval(np.array(values)),
            "to exact": float(difference.mean()),
            "interval to exact": _interval(difference),
            "pictures": len(values),
        }
    return figures


def _interval(values: np.ndarray) -> float:
    return float(1.96 * values.std(ddof=1) / len(values) ** 0.5)


def _table(
    figures: dict[str, Any], cell: Callable[[dict[str, Any]], str], skip: str | None = None
) -> str:
    shares = list(next(iter(figures.values())))
    rows = [["", *(f"{float(share):.0%}" for share in shares)]]
    for name, row in figures.items():
        if name != skip:
            rows.append([name, *(cell(row[share]) for share in shares)])
    return report.markdown(rows)
