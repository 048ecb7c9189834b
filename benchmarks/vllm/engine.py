# SPDX-License-Identifier: Apache-2.0
"""One vLLM engine in a process of its own, and the load on it.

`Engine` is the parent's end. In the process behind it an AsyncLLM is driven as an API server drives
it: C clients, each of which sends its next request when its last one is answered, and reads tokens
as they come. A prompt is a string and a picture; vLLM's front end cuts the picture up.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from ..shared.families import Family
from . import served

# vLLM's settings, the same for all contenders. No cache answers: all pictures differ, and whatever
# keeps them or their blocks for later is off.
COMMON = {
    "max_model_len": 4096,
    "max_num_seqs": 32,
    "limit_mm_per_prompt": {"image": 1},
    "enable_prefix_caching": False,
    "mm_processor_cache_gb": 0,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "cpu": {
        **COMMON,
        "dtype": "float32",
        "enforce_eager": True,
        "max_num_batched_tokens": 4096,
        "kv_cache_memory_bytes": 256 << 20,
    },
    "cuda": {
        **COMMON,
        "dtype": "float16",
        "max_num_batched_tokens": 8192,
        "gpu_memory_utilization": 0.9,
    },
}
# Of two cores vLLM gives the worker one to itself ("auto"). malloc keeps what is freed: else steps
# wait for pages, now more and now less (vLLM would have tcmalloc loaded for the same reason).
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "auto",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
}


def settings(family: str, device: str) -> dict[str, Any]:
    """vLLM's, of a family: no videos, and twice the room for LLaVA-OneVision's large pictures."""
    chosen = dict(SETTINGS[device])
    if family != "llava-next":
        chosen["limit_mm_per_prompt"] = {"image": 1, "video": 0}
    if family == "llava-onevision":
        for name in ("max_model_len", "max_num_batched_tokens", "kv_cache_memory_bytes"):
            if name in chosen:
                chosen[name] *= 2
    return chosen


@dataclass(frozen=True)
class Load:
    """C clients; the clock runs over `count` requests, after as many as there are clients.

    A picture has height x width pixels. temperature: 0 for the likeliest tokens.
    """

    budget: float | None
    clients: int
    count: int
    new: int
    prompt: str
    picture: tuple[int, int]
    seed: int
    temperature: float = 0.0


class Answer(NamedTuple):
    """Of one request: when it was sent, when the engine had it, when each of its tokens came."""

    sent: float
    prepared: float
    times: list[float]
    prompt_tokens: int
    tokens: list[int]


class Engine:
    """A process with an engine in it; `wait` for it before the first load."""

    def __init__(self, folder: Path, name: str, family: Family, device: str) -> None:
        os.environ.update(ENVIRONMENT)
        self.log = folder / f"{name}.log"
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        plugin = f"Hired{family.architecture}" if name == "plugin" else None
        arguments = (other, folder, plugin, settings(family.name, device), self.log)
        self.process = context.Process(target=_serve, args=arguments)
        self.process.start()
        other.close()

    def wait(self) -> dict[str, int]:
        """The KV cache: how many blocks, and tokens of each."""
        return self._answer()

    def load(self, load: Load) -> dict[str, Any]:
        """answers: all requests in the order they were answered; window: when the clock began and
        ended; marks: see `worker.Marks`; peak_blocks: of the KV cache in use."""
        self.connection.send(load)
        return self._answer()

    def stop(self) -> None:
        """End the process, and wait until what it held is free."""
        with contextlib.suppress(BrokenPipeError):
            self.connection.send(None)
        self.process.join(60)
        if self.process.is_alive():
            self.process.terminate()

    def _answer(self) -> dict[str, Any]:
        try:
            return self.connection.recv()
        except EOFError:
            last = self.log.read_text(errors="replace").splitlines()[-40:]
            raise SystemExit("\n".join([*last, "an engine ended: its last words"])) from None


def _serve(
    connection: Connection, folder: Path, plugin: str | None, chosen: dict[str, Any], log: Path
) -> None:
    os.chdir(folder)  # vLLM runs `python -m vllm...`: not where a folder has that name, as here
    with log.open("w") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    asyncio.run(_serve_engine(connection, folder, plugin, chosen))


async def _serve_engine(
    connection: Connection, folder: Path, plugin: str | None, chosen: dict[str, Any]
) -> None:
    from vllm import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.metrics.loggers import StatLoggerBase

    from . import worker

    class Blocks(StatLoggerBase):
        """The largest share of the KV cache that was in use after a step."""

        peak = 0.0

        def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
            pass

        def record(self, scheduler_stats: Any, *_: Any, **__: Any) -> None:
            if scheduler_stats is not None:
                Blocks.peak = max(Blocks.peak, scheduler_stats.kv_cache_usage)

        def log_engine_initialized(self) -> None:
            pass

    arguments = AsyncEngineArgs(
        model=str(folder),
        load_format=worker.LOAD_FORMAT,
        worker_extension_cls=f"{worker.__name__}.Marks",
        hf_overrides={"architectures": [plugin]} if plugin else {},
        disable_log_stats=True,
        **chosen,
    )
    engine = AsyncLLM.from_engine_args(arguments, stat_loggers=[Blocks])
    try:
        cache = engine.vllm_config.cache_config
        usable = cache.num_gpu_blocks - 1  # one is vLLM's null block
        await engine.collective_rpc("start_marks")
        prepared = _note_prepared(engine.input_processor)
        connection.send({"blocks": usable, "block_tokens": cache.block_size})
        while (load := await asyncio.to_thread(connection.recv)) is not None:
            Blocks.peak = 0.0
            answers, window = await _load(engine, prepared, load)
            (marks,) = await engine.collective_rpc("take_marks")
            peak = round(Blocks.peak * usable)
            connection.send(
                {"answers": answers, "window": window, "marks": marks, "peak_blocks": peak}
            )
    finally:
        engine.shutdown()
        del engine  # shuts down again, which takes modules that are gone when Python ends


def _note_prepared(front_end: Any) -> dict[str, float]:
    """When the front end had cut up each request's picture, by the request's name, from now on."""
    prepared: dict[str, float] = {}
    prepare = front_end.process_inputs_async

    async def noting(name: str, *args: Any, **kwargs: Any) -> Any:
        request = await prepare(name, *args, **kwargs)
        prepared[name] = time.perf_counter()
        return request

    front_end.process_inputs_async = noting
    return prepared


async def _load(
    engine: Any, prepared: dict[str, float], load: Load
) -> tuple[list[Answer], tuple[float, float]]:
    """All requests as they were answered, and the times between which `count` of them were.

    The clock starts when as many requests have been answered as there are clients. When it stops,
    no more are sent, and those under way are awaited.
    """
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    sampling = SamplingParams(
        temperature=load.temperature,
        seed=load.seed,
        max_tokens=load.new,
        ignore_eos=True,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
    )
    last = load.clients + load.count
    pictures = [served.picture(load.picture, load.seed + i) for i in range(last + load.clients)]

    async def request() -> Answer:
        name = f"{load.seed}-{len(pictures)}"
        prompt: dict[str, Any] = {"prompt": load.prompt}
        prompt["multi_modal_data"] = {"image": pictures.pop()}
        if load.budget is not None:
            prompt["mm_processor_kwargs"] = {"hired_budget": load.budget}
        prompt_tokens, times, tokens = 0, [], []
        sent = time.perf_counter()
        async for output in engine.generate(prompt, sampling, name):
            some = output.outputs[0].token_ids
            times += [time.perf_counter()] * len(some)
            tokens += some
            prompt_tokens = len(output.prompt_token_ids or ()) or prompt_tokens
        return Answer(sent, prepared.pop(name), times, prompt_tokens, tokens)

    answers: list[Answer] = []

    async def client() -> None:
        while len(answers) < last:
            answers.append(await request())

    await asyncio.gather(*(client() for _ in range(load.clients)))
    return answers, (answers[load.clients - 1].times[-1], answers[last - 1].times[-1])
