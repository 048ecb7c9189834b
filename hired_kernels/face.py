# SPDX-License-Identifier: Apache-2.0
"""What the Python face takes, as the operators take it: lists of integers, doubles, tensors.

Integers and numbers come of any kind: Python's, NumPy's, tensors (of budgets, those with one for
each picture), symbols. What is none of them is a `ValueError("hired::<op>: <argument>: expected
..., got ...")`; whether it fits is the operators' question. Under `torch.compile` everything stays
as it is, since a conversion makes constants.
"""

from __future__ import annotations

from numbers import Real
from operator import index
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import geometry

_ROOM, _NARROW = 1 << 63, "integers below 2^63"
_BOOLS = (bool, np.bool_)


def refusal(op: str, argument: str, expected: str, got: object) -> ValueError:
    """The error of a bad argument; what was got in one line, however long it prints."""
    said = " ".join(str(got).split())
    return ValueError(f"hired::{op}: {argument}: expected {expected}, got {said[:200]}")


def check_tensors(op: str, tensors: dict[str, Any]) -> None:
    """Raise unless they are tensors."""
    for argument, value in tensors.items():
        if not isinstance(value, Tensor):
            raise refusal(op, argument, "a tensor", type(value).__name__)


def word(op: str, argument: str, value: Any) -> str:
    """A string."""
    if isinstance(value, str):
        return value
    raise refusal(op, argument, "a string", repr(value))


def integer(op: str, argument: str, value: Any) -> Any:
    """An integer of any kind."""
    if torch.compiler.is_compiling():
        return value
    try:
        return _integer(value)
    except TypeError:
        raise refusal(op, argument, "an integer", repr(value)) from None
    except OverflowError:
        raise refusal(op, argument, _NARROW, value) from None


def rows(op: str, argument: str, letters: str, values: Any) -> list[list[Any]]:
    """`[(R, C), ...]` with Python's integers, and symbolic ones as they are."""
    if torch.compiler.is_compiling():
        return values
    if isinstance(values, (Tensor, np.ndarray)):
        values = values.tolist()
    found: list[list[Any]] = []
    width = letters.count(",") + 1
    value = values  # what is refused: all of them where they are not even a sequence
    try:
        for value in values:
            numbers = [n if type(n) is int and 0 <= n < _ROOM else _integer(n) for n in value]
            if len(numbers) != width:
                raise TypeError
            found.append(numbers)
    except TypeError:
        raise refusal(op, argument, f"integers {letters}", repr(value)) from None
    except OverflowError:
        raise refusal(op, argument, _NARROW, repr(value)) from None
    return found


def budgets(op: str, *arguments: Any) -> list[Any]:
    """`geometry.resolve_budgets` of these arguments, as integers that the operators take."""
    if torch.compiler.is_compiling():
        return geometry.resolve_budgets(*arguments)
    try:
        counts = geometry.resolve_budgets(*arguments)
    except ValueError as error:
        raise ValueError(f"hired::{op}:{str(error).removeprefix('hired:')}") from None
    for count in counts:
        if type(count) is int and count >= _ROOM:
            raise refusal(op, "budget", _NARROW, count)
    return counts


def number(op: str, argument: str, expected: str, value: Any) -> Any:
    """A real number of any kind, a tensor without dimensions too; never a bool."""
    if isinstance(value, float) or torch.compiler.is_compiling():
        return value
    if isinstance(value, (Tensor, np.ndarray)) and value.ndim == 0:
        value = value.item()
    if isinstance(value, torch.SymFloat):
        return value
    try:
        if isinstance(value, Real | torch.SymInt) and not isinstance(value, _BOOLS):
            return geometry.double(value)
    except OverflowError:
        pass
    raise refusal(op, argument, expected, repr(value))


def _integer(value: Any) -> Any:
    if isinstance(value, torch.SymInt):
        return value
    if isinstance(value, _BOOLS) or getattr(value, "dtype", None) == torch.bool:
        raise TypeError
    value = index(value)
    if not -_ROOM <= value < _ROOM:
        raise OverflowError
    return value
