# SPDX-License-Identifier: Apache-2.0
"""Tests of the vLLM plugin: `make test-vllm`, in an environment of their own."""

from __future__ import annotations

import importlib.util
from functools import cache

import pytest
import tiny

# All but test_bench_vllm.py import vLLM.
collect_ignore_glob = [] if importlib.util.find_spec("vllm") else ["test_[!b]*.py"]


# Whose tests share what they start, a server or the imports of vLLM; all others start their own.
_TOGETHER = ("server", "worker", "processing", "tiles", "versions", "bench_vllm")


def pytest_xdist_make_scheduler(config, log):
    """`--dist loadfile`, with long tests one by one: else a worker ends up with most of them."""
    from xdist.scheduler import LoadScopeScheduling

    class OneByOne(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = nodeid.partition("::")[0]
            together = any(file.endswith(f"/test_{name}.py") for name in _TOGETHER)
            return file if together else nodeid

    return OneByOne(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """A tiny model of a kind, made once."""
    return cache(lambda kind: tiny.Model.make(kind, tmp_path_factory.mktemp(kind)))


@pytest.fixture(scope="session")
def llava_next(made) -> tiny.Model:
    return made("llava-next-llama")


@pytest.fixture(scope="session")
def llava_next_layers(tmp_path_factory) -> tiny.Model:
    """Of several feature layers."""
    folder = tmp_path_factory.mktemp("llava-next-layers")
    return tiny.Model.make("llava-next-mistral", folder, vision_feature_layer=[1, -2])


@pytest.fixture(scope="session")
def llava(made) -> tiny.Model:
    return made("llava")
