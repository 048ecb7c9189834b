# SPDX-License-Identifier: Apache-2.0
"""A pytest plugin for rehearsals: of each test for GPUs one case, of each other file one test."""

from __future__ import annotations

import pytest

# Tests of what a pretended GPU has not: limits and launches of the CUDA kernels, an allocator of
# its own, memory apart from the host's, a compiler for it.
NEEDS_A_GPU = (
    "test_limits_",
    "test_nothing_but_outputs_and_one_workspace_is_written",
    "test_tensors_on_two_devices",
    "test_compiled",
    "test_opcheck",
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    kept, seen = [], set()
    for item in items:
        of_gpu = item.path.stem.startswith("test_gpu")
        name = item.nodeid.partition("[")[0] if of_gpu else item.path
        if name in seen or item.name.startswith(NEEDS_A_GPU):
            continue
        seen.add(name)
        kept.append(item)
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept
