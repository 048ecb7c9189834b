# SPDX-License-Identifier: Apache-2.0
"""The demo's card: everything has a place of its own, whatever the picture and the words are."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hired_kernels.cli import card, picture, typesetting
from hired_kernels.cli.card import Content, Reply
from hired_kernels.geometry import Layout, layout

TEXTS = [
    "",
    "Which digit stands next to the cyan cross?",
    "word " * 200,
    "x" * 2000,
    "どの数字が青い十字の隣にありますか" * 20,
    "Какая цифра стоит рядом с крестом?",
    "أي رقم يقف بجانب الصليب؟",
    "a\nb\x1b[31m\tc\udce9\u2028d\0",
    "👩‍👩‍👧 é e\u0301",
]
words = st.sampled_from(TEXTS) | st.text(max_size=80)
shares = st.tuples(words, st.booleans())


@st.composite
def layouts(draw):
    height, width = draw(st.integers(1, 4000)), draw(st.integers(1, 4000))
    kind = draw(st.sampled_from(["usual", "small", "large", "none", "no crop"]))
    if kind == "none":
        return Layout(height, width, (0, 0), None, draw(st.integers(1, 27)))
    if kind == "no crop":
        return Layout(height, width, (draw(st.integers(1, 6)), draw(st.integers(1, 6))), None, 5)
    if kind == "large":
        pinpoints = [(336 * r, 336 * c) for r in range(1, 7) for c in range(1, 7)]
        return layout(height, width, pinpoints=pinpoints)
    return layout(height, width, patch=42 if kind == "small" else 14)


@st.composite
def contents(draw):
    cut = draw(layouts())
    replies = [
        Reply(
            draw(words),
            draw(words),
            draw(st.sampled_from([None, True, False])),
            draw(st.integers(0, 10**6)),
            draw(words),
            draw(words),
        )
        for _ in range(draw(st.integers(0, 2)))
    ]
    return Content(
        headline=draw(words),
        remark=draw(words),
        photograph=Image.new("RGB", (cut.width, cut.height)),
        partitions=np.zeros((cut.partitions, 1, 1, 3), dtype=np.uint8),
        kept=np.zeros((cut.partitions, cut.tokens), dtype=bool),
        layout=cut,
        question=draw(words),
        replies=replies,
        saved=draw(st.lists(shares, max_size=3)),
        note=draw(words),
        footer=(draw(words), draw(words)),
    )


def boxes_of(made):
    panels = [box for box in (made.panels.full, made.panels.grid) if box]
    return [made.photograph, *panels, *(label.box for label in made.labels), *made.rules]


@given(contents())
def test_nothing_overlaps_and_all_lies_on_the_card(content):
    made = card.compose(content)
    width, height = made.size
    boxes = boxes_of(made)
    for left, top, right, bottom in boxes:
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
    for one, other in itertools.combinations(boxes, 2):
        beside = one[2] <= other[0] or other[2] <= one[0]
        assert beside or one[3] <= other[1] or other[3] <= one[1], (one, other)
    for label in made.labels:
        assert typesetting.width(label.text, label.face) <= label.box[2] - label.box[0]


@given(words, st.integers(20, 60), st.integers(80, 900), st.integers(1, 4))
def test_lines_hold_the_text(text, size, room, most):
    face = typesetting.font(text, size)
    found = typesetting.lines(text, face, room, most)
    whole = "".join(text.split())
    assert len(found) <= most
    assert all(typesetting.width(line, face) <= room for line in found)
    said = "".join("".join(found).split())
    if said != whole:
        assert said.endswith(typesetting.ELLIPSIS)
        assert whole.startswith(said.rstrip(typesetting.ELLIPSIS))
        assert len(found) == most


def test_lines_break_between_words():
    face = typesetting.font("", 30)
    room = typesetting.width("which digit stands", face)
    assert typesetting.lines("which digit stands next", face, room, 3) == [
        "which digit stands",
        "next",
    ]


def test_letters_that_the_font_lacks_are_looked_for_elsewhere():
    own = typesetting.font("digit", 20)
    other = typesetting.font("цифра", 20)
    assert own.getname()[0] == "Aileron"
    if other.getname() == own.getname():
        pytest.skip("no font with Cyrillic letters here")
    assert all(typesetting._has(other, letter) for letter in "цифра")
    assert not typesetting._has(own, "ц")


def small(**changes):
    cut = layout(300, 600)
    options = {
        "headline": "575 of 2,880 visual tokens kept",
        "remark": "How.",
        "photograph": Image.new("RGB", (600, 300), (200, 30, 30)),
        "partitions": np.full((cut.partitions, 336, 336, 3), 200, dtype=np.uint8),
        "kept": np.zeros((cut.partitions, cut.tokens), dtype=bool),
        "layout": cut,
        **changes,
    }
    return Content(**options)


def said(content):
    return [label.text for label in card.compose(content).labels]


def test_a_card_says_question_answers_and_savings():
    replies = [
        Reply("All tokens", "1", True, 2880, "40.0 ms"),
        Reply("Kept tokens", "7", False, 575, "30.0 ms"),
    ]
    content = small(question="Which digit?", replies=replies, saved=[("80 % fewer", True)])
    texts = said(content)
    for text in ("Which digit?", "1", "right", "7", "wrong", "2,880", "575", "40.0 ms", "30.0 ms"):
        assert text in texts
    assert "80 % fewer" in texts
    assert "Whole answer" not in texts


def test_a_longer_answer_has_its_time():
    reply = Reply("All tokens", "a cross", None, 2880, "40.0 ms", "1.2 s")
    texts = said(small(question="What?", replies=[reply]))
    assert "Whole answer" in texts
    assert "1.2 s" in texts
    assert not {"right", "wrong"} & set(texts)


def test_without_a_question_the_card_says_why():
    texts = said(small(note="No question was asked."))
    assert "No question was asked." in texts
    assert not {"Question", "Answer", "Visual tokens"} & set(texts)


def test_what_is_drawn_is_the_picture_and_the_kept_patches():
    cut = layout(300, 600)
    kept = np.random.default_rng(0).random((cut.partitions, cut.tokens)) < 0.2
    content = small(kept=kept)
    made, pixels = card.compose(content), np.asarray(card.draw(content))
    assert pixels.shape == (made.size[1], card.WIDTH, 3)
    left, top, right, bottom = made.photograph
    assert (pixels[top:bottom, left:right] == (200, 30, 30)).all()
    patches = made.panels.patches
    centres = (patches[..., :2] + patches[..., 2:]) // 2
    lit = (pixels[centres[..., 1], centres[..., 0]] == 200).all(-1)
    shown = patches[..., 2] > patches[..., 0]
    np.testing.assert_array_equal(lit[shown], kept[shown])


def test_wide_pictures_stand_one_below_the_other():
    made = card.compose(small())
    assert made.panels.grid
    assert made.photograph[3] < made.panels.full[1] < made.panels.grid[1]
    square = layout(600, 600)
    made = card.compose(
        small(
            photograph=Image.new("RGB", (600, 600)),
            layout=square,
            partitions=np.zeros((5, 336, 336, 3), dtype=np.uint8),
            kept=np.zeros((5, 576), dtype=bool),
        )
    )
    assert made.panels.grid
    assert made.photograph[1] == made.panels.full[1] == made.panels.grid[1]


def test_partitions_must_fit():
    with pytest.raises(ValueError, match="draw: expected 3 partitions, got 2"):
        card.draw(small(partitions=np.zeros((2, 336, 336, 3), dtype=np.uint8)))
    assert picture.shapes(layout(300, 600))[1] == (48, 24)
