# SPDX-License-Identifier: Apache-2.0
"""A switched model says what the stock model says when it is fed with the selected features.

The features come from the stock tower and projector and the reference's selection (`llava_oracle`);
the stock model gets them through `mm_encoder_outputs`, or as embeddings where it has no such
argument.
"""

import copy

import pytest
import torch
import transformers
from llava_models import KINDS, SIZES, make, pictures, twin
from llava_oracle import (
    CLOSE,
    PROMPTS,
    features_of,
    layouts_of,
    logits_of,
    logits_with_features,
    partitions_of,
    project,
    select_as_the_reference,
    stock_inputs,
    switched,
    text_of,
    without_surplus,
)

import hired_kernels as hired


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    pass


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_the_stock_models_with_the_selected_features(kind):
    stock, model, inputs = switched(kind, budget=0.3, alpha=0.4)
    features = features_of(stock, inputs, budget=0.3, alpha=0.4)
    expected = logits_with_features(stock, features, **text_of(inputs))
    torch.testing.assert_close(logits_of(model, inputs), expected, **CLOSE)
    assert not torch.allclose(logits_of(model, inputs), logits_of(stock, text_of(inputs)), atol=1)


@pytest.mark.parametrize(
    "settings",
    [
        {"policy": "pooled"},
        {"policy": "pooled", "newlines": True, "budget": 1.0},
        {"judge": "patches"},
        {"judge": 9, "policy": "pooled"},
        {"judge": 5, "alpha": 0.2},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["llava-next-llama", "llava", "llava-layers"])
def test_policies_and_judges(kind, settings):
    settings = {"budget": 0.3, **settings}
    newlines = settings.pop("newlines", False) and KINDS[kind].sub_images
    stock, model, inputs = switched(kind, newlines=newlines, **settings)
    if newlines:
        expected = logits_of(stock, stock_inputs(inputs))
    else:
        features = features_of(stock, inputs, **settings)
        expected = logits_with_features(stock, features, **text_of(inputs))
    torch.testing.assert_close(logits_of(model, inputs), expected, **CLOSE)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_whole_budget_is_the_stock_model_without_newlines(kind):
    stock, model, inputs = switched(kind, budget=1.0)
    whole = copy.deepcopy(stock)
    if KINDS[kind].sub_images:
        pack = whole.model.pack_image_features

        def without(features, sizes, strategy=None, image_newline=None, **more):
            more.update({} if strategy is None else {"vision_feature_select_strategy": strategy})
            return pack(features, sizes, image_newline=None, **more)

        whole.model.pack_image_features = without
    expected = logits_of(whole, inputs)
    torch.testing.assert_close(logits_of(model, inputs), expected, **CLOSE)


@pytest.mark.parametrize("kind", ["llava-next-mistral", "llava-next-video"])
def test_whole_budget_with_newlines_is_the_stock_model(kind):
    stock, processor = make(kind)
    arguments = {"images": pictures(SIZES), "text": [*PROMPTS, "this <image> what"]}
    ours = hired.apply_hired(twin(stock), copy.deepcopy(processor), budget=1.0, newlines=True)
    inputs, others = (
        one(**arguments, padding=True, return_tensors="pt") for one in (processor, ours[1])
    )
    assert torch.equal(inputs["input_ids"], others["input_ids"])
    torch.testing.assert_close(logits_of(ours[0], inputs), logits_of(stock, inputs), **CLOSE)


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_newlines_end_each_row_that_keeps_a_token(padding_side):
    stock, model, inputs = switched(budget=0.2, newlines=True, padding_side=padding_side)
    found = select_as_the_reference(stock, inputs["pixel_values"], SIZES[:3])
    features, first = [], 0
    layouts = layouts_of(stock.config, SIZES[:3])
    kept = zip(
        found.indices.split(found.rows), found.tokens.split(found.rows), layouts, strict=True
    )
    for indices, tokens, layout in kept:
        rows, before = [], None
        for index, token in zip(
            indices.tolist(), project(stock, tokens, [1] * len(tokens)), strict=True
        ):
            p, t = divmod(index - first * layout.tokens, layout.tokens)
            line = None if p == 0 else ((p - 1) // layout.grid[1], t // layout.side)
            if before not in (None, line):
                rows.append(stock.model.image_newline[None].detach())
            rows.append(token)
            before = line
        features.append(torch.cat([*rows, stock.model.image_newline[None].detach()]))
        first += layout.partitions
    shorter, visible = without_surplus(inputs, features, padding_side)
    expected = logits_with_features(stock, features, **shorter)
    ours = logits_of(model, inputs)
    for row, (mask, wanted) in enumerate(
        zip(visible, shorter["attention_mask"].bool(), strict=True)
    ):
        torch.testing.assert_close(ours[row][mask], expected[row][wanted], **CLOSE)


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_published_is_the_stock_model_with_the_shorter_prompt(padding_side):
    settings = {"budget": 0.3, "alpha": 0.4, "policy": "published"}
    stock, model, inputs = switched(padding_side=padding_side, **settings)
    features = features_of(stock, inputs, **settings)
    shorter, visible = without_surplus(inputs, features, padding_side)
    assert shorter["input_ids"].shape < inputs["input_ids"].shape
    expected = logits_with_features(stock, features, **shorter)
    ours = logits_of(model, inputs)
    for row, (mask, wanted) in enumerate(
        zip(visible, shorter["attention_mask"].bool(), strict=True)
    ):
        torch.testing.assert_close(ours[row][mask], expected[row][wanted], **CLOSE)


@pytest.mark.parametrize("settings", [{}, {"policy": "published"}, {"newlines": True}], ids=str)
@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_batch_of_mixed_sizes_is_one_by_one(settings, padding_side):
    stock, processor = make(padding_side=padding_side)
    model, processor = hired.apply_hired(stock, processor, **settings)
    images, text = pictures(SIZES[:4]), PROMPTS
    if settings.get("policy") == "published":
        images, text = images[:3], text[:3]
    together = processor(images=images, text=text, padding=True, return_tensors="pt")
    logits = logits_of(model, together)
    for row, (image, prompt) in enumerate(zip(images, text, strict=True)):
        alone = processor(images=image, text=prompt, return_tensors="pt")
        mask = together["attention_mask"][row].bool()
        seen = together["input_ids"][row][mask] != 4
        ours, expected = logits[row][mask], logits_of(model, alone)[0]
        torch.testing.assert_close(ours[seen], expected[seen], **CLOSE)


@pytest.mark.parametrize("kind", ["llava-next-llama", "llava", "vipllava"])
@torch.no_grad()
def test_text_alone_is_left_alone(kind):
    stock, processor = make(kind)
    text = processor(text=["what is this", "this"], padding=True, return_tensors="pt")
    for settings in ({}, {"policy": "published"}):
        model, patched = hired.apply_hired(twin(stock), copy.deepcopy(processor), **settings)
        inputs = patched(text=["what is this", "this"], padding=True, return_tensors="pt")
        assert torch.equal(inputs["input_ids"], text["input_ids"])
        assert torch.equal(logits_of(model, inputs), logits_of(stock, text))
        assert torch.equal(
            model.generate(**inputs, max_new_tokens=3, do_sample=False),
            stock.generate(**text, max_new_tokens=3, do_sample=False),
        )


@pytest.mark.parametrize(
    "text",
    [["<image> what <image>", "this <image> is"], ["what", "<image> <image> is <image>", "this"]],
    ids=["two and one", "none, three, none"],
)
def test_several_pictures_a_prompt(text):
    stock, model, inputs = switched(text=text, budget=0.3)
    features = features_of(stock, inputs, budget=0.3)
    expected = logits_with_features(stock, features, **text_of(inputs))
    torch.testing.assert_close(logits_of(model, inputs), expected, **CLOSE)


@pytest.mark.parametrize("kind", ["llava-next-llama", "llava"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_end_to_end(kind, dtype):
    """Within 32 epsilons of the largest logit of the stock model in the same format."""
    stock, model, inputs = switched(kind, budget=0.3)
    stock, model = stock.to(dtype), model.to(dtype)
    with torch.no_grad():
        arguments = [inputs["pixel_values"]]
        if "image_sizes" in inputs:
            arguments.append(inputs["image_sizes"])
        kept = model.get_image_features(*arguments).indices
        pixels = inputs["pixel_values"].to(dtype)
        pixels = partitions_of(stock.config, pixels, SIZES[:3])
        states = stock.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-2]
    tokens = states[:, 1:].flatten(0, 1)[kept]
    counts = [int((row == 4).sum()) for row in inputs["input_ids"]]
    expected = logits_with_features(stock, project(stock, tokens, counts), **text_of(inputs))
    bound = 32 * torch.finfo(dtype).eps * expected.abs().max()
    assert (logits_of(model, inputs) - expected).abs().max() <= bound


def test_full_strategy_keeps_cls_and_runs_the_whole_tower(caplog):
    stock, processor = make("llava", vision_feature_select_strategy="full")
    images = pictures(SIZES[:2])
    arguments = {"images": images, "text": PROMPTS[:2], "padding": True, "return_tensors": "pt"}
    whole = processor(**arguments)
    model, processor = hired.apply_hired(twin(stock), processor, budget=1.0)
    assert "full" in model.hired.why_full
    inputs = processor(**arguments)
    assert torch.equal(inputs["input_ids"], whole["input_ids"])
    transformers.utils.logging.enable_propagation()
    try:
        torch.testing.assert_close(logits_of(model, inputs), logits_of(stock, whole), **CLOSE)
    finally:
        transformers.utils.logging.disable_propagation()
    assert "the whole vision tower runs" in caplog.text
    hired.apply_hired(model, processor, budget=9)
    inputs = processor(**arguments)
    assert (inputs["input_ids"] == 4).sum(dim=1).tolist() == [10, 10]
    assert logits_of(model, inputs).isfinite().all()


@pytest.mark.parametrize("asked", ["output_hidden_states", "output_attentions"])
@torch.no_grad()
def test_outputs_of_the_whole_tower_are_there_when_asked_for(asked):
    _, model, inputs = switched()
    model.model.vision_tower.set_attn_implementation("eager")
    arguments = inputs["pixel_values"], inputs["image_sizes"]
    early = model.get_image_features(*arguments)
    whole = model.get_image_features(*arguments, **{asked: True})
    assert early.hidden_states is None
    assert early.attentions is None
    assert len(whole.hidden_states) == 5
    if asked == "output_attentions":
        assert len(whole.attentions) == 4
    assert torch.equal(whole.indices, early.indices)
    for ours, theirs in zip(early.pooler_output, whole.pooler_output, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_a_picture_that_keeps_nothing():
    _, model, inputs = switched(budget=0)
    assert not (inputs["input_ids"] == 4).any()
    assert logits_of(model, inputs).isfinite().all()


def test_videos_stay_as_they_are():
    stock, _ = make("llava-next-video", tile=112)
    model = hired.apply_hired(twin(stock), None)[0]
    generator = torch.Generator().manual_seed(0)
    frames = torch.randn(1, 2, 3, 112, 112, generator=generator)
    ids = torch.tensor([[6, *[5] * 32, 7]])
    with torch.no_grad():
        expected = stock(input_ids=ids, pixel_values_videos=frames).logits
        ours = model(input_ids=ids, pixel_values_videos=frames).logits
    assert torch.equal(ours, expected)
