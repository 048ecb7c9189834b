# SPDX-License-Identifier: Apache-2.0
"""Other families' servers under load, one of them with two data-parallel replicas."""

from __future__ import annotations

import pytest
from server import answered, serving, two_hundred_at_once

REPLICAS = ("--data-parallel-size", "2")


@pytest.mark.parametrize(
    ("kind", "options"),
    [("llava-onevision", ()), ("internvl-own", REPLICAS)],
    ids=["llava-onevision", "internvl-own on two replicas"],
)
def test_two_hundred_requests_at_once(made, tmp_path, kind, options):
    model = made(kind)
    with serving(model, tmp_path / "log", *options) as address:
        two_hundred_at_once(address, model)
        by_replica = answered(address)
    assert len(by_replica) == (2 if options else 1)
    assert min(by_replica.values()) > 0
