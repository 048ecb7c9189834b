# SPDX-License-Identifier: Apache-2.0
"""A switched model says what the stock model says when it is fed with the selected features.

The features come from the stock tower and projector and the reference's selection (`llava_oracle`);
the stock model gets them through `mm_encoder_outputs`, or as embeddings where it has no such
argument.
"""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import transformers
from llava_models import KINDS, SIZES, make, pictures, twin
from llava_oracle import (
    layouts_of,
    logits_with_features,
    partitions_of,
    project,
    select_as_the_reference,
)
from transformers import CompileConfig, StaticCache

import hired_kernels as hired
from hired_kernels.models.surplus import hide

PROMPTS = ["what is <image> this", "<image>", "is <image> shown what is this", "this <image>"]
CLOSE = {"rtol": 1e-4, "atol": 1e-4}  # logits are of size 10; float32


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    pass


def switched(
    kind="llava-next-llama", *, padding_side="left", text=None, sizes=SIZES[:3], **settings
):
    """A stock model, a switched one, and the inputs of its processor."""
    stock, processor = make(kind, padding_side=padding_side)
    model, processor = hired.apply_hired(twin(stock), processor, **settings)
    text = PROMPTS[: len(sizes)] if text is None else text
    inputs = processor(images=pictures(sizes), text=text, padding=True, return_tensors="pt")
    return stock, model, inputs


def features_of(stock, inputs, sizes=SIZES[:3], **settings):
    found = select_as_the_reference(stock, inputs["pixel_values"], sizes, **settings)
    return project(stock, found.tokens, found.rows)


def text_of(inputs):
    return {name: inputs[name] for name in ("input_ids", "attention_mask")}


@torch.no_grad()
def logits_of(model, inputs, **more):
    return model(**inputs, **more).logits


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_the_stock_models_with_the_selected_features(kind):
    stock, model, inputs = switched(kind, budget=0.3, alpha=0.4)
    features = features_of(stock, inputs, budget=0.3, alpha=0.4)
    expected = logits_with_features(stock, features, **text_of(inputs))
    torch.testing.assert_close(logits_of(model, inputs), expected, **CLOSE)
    assert not torch.allclose(logits_of(model, inputs), logits_of(stock, text_of(inputs)), atol=1)


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


def without_surplus(inputs, features, padding_side):
    """The prompts with as many placeholders as there are features, and which tokens remained."""
    ids, visible, counts = [], [], [len(one) for one in features]
    for row, mask in zip(inputs["input_ids"], inputs["attention_mask"].bool(), strict=True):
        places = (row == 4).nonzero()[:, 0]
        mask = mask.clone()
        assert len(places) >= counts[0]
        mask[places[: len(places) - counts.pop(0)]] = False
        visible.append(mask)
        ids.append(row[mask].flip(0) if padding_side == "left" else row[mask])
    ids = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=1)
    ids = ids.flip(1) if padding_side == "left" else ids
    return {"input_ids": ids, "attention_mask": (ids != 1).long()}, visible


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


@pytest.mark.parametrize("way", ["no mask", "positions", "embeddings", "inner", "encoded"])
@torch.no_grad()
def test_surplus_is_hidden_however_the_model_is_called(way):
    settings = {"budget": 0.3, "policy": "published"}
    _, model, inputs = switched(sizes=SIZES[1:2], text=["what <image> is this"], **settings)
    expected = logits_of(model, inputs)
    ids = inputs["input_ids"]
    assert int(
        model.get_image_features(inputs["pixel_values"], inputs["image_sizes"]).surplus.sum()
    )
    if way == "no mask":
        del inputs["attention_mask"]
    elif way == "positions":
        inputs["position_ids"] = torch.arange(ids.shape[1])[None]
    elif way == "embeddings":
        inputs["inputs_embeds"] = model.get_input_embeddings()(inputs.pop("input_ids"))
    elif way == "encoded":
        if "mm_encoder_outputs" not in _names(model.forward):
            pytest.skip("this transformers takes no encoded pictures")
        pixels, sizes = inputs.pop("pixel_values"), inputs.pop("image_sizes")
        inputs["mm_encoder_outputs"] = {"image": model.get_image_features(pixels, sizes)}
    if way == "inner":
        ours = model.lm_head(
            model.model(ids, **{k: v for k, v in inputs.items() if k != "input_ids"})[0]
        )
    else:
        ours = logits_of(model, inputs)
    seen = ids[0] != 4
    torch.testing.assert_close(ours[0, seen], expected[0, seen], **CLOSE)


def _names(function):
    import inspect

    return inspect.signature(function).parameters


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


