# SPDX-License-Identifier: Apache-2.0
"""Scores by many judges: `cls_attention` with Q queries, beside PyTorch and what it must compute.

Shapes of a SigLIP and of an InternViT layer, Q from one to all. PyTorch's attention operators do
not give these scores: the contenders are compositions of einsum, softmax and mean. Every one has to
agree with float64 before it is timed. benchmarks/README.md says what the columns are.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import hired_kernels as hired
from hired_kernels import reference

from ..gpu import runs
from ..shared import command, report, timing

COPY_MEGABYTES = 64
CALLS_OF_GRAPH = 10
TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 2e-1}  # of compositions
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in TOLERANCE}
# Reached or not is printed below the table: (times the best composition, share of the rate of a
# matrix product) by Q on two CPU cores, and the share of the tower's time at a quarter of all.
TARGETS = {"quarter": 3.0, "all": 0.5, "tower": {"cpu": 0.01, "cuda": 0.02}}


@dataclass(frozen=True)
class Tower:
    """A ViT's layer: N keys, of which the last T are patches, and what is around it."""

    name: str
    T: int
    N: int
    H: int
    Dh: int
    layers: int
    mlp: int
    queries: tuple[int, ...]

    @property
    def quarter(self) -> int:
        return self.queries[-2]


TOWERS = (
    Tower("SigLIP-so400m/384", 729, 729, 16, 72, 27, 4304, (1, 46, 169, 729)),
    Tower("InternViT-300M/448", 1024, 1025, 16, 64, 24, 4096, (1, 64, 256, 1025)),
)


class Layer(nn.Module):
    """A layer of a tower, as its forward pass has it: what scores stand beside."""

    def __init__(self, tower: Tower) -> None:
        super().__init__()
        width = tower.H * tower.Dh
        self.H = tower.H
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, tower.mlp), nn.GELU("tanh"), nn.Linear(tower.mlp, width)
        )

    def forward(self, hidden: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(hidden)).unflatten(2, (3, self.H, -1)).permute(2, 0, 3, 1, 4)
        attended = nn.functional.scaled_dot_product_attention(q, k, v)
        hidden = hidden + self.out(attended.transpose(1, 2).flatten(2))
        return hidden + self.mlp(self.norm2(hidden))


def einsum(query: Tensor, key: Tensor, T: int) -> Tensor:
    """As one first writes it."""
    logits = torch.einsum("pqhd,pnhd->phqn", query * query.shape[-1] ** -0.5, key)
    return logits.softmax(dim=-1, dtype=torch.float32).mean(dim=2)[..., -T:]


def matmul(query: Tensor, key: Tensor, T: int) -> Tensor:
    """Views instead of copies where they will do, and nothing written twice."""
    logits = (query * query.shape[-1] ** -0.5).transpose(1, 2) @ key.permute(0, 2, 3, 1)
    return logits.softmax(dim=-1, dtype=torch.float32).mean(dim=2)[..., -T:]


def by_heads(query: Tensor, key: Tensor, T: int) -> Tensor:
    """A head at a time: what is between the operators stays in a CPU's cache."""
    query = query * query.shape[-1] ** -0.5
    heads = [matmul_of_head(query[:, :, h], key[:, :, h]) for h in range(query.shape[2])]
    return torch.stack(heads, dim=1)[..., -T:]


def matmul_of_head(query: Tensor, key: Tensor) -> Tensor:
    return torch.bmm(query, key.mT).softmax(dim=-1, dtype=torch.float32).mean(dim=1)


def flash_colreduce(module: Any) -> Callable[[Tensor, Tensor, int], Tensor]:
    def run(query: Tensor, key: Tensor, T: int) -> Tensor:
        means = module.flash_colreduce(query.transpose(1, 2), key.transpose(1, 2), reduction="mean")
        return means[..., -T:]

    return run


def contenders(device: str) -> dict[str, Callable[[Tensor, Tensor, int], Tensor]]:
    found = {"hired": hired.cls_attention, "einsum": einsum, "matmul": matmul}
    if device == "cpu":
        return {**found, "by heads": by_heads}
    found["torch.compile"] = torch.compile(matmul, dynamic=False)
    try:
        found["flash-colreduce"] = flash_colreduce(importlib.import_module("flash_colreduce"))
    except ImportError as error:
        command.progress(f"{error}: pip install flash-colreduce")
    return found


