# SPDX-License-Identifier: Apache-2.0
"""The operators under torch.compile and torch.export: whole graphs, and few of them.

A graph serves any budgets, crops, numbers of tokens and of queries, and five grids do not use up
the recompiles that PyTorch allows.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_operators import (
    OPS,
    attention_rows,
    face,
    features,
    queries_keys,
    select_arguments,
    select_qk_arguments,
)
from torch import Tensor
from torch._dynamo.testing import CompileCounter

import hired_kernels as hired

GRIDS = [(2, 2), (1, 2), (2, 1), (3, 1), (1, 3)]


def sweep(function: Any, T: int = 16) -> None:
    """Twenty budgets for each of five grids, against the function as it is."""
    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(function, fullgraph=True, backend=counter)
    for R, C in GRIDS:
        P = 1 + R * C
        arguments = (features(P, T), attention_rows(P, T=T), attention_rows(P, T=T, seed=R))
        for budget in range(2, 82, 4):  # Dynamo makes constants of 0 and 1, as it does everywhere
            crop = (2 + budget % 3, 4 * R, 0, 4 * C - budget % 3)
            result = compiled(*arguments, R, C, budget, crop)
            assert all(map(torch.equal, result, function(*arguments, R, C, budget, crop)))
    assert counter.frame_count <= torch._dynamo.config.recompile_limit == 8


@pytest.mark.parametrize("cropped", [False, True], ids=["whole", "cropped"])
@pytest.mark.parametrize("policy", ["exact", "published", "pooled"])
def test_compile_operator(policy: str, cropped: bool) -> None:
    def keep(
        values: Tensor, init: Tensor, final: Tensor, R: int, C: int, budget: int, crop: Any
    ) -> Any:
        tokens, indices, counts = OPS.select(
            values,
            init,
            final,
            [R, C],
            [budget],
            crops=[*crop] if cropped else None,
            order="partition",
            policy=policy,
            merge=2 if policy == "pooled" else 1,
        )
        return tokens * 2, indices, counts

    sweep(keep, T={"exact": 16, "published": 36, "pooled": 64}[policy])


def test_compile_face() -> None:
    def keep(
        values: Tensor, init: Tensor, final: Tensor, R: int, C: int, budget: int, crop: Any
    ) -> Any:
        kept = hired.select(values, init, final, grids=[(R, C)], budget=budget, crops=[crop])
        return kept.tokens + 1, kept.indices, kept.counts

    sweep(keep)


def test_compile_with_inductor_and_gradient() -> None:
    arguments = select_qk_arguments(requires_grad=True)

    def loss(values: Tensor, *rest: Any) -> Tensor:
        tokens, indices, _ = OPS.select_qk(values, *rest)
        return (tokens * indices[:, None]).sum()

    torch._dynamo.reset()
    expected = torch.autograd.grad(loss(*arguments), arguments[0])[0]
    compiled = torch.compile(loss, fullgraph=True)
    assert torch.equal(torch.autograd.grad(compiled(*arguments), arguments[0])[0], expected)


@pytest.mark.parametrize("merge", [1, 2])
def test_compile_once_for_all_numbers_of_queries(merge: int) -> None:
    values, query, key, _, _, grids, budgets = select_qk_arguments()

    def keep(init: Tensor, final: Tensor) -> Any:
        flags = {"policy": "pooled", "merge": merge}
        tokens, indices, _ = OPS.select_qk(values, init, key, final, key, grids, budgets, **flags)
        return tokens + 1, indices, OPS.cls_attention(final, key, 16)

    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(keep, fullgraph=True, backend=counter)
    for Q in range(2, 12):
        init, final = (query[:, None] * torch.randn(8, n, 1, 1) for n in (Q + 3, Q))
        assert all(map(torch.equal, compiled(init, final), keep(init, final)))
    assert counter.frame_count <= 2, "constants first, any number after them"


@pytest.mark.parametrize("merge", [1, 2])
def test_export_for_any_budget_and_number_of_queries(merge: int) -> None:
    class Keep(torch.nn.Module):
        def forward(self, values: Tensor, query: Tensor, key: Tensor, budget: Tensor) -> Any:
            kept = min(budget.item(), 5)  # what is not known before it runs
            rest = ([2, 2, 1, 2], [kept, 7])
            torch._check(kept >= 0)
            return OPS.select_qk(values, query, key, query, key, *rest, merge=merge)

    values, query, key, *_ = select_qk_arguments()
    judges = {1: torch.export.Dim("Q", min=2, max=8192)}
    example = (values, query[:, None] * torch.randn(8, 3, 1, 1), key, torch.tensor(4))
    shapes = (None, judges, None, None)
    program = torch.export.export(Keep(), example, dynamic_shapes=shapes).module()
    for Q, budget in ((3, 4), (2, 0), (9, 5)):
        call = (values, query[:, None] * torch.randn(8, Q, 1, 1), key, torch.tensor(budget))
        results = program(*call)
        assert all(map(torch.equal, results, Keep()(*call)))
        assert len(results[1]) == budget + 7


def test_compiled_tangent() -> None:
    values, init, final, *rest = select_arguments()
    direction = torch.randn_like(values)

    def tangent(values: Tensor, direction: Tensor) -> Tensor:
        tokens = lambda values: face(values, init, final, *rest)[0]  # noqa: E731
        return torch.func.jvp(tokens, (values,), (direction,))[1]

    torch._dynamo.reset()
    compiled = torch.compile(tangent, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(values, direction), tangent(values, direction))
    assert compiled(values, direction).any()


# cls_attention.


@pytest.mark.parametrize("call", [OPS.cls_attention, hired.cls_attention], ids=["operator", "face"])
def test_compile_attention_once_for_all_tokens(call: Any) -> None:
    def rows(query: Tensor, key: Tensor, tokens: int) -> Tensor:
        return call(query, key, tokens) * 2

    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(rows, fullgraph=True, backend=counter)
    query, key = queries_keys()
    for tokens in range(2, 41):
        assert torch.equal(compiled(query, key, tokens), rows(query, key, tokens))
    assert counter.frame_count <= 2, "a constant first, any number after it"
    with pytest.raises(Exception, match="tokens: expected 1 <= T <= N = 40"):
        compiled(query, key, 41)


def test_compile_attention_with_inductor() -> None:
    def keep(values: Tensor, query: Tensor, key: Tensor) -> Tensor:
        rows = hired.cls_attention(query, key, 16)
        return hired.select(values, rows, rows, grids=[(1, 2), (0, 0)], budget=9).tokens + 1

    torch._dynamo.reset()
    arguments = (features(4), *queries_keys())
    assert torch.equal(torch.compile(keep, fullgraph=True)(*arguments), keep(*arguments))
