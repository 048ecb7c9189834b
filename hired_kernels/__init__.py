# SPDX-License-Identifier: Apache-2.0
"""HiRED: keep only the visual tokens that a ViT's CLS token attends to, within a fixed budget.

    import hired_kernels as hired

    kept = hired.select(features, attn_init, attn_final, grids=[(2, 2)], budget=0.2)
    kept = hired.select_qk(features, q0, k0, q22, k22, grids=[(2, 2)], budget=0.2)
    rows = hired.cls_attention(q22, k22, 576)  # of these heads; for towers split over ranks

    model, processor = hired.apply_hired(model, processor, budget=0.2)  # transformers models
    hired.remove_hired(model, processor)

Importing it loads `torch.ops.hired`: `select`, `select_qk` and `cls_attention`. Triton and
transformers are imported by what needs them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import geometry
from .backends import backend
from .ops import Selection, cls_attention, select, select_qk

if TYPE_CHECKING:
    from .models.hired_tower import HiredTower
    from .models.switch import apply_hired, remove_hired

__all__ = [
    "HiredTower",
    "Selection",
    "apply_hired",
    "backend",
    "cls_attention",
    "geometry",
    "remove_hired",
    "select",
    "select_qk",
]

_OF_MODELS = {"HiredTower": "hired_tower", "apply_hired": "switch", "remove_hired": "switch"}


def __getattr__(name: str) -> Any:
    """What needs transformers is imported when it is asked for."""
    if name not in _OF_MODELS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".models.{_OF_MODELS[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
