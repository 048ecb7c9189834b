# SPDX-License-Identifier: Apache-2.0
"""What one step of the engine does with many pictures at once."""

from __future__ import annotations

import pytest
import torch
from llava_models import SIZES, TILE
from tiny import call, started

STOCK = -1
# (height, width) and the budget in tokens of each picture of a step; partitions: 5, 3, 4, 4, 3.
STEP = list(zip(SIZES, (30, STOCK, 9, 25, STOCK), strict=True))


@pytest.fixture(scope="module", params=["llava-next-llama", "internvl-own"])
def seen(made, request):
    """Of a step's pictures together and one by one: features, partitions that the tower took."""
    # Room for 300 patches at a time: eight partitions of 36, not nine.
    engine = {**made(request.param).engine(), "max_num_batched_tokens": 300}
    environment = {"VLLM_ALLOW_INSECURE_SERIALIZATION": "1"}
    return call(_step, engine, environment=environment)


def _step(engine):
    with started(engine) as llm:
        return llm.collective_rpc(_on_worker)[0]


@torch.inference_mode()
def _on_worker(worker):
    from hired_kernels.vllm import models

    model = worker.model_runner.get_model()
    taken = []
    keep = models.keep

    def counted(tower, pixels, *rest):
        taken.append(len(pixels))
        return keep(tower, pixels, *rest)

    models.keep = counted
    draw, anatomy = torch.Generator().manual_seed(0), model.hired.anatomy
    layouts = [anatomy.layout(*size) for size, _ in STEP]
    pictures = [torch.randn(layout.partitions, 3, TILE, TILE, generator=draw) for layout in layouts]

    def embed(items):
        some = [pictures[item] for item in items]
        given = {"pixel_values": some}
        given["image_sizes"] = torch.tensor([STEP[item][0] for item in items])
        if anatomy.tiles is not None:
            given = {"pixel_values_flat": torch.cat(some), "image_token_id": torch.tensor([6])}
            given["image_num_patches"] = torch.tensor([len(picture) for picture in some])
            given["hired_tiles"] = torch.tensor([layouts[item].grid for item in items])
        budgets = torch.tensor([STEP[item][1] for item in items])
        return model.embed_multimodal(**given, hired_budget=budgets)

    together = embed(range(len(STEP)))
    turns = list(taken)
    apart = [embed([item])[0] for item in range(len(STEP))]
    return together, apart, turns, [len(picture) for picture in pictures]


def test_pictures_with_and_without_a_budget_share_a_step(seen):
    together, apart, _, _ = seen
    for features, alone, (_, budget) in zip(together, apart, STEP, strict=True):
        torch.testing.assert_close(features, alone)
        assert budget in (STOCK, len(features))


def test_the_tower_takes_no_more_than_a_step_may_have_tokens(seen):
    """vLLM counts what a picture yields, not what it takes to encode it."""
    _, _, turns, partitions = seen
    pruned = [count for count, (_, budget) in zip(partitions, STEP, strict=True) if budget != STOCK]
    assert pruned == [5, 4, 4]
    assert turns == [5, 8]


def test_features_do_not_keep_each_others_memory(seen):
    together, *_ = seen
    pruned = [
        features for features, (_, budget) in zip(together, STEP, strict=True) if budget != STOCK
    ]
    for features in pruned:
        assert features.untyped_storage().nbytes() == features.numel() * features.element_size()
