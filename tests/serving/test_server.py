# SPDX-License-Identifier: Apache-2.0
"""The OpenAI-compatible server: PNGs in, the right answers or one's own error out, under load."""

from __future__ import annotations

import pytest
from llava_models import SIZES
from server import (
    BROKEN,
    BUDGET,
    ask,
    expected_of,
    metrics,
    post,
    serving,
    two_hundred_at_once,
)
from test_processing import BAD_BUDGETS
from tiny import Request, png_url


@pytest.fixture(scope="module")
def server(llava_next, tmp_path_factory):
    with serving(llava_next, tmp_path_factory.mktemp("server") / "log") as address:
        yield address


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


def test_metrics_say_what_was_spared(server, llava_next):
    """Of pictures with a budget, of the request or the server; caches answer the second time."""
    names = [f"hired_{name}_total" for name in ("pictures", "visual_tokens_kept")]
    names.append("hired_visual_tokens_spared_total")
    whole = llava_next.ask(Request(((168, 168),)), budget=None).prompt
    text = llava_next.ask(Request(()), budget=None).prompt
    before = metrics(server)
    for _ in range(2):
        ask(server, Request(((168, 168),)))
        ask(server, Request(((168, 168), (168, 168)), 10))
        ask(server, Request(((168, 168),), None))
        ask(server, Request(()))
    after = metrics(server)
    kept = 2 * (int(BUDGET * 180) + 10 + 10)
    expected = [6, kept, 6 * (whole - text) - kept]
    assert [after[name] - before[name] for name in names] == expected


def test_two_hundred_requests_at_once(server, llava_next):
    two_hundred_at_once(server, llava_next)
