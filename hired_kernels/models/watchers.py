# SPDX-License-Identifier: Apache-2.0
"""Who looks at a vision tower's tensors or has replaced a part of it: reasons to run all of it.

A hook sees what it would see in the stock model. Where that is more than an early exit computes
(what tower and encoder return, the selection layer and whatever is inside, later layers), the whole
tower runs. Hooks of the libraries that move and shard weights are at home with any tensors.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as torch_module
from transformers.models.clip.modeling_clip import CLIPEncoder, CLIPVisionModel

from .classes import reaches
from .vision_tower import TowerModule

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_AT_HOME = ("torch", "transformers", "accelerate", "deepspeed")


@torch.compiler.disable
def why_full(tower: nn.Module, final: int) -> str | None:
    """Why an early exit in layer `final` will not do for this tower as it is now, or None."""
    for name, module in _changed(tower, final):
        if any(_is_users(hook) for kind in _HOOKS for hook in getattr(module, kind, {}).values()):
            return f"a hook on {name} is to see what it sees in the stock model"
        if isinstance(module, TowerModule) and not reaches(module):
            return f"the forward method of {name} was replaced"
    everywhere = (getattr(torch_module, f"_global{kind}", {}).values() for kind in _HOOKS)
    if any(map(_is_users, chain(*everywhere))):
        return "a hook on all modules is to see what it sees in the stock model"
    return None


def _changed(tower: nn.Module, final: int) -> Iterator[tuple[str, nn.Module]]:
    """Modules that compute less under an early exit, or nothing, with their names."""
    outermost = list(_down_to(tower, CLIPVisionModel, "vision_tower"))
    yield from outermost
    name, inner = outermost[-1]
    yield f"{name}.post_layernorm", inner.post_layernorm
    yield from _down_to(inner.encoder, CLIPEncoder, f"{name}.encoder")
    for number, layer in enumerate(inner.encoder.layers):
        if number >= final:
            yield from layer.named_modules(prefix=f"{name}.encoder.layers.{number}")


def _down_to(module: nn.Module, kind: type, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    """A module and what is inside, until one is of `kind`: wrappers may be around it."""
    for name, part in module.named_modules(prefix=prefix):
        yield name, part
        if isinstance(part, kind):
            return


def _is_users(hook: Any) -> bool:
    while isinstance(hook, partial):
        hook = hook.func
    home = getattr(hook, "__module__", None) or type(hook).__module__
    return home.partition(".")[0] not in _AT_HOME
