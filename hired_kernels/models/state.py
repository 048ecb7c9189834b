# SPDX-License-Identifier: Apache-2.0
"""What is switched on: `model.hired`, shared by a model, the model inside it and its processor."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor

from .accounting import Anatomy, Settings, placeholders
from .image_features import HiredImageOutput


@dataclass(eq=False)
class Switch:
    """What is switched on, shared by a model and its processor.

    settings: as given to `apply_hired`. why_full: why the vision tower cannot stop early, None if
    it does. with_cls: each picture's CLS token is kept before its patches. on: False once the model
    was switched off or over, which makes a processor left behind say so.
    """

    settings: Settings
    anatomy: Anatomy
    why_full: str | None
    with_cls: bool
    on: bool = True
    # Of each thread that is inside `hold`: its pixels and their features.
    _held: dict[int, tuple[Tensor | None, HiredImageOutput]] = field(
        default_factory=dict, repr=False
    )

    @property
    def has_surplus(self) -> bool:
        """Whether a picture may come to fewer tokens than it has placeholders."""
        published = self.settings.policy == "published" and self.anatomy.pinpoints is not None
        return published or self.settings.newlines

    def placeholders(self, height: int, width: int) -> int:
        """Tokens of the prompt that stand for one picture of height x width pixels."""
        if not self.on:
            raise ValueError(
                "hired: processor: expected the settings of its model, got older ones: HiRED was "
                "switched off or over for the model alone. Call remove_hired(model, processor) or "
                "apply_hired(model, processor, ...) with both"
            )
        return placeholders(self.settings, self.anatomy, height, width) + self.with_cls

    @contextmanager
    def hold(self, pixels: Tensor | None, output: HiredImageOutput) -> Iterator[None]:
        """Have `encoded` hand out these features, and nothing be hidden again, while open."""
        thread = threading.get_ident()
        self._held[thread] = pixels, output
        try:
            yield
        finally:
            del self._held[thread]

    @property
    def holding(self) -> bool:
        """Whether this thread is inside `hold`."""
        return bool(self._held) and threading.get_ident() in self._held

    def encoded(self, pixels: Tensor) -> HiredImageOutput | None:
        """What was held for these pixels, on whichever device they are by now."""
        if not self.holding:
            return None
        held, output = self._held[threading.get_ident()]
        return output if held is not None and held.shape == pixels.shape else None
