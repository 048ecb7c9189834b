# SPDX-License-Identifier: Apache-2.0
"""InternVL: its tower with the selection inside, counts from sizes, and what may be asked for."""

import copy
import pickle

import pytest
import torch
from internvl_models import IMAGE, SIZES, make
from internvl_oracle import PROMPTS, features_of, select_as_the_reference, switched
from llava_models import pictures
from llava_oracle import CLOSE, logits_of, logits_with_features, names_of, text_of
from transformers import StaticCache
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import (
    GotOcr2ImageProcessorPil,
    get_optimal_tiled_canvas,
)

import hired_kernels as hired
from hired_kernels import geometry
from hired_kernels.models import support

THREE = SIZES[:3]


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    pass


def test_the_tower_stops_early_and_computes_what_is_kept():
    _, model, inputs = switched(sizes=SIZES[:1], budget=0.25, options={"vision_feature_layer": -2})
    tower, rows = model.model.vision_tower, []
    layers = tower.encoder.layer

    def note(module, name):
        forward = module.forward

        def noting(tensor):
            rows.append((name, tensor.numel() // tensor.shape[-1]))
            return forward(tensor)

        module.forward = noting

    for number in (2, 3):
        for name in ("q_proj", "k_proj"):
            note(getattr(layers[number].attention, name), f"{name} {number}")
        note(layers[number].mlp, f"mlp {number}")
    model(**inputs)
    P, N, K = 5, 37, 11
    # The judges' queries, 3 x 3 of each partition, all keys, and four patches a kept token.
    assert rows == [("q_proj 2", P * 9), ("k_proj 2", P * N), ("q_proj 2", 4 * K), ("mlp 2", 4 * K)]


@pytest.mark.parametrize("why", ["a hook", "replaced", "asked"])
@torch.no_grad()
def test_the_whole_tower_where_it_has_to_run(why):
    stock, model, inputs = switched("2-26b", sizes=THREE, budget=0.3)
    layer, seen = model.model.vision_tower.encoder.layer[3], []
    if why == "a hook":
        layer.register_forward_hook(lambda *call: seen.append(call[2].shape))
    elif why == "replaced":
        forward = layer.attention.forward
        layer.attention.forward = lambda *args, **kwargs: forward(*args, **kwargs)
    given = inputs["pixel_values"], {"hired_tiles": inputs["hired_tiles"]}
    early = switched("2-26b", sizes=THREE, budget=0.3)[1].get_image_features(given[0], **given[1])
    asked = {"output_hidden_states": True} if why == "asked" else {}
    whole = model.get_image_features(given[0], **given[1], **asked)
    assert model.hired.why_full is not None
    assert torch.equal(whole.indices, early.indices)
    for ours, theirs in zip(early.pooler_output, whole.pooler_output, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert why != "a hook" or seen == [(13, 37, 32)]
    assert why != "asked" or len(whole.hidden_states) == 5
    expected = logits_with_features(
        stock, features_of(stock, inputs, budget=0.3), **text_of(inputs)
    )
    torch.testing.assert_close(logits_of(model, inputs), expected, **CLOSE)


@pytest.mark.parametrize("attention", ["sdpa", "eager", "flex_attention"])
def test_implementations_of_attention(attention):
    stock, model, inputs = switched("3", sizes=THREE[:2], budget=0.3)
    model.model.vision_tower.set_attn_implementation(attention)
    expected = logits_with_features(
        stock, features_of(stock, inputs, budget=0.3), **text_of(inputs)
    )
    torch.testing.assert_close(logits_of(model, inputs), expected, **CLOSE)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@torch.no_grad()
def test_half_precision(dtype):
    """The tokens that were kept, within 4 epsilons of the largest feature of the whole tower."""
    stock, model, inputs = switched("2-26b", sizes=THREE, budget=0.3)
    stock, model = stock.to(dtype), model.to(dtype)
    pixels = inputs["pixel_values"].to(dtype)
    kept = model.get_image_features(pixels, hired_tiles=inputs["hired_tiles"])
    parts = torch.arange(13).split([5, 4, 4])
    order = torch.cat([torch.cat((part[-1:], part[:-1])) for part in parts])
    hidden = stock.model.vision_tower(pixels[order]).last_hidden_state[:, 1:]
    features = stock.model.pixel_shuffle(hidden.unflatten(1, (6, 6)), 0.5).flatten(0, 2)
    bound = 4 * torch.finfo(dtype).eps * features.abs().max()
    assert (kept.last_hidden_state - features[kept.indices]).abs().max() <= bound


def test_gradients_reach_the_tower():
    """As those of the stock model fed with the same tokens, chosen before."""
    stock, model, inputs = switched("2-26b", sizes=THREE[:2], budget=0.3)
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    ours = {name: weight.grad for name, weight in model.named_parameters()}
    parts = torch.arange(9).split([5, 4])
    order = torch.cat([torch.cat((part[-1:], part[:-1])) for part in parts])
    kept = model.get_image_features(inputs["pixel_values"], hired_tiles=inputs["hired_tiles"])
    hidden = stock.model.vision_tower(inputs["pixel_values"][order]).last_hidden_state[:, 1:]
    features = stock.model.pixel_shuffle(hidden.unflatten(1, (6, 6)), 0.5).flatten(0, 2)
    features = stock.model.multi_modal_projector(features[kept.indices])
    embeds = stock.get_input_embeddings()(inputs["input_ids"])
    mask = (inputs["input_ids"] == IMAGE)[..., None].expand_as(embeds)
    text = {"attention_mask": inputs["attention_mask"], "labels": inputs["input_ids"]}
    stock(inputs_embeds=embeds.masked_scatter(mask, features), **text).loss.backward()
    seen = 0
    for name, weight in stock.named_parameters():
        if weight.grad is not None and "vision_tower" in name:
            torch.testing.assert_close(ours[name], weight.grad, rtol=1e-3, atol=1e-5)
            seen += 1
    assert seen > 40


@torch.no_grad()
def test_copies_pickles_saving_and_off(tmp_path):
    stock, model, inputs = switched(sizes=THREE, budget=0.3)
    processor = hired.apply_hired(model, make()[1], budget=0.3)[1]
    expected = logits_of(model, inputs)
    assert torch.equal(logits_of(copy.deepcopy(model), inputs), expected)
    again = pickle.loads(pickle.dumps(model))
    assert torch.equal(logits_of(again, inputs), expected)
    given = {
        "images": pictures(THREE),
        "text": PROMPTS[:3],
        "padding": True,
        "return_tensors": "pt",
    }
    theirs = copy.deepcopy(processor)(**given)
    assert torch.equal(theirs["hired_tiles"], inputs["hired_tiles"])
    model.save_pretrained(tmp_path)
    loaded = type(stock).from_pretrained(tmp_path).eval()
    processor.image_processor.save_pretrained(tmp_path)
    assert "hired" not in (tmp_path / "preprocessor_config.json").read_text()
    hired.remove_hired(model, processor)
    assert type(processor.image_processor) is GotOcr2ImageProcessorPil
    assert type(model) is type(stock)
    assert all("hired" not in repr(vars(type(part))) for part in model.modules())
    whole = processor(**given)
    assert "hired_tiles" not in whole
    assert torch.equal(logits_of(model, whole), logits_of(loaded, whole))


@torch.no_grad()
def test_compiled_and_static():
    _, model, inputs = switched(sizes=THREE[:2], budget=0.3)
    expected = logits_of(model, inputs)
    more = {"max_new_tokens": 4, "do_sample": False, "min_new_tokens": 4}
    said = model.generate(**inputs, **more)
    static = StaticCache(config=model.config.get_text_config(), max_cache_len=64)
    name = "cache" if "cache" in names_of(model.forward) else "past_key_values"
    assert torch.equal(model.generate(**inputs, **more, **{name: static}), said)
    compiled = torch.compile(model, backend="eager")
    torch.testing.assert_close(compiled(**inputs).logits, expected, **CLOSE)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"policy": "published"}, "policy: expected exact or pooled for internvl"),
        ({"newlines": True}, "newlines: expected False for internvl"),
        ({"judge": "all"}, "judge: expected auto, cls, patches or a number of patches, got 'all'"),
        ({"judge": 0}, "judge: expected auto"),
        ({"judge": True}, "judge: expected auto"),
        ({"judge": 37}, "judge: expected at most the 36 patches of a partition, got 37"),
        ({"video_budget": 2.0}, "video_budget: expected a float in"),
    ],
    ids=str,
)
def test_bad_settings(settings, said):
    model, processor = make()
    with pytest.raises(ValueError, match=f"hired: {said}"):
        hired.apply_hired(model, processor, **settings)
    assert not hasattr(model, "hired")


