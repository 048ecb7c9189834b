# SPDX-License-Identifier: Apache-2.0
"""The families of vision towers that HiRED selects inside of: one short file each, and this table.

A new family is a subclass of `TowerFamily` in a file of its own, and a row here.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from .clip import Clip
from .family import TowerFamily, core
from .internvit import InternVit
from .siglip import Siglip

FAMILIES: tuple[type[TowerFamily], ...] = (Clip, Siglip, InternVit)


def family_of_type(model_type: str) -> type[TowerFamily] | None:
    """The family of a vision configuration's `model_type`, or None."""
    return next((each for each in FAMILIES if each.model_type == model_type), None)


def family_of(tower: Any) -> type[TowerFamily] | None:
    """The family of a vision tower of transformers, in a wrapper or without, or None."""
    if not isinstance(tower, nn.Module) or not hasattr(core(tower), "encoder"):
        return None
    for module in tower.modules():
        for family in FAMILIES:
            if isinstance(module, family.tower):
                return family
    return None


def names() -> str:
    """The families as messages call them."""
    *others, last = (family.name for family in FAMILIES)
    return f"{', '.join(others)} or {last}"


__all__ = ["FAMILIES", "TowerFamily", "core", "family_of", "family_of_type", "names"]
