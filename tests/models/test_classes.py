# SPDX-License-Identifier: Apache-2.0
"""Classes and hooks that somebody else has put in, and models of which one half is switched on."""

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from llava_models import SIZES, make, picture
from llava_oracle import CLOSE, logits_of
from transformers import LlavaNextForConditionalGeneration, LlavaNextModel
from transformers.models.clip import modeling_clip
from transformers.models.llava_next import modeling_llava_next

import hired_kernels as hired
from hired_kernels.models import vision_tower

SURPLUS = [{"newlines": True}, {"policy": "published"}]


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    pass


def prompt(processor, size=SIZES[1]):
    return dict(processor(images=picture(size), text="what <image> is", return_tensors="pt"))


@torch.no_grad()
def features_of(model, inputs):
    return model.get_image_features(inputs["pixel_values"], inputs["image_sizes"])


def halved(output):
    return (output[0] / 2, *output[1:]) if isinstance(output, tuple) else output / 2


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("name", ["CLIPAttention", "CLIPEncoderLayer"])
def test_a_class_that_was_patched(name, order, monkeypatch):
    """Does what hooks that do the same do."""
    hooked, processor = hired.apply_hired(*make(), budget=0.3)
    kind = getattr(modeling_clip, name)
    for module in hooked.modules():
        if isinstance(module, kind):
            module.register_forward_hook(lambda *call: halved(call[-1]))
    inputs = prompt(processor)
    expected = features_of(hooked, inputs)
    model = make()[0]
    if order == "after":
        hired.apply_hired(model, None, budget=0.3)
    forward = kind.forward
    monkeypatch.setattr(
        kind, "forward", lambda self, *args, **kwargs: halved(forward(self, *args, **kwargs))
    )
    if order == "before":
        hired.apply_hired(model, None, budget=0.3)
    ours = features_of(model, inputs)
    assert "was replaced" in model.hired.why_full
    assert torch.equal(ours.indices, expected.indices)
    torch.testing.assert_close(ours.last_hidden_state, expected.last_hidden_state, **CLOSE)
    monkeypatch.undo()
    assert features_of(model, inputs).indices is not None
    assert model.hired.why_full is None


def test_a_model_class_that_was_patched(monkeypatch):
    """By a function that says nothing of its arguments."""
    expected, processor = hired.apply_hired(*make(), budget=0.3)
    inputs = prompt(processor)
    forward = modeling_llava_next.LlavaNextModel.forward
    monkeypatch.setattr(
        modeling_llava_next.LlavaNextModel, "forward", lambda self, *a, **k: forward(self, *a, **k)
    )
    model = type("Patched", (LlavaNextForConditionalGeneration,), {})(make()[0].config)
    model.load_state_dict(expected.state_dict())
    hired.apply_hired(model.eval(), None, budget=0.3)
    assert torch.equal(logits_of(model, inputs), logits_of(expected, inputs))


def test_a_forward_that_takes_no_more(monkeypatch):
    class Narrow(LlavaNextForConditionalGeneration):
        def forward(self, input_ids, pixel_values, image_sizes, attention_mask, labels=None):
            return super().forward(
                input_ids=input_ids, pixel_values=pixel_values, image_sizes=image_sizes,
                attention_mask=attention_mask, labels=labels,
            )  # fmt: skip

    expected, processor = hired.apply_hired(*make(), policy="published")
    model = Narrow(expected.config).eval()
    model.load_state_dict(expected.state_dict())
    hired.apply_hired(model, None, policy="published")
    inputs = prompt(processor)
    assert "hired_rows" in inputs
    labels = inputs["input_ids"]
    ours, theirs = (one(**inputs, labels=labels).loss for one in (model, expected))
    assert torch.equal(ours, theirs)


def test_a_model_with_features_of_its_own_is_refused():
    class Own(LlavaNextModel):
        def get_image_features(self, *args, **kwargs):
            return super().get_image_features(*args, **kwargs)

    with pytest.raises(ValueError, match="hired: model: expected transformers' own get_image_feat"):
        hired.apply_hired(Own(make()[0].config), None)


class Seen(ModelHook):
    def __init__(self):
        self.outputs = []

    def post_forward(self, module, output):
        self.outputs.append(output)
        return output


@pytest.mark.parametrize("place", ["", "encoder", "encoder.layers.2", "encoder.layers.3"])
def test_hooks_of_accelerate_that_are_a_users(place):
    seen = []
    processor = make()[1]
    for switch_on in (False, True):
        model = make()[0]
        hook = Seen()
        add_hook_to_module(model.model.vision_tower.get_submodule(place), hook)
        if switch_on:
            hired.apply_hired(model, processor)
        inputs = prompt(processor)
        logits_of(model, inputs)
        (output,) = hook.outputs
        seen.append(getattr(output, "last_hidden_state", output))
        assert not switch_on or "hook" in model.hired.why_full
    torch.testing.assert_close(*seen, **CLOSE)


def test_heads_that_are_split_over_processes_are_refused():
    model, processor = hired.apply_hired(*make())
    attn = model.model.vision_tower.encoder.layers[0].self_attn
    for name in ("q_proj", "k_proj", "v_proj"):
        half = torch.nn.Linear(32, 16)
        setattr(attn, name, half)
    attn.out_proj = torch.nn.Linear(16, 32)
    with pytest.raises(ValueError, match="vision tower: expected all 2 heads in each process, got"):
        features_of(model, prompt(processor))


def test_an_attention_without_projections_is_refused():
    model, processor = hired.apply_hired(*make())
    attn = model.model.vision_tower.encoder.layers[2].self_attn
    attn.forward = lambda hidden_states, *args, **kwargs: (hidden_states / 2, None)
    with pytest.raises(ValueError, match="vision tower: expected q_proj and k_proj to be called"):
        features_of(model, prompt(processor))
    tower = hired.HiredTower(model.model.vision_tower)
    with pytest.raises(ValueError, match="vision tower: expected CLIP's own forward methods"):
        tower(torch.zeros(1, 3, 84, 84), [(84, 84)])
    assert vision_tower.is_on(tower.tower)


@pytest.mark.parametrize("settings", [{}, *SURPLUS], ids=str)
@torch.no_grad()
def test_the_model_inside_switched_alone(settings):
    expected, processor = hired.apply_hired(*make(), **settings)
    inputs = prompt(processor)
    more = {"max_new_tokens": 3, "do_sample": False}
    tokens = expected.generate(**inputs, **more)
    model, processor = make()
    hired.apply_hired(model.model, processor, **settings)
    inputs = prompt(processor)
    assert "hired_rows" not in inputs
    assert torch.equal(model.generate(**inputs, **more), tokens)
    assert torch.equal(logits_of(model, inputs), logits_of(expected, inputs))


@pytest.mark.parametrize("settings", [{}, *SURPLUS], ids=str)
@torch.no_grad()
def test_the_model_inside_switched_off_alone(settings):
    stock, processor = make()
    inputs = prompt(processor)
    more = {"max_new_tokens": 3, "do_sample": False}
    expected = logits_of(stock, inputs), stock.generate(**inputs, **more)
    model, _ = hired.apply_hired(make()[0], None, **settings)
    hired.remove_hired(model.model)
    assert torch.equal(logits_of(model, inputs), expected[0])
    assert torch.equal(model.generate(**inputs, **more), expected[1])