def error_of(run: Any, query: Tensor, key: Tensor, T: int, tolerance: float) -> float:
    """The largest error beside float64, relative to the largest score; 0 where it is tolerable."""
    expected = reference.cls_attention(query[:1], key[:1], T)
    error = (run(query[:1], key[:1], T) - expected).abs().max() / expected.max()
    return 0.0 if error <= tolerance else error.item()


def run_case(tower: Tower, Q: int, layer: float, copy: timing.Copy, options: Any) -> dict[str, Any]:
    """One tower and one Q, as it goes into the JSON file."""
    device, dtype, P = options.device, DTYPES[options.dtype], options.partitions
    N, H, Dh, T = tower.N, tower.H, tower.Dh, tower.T
    generator = torch.Generator(device).manual_seed(options.seed)
    shape = (P, N, H, Dh)
    every, key = (
        torch.randn(shape, generator=generator, device=device).to(dtype) for _ in range(2)
    )
    if Q == 1:
        query = every[:, :1]
    elif Q == N:
        query = every
    else:  # patches on a lattice, or as many as make Q; copied, as an index copies
        places = torch.linspace(N - T, N - 1, Q, device=device).long()
        query = every[:, places]
    left, right = query.transpose(1, 2).contiguous(), key.permute(0, 2, 3, 1).contiguous()
    work: dict[str, Callable[[], object]] = {"matrix product": lambda: left @ right}
    failed: dict[str, str] = {}
    for name, run in contenders(device).items():
        tolerance = 1e-5 if name == "hired" else TOLERANCE[dtype]
        try:
            error = error_of(run, query, key, T, tolerance)
        except Exception as caught:  # other people's code may raise anything
            failed[name] = runs.reason(caught)
            continue
        if error:
            command.require(name != "hired", f"{tower.name}, Q = {Q}: hired errs by {error:.2g}")
            failed[name] = f"errs by {error:.2g}"
            continue
        work[name] = lambda run=run: run(query, key, T)
    taken = measure({**work, "copy": lambda: copy(0)}, options)
    operations = 2 * P * Q * N * H * Dh
    moved = key.nbytes + query.nbytes + 4 * P * H * T
    best = min((n for n in taken if n not in ("hired", "copy", "matrix product")),
               key=lambda name: taken[name].median)  # fmt: skip
    ours, product = taken["hired"].median, taken["matrix product"].median
    bandwidth = copy.bytes / taken["copy"].median
    return {
        "tower": tower.name,
        "shape": {"P": P, "Q": Q, "N": N, "T": T, "H": H, "Dh": Dh},
        "dtype": options.dtype,
        "operations": operations,
        "bytes": moved,
        "timings": {name: timing_.as_json() for name, timing_ in taken.items()},
        "failed": failed,
        "summary": {
            "best_composition": best,
            "speedup_over_best_composition": taken[best].median / ours,
            "gigaflops": operations / ours / 1e9,
            "share_of_matrix_product": product / ours,
            "floor_us": max(product, moved / bandwidth) * 1e6,
            "share_of_tower": ours / (layer * tower.layers),
        },
    }


def measure(work: dict[str, Callable[[], object]], options: Any) -> dict[str, timing.Timing]:
    """In turns; on a GPU a replay of a graph of several calls, by the device's clock."""
    if options.device == "cpu":
        calls = {name: lambda _, run=run: run() for name, run in work.items()}
        return timing.measure(calls, sets=1, seconds=options.seconds)
    graphs = {
        name: runs.Graph(lambda _, run=run: run(), [None], CALLS_OF_GRAPH)
        for name, run in work.items()
    }
    taken = timing.measure(graphs, sets=1, seconds=options.seconds, clock=runs.graph_clock)
    return {name: value.each(CALLS_OF_GRAPH) for name, value in taken.items()}


def seconds_of_layer(tower: Tower, options: Any) -> float:
    """A layer of the tower, as its forward pass runs it."""
    device, dtype = options.device, DTYPES[options.dtype]
    layer = Layer(tower).to(device, dtype)
    hidden = torch.randn(options.partitions, tower.N, tower.H * tower.Dh, device=device).to(dtype)
    return measure({"layer": lambda: layer(hidden)}, options)["layer"].median


