# SPDX-License-Identifier: Apache-2.0
"""How many tokens each picture of a batch keeps, from its size alone: `Settings` and `Plan`.

Processor and model both ask here, so that the placeholders of a prompt and the features of its
pictures agree. Host arithmetic only; `hired_kernels.geometry` does the counting.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any

import numpy as np

from .. import geometry
from ..arguments import first_share

POLICIES = ("exact", "pooled", "published")
JUDGES = ("auto", "cls", "patches")  # or a number of patches
POSITIONS = ("kept", "original")
_MOST = 1 << 62  # a budget beyond any picture, that the operators still take


def refuse(argument: str, expected: str, got: object) -> ValueError:
    """The error of a bad argument."""
    return ValueError(f"hired: {argument}: expected {expected}, got {got}")


@dataclass(frozen=True)
class Settings:
    """What `apply_hired` was asked for, in Python's own numbers.

    Raises ValueError for what it cannot be.
    """

    budget: float | int = 0.2
    alpha: float = 0.5
    policy: str = "exact"
    newlines: bool = False
    judge: str | int = "auto"
    video_budget: float | int | None = None
    positions: str = "kept"

    def __post_init__(self) -> None:
        # NumPy's numbers and fractions too; what follows knows int and float alone.
        budget, alpha = _budget("budget", self.budget), _plain(self.alpha)
        if self.video_budget is not None:
            video_budget = _budget("video_budget", self.video_budget)
            object.__setattr__(self, "video_budget", video_budget)
        if alpha is None or not 0 <= alpha <= 1:
            raise refuse("alpha", "a number in [0, 1]", repr(self.alpha))
        if self.policy not in POLICIES:
            raise refuse("policy", "exact, pooled or published", repr(self.policy))
        object.__setattr__(self, "judge", _judge(self.judge, self.policy))
        if self.positions not in POSITIONS:
            raise refuse("positions", " or ".join(POSITIONS), repr(self.positions))
        if self.positions == "original" and self.policy == "published":
            expected = "kept under the published policy, which numbers tokens one after the other"
            raise refuse("positions", expected, "'original'")
        if not isinstance(self.newlines, bool):
            raise refuse("newlines", "True or False", repr(self.newlines))
        if self.newlines and self.policy == "published":
            raise refuse("newlines", "False under the published policy, which has none", True)
        object.__setattr__(self, "budget", budget)
        object.__setattr__(self, "alpha", float(alpha))


@dataclass(frozen=True)
class Anatomy:
    """How a model cuts up pictures, of its configuration.

    `tile` and `patch` are pixels a side of a partition and of a patch; `pinpoints` the resolutions
    that sub-images are cut from, (height, width) in pixels, None where there are none. `merge`
    patches a side are a token. `tiles` are the fewest and the most that a picture is stretched to
    and cut into where it is (InternVL), else None. `shrinks_to` tiles' worth of patches is about
    what the stock model shrinks a larger map to (LLaVA-OneVision), None where it does not.
    """

    tile: int
    patch: int
    pinpoints: tuple[tuple[int, int], ...] | None = None
    merge: int = 1
    tiles: tuple[int, int] | None = None
    shrinks_to: int | None = None

    @classmethod
    def of(cls, config: Any) -> Anatomy:
        """From the configuration of a model that is served (`support`)."""
        vision, pinpoints = config.vision_config, getattr(config, "image_grid_pinpoints", None)
        pairs = None if pinpoints is None else tuple(tuple(pair) for pair in pinpoints)
        pixels = one_side(vision.image_size), one_side(vision.patch_size)
        ratio = getattr(config, "downsample_ratio", None)
        if ratio is None:
            largest = getattr(config, "vision_aspect_ratio", None)
            shrinks_to = None if largest is None else int(largest.rpartition("_")[2])
            return cls(*pixels, pairs, shrinks_to=shrinks_to)
        return cls(*pixels, pairs, round(1 / ratio), geometry.INTERNVL_TILES)

    def with_pinpoints(self, pinpoints: Any) -> Anatomy:
        """The same tower with other resolutions to cut sub-images from, None for none."""
        pairs = None if pinpoints is None else tuple(tuple(pair) for pair in pinpoints)
        return self if pairs == self.pinpoints else replace(self, pinpoints=pairs)

    def with_tiles(self, tiles: tuple[int, int]) -> Anatomy:
        """The same tower with other bounds of how many tiles a picture is cut into."""
        return self if tiles == self.tiles else replace(self, tiles=tiles)

    @property
    def patches(self) -> int:
        """Patches a side of a partition."""
        return self.tile // self.patch

    @property
    def side(self) -> int:
        """Tokens a side of a partition."""
        return self.patches // self.merge

    @property
    def tokens(self) -> int:
        """Tokens of a partition: T, or M where patches are merged."""
        return self.side**2

    @property
    def order(self) -> str:
        """The order in which the language model reads the tokens, as the operators call it."""
        return "raster" if self.tiles is None else "full_last"

    @property
    def reads_norm(self) -> bool:
        """Whether the feature layer -1 is read after the tower's last norm, as InternVL does."""
        return self.tiles is not None

    def tiled(self, R: int = 0, C: int = 0) -> geometry.Layout:
        """A picture that was stretched to R x C tiles, or to one, 0 x 0: nothing is padding."""
        pixels = max(1, R) * self.tile, max(1, C) * self.tile
        return geometry.Layout(*pixels, (R, C), None, self.side)

    def layout(self, height: int, width: int) -> geometry.Layout:
        """How a picture of height x width pixels is cut up."""
        if self.tiles is not None:
            pixels = {"tile": self.tile, "patch": self.patch, "merge": self.merge}
            return geometry.tiled_layout(height, width, tiles=self.tiles, **pixels)
        if self.pinpoints is None:
            return self.tiled()
        pixels = {"tile": self.tile, "patch": self.patch}
        return geometry.layout(height, width, pinpoints=self.pinpoints, **pixels)


