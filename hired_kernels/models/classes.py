# SPDX-License-Identifier: Apache-2.0
"""Switched classes: subclasses made for objects of somebody else's class, given to them and back.

A switched class is a mixin before the object's own class, with the same name, so that whatever goes
by names takes it for its base. `turn_on` and `turn_off` change an object's class and nothing else:
other objects of the class see nothing.
"""

from __future__ import annotations

from functools import cache, wraps
from itertools import takewhile
from types import MethodType
from typing import Any


class Switched:
    """What all switched objects have in common."""

    _hired_base: type

    def __reduce_ex__(self, protocol: int) -> tuple:
        if not _is_made_here(type(self)):  # somebody has put a class of theirs on top
            return super().__reduce_ex__(protocol)
        _, (_, *arguments), *rest = super().__reduce_ex__(protocol)
        return _remade, (_mixin_of(type(self)), self._hired_base, *arguments), *rest


def turn_on(part: Any, mixin: type[Switched]) -> None:
    """Give `part` the subclass of its class that has `mixin` before it, unless it has one."""
    kind = type(part)  # once: another thread may be at it, too
    if not issubclass(kind, Switched):
        # A switched class may have been asked for an object by name: `type(model).from_pretrained`.
        _change_class(part, switched_class(mixin, kind))


def turn_off(part: Any) -> None:
    """Give `part` its own class back.

    A class that somebody has put on top of the switched one since (FSDP 2, parametrizations) stays,
    and the switched one below it: its methods do what its base's do.
    """
    if _is_made_here(type(part)):
        _change_class(part, part._hired_base)


def reaches(part: Any) -> bool:
    """Whether calling `part`, a module, comes to the `forward` of its class.

    Not so where somebody has put another function in its place; accelerate's calls the one before.
    """
    own = vars(part)
    if "forward" not in own:
        return True
    forward = own.get("_old_forward") if "_hf_hook" in own else own["forward"]
    ours = _forwards(*takewhile(lambda each: each is not part._hired_base, type(part).__mro__))
    return isinstance(forward, MethodType) and forward.__func__ in ours


@cache
def switched_class(mixin: type[Switched], base: type) -> type:
    """A subclass of `base` that passes for it, name and all: transformers goes by the names."""
    names = {"__module__": base.__module__, "__qualname__": base.__qualname__, "_hired_base": base}
    names["__doc__"] = base.__doc__
    if hasattr(mixin, "forward"):
        names["forward"] = _signed(mixin.forward, base)
    return type(base.__name__, (mixin, base), names)


def _signed(function: Any, base: type) -> Any:
    """A `forward` that does what `function` does, with the signature and text of the base's."""

    @wraps(base.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        # Whoever took it from a switched object may call it when the class has been given back.
        return (function if isinstance(self, Switched) else base.forward)(self, *args, **kwargs)

    return forward


def _change_class(part: Any, to: type) -> None:
    """Change an object's class, and with it what its own bound copies of `forward` are bound to.

    accelerate's hooks keep one, and leave one behind.
    """
    before = _forwards(*type(part).__mro__)
    part.__class__ = to
    for name in ("forward", "_old_forward"):
        method = vars(part).get(name)
        if isinstance(method, MethodType) and method.__func__ in before:
            vars(part)[name] = MethodType(to.forward, part)


def _forwards(*classes: type) -> list[Any]:
    return [vars(each)["forward"] for each in classes if "forward" in vars(each)]


def _is_made_here(of: type) -> bool:
    return "_hired_base" in vars(of)


def _mixin_of(of: type) -> type[Switched]:
    return of.__bases__[0]


def _remade(mixin: type[Switched], base: type, *arguments: Any) -> Any:
    made = switched_class(mixin, base)
    return made.__new__(made, *arguments)
