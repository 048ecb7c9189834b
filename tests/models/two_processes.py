# SPDX-License-Identifier: Apache-2.0
"""Two processes that train a model together: what test_distributed.py compares.

Imports cost more than everything else here, so that one pair of processes works through all cases.
Each begins a process group of its own: a case that fails leaves nothing behind for the next.
"""

from __future__ import annotations

import functools
import itertools
import os
import sys
import traceback
import warnings
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from llava_models import SIZES, make, pictures, twin
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    apply_activation_checkpointing,
    checkpoint_wrapper,
)
from torch.distributed.fsdp import (
    FullyShardedDataParallel,
    MixedPrecision,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.fsdp.wrap import ModuleWrapPolicy, transformer_auto_wrap_policy
from torch.nn.parallel import DistributedDataParallel
from transformers.models.clip.modeling_clip import CLIPEncoderLayer
from transformers.trainer_pt_utils import get_module_class_from_name

import hired_kernels as hired

WORLD = 2
RATE = 0.1
BUDGET = 0.3
PUBLISHED, NEWLINES = {"policy": "published"}, {"newlines": True}
GREEDY = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": None}


@dataclass(frozen=True)
class Case:
    """A way to train, or to generate, and for whom.

    how: a key of `WRAPS`. settings: of apply_hired, None for the stock model. frozen: the tower is.
    when: apply_hired comes "before" or "after" what `how` does; "removed": before, and then
    remove_hired. without: steps without a picture. checkpointing: "hf" for transformers' own,
    "torch" for torch.distributed's wrappers.
    """

    how: str
    settings: dict | None = field(default_factory=dict, hash=False)
    kind: str = "llava-next-llama"
    frozen: bool = False
    steps: int = 2
    when: str = "before"
    without: tuple[int, ...] = ()
    checkpointing: str = ""
    generates: bool = False

    @property
    def name(self) -> str:
        settings = ",".join(map(str, (self.settings or {}).values()))
        who = "stock" if self.settings is None else f"hired({settings})"
        parts = [self.how, who, self.kind.removeprefix("llava-next-llama"), self.checkpointing]
        parts += ["frozen"] * self.frozen + ["generate"] * self.generates
        parts += ["text"] * bool(self.without) + [self.when] * (self.when != "before")
        return "-".join(part for part in parts if part)

    @property
    def expected(self) -> Case:
        """The same by one process, without any wrapper."""
        settings = None if self.when == "removed" else self.settings
        how = "bfloat16" if self.how.endswith("bfloat16") else ""
        return Case(
            how, settings, self.kind, self.frozen, self.steps, "before", self.without, "",
            self.generates,
        )  # fmt: skip


def _cases() -> list[Case]:
    # The stock model where a way of training begins; elsewhere one process says what is right.
    ours, two, one = [{}, PUBLISHED, NEWLINES], [{}, PUBLISHED], [{}]
    cases = [Case("ddp", settings, frozen=True) for settings in (None, *ours)]
    cases += [Case("ddp static", settings, frozen=True) for settings in ours]
    cases += [Case("ddp unused", settings) for settings in two]
    cases += [Case("ddp unused", frozen=True, steps=3, without=(1,))]
    cases += [Case("ddp", settings, frozen=True, checkpointing="hf") for settings in two]
    cases += [Case("fsdp1", settings) for settings in (None, *ours)]
    cases += [Case("fsdp1 flat", settings) for settings in two]
    cases += [Case("fsdp1 policy", settings) for settings in (None, *one)]
    cases += [Case("fsdp1 bfloat16", settings, steps=1) for settings in one]
    cases += [Case("fsdp1", settings, without=(0,)) for settings in one]
    cases += [Case("fsdp2 layers", settings) for settings in (None, *ours)]
    cases += [Case("fsdp2 layers", settings, when="after") for settings in ours]
    cases += [Case("fsdp2 layers", when="removed")]
    cases += [Case(f"fsdp2 {how}") for how in ("parts", "encoder")]
    # transformers itself records no hidden states of a tower that is a unit: its class has a new
    # name (5.24: output_capturing._CanRecordRegistry).
    cases += [Case("fsdp2 tower", settings) for settings in two]
    cases += [Case("fsdp2 bfloat16", steps=1)]
    cases += [Case("fsdp2 layers", kind="vipllava")]
    cases += [Case("fsdp2 layers", without=(0,))]
    cases += [Case("fsdp2 layers", settings, checkpointing="hf") for settings in two]
    cases += [Case("fsdp2 layers", checkpointing="torch")]
    cases += [Case("fsdp2 layers", settings, generates=True) for settings in (None, *two)]
    return cases


def model_of(case: Case) -> tuple[nn.Module, object]:
    """The model of a case, switched on where it comes before, and its processor."""
    model, processor = _made(case.kind)
    model = twin(model)
    model.model.vision_tower.requires_grad_(not case.frozen)
    if case.how == "bfloat16":
        model.bfloat16()
    if case.settings is None:
        return model, make(case.kind, padding_side="right")[1]
    on = None if case.when == "after" else model
    processor = make(case.kind, padding_side="right")[1]
    hired.apply_hired(on or twin(model), processor, BUDGET, **case.settings)
    return model, processor


@functools.cache
def _made(kind):
    return make(kind, padding_side="right")


def batch_of(processor, rank: int, step: int, case: Case) -> dict:
    """What a process trains on in a step. Each has pictures of another size."""
    if step in case.without:
        return dict(processor.tokenizer(["what is this shown"], return_tensors="pt"))
    images = pictures(SIZES[: step + rank + 1])[-1:]
    return dict(processor(images=images, text="what is <image> this", return_tensors="pt"))


def full_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """All parameters by their own names, whoever holds which part of them."""
    if isinstance(model, FullyShardedDataParallel):
        with FullyShardedDataParallel.summon_full_params(model, writeback=False):
            return _named(model)
    return _named(model)


def _named(model):
    named = {}
    for name, weight in model.named_parameters():
        for wrapper in ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "module."):
            name = name.replace(wrapper, "")
        weight = weight.full_tensor() if hasattr(weight, "full_tensor") else weight
        named[name] = weight.detach().clone()
    return named