@dataclass(frozen=True)
class Plan:
    """The integers of one call for B pictures.

    anatomy: of the model. grids, crops, budgets: as the operators take them. rows: rows of the
    operator's output that each picture owns. separators: room for `image_newline` after them.
    partitions: of each picture. most: what no partition keeps more than.
    """

    anatomy: Anatomy
    grids: list[geometry.Grid]
    crops: list[geometry.Crop] | None
    budgets: list[int]
    rows: list[int]
    separators: list[int]
    partitions: list[int]
    most: int

    def rules(self, settings: Settings) -> dict[str, Any]:
        """The operators' arguments that are no tensors."""
        return {
            "grids": self.grids,
            "budget": self.budgets,
            "alpha": settings.alpha,
            "crops": self.crops,
            "policy": settings.policy,
            "order": self.anatomy.order,
            "merge": self.anatomy.merge,
        }

    @property
    def full_images(self) -> list[int]:
        """Where in the batch of partitions each picture begins."""
        return [sum(self.partitions[:picture]) for picture in range(len(self.partitions))]


def plan(
    settings: Settings,
    anatomy: Anatomy,
    sizes: Sequence[tuple[int, int]],
    budgets: Sequence[float | int] | None = None,
) -> Plan:
    """What a batch of pictures of these (height, width) in pixels keeps.

    `budgets` has one for each picture, in place of the settings' own. Raises ValueError as
    `hired_kernels.geometry` does, for a size that is not positive.
    """
    return plan_of(settings, anatomy, [anatomy.layout(*size) for size in sizes], budgets)