@pytest.mark.parametrize("settings", [{}, {"policy": "published"}, {"newlines": True}], ids=str)
@pytest.mark.parametrize("beams", [1, 2])
def test_generate_continues_the_prompt(settings, beams):
    stock, model, inputs = switched(budget=0.3, sizes=SIZES[:2], **settings)
    assert inputs["input_ids"][1, -1] == 4  # one prompt ends with its picture
    how = {"max_new_tokens": 6, "num_beams": beams, "do_sample": False, "eos_token_id": None}
    how |= {"return_dict_in_generate": True, "output_logits": True}
    generated = model.generate(**inputs, **how)
    ours = generated.sequences
    length = inputs["input_ids"].shape[1]
    assert torch.equal(ours[:, :length], inputs["input_ids"])
    with torch.no_grad():
        encoded = model.get_image_features(inputs["pixel_values"], inputs["image_sizes"])
    keep = slice(None) if encoded.surplus is None else ~encoded.surplus
    features = torch.cat(encoded.pooler_output)[keep]
    counts = [int((row == 4).sum()) for row in inputs["input_ids"]]
    if encoded.surplus is not None:
        counts = [int((~one).sum()) for one in encoded.surplus.split(counts)]
    shorter, _ = without_surplus(inputs, features.split(counts), "left")
    embeds = stock.get_input_embeddings()(shorter["input_ids"])
    mask = (shorter["input_ids"] == 4)[..., None].expand_as(embeds)
    embeds = embeds.masked_scatter(mask, features)
    expected = stock.generate(inputs_embeds=embeds, attention_mask=shorter["attention_mask"], **how)
    assert torch.equal(ours[:, length:], expected.sequences)
    for step, wanted in zip(generated.logits, expected.logits, strict=True):
        torch.testing.assert_close(step, wanted, **CLOSE)


def test_threads_do_not_see_each_others_pictures():
    """Two calls of one model at once, each with surplus placeholders of its own."""
    _, model, inputs = switched(sizes=SIZES[:2], policy="published", budget=0.3)
    batches = [inputs, {**inputs, "pixel_values": inputs["pixel_values"].flip(-1)}]
    expected = [logits_of(model, batch) for batch in batches]
    with ThreadPoolExecutor(2) as pool:
        for _ in range(5):
            found = list(pool.map(lambda batch: logits_of(model, batch), batches))
            for ours, wanted in zip(found, expected, strict=True):
                assert torch.equal(ours, wanted)


@pytest.mark.parametrize("settings", [{}, {"policy": "published"}], ids=str)
def test_static_cache_and_compiled_language_model(settings):
    _, model, inputs = switched(sizes=SIZES[:2], **settings)
    how = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
    expected = model.generate(**inputs, **how)
    static = model.generate(**inputs, **how, cache_implementation="static")
    assert torch.equal(static, expected)
    whole = CompileConfig(backend="eager", fullgraph=True, mode=None)
    whole._compile_all_devices = True
    torch._dynamo.reset()
    static = model.generate(**inputs, **how, cache_implementation="static", compile_config=whole)
    assert torch.equal(static, expected)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    compiled = copy.deepcopy(model)
    compiled.model.language_model = torch.compile(compiled.model.language_model, backend="eager")
    assert torch.equal(compiled.generate(**inputs, **how), expected)
    cache = StaticCache(config=model.config.text_config, max_cache_len=64)
    with torch.no_grad():
        ours = model(**inputs, past_key_values=cache).logits
    torch.testing.assert_close(ours, logits_of(model, inputs), **CLOSE)


@pytest.mark.parametrize("settings", [{}, {"policy": "published"}, {"newlines": True}], ids=str)
def test_the_whole_model_compiles(settings):
    _, model, inputs = switched(sizes=SIZES[:2], **settings)
    expected = logits_of(model, inputs)
    ours = logits_of(torch.compile(model, backend="eager"), inputs)
    torch.testing.assert_close(ours, expected, **CLOSE)


@pytest.mark.parametrize("settings", [{}, {"policy": "published"}, {"newlines": True}], ids=str)
def test_labels_give_the_loss_of_the_text(settings):
    _, model, inputs = switched(padding_side="right", **settings)
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    labels = labels.masked_fill(labels == 4, -100)
    output = model(**inputs, labels=labels)
    logits = output.logits[:, :-1]
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(output.loss, expected)
    output.loss.backward()
    tower = model.model.vision_tower
    for weight in (
        tower.embeddings.class_embedding,
        tower.encoder.layers[2].self_attn.v_proj.weight,
        tower.encoder.layers[2].mlp.fc1.weight,
        model.model.multi_modal_projector.linear_1.weight,
    ):
        assert weight.grad.abs().sum() > 0
    if "newlines" in settings:
        assert model.model.image_newline.grad.abs().sum() > 0


def test_labels_on_surplus_placeholders_are_ignored():
    _, model, inputs = switched(padding_side="right", policy="published")
    output = model(**inputs, labels=inputs["input_ids"].clone())
    assert output.loss.isfinite()
    arguments = {**inputs, "labels": inputs["input_ids"].clone()}
    features = model.get_image_features(inputs["pixel_values"], inputs["image_sizes"])
    hide(model, features.surplus, arguments, generating=False)
    ignored = arguments["labels"] == -100
    assert int(ignored.sum()) == int(features.surplus.sum()) > 0
    assert (inputs["input_ids"][ignored] == 4).all()
    assert (arguments["attention_mask"][ignored] == 0).all()


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