def print_table(cases: list[dict[str, Any]]) -> None:
    header = (
        "median us", "Q", "hired", "p10-p90", "best of PyTorch", "", "", "matrix product",
        "rate", "floor", "of the tower",
    )  # fmt: skip
    rows = []
    for case in cases:
        summary, taken = case["summary"], case["timings"]

        def us(name: str, field: str = "median_us", taken: Any = taken) -> str:
            return report.microseconds(taken[name][field] * 1e-6)

        best = summary["best_composition"]
        rows.append((
            case["tower"], str(case["shape"]["Q"]), us("hired"),
            f"{us('hired', 'p10_us')}-{us('hired', 'p90_us')}", us(best),
            report.times(summary["speedup_over_best_composition"]), best,
            us("matrix product"), report.times(summary["share_of_matrix_product"]),
            report.microseconds(summary["floor_us"] * 1e-6),
            f"{summary['share_of_tower']:.2%}",
        ))  # fmt: skip
    print(report.table(header, rows))


def print_targets(cases: list[dict[str, Any]], device: str) -> None:
    """What the project aims at: a quarter of the queries, and all of them."""
    for tower in TOWERS:
        found = {case["shape"]["Q"]: case for case in cases if case["tower"] == tower.name}
        parts = []
        if case := found.get(tower.quarter):
            summary = case["summary"]
            ratio = report.times(summary["speedup_over_best_composition"])
            parts.append(f"Q = {tower.quarter}: {ratio} of {TARGETS['quarter']:g}x the best")
            limit = TARGETS["tower"][device]
            parts.append(f"{summary['share_of_tower']:.2%} of the tower, at most {limit:.0%}")
        if case := found.get(tower.N):
            share = case["summary"]["share_of_matrix_product"]
            parts.append(f"all: {share:.2f} of {TARGETS['all']:g} of a matrix product's rate")
        if parts:
            print(f"reached and aimed at, {tower.name}: {'; '.join(parts)}")


def parse() -> Any:
    parser = command.parser(__doc__)
    add = parser.add_argument
    add("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    add("--dtype", choices=DTYPES, default=None, help="float32 on a CPU, float16 on a GPU")
    add("--threads", type=int, default=torch.get_num_threads(), help="PyTorch's threads (all)")
    add("--partitions", type=int, default=None, help="P: 1 on a CPU, 5 on a GPU")
    add("--queries", nargs="+", type=int, default=None, help="numbers of judges (1 to all)")
    add("--seconds", type=float, default=2.0, help="for each contender at each Q (2)")
    add("--quick", action="store_true", help="0.1 seconds each; prints only")
    add("--seed", type=int, default=0)
    command.add_out(parser, "judges-<cpu or gpu>.json")
    options = parser.parse_args()
    on_gpu = options.device == "cuda"
    options.dtype = options.dtype or ("float16" if on_gpu else "float32")
    options.partitions = options.partitions or (5 if on_gpu else 1)
    if options.quick:
        options.seconds = 0.1
    return options


@torch.inference_mode()
def main() -> int:
    options = parse()
    torch.set_num_threads(options.threads)
    environment = report.environment(options.device)
    path = options.out
    if not path and not options.quick:
        path = report.default_path(environment, "judges")
    copy = timing.Copy(COPY_MEGABYTES, options.device)
    cases = []
    with timing.keep_freed_memory() as kept:
        for tower in TOWERS:
            layer = seconds_of_layer(tower, options)
            for Q in options.queries or tower.queries:
                command.progress(f"{tower.name}, Q = {Q} ...")
                cases.append(run_case(tower, Q, layer, copy, options))
                if path:  # each time: a run that is cut short leaves what it has
                    method = {"seconds": options.seconds, "malloc_keeps_freed_memory": kept}
                    contents = {"environment": environment, "method": method, "cases": cases}
                    report.write_json(path, contents)
    print(report.headline(environment, f"torch {environment['torch']}", options.dtype))
    print_table(cases)
    print_targets(cases, options.device)
    if path:
        print(f"written: {path}")
    return 0
