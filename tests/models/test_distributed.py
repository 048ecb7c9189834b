# SPDX-License-Identifier: Apache-2.0
"""Training with HiRED on, by several processes and with layers that are computed twice.

Two processes (two_processes.py) are held to one that sees the pictures of both: losses,
and what an optimizer makes of the gradients. The stock model goes through the same, so that a way
that does not work with transformers itself is no fault of ours.
"""

import fcntl

import pytest
import torch
from llava_models import twin
from llava_oracle import note_calls, stock_inputs, switched
from two_processes import (
    CASES,
    NEWLINES,
    PUBLISHED,
    WORLD,
    CLIPEncoderLayer,
    alone,
    apply_activation_checkpointing,
    checkpoint_wrapper,
    run,
)

import hired_kernels as hired


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    pass


@pytest.fixture(scope="module")
def results(shared_folder):
    """What both processes computed, of all cases: once, however many workers pytest has."""
    folder = shared_folder / "two_processes"
    folder.mkdir(exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "done").exists():
            run(folder)
            (folder / "done").touch()
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(WORLD)]


def outcome(results, name):
    both = [one.get(name, {"error": "not reached"}) for one in results]
    for rank, one in enumerate(both):
        assert "error" not in one, f"process {rank} of {name}: {one['error']}"
    return both


@pytest.mark.parametrize("name", [name for name in CASES if not CASES[name].generates])
def test_two_processes_train_as_one(name, results):
    case, found = CASES[name], outcome(results, name)
    expected = alone(case.expected)
    half = "bfloat16" in case.how
    close = {"rtol": 2e-2, "atol": 2e-2} if half else {"rtol": 1e-5, "atol": 1e-5}
    for rank in range(WORLD):
        ours, wanted = (torch.tensor(one) for one in (found[rank]["losses"], expected["losses"]))
        torch.testing.assert_close(ours, wanted[rank], **close)
    updates = found[0]["updates"]
    assert updates.keys() == expected["updates"].keys()
    largest = max(one.abs().max() for one in expected["updates"].values())
    assert largest > 1e-3
    for weight, wanted in expected["updates"].items():
        # Steps are rounded to the digits of the weights, which are of size 1.
        bound = 0.05 * wanted.norm() + 1e-2 * largest if half else 1e-4 * wanted.norm() + 1e-6
        assert (updates[weight] - wanted).norm() <= bound, weight


@pytest.mark.parametrize(
    "name", [name for name in CASES if name.startswith("ddp") and "vip" not in name]
)
def test_every_weight_that_trains_has_a_gradient(name, results):
    """DistributedDataParallel waits for each; of image_newline it may be zero."""
    found = outcome(results, name)
    case = CASES[name]
    parts = case.settings is None or case.settings == NEWLINES
    for one in found:
        assert one["newline"] is not None
        assert (one["newline"] > 0) == parts


@pytest.mark.parametrize("settings", [None, {}, PUBLISHED], ids=str)
def test_two_processes_generate_as_one(settings, results):
    (case,) = (one for one in CASES.values() if one.generates and one.settings == settings)
    found = outcome(results, case.name)
    for one, expected in zip(found, alone(case.expected)["tokens"], strict=True):
        assert torch.equal(one["tokens"], expected)


def test_units_are_chosen_by_the_names_of_classes(results):
    """Each layer is one, whether it was given a class of its own or not."""
    units = [outcome(results, f"fsdp1 policy-{who}")[0]["units"] for who in ("stock", "hired()")]
    assert units == [5, 5]


@pytest.mark.parametrize("name", ["ddp-hired()-frozen", "fsdp1-hired()", "fsdp2 layers-hired()",
                                  "fsdp2 layers-hired()-after"])  # fmt: skip
def test_wrappers_do_not_make_the_whole_tower_run(name, results):
    assert outcome(results, name)[0]["why_full"] is None


