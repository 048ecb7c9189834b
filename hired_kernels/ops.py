# SPDX-License-Identifier: Apache-2.0
"""The Python face of `torch.ops.hired`: functions, fakes and gradients.

The operators take flat integer lists and raise `RuntimeError`; the functions here take pairs,
shares and one budget for all, and raise `ValueError` with the same words. Both give the same bits.

Source: HiRED (Arif et al., AAAI 2025, arXiv 2408.10945).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import arguments, face
from . import backends as _backends  # noqa: F401  (defines or loads torch.ops.hired)

Budget = float | int | Sequence[float | int]
Grid = tuple[int, int]
Crop = tuple[int, int, int, int]


class Selection(NamedTuple):
    """What a selection keeps.

    tokens: (K, D), dtype of the features; kept tokens, picture after picture.
    indices: (K,) int64, `p * T + t` of each row of tokens; -1 for a row of zeros, which only
        `policy="published"` has.
    counts: (P,) int64, kept tokens of each partition.
    """

    tokens: Tensor
    indices: Tensor
    counts: Tensor

    def compact(self) -> Selection:
        """The same without the rows of index -1. Synchronises with the device."""
        kept = self.indices >= 0
        return Selection(self.tokens[kept], self.indices[kept], self.counts)


def select(
    features: Tensor,
    attn_init: Tensor,
    attn_final: Tensor,
    *,
    grids: Sequence[Grid],
    budget: Budget,
    alpha: float = 0.5,
    crops: Sequence[Crop] | None = None,
    policy: str = "exact",
    order: str = "raster",
) -> Selection:
    """Keep the tokens that the CLS token attends to, given its attention rows.

    Args:
        features: (P, T, D), any floating dtype, unit stride in D; `hidden[:, 1:]` as it is.
        attn_init: (P, H, T) or (B, H, T), float32, float16 or bfloat16, any strides: CLS rows at
            the initial layer. Of P rows only the full images' are read.
        attn_final: (P, H, T), dtype of attn_init, any strides: CLS rows at the final layer;
            `attention[:, :, 0, -T:]` as it is.
        grids: (R, C) of each of B pictures, (0, 0) without sub-images; 1 + R * C sum to P.
        budget: tokens to keep of a picture: an int, or a float in (0, 1] as a share of its valid
            tokens (of all its tokens under `published`); or a sequence with one for each picture.
        alpha: share of the budget that the full image gets, in [0, 1].
        crops: (top, bottom, left, right) of each picture, half-open, in patches of its assembled
            R * side by C * side grid: what is picture and not padding. None: all of it.
        policy: "exact" keeps exactly the budget; "published" what the published code keeps.
        order: "raster", as LLaVA-NeXT packs tokens, or "partition".

    Raises `ValueError("hired::select: <argument>: expected ..., got ...")` before any work.
    Differentiable with respect to features, in reverse and forward mode (`torch.func.jvp`, dual
    tensors; `torch.func.grad` and `vjp` raise); scores have neither gradient nor tangent.
    """
    tensors = {"features": features, "attn_init": attn_init, "attn_final": attn_final}
    rest = (grids, budget, alpha, crops, policy, order)
    return _call("select", torch.ops.hired.select.default, tensors, *rest)


def select_qk(
    features: Tensor,
    query_init: Tensor,
    key_init: Tensor,
    query_final: Tensor,
    key_final: Tensor,
    *,
    grids: Sequence[Grid],
    budget: Budget,
    alpha: float = 0.5,
    scale: float | None = None,
    crops: Sequence[Crop] | None = None,
    policy: str = "exact",
    order: str = "raster",
) -> Selection:
    """Keep the tokens that the CLS token attends to, given its queries and all keys.

    Args:
        features: (P, T, D), any floating dtype, unit stride in D.
        query_init, query_final: (P, H, Dh), for init also (B, H, Dh): the CLS token's queries,
            float32, float16 or bfloat16, unit last stride.
        key_init, key_final: (P, N, H, Dh), for init also (B, N, H, Dh), dtype of the queries, unit
            last stride: all N >= T keys, the patches last.
        scale: factor of the dot products, finite; `Dh ** -0.5` by default.

    The attention is `softmax(q . k * scale)` over all N, summed over heads; the other arguments,
    the result and the errors are those of `select`.
    """
    tensors = {
        "features": features,
        "query_init": query_init,
        "key_init": key_init,
        "query_final": query_final,
        "key_final": key_final,
    }
    if scale is not None:
        scale = face.number("select_qk", "scale", "a finite number", scale)
    rest = (grids, budget, alpha, crops, policy, order)
    return _call("select_qk", torch.ops.hired.select_qk.default, tensors, *rest, scale=scale)


def cls_attention(query: Tensor, key: Tensor, tokens: int, *, scale: float | None = None) -> Tensor:
    """The attention that the CLS token pays to each patch, head by head.

    Args:
        query: (P, H, Dh), float32, float16 or bfloat16, unit last stride: the CLS token's queries.
        key: (P, N, H, Dh), dtype of the queries, unit last stride: all keys, the patches last.
        tokens: T, the patches of a partition, 1 <= T <= N.
        scale: factor of the dot products, finite; `Dh ** -0.5` by default.

    Returns (P, H, T) float32, contiguous: `softmax(q . k * scale)` over all N, its last T columns.
    These are the rows that `select` takes and `select_qk` computes for itself: the two keep the
    same tokens, bit for bit, also where each rank of a tensor-parallel tower computes the rows of
    its own heads and all of them are gathered along dim 1. (With the reference backend, which
    rounds these rows but not `select_qk`'s, up to that rounding.) It has no gradient.

    Raises `ValueError("hired::cls_attention: <argument>: expected ..., got ...")` before any work.
    """
    name = "cls_attention"
    face.check_tensors(name, {"query": query, "key": key})
    tokens = face.integer(name, "tokens", tokens)
    if scale is not None:
        scale = face.number(name, "scale", "a finite number", scale)
    op = torch.ops.hired.cls_attention.default
    return _dispatch(op, False, query, key, tokens, scale=scale)


def _call(
    name: str,
    op: Callable[..., tuple[Tensor, Tensor, Tensor]],
    tensors: dict[str, Tensor],
    grids: Sequence[Grid],
    budget: Budget,
    alpha: float,
    crops: Sequence[Crop] | None,
    policy: str,
    order: str,
    **scale: float | None,
) -> Selection:
    face.check_tensors(name, tensors)
    features, *scores = tensors.values()
    pairs = face.rows(name, "grids", "(R, C)", grids)
    boxes = None
    if crops is not None:
        boxes = face.rows(name, "crops", "(top, bottom, left, right)", crops)
    # A rank that has no T is refused by the operator.
    tokens = features.shape[1] if features.dim() == 3 else 1
    budgets = face.budgets(name, budget, pairs, tokens, boxes, policy)
    alpha = face.number(name, "alpha", "a number in [0, 1]", alpha)
    words = {"policy": face.word(name, "policy", policy), "order": face.word(name, "order", order)}
    flags = {"crops": None if boxes is None else _flat(boxes), **words, **scale}
    rest = (*scores, _flat(pairs), budgets, alpha)
    if forward_ad._current_level >= 0:
        kept = Selection(*_dispatch(op, False, features.detach(), *rest, **flags))
        return kept._replace(tokens=_gathered(features, kept.indices))
    record = features.requires_grad and torch.is_grad_enabled()
    return Selection(*_dispatch(op, record, features, *rest, **flags))


def _flat(rows: list[list[int]]) -> list[int]:
    return [number for row in rows for number in row]


def _gathered(features: Tensor, indices: Tensor) -> Tensor:
    """The rows once more, by operators that have a tangent: a custom operator drops it silently."""
    rows = features.flatten(0, 1).index_select(0, indices.clamp(min=0))
    return rows.masked_fill((indices < 0)[:, None], 0)


def _dispatch(op: Callable[..., Any], record: bool, *args: Any, **flags: Any) -> Any:
    """Call an operator; what it refuses is a ValueError. `record`: autograd has something to do."""
    if torch.compiler.is_compiling():
        return op(*args, **flags)
    try:
        if record:
            return op(*args, **flags)
        # Nothing to record: do not ask autograd, which is written in Python.
        with torch._C._AutoDispatchBelowAutograd():
            return op(*args, **flags)
    except RuntimeError as error:
        if str(error).startswith("hired::"):
            raise ValueError(str(error)) from None
        raise


def _empty_outputs(features: Tensor, rows: list[Any]) -> tuple[Tensor, Tensor, Tensor]:
    P, _, D = features.shape
    K = sum(rows)
    return (
        features.new_empty(K, D),
        features.new_empty(K, dtype=torch.int64),
        features.new_empty(P, dtype=torch.int64),
    )


@torch.library.register_fake("hired::select")
def _select_fake(
    features: Tensor,
    attn_init: Tensor,
    attn_final: Tensor,
    grids: Sequence[Any],
    budgets: Sequence[Any],
    alpha: float = 0.5,
    *,
    crops: Sequence[Any] | None = None,
    policy: str = "exact",
    order: str = "raster",
) -> tuple[Tensor, Tensor, Tensor]:
    arguments.check_select(
        features, attn_init, attn_final, grids, budgets, alpha, crops, policy, order
    )
    rows = arguments.output_rows(grids, budgets, features.shape[1], crops, policy)
    return _empty_outputs(features, rows)


@torch.library.register_fake("hired::select_qk")
def _select_qk_fake(
    features: Tensor,
    query_init: Tensor,
    key_init: Tensor,
    query_final: Tensor,
    key_final: Tensor,
    grids: Sequence[Any],
    budgets: Sequence[Any],
    alpha: float = 0.5,
    *,
    scale: float | None = None,
    crops: Sequence[Any] | None = None,
    policy: str = "exact",
    order: str = "raster",
) -> tuple[Tensor, Tensor, Tensor]:
    tensors = (features, query_init, key_init, query_final, key_final)
    arguments.check_select_qk(*tensors, grids, budgets, alpha, scale, crops, policy, order)
    rows = arguments.output_rows(grids, budgets, features.shape[1], crops, policy)
    return _empty_outputs(features, rows)


@torch.library.register_fake("hired::cls_attention")
def _cls_attention_fake(
    query: Tensor, key: Tensor, tokens: Any, *, scale: float | None = None
) -> Tensor:
    arguments.check_cls_attention(query, key, tokens, scale)
    return query.new_empty(*query.shape[:2], tokens, dtype=torch.float32)


def _setup_context(
    ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: dict[str, Any], output: Any
) -> None:
    _, indices, counts = output
    ctx.save_for_backward(indices)
    ctx.mark_non_differentiable(indices, counts)
    ctx.shape = inputs[0].shape
    ctx.inputs = len(inputs)
    ctx.has_empty_rows = keyword_only_inputs["policy"] == "published"


def _backward(ctx: Any, grad_tokens: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    """Scatter the gradient of the kept tokens back to their rows; scores have none."""
    (rows,) = ctx.saved_tensors
    P, T, D = ctx.shape
    if ctx.has_empty_rows:
        grad_tokens = grad_tokens.masked_fill((rows < 0)[:, None], 0)
        rows = rows.clamp(min=0)
    # No row is written twice, but for the zeros of empty rows: the sum is exact in any order.
    grad = grad_tokens.new_zeros(P * T, D).index_add(0, rows, grad_tokens)
    return (grad.view(P, T, D), *[None] * (ctx.inputs - 1))


def _no_gradient(
    ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: dict[str, Any], output: Tensor
) -> None:
    ctx.mark_non_differentiable(output)


def _nothing_backward(ctx: Any, _: Tensor) -> tuple[None, ...]:
    """Never reached: cls_attention's output has no gradient, as scores have none."""
    return None, None, None


for _op in ("select", "select_qk"):
    torch.library.register_autograd(f"hired::{_op}", _backward, setup_context=_setup_context)
torch.library.register_autograd(
    "hired::cls_attention", _nothing_backward, setup_context=_no_gradient
)
