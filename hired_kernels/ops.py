# SPDX-License-Identifier: Apache-2.0
"""The Python face of `torch.ops.hired`: functions, fakes and gradients.

The operators take flat integer lists and raise `RuntimeError`; the functions here take pairs,
shares and one budget for all, and raise `ValueError` with the same words. Both give the same bits.

Source: HiRED (Arif et al., AAAI 2025, arXiv 2408.10945).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import arguments, face, geometry
from . import backends as _backends  # noqa: F401  (defines or loads torch.ops.hired)

Budget = float | int | Sequence[float | int]
Grid = tuple[int, int]
Crop = tuple[int, int, int, int]


class Selection(NamedTuple):
    """What a selection keeps.

    tokens: (K, g^2 * D), dtype of the features; kept tokens, picture after picture. With
        `merge` = g > 1 the patches of a block one after the other, in raster order.
    indices: (K,) int64, `p * M + m` of each row of tokens, M = T / g^2 (`geometry.patches_of`
        turns them into patches); -1 for a row of zeros, which only `policy="published"` has.
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
    attn_init: Tensor | None,
    attn_final: Tensor,
    *,
    grids: Sequence[Grid],
    budget: Budget,
    alpha: float = 0.5,
    crops: Sequence[Crop] | None = None,
    policy: str = "exact",
    order: str = "raster",
    merge: int = 1,
) -> Selection:
    """Keep the tokens that the CLS token attends to, given its attention rows.

    Args:
        features: (P, T, D), any floating dtype, unit stride in D; `hidden[:, 1:]` as it is.
        attn_init: (P, H, T) or (B, H, T), float32, float16 or bfloat16, any strides: CLS rows at
            the initial layer. Of P rows only the full images' are read. Under `pooled`, which
            never reads it, None will do.
        attn_final: (P, H, T), dtype of attn_init, any strides: CLS rows at the final layer;
            `attention[:, :, 0, -T:]` as it is. Rows of any other judge will do as well.
        grids: (R, C) of each of B pictures, (0, 0) without sub-images; 1 + R * C sum to P.
        budget: tokens to keep of a picture: an int, or a float in (0, 1] as a share of its valid
            tokens (of all its tokens under `published`); or a sequence with one for each picture.
        alpha: share of the budget that the full image gets, in [0, 1].
        crops: (top, bottom, left, right) of each picture, half-open, in tokens of its assembled
            grid of sub-images, each isqrt(M) tokens a side: what is picture and not padding. None:
            all of it.
        policy: "exact" keeps exactly the budget; "pooled" the best of a picture's partitions
            together, without an allocation; "published" what the published code keeps.
        order: "raster", as LLaVA-NeXT packs tokens; "partition", one partition after the other;
            or "full_last", the same with the full image behind its sub-images, as InternVL does.
        merge: g, patches a side of what is one token to the language model. A token's score is the
            sum of its patches'. Budgets, crops, indices and counts are in tokens, of which a
            partition has M = T / g^2. g > 1 wants T square, and g to divide its root; not with
            `published`.

    Raises `ValueError("hired::select: <argument>: expected ..., got ...")` before any work.
    Differentiable with respect to features, in reverse and forward mode (`torch.func.jvp`, dual
    tensors; `torch.func.grad` and `vjp` raise); scores have neither gradient nor tangent.
    """
    tensors: dict[str, Any] = {
        "features": features,
        "attn_init": attn_init,
        "attn_final": attn_final,
    }
    if attn_init is None and policy == "pooled":
        tensors["attn_init"] = attn_final
    rest = (grids, budget, alpha, crops, policy, order, merge)
    return _call("select", torch.ops.hired.select.default, tensors, *rest)


def select_qk(
    features: Tensor,
    query_init: Tensor | None,
    key_init: Tensor | None,
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
    merge: int = 1,
) -> Selection:
    """Keep the tokens that the judges attend to, given their queries and all keys.

    Args:
        features: (P, T, D), any floating dtype, unit stride in D.
        query_init, query_final: (P, H, Dh), the CLS token's queries; or (P, Q, H, Dh), those of any
            Q judges: all patches, `query[:, 1::4]` of them, their mean. For init also B rows
            instead of P. float32, float16 or bfloat16, unit last stride. The layers may differ in
            Q.
        key_init, key_final: (P, N, H, Dh), for init also (B, N, H, Dh), dtype of the queries, unit
            last stride: all N >= T keys, the patches last.
        scale: factor of the dot products, finite; `Dh ** -0.5` by default.

    A head's attention is the mean over its queries of `softmax(q . k * scale)` over all N; heads
    are added up. Under `pooled` queries and keys of the initial layer may be None. The other
    arguments, the result and the errors are those of `select`.
    """
    tensors: dict[str, Any] = {
        "features": features,
        "query_init": query_init,
        "key_init": key_init,
        "query_final": query_final,
        "key_final": key_final,
    }
    if policy == "pooled" and query_init is None and key_init is None:
        tensors |= {"query_init": query_final, "key_init": key_final}
    if scale is not None:
        scale = face.number("select_qk", "scale", "a finite number", scale)
    rest = (grids, budget, alpha, crops, policy, order, merge)
    return _call("select_qk", torch.ops.hired.select_qk.default, tensors, *rest, scale=scale)