def alone(case: Case) -> dict:
    """What one process computes that sees the pictures of both: the mean of the losses."""
    model, processor = model_of(case)
    if case.generates:
        batches = [batch_of(processor, rank, 0, case) for rank in range(WORLD)]
        return {"tokens": [model.generate(**batch, **GREEDY) for batch in batches]}
    if case.how == "bfloat16":
        processor = _in_bfloat16(processor)
    before, losses = full_weights(model), [[] for _ in range(WORLD)]
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    for step in range(case.steps):
        for rank in range(WORLD):
            batch = batch_of(processor, rank, step, case)
            loss = model(**batch, labels=batch["input_ids"]).loss
            (loss / WORLD).backward()
            losses[rank].append(loss.item())
        if case.how == "bfloat16":  # whose weights are too coarse for a step
            named = model.named_parameters()
            steps = {name: -RATE * one.grad.float() for name, one in named if one.grad is not None}
            zeros = {name: torch.zeros(one.shape) for name, one in before.items()}
            return {"losses": losses, "updates": {**zeros, **steps}}
        optimizer.step()
        optimizer.zero_grad()
    after = full_weights(model)
    return {"losses": losses, "updates": {name: after[name] - before[name] for name in after}}


def _in_bfloat16(processor):
    def call(**arguments):
        inputs = processor(**arguments)
        return {**inputs, "pixel_values": inputs["pixel_values"].bfloat16()}

    return call


def together(case: Case, rank: int) -> dict:
    """The same by this process and the other."""
    model, processor = model_of(case)
    before = full_weights(model)
    if case.checkpointing == "hf":
        model.train()
        model.gradient_checkpointing_enable({"use_reentrant": False})
    elif case.checkpointing == "torch":
        apply_activation_checkpointing(
            model,
            checkpoint_wrapper_fn=checkpoint_wrapper,
            check_fn=lambda part: isinstance(part, CLIPEncoderLayer),
        )
    wrapped = WRAPS[case.how](model)
    if case.when == "after":
        hired.apply_hired(wrapped, None, BUDGET, **case.settings)
    elif case.when == "removed":
        hired.remove_hired(model, processor)
    if case.generates:
        # The pictures are encoded before the language model is called for the first time.
        register_fsdp_forward_method(wrapped, "generate")
        tokens = wrapped.generate(**batch_of(processor, rank, 0, case), **GREEDY)
        return {"tokens": tokens}
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=RATE)
    losses, newline = [], None
    for step in range(case.steps):
        batch = batch_of(processor, rank, step, case)
        loss = wrapped(**batch, labels=batch["input_ids"]).loss
        loss.backward()
        losses.append(loss.item())
        newline = getattr(getattr(model.model, "image_newline", None), "grad", None)
        newline = None if newline is None else newline.norm().item()
        optimizer.step()
        optimizer.zero_grad()
    after = full_weights(wrapped)
    updates = {name: after[name] - before[name] for name in after} if rank == 0 else {}
    units = sum(isinstance(part, FullyShardedDataParallel) for part in wrapped.modules())
    switch = getattr(model, "hired", None)
    why_full = switch and switch.why_full
    return {
        "losses": losses, "updates": updates, "newline": newline, "units": units,
        "why_full": why_full,
    }  # fmt: skip


