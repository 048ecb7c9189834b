# SPDX-License-Identifier: Apache-2.0
"""Two ranks keep the same tokens, and those of one: with half of the tower's heads each, or all."""

from __future__ import annotations

import copy

import internvl_models
import own_format
import pytest
import safetensors.torch
import torch
from llava_models import SIZES
from test_tokens import assert_agree
from tiny import Request, call, generate, started
from transformers import InternVLVisionModel

from hired_kernels.models.accounting import Anatomy, Settings, plan_of
from hired_kernels.models.hired_tower import early_exit, full_images_first
from hired_kernels.models.support import feature_layer_of

# Heads of the tower in each rank.
HEADS = {
    "llava-next-llama": 1,
    "llava": 1,
    "granite-vision": 1,
    "llava-onevision": 1,
    "internvl": 2,
    "internvl-own-26b": 1,
    "qianfan-ocr": 1,
}
BUDGETS = (0.2, 0.5, 9)
REQUESTS = [Request((size,), budget) for size in SIZES for budget in (None, *BUDGETS)]
REQUESTS += [Request(tuple(SIZES[:3]), 0.3, seed=5)]
# What two processes on one machine need; functions are sent to the workers.
TWO_RANKS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",
}
PARTITIONS, TOKENS = 8, 20  # of all pictures, and of each


def pixels_of(anatomy):
    draw = torch.Generator().manual_seed(0)
    return torch.randn(PARTITIONS, 3, anatomy.tile, anatomy.tile, generator=draw)


def layouts_of(anatomy):
    """Four sub-images and two, where there are any; else eight pictures of one partition."""
    if anatomy.tiles is None and anatomy.pinpoints is None:
        return [anatomy.tiled()] * PARTITIONS
    if anatomy.tiles is not None:
        return [anatomy.tiled(2, 2), anatomy.tiled(1, 2)]
    side = anatomy.tile
    return [anatomy.layout(2 * side, 2 * side), anatomy.layout(side + 16, 2 * side + 32)]


def _ask(engine, weights=None):
    with started({**engine, "tensor_parallel_size": 2}) as llm:
        kept = llm.collective_rpc(_kept)
        odd = []
        if weights is not None:
            odd = [llm.collective_rpc(_kept_of_three_heads, args=(weights, n)) for n in (0, 1)]
        return generate(llm, REQUESTS), kept, odd


def _kept(worker):
    """What a rank keeps of random partitions: its heads, indices."""
    from hired_kernels.vllm.tower import _heads, keep

    model = worker.model_runner.get_model()
    tower, anatomy = getattr(model, model.tower_name), model.hired.anatomy
    layouts = layouts_of(anatomy)
    todo = model.hired.plan([TOKENS] * len(layouts), layouts)
    kept = keep(tower, pixels_of(anatomy), model.reading, todo, model.hired.settings)
    inside = getattr(tower, "vision_model", tower)
    family = model.reading.family
    hidden = family.begin(inside, pixels_of(anatomy)[:1])
    query, *_ = _heads(model.reading, getattr(inside.encoder, family.layers_name)[0], hidden)
    return query.shape[2], kept.indices.tolist()


def kept_in_transformers(tower, anatomy, layer=-1):
    layouts = layouts_of(anatomy)
    todo = plan_of(Settings(), anatomy, layouts, [TOKENS] * len(layouts))
    pixels = full_images_first(pixels_of(anatomy), todo)
    with torch.inference_mode():
        kept = early_exit(copy.deepcopy(tower), pixels, layer, todo, Settings())
    return kept.indices.tolist()


@pytest.mark.parametrize("kind", HEADS)
def test_two_ranks_keep_the_tokens_of_one(made, kind, tmp_path):
    model, config = made(kind), made(kind).model.config
    narrow = folder = None
    if kind == "internvl-own-26b":
        folder = str(tmp_path)
        narrow = save_three_heads(config.vision_config, tmp_path)
    answers, kept, odd = call(_ask, model.engine(), folder, environment=TWO_RANKS)
    tower, anatomy = model.model.model.vision_tower, Anatomy.of(config)
    expected = kept_in_transformers(tower, anatomy, feature_layer_of(config))
    assert len(expected) == TOKENS * len(layouts_of(anatomy))
    assert kept == [(HEADS[kind], expected)] * 2
    if narrow is not None:
        # Heads that two ranks do not divide: all of them in each, or a dummy head for a fourth.
        expected = kept_in_transformers(narrow, anatomy)
        assert odd == [[(3, expected)] * 2, [(2, expected)] * 2]
    assert_agree(REQUESTS, answers, [model.ask(each, budget=each.budget) for each in REQUESTS])


def save_three_heads(config, folder):
    """A tower of three heads, and files with its weights: 0, as they are, and 1, with a fourth head
    that stands for nothing, as NVLM has them to split heads over ranks."""
    config = copy.deepcopy(config)
    config.hidden_size, config.num_attention_heads = 48, 3
    torch.manual_seed(3)
    tower = internvl_models.spread(InternVLVisionModel(config).eval())
    names = {f"model.vision_tower.{name}": each for name, each in tower.state_dict().items()}
    files = {}, {}
    for name, weight in own_format.renamed(names, config.num_hidden_layers).items():
        short = name.removeprefix("vision_model.")
        files[0][short] = weight
        if ".attn.qkv." in name:
            noise = torch.randn(3, 16, *weight.shape[1:])
            weight = torch.cat([weight.unflatten(0, (3, 48)), noise], 1).flatten(0, 1)
        elif ".attn.proj.weight" in name:
            weight = torch.nn.functional.pad(weight, (0, 16))
        elif "_norm.weight" in name:
            weight = torch.nn.functional.pad(weight, (0, 16), value=1.0)
        files[1][short] = weight.contiguous()
    for dummies, weights in enumerate(files):
        safetensors.torch.save_file(weights, folder / f"{dummies}.safetensors")
    return tower


def _kept_of_three_heads(worker, folder, dummies):
    """As `_kept`, of a tower from the file of so many dummy heads."""
    from vllm.config import set_current_vllm_config
    from vllm.model_executor.models.intern_vit import InternVisionModel

    from hired_kernels.models.vision_tower import Reading
    from hired_kernels.vllm import towers
    from hired_kernels.vllm.tower import keep

    model = worker.model_runner.get_model()
    config, anatomy = copy.deepcopy(model.config.vision_config), model.hired.anatomy
    config.hidden_size, config.num_attention_heads = 48, 3
    with set_current_vllm_config(worker.vllm_config):
        tower = InternVisionModel(config, num_dummy_heads=dummies)
    file = safetensors.torch.load_file(f"{folder}/{dummies}.safetensors")
    loaded = tower.load_weights(file.items())
    assert loaded == {name for name, _ in tower.named_parameters()}
    for module in tower.modules():
        if hasattr(module, "quant_method"):
            module.quant_method.process_weights_after_loading(module)
    wanted = (config.num_hidden_layers,)
    reading = Reading.by(towers.InternVit, wanted, False, anatomy, model.hired.settings)
    layouts = layouts_of(anatomy)
    todo = model.hired.plan([TOKENS] * len(layouts), layouts)
    kept = keep(tower, pixels_of(anatomy), reading, todo, model.hired.settings)
    return tower.encoder.layers[0].attn.num_heads_per_partition, kept.indices.tolist()
