# SPDX-License-Identifier: Apache-2.0
"""Training: goes on where it was stopped, and a larger model learns from the same lessons."""

import json
import sys

import numpy as np
import pytest
import torch

train = pytest.importorskip("benchmarks.evidence.train", reason="needs benchmarks/")
from benchmarks.evidence import answering, card  # noqa: E402
from benchmarks.evidence import model as small  # noqa: E402
from benchmarks.evidence.pages import seeing  # noqa: E402
from benchmarks.evidence.subject import moved  # noqa: E402
from benchmarks.evidence.subjects import SUBJECTS  # noqa: E402


def run(monkeypatch, folder, *options):
    """The command with few steps; checkpoints after each."""
    steps = ["--tower-steps", "3", "--answer-steps", "3", "--short-steps", "2", "--pictures", "2"]
    places = ["--work", str(folder / "work"), "--out", str(folder / "out")]
    monkeypatch.setattr(sys, "argv", ["evidence.train", *steps, *places, *options])
    monkeypatch.setattr(train, "_EVERY", 0.0)
    monkeypatch.setattr(card, "HELD_OUT", 12)
    train.main()
    return small.load(folder / "out").state_dict()


@pytest.mark.parametrize("stopped", ["tower", "answers"])
def test_a_run_that_was_stopped_goes_on(monkeypatch, tmp_path, stopped):
    whole = run(monkeypatch, tmp_path / "whole", "--subject", "signs")
    save, saved = torch.save, []

    def save_and_stop(state, path):
        save(state, path)
        saved.append(path.stem)
        if saved.count(stopped) == 2 and path.stem == stopped:
            raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", save_and_stop)
    # The second checkpoint is written beside its place, and the first is still there.
    with pytest.raises(KeyboardInterrupt):
        run(monkeypatch, tmp_path / "stopped", "--subject", "signs")
    monkeypatch.setattr(torch, "save", save)
    state = torch.load(tmp_path / "stopped" / "work" / f"{stopped}.pt")
    assert state["step"] == 1
    resumed = run(monkeypatch, tmp_path / "stopped", "--subject", "signs")
    assert resumed.keys() == whole.keys()
    for name, weight in whole.items():
        assert torch.equal(weight, resumed[name]), name
    lines = (tmp_path / "stopped" / "work" / f"{stopped}.log").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]


@pytest.mark.parametrize("size", ["small", "large"])
@pytest.mark.parametrize("name", SUBJECTS)
def test_both_stages_teach_every_weight(monkeypatch, name, size):
    monkeypatch.setattr(seeing, "_READ", -1.0)  # as when words are read
    subject = SUBJECTS[name]
    model = small.build(subject, 0, size)
    tower, heads = model.model.vision_tower, subject.heads(subject.networks[size])
    rng = np.random.default_rng(0)
    batch = subject.draw_lesson(rng, subject.draw_size(rng), 2)
    loss, told = subject.lesson(tower, heads, moved(batch, torch.device("cpu")))
    loss.backward()
    assert all(0 <= share <= 1 for share in told.values())
    learners = [*tower.named_parameters(), *heads.named_parameters()]
    assert [key for key, weight in learners if weight.grad is None] == []
    tower.requires_grad_(False)
    for short in (True, False):
        lesson = answering.draw(subject, rng, 2, 1, short=short)
        loss, _ = answering.loss(model, subject, lesson)
        loss.backward()
        assert torch.isfinite(loss)
    rest = [
        *model.model.multi_modal_projector.named_parameters(),
        *model.lm_head.named_parameters(),
    ]
    rest += model.model.language_model.named_parameters()
    assert [key for key, weight in rest if weight.grad is None or not weight.grad.any()] == []


@pytest.mark.parametrize("read", [False, True])
def test_neighbours_are_asked_for_once_words_are_read(monkeypatch, read):
    monkeypatch.setattr(seeing, "_READ", -1.0 if read else 1.0)
    subject = SUBJECTS["pages"]
    model = small.build(subject, 0)
    heads = subject.heads(subject.networks["small"])
    batch = subject.draw_lesson(np.random.default_rng(0), (336, 336), 2)
    subject.lesson(model.model.vision_tower, heads, batch)[0].backward()
    asked = [name for name, part in heads.patches.items() if part[1].weight.grad is not None]
    others = ["before", "row_head", "column_head"] if read else []
    assert sorted(asked) == sorted(["words", "blocks", *others])


def test_keys_begin_as_queries_where_the_subject_says_so():
    for subject in SUBJECTS.values():
        model = small.build(subject, 0).model
        for layer in (*model.vision_tower.encoder.layers, *model.language_model.layers):
            alike = torch.equal(layer.self_attn.q_proj.weight, layer.self_attn.k_proj.weight)
            assert alike == subject.alike


def test_short_prompts_have_all_that_shows_something():
    for subject in SUBJECTS.values():
        rng = np.random.default_rng(1)
        lesson = answering.draw(subject, rng, 3, 2, short=True)
        order = answering.raster_order(*lesson.size, subject.tile)
        assert lesson.kept.shape[1] < len(order)
        assert (lesson.kept.diff(dim=1) > 0).all()
        rng = np.random.default_rng(1)
        scenes = [subject.draw_scene(rng, subject.draw_size(rng))]
        needed = (subject.shown(scenes).about[0, order] > 0).any(dim=1).nonzero()[:, 0].tolist()
        assert set(needed) <= set(lesson.kept[0].tolist())
