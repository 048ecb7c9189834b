# SPDX-License-Identifier: Apache-2.0
"""What holds for every kind of picture: scenes, tiles, checkpoints with their cards, figures."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image

answering = pytest.importorskip("benchmarks.evidence.answering", reason="needs benchmarks/")
from benchmarks.evidence import card, decide, evaluate, intervals, tables, tiles  # noqa: E402
from benchmarks.evidence import model as small  # noqa: E402
from benchmarks.evidence.subjects import SEEDS, SUBJECTS  # noqa: E402

SIZES = [(name, size) for name, subject in SUBJECTS.items() for size in subject.sizes]
MODELS = [
    (name, seed) for name in SUBJECTS for seed in SEEDS if small.checkpoint(name, seed).exists()
]


@pytest.mark.parametrize(("name", "size"), SIZES, ids=str)
def test_scenes_are_seeded_and_their_questions_are_in_words_of_the_model(name, size):
    subject = SUBJECTS[name]

    def drawn(seed):
        rng = np.random.default_rng(seed)
        scenes = [subject.draw_scene(rng, size) for _ in range(20)]
        pictures = subject.paint(rng, scenes)
        return scenes, pictures, [subject.ask(rng, scene, 2, subject.kinds) for scene in scenes]

    scenes, painted, asked = drawn(1)
    again, repainted, asked_again = drawn(1)
    assert (scenes, asked) == (again, asked_again)
    assert np.array_equal(painted, repainted)
    assert drawn(2)[0] != scenes
    assert painted.shape == (20, *size, 3)
    for row in asked:
        assert [question.kind for question in row] == [k for k in subject.kinds for _ in range(2)]
        for question in row:
            words = question.text.split()
            assert len(words) <= subject.longest
            assert all(word in subject.ids for word in words)
            assert question.answer in subject.answers


@pytest.mark.parametrize(("name", "size"), SIZES, ids=str)
def test_tiles_are_cut_as_the_processor_cuts_them(name, size):
    subject, rng = SUBJECTS[name], np.random.default_rng(3)
    painted = subject.paint(rng, [subject.draw_scene(rng, size) for _ in range(2)])
    ours = subject.partitions(painted)
    images = [Image.fromarray(picture) for picture in painted]
    processed = small.build_processor(subject).image_processor(images=images, return_tensors="pt")
    theirs = processed["pixel_values"]
    assert ours.shape == theirs.shape
    torch.testing.assert_close(ours[:, 1:], theirs[:, 1:])
    # Pillow rounds to whole levels between its two passes.
    assert (ours[:, 0] - theirs[:, 0]).abs().max() < 4 / 255 / 0.26


@pytest.mark.parametrize(("name", "size"), SIZES, ids=str)
def test_what_is_said_to_be_shown_is_where_the_answers_are(name, size):
    """Each answer but counts is in a token; nothing is said of padding."""
    subject, rng = SUBJECTS[name], np.random.default_rng(4)
    scenes = [subject.draw_scene(rng, size) for _ in range(10)]
    shown = subject.shown(scenes)
    order = answering.raster_order(*size, subject.tile)
    T = subject.side**2
    assert shown.about.shape == (10, subject.layout(*size).partitions * T, len(subject.answers))
    assert (shown.about[:, :T] == -1).all() or name == "pages"
    padding = torch.ones(shown.about.shape[1], dtype=torch.bool).index_fill(0, order, False)
    assert not (shown.about[:, padding] == 1).any()
    for row, scene in enumerate(scenes):
        for question in subject.ask(rng, scene, 3, subject.kinds):
            if question.kind != "count":
                number = subject.answers.index(question.answer)
                assert (shown.about[row, order, number] == 1).any()


@pytest.mark.parametrize("size", SUBJECTS["pages"].sizes, ids=str)
def test_full_images_of_pages_are_asked_about_large_print_only(size):
    """And in the patches where it is: those that change when it is taken away."""
    rng, T = np.random.default_rng(5), SUBJECTS["pages"].side ** 2
    page = SUBJECTS["pages"].draw_scene(rng, size)
    large = [word for word in page.words if word.block in ("heading", "stamp")]
    small = tuple(word for word in page.words if word not in large)
    scenes = [page, dataclasses.replace(page, words=small)]
    first, second = (
        SUBJECTS["pages"].paint(np.random.default_rng(6), [scene])[0].astype(int)
        for scene in scenes
    )
    pictures = np.stack([np.zeros_like(first), abs(first - second)]).astype(np.uint8)
    changed = tiles.shrunk(pictures, 168, 168)[1].amax(dim=0).sub(15).clamp(min=0)  # noise is less
    changed = changed.unflatten(1, (12, 14)).unflatten(0, (12, 14)).sum(dim=(1, 3)).flatten()
    about = SUBJECTS["pages"].shown(scenes).about[:, :T]
    asked = about[..., 0] >= 0
    assert (changed[asked[0]] > 0).all()
    assert changed[asked[0]].sum() > 0.6 * changed.sum()
    assert not asked[1].any()
    words = {SUBJECTS["pages"].answers[n] for n in about[0][asked[0]].amax(dim=0).nonzero()[:, 0]}
    assert words == {text for word in large for text in (word.text, word.block)}


def test_subjects_with_figures_have_all_their_models():
    for name in json.loads(tables.RESULTS.read_text())["subjects"]:
        assert [seed for subject, seed in MODELS if subject == name] == list(SEEDS)


@pytest.mark.parametrize(("name", "seed"), MODELS, ids=str)
def test_the_card_agrees_with_the_checkpoint(name, seed):
    subject, folder = SUBJECTS[name], small.checkpoint(name, seed)
    model, facts = small.load(folder), json.loads((folder / "card.json").read_text())
    assert (facts["subject"], facts["seed"]) == (name, seed)
    assert facts["parameters"] == sum(weight.numel() for weight in model.parameters())
    vision, text = model.config.vision_config, model.config.text_config
    of_tower = vision.hidden_size, vision.num_hidden_layers, vision.num_attention_heads
    assert of_tower == tuple(facts["tower"].values())
    of_text = text.hidden_size, text.num_hidden_layers
    assert of_text == tuple(facts["language_model"].values())
    assert facts["minutes"] <= 60
    assert (folder / "README.md").read_text() == card.text(facts, subject)
    rows = model.config.image_grid_pinpoints
    assert rows == [[R * subject.tile, C * subject.tile] for R, C in tiles.GRIDS]
    assert sum(path.stat().st_size for path in folder.iterdir()) < 8e6


@pytest.mark.parametrize(("name", "seed"), MODELS, ids=str)
def test_a_checkpoint_answers_as_its_card_says(name, seed):
    """A part of the card's pictures, which is as good as all within what so many can tell."""
    subject, folder = SUBJECTS[name], small.checkpoint(name, seed)
    facts = json.loads((folder / "card.json").read_text())
    group = next(evaluate.groups(subject, card.HELD_OUT_SEED, card.HELD_OUT))
    right = evaluate.right(small.load(folder), subject, group, ["exact"], [1.0], 0)["exact", 1.0]
    expected = facts["accuracy"]["all"]
    assert abs(right.mean() - expected) < 3 * (expected * (1 - expected) / right.size) ** 0.5 + 0.02


