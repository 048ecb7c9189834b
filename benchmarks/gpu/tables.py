# SPDX-License-Identifier: Apache-2.0
"""What the benchmark prints last: the cases as a few short tables, and what the project aims at.

Figures that were not taken are empty; a case whose results were wrong has no figures and is named.
"""

from __future__ import annotations

from typing import Any

from ..shared import report

# Microseconds on an NVIDIA H200, float16, five partitions, 20 % kept, one picture, by graph replay;
# and the share of a copy's bandwidth from 32 pictures on.
AIMS = {"select": 5, "select_qk": 8}
AIMED_SHARE, FROM_BATCH = 0.8, 32
AIMED_TRITON = {1: 1.5, 32: 1.1}  # its time over that of `cuda`, by pictures
Cases = list[dict[str, Any]]


def show(cases: Cases) -> None:
    taken = [case for case in cases if "summary" in case]
    exact = [case for case in taken if case["policy"] == "exact"]
    _by_batch(exact)
    _by_rate(exact)
    _in_triton(exact)
    _others(taken)
    _peers(taken)
    _aims(exact)
    for case in cases:
        problem = case.get("wrong") or case.get("left_out")
        if problem:
            print(f"{_name(case)}: {problem}")


def _name(case: dict[str, Any]) -> str:
    shape = case["shape"]
    return f"{case['operator']} {case['dtype']} batch {shape['B']} {shape['rate']:.0%}"


def _us(timing: dict[str, float] | None) -> str:
    return report.microseconds(timing["median_us"] * 1e-6) if timing else ""


def _share(case: dict[str, Any]) -> str:
    return f"{case['summary']['share_of_copy']:.0%}"


def _find(cases: Cases, operator: str, **wanted: Any) -> dict[str, Any] | None:
    for case in cases:
        have = {**case["shape"], "dtype": case["dtype"]}
        if case["operator"] == operator and all(have[k] == v for k, v in wanted.items()):
            return case
    return None


def _ordered(values: Any) -> list[Any]:
    return list(dict.fromkeys(values))


def _by_batch(cases: Cases) -> None:
    cases = [case for case in cases if case["shape"]["rate"] == 0.2]
    dtypes = _ordered(case["dtype"] for case in cases)
    header = ["20 % kept: us", "B", *(x for dtype in dtypes for x in (dtype, "of copy"))]
    header += ["floor", "eager", "host", "host, hired.*", "MB"]
    rows = []
    for operator in _ordered(case["operator"] for case in cases):
        for B in _ordered(case["shape"]["B"] for case in cases):
            row, first = [operator, str(B)], None
            for dtype in dtypes:
                case = _find(cases, operator, B=B, dtype=dtype)
                first = first or case
                row += [_us(case["timings"]["graph"]), _share(case)] if case else ["", ""]
            if first is None:
                continue
            row.append(report.microseconds(first["summary"]["floor_us"] * 1e-6))
            row += [_us(first["timings"][name]) for name in ("eager", "host", "host_face")]
            rows.append([*row, f"{first['bytes']['all'] / 1e6:.1f}"])
    if rows:
        print(f"\n{report.table(header, rows)}")
        print(f"graph replay, and its share of a copy's bandwidth; from floor on: {dtypes[0]}")


def _by_rate(cases: Cases) -> None:
    rates = sorted({case["shape"]["rate"] for case in cases})
    if len(rates) < 2:
        return
    dtype, rows = cases[0]["dtype"], []
    for operator in _ordered(case["operator"] for case in cases):
        for B in _ordered(case["shape"]["B"] for case in cases if case["shape"]["rate"] != 0.2):
            row = [f"{operator} {dtype}", str(B)]
            for rate in rates:
                case = _find(cases, operator, B=B, dtype=dtype, rate=rate)
                row += [_us(case["timings"]["graph"]), _share(case)] if case else ["", ""]
            rows.append(row)
    header = [x for rate in rates for x in (f"{rate:.0%}", "of copy")]
    print(f"\n{report.table(['kept: us', 'B', *header], rows)}")


def _in_triton(cases: Cases) -> None:
    rows = []
    for case in (case for case in cases if "triton" in case and case["shape"]["rate"] == 0.2):
        taken, ours = case["triton"].get("timings", {}), case["timings"]["graph"]
        times = ""
        if taken:
            times = report.times(taken["graph"]["median_us"] / ours["median_us"])
        aim = AIMED_TRITON.get(case["shape"]["B"])
        row = [f"{case['operator']} {case['dtype']}", str(case["shape"]["B"]), _us(ours)]
        row += [_us(taken.get(name)) for name in ("graph", "eager", "host")]
        rows.append([*row, times, f"{aim}x" if aim else "", case["triton"].get("failed", "")])
    if rows:
        header = ["Triton: us", "B", "cuda", "graph", "eager", "host", "graph / cuda", "aim", ""]
        print(f"\n{report.table(header, rows)}")


def _others(cases: Cases) -> None:
    rows = []
    for case in (case for case in cases if "others" in case or case["policy"] == "published"):
        ours, place = case["timings"], [f"{case['operator']} {case['dtype']}"]
        place.append(str(case["shape"]["B"]))
        name = f"torch.ops.hired, {case['policy']}"
        rows.append([*place, name, _us(ours["graph"]), _us(ours["eager"]), "", ""])
        for name, found in case.get("others", {}).items():
            rows.append([*place, name, *_beside(found, ours["graph"])])
    if rows:
        header = ["beside others: us", "B", "", "graph", "eager", "the better / ours", ""]
        print(f"\n{report.table(header, rows)}")


def _beside(found: dict[str, Any], ours: dict[str, float]) -> tuple[str, ...]:
    """By graph and eagerly, the better of them over ours, why there is none."""
    graph, eager = found.get("graph"), found.get("eager")
    best = min((taken["median_us"] for taken in (graph, eager) if taken), default=None)
    times = report.times(best / ours["median_us"]) if best else ""
    return _us(graph), _us(eager), times, found.get("failed", "")


def _peers(cases: Cases) -> None:
    rows = []
    for case in (case for case in cases if "peers" in case):
        for name, found in case["peers"].items():
            row = [f"{case['operator']} {case['dtype']}", str(case["shape"]["B"]), found["stage"]]
            rows.append([*row, name, *_beside(found, case["timings"]["graph"])])
    if rows:
        header = ["a stage by others: us", "B", "stage", "", "graph", "eager", "/ ours, whole", ""]
        print(f"\n{report.table(header, rows)}")


def _aims(cases: Cases) -> None:
    print("\naims, on an NVIDIA H200, float16, 20 % kept:")
    for operator, aim in AIMS.items():
        case = _find(cases, operator, B=1, dtype="float16", rate=0.2)
        here = f"{_us(case['timings']['graph'])} us" if case else "not taken"
        print(f"  {operator}, one picture, by graph replay: {aim} us; here {here}")
        large = [
            case["summary"]["share_of_copy"]
            for case in cases
            if case["operator"] == operator
            and case["dtype"] == "float16"
            and case["shape"]["rate"] == 0.2
            and case["shape"]["B"] >= FROM_BATCH
        ]
        here = f"{min(large):.0%} at least" if large else "not taken"
        print(
            f"  {operator}, from batch {FROM_BATCH}: {AIMED_SHARE:.0%} of a copy's bandwidth; "
            f"here {here}"
        )
