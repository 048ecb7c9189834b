# SPDX-License-Identifier: Apache-2.0
"""A model with HiRED switched on, beside the stock model and, of LLaVA-NeXT, the published method.

Time to the first token, latency and throughput of 64 new tokens, peak memory, at several budgets
and batches, with random weights; the vision tower by itself, with and without its early exit; and
beside each figure what an ideal run would take on the same machine.

    python benchmarks model                  # tiny, two CPU cores, under a minute
    python benchmarks model --size 7b        # LLaVA-NeXT-7B's shape, float16, on a GPU
    python benchmarks model --family internvl
    python benchmarks model --family llava-onevision --towers-only --size 7b --device cpu
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hired_kernels.models import hired_tower, support
from hired_kernels.models.accounting import Anatomy, Settings, plan
from hired_kernels.models.towers import family_of

from ..shared import command, report
from ..shared.command import require
from ..shared.families import FAMILIES
from ..shared.llava_next import IMAGE_TOKEN, SIZES, TEXT_TOKENS
from . import contenders, flops, roofline
from .contenders import Job


def check(model: nn.Module, job: Job) -> None:
    """End the run unless the contenders compute what they should.

    The switched model's logits are the stock model's, fed with features that the whole tower has at
    the same places; the published method keeps the tokens that the operators' policy says.
    """
    ours = contenders.shell(model)
    logits = contenders.switched(ours, job)().logits
    given = job.family.arguments(model, job.pixels, switched=True)
    encoded = ours.model.get_image_features(**given)
    require(len(encoded.indices) == sum(job.plan(model).rows), "switched: not K tokens")
    features = model.model.multi_modal_projector(_whole(model, job)[encoded.indices])
    ids = job.prompt(len(features) // len(job.pixels))
    embeds = model.get_input_embeddings()(ids)
    embeds[ids == IMAGE_TOKEN] = features
    expected = model(inputs_embeds=embeds, logits_to_keep=1).logits[:, -1]
    epsilon = torch.finfo(logits.dtype).eps
    worst = (logits - expected).abs().max() / expected.abs().max()
    require(worst <= 64 * epsilon, f"switched: logits differ by {worst / epsilon:.0f} epsilons")

    if job.family.name != "llava-next":
        return
    _, lengths = contenders.published_features(model, job)
    settings = Settings(job.share, policy="published")
    todo = plan(settings, Anatomy.of(model.config), [job.family.picture] * len(job.pixels))
    pixels = job.pixels.flatten(0, 1)
    kept = hired_tower.early_exit(model.model.vision_tower, pixels, -2, todo, settings)
    counts = [int((rows >= 0).sum()) for rows in kept.indices.split(todo.rows)]
    # Head sums rounded to half may move a patch from one sub-image to another.
    slack = 0 if logits.dtype == torch.float32 else 0.01 * job.family.layout(model.config).valid
    near = all(abs(a - b) <= slack for a, b in zip(lengths, counts, strict=True))
    require(near, f"published: keeps {lengths}, the operators {counts}")


def _whole(model: nn.Module, job: Job) -> torch.Tensor:
    """Features of all tokens before the projector, (P * M, width), full images first."""
    pixels, tower = job.pixels, model.model.vision_tower
    family = family_of(tower)
    assert family is not None
    if job.family.name == "internvl":
        pixels = torch.cat((pixels[:, -1:], pixels[:, :-1]), dim=1)
    whole = tower(pixels.flatten(0, 1), output_hidden_states=True)
    if job.family.name != "internvl":
        states = whole.hidden_states[support.feature_layer_of(model.config)]
        return states[:, family.prefix :].flatten(0, 1)
    side = Anatomy.of(model.config).patches
    square = whole.last_hidden_state[:, 1:].unflatten(1, (side, side))
    return model.model.pixel_shuffle(square, 0.5).flatten(0, 2)


def run_case(
    model: nn.Module, job: Job, options: argparse.Namespace, best: roofline.Peak
) -> list[dict[str, Any]]:
    """Figures of each contender at one budget and batch."""
    check(model, job)
    ours, B = contenders.shell(model), len(job.pixels)
    runs = {"hired": (ours, contenders.switched(ours, job))}
    if job.family.name == "llava-next":
        runs = {"published": (model, contenders.as_published(model, job)), **runs}
    if job.share == 1.0:
        runs = {"stock": (model, contenders.stock(model, job)), **runs}
    memory, seconds = {}, {name: [] for name in runs}
    for turn in range(options.runs + 1):
        for name, (user, begin) in runs.items():
            if turn == 0:  # warms up as well
                start = _reset_peak(options.device)
                contenders.generate(user, begin, options.new, options.wait)
                memory[name] = _peak(options.device, start)
            else:
                seconds[name].append(contenders.generate(user, begin, options.new, options.wait))
    rows = []
    for name, taken in seconds.items():
        first, last = (statistics.median(column) for column in zip(*taken, strict=True))
        rows.append({
            "contender": name, "budget": job.share, "batch": B,
            "first_token_ms": first * 1e3, "latency_s": last,
            "tokens_per_second": B * options.new / last, "peak_memory_mib": memory[name] / 2**20,
            **_ideal(model, name, job, options, best),
        })  # fmt: skip
    return rows


def tower_rows(model: nn.Module, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The vision tower by itself: as stock runs it, and up to the kept tokens at each budget."""
    tower, rows = model.model.vision_tower, []
    layer, family = support.feature_layer_of(model.config), FAMILIES[options.family]
    for B in options.batches:
        job = Job.draw(family, model, B, 1.0)
        pixels, config = job.pixels.flatten(0, 1), tower.config
        work = {"stock": lambda pixels=pixels: tower(pixels, output_hidden_states=True)}
        count = {"stock": flops.tower(config, len(pixels))}
        for share in options.budgets:
            todo = Job(family, job.pixels, share).plan(model)
            settings = Settings(share)
            work[f"hired {share:.0%}"] = lambda pixels=pixels, todo=todo, settings=settings: (
                hired_tower.early_exit(tower, pixels, layer, todo, settings)
            )
            count[f"hired {share:.0%}"] = flops.tower(
                config, len(pixels), feature_layer=layer, todo=todo
            )
        taken = _medians(work, options)
        rows += [
            {"tower": name, "batch": B, "gflops": count[name] / 1e9, "ms": taken[name] * 1e3}
            for name in work
        ]
    return rows


