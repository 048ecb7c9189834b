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
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from .accounting import refuse
from .classes import reaches
from .towers import TowerFamily, core, family_of
from .vision_tower import Pass, TowerModule, encoder_layers, heads

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_AT_HOME = ("torch", "transformers", "accelerate", "deepspeed")
FEATURES = ("get_image_features", "pack_image_features", "pixel_shuffle")  # what makes features
_TRANSFORMERS = os.path.dirname(transformers.__file__)


@torch.compiler.disable
def why_full(tower: nn.Module, scored: Collection[int]) -> str | None:
    """Why an early exit will not do for this tower as it is now, or None.

    `scored` are the layers whose queries and keys are read, the last of them the selection layer.
    """
    for name, module in _changed(tower, max(scored)):
        if any(map(_is_users, _hooks_of(module))):
            return f"a hook on {name} is to see what it sees in the stock model"
    everywhere = (getattr(torch_module, f"_global{kind}", {}).values() for kind in _HOOKS)
    if any(map(_is_users, chain(*everywhere))):
        return "a hook on all modules is to see what it sees in the stock model"
    name = replaced(tower, scored)
    return None if name is None else f"the forward method of {name} was replaced"


@torch.compiler.disable
def replaced(tower: nn.Module, scored: Collection[int]) -> str | None:
    """The name of a module that a pass has to reach and does not, or None."""
    own = chain(*(_layer(tower, number) for number in sorted(scored)))
    for name, module in chain(_outer(tower), own):
        if isinstance(module, TowerModule) and not (reaches(module) and _is_stock(module)):
            return name
    return None


@torch.compiler.disable
def run_noting(
    tower: nn.Module, run: nn.Module, pixels: Tensor, hired: Pass, **outputs: Any
) -> Any:
    """Call `run`, the tower or what is inside a wrapper, and note queries and keys for a pass.

    What of it is compiled runs as it is written, for that once: it knows no new hooks.
    """
    with _noting(tower, hired), torch.compiler.set_stance("force_eager"):
        return run(pixels, **outputs)


@contextmanager
def _noting(tower: nn.Module, hired: Pass) -> Iterator[None]:
    """Note queries and keys for a pass where its modules do not: by hooks on what makes them."""
    reading, seen, thread, handles = hired.reading, {}, threading.get_ident(), []
    kind, made_by = reading.family.attention, reading.family.noted
    for number in reading.scored:
        (attn,) = (part for _, part in _layer(tower, number) if isinstance(part, kind))
        for name in made_by:

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
    for number in reading.scored:
        if not all((number, name) in seen for name in made_by):
            expected = f"{' and '.join(made_by)} to be called"
            raise refuse("vision tower", expected, "an attention without")
        query, key = (seen[number, name] for name in made_by)
        hired.note(number, reading.judging(query), key)


def _changed(tower: nn.Module, final: int) -> Iterator[tuple[str, nn.Module]]:
    """Modules that compute less under an early exit, or nothing, with their names."""
    yield from _outer(tower)
    for name in (_family(tower).last_norm, "head"):
        if hasattr(core(tower), name):
            yield from getattr(core(tower), name).named_modules(prefix=f"vision_tower.{name}")
    for number in range(final, len(encoder_layers(tower))):
        yield from _layer(tower, number)


def _outer(tower: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The tower and its encoder, and what may be wrapped around either."""
    family = _family(tower)
    yield from _down_to(tower, family.tower, "vision_tower")
    yield from _down_to(core(tower).encoder, family.encoder, "vision_tower.encoder")


def _layer(tower: nn.Module, number: int) -> Iterator[tuple[str, nn.Module]]:
    name = f"vision_tower.encoder.{_family(tower).layers_name}.{number}"
    return encoder_layers(tower)[number].named_modules(prefix=name)


def _family(tower: nn.Module) -> type[TowerFamily]:
    family = family_of(tower)
    assert family is not None  # `support` has looked
    return family


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
    methods = (getattr(base, name, None) for name in FEATURES)
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
