# SPDX-License-Identifier: Apache-2.0
"""A machine with a GPU that is its CPU: with this folder on PYTHONPATH, `torch.cuda` is there.

For rehearsals (test_gpu_rehearsal.py): it finds the Python errors in what only a GPU would run, so
that none of them costs time on one. A graph records what PyTorch's dispatcher is asked for while it
is captured, and does it again when it is replayed; streams and events keep time and nothing else;
what asks about kernels or the allocator gets no answer. Python imports this file by itself, when it
starts.
"""

from __future__ import annotations

import contextlib
import threading
import time
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

CYCLES_PER_SECOND = 2e9
_busy_until = 0.0


class Event:
    def __init__(self, enable_timing: bool = False) -> None:
        self._time = 0.0

    def record(self, stream: object = None) -> None:
        self._time = max(time.perf_counter(), _busy_until)

    def query(self) -> bool:
        return time.perf_counter() >= self._time

    def synchronize(self) -> None:
        time.sleep(max(0.0, self._time - time.perf_counter()))

    def elapsed_time(self, end: Event) -> float:
        return (end._time - self._time) * 1e3


class Stream:
    cuda_stream = 0

    def wait_stream(self, stream: Stream) -> None: ...

    def synchronize(self) -> None: ...

    def query(self) -> bool:
        return True

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *error: object) -> None: ...


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Callable, tuple, dict, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result


class CUDAGraph:
    def __init__(self) -> None:
        self.recorder = _Recorder()

    def replay(self) -> None:
        with torch.no_grad():
            for func, args, kwargs, before in self.recorder.calls:
                now = func(*args, **kwargs)
                pairs = zip(_tensors(before), _tensors(now), strict=True)
                for old, new in pairs:  # what others look at is what the capture returned
                    if old.data_ptr() != new.data_ptr():
                        old.copy_(new)


def _tensors(result: Any) -> list[torch.Tensor]:
    found = result if isinstance(result, (tuple, list)) else [result]
    return [x for x in found if isinstance(x, torch.Tensor)]


@contextlib.contextmanager
def graph(captured: CUDAGraph, *args: object, **kwargs: object) -> Iterator[None]:
    with captured.recorder:
        yield


@contextlib.contextmanager
def stream(_: object) -> Iterator[None]:
    yield


def _sleep(cycles: int) -> None:
    global _busy_until
    _busy_until = max(time.perf_counter(), _busy_until) + cycles / CYCLES_PER_SECOND


def synchronize(device: object = None) -> None:
    time.sleep(max(0.0, _busy_until - time.perf_counter()))


def _here(value: Any) -> Any:
    """Devices as they are called here."""
    if isinstance(value, str) and value.split(":")[0] == "cuda":
        return "cpu"
    if isinstance(value, torch.device) and value.type == "cuda":
        return torch.device("cpu")
    return value


class _OnCpu(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args = tuple(map(_here, args))
        return func(*args, **{name: _here(value) for name, value in (kwargs or {}).items()})


class _Generator(torch.Generator):
    def __new__(cls, device: Any = "cpu") -> torch.Generator:
        return super().__new__(cls, _here(device))


def _module_to(self: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.nn.Module:
    return _to(self, *map(_here, args), **{name: _here(value) for name, value in kwargs.items()})


def _run_on_cpu(self: threading.Thread) -> None:
    with _OnCpu():  # modes are a thread's own
        _run(self)


PROPERTIES = types.SimpleNamespace(
    name="Pretended GPU", major=9, minor=0, multi_processor_count=132, total_memory=80 << 30,
    L2_cache_size=1 << 20, max_threads_per_multi_processor=2048,
)  # fmt: skip
_to, _run = torch.nn.Module.to, threading.Thread.run
torch.nn.Module.to = _module_to
threading.Thread.run = _run_on_cpu
torch.Generator = _Generator
torch.Tensor.cuda = torch.UntypedStorage.cuda = lambda self, *args, **kwargs: self.clone()
for _name, _value in {
    "Event": Event,
    "Stream": Stream,
    "CUDAGraph": CUDAGraph,
    "graph": graph,
    "stream": stream,
    "_sleep": _sleep,
    "synchronize": synchronize,
    "is_available": lambda: True,
    "device_count": lambda: 1,
    "current_device": lambda: 0,
    "current_stream": lambda device=None: Stream(),
    "is_current_stream_capturing": lambda: False,
    "empty_cache": lambda: None,
    "mem_get_info": lambda device=None: (8 << 30, 10 << 30),
    "set_sync_debug_mode": lambda mode: None,
    "get_device_properties": lambda device=None: PROPERTIES,
    "get_device_capability": lambda device=None: (9, 0),
    "_lazy_call": lambda call, **kwargs: None,
}.items():
    setattr(torch.cuda, _name, _value)
_OnCpu().__enter__()
