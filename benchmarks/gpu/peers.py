# SPDX-License-Identifier: Apache-2.0
"""Other people's kernels for a stage of the method each, on the same inputs. All are optional.

None does the whole: a peer's time for its stage stands beside the operator's for all stages. What a
stage computes is checked before it is timed; a peer that is not installed, or fails, says so.

| stage | takes | gives |
|---|---|---|
| score | queries and keys of a layer (P, N, H, Dh) | the CLS row summed over heads, (P, T) |
| choose | scores (P, T) float32 | the best `budget / partitions` of each row |
| choose, gather | scores, features (P, T, D) | those tokens, (P, k, D) |
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..shared import baselines
from ..shared.command import progress
from ..shared.inputs import Inputs, Shape
from .runs import DEVICE, Burst, Graph, graph_clock, reason, timed, wall_clock

CALLS = 10
Run = Callable[[Any], Any]


@dataclass(frozen=True)
class Peer:
    """A contender for one stage of one operator.

    make(module, shape) -> a function of a sample as `prepare` made it. `module` is what has to be
    installed, `package` what pip calls it.
    """

    stage: str
    operator: str
    module: str
    package: str
    make: Callable[[Any, Shape], Run]


def scores(shape: Shape, inputs: Inputs) -> Tensor:
    """(P, T) float32 of the final layer."""
    if len(inputs.final) == 1:
        return baselines.head_sum(inputs.final[0].float())
    query, key = inputs.final
    return baselines.einsum(query[:, 0].float(), key.float())[:, -shape.T :].contiguous()


def each(shape: Shape) -> int:
    """Tokens of a partition where all keep as many."""
    return shape.budget // shape.partitions


def prepare(peer: Peer, shape: Shape, inputs: Inputs) -> Any:
    """What the stage takes, made beforehand."""
    if peer.stage == "score":
        query, key = inputs.final
        return query.transpose(1, 2), key.transpose(1, 2)  # (P, H, N, Dh), views
    return scores(shape, inputs), inputs.features


def wrong(peer: Peer, shape: Shape, inputs: Inputs, result: Any) -> str:
    """What is not right about a stage's result, or an empty string."""
    expected = scores(shape, inputs)
    if peer.stage == "score":
        worst = (result[:, -shape.T :].float() * shape.H / expected - 1).abs().max().item()
        return "" if worst < 1e-2 else f"scores differ by {worst:.1%}"
    best = expected.topk(each(shape), dim=1).indices.sort(dim=1).values
    if peer.stage == "choose, gather":
        tokens = torch.stack([rows[kept] for rows, kept in zip(inputs.features, best, strict=True)])
        sums = result.float().sum(dim=1), tokens.float().sum(dim=1)  # in whatever order they come
        return "" if torch.allclose(*sums, atol=1e-2) else "not those tokens"
    return "" if torch.equal(result.long().sort(dim=1).values, best) else "not those indices"


def _torch_topk(_: Any, shape: Shape) -> Run:
    k = each(shape)
    return lambda sample: sample[0].topk(k, dim=1, sorted=False).indices


def _torch_topk_and_index(_: Any, shape: Shape) -> Run:
    k, T, D = each(shape), shape.T, shape.D
    first = torch.arange(shape.P, device=DEVICE)[:, None]

    def run(sample: tuple[Tensor, Tensor]) -> Tensor:
        kept = sample[0].topk(k, dim=1, sorted=False).indices
        # The features are a view without CLS: of the rows of all tokens, those behind it.
        hidden = sample[1].as_strided((shape.P * (T + 1), D), (D, 1), 0)
        return hidden.index_select(0, (kept + first * (T + 1) + 1).view(-1)).view(-1, k, D)

    return run


def _flash_colsum(module: Any, shape: Shape) -> Run:
    return lambda sample: module.flash_colsum(*sample, cls_len=1)


def _flashinfer(module: Any, shape: Shape) -> Run:
    k = each(shape)
    return lambda sample: module.top_k(sample[0], k)[1]


class _Stream:
    """PyTorch's current stream, as cuda.compute takes one."""

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, torch.cuda.current_stream().cuda_stream


def _segmented_sort(module: Any, shape: Shape) -> Run:
    """CUB's, by key descending, indices along; CuPy holds what it works on."""
    cupy = importlib.import_module("cupy")
    k, T, P = each(shape), shape.T, shape.P
    ends = cupy.arange(0, (P + 1) * T, T, dtype=cupy.int64)
    values = cupy.tile(cupy.arange(T, dtype=cupy.int32), P)
    keys_out, values_out = cupy.empty(P * T, cupy.float32), cupy.empty(P * T, cupy.int32)
    indices = torch.as_tensor(values_out, device=DEVICE).view(P, T)[:, :k]

    def run(sample: tuple[Tensor, Tensor]) -> Tensor:
        module.segmented_sort(
            d_in_keys=cupy.asarray(sample[0].view(-1)), d_out_keys=keys_out,
            d_in_values=values, d_out_values=values_out, num_items=P * T, num_segments=P,
            start_offsets_in=ends[:-1], end_offsets_in=ends[1:],
            order=module.SortOrder.DESCENDING, stream=_Stream(),
        )  # fmt: skip
        return indices

    return run


PEERS = {
    "flash-colsum": Peer("score", "select_qk", "flash_colsum", "flash-colsum", _flash_colsum),
    "torch.topk": Peer("choose", "select", "torch", "torch", _torch_topk),
    "FlashInfer top_k": Peer("choose", "select", "flashinfer", "flashinfer-python", _flashinfer),
    "CUB segmented sort": Peer(
        "choose", "select", "cuda.compute", "cuda-cccl cupy-cuda13x", _segmented_sort
    ),
    "torch.topk, index_select": Peer(
        "choose, gather", "select", "torch", "torch", _torch_topk_and_index
    ),
}


def measure(
    shape: Shape, operator: str, samples: list[Inputs], seconds: float
) -> dict[str, dict[str, Any]]:
    """Timings by peer and by `graph` or `eager`; a peer that is missing or fails says why."""
    results: dict[str, dict[str, Any]] = {}
    for name, peer in PEERS.items():
        if peer.operator != operator:
            continue
        progress(f"  {name} ...")
        found = results[name] = {"stage": peer.stage}
        try:
            module = importlib.import_module(peer.module)
        except ImportError as error:
            found["failed"] = f"{error}: pip install {peer.package}"
            continue
        try:
            run, prepared = peer.make(module, shape), [prepare(peer, shape, s) for s in samples]
            if problem := wrong(peer, shape, samples[0], run(prepared[0])):
                found["failed"] = problem
                continue
            found["eager"] = timed(Burst(run, prepared, CALLS), seconds, wall_clock)
            found["graph"] = timed(Graph(run, prepared, len(prepared)), seconds, graph_clock)
        except Exception as error:  # other people's code may raise anything: the run goes on
            found["failed"] = reason(error)
    return results
