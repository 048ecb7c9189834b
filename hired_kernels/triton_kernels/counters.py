# SPDX-License-Identifier: Apache-2.0
"""Memory for the counters of tickets.py: zero before the first launch, and each leaves them as the
next needs them.

Every stream has its own, since launches on one stream follow each other. A graph may be replayed
beside the stream that captured it, so that each captured launch gets its own, out of a store that
calls outside of captures fill.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .tickets import counters_of

# Pictures of a launch: kernels are compiled for these numbers, and a launch takes the least that
# holds its own. 64 of them are 1.5 KB of parameters.
PICTURES = (1, 8, 64)


@dataclass
class _Counters:
    of_stream: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    stores: list[Tensor] = field(default_factory=list)  # the last is in use, graphs hold the others
    taken: int = 0  # words of the last


_STORE = 1 << 18  # words, 1 MB a device: 26,214 launches of one picture
_PER_THREAD_STREAM = 2  # cudaStreamPerThread: one handle, a stream for each thread
_counters_of: dict[int, _Counters] = {}
_lock = threading.Lock()


def _zeros(device: torch.device, words: int) -> Tensor:
    return torch.zeros(words, dtype=torch.int32, device=device)


def _lasting_zeros(device: torch.device, words: int) -> Tensor:
    """Zeros that outlive any memory pool, ready for every stream.

    torch.compile's graphs have the memory of a thread's calls taken from a pool of theirs, and
    overwrite in it what they do not know of. So another thread asks, on a stream of its own.
    """
    made = []

    def make() -> None:
        with torch.cuda.device(device), torch.cuda.stream(torch.cuda.Stream(device)):
            made.append(_zeros(device, words))
            torch.cuda.current_stream(device).synchronize()

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    return made[0]


def counters_on(device: torch.device, words: int) -> Tensor:
    """So many words for the next launch on the device's current stream."""
    if device.type != "cuda":
        return _zeros(device, words)
    handle = torch.cuda.current_stream(device).cuda_stream
    stream = handle, threading.get_ident() if handle == _PER_THREAD_STREAM else 0
    with _lock:
        mine = _counters_of.setdefault(device.index, _Counters())
        if torch.cuda.is_current_stream_capturing():
            if not mine.stores or mine.taken + words > _STORE:
                return _zeros(device, words)  # by the graph itself, a node more
            mine.taken += words
            return mine.stores[-1][mine.taken - words : mine.taken]
        if stream not in mine.of_stream:
            mine.of_stream[stream] = _lasting_zeros(device, counters_of(PICTURES[-1]))
        if not mine.stores or mine.taken > _STORE // 2:
            mine.stores.append(_lasting_zeros(device, _STORE))
            mine.taken = 0
        return mine.of_stream[stream]
