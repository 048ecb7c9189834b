# SPDX-License-Identifier: Apache-2.0
"""Whatever else takes hold of a model's modules: accelerate, compilers, other forwards.

Before apply_hired or after, the outcome is that of a model that nobody else has touched; and once
HiRED is off, that of the stock model. Users' hooks are in test_hooks.py.
"""

import copy

import pytest
import torch
from accelerate import cpu_offload, cpu_offload_with_hook, dispatch_model
from accelerate.hooks import remove_hook_from_submodules
from accelerate.utils.operations import convert_outputs_to_fp32
from llava_models import twin
from llava_oracle import CLOSE, logits_of, note_calls, partitions_of, stock_inputs, switched
from torch import nn
from torch.nn.utils import parametrize, prune

import hired_kernels as hired

SETTINGS = [{}, {"policy": "published"}]
ORDERS = ["before", "after"]


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    pass


def tower_of(model):
    return model.model.vision_tower


class Outcome:
    """What a model that nobody else has touched computes, switched on and off."""

    def __init__(self, change=None, **settings):
        self.settings = {"budget": 0.3, **settings}
        self.stock, model, self.inputs = switched(**self.settings)
        self.stock_inputs = stock_inputs(self.inputs, "left")
        if change:
            change(model)
        self.on = logits_of(model, self.inputs)
        if change:
            hired.remove_hired(model)
        self.off = logits_of(model if change else self.stock, self.stock_inputs)

    def apply(self, model):
        hired.apply_hired(model, None, **self.settings)

    def try_on(self, order, wrap):
        """Wrap a model before or after it is switched on, or at both times."""
        model = twin(self.stock)
        if order == "before":
            self.apply(model)
        wrap(model)
        if order == "after":
            self.apply(model)
        self.check_on(model)
        return model

    def check_on(self, model):
        torch.testing.assert_close(logits_of(model, self.inputs), self.on, **CLOSE)

    def check_off(self, model):
        hired.remove_hired(model)
        assert "hired" not in vars(model)
        torch.testing.assert_close(logits_of(model, self.stock_inputs), self.off, **CLOSE)


@pytest.fixture(scope="module")
def outcomes():
    return {str(settings): Outcome(**settings) for settings in SETTINGS}


def layer_map(model, disk):
    """Each part of the tower by itself, one layer on the disk."""
    parts = [name for name, _ in tower_of(model).named_children() if name != "encoder"]
    parts += [f"encoder.layers.{number}" for number in range(4)]
    names = [f"model.vision_tower.{part}" for part in parts]
    names += ["model.multi_modal_projector", "model.image_newline", "model.language_model"]
    placed = dict.fromkeys([*names, "lm_head"], "cpu")
    return {**placed, f"model.vision_tower.encoder.layers.{disk}": "disk"}


def dispatch(model, folder, disk=2, **options):
    placed = layer_map(model, disk)
    options |= {"main_device": "cpu", "offload_dir": str(folder), "force_hooks": True}
    dispatch_model(model, placed, **options)


def offload_and_bring_back(model, folder):
    """accelerate leaves each module's `forward` on the module itself."""
    cpu_offload(model, execution_device="cpu", offload_buffers=True)
    remove_hook_from_submodules(model)
    for weight in model.parameters():
        assert weight.device.type == "cpu"


def with_hooks(model, folder):
    tower = tower_of(model)
    for part in (tower, tower.encoder.layers[0], tower.encoder.layers[2].self_attn):
        cpu_offload_with_hook(part, execution_device="cpu")
    cpu_offload_with_hook(tower, execution_device="cpu")  # a second one goes behind the first


ACCELERATE = {
    "layer 0 on the disk, preloaded": lambda model, folder: dispatch(
        model, folder, 0, preload_module_classes=["CLIPEncoderLayer"]
    ),
    "layer 2 on the disk, preloaded": lambda model, folder: dispatch(
        model, folder, 2, preload_module_classes=["CLIPEncoderLayer"], offload_buffers=True
    ),
    "attention preloaded": lambda model, folder: dispatch(
        model, folder, 2, preload_module_classes=["CLIPAttention"]
    ),
    "tower preloaded": lambda model, folder: cpu_offload(
        model, "cpu", preload_module_classes=["CLIPVisionModel"]
    ),
    "cpu_offload_with_hook": with_hooks,
    "brought back": offload_and_bring_back,
}


