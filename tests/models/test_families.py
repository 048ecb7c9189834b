# SPDX-License-Identifier: Apache-2.0
"""What `python benchmarks model --family` runs: that it computes what it should, and its counts."""

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.model import bench, counts, flops
from benchmarks.model.contenders import Job
from benchmarks.shared.families import FAMILIES
from hired_kernels.models import hired_tower, support
from hired_kernels.models.accounting import Settings

COUNTS = {"llava-next": 2928, "llava-onevision": 5157, "internvl": 1792}


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    pass


@pytest.mark.parametrize("name", FAMILIES)
@torch.inference_mode()
def test_contenders_agree_and_operations_are_counted(name):
    family = FAMILIES[name]
    model = family.make("tiny", "cpu")
    assert family.stock_tokens(model.config) == COUNTS[name]
    job = Job.draw(family, model, 1, 0.2)
    bench.check(model, job)
    tower, pixels = model.model.vision_tower, job.pixels.flatten(0, 1)
    layer, todo = support.feature_layer_of(model.config), job.plan(model)
    tower.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as early:
        hired_tower.early_exit(tower, pixels, layer, todo, Settings(0.2))
    with FlopCounterMode(display=False) as whole:
        tower(pixels)
    P = len(pixels)
    assert flops.tower(tower.config, P) == whole.get_total_flops()
    assert flops.tower(tower.config, P, feature_layer=layer, todo=todo) == early.get_total_flops()
    # The whole of the selection layer but its queries and keys runs for a fifth of the tokens.
    assert early.get_total_flops() < whole.get_total_flops()


@pytest.mark.parametrize("name", FAMILIES)
def test_docs_have_the_operations_of_models_that_people_run(name):
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text().splitlines()
    for row in counts.rows(FAMILIES[name]):
        assert row in page