def test_models_and_processors_that_are_not_served():
    model, processor = make()
    processor.image_seq_length = 256
    with pytest.raises(ValueError, match="processor: expected image_seq_length 9"):
        hired.apply_hired(model, processor)
    processor = make(tile=112)[1]
    processor.image_seq_length = 9
    with pytest.raises(ValueError, match="processor: expected size 84"):
        hired.apply_hired(model, processor)
    model, processor = make()
    model.config.model_type = "internvl_chat"
    with pytest.raises(ValueError, match="got internvl_chat: InternVL's own format"):
        hired.apply_hired(model, processor)
    for changes, said in [
        ({"vision_feature_layer": [-1, -2]}, "vision_feature_layer: expected one layer"),
        ({"vision_feature_select_strategy": "full"}, "select_strategy: expected default"),
        ({"downsample_ratio": 0.4}, "downsample_ratio: expected 1 / g"),
        ({"vision_feature_layer": 0}, "vision_feature_layer: expected the output of one of 4"),
    ]:
        model, processor = make()
        for name, value in changes.items():
            setattr(model.config, name, value)
        with pytest.raises(ValueError, match=said):
            hired.apply_hired(model, processor)


def test_counts_from_sizes_are_the_stock_processors():
    """K, of thousands of sizes, from `geometry` and from the switched processor."""
    _, processor = make(tiles=(1, 12), tile=448)
    images, generator = processor.image_processor, torch.Generator().manual_seed(0)
    drawn = torch.rand(2500, 2, generator=generator).mul(8).exp().ceil().int().tolist()
    sizes = [
        (h, w) for h in (1, 224, 448, 449, 896, 1344) for w in (1, 447, 448, 672, 1792)
    ] + drawn
    for tiles in ((1, 12), (1, 6), (2, 4), (1, 1)):
        images.min_patches, images.max_patches = tiles
        for height, width in sizes:
            layout = geometry.tiled_layout(height, width, tiles=tiles)
            crop = {"crop_to_patches": True}
            assert layout.partitions == images.get_number_of_image_patches(height, width, crop)
            canvas = get_optimal_tiled_canvas((height, width), (448, 448), *tiles)
            R, C = layout.grid
            assert canvas == (max(1, C), max(1, R)) or tiles == (1, 1)
    images.min_patches, images.max_patches = 1, 12
    stock = processor._get_num_multimodal_tokens(sizes)
    model, processor = hired.apply_hired(make(tile=448)[0], processor, budget=0.2)
    counted = processor._get_num_multimodal_tokens(sizes)
    for size, before, after in zip(
        sizes, stock["num_image_tokens"], counted["num_image_tokens"], strict=True
    ):
        layout = geometry.tiled_layout(*size)
        assert before == 2 + layout.valid
        assert after == 2 + layout.budget(0.2)
    tower = hired.HiredTower(model.model.vision_tower, -1, tiles=(1, 12), merge=2, budget=0.2)
    assert tower.rows(sizes) == [count - 2 for count in counted["num_image_tokens"]]


