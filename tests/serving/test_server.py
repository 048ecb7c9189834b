# SPDX-License-Identifier: Apache-2.0
"""The OpenAI-compatible server: PNGs in, the right answers or one's own error out, under load."""

from __future__ import annotations

import base64
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
from llava_models import SIZES, picture
from test_processing import BAD_BUDGETS
from tiny import NEW_TOKENS, Answer, Request, png_url

BUDGET = 0.3  # the server's
TRUNCATED = png_url(picture((168, 168)))[:300]
BROKEN = [
    f"data:image/png;base64,{base64.b64encode(b'no picture').decode()}",
    TRUNCATED[: len("data:image/png;base64,") + 4 * (len(TRUNCATED) // 4 - 6)],
    "data:image/png;base64,%%%",
]


@pytest.fixture(scope="module")
def server(llava_next, tmp_path_factory):
    """The address of a server with a budget, that lets requests have others."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    engine = llava_next.engine(budget=BUDGET)
    log = tmp_path_factory.mktemp("server") / "log"
    command = [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", engine["model"], "--served-model-name", "tiny"),
        *("--host", "127.0.0.1", "--port", str(port)),
        *("--hf-overrides", json.dumps(engine["hf_overrides"])),
        *("--limit-mm-per-prompt", json.dumps(engine["limit_mm_per_prompt"])),
        *("--dtype", engine["dtype"], "--max-model-len", str(engine["max_model_len"])),
        *("--kv-cache-memory-bytes", str(engine["kv_cache_memory_bytes"])),
        *("--enforce-eager", "--trust-request-mm-kwargs"),
        *("--chat-template-content-format", "openai"),
    ]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    with log.open("w") as output:
        process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=output, start_new_session=True
        )
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for(process, address, log)
        yield address
        assert process.poll() is None, log.read_text()[-3000:]
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)


def wait_for(process, address, log):
    for _ in range(240):
        assert process.poll() is None, log.read_text()[-3000:]
        try:
            urllib.request.urlopen(f"{address}/health", timeout=5)
            return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(log.read_text()[-3000:])


def post(address, urls, processor_kwargs):
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


def ask(address, request):
    return post(address, [png_url(each) for each in request.pictures], request.processor_kwargs)


def expected_of(served, request):
    return served.ask(request, budget=BUDGET if request.budget == "server" else request.budget)


@pytest.mark.parametrize("budget", ["server", 0.1, 1.0, None, 11])
def test_a_png_there_and_back(server, llava_next, budget):
    for sizes in ((SIZES[0],), (SIZES[3],), tuple(SIZES[1:4])):
        request = Request(sizes, budget)
        expected = expected_of(llava_next, request)
        assert expected.agrees(ask(server, request)), request


@pytest.mark.parametrize(("budget", "message"), BAD_BUDGETS, ids=str)
def test_a_bad_budget_fails_its_own_request(server, llava_next, budget, message):
    code, got = ask(server, Request(((168, 168),), budget))
    assert code == 400
    assert message in got
    request = Request(((168, 168),))
    assert expected_of(llava_next, request).agrees(ask(server, request))


@pytest.mark.parametrize("url", BROKEN, ids=["no picture", "truncated", "no base64"])
def test_a_broken_picture_fails_its_own_request(server, llava_next, url):
    code, _ = post(server, [url], {"hired_budget": 0.2})
    assert code == 400
    request = Request(((168, 168),))
    assert expected_of(llava_next, request).agrees(ask(server, request))


@pytest.mark.parametrize("budget", ["server", 0.2, None])
def test_a_preprocessing_that_cannot_be_fails_its_own_request(server, llava_next, budget):
    """With the budget or without: vLLM's own worker would end over it, too."""
    half = {"size": {"shortest_edge": 42}, "crop_size": {"height": 42, "width": 42}}
    request = Request(((168, 168),), budget)
    urls = [png_url(each) for each in request.pictures]
    code, _ = post(server, urls, {**half, **request.processor_kwargs})
    assert code == 400
    assert expected_of(llava_next, request).agrees(ask(server, request))


def test_two_hundred_requests_at_once(server, llava_next):
    """Sizes and budgets mixed, every fifth of them broken: to each its own."""
    draw = random.Random(0)
    good = [
        Request((draw.choice(SIZES),), draw.choice(["server", 0.1, 0.5, 9, None]), seed)
        for seed in range(40)
    ]
    expected = [expected_of(llava_next, request) for request in good]
    jobs = []
    for number in range(200):
        if number % 10 == 4:
            jobs.append((None, [BROKEN[number // 10 % len(BROKEN)]], {"hired_budget": 0.2}))
        elif number % 10 == 9:
            bad = BAD_BUDGETS[number // 10 % len(BAD_BUDGETS)][0]
            jobs.append((None, [png_url(picture((168, 168)))], {"hired_budget": bad}))
        else:
            which = draw.randrange(len(good))
            urls = [png_url(each) for each in good[which].pictures]
            jobs.append((which, urls, good[which].processor_kwargs))
    draw.shuffle(jobs)
    with ThreadPoolExecutor(200) as pool:
        answers = list(pool.map(lambda job: post(server, *job[1:]), jobs))
    for (which, _, kwargs), answer in zip(jobs, answers, strict=True):
        if which is None:
            assert answer[0] == 400, (kwargs, answer)
        else:
            assert isinstance(answer, Answer), (good[which], answer)
            assert expected[which].agrees(answer), (good[which], expected[which], answer)
    request = Request(((168, 168),), 0.2)
    assert expected_of(llava_next, request).agrees(ask(server, request))
