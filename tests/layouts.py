# SPDX-License-Identifier: Apache-2.0
"""How tensors that are drawn lie in memory: views of buffers that are NaN all around them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """How a tensor lies in memory, dimension by dimension, in elements of its own."""

    order: tuple[int, ...]  # the outermost dimension in memory first
    before: tuple[int, ...]
    step: tuple[int, ...]
    after: tuple[int, ...]
    expanded: tuple[bool, ...]  # one element stands for all of the dimension
    byte_offset: int  # of the buffer; base addresses need not even fit the dtype


def embed(values: Tensor, layout: Layout, poison: float = math.nan) -> Tensor:
    """A view of a poisoned buffer that holds `values`; expanded dimensions repeat their first."""
    shape = values.shape
    for dim, expanded in enumerate(layout.expanded):
        values = values.narrow(dim, 0, min(1, shape[dim])) if expanded else values
    spans = zip(layout.before, layout.step, layout.after, values.shape, strict=True)
    extents = [before + step * size + after for before, step, after, size in spans]
    elements = math.prod(extents)
    memory = bytearray(layout.byte_offset + (elements + 1) * values.element_size())
    buffer = torch.frombuffer(memory, dtype=values.dtype, offset=layout.byte_offset)
    whole = buffer.fill_(poison)[:elements].view([extents[dim] for dim in layout.order])
    whole = whole.permute([layout.order.index(dim) for dim in range(len(shape))])
    for dim, size in enumerate(values.shape):
        begin, step = layout.before[dim], layout.step[dim]
        whole = whole[(slice(None),) * dim + (slice(begin, begin + step * size, step),)]
    return whole.copy_(values).expand(shape)


@st.composite
def layouts(draw: st.DrawFn, rank: int, unit_last: bool) -> Layout:
    """Contiguous, sliced, transposed, expanded, misaligned, or several of these at once."""
    dims, free = tuple(range(rank)), rank - unit_last
    order = draw(st.permutations(dims[:free])) if draw(st.booleans()) else dims[:free]

    def each(choices: list, last: list) -> tuple:
        drawn = [draw(st.sampled_from(choices if dim < free else last)) for dim in dims]
        return tuple(drawn) if draw(st.booleans()) else (choices[0],) * rank

    return Layout(
        order=(*order, *dims[free:]),
        before=each([0, 1, 2], [0, 1, 2]),
        step=each([1, 2, 3], [1]),
        after=each([0, 1], [0, 1]),
        expanded=each([False, False, False, True], [False]),
        byte_offset=draw(st.sampled_from([0, 0, 1, 3, 4, 8, 16, 31])),
    )
