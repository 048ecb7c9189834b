# SPDX-License-Identifier: Apache-2.0
"""A user's hooks on the vision tower see, and do, what they do in the stock model.

Hooks on what computes less with HiRED on make the whole tower run; `model.hired.why_full` says so.
"""

from contextlib import ExitStack, contextmanager

import pytest
import torch
from llava_models import SIZES, twin
from llava_oracle import logits_of, partitions_of, select_as_the_reference, switched
from torch import Tensor
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)

import hired_kernels as hired

ATTENTION = ["self_attn"] + [f"self_attn.{name}_proj" for name in "qkv"] + ["self_attn.out_proj"]
PARTS = ["", *ATTENTION, "mlp", "mlp.fc1", "mlp.activation_fn", "layer_norm1", "layer_norm2"]
LAYERS = [[f"encoder.layers.{number}.{part}".strip(".") for part in PARTS] for number in range(4)]
# Of four layers the third is the selection layer.
EARLY = ["embeddings", "embeddings.patch_embedding", "pre_layrnorm", *LAYERS[0], *LAYERS[1]]
LATE = ["", "encoder", *LAYERS[2], *LAYERS[3][:3], "post_layernorm"]
KINDS = ["forward", "pre", "backward", "backward pre"]
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    pass


@pytest.fixture(scope="module")
def pair():
    """A stock model, a switched one and inputs. Whoever changes them takes it back."""
    return switched(budget=0.3)


def tower_of(model):
    return model.model.vision_tower


def tensors_in(value, path=""):
    """All tensors of arguments or of an output, by where they are."""
    if isinstance(value, Tensor):
        return {path: value.detach().clone()}
    if isinstance(value, (tuple, list)):
        value = dict(enumerate(value))
    if not isinstance(value, dict):
        return {}
    parts = [tensors_in(value[key], f"{path}.{key}") for key in value]
    return {place: tensor for part in parts for place, tensor in part.items()}


def watch(module, kind, log):
    """Register a hook that notes what it sees; returns its handle."""

    def note(_, *seen):
        log.append(tensors_in(seen))

    if kind == "forward":
        return module.register_forward_hook(note, with_kwargs=True)
    if kind == "pre":
        return module.register_forward_pre_hook(note, with_kwargs=True)
    if kind == "backward":
        return module.register_full_backward_hook(note)
    return module.register_full_backward_pre_hook(note)


@contextmanager
def watched(model, place, kind):
    log = []
    handle = watch(tower_of(model).get_submodule(place), kind, log)
    yield log
    handle.remove()


def pass_through(stock, model, inputs, *, backward):
    """Both models encode the same pictures; the loss is that of the kept tokens, in both."""
    with torch.set_grad_enabled(backward):
        output = model.get_image_features(inputs["pixel_values"], inputs["image_sizes"])
        pixels = partitions_of(stock.config, inputs["pixel_values"], SIZES[:3])
        states = tower_of(stock)(pixels, output_hidden_states=True).hidden_states
        kept = states[-2][:, 1:].flatten(0, 1)[output.indices]
        torch.testing.assert_close(output.last_hidden_state, kept, **CLOSE)
        if backward:
            output.last_hidden_state.square().sum().backward()
            kept.square().sum().backward()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", EARLY + LATE)
def test_hooks_see_what_they_see_in_the_stock_model(place, kind, pair):
    stock, model, inputs = pair
    assert model.hired.why_full is None
    with watched(stock, place, kind) as expected, watched(model, place, kind) as found:
        pass_through(stock, model, inputs, backward="backward" in kind)
        why = model.hired.why_full
    assert len(found) == len(expected)
    for ours, wanted in zip(found, expected, strict=True):
        assert wanted.keys() <= ours.keys()
        for name, tensor in wanted.items():
            assert ours[name].shape == tensor.shape, name
            difference = (ours[name] - tensor).abs().max()
            assert difference <= 1e-4 * max(1, tensor.abs().max()), name
    if place in LATE:
        assert "hook" in str(why)
    else:
        assert why is None
    pass_through(stock, model, inputs, backward=False)
    assert model.hired.why_full is None


def test_all_hooks_at_once(pair):
    stock, model, inputs = pair
    with ExitStack() as hooks:
        logs = {
            place: [hooks.enter_context(watched(one, place, "forward")) for one in (stock, model)]
            for place in EARLY + LATE
        }
        pass_through(stock, model, inputs, backward=False)
    counts = {place: [len(log) for log in both] for place, both in logs.items()}
    assert counts == {place: [1, 1] for place in EARLY + LATE}


@pytest.mark.parametrize("register", [register_module_forward_hook,
                                      register_module_forward_pre_hook])  # fmt: skip
def test_hooks_on_all_modules_there_are(register, pair):
    stock, model, inputs = pair
    names = {}
    for one in (stock, model):
        names |= {part: (one is model, name) for name, part in tower_of(one).named_modules()}
    calls = {False: [], True: []}

    def note(module, *_):
        if module in names:
            switched_on, name = names[module]
            calls[switched_on].append(name)

    handle = register(note)
    try:
        pass_through(stock, model, inputs, backward=False)
    finally:
        handle.remove()
    assert calls[True] == calls[False]
    assert len(calls[True]) > 50