def _medians(
    work: dict[str, Callable[[], object]], options: argparse.Namespace
) -> dict[str, float]:
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(2 * options.runs + 1):
        for name, run in work.items():
            options.wait()
            start = time.perf_counter()
            run()
            options.wait()
            if turn > 0:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def _ideal(
    model: nn.Module, name: str, job: Job, options: argparse.Namespace, best: roofline.Peak
) -> dict[str, float]:
    config, B, todo = model.config.vision_config, len(job.pixels), job.plan(model)
    P, K = sum(todo.partitions), sum(todo.rows)
    early = {"feature_layer": support.feature_layer_of(model.config), "todo": todo}
    length = TEXT_TOKENS + (job.family.stock_tokens(model.config) if name == "stock" else K // B)
    first, last = roofline.ideal(
        model,
        best,
        B=B,
        tower_flops=flops.tower(config, P, **(early if name == "hired" else {})),
        projected=K if name == "hired" else B * job.family.layout(model.config).valid,
        length=length,
        new=options.new,
    )
    return {"prompt_tokens": length, "ideal_first_token_ms": first * 1e3, "ideal_latency_s": last}


def _reset_peak(device: str) -> int:
    """Start a new high-water mark; returns memory in use on a CPU, where it is part of it."""
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return 0
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)  # or freed memory would hide what is asked for next
        Path("/proc/self/clear_refs").write_text("5")
    except (AttributeError, OSError):
        return 0
    return _status("VmRSS")


def _peak(device: str, start: int) -> int:
    """Bytes at the high-water mark; on a CPU, what it rose by."""
    return torch.cuda.max_memory_allocated() if device == "cuda" else _status("VmHWM") - start


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) << 10
    return 0


