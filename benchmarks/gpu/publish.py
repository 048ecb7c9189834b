# SPDX-License-Identifier: Apache-2.0
"""The README's table of a GPU, and a plot, from what `python benchmarks gpu` wrote.

    python benchmarks gpu.publish benchmarks/results/nvidia-h200.json

Writes docs/gpu.svg and what stands in README.md between its two `gpu figures` comments. Every
figure is the file's, with the machine, versions, commit and date it was taken with.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from ..shared import command, report
from ..shared.report import ROOT

BEGIN, END = "<!-- gpu figures -->", "<!-- /gpu figures -->"
BATCHES = (1, 8, 32)
Case = dict[str, Any]


def cases_of(contents: dict[str, Any]) -> list[Case]:
    """float16, 20 % kept, `exact`: what tables and plot show."""
    return [
        case
        for case in contents["cases"]
        if "summary" in case
        and (case["dtype"], case["policy"], case["shape"]["rate"]) == ("float16", "exact", 0.2)
        and case["shape"]["B"] in BATCHES
    ]


def contenders(case: Case) -> Iterator[tuple[str, float]]:
    """Microseconds by name, ours first: by graph replay where a graph can hold it."""

    def best(found: dict[str, Any]) -> float | None:
        times = (found[name]["median_us"] for name in ("graph", "eager") if name in found)
        return next(times, None)

    yield "hired, CUDA", case["timings"]["graph"]["median_us"]
    others = {"hired, Triton": case.get("triton", {}).get("timings", {})}
    others |= case.get("others", {})
    others |= {
        f"{name} ({found['stage']} only)": found for name, found in case.get("peers", {}).items()
    }
    for name, found in others.items():
        if (taken := best(found)) is not None:
            yield name, taken


def machine(contents: dict[str, Any]) -> str:
    e = contents["environment"]
    return (
        f"{e['gpu']}, driver {e['driver']}, CUDA {e['cuda']}, PyTorch {e['torch']}, Triton "
        f"{e['triton']}, {e['date'][:10]}, commit {(e['commit'] or 'unknown')[:7]}"
    )


def table(contents: dict[str, Any]) -> str:
    rows = [("", "pictures", "us", "of a copy's bandwidth", "beside it")]
    for case in cases_of(contents):
        (_, ours), *others = contenders(case)
        beside = "; ".join(
            f"{name} {report.microseconds(us * 1e-6)} ({report.times(us / ours)})"
            for name, us in others
        )
        rows.append((
            f"`{case['operator']}`", str(case["shape"]["B"]), report.microseconds(ours * 1e-6),
            f"{case['summary']['share_of_copy']:.0%}", beside,
        ))  # fmt: skip
    return report.markdown(rows, left=(0, 4))


def figures(contents: dict[str, Any], source: str) -> str:
    """What goes between the README's comments."""
    return "\n".join(
        [
            "One call by graph replay, float16, 20 % kept: medians in microseconds.",
            f"{machine(contents)}; all shapes in [{source}]({source}).",
            "",
            table(contents),
            "",
            "![the same, as bars](docs/gpu.svg)",
        ]
    )


def plot(contents: dict[str, Any]) -> str:
    """Bars for one picture, an operator a group, on a logarithmic axis from 1 us."""
    left, width, height, rows = 300, 460, 22, []
    for case in (case for case in cases_of(contents) if case["shape"]["B"] == 1):
        rows += [(f"{case['operator']}: {name}", us) for name, us in contenders(case)]
    digits = max(1, *(len(str(int(us))) for _, us in rows)) if rows else 1
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 90}" '
        f'height="{height * (len(rows) + 3)}" font-family="sans-serif" font-size="13">',
        '<rect width="100%" height="100%" fill="white"/>',
        '<text x="8" y="16">one picture, microseconds, logarithmic</text>',
        f'<text x="8" y="34" font-size="11">{escape(machine(contents))}</text>',
    ]
    for i, (name, us) in enumerate(rows):
        length = max(1.0, width * math.log10(max(us, 1.0)) / digits)
        y = height * (i + 2) + 4
        colour = "#1b7837" if ": hired, CUDA" in name else "#999999"
        lines.append(f'<text x="8" y="{y + 13}">{escape(name)}</text>')
        lines.append(
            f'<rect x="{left}" y="{y}" width="{length:.1f}" height="{height - 6}" fill="{colour}"/>'
        )
        label = report.microseconds(us * 1e-6)
        lines.append(f'<text x="{left + length + 6:.1f}" y="{y + 13}">{label}</text>')
    return "\n".join([*lines, "</svg>", ""])


def insert(readme: str, text: str) -> str:
    """README with `text` between the comments."""
    pattern = re.compile(f"{BEGIN}.*?{END}", re.DOTALL)
    if len(pattern.findall(readme)) != 1:
        raise ValueError(f"README.md: expected one {BEGIN} ... {END}")
    return pattern.sub(lambda _: f"{BEGIN}\n{text}\n{END}", readme)


def main() -> None:
    parser = command.parser(__doc__)
    parser.add_argument("results", type=Path)
    path = parser.parse_args().results.resolve()
    contents = json.loads(path.read_text())
    readme = ROOT / "README.md"
    source = path.relative_to(ROOT).as_posix()
    readme.write_text(insert(readme.read_text(), figures(contents, source)))
    (ROOT / "docs" / "gpu.svg").write_text(plot(contents))
    print(f"written: README.md and docs/gpu.svg, from {source}")
