# SPDX-License-Identifier: Apache-2.0
"""The memory that tensors lie in: all of it, what surrounds a view, and very much of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor


def memory(tensor: Tensor) -> Tensor:
    """All bytes of the buffer that a view lies in."""
    return torch.tensor([], dtype=torch.uint8).set_(tensor.untyped_storage())


def around(tensor: Tensor, byte: int) -> Tensor:
    """The same view of a copy of its buffer, all other bytes of which are `byte`."""
    where = (tensor.shape, tensor.stride(), tensor.storage_offset())
    width = tensor.element_size()
    whole = memory(tensor)[: memory(tensor).numel() // width * width].view(-1, width)
    covered = torch.zeros(len(whole), dtype=torch.bool)
    covered.as_strided(*where).fill_(True)
    whole = torch.where(covered[:, None], whole, torch.tensor(byte, dtype=torch.uint8))
    return whole.view(tensor.dtype).view(-1).as_strided(*where)


def needs_gib(wanted: int) -> None:
    """Skips where the machine has less memory than that to spare."""
    meminfo = Path("/proc/meminfo")
    lines = meminfo.read_text().splitlines() if meminfo.exists() else []
    spare = next((int(line.split()[1]) for line in lines if line.startswith("MemAvailable")), 0)
    if spare < wanted * 2**20:
        pytest.skip(f"needs {wanted} GiB of memory, and {spare / 2**20:.1f} GiB are available")


def far(tensor: Tensor, dim: int) -> Tensor:
    """The same values with more than 2^32 elements between the ends of one dimension."""
    strides, last = list(tensor.stride()), tensor.shape[dim] - 1
    strides[dim] = 2**32 // last + tensor.numel()
    elements = tensor.numel() + strides[dim] * last
    # Not torch.empty, which the fixture fills: only the pages that are written take memory.
    storage = torch.UntypedStorage(elements * tensor.element_size())
    return torch.empty(0, dtype=tensor.dtype).set_(storage, 0, tensor.shape, strides).copy_(tensor)
