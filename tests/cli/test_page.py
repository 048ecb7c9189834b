# SPDX-License-Identifier: Apache-2.0
"""The demo's page: one file that fetches nothing, and holds what the operators keep at each step.

What a browser makes of it is in `test_browser.py`.
"""

from __future__ import annotations

import base64
import html.parser
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hired_kernels import cli, select_qk
from hired_kernels.cli import demo, page, question, steps, taken_apart
from hired_kernels.cli.page import Content
from hired_kernels.geometry import Layout, layout


class Reader(html.parser.HTMLParser):
    """Its data, its title and every address in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.data, self.title, self.addresses = "", "", list[str]()
        self._inside: tuple[str, str | None] = ("", None)
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self._inside = (tag, found.get("id"))
        self.addresses += [found[name] for name in ("src", "href", "srcset") if name in found]
        if tag == "img":
            assert found["alt"]

    def handle_endtag(self, tag):
        self._inside = ("", None)

    def handle_data(self, data):
        if self._inside == ("script", "data"):
            self.data += data
        elif self._inside[0] == "title":
            self.title += data


def masks(data):
    """What the page lights at each step, (P, T) each."""
    count = len(data["capacities"]) * data["tokens"]
    found = []
    for step in data["steps"]:
        bits = np.unpackbits(np.frombuffer(base64.b64decode(step["kept"]), dtype=np.uint8))
        found.append(bits[:count].astype(bool).reshape(-1, data["tokens"]))
    return found


@pytest.fixture(scope="module")
def encoded():
    """The picture that comes along, as its model sees it, and how it is cut up."""
    vision = question.load_own().vision
    photograph = demo.open_picture(str(question.PICTURE))
    with torch.no_grad():
        seen = taken_apart.begin(vision.tower, vision.pixels(photograph))
    return seen, vision.layout(photograph.height, photograph.width)


def selected(encoded, budget, alpha, policy):
    """What `select_qk` keeps, (P, T)."""
    seen, cut = encoded
    kept = select_qk(
        seen.features,
        *seen.scores(),
        grids=[cut.grid],
        budget=budget,
        alpha=alpha,
        crops=[cut.crop],
        policy=policy,
    )
    mask = np.zeros(cut.partitions * cut.tokens, dtype=bool)
    mask[kept.compact().indices] = True
    return mask.reshape(cut.partitions, -1)


@pytest.mark.parametrize(("policy", "alpha"), [("exact", 0.5), ("published", 0.25)])
def test_the_page_holds_what_the_operators_keep(policy, alpha, encoded, tmp_path):
    outcome = demo.run(
        out=str(tmp_path / "demo.png"),
        budget=0.155,
        alpha=alpha,
        policy=policy,
        say=lambda line: None,
    )
    assert outcome.page == tmp_path / "demo.html"
    text = outcome.page.read_text(encoding="utf-8")
    assert len(text) < 1_000_000
    data = json.loads(Reader(text).data)
    assert len(data["steps"]) == 101
    assert data["steps"][data["start"]]["name"] == "15.5 %"
    for step, mask in zip(outcome.steps, masks(data), strict=True):
        np.testing.assert_array_equal(mask, step.kept)
    for number in (0, 9, data["start"], 60, 100):
        mask = masks(data)[number]
        share = outcome.steps[number].budget
        np.testing.assert_array_equal(mask, selected(encoded, share, alpha, policy))
    reply = data["replies"][str(data["start"])]
    assert reply["tokens"] == int(outcome.kept.sum()) == outcome.answers[1].tokens
    assert data["everything"]["tokens"] == outcome.answers[0].tokens == 320
    assert data["everything"]["right"] is True


def test_the_page_fetches_nothing(tmp_path):
    outcome = demo.run(tower="tiny", out=str(tmp_path / "demo.png"), say=lambda line: None)
    assert outcome.page
    text = outcome.page.read_text(encoding="utf-8")
    assert len(text) < 1_000_000
    read = Reader(text)
    assert read.addresses
    assert all(address.startswith("data:") for address in read.addresses)
    assert not re.search(r"https?:|//[a-z]+\.|@import|url\(|fetch\(|XMLHttp", text)
    assert read.title == f"{int(outcome.kept.sum()):,} of 2,304 visual tokens kept"
    data = json.loads(read.data)
    assert data["everything"] is None
    assert "Random weights choose at random" in text


def content(cut: Layout, **changes):
    mask = np.zeros((cut.partitions, cut.tokens), dtype=bool)
    options = {
        "headline": "headline",
        "remark": "remark",
        "photograph": Image.new("RGB", (cut.width, cut.height)),
        "partitions": np.zeros((cut.partitions, 336, 336, 3), dtype=np.uint8),
        "layout": cut,
        "steps": [steps.Step(0.5, 0.5, mask)],
        "start": 0,
        **changes,
    }
    return Content(**options)


def test_what_is_said_is_text_and_not_markup():
    sly = '</script><script>alert("1")</script>{{data}}&amp;'
    reply = page.Reply(sly, None, 3, sly)
    text = page.write(
        content(
            layout(300, 500),
            headline=sly,
            question=sly,
            note=sly,
            footer=sly,
            everything=reply,
            replies={0: reply},
        )
    )
    assert text.count("<script") == 2
    read = Reader(text)
    assert read.title == sly
    data = json.loads(read.data)
    assert data["everything"]["text"] == data["replies"]["0"]["text"] == sly


@pytest.mark.parametrize(
    "cut",
    [
        layout(3, 2000),
        layout(2000, 250),
        Layout(300, 400, (0, 0), None, 24),
        layout(1000, 1000, pinpoints=[(336 * 6, 336 * 6)]),
    ],
    ids=["thread", "sliver", "one partition", "36 sub-images"],
)
def test_odd_pictures(cut):
    rng = np.random.default_rng(0)
    found = [
        steps.Step(number / 100, number / 100, rng.random((cut.partitions, cut.tokens)) < 0.2)
        for number in range(1, 101)
    ]
    text = page.write(content(cut, steps=found))
    assert len(text) < 1_000_000
    data = json.loads(Reader(text).data)
    assert len(data["images"]) == 1 + (cut.partitions > 1)
    for step, mask in zip(found, masks(data), strict=True):
        np.testing.assert_array_equal(mask, step.kept)


def test_steps_are_named():
    mask = np.zeros((1, 4), dtype=bool)
    budgets = (0.01, 0.2, 0.155, 1.0, 1 / 3, 1, 1500)
    names = [steps.Step(budget, 0.5, mask).name for budget in budgets]
    expected = ["1 %", "20 %", "15.5 %", "100 %", "33.3333 %", "1 token", "1,500 tokens"]
    assert names == expected


def test_a_count_of_tokens_has_a_step_of_its_own():
    cut = Layout(300, 400, (0, 0), None, 4)

    def keep(tokens):
        if tokens == 8:
            raise ValueError("as published")
        return torch.arange(16).view(1, 16) < tokens

    found = steps.of_picture(cut, keep, "exact", 3)
    assert [step.share for step in found] == sorted(step.share for step in found)
    assert [step.kept.sum() for step in found if step.budget == 3] == [3]
    assert not any(step.budget == 0.5 for step in found)
    assert len(found) == 101 - 7  # 50 to 56 % are 8 tokens


def test_the_page_goes_where_it_is_told(tmp_path, capsys):
    out = ["--tower", "tiny", "--out", str(tmp_path / "card.png")]
    place = tmp_path / "new folder" / "page.htm"
    assert cli.main(["demo", *out, "--html", str(place)]) == 0
    assert f"{place}, with a slider" in capsys.readouterr().out
    assert place.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert not (tmp_path / "card.html").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--html", "folder"], "html folder: Is a directory"),
        (["--html", "demo.png"], "html demo.png: expected another file than the picture's"),
        (["--out", "a.html"], "html a.html: expected another file than the picture's"),
        (["--html", "/dev/full"], "html /dev/full: No space left on device"),
    ],
)
def test_a_page_that_cannot_be_written_is_one_line(
    arguments, expected, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    assert cli.main(["demo", "--tower", "tiny", "--out", "demo.png", *arguments]) == 2
    said = capsys.readouterr().err
    assert said == f"hired demo: {expected}\n"


def test_a_device_gets_no_page_beside_it(tmp_path, capsys):
    assert cli.main(["demo", "--tower", "tiny", "--out", "/dev/null"]) == 0
    assert "slider" not in capsys.readouterr().out
    assert not Path("/dev/null.html").exists()
