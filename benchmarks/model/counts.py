# SPDX-License-Identifier: Apache-2.0
"""Operations of one picture in models that people run, by their shapes (docs/models.md).

    python -m benchmarks.model.counts

Matrix products of the tower, the projector and the language model's prefill with 40 words of text.
"""

from __future__ import annotations

import torch

from hired_kernels.models import support

from ..shared.families import FAMILIES, Family
from ..shared.llava_next import TEXT_TOKENS
from . import flops
from .contenders import Job

BUDGETS = (1.0, 0.4, 0.2, 0.1)


def rows(family: Family) -> list[str]:
    """Lines of the table: the stock model, and each budget."""
    with torch.device("meta"):
        model = family.make("7b", "meta")
    vision, layout = model.config.vision_config, family.layout(model.config)
    layer, tokens = support.feature_layer_of(model.config), family.stock_tokens(model.config)
    stock = _operations(model, flops.tower(vision, layout.partitions), layout.valid, tokens)
    lines = [_line(family.full, "stock", tokens, stock, stock)]
    for share in BUDGETS:
        todo = Job(family, torch.empty(1, 1, device="meta"), share).plan(model)
        (K,) = todo.rows
        tower = flops.tower(vision, layout.partitions, feature_layer=layer, todo=todo)
        lines.append(_line("", f"{share:.0%}", K, _operations(model, tower, K, K), stock))
    return lines


def _operations(model: torch.nn.Module, tower: int, projected: int, tokens: int) -> list[float]:
    """Of tower, projector and prefill."""
    text, inner = model.config.text_config, model.model
    width = inner.multi_modal_projector.linear_1.in_features
    layers = sum(weight.numel() for weight in inner.language_model.layers.parameters())
    L = tokens + TEXT_TOKENS
    attention = 2 * text.num_hidden_layers * text.hidden_size * L**2
    return [
        tower,
        flops.projector(width, text.hidden_size, projected),
        2 * layers * L + attention,
    ]


def _line(name: str, budget: str, tokens: int, ours: list[float], stock: list[float]) -> str:
    cells = [f"{part / 1e12:,.2f}" for part in ours]
    less = [_less(a, b) for a, b in zip((ours[0], sum(ours)), (stock[0], sum(stock)), strict=True)]
    tower, whole = less if budget != "stock" else ("", "")
    cells = [cells[0], tower, *cells[1:], f"{sum(ours) / 1e12:,.1f}", whole]
    return f"| {name} | {budget.replace('%', ' %')} | {tokens:,} | {' | '.join(cells)} |"


def _less(ours: float, stock: float) -> str:
    return f"{ours / stock - 1:+.1%}".replace("-", "−").replace("%", " %")


if __name__ == "__main__":
    for each in FAMILIES.values():
        print("\n".join(rows(each)))