def test_the_projector_has_the_kept_tokens_alone(pair):
    _, model, inputs = pair
    log = []
    handle = watch(model.model.multi_modal_projector, "forward", log)
    with torch.no_grad():
        output = model.get_image_features(inputs["pixel_values"], inputs["image_sizes"])
    handle.remove()
    (seen,) = log
    assert torch.equal(seen[".0.0"], output.last_hidden_state)
    assert torch.equal(seen[".2"], torch.cat(output.pooler_output))
    assert model.hired.why_full is None


def test_hooks_of_transformers_are_no_users(pair):
    """It records hidden states by hooks, which stay once they were needed."""
    stock, _, inputs = pair
    stock = twin(stock)
    with torch.no_grad():
        stock.get_image_features(inputs["pixel_values"], inputs["image_sizes"])
    assert tower_of(stock).encoder.layers[2]._forward_hooks
    model, _ = hired.apply_hired(stock, None, budget=0.3)
    assert model.hired.why_full is None
    output = model.get_image_features(
        inputs["pixel_values"], inputs["image_sizes"], output_hidden_states=True
    )
    assert len(output.hidden_states) == 5
    logits_of(model, inputs)
    assert model.hired.why_full is None


def bent(value):
    """Another tensor in place of the first: by channels, so that a layer norm does not undo it."""
    if isinstance(value, Tensor):
        channels = torch.linspace(0.5, 1.5, value.shape[-1], dtype=value.dtype)
        return value * channels
    if isinstance(value, tuple):
        return (bent(value[0]), *value[1:])
    value = type(value)(**value)
    value.last_hidden_state = bent(value.last_hidden_state)
    if value.get("hidden_states") is not None:
        states = (state if state is None else bent(state) for state in value.hidden_states)
        value.hidden_states = tuple(states)
    return value


def bend(model, place, kind):
    module = tower_of(model).get_submodule(place)
    if kind == "forward":
        module.register_forward_hook(lambda _, args, output: bent(output))
        return

    def before(_, args, kwargs):
        if args:
            return bent(args), kwargs
        name = "inputs_embeds" if place == "encoder" else "hidden_states"
        return args, {**kwargs, name: bent(kwargs[name])}

    module.register_forward_pre_hook(before, with_kwargs=True)


BENT = ["", "encoder", "pre_layrnorm", *LAYERS[0][:5], LAYERS[0][6], LAYERS[1][0],
        *LAYERS[2][:8], *LAYERS[2][-2:], LAYERS[3][0]]  # fmt: skip


@pytest.mark.parametrize("when", ["at first", "later"])
@pytest.mark.parametrize("kind", ["forward", "pre"])
@pytest.mark.parametrize("place", BENT)
@torch.no_grad()
def test_hooks_that_change_tensors_have_their_effect(place, kind, when, pair):
    """transformers records a layer's output by a hook: users' come before it or after."""
    stock, model, inputs = pair
    stock = twin(stock)
    pictures = inputs["pixel_values"], inputs["image_sizes"]
    if when == "later":
        stock.get_image_features(*pictures)
    model, _ = hired.apply_hired(twin(stock), None, budget=0.3)
    before = model.get_image_features(*pictures) if when == "later" else None
    bend(stock, place, kind)
    bend(model, place, kind)
    expected = select_as_the_reference(stock, pictures[0], SIZES[:3], budget=0.3)
    found = model.get_image_features(*pictures)
    assert found.indices.tolist() == expected.indices.tolist()
    torch.testing.assert_close(found.last_hidden_state, expected.tokens, rtol=1e-4, atol=1e-4)
    if before is not None and place in (LAYERS[0][0], LAYERS[1][0]):
        assert not torch.equal(found.last_hidden_state, before.last_hidden_state)


@torch.no_grad()
def test_hooks_that_cast(pair):
    """A tower in half precision inside a model that is not."""
    stock, _, inputs = pair
    stock = twin(stock)
    tower = tower_of(stock).bfloat16()
    tower.register_forward_pre_hook(lambda _, args: (args[0].bfloat16(), *args[1:]))

    def widen(_, args, output):
        output.hidden_states = tuple(
            state if state is None else state.float() for state in output.hidden_states
        )
        return output

    tower.register_forward_hook(widen)
    pixels = partitions_of(stock.config, inputs["pixel_values"], SIZES[:3])
    whole = tower(pixels, output_hidden_states=True).hidden_states[-2]
    model, _ = hired.apply_hired(stock, None, budget=0.3)
    output = model.get_image_features(inputs["pixel_values"], inputs["image_sizes"])
    assert output.last_hidden_state.dtype == torch.float32
    expected = whole[:, 1:].flatten(0, 1)[output.indices]
    torch.testing.assert_close(output.last_hidden_state, expected, rtol=0, atol=0.1)
    assert logits_of(model, inputs).isfinite().all()
