# SPDX-License-Identifier: Apache-2.0
"""The drawing shows exactly what was kept: a patch is bright if and only if its token was.

A bright, flat picture goes in, so that the colour of a patch tells whether it is lit; patches that
a count covers are left out.
"""

import numpy as np
import pytest

from hired_kernels.cli import picture
from hired_kernels.geometry import Layout, layout

BRIGHT = (250, 180, 90)
LAYOUTS = {
    "landscape": layout(768, 1024),
    "portrait": layout(1024, 600),
    "square": layout(672, 672),
    "wide": layout(300, 1200),
    "thin": layout(3, 2000),
    "small patches": layout(400, 600, tile=336, patch=28),
    "no sub-images": Layout(400, 600, (0, 0), None, 24),
    "no crop": Layout(400, 600, (2, 3), None, 24),
}
by_layout = pytest.mark.parametrize("cut", LAYOUTS.values(), ids=LAYOUTS.keys())


def flat(cut):
    """Partitions of one colour, 336 pixels a side."""
    return np.broadcast_to(np.array(BRIGHT, dtype=np.uint8), (cut.partitions, 336, 336, 3)).copy()


def valid(cut):
    """Which patches are picture, (P, T)."""
    (R, C), side = cut.grid, cut.side
    if R == 0:
        return np.ones((1, cut.tokens), dtype=bool)
    grid = np.zeros((R * side, C * side), dtype=bool)
    top, bottom, left, right = cut.crop or (0, R * side, 0, C * side)
    grid[top:bottom, left:right] = True
    sub_images = grid.reshape(R, side, C, side).swapaxes(1, 2).reshape(R * C, -1)
    return np.concatenate([np.ones((1, cut.tokens), dtype=bool), sub_images])


def uncovered(cut, canvas):
    """Patches that no count stands on, (P, T)."""
    left, top, right, bottom = np.moveaxis(canvas.patches, -1, 0)
    free = np.ones((cut.partitions, cut.tokens), dtype=bool)
    for x, y, x_end, y_end in picture.tags(cut, canvas):
        free &= (right <= x) | (left >= x_end) | (bottom <= y) | (top >= y_end)
    return free


@by_layout
def test_lit_patches_are_the_kept_ones(cut):
    rng = np.random.default_rng(0)
    kept = valid(cut) & (rng.random((cut.partitions, cut.tokens)) < 0.3)
    canvas = picture.arrange(cut, 336)
    pixels = np.asarray(picture.draw(flat(cut), kept, cut, ("left", "right")))
    assert pixels.shape == (canvas.size[1], canvas.size[0], 3)
    centres = (canvas.patches[..., :2] + canvas.patches[..., 2:]) // 2
    lit = (pixels[centres[..., 1], centres[..., 0]] == BRIGHT).all(-1)
    free = uncovered(cut, canvas)
    np.testing.assert_array_equal(lit[free], kept[free])
    if cut.grid == (2, 2):
        assert free.sum() > 0.95 * free.size


@by_layout
def test_patches_fill_their_panels_without_overlap(cut):
    canvas = picture.arrange(cut, 336)
    painted = np.zeros((canvas.size[1], canvas.size[0]), dtype=int)
    for left, top, right, bottom in canvas.patches.reshape(-1, 4):
        assert 0 <= left < right <= canvas.size[0]
        assert 0 <= top < bottom <= canvas.size[1]
        painted[top:bottom, left:right] += 1
    boxes = [box for box in (canvas.full, canvas.grid) if box]
    assert painted.max() == 1
    assert painted.sum() == sum((box[2] - box[0]) * (box[3] - box[1]) for box in boxes)


def test_the_full_image_stands_beside_the_same_rows_of_the_grid():
    canvas = picture.arrange(layout(768, 1024), 336)
    assert canvas.full[1::2] == canvas.region[1::2]
    assert canvas.full[2] - canvas.full[0] == canvas.region[2] - canvas.region[0]


@pytest.mark.parametrize("colour", [0, 11, 128, 255])
def test_dimmed_is_another_colour(colour):
    pixels = np.full((1, 1, 3), colour, dtype=np.uint8)
    dimmed = picture.dimmed(pixels)
    assert not (dimmed == pixels).all()
    assert dimmed.max() <= 100


def test_shapes_must_fit_the_layout():
    cut = LAYOUTS["landscape"]
    with pytest.raises(ValueError, match=r"draw: expected 5 partitions and a \(5, 576\) mask"):
        picture.draw(flat(cut)[:4], np.ones((5, 576), dtype=bool), cut)
    with pytest.raises(ValueError, match=r"draw: expected 5 partitions and a \(5, 576\) mask"):
        picture.draw(flat(cut), np.ones((5, 575), dtype=bool), cut)
