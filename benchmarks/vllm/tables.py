# SPDX-License-Identifier: Apache-2.0
"""What the benchmark makes of the requests it timed, and its tables.

python benchmarks vllm.tables benchmarks/results/vllm-tiny-cpu.json    # in Markdown
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..shared import command, report

Case = dict[str, Any]


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which a share of the others lie, between two of them where need be."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def figures(result: dict[str, Any], clients: int, count: int) -> Case:
    """Of one round of one case, of what `engine.Engine.load` said."""
    answers, (begin, end), marks = result["answers"], result["window"], result["marks"]
    counted = answers[clients : clients + count]
    tokens = sum(begin < moment <= end for answer in answers for moment in answer.times)
    return {
        "requests_per_second": count / (end - begin),
        "output_tokens_per_second": tokens / (end - begin),
        "first_token_ms": [(answer.times[0] - answer.sent) * 1e3 for answer in counted],
        "latency_ms": [(answer.times[-1] - answer.sent) * 1e3 for answer in counted],
        "front_end_ms": [(answer.prepared - answer.sent) * 1e3 for answer in counted],
        "peak_blocks": result["peak_blocks"],
        "encoder_ms": marks["seconds"] * 1e3 / marks["pictures"],
        "pictures_of_a_step": marks["pictures"] / marks["steps"],
        "most_pictures_of_a_step": marks["most_pictures"],
        "selection_share": marks["selecting"] / marks["seconds"],
    }


def join(rounds: Sequence[Case], stock: Sequence[Case]) -> Case:
    """One case of its rounds, beside the stock model's rounds at the same number of clients."""
    rates = [each["requests_per_second"] for each in rounds]
    bases = [each["requests_per_second"] for each in stock]
    ratios = [rate / base for rate, base in zip(rates, bases, strict=True)]
    first = all_of(rounds, "first_token_ms")
    middle = {
        name: statistics.median(each[name] for each in rounds)
        for name in ("output_tokens_per_second", "encoder_ms", "pictures_of_a_step",
                     "selection_share")
    }  # fmt: skip
    most = {
        name: max(each[name] for each in rounds)
        for name in ("peak_blocks", "most_pictures_of_a_step")
    }
    return {
        "requests_per_second": statistics.median(rates),
        "requests_per_second_rounds": rates,
        "of_stock": statistics.median(ratios),
        "of_stock_rounds": ratios,
        "first_token_ms": statistics.median(first),
        "first_token_ms_p90": percentile(first, 0.9),
        "latency_ms": statistics.median(all_of(rounds, "latency_ms")),
        "front_end_ms": statistics.median(all_of(rounds, "front_end_ms")),
        **middle,
        **most,
    }


def all_of(rounds: Sequence[Case], name: str) -> list[float]:
    """What the rounds have for each request, together."""
    return [value for each in rounds for value in each[name]]


def label(budget: float | None) -> str:
    return "stock" if budget is None else str(budget)


def long_table(cases: Sequence[Case]) -> str:
    header = ("at a time", "budget", "prompt", "requests/s", "rounds", "of stock", "tokens/s",
              "first token ms", "p90", "latency ms", "KV blocks", "a request", "encoder ms",
              "selection")  # fmt: skip
    rows = []
    for case in cases:
        rates = case["requests_per_second_rounds"]
        rows.append((
            str(case["clients"]), label(case["budget"]), f"{case['prompt_tokens']:,}",
            f"{case['requests_per_second']:.2f}", f"{min(rates):.2f} to {max(rates):.2f}",
            report.times(case["of_stock"]), f"{case['output_tokens_per_second']:.0f}",
            f"{case['first_token_ms']:,.0f}", f"{case['first_token_ms_p90']:,.0f}",
            f"{case['latency_ms']:,.0f}", str(case["peak_blocks"]),
            str(case["blocks_of_a_request"]), f"{case['encoder_ms']:.1f}",
            "-" if case["budget"] is None else f"{case['selection_share']:.2%}",
        ))  # fmt: skip
    return report.table(header, rows)


def short_rows(cases: Sequence[Case]) -> list[tuple[str, ...]]:
    """Header and rows: requests a second of each contender, and how many times the stock model's,
    by how many requests there were at a time."""
    clients = sorted({case["clients"] for case in cases})
    rows = [("requests/s", "prompt", *(f"{each} at a time" for each in clients))]
    for budget in dict.fromkeys(case["budget"] for case in cases):
        own = {case["clients"]: case for case in cases if case["budget"] == budget}
        cells = []
        for each in clients:
            rate, ratio = own[each]["requests_per_second"], own[each]["of_stock"]
            cells.append(f"{rate:.2f}" + ("" if budget is None else f" ({report.times(ratio)})"))
        rows.append((label(budget), f"{own[clients[0]]['prompt_tokens']:,}", *cells))
    return rows


def closing(cases: Sequence[Case]) -> str:
    """What selection costs, and what the front end can serve at the most."""
    whole = [case for case in cases if case["budget"] == 1.0]
    lines = []
    if whole:
        each = [case["of_stock"] for case in whole]
        every = [ratio for case in whole for ratio in case["of_stock_rounds"]]
        lines.append(
            f"budget 1.0: {statistics.median(every):.2f}x of stock's requests/s, the median of all "
            f"rounds; {min(each):.2f}x to {max(each):.2f}x by requests at a time"
        )
    front = min(case["front_end_ms"] for case in cases)
    lines.append(
        f"front end: {front:.0f} ms a picture, one at a time: {1e3 / front:.0f} requests/s at most"
    )
    return "\n".join(lines)


def markdown(cases: Sequence[Case]) -> str:
    """The short table, and the other figures with the fewest and the most requests at a time."""
    clients = sorted({case["clients"] for case in cases})
    other = [("budget", "at a time", "tokens/s", "first token, ms (p90)", "latency, ms",
              "KV blocks, peak", "of a request", "encoder, ms a picture",
              "selection of it")]  # fmt: skip
    for case in cases:
        if case["clients"] in (clients[0], clients[-1]):
            other.append((
                label(case["budget"]), str(case["clients"]),
                f"{case['output_tokens_per_second']:.0f}",
                f"{case['first_token_ms']:,.0f} ({case['first_token_ms_p90']:,.0f})",
                f"{case['latency_ms']:,.0f}", str(case["peak_blocks"]),
                str(case["blocks_of_a_request"]), f"{case['encoder_ms']:.1f}",
                "" if case["budget"] is None else f"{case['selection_share']:.2%}",
            ))  # fmt: skip
    return report.markdown(short_rows(cases)) + "\n\n" + report.markdown(other)


def main() -> None:
    parser = command.parser(__doc__)
    parser.add_argument("results", type=Path)
    print(markdown(json.loads(parser.parse_args().results.read_text())["cases"]))
