# SPDX-License-Identifier: Apache-2.0
"""SigLIP's tower, without a CLS token: LLaVA-OneVision, Granite Vision's LLaVA-NeXT, LLaVA-1.5.

What is common to all LLaVA models runs through `KINDS` in the other tests.
"""

import copy

import pytest
import torch
from llava_models import SIZES, make, pictures, twin
from llava_oracle import (
    CLOSE,
    PROMPTS,
    layouts_of,
    logits_of,
    logits_with_features,
    names_of,
    partitions_of,
    project,
    select_as_the_reference,
    switched,
    text_of,
    without_surplus,
)

import hired_kernels as hired
from hired_kernels import geometry
from hired_kernels.models import support

SIGLIP = ["llava-siglip", "granite-vision", "llava-onevision"]
MANY = ((4, 3), (1, 2), (2, 1))  # of which the first is more than nine tiles


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    pass


def features_of(stock, inputs, sizes, **settings):
    found = select_as_the_reference(stock, inputs["pixel_values"], sizes, **settings)
    return project(stock, found.tokens, found.rows)


@pytest.mark.parametrize(
    "settings",
    [
        {"policy": "pooled"},
        {"judge": "patches"},
        {"judge": 8},
        {"judge": 1, "policy": "pooled"},
        {"alpha": 0.1, "budget": 40},
        {"budget": 0},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", SIGLIP)
def test_policies_and_judges(kind, settings):
    settings = {"budget": 0.3, **settings}
    stock, model, inputs = switched(kind, **settings)
    expected = logits_with_features(
        stock, features_of(stock, inputs, SIZES[:3], **settings), **text_of(inputs)
    )
    torch.testing.assert_close(logits_of(model, inputs), expected, **CLOSE)
    assert model.hired.why_full is None


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("kind", ["granite-vision", "llava-onevision"])
def test_the_whole_budget_with_newlines_is_the_stock_model(kind, padding_side):
    stock, model, inputs = switched(kind, padding_side=padding_side, budget=1.0, newlines=True)
    processor = make(kind, padding_side=padding_side)[1]
    text = PROMPTS[:3]
    whole = processor(images=pictures(SIZES[:3]), text=text, padding=True, return_tensors="pt")
    assert torch.equal(inputs["input_ids"], whole["input_ids"])
    torch.testing.assert_close(logits_of(model, inputs), logits_of(stock, whole), **CLOSE)


@pytest.mark.parametrize("kind", SIGLIP)
@torch.no_grad()
def test_the_stock_model_reads_the_last_layer_before_the_last_norm(kind):
    """And so do we: what that norm does makes no difference."""
    stock, processor = make(kind)
    inputs = processor(images=pictures(SIZES[:1]), text="<image>", return_tensors="pt")
    expected = logits_of(stock, inputs)
    states = stock.model.vision_tower(
        partitions_of(stock.config, inputs["pixel_values"], SIZES[:1]), output_hidden_states=True
    )
    assert not torch.allclose(states.hidden_states[-1], states.last_hidden_state, atol=0.1)
    for parameter in stock.model.vision_tower.post_layernorm.parameters():
        parameter.normal_()
    assert torch.equal(logits_of(stock, inputs), expected)
    model, processor = hired.apply_hired(twin(stock), processor, budget=0.3)
    inputs = processor(images=pictures(SIZES[:1]), text="<image>", return_tensors="pt")
    before = logits_of(model, inputs)
    for parameter in model.model.vision_tower.post_layernorm.parameters():
        parameter.normal_()
    assert torch.equal(logits_of(model, inputs), before)


def prompts():
    """Prompts of one, two and three pictures, and the sizes of all."""
    images = pictures(SIZES)
    images = [*images, images[0]]
    text = ["what <image>", "<image> is <image> this", "<image> <image> <image>"]
    return [images[:1], images[1:3], images[3:]], text, [*SIZES, SIZES[0]]


@pytest.mark.parametrize("settings", [{}, {"policy": "pooled"}, {"judge": 4}], ids=str)
def test_several_pictures_of_a_prompt_are_one_partition_each(settings):
    settings = {"budget": 0.3, **settings}
    stock, processor = make("llava-onevision")
    images, text, sizes = prompts()
    model, processor = hired.apply_hired(twin(stock), processor, **settings)
    inputs = processor(images=images, text=text, padding=True, return_tensors="pt")
    assert inputs["batch_num_images"].tolist() == [1, 2, 3]
    pixels = inputs["pixel_values"]
    first = features_of(stock, {"pixel_values": pixels[:1]}, sizes[:1], **settings)
    rest = [one_tile(stock, picture[0], settings) for picture in pixels[1:]]
    expected = logits_with_features(stock, first + rest, **text_of(inputs))
    torch.testing.assert_close(logits_of(model, inputs), expected, **CLOSE)
    each = (inputs["input_ids"] == 4).sum(dim=1).tolist()
    assert each[1:] == [2 * int(36 * 0.3), 3 * int(36 * 0.3)]


@torch.no_grad()
def one_tile(stock, pixels, settings):
    """Features of a picture without sub-images: the best of its 36 patches by nine of them."""
    tower = copy.deepcopy(stock.model.vision_tower).double()
    tower.set_attn_implementation("eager")
    attention = tower(pixels[None].double(), output_attentions=True).attentions[-1]
    r = 2 if settings.get("judge") == 4 else 3
    lines = [(2 * i + 1) * 6 // (2 * r) for i in range(r)]
    asked = [y * 6 + x for y in lines for x in lines]
    scores = attention[0][:, asked].mean(dim=1).sum(dim=0)
    kept = scores.topk(10).indices.sort().values
    hidden = stock.model.vision_tower(pixels[None], output_hidden_states=True).hidden_states[-1]
    return stock.model.multi_modal_projector(hidden[0, kept])


def test_newlines_of_several_pictures():
    """The stock model puts one after each of them; kept as it is with the whole budget."""
    stock, processor = make("llava-onevision")
    images, text, _ = prompts()
    given = {"images": images, "text": text, "padding": True, "return_tensors": "pt"}
    whole = processor(**given)
    model, processor = hired.apply_hired(twin(stock), processor, budget=1.0, newlines=True)
    inputs = processor(**given)
    assert torch.equal(inputs["input_ids"], whole["input_ids"])
    torch.testing.assert_close(logits_of(model, inputs), logits_of(stock, whole), **CLOSE)
    hired.apply_hired(model, processor, budget=7, newlines=True)
    inputs = processor(**given)
    assert (inputs["input_ids"][1:] == 4).sum(dim=1).tolist() == [16, 24]
    assert logits_of(model, inputs).isfinite().all()
    hired.apply_hired(model, processor, budget=0, newlines=True)
    inputs = processor(**given)
    assert not (inputs["input_ids"] == 4).any()
    assert logits_of(model, inputs).isfinite().all()


def test_maps_that_the_stock_model_shrinks():
    """A share counts the patches of the map as it is, without newlines: all of them at most."""
    stock, processor = make("llava-onevision", pinpoints=MANY)
    size, given = (360, 260), {"text": "<image>", "return_tensors": "pt"}
    (layout,) = layouts_of(stock.config, [size])
    assert layout.grid == (4, 3)
    whole = processor(images=pictures([size]), **given)
    stock_count = int((whole["input_ids"] == 4).sum())
    assert stock_count < layout.valid
    model, processor = hired.apply_hired(twin(stock), processor, budget=1.0)
    inputs = processor(images=pictures([size]), **given)
    assert int((inputs["input_ids"] == 4).sum()) == layout.valid
    features = features_of(stock, inputs, [size], budget=1.0)
    expected = logits_with_features(stock, features, **text_of(inputs))
    torch.testing.assert_close(logits_of(model, inputs), expected, **CLOSE)
    hired.apply_hired(model, processor, budget=0.2)
    inputs = processor(images=pictures([size]), **given)
    assert int((inputs["input_ids"] == 4).sum()) == layout.budget(0.2)


@torch.no_grad()
def test_videos_stay_as_they_are():
    stock, processor = make("llava-onevision")
    model, processor = hired.apply_hired(twin(stock), processor, budget=0.3)
    generator = torch.Generator().manual_seed(0)
    frames = torch.randn(1, 2, 3, 90, 90, generator=generator)
    ids = torch.tensor([[6, *[5] * (2 * 9 + 1), 7]])
    expected = stock(input_ids=ids, pixel_values_videos=frames).logits
    assert torch.equal(model(input_ids=ids, pixel_values_videos=frames).logits, expected)
    inputs = processor(images=pictures(SIZES[:1]), text="<image> what", return_tensors="pt")
    both = torch.cat((inputs["input_ids"], ids), dim=1)
    pixels = {name: inputs[name] for name in ("pixel_values", "image_sizes", "batch_num_images")}
    ours = model(input_ids=both, pixel_values_videos=frames, **pixels).logits
    embeds = stock.get_input_embeddings()(both)
    picture = torch.cat(features_of(stock, inputs, SIZES[:1], budget=0.3))
    film = stock.model.get_video_features(frames, return_dict=True).pooler_output.flatten(0, 1)
    if len(film) == 2 * 9:  # older versions of transformers add the newline in `forward`
        film = torch.cat((film, stock.model.image_newline[None]))
    for token, features in ((4, picture), (5, film)):
        mask = (both == token)[..., None].expand_as(embeds)
        embeds = embeds.masked_scatter(mask, features)
    torch.testing.assert_close(ours, stock(inputs_embeds=embeds).logits, **CLOSE)


@pytest.mark.parametrize("settings", [{}, {"newlines": True}, {"policy": "pooled"}], ids=str)
@pytest.mark.parametrize("beams", [1, 2])
@torch.no_grad()
def test_generate(settings, beams):
    stock, model, inputs = switched("llava-onevision", sizes=SIZES[:2], budget=0.3, **settings)
    how = {"max_new_tokens": 6, "num_beams": beams, "do_sample": False, "eos_token_id": None}
    ours = model.generate(**inputs, **how)[:, inputs["input_ids"].shape[1] :]
    arguments = [inputs["pixel_values"], inputs["image_sizes"]]
    output = model.get_image_features(*arguments, batch_num_images=inputs["batch_num_images"])
    features = list(output.pooler_output)
    if output.surplus is not None:
        surplus = output.surplus.split([len(one) for one in features])
        features = [one[~empty] for one, empty in zip(features, surplus, strict=True)]
    shorter, _ = without_surplus(inputs, features, "left")
    embeds = stock.get_input_embeddings()(shorter["input_ids"])
    mask = (shorter["input_ids"] == 4)[..., None].expand_as(embeds)
    embeds = embeds.masked_scatter(mask, torch.cat(features))
    theirs = stock.generate(inputs_embeds=embeds, attention_mask=shorter["attention_mask"], **how)
    assert ours.tolist() == theirs.tolist()


@pytest.mark.parametrize("kind", SIGLIP)
@torch.no_grad()
def test_the_whole_tower_where_it_has_to_run(kind):
    _, model, inputs = switched(kind, budget=0.3)
    names = names_of(model.get_image_features)
    given = {name: value for name, value in inputs.items() if name in names}
    early, seen = model.get_image_features(**given), []
    layer = model.model.vision_tower.encoder.layers[2 if kind == "llava-siglip" else 3]
    handle = layer.register_forward_hook(lambda *call: seen.append(call[2].shape[1:]))
    whole = model.get_image_features(**given)
    assert "a hook" in model.hired.why_full
    assert seen == [(36, 32)]
    handle.remove()
    forward = layer.self_attn.forward
    layer.self_attn.forward = lambda *args, **kwargs: forward(*args, **kwargs)
    replaced = model.get_image_features(**given)
    assert "was replaced" in model.hired.why_full
    for other in (whole, replaced):
        assert torch.equal(other.indices, early.indices)
        for ours, theirs in zip(early.pooler_output, other.pooler_output, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager", "flex_attention"])
@torch.no_grad()
def test_the_tower_alone(attention):
    """`HiredTower` of 27 x 27 patches, as SigLIP has them, and as one graph."""
    stock, _ = make("llava-onevision", tile=384)
    stock.config.vision_config.image_size = 384
    sizes, pinpoints = [(384, 768)], stock.config.image_grid_pinpoints
    pixels = torch.randn(3, 3, 384, 384, generator=torch.Generator().manual_seed(0))
    # Before transformers has hung its own hooks into it, which no graph can have.
    tower = copy.deepcopy(stock.model.vision_tower)
    expected = select_as_the_reference(stock, pixels, sizes, budget=0.1)
    tower.set_attn_implementation(attention)
    tower = hired.HiredTower(tower, -1, pinpoints, budget=0.1)
    assert tower.rows(sizes) == expected.rows == [218]
    compiled = torch.compile(tower, backend="eager", fullgraph=True)
    for call in (tower, compiled) if attention == "sdpa" else (tower,):
        kept = call(pixels, sizes)
        assert kept.indices.tolist() == expected.indices.tolist()
        torch.testing.assert_close(kept.tokens, expected.tokens, rtol=1e-5, atol=1e-5)


def test_counts_from_sizes_are_the_stock_processors():
    """Of thousands of sizes with OneVision's own pinpoints, T = 729."""
    stock, processor = make("llava-onevision", tile=384, pinpoints=((1, 1),))
    pinpoints = type(processor.image_processor).image_grid_pinpoints
    stock.config.image_grid_pinpoints = processor.image_processor.image_grid_pinpoints = pinpoints
    generator = torch.Generator().manual_seed(0)
    sizes = torch.rand(1500, 2, generator=generator).mul(8).exp().ceil().int().tolist()
    before = processor._get_num_multimodal_tokens(sizes)["num_image_tokens"]
    model, processor = hired.apply_hired(stock, processor, budget=0.2)
    after = processor._get_num_multimodal_tokens(sizes)["num_image_tokens"]
    tower = hired.HiredTower(model.model.vision_tower, -1, pinpoints, budget=0.2)
    assert tower.rows(sizes) == after
    shrunk = 0
    for size, theirs, ours in zip(sizes, before, after, strict=True):
        layout = geometry.layout(*size, pinpoints=pinpoints, tile=384, patch=14)
        top, bottom, left, right = layout.crop
        assert ours == layout.budget(0.2)
        if (bottom - top) * (right - left) / (9 * 729) > 1.1**2:
            assert theirs < layout.valid
            shrunk += 1
        else:
            assert theirs == layout.valid + bottom - top
    assert 10 < shrunk < 1490


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@torch.no_grad()
def test_half_precision(dtype):
    """The tokens that were kept, within 4 epsilons of the largest feature of the whole tower."""
    stock, model, inputs = switched("granite-vision", budget=0.3)
    stock, model = stock.to(dtype), model.to(dtype)
    pixels = inputs["pixel_values"].to(dtype)
    kept = model.get_image_features(pixels, inputs["image_sizes"])
    parts = partitions_of(stock.config, pixels, SIZES[:3])
    states = stock.model.vision_tower(parts, output_hidden_states=True).hidden_states
    features = torch.cat([states[layer] for layer in (1, 3, -1)], dim=-1).flatten(0, 1)
    bound = 4 * torch.finfo(dtype).eps * features.abs().max()
    assert (kept.last_hidden_state - features[kept.indices]).abs().max() <= bound


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"policy": "published"}, "policy: expected exact or pooled for SigLIP, which has no CLS"),
        ({"judge": "cls"}, "judge: expected auto, patches .*SigLIP has no CLS token"),
        ({"judge": 37}, "judge: expected at most the 36 patches"),
        ({"video_budget": 3}, "video_budget: expected None for llava_onevision"),
    ],
    ids=str,
)
def test_bad_settings(settings, said):
    with pytest.raises(ValueError, match=f"hired: {said}"):
        hired.apply_hired(*make("llava-onevision"), **settings)


