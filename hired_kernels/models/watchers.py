# SPDX-License-Identifier: Apache-2.0
"""Who looks at a vision tower's tensors or has replaced a part of it: reasons to run all of it.

A hook sees what it would see in the stock model. Where that is more than an early exit computes
(what tower and encoder return, the selection layer and whatever is inside, later layers), the whole
tower runs. Hooks of the libraries that move and shard weights are at home with any tensors. The
whole tower also runs where a `forward` that a pass has to reach was replaced; queries and keys are
then noted by hooks.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from transformers.models.clip.modeling_clip import CLIPAttention, CLIPEncoder, CLIPVisionModel

from .accounting import refuse
from .classes import reaches
from .vision_tower import INITIAL_LAYER, Pass, TowerModule, core, encoder_layers, heads

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_AT_HOME = ("torch", "transformers", "accelerate", "deepspeed")
_TRANSFORMERS = os.path.dirname(transformers.__file__)


@torch.compiler.disable
def why_full(tower: nn.Module, final: int) -> str | None:
    """Why an early exit in layer `final` will not do for this tower as it is now, or None."""
    for name, module in _changed(tower, final):
        if any(map(_is_users, _hooks_of(module))):
            return f"a hook on {name} is to see what it sees in the stock model"
    everywhere = (getattr(torch_module, f"_global{kind}", {}).values() for kind in _HOOKS)
    if any(map(_is_users, chain(*everywhere))):
        return "a hook on all modules is to see what it sees in the stock model"
    name = replaced(tower, final)
    return None if name is None else f"the forward method of {name} was replaced"


@torch.compiler.disable
def replaced(tower: nn.Module, final: int) -> str | None:
    """The name of a module that a pass has to reach and does not, or None."""
    own = chain(*(_layer(tower, number) for number in {INITIAL_LAYER, final}))
    for name, module in chain(_outer(tower), own):
        if isinstance(module, TowerModule) and not (reaches(module) and _is_stock(module)):
            return name
    return None


@contextmanager
def noting(tower: nn.Module, hired: Pass) -> Iterator[None]:
    """Note queries and keys for a pass where its modules do not: by hooks on their projections."""
    seen, thread, handles = {}, threading.get_ident(), []
    for number in {INITIAL_LAYER, hired.final}:
        (attn,) = (part for _, part in _layer(tower, number) if isinstance(part, CLIPAttention))
        for name in ("q_proj", "k_proj"):

            def note(
                _: nn.Module, args: Any, output: Tensor, key: Any = (number, name), attn: Any = attn
            ) -> None:
                if threading.get_ident() == thread:
                    seen[key] = heads(attn, output)

            handles.append(getattr(attn, name).register_forward_hook(note))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    for number in {INITIAL_LAYER, hired.final}:
        if not {(number, "q_proj"), (number, "k_proj")} <= seen.keys():
            raise refuse("vision tower", "q_proj and k_proj to be called", "an attention without")
        hired.note(number, seen[number, "q_proj"][:, 0], seen[number, "k_proj"])


def _changed(tower: nn.Module, final: int) -> Iterator[tuple[str, nn.Module]]:
    """Modules that compute less under an early exit, or nothing, with their names."""
    yield from _outer(tower)
    yield "vision_tower.post_layernorm", core(tower).post_layernorm
    for number in range(final, len(encoder_layers(tower))):
        yield from _layer(tower, number)


def _outer(tower: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The tower and its encoder, and what may be wrapped around either."""
    yield from _down_to(tower, CLIPVisionModel, "vision_tower")
    yield from _down_to(core(tower).encoder, CLIPEncoder, "vision_tower.encoder")


def _layer(tower: nn.Module, number: int) -> Iterator[tuple[str, nn.Module]]:
    name = f"vision_tower.encoder.layers.{number}"
    return encoder_layers(tower)[number].named_modules(prefix=name)


def _down_to(module: nn.Module, kind: type, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    """A module and what is inside, until one is of `kind`: wrappers may be around it."""
    for name, part in module.named_modules(prefix=prefix):
        yield name, part
        if isinstance(part, kind):
            return


def _hooks_of(module: nn.Module) -> Iterator[Any]:
    for kind in _HOOKS:
        yield from getattr(module, kind, {}).values()
    hook = vars(module).get("_hf_hook")  # accelerate's kind, which users make subclasses of
    if hook is not None:
        yield from getattr(hook, "hooks", (hook,))


def makes_stock_features(model: nn.Module) -> bool:
    """Whether a model's class makes features of pictures in transformers' own way."""
    base = getattr(type(model), "_hired_base", type(model))
    methods = (getattr(base, name, None) for name in ("get_image_features", "pack_image_features"))
    return all(method is None or _is_transformers(method) for method in methods)


def _is_stock(module: Any) -> bool:
    """Whether the class below has transformers' own `forward`: a class may have been patched."""
    return _is_transformers(module._hired_base.forward)


def _is_transformers(function: Any) -> bool:
    """Whether a function, and all that it is wrapped in, comes from transformers."""
    while function is not None:
        code = getattr(function, "__code__", None)
        if code is None or not code.co_filename.startswith(_TRANSFORMERS):
            return False
        function = getattr(function, "__wrapped__", None)
    return True


def _is_users(hook: Any) -> bool:
    while isinstance(hook, partial):
        hook = hook.func
    home = getattr(hook, "__module__", None) or type(hook).__module__
    return home.partition(".")[0] not in _AT_HOME
