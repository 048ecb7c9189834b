# SPDX-License-Identifier: Apache-2.0
"""What the operators are measured against: the published method, and compositions of PyTorch.

The compositions read the CLS rows alone and compute `policy="exact"`, index for index, for a batch
of pictures with equal grids. `plain` is what one writes down first; the others are what is left
after a search for speed. Each is a function of an `Inputs`, made for a shape.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hired_kernels import ops, published

from .inputs import Inputs, Shape

Run = Callable[[Inputs], tuple]  # the kept tokens come first


def operators_tokens(shape: Shape, operator: str, sample: Inputs) -> dict[str, Tensor]:
    """What a contender has to keep of a sample, by policy."""
    raw = getattr(torch.ops.hired, operator).default
    arguments = *sample.arguments(), *shape.arguments
    return {
        policy: ops.Selection(*raw(*arguments, policy=policy)).compact().tokens
        for policy in ("exact", "published")
    }


def published_method(shape: Shape, operator: str) -> Run:
    """The published code's stages: whole attention matrices, a top-k a sub-image, its packing."""
    grids, partitions = [(shape.R, shape.C)] * shape.B, [shape.partitions] * shape.B
    sizes = grids  # any height and width of the grid's aspect ratio: there is no padding

    def select(inputs: Inputs) -> tuple:
        rows = *inputs.init, *inputs.final
        mask = published.kept_mask(*rows, partitions, shape.budgets, shape.alpha)
        return published.gather(inputs.features, mask, grids, sizes)

    def select_qk(inputs: Inputs) -> tuple:
        layers = *inputs.init, *inputs.final
        options = {"grids": grids, "sizes": sizes, "rate": shape.rate, "alpha": shape.alpha}
        return published.select(inputs.features, *layers, **options)

    return select if operator == "select" else select_qk


def compositions(shape: Shape, operator: str) -> dict[str, Run]:
    """Compositions of PyTorch operators by name; `plain` is the first."""
    tail = Tail(shape)

    def plain(scores: Callable[[Inputs], tuple[Tensor, Tensor]]) -> Run:
        return lambda inputs: tail.plain(inputs, *scores(inputs))

    def tuned(scores: Callable[[Inputs], tuple[Tensor, Tensor]]) -> Run:
        return lambda inputs: tail.tuned(inputs, *scores(inputs))

    def of_rows(inputs: Inputs) -> tuple[Tensor, Tensor]:
        full_images = inputs.init[0][:: shape.partitions]
        return head_sum(full_images), head_sum(inputs.final[0])

    def of_keys(score: Callable[[Tensor, Tensor], Tensor]) -> Callable:
        def scores(inputs: Inputs) -> tuple[Tensor, Tensor]:
            (q0, k0), (q1, k1) = inputs.init, inputs.final
            every = shape.partitions
            init = score(q0[::every, 0], k0[::every])[:, -shape.T :]
            return init, score(q1[:, 0], k1)[:, -shape.T :]

        return scores

    if operator == "select":
        return {"plain": plain(of_rows), "tuned": tuned(of_rows)}
    searched = {"vecdot": vecdot, "rows": _partition_by_partition, "block": _block_diagonal}
    return {
        "plain": plain(of_keys(einsum)),
        **{name: tuned(of_keys(score)) for name, score in searched.items()},
    }


def head_sum(attention: Tensor) -> Tensor:
    return attention.sum(dim=1, dtype=torch.float32)


# Scores of queries (P, H, Dh) and keys (P, N, H, Dh), which a projection leaves with N before H.
# One core, one picture, milliseconds in float32 and bfloat16: `einsum` 7.9 and 5.1, a matmul with
# the keys transposed 3.0 and 1.5, `block` 2.0 and 0.8, `vecdot` 1.0 and 0.9, `rows` 0.8 and 1.2.
# Blocks of 2 to 8 heads took as long as `einsum`, scaled_dot_product_attention with the identity
# for values 11 and 74. BLAS wants a matrix a head and reads strided keys slowly. Products as large
# as the keys cost `vecdot` its lead from four pictures on. In bfloat16 all but `rows` round logits
# to bfloat16, which the operators do not.


def einsum(query: Tensor, key: Tensor) -> Tensor:
    logits = torch.einsum("phd,pnhd->phn", query, key) * query.shape[-1] ** -0.5
    return logits.softmax(dim=-1, dtype=torch.float32).sum(dim=1)


def vecdot(query: Tensor, key: Tensor) -> Tensor:
    """Products of the keys' own size, then their sums."""
    logits = torch.linalg.vecdot(key, (query * query.shape[-1] ** -0.5)[:, None])
    return logits.softmax(dim=1, dtype=torch.float32).sum(dim=2)


