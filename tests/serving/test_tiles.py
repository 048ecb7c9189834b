# SPDX-License-Identifier: Apache-2.0
"""The front end of families whose pictures are not cut up as LLaVA-NeXT's are: InternVL's tiles,
and what LLaVA-OneVision shrinks."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest
from llava_models import picture
from prometheus_client import REGISTRY
from test_processing import SERVER, placeholders, processed, processor_of
from tiny import Model, Request
from vllm.config import ModelConfig

import hired_kernels as hired
from hired_kernels import vllm
from hired_kernels.vllm.families import internvl
from hired_kernels.vllm.options import Options

TOKENS = 9  # of a tile


@pytest.fixture(scope="module")
def shrunk(tmp_path_factory):
    """LLaVA-OneVision with 4 x 4 tiles, which its stock model shrinks to nine."""
    pinpoints = ((4, 4), (2, 2), (1, 1))
    return Model.make("llava-onevision", tmp_path_factory.mktemp("shrunk"), pinpoints=pinpoints)


@pytest.fixture(scope="module", autouse=True)
def _registered():
    vllm.register()


def drawn_sizes(count):
    draw = random.Random(1)
    return [(draw.randint(1, 500), draw.randint(1, 500)) for _ in range(count)]


@pytest.mark.parametrize("kind", ["internvl", "internvl-own", "qianfan-ocr"])
def test_grids_are_those_of_transformers(made, kind):
    """And the placeholders are the tokens kept."""
    model, processor = made(kind), processor_of(made(kind), budget=0.4)
    switched = hired.apply_hired(model.model, model.processor, budget=0.4)[1]
    token = switched.image_token
    try:
        for size in drawn_sizes(40):
            output = processed(processor, Request((size,)))
            (item,) = output["mm_kwargs"]["image"]
            inputs = switched(images=picture(size), text=token, return_tensors="pt")
            *grid, _ = inputs["hired_tiles"][0].tolist()
            assert item["hired_tiles"].data.tolist() == grid, size
            count = int((inputs["input_ids"] == model.model.config.image_token_id).sum())
            (found,) = output["mm_placeholders"]["image"]
            assert found.get_num_embeds() == count == item["hired_budget"].data.item(), size
    finally:
        hired.remove_hired(model.model, model.processor)


@pytest.mark.parametrize(
    ("kind", "fewer"),
    [
        ("internvl", {"max_patches": 2}),
        ("internvl", {"images_kwargs": {"max_patches": 2}}),
        ("internvl-own", {"max_dynamic_patch": 2}),
    ],
)
def test_requests_may_ask_for_other_tiles(made, kind, fewer):
    processor = processor_of(made(kind), budget=0.5)
    pictures = processor.info.parse_mm_data({"image": [picture((100, 200))]})
    output = processor("<image>", pictures, hf_processor_mm_kwargs=fewer)
    assert output["mm_kwargs"]["image"][0]["hired_tiles"].data.tolist() == [1, 2]
    (found,) = output["mm_placeholders"]["image"]
    assert found.get_num_embeds() == int(0.5 * 3 * TOKENS)


@pytest.mark.parametrize(
    ("kind", "asked"),
    [
        ("internvl-own", {"image_size": 42}),
        ("internvl-own", {"use_thumbnail": False}),
    ],
    ids=str,
)
def test_tiles_that_the_worker_could_not_read(made, kind, asked):
    processor = processor_of(made(kind), budget=0.5)
    pictures = processor.info.parse_mm_data({"image": [picture((160, 170))]})
    with pytest.raises(ValueError, match=r"^hired: pixel_values_flat: expected 5 partition"):
        processor("<image>", pictures, hf_processor_mm_kwargs=asked)


def test_the_stock_model_may_go_without_a_full_image(made):
    processor = processor_of(made("internvl-own"))
    pictures = processor.info.parse_mm_data({"image": [picture((160, 170))]})
    output = processor("<image>", pictures, hf_processor_mm_kwargs={"use_thumbnail": False})
    assert output["mm_placeholders"]["image"][0].get_num_embeds() == 4 * TOKENS


@pytest.mark.parametrize("kind", ["internvl", "internvl-own", "llava-onevision"])
@pytest.mark.parametrize("limit", [None, 0.5, 30])
def test_the_engine_makes_room_for_the_largest_request(made, kind, limit):
    options = {} if limit is None else {"budget": limit, "max_budget": limit}
    processor = processor_of(made(kind), **options)
    (dummy,) = processor.get_dummy_mm_inputs({"image": 1})["mm_placeholders"]["image"]
    for size in [*drawn_sizes(20), (180, 180), (90, 270), (84, 504)]:
        output = processed(processor, Request((size,), SERVER if limit else None))
        (found,) = output["mm_placeholders"]["image"]
        assert found.get_num_embeds() <= dummy.get_num_embeds(), size


@pytest.mark.parametrize("kind", ["llava-onevision", "internvl"])
def test_videos_are_planned_for_beside_a_limit(made, kind):
    """vLLM plans for the modality with the most tokens, and with a limit that is no picture."""
    processor = processor_of(made(kind), budget=5, max_budget=5)
    inputs = processor.get_dummy_mm_inputs({"video": 1})
    assert list(inputs["mm_placeholders"]) == ["video"]


def test_a_metric_fails_no_request(made, monkeypatch, caplog):
    processor = processor_of(made("internvl"), budget=0.5)
    monkeypatch.setattr(type(processor), "_stock_tokens", None)
    assert placeholders(processor, [(60, 70)])[0] == 2 + int(0.5 * TOKENS)
    assert "hired: a request was not counted" in caplog.text


def test_onevision_may_not_keep_more_than_the_stock_model_shrinks_to(shrunk):
    """Unless there is a `max_budget`, which vLLM plans for: 17 partitions of 36."""
    processor = processor_of(shrunk)
    largest = processor.info.hired_most
    assert largest < 17 * 36
    assert placeholders(processor, [(360, 360)], largest) == [largest]
    expected = f"expected at most {largest} tokens of a picture, the stock model's most, or a max_"
    for budget in (1.0, largest + 1):
        with pytest.raises(ValueError, match=expected):
            placeholders(processor, [(360, 360)], budget)
    processor = processor_of(shrunk, budget=0.5, max_budget=1.0)
    (dummy,) = processor.get_dummy_mm_inputs({"image": 1})["mm_placeholders"]["image"]
    assert placeholders(processor, [(360, 360)], 1.0) == [dummy.length] == [17 * 36]


@pytest.mark.parametrize("kind", ["llava", "llava-onevision", "internvl", "internvl-own"])
def test_metrics_count_what_the_stock_model_would_have_had(made, kind):
    names = ("pictures", "visual_tokens_kept", "visual_tokens_spared")

    def counted():
        return [REGISTRY.get_sample_value(f"hired_{name}_total") for name in names]

    model, processor = made(kind), processor_of(made(kind))
    processor.get_dummy_mm_inputs({"image": 1})
    text = 4  # words of a request beside its pictures
    for size in [(168, 168), (60, 70), (90, 400)]:
        request = Request((size,), 0.25)
        pruned, whole = (model.ask(request, budget=budget).prompt for budget in (0.25, None))
        before = counted()
        output = processed(processor, request)
        processed(processor, Request((size,), None))
        kept = output["mm_placeholders"]["image"][0].get_num_embeds()
        added = [after - was for after, was in zip(counted(), before, strict=True)]
        assert added == [1, kept, whole - pruned]
        assert kept in (pruned - text, pruned - text - 2)  # InternVL's start and end


@pytest.mark.parametrize(
    ("kind", "options", "expected"),
    [
        ("internvl", {"policy": "published"}, "policy: expected exact or pooled for internvl"),
        ("internvl-own", {"policy": "published"}, "policy: expected exact or pooled for internvl"),
        ("llava-onevision", {"policy": "published"}, "expected exact or pooled for SigLIP"),
        ("llava-onevision", {"judge": "cls"}, "judge: expected auto, patches or a number"),
        ("internvl-own", {"judge": 37}, "judge: expected at most the 36 patches"),
        ("internvl-own", {"judge": "all"}, "judge: expected auto, cls, patches or a number"),
        ("llava", {"judge": 0}, "judge: expected auto, cls, patches or a number"),
    ],
    ids=str,
)
def test_options_that_a_family_does_not_have(made, kind, options, expected):
    with pytest.raises(ValueError, match=rf"^hired: .*{expected}"):
        processor_of(made(kind), budget=0.5, **options).info.hired  # noqa: B018


@pytest.mark.parametrize(
    ("kind", "changes", "expected"),
    [
        ("internvl-own", {"ps_version": "v1"}, "ps_version: expected v2"),
        ("internvl-own", {"use_thumbnail": False}, "use_thumbnail: expected True"),
        ("internvl-own", {"downsample_ratio": 0.3}, "downsample_ratio: expected 1 / g"),
        ("internvl", {"vision_feature_layer": -2}, "vision_feature_layer: expected -1 in vLLM"),
        ("llava", {"vision_feature_select_strategy": "full"}, "strategy: expected default"),
        ("llava", {"model_type": "vipllava"}, "model: expected one of llava, llava_next, "),
    ],
    ids=str,
)
def test_models_that_are_not_served_stay_stock(made, kind, changes, expected):
    config = processor_of(made(kind)).info.get_hf_config()
    vars(config).update(changes)
    if "model_type" in changes:
        config = SimpleNamespace(**{**vars(config), **changes})
    options = Options.of(config)
    assert options.asked({}) is None
    with pytest.raises(ValueError, match=expected):
        options.asked({"hired_budget": 0.1})


def test_the_encoder_s_data_parallel_mode_falls_back_to_split_weights(made):
    engine = made("internvl-own").engine(budget=0.5)
    names = ("model", "hf_overrides", "trust_remote_code")
    options = {name: engine[name] for name in names}
    config = ModelConfig(**options, mm_encoder_tp_mode="data")
    assert config.get_multimodal_config().mm_encoder_tp_mode == "weights"


def test_graphs_of_the_encoder_are_refused():
    config = SimpleNamespace(compilation_config=SimpleNamespace(cudagraph_mm_encoder=True))
    with pytest.raises(ValueError, match="cudagraph_mm_encoder: expected False"):
        internvl.HiredInternVLChatModel(vllm_config=config)
