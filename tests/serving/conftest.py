# SPDX-License-Identifier: Apache-2.0
"""Tests of the vLLM plugin: `make test-vllm`, in an environment of their own."""

from __future__ import annotations

import importlib.util
from functools import cache

import pytest
import tiny

# All but test_bench_vllm.py import vLLM.
collect_ignore_glob = [] if importlib.util.find_spec("vllm") else ["test_[!b]*.py"]


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
