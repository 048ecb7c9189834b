# SPDX-License-Identifier: Apache-2.0
"""The demo in its tests: what it times is timed once, and answers at few steps are enough."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fixtures of a module, such as the browser's page, come before this and have all of it."""
    from hired_kernels.cli import comparison, demo, question

    for module, name in (
        (comparison, "_LIMIT"),
        (comparison, "_TOWER_LIMIT"),
        (question, "_LIMIT"),
        (demo, "_QUICK"),
    ):
        monkeypatch.setattr(module, name, 0.001)
