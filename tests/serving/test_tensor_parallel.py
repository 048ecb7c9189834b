# SPDX-License-Identifier: Apache-2.0
"""Two ranks with half of the tower's heads each keep the same tokens, and those of one rank."""

from __future__ import annotations

import pytest
import torch
from llava_models import SIZES
from test_tokens import assert_agree
from tiny import Request, call, generate, started

BUDGETS = (0.1, 0.5, 9)
REQUESTS = [Request((size,), budget) for size in SIZES for budget in (None, *BUDGETS)]
REQUESTS += [Request(tuple(SIZES[:3]), 0.3, seed=5)]
# What two processes on one machine need; functions are sent to the workers.
TWO_RANKS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",
}


@pytest.fixture(scope="module")
def asked(llava_next):
    """Answers, and the indices that each rank keeps, on one rank and on two."""
    engine = llava_next.engine()
    one = call(_ask, engine, environment={"VLLM_ALLOW_INSECURE_SERIALIZATION": "1"})
    two = call(_ask, {**engine, "tensor_parallel_size": 2}, environment=TWO_RANKS)
    return one, two


def _ask(engine):
    with started(engine) as llm:
        return generate(llm, REQUESTS), llm.collective_rpc(_kept)


def _kept(worker):
    """What a rank keeps of random partitions of two pictures: rank count, indices, heads."""
    from hired_kernels.vllm.tower import keep

    model = worker.model_runner.get_model()
    pixels = torch.randn(8, 3, 84, 84, generator=torch.Generator().manual_seed(0))
    layouts = [model.hired.anatomy.layout(*size) for size in ((168, 168), (100, 200))]
    todo = model.hired.plan([60, 40], layouts)
    heads = model.vision_tower.vision_model.encoder.layers[0].self_attn.num_heads_per_partition
    kept = keep(model.vision_tower, pixels, model.reading, todo, model.hired.settings)
    return heads, kept.indices.tolist()


def test_token_ids_are_those_of_one_rank(asked, llava_next):
    (one, _), (two, _) = asked
    assert_agree(REQUESTS, two, [llava_next.ask(each, budget=each.budget) for each in REQUESTS])
    assert_agree(REQUESTS, one, [llava_next.ask(each, budget=each.budget) for each in REQUESTS])


def test_all_ranks_keep_the_same_tokens(asked):
    (_, one), (_, two) = asked
    assert [heads for heads, _ in one] == [2]
    assert [heads for heads, _ in two] == [1, 1]
    assert two[0][1] == two[1][1] == one[0][1]
    assert len(one[0][1]) == 100