def cls_attention(query: Tensor, key: Tensor, tokens: int, *, scale: float | None = None) -> Tensor:
    """The attention that the CLS token, or the mean of any Q judges, pays to each patch, by head.

    Args:
        query: (P, H, Dh), the CLS token's queries, or (P, Q, H, Dh), those of Q judges; float32,
            float16 or bfloat16, unit last stride.
        key: (P, N, H, Dh), dtype of the queries, unit last stride: all keys, the patches last.
        tokens: T, the patches of a partition, 1 <= T <= N.
        scale: factor of the dot products, finite; `Dh ** -0.5` by default.

    Returns (P, H, T) float32, contiguous: `softmax(q . k * scale)` over all N, its last T columns,
    the mean of them over Q.
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
    merge: int,
    **scale: float | None,
) -> Selection:
    face.check_tensors(name, tensors)
    features, *scores = tensors.values()
    merge = face.integer(name, "merge", merge)
    pairs = face.rows(name, "grids", "(R, C)", grids)
    boxes = None
    if crops is not None:
        boxes = face.rows(name, "crops", "(top, bottom, left, right)", crops)
    # A rank that has no T is refused by the operator.
    # Nor does what `merge` cannot be get as far as to divide.
    tokens = features.shape[1] // max(merge, 1) ** 2 if features.dim() == 3 else 1
    budgets = face.budgets(name, budget, pairs, tokens, boxes, policy)
    alpha = face.number(name, "alpha", "a number in [0, 1]", alpha)
    words = {"policy": face.word(name, "policy", policy), "order": face.word(name, "order", order)}
    crop = None if boxes is None else _flat(boxes)
    flags: dict[str, Any] = {"crops": crop, **words, "merge": merge, **scale}
    rest = (*scores, _flat(pairs), budgets, alpha)
    if forward_ad._current_level >= 0:
        kept = Selection(*_dispatch(op, False, features.detach(), *rest, **flags))
        return kept._replace(tokens=_gathered(features, kept.indices, merge))
    record = features.requires_grad and torch.is_grad_enabled()
    return Selection(*_dispatch(op, record, features, *rest, **flags))


def _flat(rows: list[list[int]]) -> list[int]:
    return [number for row in rows for number in row]


def _gathered(features: Tensor, indices: Tensor, merge: int) -> Tensor:
    """The rows once more, by operators that have a tangent: a custom operator drops it silently."""
    patches = _patches(indices, features.shape[1], merge)
    rows = features.flatten(0, 1).index_select(0, patches.clamp(min=0))
    rows = rows.masked_fill((patches < 0)[:, None], 0)
    return rows.view(len(indices), merge**2 * features.shape[2])


def _patches(indices: Tensor, T: int, merge: int) -> Tensor:
    """`p * T + t` of all patches of the kept tokens, flat."""
    if merge == 1 or T == 0:  # of an empty batch
        return indices
    return geometry.patches_of(indices, math.isqrt(T), merge).flatten()


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


def _empty_outputs(
    features: Tensor,
    grids: Sequence[Any],
    budgets: Sequence[Any],
    crops: Sequence[Any] | None,
    policy: str,
    merge: int,
) -> tuple[Tensor, Tensor, Tensor]:
    P, T, D = features.shape
    K = sum(arguments.output_rows(grids, budgets, T // merge**2, crops, policy))
    return (
        features.new_empty(K, merge**2 * D),
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
    merge: int = 1,
) -> tuple[Tensor, Tensor, Tensor]:
    arguments.check_select(
        features, attn_init, attn_final, grids, budgets, alpha, crops, policy, order, merge
    )
    return _empty_outputs(features, grids, budgets, crops, policy, merge)


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
    merge: int = 1,
) -> tuple[Tensor, Tensor, Tensor]:
    tensors = (features, query_init, key_init, query_final, key_final)
    arguments.check_select_qk(*tensors, grids, budgets, alpha, scale, crops, policy, order, merge)
    return _empty_outputs(features, grids, budgets, crops, policy, merge)


@torch.library.register_fake("hired::cls_attention")
def _cls_attention_fake(
    query: Tensor, key: Tensor, tokens: Any, *, scale: float | None = None
) -> Tensor:
    arguments.check_cls_attention(query, key, tokens, scale)
    P, H = query.shape[0], query.shape[-2]
    return query.new_empty(P, H, tokens, dtype=torch.float32)


def _setup_context(
    ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: dict[str, Any], output: Any
) -> None:
    _, indices, counts = output
    ctx.save_for_backward(indices)
    ctx.mark_non_differentiable(indices, counts)
    ctx.shape = inputs[0].shape
    ctx.inputs = len(inputs)
    ctx.has_empty_rows = keyword_only_inputs["policy"] == "published"
    ctx.merge = keyword_only_inputs["merge"]


def _backward(ctx: Any, grad_tokens: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    """Scatter the gradient of the kept tokens back to their patches; scores have none."""
    (indices,) = ctx.saved_tensors
    P, T, D = ctx.shape
    rows = _patches(indices, T, ctx.merge)
    grad_tokens = grad_tokens.reshape(len(rows), D)
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