def test_docs_have_the_figures_that_were_measured():
    found = json.loads(tables.RESULTS.read_text())
    page = tables.PAGE.read_text()
    for name, each in found["subjects"].items():
        assert each["summary"]["models"] == len(each["environments"]) == len(SEEDS)
        for table in tables.markdown(name, each["summary"]):
            assert table in page
    assert decide.markdown(found["rule"]["parts"]) in page
    assert decide.decision(found["rule"]["parts"]) == found["rule"]["decision"]


def test_tables_go_between_marks(monkeypatch, tmp_path):
    page = tmp_path / "page.md"
    monkeypatch.setattr(tables, "PAGE", page)
    page.write_text("a\n<!-- it -->\nold\n<!-- end of it -->\nb\n")
    tables.put("it", "new")
    assert page.read_text() == "a\n<!-- it -->\nnew\n<!-- end of it -->\nb\n"
    with pytest.raises(SystemExit):
        tables.put("another", "new")


def test_students_distribution():
    """From tables: Fisher and Yates."""
    expected = {1: 12.706, 2: 4.303, 3: 3.182, 10: 2.228, 30: 2.042, 120: 1.980}
    for freedom, quantile in expected.items():
        assert abs(intervals.student(freedom) - quantile) < 1e-3


@pytest.mark.parametrize("spread_of_models", [0, 0.15, 0.5])
def test_intervals_hold_the_mean_as_often_as_they_say(spread_of_models):
    rng, held, draws = np.random.default_rng(0), 0, 1000
    for _ in range(draws):
        values = rng.normal(size=(3, 60)) + rng.normal(size=(1, 60))
        values += rng.normal(scale=spread_of_models, size=(3, 1)) if spread_of_models else 0
        held += abs(values.mean()) < intervals.half_width(values)
    assert 0.9 < held / draws < 0.99


def test_intervals_of_one_model_are_over_pictures():
    values = np.random.default_rng(0).normal(size=(1, 400))
    expected = 1.966 * values.std(ddof=1) / 20
    assert abs(intervals.half_width(values) - expected) < 1e-3 * expected
    assert intervals.half_width(np.zeros((3, 50))) == 0


def figure(gain, interval):
    return {"to exact": gain, "interval to exact": interval}


def parts(gains):
    """Figures in which candidates gain so much: {candidate: (few, its interval, at 20 %)}."""
    few = {name: {"together": figure(gain, wide)} for name, (gain, wide, _) in gains.items()}
    fifth = {name: {"0.2": figure(at, 0.01)} for name, (_, _, at) in gains.items()}
    return {"few": few, "all": fifth, "models": 3}


def test_the_rule_for_the_default():
    quarter, pooled = decide.CANDIDATES
    wins, loses = (0.05, 0.02, 0.0), (0.05, 0.06, 0.0)
    both = {quarter: wins, pooled: (0.06, 0.02, 0.0)}
    decided = decide.decision({"signs": parts(both), "pages": parts(both)})
    assert decided["default below 20 %"] == pooled
    one = {quarter: wins, pooled: loses}
    decided = decide.decision({"signs": parts(both), "pages": parts(one)})
    assert decided["default below 20 %"] == quarter
    worse = {quarter: (0.05, 0.02, -0.02), pooled: loses}
    decided = decide.decision({"signs": parts(both), "pages": parts(worse)})
    assert decided["default below 20 %"] == decide.DEFAULT
    two = {**parts(both), "models": 2}
    assert decide.decision({"signs": parts(both), "pages": two})["default below 20 %"] is None
    assert decide.decision({"signs": parts(both)})["default below 20 %"] is None