def test_a_wrapper_cannot_be_switched_on(results):
    for said in outcome(results, "after wrapping"):
        for how, name in (("ddp", "DistributedDataParallel"), ("fsdp1", "FullyShardedDataPar")):
            assert said[how].startswith("hired: model: expected "), said[how]
            assert f"got {name}" in said[how]
            assert said[f"{how} classes kept"]


def gradients(model, inputs):
    """Of all weights, None where there is none, and the loss."""
    model.zero_grad()
    loss = model(**inputs, labels=inputs["input_ids"], use_cache=False).loss
    loss.backward()
    return loss, {
        name.replace("_checkpoint_wrapped_module.", ""): weight.grad
        for name, weight in model.named_parameters()
    }


def assert_same_gradients(found, expected):
    torch.testing.assert_close(found[0], expected[0])
    assert found[1].keys() == expected[1].keys()
    for name, wanted in expected[1].items():
        if wanted is None:
            assert found[1][name] is None, name
        else:
            torch.testing.assert_close(found[1][name], wanted, rtol=1e-4, atol=1e-5, msg=name)


def checkpoint_layers(model):
    apply_activation_checkpointing(
        model,
        checkpoint_wrapper_fn=checkpoint_wrapper,
        check_fn=lambda part: isinstance(part, CLIPEncoderLayer),
    )


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_.*able")
@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("settings", [None, {}, PUBLISHED, NEWLINES], ids=str)
def test_layers_that_are_computed_again_have_the_same_gradients(settings, reentrant):
    stock, model, inputs = switched(padding_side="right", budget=0.3, **(settings or {}))
    if settings is None:
        model, inputs = stock, stock_inputs(inputs, "right")
    expected = gradients(model.train(), inputs)
    assert expected[1]["model.vision_tower.embeddings.class_embedding"].abs().sum() > 0
    again, calls = twin(model), []
    again.gradient_checkpointing_enable({"use_reentrant": reentrant})
    for number in (0, 1):
        note_calls(again.model.vision_tower.encoder.layers[number].mlp, calls)
    found = gradients(again, inputs)
    assert len(calls) == 2 * 2  # forward, and once more for the gradient
    assert_same_gradients(found, expected)
    again.gradient_checkpointing_disable()
    assert_same_gradients(gradients(again, inputs), expected)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_.*able")
@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("kind", ["llava-layers", "vipllava"])
def test_several_feature_layers_that_are_computed_again(kind, reentrant):
    """Reentrant, a layer's first pass has no gradients: only what it returns gets any."""
    _, model, inputs = switched(kind, padding_side="right", budget=0.3)
    expected = gradients(model.train(), inputs)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    assert_same_gradients(gradients(model, inputs), expected)


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("settings", [{}, PUBLISHED], ids=str)
def test_checkpoint_wrappers_of_torch(settings, order):
    stock, model, inputs = switched(padding_side="right", budget=0.3, **settings)
    expected, plain = gradients(model, inputs), stock_inputs(inputs, "right")
    stock_expected = gradients(stock, plain)
    if order == "before":
        checkpoint_layers(model)
    else:
        model = stock
        checkpoint_layers(model)
        hired.apply_hired(model, None, budget=0.3, **settings)
    calls = []
    for number in (0, 1):
        note_calls(model.model.vision_tower.encoder.layers[number].mlp, calls)
    assert_same_gradients(gradients(model, inputs), expected)
    assert len(calls) == 2 * 2
    hired.remove_hired(model)
    assert_same_gradients(gradients(model, plain), stock_expected)


@pytest.mark.parametrize("settings", [{}, PUBLISHED], ids=str)
def test_separators_without_a_part_have_a_gradient_of_zero(settings):
    _, model, inputs = switched(padding_side="right", **settings)
    gradients(model, inputs)
    newline = model.model.image_newline
    assert newline.grad is not None
    assert newline.grad.abs().max() == 0
    # It adds nothing to the features, whatever it holds.
    with torch.no_grad():
        expected = model(**inputs).logits
        newline.fill_(float("inf"))
        assert torch.equal(model(**inputs).logits, expected)
    newline.requires_grad_(False)
    newline.zero_().grad = None
    gradients(model, inputs)
    assert newline.grad is None
