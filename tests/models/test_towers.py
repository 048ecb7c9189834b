# SPDX-License-Identifier: Apache-2.0
"""What is common to all families of towers, on models of each: compiled, computed again, several
layers, no wait for the device."""

import internvl_oracle
import pytest
import torch
from llava_models import SIZES
from llava_oracle import CLOSE, logits_of, partitions_of, switched
from torch._subclasses.fake_tensor import FakeTensorMode

import hired_kernels as hired
from hired_kernels.models import towers

FAMILIES = ["internvl", "llava-onevision", "llava-next-llama"]


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    pass


def model_and_inputs(kind, **settings):
    if kind == "internvl":
        found = internvl_oracle.switched("2-26b", sizes=SIZES[:2], **settings)
    else:
        found = switched(kind, sizes=SIZES[:2], **settings)
    return found[1:]


def test_there_is_a_model_of_every_family():
    found = {towers.family_of(model_and_inputs(kind)[0].model.vision_tower) for kind in FAMILIES}
    assert found == set(towers.FAMILIES)
    for family in towers.FAMILIES:
        assert towers.family_of_type(family.model_type) is family
    assert towers.family_of(torch.nn.Linear(1, 1)) is None
    assert towers.family_of_type("pixtral") is None


@pytest.mark.parametrize("kind", FAMILIES)
def test_norms_over_all_heads_are_named(kind):
    tower = model_and_inputs(kind)[0].model.vision_tower
    family = towers.family_of(tower)
    (attn, *_) = (part for part in tower.modules() if isinstance(part, family.attention))
    weights = {name.removesuffix(".weight"): one for name, one in attn.named_parameters()}
    norms = {name for name, one in weights.items() if one.dim() == 1 and "bias" not in name}
    assert norms == set(family.full_width_norms)
    assert all(weights[name].numel() == attn.embed_dim for name in norms)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("settings", [{}, {"policy": "pooled"}, {"judge": "patches"}], ids=str)
@pytest.mark.parametrize("kind", FAMILIES)
def test_layers_that_are_computed_again_have_the_same_gradients(kind, settings, reentrant):
    model, inputs = model_and_inputs(kind, budget=0.3, **settings)
    model.train()

    def gradients():
        model.zero_grad()
        model(**inputs, labels=inputs["input_ids"]).loss.backward()
        named = model.named_parameters()
        return {name: weight.grad for name, weight in named if weight.grad is not None}

    expected = gradients()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    found = gradients()
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("what", ["tower", "layers"])
@pytest.mark.parametrize("kind", FAMILIES)
def test_towers_that_were_compiled_in_place(kind, what):
    """An early exit, and the whole tower, whose queries and keys may have to be noted by hooks."""
    model, inputs = model_and_inputs(kind, budget=0.3)
    expected = logits_of(model, inputs)
    tower = model.model.vision_tower
    layers = [part for part in tower.modules() if isinstance(part, towers.family_of(tower).layer)]
    for part in [tower] if what == "tower" else layers:
        part.compile(backend="eager")
    torch.testing.assert_close(logits_of(model, inputs), expected, **CLOSE)
    assert model.hired.why_full is None
    handle = tower.register_forward_hook(lambda *_: None)
    torch.testing.assert_close(logits_of(model, inputs), expected, **CLOSE)
    assert "a hook on vision_tower" in model.hired.why_full
    handle.remove()
    torch.testing.assert_close(logits_of(model, inputs), expected, **CLOSE)


@pytest.mark.parametrize("judge", ["auto", "cls"])
@pytest.mark.parametrize("kind", FAMILIES)
@torch.no_grad()
def test_modules_are_called_as_in_the_stock_model(kind, judge):
    """All that come before the selection layer, in their order, with the same results."""
    if judge == "cls" and kind == "llava-onevision":
        pytest.skip("has no CLS token")
    model, inputs = model_and_inputs(kind, budget=0.3, judge=judge)
    names = ("image_sizes", "hired_tiles", "batch_num_images")
    given = {name: inputs[name] for name in names if name in inputs}
    tower, calls = model.model.vision_tower, []
    family = towers.family_of(tower)
    layers = [part for part in tower.modules() if isinstance(part, family.layer)]
    last = 2 if kind == "llava-next-llama" else 3  # the selection layer
    parts = [tower.embeddings, *layers[:last]]
    for number, part in enumerate(parts):
        for name, module in part.named_modules(prefix=str(number)):
            module.register_forward_hook(
                lambda _, args, result, name=name: calls.append((name, result))
            )
    model.model.get_image_features(inputs["pixel_values"], **given)
    assert model.hired.why_full is None
    ours, calls[:] = list(calls), []
    pixels = inputs["pixel_values"]
    if kind == "internvl":
        counts = [1 + R * C for R, C, _ in inputs["hired_tiles"].tolist()]
        pixels = torch.cat([torch.cat((one[-1:], one[:-1])) for one in pixels.split(counts)])
    else:
        pixels = partitions_of(model.config, pixels, SIZES[:2])
    tower(pixels)
    assert [name for name, _ in ours] == [name for name, _ in calls]
    for (name, mine), (_, theirs) in zip(ours, calls, strict=True):
        mine, theirs = (one[0] if isinstance(one, tuple) else one for one in (mine, theirs))
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    "settings",
    [{}, {"policy": "pooled"}, {"judge": "patches"}, {"judge": 9}, {"positions": "original"}],
    ids=str,
)
@pytest.mark.parametrize("kind", FAMILIES)
def test_nothing_waits_for_the_device(kind, settings):
    """Features of pictures where no tensor has a value; `hired_tiles` and sizes lie on the host."""
    model, inputs = model_and_inputs(kind, budget=0.3, **settings)
    names = ("image_sizes", "hired_tiles", "batch_num_images")
    given = {name: inputs[name].tolist() for name in names if name in inputs}
    expected = model.model.get_image_features(inputs["pixel_values"], **given)
    hired.apply_hired(model, None, budget=0.3, **settings)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        pixels = mode.from_tensor(inputs["pixel_values"])
        found = model.model.get_image_features(pixels, **given)
    assert [one.shape for one in found.pooler_output] == [
        one.shape for one in expected.pooler_output
    ]
    assert found.indices.shape == expected.indices.shape