def test_models_and_processors_that_do_not_fit():
    model, processor = make("llava-onevision", vision_feature_select_strategy="default")
    with pytest.raises(ValueError, match="select_strategy: expected full for SigLIP"):
        hired.apply_hired(model, processor)
    model, processor = make("llava-onevision")
    processor.num_image_tokens = 49
    with pytest.raises(ValueError, match="processor: expected num_image_tokens 36"):
        hired.apply_hired(model, processor)
    model, processor = hired.apply_hired(*make("llava-onevision"), budget=0.3)
    inputs = processor(
        images=pictures(SIZES[:2]), text=["<image>"] * 2, return_tensors="pt", padding=True
    )
    with pytest.raises(ValueError, match="batch_num_images: expected 2 pictures by image_sizes"):
        model(**{**inputs, "batch_num_images": torch.tensor([1])})


@pytest.mark.parametrize(
    ("kind", "picture"),
    [
        ("llava-siglip", "one partition, 36 tokens"),
        ("granite-vision", "the full image and 2 to 4 sub-images, 36 tokens each"),
        ("llava-onevision", "the full image and 2 to 4 sub-images, 36 tokens each"),
    ],
)
def test_info_says_who_judges(kind, picture):
    said = dict(support.describe(make(kind)[0].config))
    assert said["a picture"] == picture
    assert said["judge"] == "9 of the 36 patches of a partition, on a lattice"
    assert ("videos" in said) == (kind == "llava-onevision")
