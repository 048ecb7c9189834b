# SPDX-License-Identifier: Apache-2.0
"""One table of bad calls, and one of extreme good ones, against everything that can be called.

A refusal has to be the same to the letter everywhere; a good call has to give the oracle's
result, and the fakes its shapes.
"""

from __future__ import annotations

import pytest
import torch
from bad_calls import BAD_CALLS
from call_tables import OPS, BadCall, GoodCall, valid_call
from callers import CALLERS, fake, reference
from cls_attention_calls import agree
from good_calls import GOOD_CALLS

by_id = {"ids": lambda call: call.id}


def test_ids_are_distinct() -> None:
    ids = [call.id for call in [*BAD_CALLS, *GOOD_CALLS]]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("op", OPS)
def test_the_call_that_is_changed_is_valid(op: str) -> None:
    for caller in CALLERS.values():
        shape = (6, 2, 16) if op == "cls_attention" else (13, 4)
        assert caller(op, **valid_call(op))[0].shape == shape


@pytest.mark.parametrize("caller", [*CALLERS.values(), fake], ids=[*CALLERS, "fake"])
@pytest.mark.parametrize("call", BAD_CALLS, **by_id)
def test_bad_call(call: BadCall, caller) -> None:
    with pytest.raises(RuntimeError) as error:
        caller(call.op, **call.arguments())
    assert str(error.value) == call.message()


@pytest.mark.parametrize("caller", CALLERS.values(), ids=CALLERS)
@pytest.mark.parametrize("call", GOOD_CALLS, **by_id)
def test_good_call(call: GoodCall, caller) -> None:
    arguments = call.arguments()
    if call.op == "cls_attention":
        results = caller(call.op, **arguments)
        assert len(results[0]) == call.rows
        assert agree(results, reference(call.op, **arguments))
        return
    features = arguments["features"]
    tokens, indices, counts = caller(call.op, **arguments)
    assert tokens.shape == (call.rows, features.shape[2] * arguments["merge"] ** 2)
    assert tokens.dtype == features.dtype
    assert indices.dtype == counts.dtype == torch.int64
    expected = reference(call.op, **arguments)
    assert torch.equal(indices, expected[1])
    assert torch.equal(counts, expected[2])
    assert torch.equal(tokens.double(), expected[0].double())


@pytest.mark.parametrize("call", GOOD_CALLS, **by_id)
def test_good_call_has_the_shapes_of_its_fake(call: GoodCall) -> None:
    outputs = reference(call.op, **call.arguments())
    for output, shape in zip(outputs, fake(call.op, **call.arguments()), strict=True):
        assert (output.shape, output.dtype) == (shape.shape, shape.dtype)
        assert output.device == shape.device