def plan_of(
    settings: Settings,
    anatomy: Anatomy,
    layouts: Sequence[geometry.Layout],
    budgets: Sequence[float | int] | None = None,
) -> Plan:
    """`plan` for pictures that are cut up like this."""
    if settings.policy == "published":
        grids, crops = geometry.published_layout(layouts)
    else:
        grids = [layout.grid for layout in layouts]
        crops = [layout.crop or _whole(layout) for layout in layouts]
    T, policy = anatomy.tokens, settings.policy
    asked = settings.budget if budgets is None else list(budgets)
    resolved = geometry.resolve_budgets(asked, grids, T, crops, policy)
    counts = [min(budget, _MOST) for budget in resolved]
    pictures = list(zip(counts, grids, crops, strict=True))
    rows = [geometry.kept_tokens(*picture[:2], T, picture[2], policy) for picture in pictures]
    most, separators = 0, []
    for kept, (budget, grid, crop) in zip(rows, pictures, strict=True):
        capacities = [T] * (1 + grid[0] * grid[1])
        if policy != "published":
            capacities = geometry.capacities(grid, crop, anatomy.side)
        full, others = _split(kept, budget, capacities, settings)
        most = max(most, full, min(others, max(capacities[1:], default=0)))
        lines = min(others, crop[1] - crop[0]) if len(capacities) > 1 else min(kept, 1)
        separators.append(lines if settings.newlines else 0)
    return Plan(
        anatomy=anatomy,
        grids=grids,
        crops=None if anatomy.pinpoints is None else crops,
        budgets=counts,
        rows=rows,
        separators=separators,
        partitions=[layout.partitions for layout in layouts],
        most=most,
    )


def placeholders(settings: Settings, anatomy: Anatomy, height: int, width: int) -> int:
    """Tokens of the prompt that stand for one picture of height x width pixels."""
    picture = plan(settings, anatomy, [(height, width)])
    return picture.rows[0] + picture.separators[0]


def _plain(value: object) -> int | float | None:
    """A number as Python's own int or float, None for what is none."""
    if not isinstance(value, Real) or isinstance(value, bool | np.bool_):
        return None
    if isinstance(value, Integral):
        return int(value)
    try:
        return geometry.double(value)
    except OverflowError:
        return None


def _whole(layout: geometry.Layout) -> geometry.Crop:
    """The crop of a picture of which nothing is padding."""
    R, C = layout.grid
    return 0, R * layout.side, 0, C * layout.side


def _budget(argument: str, value: object) -> int | float:
    """A budget as Python's own number. Raises ValueError for what it cannot be."""
    budget = _plain(value)
    count = isinstance(budget, int)
    if budget is None or not (budget >= 0 if count else 0 < budget <= 1):
        raise refuse(argument, "a float in (0, 1] or an integer of at least 0", repr(value))
    return budget


def _judge(value: object, policy: str) -> str | int:
    """A judge as Python's own string or int. Raises ValueError for what it cannot be."""
    number = _plain(value)
    known = number >= 1 if isinstance(number, int) else value in JUDGES
    judge = number if isinstance(number, int) else str(value)
    if not known:
        raise refuse("judge", f"{', '.join(JUDGES)} or a number of patches", repr(value))
    if policy == "published" and judge not in ("auto", "cls"):
        raise refuse("judge", "cls under the published policy, which asks nobody else", repr(value))
    return judge


def one_side(size: Any) -> int:
    """A side of what is square: InternVL's configuration gives height and width."""
    return max(size) if isinstance(size, list | tuple) else size


def _split(
    kept: int, budget: int, capacities: Sequence[int], settings: Settings
) -> tuple[int, int]:
    """Tokens of the full image, and of all sub-images together, at the most each."""
    if len(capacities) == 1:
        return kept, 0
    if settings.policy == "pooled":
        return min(kept, capacities[0]), min(kept, sum(capacities[1:]))
    if settings.policy == "published":
        full = min(first_share(budget, settings.alpha), capacities[0])
        return full, min(budget - full, sum(capacities[1:]))
    full = min(first_share(kept, settings.alpha), capacities[0])
    full = max(full, kept - sum(capacities[1:]))
    return full, kept - full
