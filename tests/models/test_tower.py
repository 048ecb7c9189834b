# SPDX-License-Identifier: Apache-2.0
"""The tower that stops early computes what the whole tower followed by the selection does.

Held to a plain forward pass, with attention materialised in float64 and the reference selecting;
what it must not compute is counted, and that it never waits for the device is shown by running it
where no tensor has a value.
"""

from collections import Counter
from functools import partial

import pytest
import torch
from llava_models import SIZES, make, pictures
from llava_oracle import partitions_of, select_as_the_reference
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import CLIPVisionModelWithProjection

import hired_kernels as hired
from benchmarks.model import flops
from hired_kernels.models import hired_tower, vision_tower
from hired_kernels.models.accounting import plan

ATTENTIONS = ["sdpa", "eager", "flex_attention"]
HALVES = [torch.float16, torch.bfloat16]


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    pass


def case(sizes=tuple(SIZES), **options):
    """A stock model, pixel values of these pictures and their sizes."""
    model, processor = make(**options)
    images = processor.image_processor(pictures(sizes), return_tensors="pt")
    return model, images["pixel_values"], list(sizes)


def tower_of(model, feature_layer=-2, **settings):
    pinpoints = getattr(model.config, "image_grid_pinpoints", None)
    return hired.HiredTower(model.model.vision_tower, feature_layer, pinpoints, **settings)


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("policy", ["exact", "published"])
@torch.no_grad()
def test_is_the_whole_tower_then_the_selection(attention, policy):
    sizes = SIZES[:2] if attention == "flex_attention" else SIZES
    sizes = SIZES[:3] if policy == "published" else sizes
    # T = 36 patches divide into the runs of 2, 3 and 4 sub-images.
    model, pixels, sizes = case(sizes)
    settings = {"budget": 0.3, "alpha": 0.4, "policy": policy}
    expected = select_as_the_reference(model, pixels, sizes, **settings)
    model.model.vision_tower.set_attn_implementation(attention)
    kept = tower_of(model, **settings)(partitions_of(model.config, pixels, sizes), sizes)
    assert kept.compact().indices.tolist() == expected.indices.tolist()
    torch.testing.assert_close(kept.compact().tokens, expected.tokens, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layer", [-1, -2, 1, 3, [1, -2], [-2, -4, 0], [0, -1]], ids=str)
@torch.no_grad()
def test_any_feature_layer_or_several(layer):
    model, pixels, sizes = case(SIZES[:2])
    model.config.vision_feature_layer = layer
    expected = select_as_the_reference(model, pixels, sizes)
    kept = tower_of(model, layer)(partitions_of(model.config, pixels, sizes), sizes)
    assert kept.indices.tolist() == expected.indices.tolist()
    torch.testing.assert_close(kept.tokens, expected.tokens, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@torch.no_grad()
def test_half_precision_keeps_to_its_last_digits(dtype, attention):
    """Within 4 epsilons of the largest feature of the whole tower in the same format."""
    model, pixels, sizes = case(SIZES[:2])
    tower = model.model.vision_tower.to(dtype)
    tower.set_attn_implementation(attention)
    kept = tower_of(model)(partitions_of(model.config, pixels, sizes).to(dtype), sizes)
    states = tower(partitions_of(model.config, pixels, sizes), output_hidden_states=True)
    features = states.hidden_states[-2][:, 1:]
    assert kept.tokens.dtype == dtype
    expected = features.flatten(0, 1)[kept.indices].double()
    bound = 4 * torch.finfo(dtype).eps * features.abs().max().double()
    assert (kept.tokens.double() - expected).abs().max() <= bound


@pytest.mark.parametrize("budget", [0, 1, 37, 1.0])
@torch.no_grad()
def test_budgets_from_nothing_to_everything(budget):
    model, pixels, sizes = case(SIZES[:3])
    expected = select_as_the_reference(model, pixels, sizes, budget=budget)
    tower = tower_of(model, budget=budget)
    kept = tower(partitions_of(model.config, pixels, sizes), sizes)
    assert tower.rows(sizes) == expected.rows
    assert kept.indices.tolist() == expected.indices.tolist()
    torch.testing.assert_close(kept.tokens, expected.tokens, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("budget", [1, 20, 90, 1.0])
def test_no_partition_keeps_more_than_there_is_room_for(alpha, budget):
    model, _, sizes = case()
    tower = tower_of(model, budget=budget, alpha=alpha)
    todo = plan(tower.settings, tower.anatomy, sizes)
    generator = torch.Generator().manual_seed(0)
    init, final = torch.rand(2, sum(todo.partitions), 2, 36, generator=generator).pow(20)
    kept = hired.select(
        init.new_zeros(*init.shape[:1], 36, 1), init, final, grids=todo.grids,
        budget=todo.budgets, alpha=alpha, crops=todo.crops,
    )  # fmt: skip
    assert int(kept.counts.max()) <= todo.most <= 36
    assert len(kept.indices) == sum(todo.rows)


class Calls(TorchDispatchMode):
    """Counts operators."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.counts[str(function)] += 1
        return function(*args, **(kwargs or {}))


@torch.no_grad()
def test_computes_nothing_that_no_kept_token_needs():
    model, pixels, sizes = case(SIZES[:2])
    rows = Counter()

    def count(name, module, args, output):
        rows[name] += args[0].numel() // args[0].shape[-1]

    layers = model.model.vision_tower.encoder.layers
    for number, layer in enumerate(layers):
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            module = getattr(layer.self_attn, name)
            module.register_forward_hook(partial(count, f"{number}.{name}"))
        layer.mlp.register_forward_hook(partial(count, f"{number}.mlp"))
    tower = tower_of(model)
    partitions = partitions_of(model.config, pixels, sizes)
    with Calls() as calls:
        kept = tower(partitions, sizes)
    P, N, K = len(partitions), 37, len(kept.indices)
    for name in ("q_proj", "k_proj", "v_proj", "out_proj", "mlp"):
        assert rows[f"0.{name}"] == rows[f"1.{name}"] == P * N
        assert rows[f"3.{name}"] == 0
    assert rows["2.k_proj"] == rows["2.v_proj"] == P * N
    assert rows["2.q_proj"] == P + K
    assert rows["2.out_proj"] == rows["2.mlp"] == K
    assert calls.counts["hired.select_qk.default"] == 1
    assert not any("_local_scalar_dense" in name or "nonzero" in name for name in calls.counts)


@pytest.mark.parametrize("policy", ["exact", "published"])
@torch.no_grad()
def test_never_waits_for_a_value(policy):
    """Tensors without values run through it: what the host must know, it knows beforehand."""
    model, pixels, sizes = case(SIZES[:3])
    tower = tower_of(model, policy=policy)
    partitions = partitions_of(model.config, pixels, sizes)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        kept = tower(mode.from_tensor(partitions), sizes)
    assert kept.tokens.shape == (sum(tower.rows(sizes)), 32)


@torch.no_grad()
def test_compiles_as_one_graph():
    model, pixels, sizes = case(SIZES[:2])
    tower, partitions = tower_of(model), partitions_of(model.config, pixels, sizes)
    expected = tower(partitions, sizes)
    kept = torch.compile(tower, fullgraph=True, backend="eager")(partitions, sizes)
    assert torch.equal(kept.indices, expected.indices)
    torch.testing.assert_close(kept.tokens, expected.tokens)


def test_gradients_are_those_of_the_whole_tower():
    model, pixels, sizes = case(SIZES[:2])
    model.double()
    tower, partitions = tower_of(model), partitions_of(model.config, pixels, sizes)
    todo = plan(tower.settings, tower.anatomy, sizes)
    weights = dict(model.model.vision_tower.named_parameters())
    gradients = []
    for whole in (False, True):
        if whole:
            kept, *_ = hired_tower.full_tower(tower.tower, partitions, -2, todo, tower.settings)
        else:
            kept = tower(partitions, sizes)
        found = torch.autograd.grad(kept.tokens.square().sum(), weights.values(), allow_unused=True)
        gradients.append(dict(zip(weights, found, strict=True)))
    reached = {name for name, found in gradients[0].items() if found is not None}
    assert "embeddings.class_embedding" in reached
    assert not any(name.startswith("encoder.layers.3") for name in reached)
    for name in reached:
        torch.testing.assert_close(gradients[0][name], gradients[1][name])


@torch.no_grad()
def test_a_tower_with_a_projection_on_top():
    model, pixels, sizes = case(SIZES[:2])
    partitions = partitions_of(model.config, pixels, sizes)
    expected = tower_of(model)(partitions, sizes)
    other = CLIPVisionModelWithProjection(model.config.vision_config).eval()
    other.vision_model.load_state_dict(model.model.vision_tower.state_dict())
    pinpoints = model.config.image_grid_pinpoints
    kept = hired.HiredTower(other, pinpoints=pinpoints)(partitions, sizes)
    assert torch.equal(kept.tokens, expected.tokens)
    assert other(partitions).image_embeds.shape == (len(partitions), other.config.projection_dim)


@torch.no_grad()
def test_float64_towers_are_served():
    model, pixels, sizes = case(SIZES[:2])
    model.model.vision_tower.double()
    partitions = partitions_of(model.config, pixels, sizes).double()
    kept = tower_of(model)(partitions, sizes)
    whole = model.model.vision_tower(partitions, output_hidden_states=True).hidden_states[-2]
    torch.testing.assert_close(kept.tokens, whole[:, 1:].flatten(0, 1)[kept.indices])


@torch.no_grad()
def test_flops_are_counted_as_they_are_done():
    """Of the matrix products and attention that PyTorch's own counter sees."""
    from torch.utils.flop_counter import FlopCounterMode

    model, pixels, sizes = case(SIZES[:2])
    tower, partitions = tower_of(model), partitions_of(model.config, pixels, sizes)
    tower.tower.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as early:
        tower(partitions, sizes)
    with FlopCounterMode(display=False) as whole:
        tower.tower(partitions)
    todo = plan(tower.settings, tower.anatomy, sizes)
    config, P = tower.tower.config, len(partitions)
    assert flops.tower(config, P) == whole.get_total_flops()
    assert flops.tower(config, P, feature_layer=-2, todo=todo) == early.get_total_flops()


def test_embeddings_alone_are_no_feature_layer():
    with pytest.raises(ValueError, match="feature_layer: expected the output of one of 4 layers"):
        vision_tower.hidden_state_numbers(4, [0, 0])