@pytest.mark.parametrize("settings", [{}, {"policy": "pooled"}, {"judge": "cls"}], ids=str)
@torch.no_grad()
def test_the_tower_alone(settings):
    """`HiredTower` of pictures as the processor makes them, and as one graph."""
    stock, model, inputs = switched("normed", sizes=THREE, budget=0.3, **settings)
    grids = inputs["hired_tiles"][:, :2].tolist()
    pixels, expected = (
        inputs["pixel_values"],
        select_as_the_reference(
            stock, inputs["pixel_values"], [tuple(grid) for grid in grids], budget=0.3, **settings
        ),
    )
    tower = hired.HiredTower(
        model.model.vision_tower, -1, tiles=(1, 6), merge=2, budget=0.3, **settings
    )
    compiled = torch.compile(tower, backend="eager", fullgraph=True)
    for call in (tower, compiled):
        kept = call(pixels, THREE)
        assert kept.indices.tolist() == expected.indices.tolist()
        torch.testing.assert_close(kept.tokens, expected.tokens, rtol=1e-5, atol=1e-5)
    with pytest.raises(
        ValueError, match="merge: expected a divisor of the side of 6 patches, got 4"
    ):
        hired.HiredTower(stock.model.vision_tower, -1, merge=4)
    with pytest.raises(ValueError, match="tiles: expected None beside pinpoints"):
        hired.HiredTower(stock.model.vision_tower, -1, [(84, 168)], tiles=(1, 6))
    with pytest.raises(ValueError, match=r"tiles: expected 2 integer\(s\)"):
        hired.HiredTower(stock.model.vision_tower, -1, tiles=(0, 6))


def test_info_says_what_becomes_of_a_picture():
    config = make("2-26b")[0].config
    said = dict(support.describe(config))
    assert said["HiRED"] == "serves it as InternVL"
    assert said["a picture"] == (
        "1 to 12 tiles, and the full image if there is more than one; 9 tokens each"
    )
    assert said["judge"] == "9 of the 36 patches of a partition, on a lattice"
    assert said["early exit"] == "inside layer 3 of 4, counted from 0"
    config.vision_config.image_size = [84, 112]
    assert "image_size: expected a square, got [84, 112]" in dict(support.describe(config))["HiRED"]
