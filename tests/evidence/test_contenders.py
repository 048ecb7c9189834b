# SPDX-License-Identifier: Apache-2.0
"""Who chooses which tokens stay: how many, and which in cases worked out by hand."""

import numpy as np
import pytest
import torch

contenders = pytest.importorskip("benchmarks.evidence.contenders", reason="needs benchmarks/")
from benchmarks.evidence import answering, evaluate, successors, tiles  # noqa: E402
from benchmarks.evidence import model as small  # noqa: E402
from benchmarks.evidence.subjects import SUBJECTS  # noqa: E402

FIXED_SEED = 77


@pytest.fixture(scope="module", params=SUBJECTS)
def subject(request):
    return SUBJECTS[request.param]


@pytest.fixture(scope="module")
def seen(subject):
    """Two pictures of each size through an untrained model."""
    model = small.build(subject, 0).eval()
    groups = evaluate.groups(subject, FIXED_SEED, 12, batch=2)
    firsts = {group.pictures.shape[1:3]: group for group in groups}
    with torch.no_grad():
        return [contenders.see(subject, group.pictures, model) for group in firsts.values()]


@pytest.mark.parametrize("share", evaluate.BUDGETS[1:])
@pytest.mark.parametrize("name", evaluate.FIELD)
def test_each_keeps_the_same_number_of_tokens_and_no_padding(subject, seen, name, share):
    for each in seen:
        layout = each.layout
        K = layout.budget(share)
        valid = answering.raster_order(layout.height, layout.width, subject.tile).tolist()
        with torch.no_grad():
            chosen = evaluate.FIELD[name](each, K, np.random.default_rng(0))
        assert len(chosen) == len(each.pictures)
        for kept in chosen:
            if name == "full image only":
                assert len(kept) == min(K, layout.tokens)
            elif name == "published":
                assert 0 < len(kept) <= K
            elif name == "smaller picture":
                assert 0.7 * K < len(kept) <= K
            else:
                assert len(kept) == K
            if not isinstance(chosen, torch.Tensor):
                assert len(set(kept)) == len(kept)
                assert set(kept) <= set(valid)
                assert sorted(kept, key=valid.index) == kept or name == "published"


def one_picture(tokens, attention, side=2, projected=None):
    """A picture without sub-images: tokens (T, D) and what CLS pays to each."""
    subject = SUBJECTS["signs"]
    size = 14 * side
    seen = dict.fromkeys(contenders.Seen.__dataclass_fields__)
    layout = tiles.layout_of(224, 224, 112)
    seen |= {"subject": subject, "layout": layout, "pictures": np.zeros((1, size, size, 3))}
    seen |= {"tokens": torch.tensor([tokens]).float(), "final": torch.tensor([[attention]])}
    seen |= {"projected": torch.tensor([projected or tokens]).float()}
    return contenders.Seen(**seen)


@pytest.fixture
def all_valid(monkeypatch):
    monkeypatch.setattr(successors, "_valid", lambda seen: torch.arange(seen.tokens.shape[1]))


RNG = np.random.default_rng(0)


def test_divprune_keeps_what_is_far_apart(all_valid):
    # In directions: two twins, one near them, one opposite.
    seen = one_picture([[1, 0], [1, 0.01], [1, 1], [-1, 0]], [0.1, 0.2, 0.3, 0.4])
    assert successors.divprune(seen, 1, RNG) == [[3]]
    assert successors.divprune(seen, 2, RNG) == [[0, 3]]
    assert successors.divprune(seen, 3, RNG) == [[0, 2, 3]]
    # As the language model reads them, the fourth is a twin, too.
    seen = one_picture(
        seen.tokens[0].tolist(), [0.1] * 4, projected=[[0, 1], [1, 0], [0, 1], [0, 1]]
    )
    assert successors.divprune(seen, 2, RNG) == [[0, 1]]


def test_scope_weighs_coverage_with_attention(all_valid):
    twins = [[1, 0], [1, 0], [1, 0], [0, 1]]
    seen = one_picture(twins, [0.3, 0.25, 0.25, 0.2])
    assert successors.scope(seen, 1, RNG) == [[0]]
    assert successors.scope(seen, 2, RNG) == [[0, 3]]  # the twins cover nothing new
    seen = one_picture(twins, [0.1, 0.1, 0.1, 0.7])
    assert successors.scope(seen, 1, RNG) == [[3]]


def test_vispruner_removes_twins_from_what_attention_leaves(all_valid):
    tokens = [[1, 0, 0], [1, 0, 0.1], [0, 1, 0], [0, 0.99, 0.1], [0, 0, 1], [0.02, 0.01, 1]]
    seen = one_picture(tokens, [0.5, 0.4, 0.03, 0.02, 0.02, 0.01])
    (kept,) = successors.vispruner(seen, 4, RNG)
    assert kept[:2] == [0, 1]
    assert len({t // 2 for t in kept[2:]}) == 2  # one of each pair


def test_visionzip_merges_what_it_does_not_keep(monkeypatch, subject, seen):
    monkeypatch.setattr(successors, "DOMINANT", 0.5)
    each = seen[0]
    with torch.no_grad():
        made = successors.visionzip(each, 40, RNG)
    kept = [[tuple(row) for row in picture.tolist()] for picture in each.tokens]
    for b, picture in enumerate(made):
        whole = [tuple(row) in kept[b] for row in picture.tolist()]
        assert 0.5 * 40 <= sum(whole) + 2 < 40  # dominant ones; a target may be all alone
        assert picture.abs().max() <= each.tokens[b].abs().max()


def test_visionzip_keeps_every_token_where_all_are_wanted(subject, seen):
    each = seen[0]
    with torch.no_grad():
        made = successors.visionzip(each, each.layout.valid, RNG)
    order = answering.raster_order(each.layout.height, each.layout.width, subject.tile)
    torch.testing.assert_close(made, each.tokens[:, order])


def test_a_smaller_picture_is_the_picture(subject, seen):
    """With a token for each patch of a sub-image there is nothing to shrink."""
    each = seen[0]
    _, height, width, _ = each.pictures.shape
    K = height * width // tiles.PATCH**2
    with torch.no_grad():
        made = successors.smaller_picture(each, K, RNG)
    order = answering.raster_order(height, width, subject.tile)[each.layout.tokens :]
    assert len(order) == K
    torch.testing.assert_close(made, each.tokens[:, order], rtol=1e-4, atol=1e-4)
