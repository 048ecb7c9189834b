# SPDX-License-Identifier: Apache-2.0
"""DeepSpeed's ZeRO stage 3, where it is installed: weights are there while their module is called.

Two processes on CPUs are held to one, as in test_distributed.py. (Not with a batch without
pictures: after one DeepSpeed 0.19.8 has other weights, with the stock model too.) `make
test-around` installs it.
"""

import importlib.util
import os
import socket
import traceback
import warnings

import pytest
import torch
from two_processes import NEWLINES, PUBLISHED, RATE, WORLD, Case, alone, batch_of, model_of

import hired_kernels as hired

if importlib.util.find_spec("deepspeed") is None:  # whose import alone takes seconds
    pytest.skip("deepspeed is not installed", allow_module_level=True)

CASES = [Case("zero3", one, steps=3) for one in (None, {}, PUBLISHED, NEWLINES)]
CASES += [Case("zero3", one, steps=3, when="after") for one in ({}, PUBLISHED)]
CASES += [Case("zero3", one, steps=3, checkpointing="hf") for one in (None, {}, PUBLISHED)]
CASES += [Case("zero3", one, kind="vipllava", steps=3) for one in (None, {})]
CASES = {case.name: case for case in CASES}
CONFIG = {
    "train_micro_batch_size_per_gpu": 1,
    "gradient_clipping": 0.0,  # it clips by default
    "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
    "zero_allow_untested_optimizer": True,
}


def together(case, rank):
    import deepspeed

    model, processor = model_of(case)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    if case.checkpointing:
        model.train()
        model.gradient_checkpointing_enable({"use_reentrant": False})
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=CONFIG)
    if case.when == "after":
        hired.apply_hired(engine.module, None, 0.3, **case.settings)
    if not case.checkpointing:
        engine.eval()  # no dropout either way
    losses = []
    for step in range(case.steps):
        batch = batch_of(processor, rank, step, case)
        loss = engine(**batch, labels=batch["input_ids"]).loss
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
    weights = dict(engine.module.named_parameters())
    with deepspeed.zero.GatheredParameters(list(weights.values())):
        updates = {name: weight.detach() - before[name] for name, weight in weights.items()}
    switch = getattr(model, "hired", None)
    return {"losses": losses, "updates": updates, "why_full": switch and switch.why_full}


def work(rank, folder, port):
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": WORLD, "LOCAL_WORLD_SIZE": WORLD}
    os.environ.update({name: str(value) for name, value in places.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), DS_ACCELERATOR="cpu")
    import deepspeed

    deepspeed.init_distributed("gloo", verbose=False)
    results = {}
    for name, case in CASES.items():
        try:
            results[name] = together(case, rank)
        except Exception:
            results[name] = {"error": traceback.format_exc(limit=-4)}
        torch.save(results, f"{folder}/{rank}.pt")
    os._exit(0)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("deepspeed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(work, (str(folder), port), nprocs=WORLD)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(WORLD)]


@pytest.mark.parametrize("name", CASES)
def test_two_processes_train_as_one(name, results):
    expected = alone(CASES[name].expected)
    for rank, one in enumerate(result[name] for result in results):
        assert "error" not in one, f"process {rank} of {name}: {one['error']}"
        torch.testing.assert_close(
            torch.tensor(one["losses"]), torch.tensor(expected["losses"][rank])
        )
        assert one["updates"].keys() == expected["updates"].keys()
        for weight, wanted in expected["updates"].items():
            difference = (one["updates"][weight] - wanted).norm()
            assert difference <= 1e-4 * wanted.norm() + 1e-6, weight
        assert one["why_full"] is None
