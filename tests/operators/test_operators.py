# SPDX-License-Identifier: Apache-2.0
"""The operators as PyTorch sees them: opcheck, gradients, tangents, fakes.

What they compute is the business of test_reference.py and test_parity.py, what the Python face
takes of test_face.py, and torch.compile and torch.export of test_compile.py.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

import pytest
import torch
from blocks import merged
from torch import Tensor
from torch.autograd import forward_ad

import hired_kernels as hired

OPS = torch.ops.hired


def attention_rows(P: int, H: int = 3, T: int = 16, seed: int = 0) -> Tensor:
    return torch.rand(P, H, T, generator=torch.Generator().manual_seed(seed))


def features(P: int, T: int = 16, D: int = 8, **options: Any) -> Tensor:
    values = torch.randn(P, T, D, generator=torch.Generator().manual_seed(7))
    return values.to(options.get("dtype")).requires_grad_(options.get("requires_grad", False))


def select_arguments(**options: Any) -> tuple[Any, ...]:
    return (
        features(8, **options),
        attention_rows(2),
        attention_rows(8, seed=1),
        [2, 2, 1, 2],
        [9, 21],
    )


def select_qk_arguments(**options: Any) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(3)
    query, key = (torch.randn(8, *s, generator=generator) for s in ((3, 4), (17, 3, 4)))
    return (features(8, **options), query, key, query, key, [2, 2, 1, 2], [9, 21])


def many_qk_arguments(**options: Any) -> tuple[Any, ...]:
    """The same with as many judges as one likes, and not as many at both layers."""
    values, init, key, final, *rest = select_qk_arguments(**options)
    final = torch.stack([final, -final, final.flip(0)], 1)
    return (values, init[:, None], key, final, *rest)


CALLS = {
    "select": select_arguments, "select_qk": select_qk_arguments, "select_qk-Q": many_qk_arguments
}  # fmt: skip
CROPS = [1, 8, 0, 7, 0, 4, 1, 6]
FLAGS = [
    {"policy": policy, "order": order, "crops": crops, "merge": 1}
    for policy, order, crops in itertools.product(
        ("exact", "published"), ("raster", "partition"), (None, CROPS)
    )
]
FLAGS += [
    {"policy": "exact", "order": "full_last", "crops": None, "merge": 4},
    {"policy": "pooled", "order": "partition", "crops": CROPS, "merge": 1},
    {"policy": "pooled", "order": "full_last", "crops": [1, 4, 0, 3, 0, 2, 1, 2], "merge": 2},
]


def operator(name: str) -> Any:
    return getattr(OPS, name.partition("-")[0])


def flags_id(flags: dict[str, Any]) -> str:
    cropped = "whole" if flags["crops"] is None else "cropped"
    return f"{flags['policy']}-{flags['order']}-{cropped}-{flags['merge']}"


@pytest.mark.parametrize("requires_grad", [False, True], ids=["plain", "grad"])
@pytest.mark.parametrize("flags", [{}, FLAGS[7], FLAGS[-1]],
                         ids=["defaults", flags_id(FLAGS[7]), flags_id(FLAGS[-1])])  # fmt: skip
@pytest.mark.parametrize("op", CALLS)
def test_opcheck(op: str, flags: dict[str, Any], requires_grad: bool) -> None:
    arguments = CALLS[op](requires_grad=requires_grad)
    results = torch.library.opcheck(operator(op).default, arguments, flags)
    assert set(results.values()) == {"SUCCESS"}
    assert len(results) == 4


@pytest.mark.parametrize("flags", FLAGS, ids=flags_id)
@pytest.mark.parametrize("op", CALLS)
def test_gradients(op: str, flags: dict[str, Any]) -> None:
    values, *rest = CALLS[op](dtype=torch.float64)
    values = values[:, :, :2].clone().requires_grad_()

    def tokens(values: Tensor) -> Tensor:
        return operator(op)(values, *rest, **flags)[0]

    assert torch.autograd.gradcheck(tokens, (values,))
    assert torch.autograd.gradgradcheck(tokens, (values,), fast_mode=True)


def test_gradient_skips_empty_rows() -> None:
    values, *rest = select_arguments(requires_grad=True)
    tokens, indices, _ = OPS.select(
        values, *rest, policy="published", crops=[1, 8, 0, 7, 0, 4, 1, 6]
    )
    assert (indices < 0).any()
    # A NaN that arrives at a row of zeros must not reach any token.
    weights = torch.where(indices < 0, torch.nan, 1.0)[:, None]
    (gradient,) = torch.autograd.grad(tokens, values, weights.expand_as(tokens))
    expected = torch.zeros(8 * 16)
    expected[indices[indices >= 0]] = 1
    assert torch.equal(gradient, expected.view(8, 16, 1).expand_as(gradient))


def test_scores_get_no_gradient() -> None:
    values, init, final, *rest = select_arguments()
    final.requires_grad_()
    tokens, indices, counts = OPS.select(values.requires_grad_(), init, final, *rest)
    assert not indices.requires_grad
    assert not counts.requires_grad
    gradients = torch.autograd.grad(tokens.sum(), (values, final), allow_unused=True)
    assert gradients[0] is not None
    assert gradients[1] is None


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_grad_modes_agree(mode: Any) -> None:
    expected = OPS.select(*select_arguments())
    with mode():
        for result in (OPS.select(*select_arguments()), face(*select_arguments())):
            assert all(map(torch.equal, result, expected))
            assert not result[0].requires_grad


def tangent_of(values: Tensor, kept: hired.Selection, merge: int) -> Tensor:
    rows = merged(values, merge).flatten(0, 1)[kept.indices.clamp(min=0)]
    return rows.masked_fill((kept.indices < 0)[:, None], 0)


def test_gradient_of_merged_tokens_goes_back_to_their_patches() -> None:
    values, *rest = select_arguments(requires_grad=True)
    tokens, indices, _ = OPS.select(values, *rest, merge=2, policy="pooled")
    weights = torch.arange(1.0, tokens.numel() + 1).view_as(tokens)
    (gradient,) = torch.autograd.grad(tokens, values, weights)
    expected = torch.zeros(32, 32)
    expected[indices] = weights
    assert torch.equal(merged(gradient, 2).flatten(0, 1), expected)


@pytest.mark.parametrize(("policy", "merge"), [("exact", 1), ("published", 1), ("pooled", 2)])
@pytest.mark.parametrize("op", ["select", "select_qk"])
def test_tangent_is_that_of_the_kept_rows(op: str, policy: str, merge: int) -> None:
    values, *scores = (a for a in CALLS[op]() if isinstance(a, Tensor))
    options = {"grids": [(2, 2), (1, 2)], "budget": 40 // merge**2, "policy": policy}
    options |= {"crops": [(1, 8 // merge, 0, 3), (0, 2, 1, 3)], "merge": merge}

    keep = functools.partial(getattr(hired, op), **options)
    expected, direction = keep(values, *scores), torch.randn_like(values)
    assert (expected.indices < 0).any() == (policy == "published")
    for inputs in (values, values.clone().requires_grad_()):
        with forward_ad.dual_level():
            kept = keep(forward_ad.make_dual(inputs, direction), *scores)
            tokens, tangent = forward_ad.unpack_dual(kept.tokens)
            assert torch.equal(tangent, tangent_of(direction, expected, merge))
            assert all(map(torch.equal, (tokens, *kept[1:]), expected))
            assert tokens.requires_grad == inputs.requires_grad
            assert forward_ad.unpack_dual(keep(values, *scores).tokens).tangent is None

    tokens = lambda values: keep(values, *scores).tokens  # noqa: E731
    primal, tangent = torch.func.jvp(tokens, (values,), (direction,))
    assert torch.equal(tangent, tangent_of(direction, expected, merge))
    assert torch.equal(primal, expected.tokens)


def test_forward_over_reverse() -> None:
    values, init, final, *rest = select_arguments()
    direction = torch.randn_like(values)

    def loss(values: Tensor) -> Tensor:
        return (face(values, init, final, *rest)[0] ** 3).sum()

    _, curvature = torch.func.jvp(torch.func.grad(loss), (values,), (direction,))
    kept = torch.zeros(8 * 16).index_fill(0, face(values, init, final, *rest)[1], 1)
    assert torch.allclose(curvature, 6 * values * direction * kept.view(8, 16, 1))
    with pytest.raises(RuntimeError):
        torch.func.grad(loss)(values)


def face(values: Tensor, init: Tensor, final: Tensor, grids: list[int], budgets: list[int]) -> Any:
    pairs = [(grids[0], grids[1]), (grids[2], grids[3])]
    return hired.select(values, init, final, grids=pairs, budget=budgets)


@pytest.mark.parametrize("flags", FLAGS, ids=flags_id)
@pytest.mark.parametrize("op", CALLS)
def test_fakes_know_every_shape(op: str, flags: dict[str, Any]) -> None:
    arguments = CALLS[op]()
    real = operator(op)(*arguments, **flags)
    meta = [a.to("meta") if isinstance(a, Tensor) else a for a in arguments]
    fake = operator(op)(*meta, **flags)
    for a, b in zip(real, fake, strict=True):
        assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())


# cls_attention ------------------------------------------------------------------------------------


def queries_keys(requires_grad: bool = False, Q: int | None = None) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    sizes = ((4, 3, 8) if Q is None else (4, Q, 3, 8), (4, 40, 3, 8))
    return tuple(torch.randn(*s, generator=generator, requires_grad=requires_grad) for s in sizes)


@pytest.mark.parametrize("requires_grad", [False, True], ids=["plain", "grad"])
@pytest.mark.parametrize("flags", [{}, {"scale": 0.3}], ids=["default", "scale"])
@pytest.mark.parametrize("Q", [None, 5])
def test_opcheck_of_cls_attention(Q: int | None, flags: Any, requires_grad: bool) -> None:
    arguments = (*queries_keys(requires_grad, Q), 39)
    results = torch.library.opcheck(OPS.cls_attention.default, arguments, flags)
    assert set(results.values()) == {"SUCCESS"}
    assert len(results) == 4


@pytest.mark.parametrize("call", [OPS.cls_attention, hired.cls_attention], ids=["operator", "face"])
def test_attention_has_no_gradient(call: Any) -> None:
    query, key = queries_keys(requires_grad=True)
    rows = call(query, key, 39)
    assert not rows.requires_grad
    assert rows.grad_fn is None
    # Beside what has one.
    loss = (rows * query.sum(-1, keepdim=True)).sum()
    gradients = torch.autograd.grad(loss, (query, key), allow_unused=True)
    assert torch.equal(gradients[0], rows.sum(-1, keepdim=True).expand_as(query))
    assert gradients[1] is None


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_grad_modes_agree_on_attention(mode: Any) -> None:
    arguments = (*queries_keys(), 39)
    expected = OPS.cls_attention(*arguments)
    with mode():
        for call in (OPS.cls_attention, hired.cls_attention):
            assert torch.equal(call(*arguments), expected)


def test_the_fake_knows_the_shape_of_attention() -> None:
    for rows, Q in itertools.product((4, 0), (None, 1, 6)):
        query, key = (tensor[:rows] for tensor in queries_keys(Q=Q))
        real, fake = (
            OPS.cls_attention(query, key, 7),
            OPS.cls_attention(query.half().to("meta"), key.half().to("meta"), 7),
        )
        assert (real.shape, real.dtype, real.stride()) == (fake.shape, fake.dtype, fake.stride())