def print_tables(cases: list[dict[str, Any]], towers: list[dict[str, Any]]) -> None:
    stock = {case["batch"]: case for case in cases if case["contender"] == "stock"}
    header = ("contender", "batch", "budget", "first token ms", "ideal", "latency s", "ideal",
              "tokens/s", "of stock", "memory MiB", "of stock")  # fmt: skip
    rows = []
    for case in sorted(cases, key=lambda case: case["batch"]):
        base = stock[case["batch"]]
        rows.append((
            case["contender"], str(case["batch"]), f"{case['budget']:.0%}",
            f"{case['first_token_ms']:.1f}", f"{case['ideal_first_token_ms']:.1f}",
            f"{case['latency_s']:.3f}", f"{case['ideal_latency_s']:.3f}",
            f"{case['tokens_per_second']:.1f}",
            report.times(case["tokens_per_second"] / base["tokens_per_second"]),
            f"{case['peak_memory_mib']:,.0f}",
            f"{case['peak_memory_mib'] / max(1, base['peak_memory_mib']) - 1:+.0%}",
        ))  # fmt: skip
    whole = {row["batch"]: row for row in towers if row["tower"] == "stock"}
    lines = [
        (row["tower"], str(row["batch"]), f"{row['gflops']:,.1f}",
         f"{row['gflops'] / whole[row['batch']]['gflops'] - 1:+.1%}", f"{row['ms']:.2f}",
         f"{row['ms'] / whole[row['batch']]['ms'] - 1:+.1%}")
        for row in towers
    ]  # fmt: skip
    print(report.table(("vision tower", "batch", "GFLOP", "", "ms", ""), lines))
    if not cases:
        return
    print()
    print(report.table(header, rows))
    for case in cases if any(case["contender"] == "published" for case in cases) else ():
        if case["budget"] == 0.2 and case["contender"] == "hired":
            print(_beside_paper(case, stock[case["batch"]]))


def _beside_paper(case: dict[str, Any], stock: dict[str, Any]) -> str:
    """What was measured, beside the paper's figures for LLaVA-NeXT-7B on a Tesla P40."""
    said = {1: "4.7x tokens/s, -78% latency, -14% memory", 4: "-30% memory"}
    rate = report.times(case["tokens_per_second"] / stock["tokens_per_second"])
    latency = case["latency_s"] / stock["latency_s"] - 1
    memory = case["peak_memory_mib"] / max(1, stock["peak_memory_mib"]) - 1
    return (
        f"20 %, batch {case['batch']}: {rate} tokens/s, {latency:+.0%} latency, {memory:+.0%} "
        f"memory (the paper's, on a P40: {said.get(case['batch'], 'none')})"
    )


def parse() -> argparse.Namespace:
    parser = command.parser(__doc__)
    add = parser.add_argument
    add("--size", choices=SIZES, default="tiny")
    add("--family", choices=FAMILIES, default="llava-next")
    add("--towers-only", action="store_true", help="time and count the vision tower alone")
    add("--device", choices=("cpu", "cuda"), help="(cuda where there is one and the size is 7b)")
    add("--batches", nargs="+", type=int, default=[1, 4])
    add("--budgets", nargs="+", type=float, default=[1.0, 0.4, 0.2, 0.1])
    add("--new", type=int, default=64, help="tokens to generate (64)")
    add("--runs", type=int, default=3, help="timed runs of each contender (3)")
    add("--threads", type=int, default=torch.get_num_threads())
    command.add_out(parser, "model-<family, where not llava-next>-<size>-<device>.json")
    options = parser.parse_args()
    if options.device is None:
        there = torch.cuda.is_available() and options.size != "tiny"
        options.device = "cuda" if there else "cpu"
    if 1.0 not in options.budgets:
        options.budgets.insert(0, 1.0)  # the stock model's
    options.wait = torch.cuda.synchronize if options.device == "cuda" else lambda: None
    return options


@torch.inference_mode()
def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    environment = report.environment(options.device)
    environment["transformers"] = report.version("transformers")
    family, size = FAMILIES[options.family], SIZES[options.size]
    path = options.out or report.default_path(environment, "model", *family.named, options.size)
    model = family.make(options.size, options.device, tower_only=options.towers_only)
    best = roofline.peak(options.device, model.dtype, options.wait)
    towers = tower_rows(model, options)
    cases = []
    for B in () if options.towers_only else options.batches:
        for share in options.budgets:
            cases += run_case(model, Job.draw(family, model, B, share), options, best)
    weights = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    method = {
        "family": family.name, "size": size.name, "dtype": str(model.dtype),
        "runs": options.runs, "new": options.new, "picture": list(family.picture),
        "tokens": family.stock_tokens(model.config), "text_tokens": TEXT_TOKENS,
        "weights_mib": weights / 2**20, "peak": vars(best),
    }  # fmt: skip
    report.write_json(
        path,
        {"environment": environment, "method": method, "tower": towers, "cases": cases},
    )
    shape = size.name if size.name == "tiny" else f"{family.full}'s shape"
    print(report.headline(environment, f"torch {environment['torch']}", family.name, shape))
    print_tables(cases, towers)
    print(f"written: {path}")
