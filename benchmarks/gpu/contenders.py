# SPDX-License-Identifier: Apache-2.0
"""What the operators are measured against on a GPU: the published method and PyTorch, at its best.

To the compositions of shared/baselines.py, of which one waits for nothing on a CPU and all wait for
the device here, this adds one that never waits: it can be captured in a graph, and be compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..shared import baselines
from ..shared.command import progress
from ..shared.inputs import Inputs, Shape
from .runs import DEVICE, Burst, Graph, graph_clock, reason, timed, wall_clock

CALLS = 5  # of a burst: some take 20 ms
# torch.compile's modes by the name of an option, and what the contender is called. With graphs of
# its own it would copy all inputs before each replay: it is captured here.
COMPILED = {
    "no": {},
    "default": {"torch, compiled": {}},
    "autotune": {"torch, autotuned": {"mode": "max-autotune-no-cudagraphs"}},
}


class _StaticTail(baselines.Tail):
    """Scores to tokens; the shapes of all that stands between them are known beforehand."""

    def static(self, inputs: Inputs, init: Tensor, final: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        B, budget = self.shape.B, self.shape.budget
        budgets = self.budgets(init).view(-1)
        rank = final.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        kept = (rank < budgets[:, None]).view(-1)[self.reading_order].view(B, -1)
        # Kept places first, in their order: all pictures keep `budget` of them.
        places = kept.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :budget]
        first = torch.arange(B, device=places.device)[:, None] * kept.shape[1]
        places = (places + first).view(-1)
        hidden = inputs.hidden.view(-1, self.shape.D)
        tokens = torch.nn.functional.embedding(self.hidden_rows[places], hidden)
        return tokens, self.reading_order[places], budgets


def _static(shape: Shape, operator: str, score: Callable[[Tensor, Tensor], Tensor]) -> Callable:
    tail = _StaticTail(shape)

    def run(inputs: Inputs) -> tuple:
        every = shape.partitions
        if operator == "select":
            init = baselines.head_sum(inputs.init[0][::every])
            return tail.static(inputs, init, baselines.head_sum(inputs.final[0]))
        (q0, k0), (q1, k1) = inputs.init, inputs.final
        init = score(q0[::every, 0], k0[::every])[:, -shape.T :]
        return tail.static(inputs, init, score(q1[:, 0], k1)[:, -shape.T :])

    return run


def contenders(shape: Shape, operator: str, compiled: str) -> dict[str, tuple[str, bool, Any]]:
    """By name: the policy that it follows, whether a graph can hold it, and the contender.

    `compiled` is a name of COMPILED.
    """
    with torch.device(DEVICE):  # for the tables that depend on the shape alone
        plain = baselines.compositions(shape, operator)["plain"]
        static = _static(shape, operator, baselines.einsum)
        fusible = _static(shape, operator, baselines.vecdot)
        published = baselines.published_method(shape, operator)
    found = {
        "published method": ("published", False, published),
        "torch, plain": ("exact", False, plain),
        "torch, static": ("exact", True, static),
    }
    for name, options in COMPILED[compiled].items():
        torch._dynamo.reset()
        found[name] = ("exact", True, torch.compile(fusible, dynamic=False, **options))
    return found


def measure(
    shape: Shape, operator: str, samples: list[Inputs], seconds: float, compiled: str
) -> dict[str, dict[str, Any]]:
    """Timings by contender and by `graph` or `eager`; a contender that fails says why."""
    expected = baselines.operators_tokens(shape, operator, samples[0])
    results: dict[str, dict[str, Any]] = {}
    for name, (policy, capturable, run) in contenders(shape, operator, compiled).items():
        progress(f"  {name} ...")
        try:
            if not torch.equal(run(samples[0])[0], expected[policy]):
                results[name] = {"failed": "not the operator's tokens"}
                continue
            results[name] = {"eager": timed(Burst(run, samples, CALLS), seconds, wall_clock)}
            if capturable:
                graph = Graph(run, samples, len(samples))
                results[name]["graph"] = timed(graph, seconds, graph_clock)
        except Exception as error:  # whatever a compiler may throw: the run goes on without it
            results.setdefault(name, {})["failed"] = reason(error)
    return results
