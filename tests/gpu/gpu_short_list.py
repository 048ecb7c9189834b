#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Small calls that between them take every path of the kernels.

    python tests/gpu/gpu_short_list.py [cuda]

Run as a program it makes them on a GPU, twice each and on two streams, and holds the results to the
oracle; it is what `make test-gpu` puts under compute-sanitizer. `cpu` for the device tries the
list itself out on the CPU backend. HIRED_BACKEND=triton makes them with the Triton kernels.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import hired_kernels
from hired_kernels import backends

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from callers import operator, reference
from cls_attention_calls import agree, seeded_attention_call
from strategies import Call, seeded_call, seeded_qk_call

MIXED = ((2, 2), (0, 0), (1, 2))
CROPS = [1, 7, 0, 8, 0, 0, 0, 0, 0, 4, 2, 6]  # of MIXED, with T = 16
MANY = ((0, 0), (1, 1), (1, 2), (0, 0), (2, 1)) * 14  # 70 pictures, 182 partitions


def unaligned(tensor: Tensor) -> Tensor:
    """The same values in a buffer with an element before each row and one after it."""
    *rows, last = tensor.shape
    buffer = torch.zeros(*rows, last + 2, dtype=tensor.dtype)
    view = buffer[..., 1:-1]
    return view.copy_(tensor)


def select(seed: int, **sizes: object) -> tuple[str, Call]:
    return "select", seeded_call("select", seed, **sizes)


def select_qk(seed: int, **sizes: object) -> tuple[str, Call]:
    """Consecutive seeds give different calls: some are passed over as too close to call."""
    return "select_qk", seeded_qk_call(1000 * seed, **sizes)


def odd_select(seed: int) -> tuple[str, Call]:
    """Nothing lies at a multiple of 4 bytes: rows of the features, heads of the attention."""
    op, call = select(seed, D=3, dtype=torch.float16)
    rows = call["attn_final"]
    matrix = torch.zeros(*rows.shape[:2], 17, 17, dtype=rows.dtype)
    matrix[:, :, 0, 1:] = rows
    features = unaligned(call["features"].to(torch.bfloat16))
    return op, {**call, "features": features, "attn_final": matrix[:, :, 0, 1:]}


def odd_select_qk(seed: int) -> tuple[str, Call]:
    op, call = select_qk(seed, D=5, Dh=9, dtype=torch.bfloat16)
    keys = {name: unaligned(call[name]) for name in ("key_init", "key_final", "query_final")}
    return op, {**call, **keys, "features": call["features"].to(torch.float8_e5m2)}


def cls_attention(seed: int, **sizes: object) -> tuple[str, Call]:
    return "cls_attention", seeded_attention_call(seed, **sizes)


def odd_cls_attention(seed: int) -> tuple[str, Call]:
    op, call = cls_attention(seed, T=15, N=19, Dh=9, dtype=torch.bfloat16)
    return op, {**call, **{name: unaligned(call[name]) for name in ("query", "key")}}