@pytest.mark.parametrize("how", ACCELERATE)
def test_accelerate_and_the_stock_model(how, outcomes, tmp_path):
    """What is asked of the switched one below works with this one."""
    outcome = outcomes["{}"]
    model = twin(outcome.stock)
    ACCELERATE[how](model, tmp_path)
    outcome.check_off(model)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("how", ACCELERATE)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_accelerate(settings, how, order, outcomes, tmp_path):
    outcome = outcomes[str(settings)]
    model = outcome.try_on(order, lambda model: ACCELERATE[how](model, tmp_path))
    outcome.check_off(model)
    outcome.apply(model)
    outcome.check_on(model)
    if "disk" not in how and "attention" not in how:
        # Hooks that come off while HiRED is on leave nothing of it behind.
        remove_hook_from_submodules(model)
        outcome.check_on(model)
        outcome.check_off(model)


@pytest.mark.parametrize("order", ORDERS)
def test_separators_that_are_offloaded(order):
    """The weight of a module is there while that module is called, as for the stock model."""
    outcome = Outcome(newlines=True)
    model = twin(outcome.stock)
    cpu_offload(model, execution_device="cpu")
    outcome.check_off(model)
    outcome.check_off(outcome.try_on(order, lambda model: cpu_offload(model, "cpu")))


PLACES = ["", "encoder", "encoder.layers.0", "encoder.layers.0.self_attn", "encoder.layers.1",
          "encoder.layers.2", "encoder.layers.2.self_attn", "encoder.layers.2.self_attn.k_proj",
          "encoder.layers.2.mlp", "encoder.layers.3"]  # fmt: skip


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("place", PLACES)
def test_a_forward_that_was_replaced_is_called(place, order, outcomes):
    """Once, as in the stock model; a later layer's not at all, or where the whole tower runs."""
    outcome, calls = outcomes["{}"], []
    model = outcome.try_on(
        order, lambda model: note_calls(tower_of(model).get_submodule(place), calls)
    )
    assert len(calls) == 1 or (place == "encoder.layers.3" and model.hired.why_full is None)
    outcome.check_off(model)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("place", ["encoder.layers.0", "encoder.layers.2", "encoder.layers.2.mlp",
                                   "encoder.layers.2.self_attn", "encoder.layers.1"])  # fmt: skip
def test_a_forward_that_computes_something_else(place, order, outcomes):
    """Has the effect that it has by a hook."""

    def by_hook(model):
        tower_of(model).get_submodule(place).register_forward_hook(lambda *call: halved(call[-1]))

    outcome = Outcome(by_hook)
    plain = outcomes["{}"]
    assert not torch.allclose(outcome.on, plain.on, rtol=0, atol=0.1)

    def by_forward(model):
        module = tower_of(model).get_submodule(place)
        old = module.forward
        module.forward = lambda *args, **kwargs: halved(old(*args, **kwargs))

    outcome.check_off(outcome.try_on(order, by_forward))


def halved(output):
    return (output[0] / 2, *output[1:]) if isinstance(output, tuple) else output / 2


def compile_layers(model):
    for layer in tower_of(model).encoder.layers:
        layer.compile(backend="eager")


def compile_replaced_layers(model):
    layers = tower_of(model).encoder.layers
    for number, layer in enumerate(layers):
        layers[number] = torch.compile(layer, backend="eager")


def compile_replaced_tower(model):
    model.model.vision_tower = torch.compile(tower_of(model), backend="eager")


COMPILED = {
    "layers in place": compile_layers,
    "layers replaced": compile_replaced_layers,
    "tower in place": lambda model: tower_of(model).compile(backend="eager"),
    "tower replaced": compile_replaced_tower,
}


@pytest.mark.parametrize(
    ("how", "order"),
    [("layers in place", "before"), ("layers replaced", "after"), ("tower in place", "after"),
     ("tower replaced", "before")],
)  # fmt: skip
def test_compiled_towers(how, order, outcomes):
    outcome = outcomes["{}"]
    torch._dynamo.reset()
    model = outcome.try_on(order, COMPILED[how])
    counters = torch._dynamo.utils.counters
    outcome.check_on(model)
    graphs = counters["stats"]["unique_graphs"]
    assert graphs > 0
    for _ in range(3):
        outcome.check_on(model)
    assert counters["stats"]["unique_graphs"] == graphs  # no call is compiled anew
    outcome.check_off(model)
    counters.clear()


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", ["0.self_attn.q_proj", "2.self_attn.k_proj", "2.mlp.fc1"])
def test_parametrizations(name, order, outcomes):
    def double(model):
        with torch.no_grad():
            tower_of(model).encoder.layers.get_submodule(name).weight *= 2

    def parametrized(model):
        module = tower_of(model).encoder.layers.get_submodule(name)
        parametrize.register_parametrization(module, "weight", Doubled())

    outcome = Outcome(double)
    assert not torch.allclose(outcome.off, outcomes["{}"].off, rtol=0, atol=0.1)
    model = outcome.try_on(order, parametrized)
    assert model.hired.why_full is None
    outcome.check_off(model)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", ["0.self_attn.q_proj", "2.self_attn.k_proj"])
