# SPDX-License-Identifier: Apache-2.0
"""Tests of the lmms-eval plugin: `make test-eval`, in an environment of their own."""

from __future__ import annotations

import importlib.util
from functools import cache

import pytest

collect_ignore_glob = [] if importlib.util.find_spec("lmms_eval") else ["test_*.py"]


@pytest.fixture(scope="session")
def asked(tmp_path_factory):
    """A local task about a few pictures, and models that are asked."""
    import asked

    return asked.Asked.make(tmp_path_factory.mktemp("asked"))


@pytest.fixture(scope="session")
def run(asked):
    """What lmms-eval writes of a model of `asked.RUNS`."""
    return cache(asked.evaluated)
