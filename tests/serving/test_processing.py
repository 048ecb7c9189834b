# SPDX-License-Identifier: Apache-2.0
"""The front end: placeholders are exactly the tokens kept, and what cannot be is refused there."""

from __future__ import annotations

import pytest
import torch
from llava_models import PINPOINTS, SIZES, TILE, picture
from tiny import Request
from vllm.config import ModelConfig
from vllm.multimodal import MULTIMODAL_REGISTRY

from hired_kernels import geometry, vllm
from hired_kernels.vllm.options import Options

SIDE = TILE // 14
SERVER = "server"


@pytest.fixture(scope="module", autouse=True)
def _registered():
    vllm.register()


def processor_of(served, **hired_options):
    engine = served.engine(**hired_options)
    names = ("model", "hf_overrides", "dtype", "max_model_len", "limit_mm_per_prompt")
    config = ModelConfig(**{name: engine[name] for name in names})
    return MULTIMODAL_REGISTRY.create_processor(config)


def processed(processor, request):
    return processor(
        request.text,
        processor.info.parse_mm_data({"image": request.pictures}),
        hf_processor_mm_kwargs=request.processor_kwargs,
    )


def placeholders(processor, sizes, budget=SERVER):
    """Tokens that stand for each picture of a prompt."""
    ranges = processed(processor, Request(tuple(sizes), budget))["mm_placeholders"]["image"]
    return [each.length for each in ranges]


def layout(size):
    pinpoints = [[rows * TILE, cols * TILE] for rows, cols in PINPOINTS]
    return geometry.layout(*size, pinpoints=pinpoints, tile=TILE, patch=14)


@pytest.mark.parametrize("policy", ["exact", "published"])
def test_placeholders_are_the_tokens_kept(llava_next, policy):
    processor = processor_of(llava_next, budget=0.4, policy=policy)
    sizes = [(height, width) for height in (1, 50, 99, 300) for width in (1, 70, 168, 400)]
    for budget in (SERVER, 0.1, 1.0, 3, 10**6):
        for size in sizes:
            asked = 0.4 if budget == SERVER else budget
            pages = layout(size)
            tokens = pages.budget(asked, policy) if isinstance(asked, float) else asked
            assert placeholders(processor, [size], budget) == [pages.kept(tokens, policy)]


def test_placeholders_of_llava(llava):
    processor = processor_of(llava, budget=0.4)
    for budget, tokens in ((SERVER, 14), (0.1, 3), (1.0, 36), (3, 3), (10**6, 36), (None, 36)):
        assert placeholders(processor, [(50, 99), (300, 20)], budget) == [tokens, tokens]


def test_the_stock_count_without_a_budget(llava_next):
    stock = processor_of(llava_next)
    # Newlines come on top of the tokens.
    assert placeholders(stock, [(168, 168)]) == [5 * SIDE**2 + 2 * SIDE]
    pruning = processor_of(llava_next, budget=0.4)
    assert placeholders(pruning, [(168, 168)], None) == [5 * SIDE**2 + 2 * SIDE]


def test_worker_is_told_what_the_placeholders_say(llava_next):
    """Budget and size travel with each picture, cut off from the request's own words."""
    processor = processor_of(llava_next, budget=0.4)
    output = processed(processor, Request(((168, 168), (90, 250)), 0.25))
    for item, size in zip(output["mm_kwargs"]["image"], ((168, 168), (90, 250)), strict=True):
        assert item["hired_budget"].data.item() == layout(size).budget(0.25)
        assert tuple(item["image_sizes"].data.tolist()) == size


BAD_BUDGETS = [
    (2.0, "expected a float in (0, 1] or an integer of at least 0, got 2.0"),
    (float("nan"), "expected a float in (0, 1] or an integer of at least 0, got nan"),
    (-1, "expected a float in (0, 1] or an integer of at least 0, got -1"),
    (True, "expected a float in (0, 1] or an integer of at least 0, got True"),
    ("0.1", "expected a float in (0, 1] or an integer of at least 0, got '0.1'"),
    ([0.1], "expected a float in (0, 1] or an integer of at least 0, got [0.1]"),
    (0, "expected at least one token of each picture, got 0, 0 tokens of 168 x 168 pixels"),
    (1e-3, "expected at least one token of each picture, got 0.001, 0 tokens of 168 x 168"),
]


