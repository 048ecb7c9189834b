# SPDX-License-Identifier: Apache-2.0
"""What stage 1 of training has in common for all kinds of pictures."""

from __future__ import annotations

from torch import nn


def head(width: int, outputs: int) -> nn.Module:
    """Reads something off a token of this width."""
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, outputs))


def weight_on_cls(layer: int, features: int) -> float:
    """Of a layer's head on CLS in the loss: most for the feature layer, least for early ones."""
    return {features: 1.0, features - 1: 0.5, features + 1: 0.5}.get(layer, 0.3)
