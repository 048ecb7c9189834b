# SPDX-License-Identifier: Apache-2.0
"""The rule for the default ("Where the default should stand" in docs/evidence.md), carried out.

    python benchmarks evidence.decide      # asks all models; docs/evidence.md

The pictures are new ones: those of the other figures have suggested the candidates.
"""

from __future__ import annotations

from typing import Any

from ..shared import report
from . import evaluate, tables
from .subjects import SEEDS, SUBJECTS
from .tables import DEFAULT, FIFTH

CANDIDATES = ("exact, α = 0.25", "pooled")
FEW = ("0.1", "0.05")
ASKED = evaluate.Asked(
    seeds=tuple(range(100, 105)), names=(DEFAULT, *CANDIDATES), shares=(0.2, 0.1, 0.05)
)


def main() -> None:
    """Ask the models, and write what the rule says into docs/evidence.md and the results."""
    options = evaluate.parser(__doc__).parse_args()
    facts = tables.results()
    rule = facts.setdefault("rule", {"parts": {}, "environments": {}})
    for subject in evaluate.subjects_of(options):
        models = [
            evaluate.ask_model(subject, training, ASKED, options, "-rule")
            for training in options.training
        ]
        cases = [case for cases, _ in models for case in cases]
        rule["parts"][subject.name] = part(cases, subject.kinds)
        rule["environments"][subject.name] = [environment for _, environment in models]
    print(markdown(rule["parts"]))
    if tuple(options.training) == SEEDS:
        rule["decision"] = decision(rule["parts"])
        tables.put("decision", markdown(rule["parts"]))
        report.write_json(tables.RESULTS, facts, indent=1)


def part(cases: tables.Cases, kinds: tuple[str, ...]) -> dict[str, Any]:
    """What the rule looks at, of one subject."""
    return {
        "pictures": len(ASKED.seeds) * ASKED.pictures,
        "models": len({case["training"] for case in cases}),
        "few": tables.figures(cases, kinds, together=FEW),
        "all": tables.figures(cases, kinds),
    }


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


def markdown(parts: dict[str, Any]) -> str:
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
