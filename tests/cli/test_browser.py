# SPDX-License-Identifier: Apache-2.0
"""The demo's page in a real browser: the slider moves, and what is lit is what the operators keep.

`make test-browser` fetches the browser and runs this; HIRED_TEST_BROWSER=1 forbids to skip it.
"""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from browser import FOLDER, Browser
from PIL import Image

from hired_kernels.cli import demo, page, picture, steps
from hired_kernels.geometry import layout

MISSING = not (FOLDER / "chromium").is_file()
pytestmark = pytest.mark.skipif(
    MISSING and os.environ.get("HIRED_TEST_BROWSER") != "1",
    reason=f"no browser in {FOLDER}: make test-browser fetches it",
)
# The middle pixel of every patch of a canvas, red, green and blue.
PIXELS = """
((id, boxes) => {
  const canvas = document.getElementById(id);
  const values = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  return boxes.map(([x, y]) => Array.from(values.slice(4 * (y * canvas.width + x)).slice(0, 3)));
})
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    assert not MISSING, f"expected a browser in {FOLDER}: tools/fetch_browser.py"
    found = Browser(tmp_path_factory.mktemp("browser"))
    yield found
    assert found.complaints == []
    found.close()


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    """The demo as it is without arguments."""
    place = tmp_path_factory.mktemp("page") / "demo.png"
    return demo.run(out=str(place), say=lambda line: None)


def colours(browser, name, boxes):
    """The middle of each box on a canvas, (..., 3)."""
    places = (boxes[..., :2] + boxes[..., 2:]) // 2
    said = browser.run(f"{PIXELS}({json.dumps(name)}, {places.reshape(-1, 2).tolist()})")
    return np.array(said).reshape(*boxes.shape[:-1], 3)


class Lit:
    """Tells lit patches: as bright as with all tokens, and not as dim as with none."""

    def __init__(self, browser, cut, whole, none):
        full, grid = page.panels(cut)
        self._browser = browser
        arranged = picture.arrange(cut, (0, 0, *full), (0, 0, *grid) if grid else None)
        self._patches = arranged.patches
        self.shown = arranged.patches[..., 2] > arranged.patches[..., 0]
        slide(browser, whole)
        self._bright = self._colours()
        slide(browser, none)
        self._dim = self._colours()

    def _colours(self):
        parts = [colours(self._browser, "full", self._patches[:1])]
        if len(self._patches) > 1:
            parts.append(colours(self._browser, "grid", self._patches[1:]))
        return np.concatenate(parts)

    def mask(self):
        now = self._colours()
        bright = (now == self._bright).all(-1)
        assert (bright | (now == self._dim).all(-1))[self.shown].all()
        return bright


def slide(browser, number):
    """Move the slider as a hand would: its value, and the event."""
    browser.run(
        f"slider.value = {number}; slider.dispatchEvent(new Event('input', {{bubbles: true}}))"
    )


def text(browser, name):
    return browser.run(f"document.getElementById({json.dumps(name)}).textContent")


def counts(browser):
    """Kept tokens of each partition, and of the picture, as the table has them."""
    script = "[...document.querySelectorAll('#counts tr')].map((row) => row.cells[1].textContent)"
    return [int(said.replace(",", "")) for said in browser.run(script)]


def write(cut, tmp_path, rng, **changes):
    """A page of random pixels and masks, the first of which keeps nothing and the last all."""
    shape = (cut.partitions, cut.tokens)
    found = [steps.Step(k / 100, k / 100, rng.random(shape) < k / 100) for k in range(0, 101, 10)]
    partitions = rng.integers(60, 256, (cut.partitions, cut.side, cut.side, 3), dtype=np.uint8)
    content = page.Content(
        headline="A page",
        remark="Remark",
        photograph=Image.new("RGB", (cut.width, cut.height)),
        partitions=partitions,
        layout=cut,
        steps=found,
        start=2,
        **changes,
    )
    path = tmp_path / "page.html"
    path.write_text(page.write(content), encoding="utf-8")
    return path, found


def test_the_slider_shows_what_the_operators_keep(browser, outcome):
    browser.open(outcome.page.as_uri())
    assert browser.run("document.title") == "64 of 320 visual tokens kept"
    assert text(browser, "now") == "20 %: 64 of 320 tokens"
    found = outcome.steps
    assert found[-1].kept.all()
    first = found[0].kept
    slide(browser, 0)
    lit = Lit(browser, outcome.layout, len(found) - 1, 0)
    for number in (4, 19, 50, 79):
        slide(browser, number)
        kept = found[number].kept
        seen = lit.mask()
        # Of the few that the first step keeps, nothing dim was seen.
        np.testing.assert_array_equal(seen[~first], kept[~first])
        assert kept[first].all()
        assert counts(browser) == [*kept.sum(axis=1).tolist(), int(kept.sum())]
        total = int(kept.sum())
        assert text(browser, "now") == f"{number + 1} %: {total} of 320 tokens"
        assert text(browser, "headline") == f"{total} of 320 visual tokens kept"
        assert text(browser, "said-full") == f"{kept[0].sum()} of 64 tokens"
        assert text(browser, "said-grid") == f"{kept[1:].sum()} of 256 tokens"


def test_answers_follow_the_slider(browser, outcome):
    browser.open(outcome.page.as_uri())
    row = "[...document.querySelectorAll('#%s td')].map((cell) => cell.textContent)"
    few = browser.run(row % "kept")
    assert few[:2] == [f"{outcome.answers[1].text} right", "64"]
    assert browser.run(row % "everything")[:2] == [f"{outcome.answers[0].text} right", "320"]
    slide(browser, 99)
    assert browser.run(row % "kept")[1] == "320"


def test_the_address_sets_the_slider_and_follows_it(browser, outcome):
    browser.open(f"{outcome.page.as_uri()}#budget=37")
    browser.wait_for("document.getElementById('now').textContent.startsWith('37 %')")
    slide(browser, 4)
    assert browser.run("location.hash") == "#budget=5"
    browser.run("location.hash = '#budget=61.3'")
    browser.wait_for("document.getElementById('now').textContent.startsWith('61 %')")


def test_keys_move_the_slider(browser, outcome):
    browser.open(outcome.page.as_uri())
    browser.press("Tab")
    assert browser.run("document.activeElement.id") == "budget"
    browser.press("ArrowRight")
    assert text(browser, "now").startswith("21 %")
    browser.press("End")
    assert text(browser, "now") == "100 %: 320 of 320 tokens"
    assert browser.run("slider.getAttribute('aria-valuetext')") == "100 %: 320 of 320 tokens"


@pytest.mark.parametrize(
    "size", [(768, 1024), (100, 800), (900, 110)], ids=["landscape", "wide", "tall"]
)
def test_every_patch_is_lit_in_its_place(size, browser, tmp_path):
    cut = layout(*size, patch=42)
    path, found = write(cut, tmp_path, np.random.default_rng(0))
    browser.open(path.as_uri())
    lit = Lit(browser, cut, 10, 0)
    for number in (1, 3, 7):
        slide(browser, number)
        np.testing.assert_array_equal(lit.mask()[lit.shown], found[number].kept[lit.shown])


def test_without_sub_images_and_without_answers(browser, tmp_path):
    cut = layout(768, 1024)
    cut = type(cut)(768, 1024, (0, 0), None, 8)
    path, found = write(cut, tmp_path, np.random.default_rng(0), note="No question was asked.")
    browser.open(path.as_uri())
    shown = "getComputedStyle(document.getElementById('%s')).display"
    assert browser.run(shown % "sub-images") == browser.run(shown % "asked") == "none"
    assert browser.run(shown % "note") != "none"
    assert counts(browser) == [int(found[2].kept.sum())]


@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_sticks_out_of_a_window(width, browser, outcome):
    browser.window(width, 800, dark=width < 600)
    browser.open(outcome.page.as_uri())
    assert browser.run("document.documentElement.scrollWidth") <= width


def test_nothing_is_fetched(browser, outcome):
    browser.requests.clear()
    browser.open(f"{outcome.page.as_uri()}?again")
    slide(browser, 50)
    asked = {request.partition(":")[0] for request in browser.requests}
    assert asked == {"file", "data"}
    assert sum(request.startswith("file:") for request in browser.requests) == 1
