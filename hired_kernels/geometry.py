# SPDX-License-Identifier: Apache-2.0
"""From a picture's size to its partitions, its budget and K: host arithmetic, before any tensor.

A picture is scaled into the best of a list of resolutions (pinpoints), which is cut into R x C
sub-images; the padding that keeps its aspect ratio is cropped away in patches (LLaVA-NeXT;
`transformers` computes the same, number for number). Budgets follow HiRED (arXiv 2408.10945).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral, Rational, Real
from typing import Any

import numpy as np
import torch

INTERNVL_TILES = (1, 12)  # the fewest and the most that a picture is cut into
LLAVA_NEXT_PINPOINTS = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))

Grid = tuple[int, int]
Crop = tuple[int, int, int, int]
Pinpoints = Iterable[Sequence[int]]
_BOOLS = (bool, np.bool_)


def _error(argument: str, expected: str, got: object) -> ValueError:
    return ValueError(f"hired: {argument}: expected {expected}, got {got}")


def _integers(argument: str, values: Any, count: int, least: int) -> list[int]:
    try:
        integers = [-1 if isinstance(value, bool) else operator.index(value) for value in values]
    except TypeError:
        integers = []
    if len(integers) != count or min(integers) < least:
        raise _error(argument, f"{count} integer(s) of at least {least}", values)
    return integers


def _grid(value: Any) -> Grid:
    R, C = _integers("grid", value, 2, 0)
    if (R == 0) != (C == 0):
        raise _error("grid", "R and C both 0 or both at least 1", (R, C))
    return R, C


def best_grid(
    height: int, width: int, *, pinpoints: Pinpoints = LLAVA_NEXT_PINPOINTS, tile: int = 336
) -> Grid:
    """Rows and columns of the sub-image grid of a picture of height x width pixels.

    `pinpoints` are a model's resolutions, (height, width) in pixels, multiples of `tile`. The one
    that keeps most of the picture wins, then the one that wastes least, then the first (as in
    transformers' `select_best_resolution`). Raises ValueError for what is none of these.
    """
    height, width, tile = _integers("height, width, tile", (height, width, tile), 3, 1)
    resolutions = [_integers("pinpoints", pinpoint, 2, 1) for pinpoint in pinpoints]
    if not resolutions or any(size % tile for pair in resolutions for size in pair):
        raise _error("pinpoints", f"(height, width) in multiples of {tile}", resolutions)

    def pixels_kept(resolution: list[int]) -> tuple[int, int]:
        rows, cols = resolution
        # In doubles and truncated: another order of operations picks other grids at the edges.
        scale = min(cols / width, rows / height)
        effective = min(int(width * scale) * int(height * scale), width * height)
        return effective, effective - rows * cols

    rows, cols = max(resolutions, key=pixels_kept)
    return rows // tile, cols // tile


def tiled_grid(
    height: int, width: int, *, tiles: tuple[int, int] = INTERNVL_TILES, tile: int = 448
) -> Grid:
    """Rows and columns that a picture of height x width pixels is stretched to and cut into.

    `tiles` are the fewest and the most there may be. The grid of the nearest aspect ratio wins; of
    several, that of fewest tiles, unless the picture has more than half the pixels of one with more
    (as in transformers' `get_optimal_tiled_canvas`). A picture of one tile has no sub-images:
    (0, 0). Raises ValueError for what is none of these.
    """
    height, width, tile = _integers("height, width, tile", (height, width, tile), 3, 1)
    least, most = _integers("tiles", tiles, 2, 1)
    grids = [
        (R, C)
        for C in range(1, most + 1)
        for R in range(1, most // C + 1)
        if least <= R * C and most > 1
    ]
    best, distance = (1, 1), math.inf
    for R, C in sorted(grids, key=math.prod):
        off = abs(width / height - C / R)
        if off < distance or (off == distance and height * width > 0.5 * tile * tile * R * C):
            best, distance = (R, C), off
    return (0, 0) if best == (1, 1) else best


def unpad_crop(height: int, width: int, grid: Grid, side: int) -> Crop:
    """The part of a picture's assembled grid that is picture and not padding.

    Returns (top, bottom, left, right), half-open, in patches of the (R * side, C * side) grid:
    what transformers' `unpad_image` keeps. A picture thinner than a patch may keep nothing.
    Raises ValueError where a size is not positive or the grid half zero.
    """
    height, width, side = _integers("height, width, side", (height, width, side), 3, 1)
    R, C = _grid(grid)
    rows, cols = R * side, C * side
    if R == 0:
        return 0, 0, 0, 0
    # The clamp matters where doubles no longer tell patches apart, past 2^49 patches a side.
    if width / height > cols / rows:
        padding = max(0, (rows - int(round(height * (cols / width), 7))) // 2)
        return padding, rows - padding, 0, cols
    padding = max(0, (cols - int(round(width * (rows / height), 7))) // 2)
    return 0, rows, padding, cols - padding


def capacities(grid: Grid, crop: Crop | None, side: int) -> list[int]:
    """Valid patches of each of a picture's 1 + R * C partitions.

    The full image comes first and is never padded; then the sub-images, row-major, with their
    patches inside the crop (None: all of them). Raises ValueError for a crop outside its grid.
    """
    (R, C), (side,) = _grid(grid), _integers("side", (side,), 1, 1)
    if R == 0:
        return [side * side]
    crop = (0, R * side, 0, C * side) if crop is None else crop
    top, bottom, left, right = _integers("crop", crop, 4, 0)
    if not (top <= bottom <= R * side and left <= right <= C * side):
        raise _error("crop", f"a part of {R * side} x {C * side} patches", crop)
    rows = [max(0, min(bottom, y + side) - max(top, y)) for y in range(0, R * side, side)]
    cols = [max(0, min(right, x + side) - max(left, x)) for x in range(0, C * side, side)]
    return [side * side, *(height * width for height in rows for width in cols)]


def _symbolic(argument: str, count: int, values: Any) -> list[Any]:
    """`count` integers of any kind: symbols as they are, without a branch on one."""
    try:
        integers = [v if type(v) is int else _index(v) for v in values]
    except TypeError:
        integers = []
    if len(integers) != count:
        raise _error(argument, f"{count} integer(s)", values)
    return integers


def _index(value: Any) -> Any:
    if isinstance(value, _BOOLS):
        raise TypeError
    # As it is, where it can be: under torch.compile a conversion would make a constant of it.
    return value if isinstance(value, (int, torch.SymInt)) else operator.index(value)


def _total(grid: Any, tokens: Any, crop: Any, policy: str) -> Any:
    """Tokens of a picture that a budget may ask for. Branch-free in its integers."""
    if policy not in ("exact", "published", "pooled"):
        raise _error("policy", "exact, published or pooled", repr(policy))
    (R, C), (tokens,) = _symbolic("grid", 2, grid), _symbolic("tokens", 1, (tokens,))
    if crop is None or policy == "published":
        return (1 + R * C) * tokens
    top, bottom, left, right = _symbolic("crop", 4, crop)
    # The clamps undo the crop of a picture without sub-images, whatever it says, and no other.
    area = torch.sym_min((bottom - top) * (right - left), R * C * tokens)
    return tokens + torch.sym_max(area, 0)


def kept_tokens(
    budget: Any, grid: Any, tokens: Any, crop: Any = None, policy: str = "exact"
) -> Any:
    """Rows of the output that one picture owns, `tokens` being T (M where patches are merged);
    summed over a batch, K.

    Every integer may be a SymInt: nothing here branches on one, or checks its value. "published"
    may fill fewer, and knows nothing of the crop. Raises ValueError for an unknown policy, and for
    what is no integer.
    """
    (budget,) = _symbolic("budget", 1, (budget,))
    return torch.sym_min(budget, _total(grid, tokens, crop, policy))


def _is_share(value: Any) -> bool:
    """A real number that is no integer: a float, NumPy's, a Fraction. 1.0 is one, 1 is none."""
    if isinstance(value, float):
        return True
    return isinstance(value, Real) and not isinstance(value, Integral)


def share_of_tokens(
    share: float, grid: Any, tokens: Any, crop: Any = None, policy: str = "exact"
) -> int:
    """The budget that a share in (0, 1] of one picture's valid tokens means, rounded down.

    A binary fraction stands for the quotient or decimal it was made of: 0.35 of 2880 is 1008, where
    `int(2880 * 0.35)` is 1007. Under "published" it is `int(P * T * share)`, as the published code
    computes it, padding and all. Raises ValueError out of range.
    """
    if not _is_share(share) or not 0 < share <= 1:
        raise _error("budget", "a share in (0, 1]", repr(share))
    total, meant = _total(grid, tokens, crop, policy), float(share)
    if policy != "published":
        if not isinstance(share, float) and isinstance(share, Rational):
            return total * int(share.numerator) // int(share.denominator)
        # What was meant is at most half an ulp above the share. So the next number is not below it,
        # nor is a rounded product; a power of two, which is exact, stays itself.
        narrow = isinstance(share, np.floating) and not isinstance(share, float)
        meant += meant * max(2.0**-53, float(np.finfo(type(share)).eps) / 2 if narrow else 0.0)
    return torch.sym_int(total * meant)


def double(number: Any) -> float:
    """A real number as a float. NumPy's narrow ones stand for the decimals that they print as."""
    narrow = isinstance(number, np.floating) and not isinstance(number, float)
    return float(str(number)) if narrow else float(number)


def _budget(entry: Any, grid: Any, tokens: Any, crop: Any, policy: str) -> Any:
    if isinstance(entry, torch.SymInt):
        return entry
    if not isinstance(entry, int) and _is_share(entry):
        return share_of_tokens(entry, grid, tokens, crop, policy)
    if isinstance(entry, bool) or not isinstance(entry, (int, Integral)) or entry < 0:
        raise _error("budget", "shares in (0, 1] or integers of at least 0", repr(entry))
    # As it is, where it can be: under torch.compile a conversion would make a constant of it.
    return entry if isinstance(entry, int) else operator.index(entry)


def resolve_budgets(
    budget: Any, grids: Sequence, tokens: Any, crops: Sequence | None = None, policy: str = "exact"
) -> list[int]:
    """The token count that a user's `budget` asks for, of each picture.

    `budget` is a float (a share, see `share_of_tokens`), an int (a count, see `kept_tokens`), or a
    sequence with one of either for each picture: 1 is one token, 1.0 is all. `grids` and `crops`
    hold (R, C) and (top, bottom, left, right). Raises ValueError for the rest, a bool included.
    """
    B = len(grids)
    if isinstance(budget, torch.Tensor) and budget.dim():
        narrow = budget.dtype in (torch.float32, torch.float16)
        budget = budget.numpy(force=True) if narrow else budget.tolist()
    one_each = isinstance(budget, (list, tuple)) or (isinstance(budget, np.ndarray) and budget.ndim)
    budgets = budget if one_each else [budget] * B
    boxes = [None] * B if crops is None else crops
    for argument, values in (("budget", budgets), ("crops", boxes)):
        if len(values) != B:
            raise _error(argument, f"one for each of {B} pictures", len(values))
    pictures = zip(budgets, grids, boxes, strict=True)
    return [_budget(entry, grid, tokens, crop, policy) for entry, grid, crop in pictures]


@dataclass(frozen=True)
class Layout:
    """How one picture is cut up: all that the operators need to know of its size.

    `grid` is (R, C), (0, 0) without sub-images; `crop` is (top, bottom, left, right) in tokens or
    None for all; `side` is tokens a side, `tokens` its square. A token is a patch, or a block of
    patches where they are merged. A misfit raises ValueError.
    """

    height: int
    width: int
    grid: Grid
    crop: Crop | None
    side: int

    def __post_init__(self) -> None:
        _integers("height, width", (self.height, self.width), 2, 1)
        capacities(self.grid, self.crop, self.side)

    @property
    def partitions(self) -> int:
        return 1 + self.grid[0] * self.grid[1]

    @property
    def tokens(self) -> int:
        return self.side * self.side

    @property
    def capacities(self) -> list[int]:
        return capacities(self.grid, self.crop, self.side)

    @property
    def valid(self) -> int:
        return sum(self.capacities)

    def budget(self, share: float, policy: str = "exact") -> int:
        """The token count that a share in (0, 1] means (`share_of_tokens`)."""
        return share_of_tokens(share, self.grid, self.tokens, self.crop, policy)

    def kept(self, budget: int, policy: str = "exact") -> int:
        """Rows of output for a budget in tokens: this picture's part of K (`kept_tokens`)."""
        (budget,) = _integers("budget", (budget,), 1, 0)
        return kept_tokens(budget, self.grid, self.tokens, self.crop, policy)


def layout(
    height: int,
    width: int,
    *,
    pinpoints: Pinpoints = LLAVA_NEXT_PINPOINTS,
    tile: int = 336,
    patch: int = 14,
    merge: int = 1,
) -> Layout:
    """The layout of a picture of height x width pixels, `patch` pixels being a patch's side, and
    `merge` patches a token's.

    Raises ValueError as `best_grid` does, where `patch` is not in 1 to `tile`, and where `merge`
    does not divide the patches of a side.
    """
    grid = best_grid(height, width, pinpoints=pinpoints, tile=tile)
    side = _tokens_of(tile, patch, merge)
    return Layout(height, width, grid, unpad_crop(height, width, grid, side), side)


def tiled_layout(
    height: int,
    width: int,
    *,
    tiles: tuple[int, int] = INTERNVL_TILES,
    tile: int = 448,
    patch: int = 14,
    merge: int = 2,
) -> Layout:
    """The layout of a picture that is stretched to its tiles, as InternVL does: nothing is padding.

    `merge` patches a side are a token. Raises ValueError as `tiled_grid` and `layout` do.
    """
    grid = tiled_grid(height, width, tiles=tiles, tile=tile)
    return Layout(height, width, grid, None, _tokens_of(tile, patch, merge))


def _tokens_of(tile: int, patch: int, merge: int) -> int:
    if _integers("patch", (patch,), 1, 1)[0] > tile:
        raise _error("patch", f"at most {tile} (tile)", patch)
    return tokens_a_side(tile // patch, merge)


def tokens_a_side(side: int, merge: int) -> int:
    """Of a partition of side x side patches, merge x merge of which are a token. Raises ValueError
    where they do not fit."""
    side, merge = _integers("side, merge", (side, merge), 2, 1)
    if side % merge:
        raise _error("merge", f"a divisor of the side of {side} patches", merge)
    return side // merge


def lattice(side: int, r: int) -> list[int]:
    """r x r of a partition's side x side patches, evenly spread, in raster order: judges that stand
    for all of them.

    Rows and columns are `(2 * i + 1) * side // (2 * r)`. Returns patch numbers t; raises ValueError
    unless 1 <= r <= side.
    """
    side, r = _integers("side, r", (side, r), 2, 1)
    if r > side:
        raise _error("r", f"at most the side of {side} patches", r)
    lines = [(2 * i + 1) * side // (2 * r) for i in range(r)]
    return [y * side + x for y in lines for x in lines]


def patches_of(indices: torch.Tensor, side: int, merge: int = 1) -> torch.Tensor:
    """The patches that merged tokens are made of.

    Args:
        indices: (K,) int64, `p * M + m` of each token, as the operators return them; -1 for none.
        side: patches a side of a partition, so that T = side^2 and M = (side / merge)^2.
        merge: patches a side of a token.

    Returns (K, merge^2) int64, `p * T + t` of its patches in raster order; -1 for those of -1.
    Raises ValueError where `merge` does not divide `side`.
    """
    cells = tokens_a_side(side, merge)
    p, m = indices // cells**2, indices % cells**2
    corner = p * side**2 + m // cells * (merge * side) + m % cells * merge
    step = torch.arange(merge, device=indices.device)
    block = (step[:, None] * side + step).flatten()
    return torch.where(indices[:, None] < 0, -1, corner[:, None] + block)


def published_layout(layouts: Iterable[Layout]) -> tuple[list[Grid], list[Crop]]:
    """`grids` and `crops` with which the operators pack tokens as the published code does.

    That code reads the (R, C) of a grid as (C, R): it lays out, and unpads, the transposed grid.
    With these, `policy="published"` and `order="raster"` give its tokens in its order.
    """
    grids, crops = [], []
    for picture in layouts:
        grids.append((picture.grid[1], picture.grid[0]))
        crops.append(unpad_crop(picture.height, picture.width, grids[-1], picture.side))
    return grids, crops
