# SPDX-License-Identifier: Apache-2.0
"""What an ideal run would take: operations at the machine's peak, or bytes at its bandwidth.

For each stage the longer of the two, and the stages one after the other. Weights are read once a
stage, activations not counted, attention counts its operations and, while decoding, its cache.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..shared.timing import Copy
from . import flops

# Data sheets: dense float16 operations a second (a P40 has none: float32) and bytes a second.
PEAKS = {
    "H200": (989e12, 4.8e12),
    "H100": (989e12, 3.35e12),
    "A100": (312e12, 2.04e12),
    "P40": (11.8e12, 346e9),
}


@dataclass(frozen=True)
class Peak:
    """Operations and bytes a second, and where the figures come from."""

    flops: float
    bytes: float
    source: str


def peak(device: str, dtype: torch.dtype, wait: Callable[[], None]) -> Peak:
    """Of the data sheet where the device is known, else what it is measured to do."""
    name = torch.cuda.get_device_name() if device == "cuda" else ""
    for card, (operations, bandwidth) in PEAKS.items():
        if card in name:
            return Peak(operations, bandwidth, f"data sheet, {card}")
    n = 4096 if device == "cuda" else 1024
    matrix, copy = torch.ones(n, n, device=device, dtype=dtype), Copy(256, device)
    product = _fastest(lambda: matrix @ matrix, wait)
    return Peak(2 * n**3 / product, copy.bytes / _fastest(lambda: copy(0), wait), "measured")


def ideal(
    model: nn.Module, best: Peak, *, B: int, tower_flops: int, projected: int, length: int, new: int
) -> tuple[float, float]:
    """Seconds until the first token and until the last of `new`.

    `projected` tokens go through the projector in all, `length` is the prompt's, of B of them.
    """
    text, inner = model.config.text_config, model.model
    element = next(model.parameters()).element_size()

    def stage(operations: float, moved: float) -> float:
        return max(operations / best.flops, moved / best.bytes)

    width = inner.multi_modal_projector.linear_1.in_features
    tower = stage(tower_flops, _bytes(inner.vision_tower))
    projector = stage(
        flops.projector(width, text.hidden_size, projected), _bytes(inner.multi_modal_projector)
    )
    layers = sum(weight.numel() for weight in inner.language_model.layers.parameters())
    attention = 2 * text.num_hidden_layers * text.hidden_size
    head = model.lm_head.weight.numel()
    prefill = stage(
        B * (2 * layers * length + attention * length**2 + 2 * head), element * (layers + head)
    )
    cache = 2 * text.num_hidden_layers * _cache_width(text) * element
    steps = sum(
        stage(
            B * (2 * (layers + head) + 2 * attention * (length + step)),
            element * (layers + head) + B * cache * (length + step),
        )
        for step in range(1, new)
    )
    first = tower + projector + prefill
    return first, first + steps


def _cache_width(text: Any) -> int:
    return text.num_key_value_heads * (text.hidden_size // text.num_attention_heads)


def _bytes(module: nn.Module) -> int:
    return sum(weight.numel() * weight.element_size() for weight in module.parameters())


def _fastest(work: Callable[[], object], wait: Callable[[], None]) -> float:
    seconds = []
    for _ in range(5):
        wait()
        start = time.perf_counter()
        work()
        wait()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
