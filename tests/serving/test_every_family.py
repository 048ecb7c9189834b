# SPDX-License-Identifier: Apache-2.0
"""The families beside LLaVA with CLIP, of which `test_tokens` has more: vLLM says what transformers
says with `apply_hired`, and without a budget what its own class says."""

from __future__ import annotations

import pytest
from llava_models import SIZES
from test_tokens import assert_agree, logprobs_of_both, save_for_stock_vllm
from tiny import Request, call, in_vllm

# Options of the server by kind: between them alpha, judges and policies with each tower.
RULES = {
    "granite-vision": {"budget": 0.3, "alpha": 0.25},
    "llava-siglip": {"budget": 0.3, "judge": "patches"},
    "llava-onevision": {"budget": 0.3, "policy": "pooled", "judge": 4},
    "internvl": {"budget": 0.3},
    "internvl-26b": {"budget": 7, "policy": "pooled", "judge": "patches"},
    "internvl-own": {"budget": 0.3, "judge": "patches", "alpha": 0.25},
    "internvl-own-26b": {"budget": 0.3, "judge": "cls"},
    "qianfan-ocr": {"budget": 0.3, "judge": 5},
}
ALL_SIZES = [*SIZES, (60, 70), (84, 500), (1, 1)]
SEVERAL = tuple(SIZES[:3])


@pytest.mark.parametrize("kind", RULES)
def test_token_ids_are_those_of_transformers(made, kind):
    model, rules = made(kind), RULES[kind]
    requests = [Request((size,), budget) for size in ALL_SIZES for budget in ("server", 0.2, 9)]
    requests += [Request((size,), budget) for size in SIZES for budget in (None, 1.0, 10**6)]
    requests += [Request(SEVERAL, budget, seed=5) for budget in ("server", None, 0.5, 5)]
    got = in_vllm(model.engine(**rules), requests)
    budgets = [rules["budget"] if each.budget == "server" else each.budget for each in requests]
    expected = [
        model.ask(each, **{**rules, "budget": budget})
        for each, budget in zip(requests, budgets, strict=True)
    ]
    assert_agree(requests, got, expected)
    # That budgets matter: fewer tokens, and another answer.
    answers = dict(zip(requests, got, strict=True))
    pairs = [[answers[Request((size,), budget)] for budget in (None, 0.2)] for size in SIZES]
    assert all(pruned.prompt < whole.prompt for whole, pruned in pairs)
    assert any(pruned.tokens != whole.tokens for whole, pruned in pairs)


@pytest.mark.parametrize("kind", ["llava", "llava-onevision", "internvl", "internvl-own-26b"])
def test_without_a_budget_it_is_the_stock_class(made, kind, tmp_path):
    """Logits and all: the same bits."""
    model, requests = made(kind), [Request((size,)) for size in SIZES[:3]] + [Request(SEVERAL)]
    ours = model.engine()
    stock = {name: value for name, value in ours.items() if name != "hf_overrides"}
    if "internvl" not in kind:
        save_for_stock_vllm(model, tmp_path)
        stock["model"] = str(tmp_path)
    plain, with_plugin = call(logprobs_of_both, stock, ours, requests)
    assert plain == with_plugin
    assert len({max(step, key=step.get) for step in plain}) > 1
