# SPDX-License-Identifier: Apache-2.0
"""What pruning spared, beside vLLM's own metrics: counters of the process that prepares requests.

vLLM's API server serves everything that is registered with `prometheus_client` in its process, and
requests are prepared there. So `/metrics` has these without vLLM knowing of them. Without a server
(`vllm.LLM`) they are read from `prometheus_client.REGISTRY`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from prometheus_client import Counter

PICTURES = Counter("hired_pictures", "Pictures of requests with a token budget.")
KEPT = Counter("hired_visual_tokens_kept", "Visual tokens of these pictures in the prompts.")
SPARED = Counter(
    "hired_visual_tokens_spared",
    "Tokens that the stock model's prompts would have had for these pictures on top of that.",
)

_REHEARSAL: ContextVar[bool] = ContextVar("hired_rehearsal", default=False)


@contextmanager
def rehearsal() -> Iterator[None]:
    """What is prepared meanwhile is no request, and is not to be counted."""
    token = _REHEARSAL.set(True)
    try:
        yield
    finally:
        _REHEARSAL.reset(token)


def is_rehearsal() -> bool:
    return _REHEARSAL.get()


def count(kept: int, stock: int) -> None:
    """A picture of a request that has a budget: its tokens, and those that it would have had."""
    PICTURES.inc()
    KEPT.inc(kept)
    # With a budget of 1.0 a picture may have more than the stock model's shrunk one.
    SPARED.inc(max(0, stock - kept))