def _fsdp1(policy=None, **options):
    def wrap(model):
        chosen = policy(model) if policy else ModuleWrapPolicy({CLIPEncoderLayer})
        device = torch.device("cpu")
        options.setdefault("use_orig_params", True)
        return FullyShardedDataParallel(model, auto_wrap_policy=chosen, device_id=device, **options)

    return wrap


def _policy(model):
    """As transformers' Trainer and accelerate choose units: classes by their names."""
    layer = get_module_class_from_name(model, "CLIPEncoderLayer")
    return functools.partial(transformer_auto_wrap_policy, transformer_layer_cls={layer})


def _fsdp2(parts, **options):
    def wrap(model):
        for part in parts(model.model.vision_tower):
            fully_shard(part, **options)
        return fully_shard(model, **options)

    return wrap


def _layers(tower):
    return tower.encoder.layers


WRAPS = {
    "ddp": DistributedDataParallel,
    "ddp static": lambda model: DistributedDataParallel(model, static_graph=True),
    "ddp unused": lambda model: DistributedDataParallel(model, find_unused_parameters=True),
    "fsdp1": _fsdp1(),
    "fsdp1 flat": _fsdp1(use_orig_params=False),
    "fsdp1 policy": _fsdp1(_policy),
    "fsdp1 bfloat16": _fsdp1(mixed_precision=MixedPrecision(param_dtype=torch.bfloat16)),
    "fsdp2 layers": _fsdp2(_layers),
    "fsdp2 parts": _fsdp2(
        lambda tower: itertools.chain(*((one.self_attn, one.mlp) for one in _layers(tower)))
    ),
    "fsdp2 encoder": _fsdp2(lambda tower: [*_layers(tower), tower.encoder]),
    "fsdp2 tower": _fsdp2(lambda tower: [*_layers(tower), tower.encoder, tower]),
    "fsdp2 bfloat16": _fsdp2(_layers, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16)),
}
CASES = {case.name: case for case in _cases()}


def after_wrapping(rank: int) -> dict:
    """What apply_hired says of wrappers: it is the model inside that can be switched on."""
    said = {}
    for how in ("ddp", "fsdp1"):
        model, processor = _made("llava-next-llama")
        wrapped = WRAPS[how](twin(model))
        kept = type(wrapped), type(wrapped.module)
        try:
            hired.apply_hired(wrapped, processor)
        except ValueError as error:
            said[how] = str(error)
        else:
            said[how] = "no error"
        said[f"{how} classes kept"] = kept == (type(wrapped), type(wrapped.module))
    return said


def work(rank: int, folder: str, names: list[str]) -> None:
    """All cases, by one of the two processes. Leaves `<rank>.pt` in the folder."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    results = {}
    for number, name in enumerate([*names, "after wrapping"]):
        method = f"file://{folder}/group-{number}"
        patience = timedelta(seconds=20)
        dist.init_process_group("gloo", init_method=method, rank=rank, world_size=WORLD,
                                timeout=patience)  # fmt: skip
        try:
            case = CASES.get(name)
            results[name] = together(case, rank) if case else after_wrapping(rank)
        except Exception:
            results[name] = {"error": traceback.format_exc(limit=-4)}
        torch.save(results, f"{folder}/{rank}.pt")
        dist.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)  # what failed halfway may never come to an end


def run(folder: Path, names=tuple(CASES)) -> list[dict]:
    """Results of both processes, by the names of the cases."""
    import torch.multiprocessing as mp

    mp.spawn(work, (str(folder), list(names)), nprocs=WORLD)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(WORLD)]
