# SPDX-License-Identifier: Apache-2.0
"""From a results file to the README: every figure lands where it belongs, and nothing else moves.

The figures here are made up, and stay here.
"""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from benchmarks.gpu import publish


def case(operator: str, B: int, us: float, **more: object) -> dict:
    return {
        "operator": operator, "dtype": "float16", "policy": "exact",
        "shape": {"B": B, "rate": 0.2}, "timings": {"graph": {"median_us": us}},
        "summary": {"share_of_copy": 0.83}, **more,
    }  # fmt: skip


CONTENTS = {
    "environment": {
        "gpu": "Some GPU", "driver": "1.2", "cuda": "13.0", "torch": "2.11", "triton": "3.6",
        "date": "2030-01-02T03:04:05", "commit": "0123456789",
    },
    "cases": [
        case(
            "select", 1, 4.0,
            triton={"timings": {"graph": {"median_us": 6.0}, "eager": {"median_us": 60.0}}},
            others={
                "published method": {"eager": {"median_us": 2000.0}},
                "torch, compiled": {"failed": "a reason"},
            },
            peers={"torch.topk": {"stage": "choose", "graph": {"median_us": 12.0}}},
        ),
        case("select", 2, 5.0),
        {**case("select_qk", 1, 7.0), "dtype": "float32"},
        {"operator": "select_qk", "wrong": "tokens", "dtype": "float16", "shape": {"B": 1}},
    ],
}  # fmt: skip


def test_the_table_has_the_cases_and_figures_of_the_file() -> None:
    _, _, *rows = publish.table(CONTENTS).splitlines()
    assert rows == [
        "| `select` | 1 | 4.0 | 83% | hired, Triton 6.0 (1.50x); published method 2,000 (500x); "
        "torch.topk (choose only) 12.0 (3.0x) |"
    ]


def test_figures_say_where_they_were_taken() -> None:
    text = publish.figures(CONTENTS, "benchmarks/results/some-gpu.json")
    for part in ("Some GPU", "driver 1.2", "2030-01-02", "commit 0123456", "some-gpu.json"):
        assert part in text


def test_only_what_stands_between_the_comments_changes() -> None:
    readme = f"before\n{publish.BEGIN}\nold\n{publish.END}\nafter\n"
    new = publish.insert(readme, "1 \\g<0> 2")
    assert new == f"before\n{publish.BEGIN}\n1 \\g<0> 2\n{publish.END}\nafter\n"
    with pytest.raises(ValueError, match="expected one"):
        publish.insert("before\nafter\n", "new")
    publish.insert((publish.ROOT / "README.md").read_text(), "new")


def test_the_plot_has_a_bar_for_each_contender() -> None:
    svg = ElementTree.fromstring(publish.plot(CONTENTS))
    bars = [rect for rect in svg.iter("{http://www.w3.org/2000/svg}rect") if rect.get("x")]
    widths = [float(rect.get("width")) for rect in bars]
    assert len(bars) == 4
    assert widths[0] < widths[1] < widths[3] < widths[2]
    publish.plot({**CONTENTS, "cases": []})
