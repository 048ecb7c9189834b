# SPDX-License-Identifier: Apache-2.0
"""A server of a tiny model, and what clients ask it: PNGs, budgets, and what cannot be."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llava_models import SIZES, picture
from tiny import NEW_TOKENS, NO_BUDGETS, Answer, Model, Request, png_url

BUDGET = 0.3  # the server's
TRUNCATED = png_url(picture((168, 168)))[:300]
BROKEN = [
    f"data:image/png;base64,{base64.b64encode(b'no picture').decode()}",
    TRUNCATED[: len("data:image/png;base64,") + 4 * (len(TRUNCATED) // 4 - 6)],
    "data:image/png;base64,%%%",
]


@contextmanager
def serving(model: Model, log: Path, *options: str) -> Iterator[str]:
    """The address of a server with a budget, that lets requests have others."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    engine = model.engine(budget=BUDGET)
    command = [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", engine["model"], "--served-model-name", "tiny"),
        *("--host", "127.0.0.1", "--port", str(port)),
        *("--hf-overrides", json.dumps(engine["hf_overrides"])),
        *("--limit-mm-per-prompt", json.dumps(engine["limit_mm_per_prompt"])),
        *("--dtype", engine["dtype"], "--max-model-len", str(engine["max_model_len"])),
        *("--kv-cache-memory-bytes", str(engine["kv_cache_memory_bytes"])),
        *("--enforce-eager", "--trust-request-mm-kwargs", "--block-size", "32"),
        *("--chat-template-content-format", "openai"),
        *(["--trust-remote-code"] if engine["trust_remote_code"] else []),
        *options,
    ]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    with log.open("w") as output:
        process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=output, start_new_session=True
        )
    address = f"http://127.0.0.1:{port}"
    try:
        _wait_for(process, address, log)
        yield address
        assert process.poll() is None, log.read_text()[-3000:]
    finally:
        for kill in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(process.pid, kill)
                process.wait(60)
                break


def _wait_for(process: subprocess.Popen, address: str, log: Path) -> None:
    for _ in range(360):
        assert process.poll() is None, log.read_text()[-3000:]
        try:
            urllib.request.urlopen(f"{address}/health", timeout=5)
            return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(log.read_text()[-3000:])


def post(
    address: str, urls: Sequence[str], processor_kwargs: dict[str, Any]
) -> Answer | tuple[int, str]:
    """An answer, or the code and message of an error."""
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    body = {
        "model": "tiny",
        "messages": [
            {"role": "user", "content": [*parts, {"type": "text", "text": "what is this"}]}
        ],
        "max_tokens": NEW_TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
        "mm_processor_kwargs": processor_kwargs,
    }
    request = urllib.request.Request(
        f"{address}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=300) as response:
            output = json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())["error"]["message"]
    return Answer(output["usage"]["prompt_tokens"], output["choices"][0]["token_ids"])


def ask(address: str, request: Request) -> Answer | tuple[int, str]:
    return post(address, [png_url(each) for each in request.pictures], request.processor_kwargs)


def expected_of(model: Model, request: Request) -> Answer:
    return model.ask(request, budget=BUDGET if request.budget == "server" else request.budget)


def metrics(address: str) -> dict[str, float]:
    """Of the server, by name: sums over what labels tell apart, replicas among it."""
    return _sums(address, r"([^{ ]+)")


def answered(address: str) -> dict[str, float]:
    """Requests that were answered by each replica."""
    return _sums(address, r'vllm:request_success_total\{engine="(\d+)"')


def _sums(address: str, pattern: str) -> dict[str, float]:
    """Of the metrics that begin like this, sums by what the pattern's group finds."""
    with urllib.request.urlopen(f"{address}/metrics", timeout=30) as response:
        lines = response.read().decode().splitlines()
    sums: dict[str, float] = {}
    for line in lines:
        if not line.startswith("#") and (found := re.match(pattern, line)):
            sums[found[1]] = sums.get(found[1], 0) + float(line.rpartition(" ")[2])
    return sums


def two_hundred_at_once(address: str, model: Model) -> None:
    """Sizes and budgets mixed, several pictures and none, every fifth of them broken: to each its
    own, the engine lives, and the metrics say what was spared."""
    draw = random.Random(0)
    budgets = ["server", 0.2, 0.5, 9, None]
    sizes = [(size,) for size in SIZES] * 4 + [tuple(SIZES[:3]), (SIZES[4], SIZES[0]), ()]
    good = [Request(draw.choice(sizes), draw.choice(budgets), seed) for seed in range(36)]
    good += [Request(each, "server") for each in sizes[-3:]]
    expected = [expected_of(model, request) for request in good]
    jobs: list[tuple[int | None, list[str], dict[str, Any]]] = []
    for number in range(200):
        if number % 10 == 4:
            urls = [png_url(picture((168, 168))), BROKEN[number // 10 % len(BROKEN)]]
            jobs.append((None, urls[number // 10 % 2 :], {"hired_budget": 0.2}))
        elif number % 10 == 9:
            bad = [*NO_BUDGETS, 1e-3][number // 10 % (1 + len(NO_BUDGETS))]
            jobs.append((None, [png_url(picture((168, 168)))], {"hired_budget": bad}))
        else:
            which = draw.randrange(len(good)) if number < 180 else len(good) - 1 - number % 3
            urls = [png_url(each) for each in good[which].pictures]
            jobs.append((which, urls, good[which].processor_kwargs))
    draw.shuffle(jobs)
    before = metrics(address)
    with ThreadPoolExecutor(200) as pool:
        answers = list(pool.map(lambda job: post(address, *job[1:]), jobs))
    for (which, _, kwargs), answer in zip(jobs, answers, strict=True):
        if which is None:
            assert answer[0] == 400, (kwargs, answer)
        else:
            assert isinstance(answer, Answer), (good[which], answer)
            assert expected[which].agrees(answer), (good[which], expected[which], answer)
    after = metrics(address)
    pruned = [good[which] for which, *_ in jobs if which is not None]
    pruned = [each for each in pruned if each.budget is not None]
    whole = {each: model.ask(each, budget=None).prompt for each in set(pruned)}
    kept = {each: expected_of(model, each).prompt for each in set(pruned)}
    counted = {
        "hired_pictures_total": sum(len(each.sizes) for each in pruned),
        "hired_visual_tokens_spared_total": sum(whole[each] - kept[each] for each in pruned),
    }
    assert {name: after[name] - before[name] for name in counted} == counted
    # Once more, one by one: what is in the caches says the same.
    hits = "vllm:prefix_cache_hits_total"
    for request in (good[-2], good[-3]):
        assert expected_of(model, request).agrees(ask(address, request))
    assert metrics(address)[hits] > after[hits]
