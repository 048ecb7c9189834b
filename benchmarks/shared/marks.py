# SPDX-License-Identifier: Apache-2.0
"""Moments, to be told apart when the load is over: on a GPU nothing waits for them."""

from __future__ import annotations

import time
from typing import Any

import torch


def mark(on_gpu: bool) -> Any:
    """Now; on a GPU, when the current stream gets there."""
    if not on_gpu:
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def elapsed(begin: Any, end: Any) -> float:
    return end - begin if isinstance(begin, float) else begin.elapsed_time(end) * 1e-3
