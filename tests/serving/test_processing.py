# SPDX-License-Identifier: Apache-2.0
"""The front end: placeholders are exactly the tokens kept, and what cannot be is refused there."""

from __future__ import annotations

import pytest
import torch
from llava_models import PINPOINTS, SIZES, TILE, picture
from tiny import NO_BUDGETS, Request
from transformers import PixtralVisionConfig
from vllm.config import ModelConfig
from vllm.model_executor.models.llava import PixtralHFProcessingInfo
from vllm.multimodal import MULTIMODAL_REGISTRY

from hired_kernels import geometry, vllm
from hired_kernels.vllm.families import llava as llava_family
from hired_kernels.vllm.options import Options

SIDE = TILE // 14
SERVER = "server"


@pytest.fixture(scope="module", autouse=True)
def _registered():
    vllm.register()


def processor_of(served, **hired_options):
    engine = served.engine(**hired_options)
    names = ("model", "hf_overrides", "dtype", "max_model_len", "limit_mm_per_prompt",
             "trust_remote_code")  # fmt: skip
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
    (budget, f"expected a float in (0, 1] or an integer from 1 to 2147483647, got {budget!r}")
    for budget in NO_BUDGETS
] + [
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
    expected = r"^hired: pixel_values: expected 1 partition\(s\) of .* got 1 of \(3, 168, 168\)"
    for budget in ({}, {"hired_budget": None}):
        with pytest.raises(ValueError, match=expected):
            processor("<image>", pictures, hf_processor_mm_kwargs={**raw, **budget})
    processor = processor_of(llava_next)
    for shape in ((2, 3, TILE, TILE), (5, 1, TILE, TILE), (5, 4, TILE, TILE), (5, 3, TILE, 9)):
        with pytest.raises(ValueError, match=r"expected 5 partition\(s\) of shape \(3, 84, 84\)"):
            processor._check({"pixel_values": torch.zeros(1, *shape)}, [layout((168, 168))], 0.4)
    whole = {"pixel_values": torch.zeros(1, 5, 3, TILE, TILE)}
    processor._check(whole, [layout((168, 168))], 0.4)


@pytest.mark.parametrize("kind", ["np", None])
def test_tensors_whatever_a_request_asks_for(llava_next, kind):
    processor = processor_of(llava_next, budget=0.4)
    pictures = processor.info.parse_mm_data({"image": [picture((168, 168))]})
    asked = {"return_tensors": kind}
    output = processor("<image>", pictures, hf_processor_mm_kwargs=asked)
    assert [each.length for each in output["mm_placeholders"]["image"]] == [72]


def test_caches_tell_servers_apart(llava_next):
    """Servers that share a cache keep other tokens of the same picture."""

    def key(**options):
        processor = processor_of(llava_next, **options)
        return processed(processor, Request(((168, 168),)))["mm_hashes"]["image"]

    rules = [{}, {"budget": 0.2}, {"budget": 0.2, "alpha": 0.3}, {"budget": 0.3}]
    keys = [str(key(**options)) for options in rules]
    assert len(set(keys)) == len(rules)
    assert keys == [str(key(**options)) for options in rules]


def test_what_the_operator_would_refuse_is_refused_here(llava_next):
    """With all of a picture's share for the full image, the rest has nowhere to go (published)."""
    processor = processor_of(llava_next, policy="published", alpha=1.0)
    assert placeholders(processor, [(168, 168)], 36) == [36]
    for budget in (37, 1.0):
        with pytest.raises(ValueError, match="hired::select: alpha: expected int"):
            placeholders(processor, [(168, 168)], budget)


def test_max_budget(llava_next):
    processor = processor_of(llava_next, budget=0.2, max_budget=0.4)
    assert placeholders(processor, [(168, 168)], 0.4) == [72]
    assert placeholders(processor, [(168, 168)], 72) == [72]
    # Of the padded picture 72 tokens are more than 40 %.
    assert placeholders(processor, [(168, 168), (168, 168)], 72) == [72, 72]
    for sizes, budget in [([(168, 168)], each) for each in (0.41, 73, 1.0, None)] + [
        ([(168, 168), (240, 80)], 72),
        ([(240, 80), (168, 168)], 72),
    ]:
        with pytest.raises(ValueError, match=r"hired_budget: expected at most max_budget, 0\.4"):
            placeholders(processor, sizes, budget)


@pytest.mark.parametrize(
    ("options", "most"),
    [({}, 192), ({"budget": 0.1}, 192), ({"budget": 0.1, "max_budget": 0.4}, 72)],
    ids=str,
)
def test_the_engine_makes_room_for_the_largest_request(llava_next, options, most):
    """vLLM plans for dummy inputs; a larger picture would never be served."""
    processor = processor_of(llava_next, **options)
    ranges = processor.get_dummy_mm_inputs({"image": 1})["mm_placeholders"]["image"]
    assert [each.length for each in ranges] == [most]
    assert max(placeholders(processor, [size])[0] for size in SIZES) <= most


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"bugdet": 0.1}, "hired: a mapping of budget, max_budget, alpha, policy, judge"),
        ({"budget": 1.5}, "hired_budget: expected a float in"),
        ({"budget": 0}, "hired_budget: expected a float in"),
        ({"budget": 0.01}, "budget: expected at least one token of each picture, got 0.01"),
        ({"budget": 0.5, "max_budget": 0.2}, "budget: expected a budget of at most max_budget"),
        ({"budget": 400, "max_budget": 0.2}, "budget: expected a budget of at most max_budget"),
        ({"budget": 0.1, "policy": "best"}, "policy: expected exact, pooled or published"),
        ({"budget": 0.1, "alpha": 2}, "alpha: expected a number in"),
        ({"max_budget": 0.5}, "budget: expected a budget of at most max_budget, 0.5"),
        ({"budget": 0.5, "max_budget": "all"}, "hired_budget: expected a float in"),
    ],
    ids=str,
)
def test_bad_options_of_a_server(llava_next, options, expected):
    with pytest.raises(ValueError, match=r"^hired: ") as raised:
        processor_of(llava_next, **options).info.hired  # noqa: B018
    assert expected.replace("hired: ", "expected ") in str(raised.value)