def test_pruned_weights(name, order, outcomes):
    """PyTorch prunes by a hook before the forward."""

    def halve(model):
        with torch.no_grad():
            tower_of(model).encoder.layers.get_submodule(name).weight[::2] = 0

    def pruned(model):
        module = tower_of(model).encoder.layers.get_submodule(name)
        mask = torch.ones_like(module.weight)
        mask[::2] = 0
        prune.custom_from_mask(module, "weight", mask)
        del module.weight  # the hook makes it

    outcome = Outcome(halve)
    assert not torch.allclose(outcome.off, outcomes["{}"].off, rtol=0, atol=0.1)
    outcome.check_off(outcome.try_on(order, pruned))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_forward_of_mixed_precision(settings, order, outcomes):
    """accelerate's `prepare` and Trainer give the whole model another forward."""
    outcome = outcomes[str(settings)]

    def wrap(model):
        forward = type(model).forward
        autocast = torch.autocast("cpu", torch.bfloat16, enabled=False)
        model.forward = convert_outputs_to_fp32(autocast(forward).__get__(model))

    model = outcome.try_on(order, wrap)
    del model.forward
    outcome.check_off(model)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_autocast(settings, outcomes):
    """Within what half precision changes in the stock model."""
    outcome = outcomes[str(settings)]
    model = twin(outcome.stock)
    with torch.autocast("cpu", torch.bfloat16):
        stock = logits_of(model, outcome.stock_inputs).float()
        outcome.apply(model)
        found = logits_of(model, outcome.inputs).float()
    text = outcome.inputs["input_ids"] != 4
    off = (stock - outcome.off).norm() / outcome.off.norm()
    ours = (found - outcome.on)[text].norm() / outcome.on[text].norm()
    assert 0 < ours < 4 * off


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("order", ORDERS)
@torch.no_grad()
def test_dynamic_quantization(order, outcomes):
    """Steps of activations depend on all rows of a call: of fewer rows they may be finer."""
    quantization = pytest.importorskip("torch.ao.quantization")
    if not hasattr(quantization, "quantize_dynamic"):
        pytest.skip("this PyTorch has no quantize_dynamic")
    outcome = outcomes["{}"]
    model, stock = twin(outcome.stock), twin(outcome.stock)
    if order == "before":
        outcome.apply(model)
    for one in (model, stock):
        quantization.quantize_dynamic(tower_of(one), {nn.Linear}, torch.qint8, inplace=True)
    if order == "after":
        outcome.apply(model)
    assert not isinstance(tower_of(model).encoder.layers[2].mlp.fc1, nn.Linear)
    pictures = outcome.inputs["pixel_values"], outcome.inputs["image_sizes"]
    found = model.get_image_features(*pictures)
    pixels = partitions_of(stock.config, pictures[0], pictures[1].tolist())
    states = [tower_of(one)(pixels, output_hidden_states=True).hidden_states[-2]
              for one in (stock, outcome.stock)]  # fmt: skip
    expected, exact = (one[:, 1:].flatten(0, 1)[found.indices] for one in states)
    error = (expected - exact).norm()
    assert (found.last_hidden_state - expected).norm() < error < 0.1 * exact.norm()
    hired.remove_hired(model)
    wanted = logits_of(stock, outcome.stock_inputs)
    torch.testing.assert_close(logits_of(model, outcome.stock_inputs), wanted, **CLOSE)


def test_copies_of_wrapped_models(outcomes, tmp_path):
    """A copy of an offloaded, switched model is one, and the first can be switched off alone."""
    outcome = outcomes["{}"]
    model = outcome.try_on("before", lambda model: cpu_offload(model, "cpu"))
    other = copy.deepcopy(model)
    outcome.check_off(model)
    outcome.check_on(other)
    outcome.check_off(other)
