# SPDX-License-Identifier: Apache-2.0
"""The drawing shows exactly what was kept: a patch is bright if and only if its token was.

A bright, flat picture goes in, so that the colour of a patch tells whether it is lit.
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
    "an odd crop": Layout(400, 600, (2, 3), (1, 40, 20, 48), 24),
}
by_layout = pytest.mark.parametrize("cut", LAYOUTS.values(), ids=LAYOUTS.keys())


def flat(cut):
    """Partitions of one colour, 336 pixels a side."""
    return np.broadcast_to(np.array(BRIGHT, dtype=np.uint8), (cut.partitions, 336, 336, 3)).copy()


def arranged(cut, pixel=7):
    """Both panels on a sheet, one beside the other, and the sheet."""
    (width, height), grid = picture.shapes(cut)
    full = (10, 20, 10 + pixel * width, 20 + pixel * height)
    box = None
    if grid:
        box = (full[2] + 5, 8, full[2] + 5 + pixel * grid[0] + 3, 8 + pixel * grid[1])
    bottom = max(full[3], box[3] if box else 0) + 9
    right = (box or full)[2] + 4
    return picture.arrange(cut, full, box), np.zeros((bottom, right, 3), dtype=np.uint8)


def drawn(cut, kept):
    panels, sheet = arranged(cut)
    picture.paint(sheet, flat(cut), cut, panels)
    picture.light(sheet, kept, cut, panels)
    return panels, sheet


@by_layout
def test_lit_patches_are_the_kept_ones(cut):
    rng = np.random.default_rng(0)
    kept = rng.random((cut.partitions, cut.tokens)) < 0.3
    panels, sheet = drawn(cut, kept)
    shown = (panels.patches[..., 0] < panels.patches[..., 2]) & (
        panels.patches[..., 1] < panels.patches[..., 3]
    )
    centres = (panels.patches[..., :2] + panels.patches[..., 2:]) // 2
    lit = (sheet[centres[..., 1], centres[..., 0]] == BRIGHT).all(-1)
    np.testing.assert_array_equal(lit[shown], kept[shown])
    capacities = np.array(cut.capacities)
    np.testing.assert_array_equal(shown.sum(axis=1)[capacities > 0], capacities[capacities > 0])


@by_layout
def test_patches_fill_their_panels_without_overlap(cut):
    panels, sheet = arranged(cut)
    painted = np.zeros(sheet.shape[:2], dtype=int)
    for left, top, right, bottom in panels.patches.reshape(-1, 4):
        painted[top:bottom, left:right] += 1
    expected = np.zeros_like(painted)
    for box in (panels.full, panels.grid):
        if box:
            expected[box[1] : box[3], box[0] : box[2]] = 1
    np.testing.assert_array_equal(painted, expected)


def test_both_panels_have_the_shape_of_the_picture():
    full, grid = picture.shapes(layout(768, 1024))
    assert full == grid == (48, 36)


def test_a_sliver_is_seen():
    full, grid = picture.shapes(layout(100, 800))
    assert grid == (72, 10)
    assert full == (72, 12)


def test_every_part_stands_in_its_place():
    """Each sub-image has a colour, and so has the full image."""
    cut = LAYOUTS["an odd crop"]
    partitions = flat(cut)
    partitions[:] = (np.arange(7, dtype=np.uint8) * 30 + 20)[:, None, None, None]
    panels, sheet = arranged(cut)
    picture.paint(sheet, partitions, cut, panels)
    for p in range(cut.partitions):
        boxes = panels.patches[p][panels.patches[p, :, 2] > panels.patches[p, :, 0]]
        if cut.capacities[p] == 0:
            assert len(boxes) == 0
            continue
        middle = [
            sheet[(top + bottom) // 2, (left + right) // 2, 0] for left, top, right, bottom in boxes
        ]
        assert np.mean(np.array(middle) == 30 * p + 20) > 0.9  # edges are smooth


def test_lines_stand_between_sub_images():
    cut = LAYOUTS["an odd crop"]  # its last column of sub-images is padding
    panels, _ = arranged(cut)
    assert panels.grid
    upright = [box for box in picture.lines(cut, panels) if box[2] - box[0] == 2]
    level = [box for box in picture.lines(cut, panels) if box[3] - box[1] == 2]
    assert [box[0] + 1 for box in upright] == [panels.patches[2, 24, 0]]
    assert [box[1] + 1 for box in level] == [panels.patches[5, 1, 1]]
    assert picture.lines(LAYOUTS["no sub-images"], arranged(LAYOUTS["no sub-images"])[0]) == []


@pytest.mark.parametrize("colour", [0, 11, 128, 255])
def test_dimmed_is_another_colour(colour):
    pixels = np.full((1, 1, 3), colour, dtype=np.uint8)
    dimmed = picture.dimmed(pixels)
    assert not (dimmed == pixels).all()
    assert dimmed.max() <= 100


def test_shapes_must_fit_the_layout():
    cut = LAYOUTS["landscape"]
    panels, sheet = arranged(cut)
    with pytest.raises(ValueError, match="draw: expected 5 partitions, got 4"):
        picture.paint(sheet, flat(cut)[:4], cut, panels)
    with pytest.raises(ValueError, match=r"draw: expected a \(5, 576\) mask, got \(5, 575\)"):
        picture.light(sheet, np.ones((5, 575), dtype=bool), cut, panels)
    with pytest.raises(ValueError, match="arrange: expected a box for a grid of 2 x 2, got None"):
        picture.arrange(cut, panels.full, None)