def test_a_server_s_budget_among_the_processor_s_options_is_refused(llava_next):
    """vLLM would hand it on to transformers, which would ignore it."""
    engine = llava_next.engine()
    names = ("model", "hf_overrides", "dtype", "max_model_len")
    config = ModelConfig(
        **{name: engine[name] for name in names}, mm_processor_kwargs={"hired_budget": 0.1}
    )
    processor = MULTIMODAL_REGISTRY.create_processor(config)
    with pytest.raises(ValueError, match="expected a server's budget in --hf-overrides"):
        processor.get_dummy_mm_inputs({"image": 1})


def test_pixtral_is_vllms_own(llava):
    """vLLM's LLaVA class serves it too, with another processor."""
    context = processor_of(llava).info.ctx
    assert type(llava_family.info_of(context)) is llava_family.Info
    context.model_config.hf_config.vision_config = PixtralVisionConfig()
    info = llava_family.info_of(context)
    assert type(info) is PixtralHFProcessingInfo


def test_models_that_it_does_not_serve_stay_stock(llava_next):
    config = processor_of(llava_next).info.get_hf_config()
    config.vision_config.model_type = "dinov2"
    options = Options.of(config)
    assert options.asked({}) is None
    with pytest.raises(ValueError, match="a CLIP or SigLIP vision tower for LLaVA-NeXT"):
        options.asked({"hired_budget": 0.1})
    config.hired = {"budget": 0.1}
    with pytest.raises(ValueError, match="a CLIP or SigLIP vision tower for LLaVA-NeXT"):
        Options.of(config)