def _partition_by_partition(query: Tensor, key: Tensor) -> Tensor:
    """The same with products of one partition's size, which stay in the cache."""
    P, N, H, _ = key.shape
    query = query * query.shape[-1] ** -0.5
    logits, products = torch.empty(P, N, H), torch.empty_like(key[0])
    for of_one, q, k in zip(logits.unbind(), query.unbind(), key.unbind(), strict=True):
        torch.mul(k, q, out=products)
        torch.sum(products, dim=-1, dtype=torch.float32, out=of_one)
    return logits.softmax(dim=1).sum(dim=2)


def _block_diagonal(query: Tensor, key: Tensor) -> Tensor:
    """One matmul a partition: H times the arithmetic, but the keys are read as they lie."""
    P, N, H, Dh = key.shape
    diagonal = torch.eye(H, dtype=query.dtype)[:, :, None]
    blocks = ((query * Dh**-0.5)[:, None] * diagonal).view(P, H, H * Dh)
    logits = blocks @ key.reshape(P, N, H * Dh).transpose(1, 2)
    return logits.softmax(dim=-1, dtype=torch.float32).sum(dim=1)


class Tail:
    """Scores to tokens. Tables that depend on the shape alone are made beforehand.

    Sub-images share no more than one of them can hold, so no capacity binds and largest remainder
    is one round; that is what these compositions leave out.
    """

    def __init__(self, shape: Shape) -> None:
        B, R, C, T = shape.B, shape.R, shape.C, shape.T
        side = int(T**0.5)
        self.shape, self.partitions = shape, shape.partitions
        self.full = int(shape.budget * shape.alpha)
        self.rest = shape.budget - self.full
        assert max(self.full, self.rest) <= T
        self.best = int(T * (1 - shape.alpha))
        y, x = torch.arange(T) // side, torch.arange(T) % side
        self.region = (2 * y + 1) * R // (2 * side) * C + (2 * x + 1) * C // (2 * side)
        self.ones = torch.ones(B, self.best, dtype=torch.int64)
        self.of_full_images = torch.full((B, 1), self.full)
        self.nth = torch.arange(R * C)
        # Tokens in reading order, as p * T + t and as rows of the hidden states.
        index = torch.arange(shape.P * T).view(B, self.partitions, T)
        sub_images = index[:, 1:].reshape(B, R, C, side, side).transpose(2, 3).reshape(B, -1)
        self.reading_order = torch.cat((index[:, 0], sub_images), dim=1).view(-1)
        p, t = self.reading_order // T, self.reading_order % T
        self.hidden_rows = p * shape.N + shape.N - T + t

    def budgets(self, init: Tensor) -> Tensor:
        """(B, T) -> (B, 1 + R * C), by largest remainder."""
        best = init.topk(self.best, sorted=False).indices
        weights = self.ones.new_zeros(len(init), len(self.nth))
        products = weights.scatter_add_(1, self.region[best], self.ones) * self.rest
        shares = torch.div(products, self.best, rounding_mode="trunc")
        left = self.rest - shares.sum(dim=1, keepdim=True)
        by_remainder = products.fmod(self.best).argsort(dim=1, descending=True, stable=True)
        shares.scatter_add_(1, by_remainder, (self.nth < left).long())
        return torch.cat((self.of_full_images, shares), dim=1)

    def plain(self, inputs: Inputs, init: Tensor, final: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        budgets = self.budgets(init).view(-1)
        rank = final.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        kept = (rank < budgets[:, None]).view(-1)
        indices = self.reading_order[kept[self.reading_order]]
        T = self.shape.T
        return inputs.features[indices // T, indices % T], indices, budgets

    def tuned(self, inputs: Inputs, init: Tensor, final: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        budgets = self.budgets(init).view(-1)
        # A top-k a row, its k known to the host, which on a CPU waits for nothing. One picture and
        # 16, microseconds: 31 and 760. One top-k with the largest k, then a threshold a row, took
        # 75 and 1,200; a sort 126 and 1,900; an argsort scattered into ranks 135 and 2,100.
        kept = torch.zeros(final.shape, dtype=torch.bool)
        for row, scores, k in zip(kept.unbind(), final.unbind(), budgets.tolist(), strict=True):
            row.index_fill_(0, scores.topk(k, sorted=False).indices, True)
        in_order = kept.view(-1).index_select(0, self.reading_order)
        places = in_order.nonzero_static(size=self.shape.B * self.shape.budget).view(-1)
        # `embedding` copies rows: 70 for one picture, where index_select of the same rows took 110,
        # indexing by one tensor 200, and by two, which features alone would need, 500.
        rows = self.hidden_rows.index_select(0, places)
        hidden = inputs.hidden.view(-1, self.shape.D)
        tokens = torch.nn.functional.embedding(rows, hidden)
        return tokens, self.reading_order.index_select(0, places), budgets