@pytest.mark.parametrize(("budget", "expected"), BAD_BUDGETS, ids=str)
def test_bad_budgets_of_requests(llava_next, budget, expected):
    processor = processor_of(llava_next, budget=0.4)
    with pytest.raises(ValueError, match="hired_budget") as raised:
        placeholders(processor, [(168, 168)], budget)
    assert str(raised.value).startswith(f"hired: hired_budget: {expected}")


def test_misspelt_options_are_refused(llava_next):
    processor = processor_of(llava_next, budget=0.4)
    pictures = processor.info.parse_mm_data({"image": [picture((168, 168))]})
    with pytest.raises(ValueError, match="expected hired_budget, got hired_bugdet"):
        processor("<image>", pictures, hf_processor_mm_kwargs={"hired_bugdet": 0.1})


def test_preprocessing_that_the_worker_could_not_read(llava, llava_next):
    """Else the engine would die of it."""
    processor = processor_of(llava, budget=0.4)
    pictures = processor.info.parse_mm_data({"image": [picture((168, 168))]})
    raw = {"do_resize": False, "do_center_crop": False}
    expected = r"^hired: pixel_values: expected 1 partition\(s\) of 84 x 84.* got 1 of 168 x 168"
    with pytest.raises(ValueError, match=expected):
        processor("<image>", pictures, hf_processor_mm_kwargs=raw)
    processor = processor_of(llava_next, budget=0.4)
    todo = processor.info.hired.admit(0.4, [(168, 168)])
    with pytest.raises(ValueError, match=r"expected 5 partition\(s\) .* got 2 of 84 x 84"):
        processor._check(torch.zeros(1, 2, 3, TILE, TILE), todo)


def test_max_budget(llava_next):
    processor = processor_of(llava_next, budget=0.2, max_budget=0.4)
    assert placeholders(processor, [(168, 168)], 0.4) == [72]
    assert placeholders(processor, [(168, 168)], 72) == [72]
    for budget in (0.41, 73, 1.0, None):
        with pytest.raises(ValueError, match=r"hired_budget: expected at most max_budget, 0\.4"):
            placeholders(processor, [(168, 168)], budget)


@pytest.mark.parametrize(
    ("options", "most"),
    [({}, 192), ({"budget": 0.1}, 192), ({"budget": 0.1, "max_budget": 0.4}, 72)],
    ids=str,
)
def test_the_engine_makes_room_for_the_largest_request(llava_next, options, most):
    """vLLM sizes its encoder cache by the dummy inputs; a larger picture would never be served."""
    processor = processor_of(llava_next, **options)
    ranges = processor.get_dummy_mm_inputs({"image": 1})["mm_placeholders"]["image"]
    assert [each.length for each in ranges] == [most]
    assert max(placeholders(processor, [size])[0] for size in SIZES) <= most


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"bugdet": 0.1}, "hired: a mapping of budget, max_budget, alpha, policy"),
        ({"budget": 1.5}, "hired_budget: expected a float in"),
        ({"budget": 0.1, "policy": "best"}, "policy: expected exact or published"),
        ({"budget": 0.1, "alpha": 2}, "alpha: expected a number in"),
        ({"max_budget": 0.5}, "a budget beside max_budget"),
        ({"budget": 0.5, "max_budget": "all"}, "hired_budget: expected a float in"),
    ],
    ids=str,
)
def test_bad_options_of_a_server(llava_next, options, expected):
    with pytest.raises(ValueError, match=r"^hired: ") as raised:
        processor_of(llava_next, **options).info.hired  # noqa: B018
    assert expected.replace("hired: ", "expected ") in str(raised.value)


def test_models_that_it_does_not_serve_stay_stock(llava_next):
    config = processor_of(llava_next).info.get_hf_config()
    config.vision_config.model_type = "siglip_vision_model"
    options = Options.of(config)
    assert options.asked({}) is None
    with pytest.raises(ValueError, match="CLIP vision tower, whose CLS token scores"):
        options.asked({"hired_budget": 0.1})
    config.hired = {"budget": 0.1}
    with pytest.raises(ValueError, match="CLIP vision tower, whose CLS token scores"):
        Options.of(config)