# From a seed: calls of one name differ in their data alone.
CALLS: dict[str, Callable[[int], tuple[str, Call]]] = {
    "select": lambda seed: select(seed),
    "select-published": lambda seed: select(
        seed, policy="published", crops=CROPS, dtype=torch.float16
    ),
    "select-partition": lambda seed: select(
        seed, order="partition", crops=CROPS, share=0.9, dtype=torch.bfloat16
    ),
    "select-odd": odd_select,
    "select-pooled": lambda seed: select(
        seed, policy="pooled", order="full_last", crops=CROPS, dtype=torch.float16
    ),
    "select-pooled-large": lambda seed: select(  # more keys than shared memory holds
        seed, grids=((3, 3),), T=1024, H=1, policy="pooled"
    ),
    "select-merge": lambda seed: select(seed, T=36, merge=3, order="full_last", share=0.5),
    "select-pooled-merge": lambda seed: select(
        seed, T=16, merge=2, policy="pooled", share=0.5, dtype=torch.bfloat16
    ),
    "select-nothing": lambda seed: select(seed, share=0.0),
    "select-many": lambda seed: select(seed, grids=MANY, H=1),
    "select-64": lambda seed: select(seed, grids=((8, 8),), T=36),
    "select_qk": lambda seed: select_qk(seed),
    "select_qk-published": lambda seed: select_qk(
        seed, policy="published", crops=CROPS, dtype=torch.float16
    ),
    "select_qk-odd": odd_select_qk,
    "select_qk-wide": lambda seed: select_qk(
        seed, grids=((1, 2),), Dh=80, H=2, N=21, dtype=torch.float16
    ),
    "select_qk-many": lambda seed: select_qk(seed, grids=MANY[:66], H=1, Dh=16),
    "select_qk-queries": lambda seed: select_qk(seed, Q=51, dtype=torch.float16),
    "select_qk-queries-pooled": lambda seed: select_qk(
        seed, T=36, merge=2, Q=7, Dh=72, policy="pooled", order="full_last", share=0.5
    ),
    "select_qk-queries-wide": lambda seed: select_qk(  # five keys a thread
        seed, grids=((0, 0),), T=784, N=785, H=1, Q=13, Dh=64, dtype=torch.bfloat16
    ),
    "select_qk-T-1": lambda seed: select_qk(seed, T=1, share=0.8),
    "cls_attention": lambda seed: cls_attention(seed, dtype=torch.float16),
    "cls_attention-odd": odd_cls_attention,
    "cls_attention-queries": lambda seed: cls_attention(seed, Q=100, dtype=torch.float16),
    "cls_attention-chunks": lambda seed: cls_attention(seed, P=1, H=1, T=1290, N=1300, Q=20),
}

# LLaVA-NeXT's size: two pictures, eight partitions.
LLAVA = {"grids": ((2, 2), (1, 2)), "T": 576, "H": 16, "D": 1024, "Dh": 64}
LLAVA_CALLS: dict[str, Callable[[int, torch.dtype], tuple[str, Call]]] = {
    "select": lambda seed, dtype: select(seed, **LLAVA, dtype=dtype),
    "select_qk": lambda seed, dtype: select_qk(seed, **LLAVA, dtype=dtype),
    "cls_attention": lambda seed, dtype: cls_attention(
        seed, P=8, T=576, N=577, H=16, Dh=64, dtype=dtype
    ),
}


def wrong(device: str) -> list[str]:
    """Names of the calls whose results on `device` are not the oracle's."""
    from targets import to_gpu  # which needs a build where this list does not

    move = to_gpu if device == "cuda" else torch.clone
    names = []
    for name, make in CALLS.items():
        op, call = make(1)
        expected = reference(op, **call)
        moved = {k: move(v) if isinstance(v, Tensor) else v for k, v in call.items()}
        results = [operator(op, **moved), operator(op, **moved)]
        if device == "cuda":
            torch.cuda.synchronize()  # the other stream must find the inputs there
            with torch.cuda.stream(torch.cuda.Stream()):
                results.append(operator(op, **moved))
            torch.cuda.synchronize()
        if not all(agree(tuple(x.cpu() for x in result), expected) for result in results):
            names.append(name)
    return names


def main(arguments: list[str]) -> int:
    device = arguments[0] if arguments else "cuda"
    if device == "cuda" and not torch.cuda.is_available():
        print("gpu_short_list: expected a GPU that PyTorch can use, got none", file=sys.stderr)
        return 2
    backend, folder = backends.active(device), Path(hired_kernels.__file__).parent
    print(f"{len(CALLS)} calls on {device}, by the {backend} backend of {folder}")
    expected = os.environ.get("HIRED_BACKEND") or device
    if backend != expected:
        print(f"gpu_short_list: expected the {expected} backend, got {backend}", file=sys.stderr)
        return 2
    if names := wrong(device):
        print(f"not the oracle's result: {', '.join(names)}", file=sys.stderr)
        return 1
    print(f"{len(CALLS)} right")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
