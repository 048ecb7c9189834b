# SPDX-License-Identifier: Apache-2.0
"""InternVL: tiles and a thumbnail behind them, merged tokens, judges on a lattice, videos.

A switched model says what the stock model says when it is fed with the selected features
(`internvl_oracle`).
"""

import pytest
import torch
from internvl_models import IMAGE, KINDS, SIZES, make, video
from internvl_oracle import PROMPTS, features_of, switched, tiles_of
from llava_models import pictures, twin
from llava_oracle import CLOSE, logits_of, logits_with_features, names_of, text_of

import hired_kernels as hired

THREE = SIZES[:3]


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    pass


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_the_stock_models_with_the_selected_features(kind, padding_side):
    settings = {"budget": 0.3, "alpha": 0.4}
    stock, model, inputs = switched(kind, sizes=SIZES[:4], padding_side=padding_side, **settings)
    assert [list(each) for each in tiles_of(SIZES[:4])] == inputs["hired_tiles"][:, :2].tolist()
    assert tiles_of(SIZES[:4]) == [(2, 2), (1, 3), (3, 1), (0, 0)]
    features = features_of(stock, inputs, **settings)
    expected = logits_with_features(stock, features, **text_of(inputs))
    torch.testing.assert_close(logits_of(model, inputs), expected, **CLOSE)
    assert model.hired.why_full is None


@pytest.mark.parametrize(
    "settings",
    [
        {"policy": "pooled"},
        {"judge": "cls"},
        {"judge": "patches"},
        {"judge": 4, "policy": "pooled"},
        {"judge": 17},
        {"judge": "patches", "policy": "pooled", "budget": 31},
        {"budget": 0},
        {"budget": 1},
        {"alpha": 1.0},
    ],
    ids=str,
)
@pytest.mark.parametrize("layer", [-1, -2, 4])
def test_options_and_feature_layers(settings, layer):
    settings = {"budget": 0.25, **settings}
    options = {"vision_feature_layer": layer}
    stock, model, inputs = switched("normed", sizes=THREE, options=options, **settings)
    expected = logits_with_features(
        stock, features_of(stock, inputs, **settings), **text_of(inputs)
    )
    torch.testing.assert_close(logits_of(model, inputs), expected, **CLOSE)


@pytest.mark.parametrize(("ratio", "tokens"), [(1.0, 64), (0.25, 4)])
def test_other_sizes_of_a_token(ratio, tokens):
    options = {"tile": 112, "downsample_ratio": ratio, "image_seq_length": tokens}
    stock, processor = make(**options)
    processor.image_seq_length = tokens
    model, processor = hired.apply_hired(twin(stock), processor, budget=0.3)
    inputs = processor(images=pictures(THREE), text=PROMPTS[:3], padding=True, return_tensors="pt")
    expected = logits_with_features(
        stock, features_of(stock, inputs, budget=0.3), **text_of(inputs)
    )
    torch.testing.assert_close(logits_of(model, inputs), expected, **CLOSE)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layer", [-1, -2])
def test_the_whole_budget_is_the_stock_model(kind, layer):
    options = {"vision_feature_layer": layer}
    stock, model, inputs = switched(
        kind, sizes=SIZES, text=_one_each(SIZES), budget=1.0, options=options
    )
    processor = make(kind)[1]
    theirs = processor(
        images=pictures(SIZES), text=_one_each(SIZES), padding=True, return_tensors="pt"
    )
    assert torch.equal(inputs["input_ids"], theirs["input_ids"])
    assert torch.equal(inputs["pixel_values"], theirs["pixel_values"])
    torch.testing.assert_close(logits_of(model, inputs), logits_of(stock, theirs), **CLOSE)


def _one_each(sizes):
    return ["what <IMG_CONTEXT> is"] * len(sizes)


@pytest.mark.parametrize(
    "text",
    [
        ["<IMG_CONTEXT> what <IMG_CONTEXT>", "this <IMG_CONTEXT> is"],
        ["what", "<IMG_CONTEXT> <IMG_CONTEXT> is <IMG_CONTEXT>", "this"],
    ],
    ids=["two and one", "none, three, none"],
)
def test_several_pictures_a_prompt(text):
    stock, model, inputs = switched(sizes=THREE, text=text, budget=0.3)
    expected = logits_with_features(
        stock, features_of(stock, inputs, budget=0.3), **text_of(inputs)
    )
    torch.testing.assert_close(logits_of(model, inputs), expected, **CLOSE)


@pytest.mark.parametrize("beams", [1, 2])
@torch.no_grad()
def test_generate(beams):
    stock, model, inputs = switched(sizes=THREE[:2], budget=0.3)
    if "mm_encoder_outputs" not in names_of(model.forward) and beams > 1:
        pytest.skip("this transformers repeats tiles for beams, not pictures")
    more = {"max_new_tokens": 6, "num_beams": beams, "do_sample": False, "min_new_tokens": 6}
    ours = model.generate(**inputs, **more)
    embeds = stock.get_input_embeddings()(inputs["input_ids"])
    features = torch.cat(features_of(stock, inputs, budget=0.3))
    mask = (inputs["input_ids"] == IMAGE)[..., None].expand_as(embeds)
    theirs = stock.generate(
        inputs_embeds=embeds.masked_scatter(mask, features),
        attention_mask=inputs["attention_mask"],
        **more,
    )
    assert ours[:, inputs["input_ids"].shape[1] :].tolist() == theirs.tolist()


@torch.no_grad()
def test_another_picture_in_the_next_turn():
    """A cache that holds a picture, and a turn with another: as all of it at once."""
    _, model, inputs = switched(sizes=SIZES[:2], text=_chat(), budget=0.3)
    expected = model(**inputs).logits
    first = int((inputs["input_ids"][0] == 9).nonzero()[0]) + 1  # "is", between the two
    tiles, pixels = inputs["hired_tiles"], inputs["pixel_values"]
    P = 1 + int(tiles[0, 0] * tiles[0, 1])
    ids = inputs["input_ids"]
    one = model(ids[:, :first], pixel_values=pixels[:P], hired_tiles=tiles[:1], use_cache=True)
    cache = one["cache"] if "cache" in one else one["past_key_values"]
    name = "cache" if "cache" in one else "past_key_values"
    two = model(ids[:, first:], pixel_values=pixels[P:], hired_tiles=tiles[1:], **{name: cache})
    both = torch.cat((one.logits, two.logits), dim=1)
    torch.testing.assert_close(both, expected, **CLOSE)


def _chat():
    return ["what <IMG_CONTEXT> is <IMG_CONTEXT> this"]


@pytest.mark.parametrize("video_budget", [None, 0.4, 2])
@torch.no_grad()
def test_videos(video_budget):
    """Frames stay as they are, or are pictures of one partition with a budget of their own."""
    stock, processor = make()
    text = ["what <IMG_CONTEXT> is <video> this", "<video> is", "this"]
    given = {"images": pictures(SIZES[:1]), "videos": [video(2), video(2, 1)], "text": text}
    whole = processor(**given, padding=True, return_tensors="pt")
    model, processor = hired.apply_hired(twin(stock), processor, 0.3, video_budget=video_budget)
    inputs = processor(**given, padding=True, return_tensors="pt")
    assert inputs["hired_tiles"].tolist() == [[2, 2, 0], *[[0, 0, 1]] * 4]
    assert torch.equal(inputs["pixel_values"], whole["pixel_values"])
    picture = features_of(
        stock,
        {
            **inputs,
            "hired_tiles": inputs["hired_tiles"][:1],
            "pixel_values": inputs["pixel_values"][:5],
        },
        budget=0.3,
    )
    frames = {"pixel_values": inputs["pixel_values"][5:], "hired_tiles": inputs["hired_tiles"][1:]}
    if video_budget is None:
        films = list(
            stock.get_image_features(frames["pixel_values"], return_dict=True).pooler_output
        )
    else:
        films = features_of(stock, frames, budget=video_budget)
    expected = logits_with_features(stock, picture + films, **text_of(inputs))
    torch.testing.assert_close(logits_of(model, inputs), expected, **CLOSE)
    only = processor(videos=[video(3)], text="<video> what", return_tensors="pt")
    assert logits_of(model, only).isfinite().all()
    if video_budget is None:
        assert torch.equal(logits_of(model, only), logits_of(stock, _without_tiles(only)))


def _without_tiles(inputs):
    return {name: value for name, value in inputs.items() if name != "hired_tiles"}


def test_pictures_without_their_tiles_are_refused():
    _, model, inputs = switched(sizes=THREE, budget=0.3)
    said = r"hired: hired_tiles: .*apply_hired\(model, processor, budget=0.3\)"
    for call in (model, model.generate, model.model):
        with pytest.raises(ValueError, match=said):
            call(**_without_tiles(inputs))
    with pytest.raises(ValueError, match=said):
        model.get_image_features(inputs["pixel_values"])
    for bad in ([[2, 2]], [[0, 2, 0]], [[1, 1, 2]], [[2, 2, 1]], 5, [[-1, -1, 0]]):
        with pytest.raises(
            ValueError, match=r"hired: hired_tiles: expected \(R, C, 1 for a frame\)"
        ):
            model(**{**inputs, "hired_tiles": bad})
    with pytest.raises(
        ValueError, match=r"pixel_values: expected 5 partitions by hired_tiles, got 13"
    ):
        model(**{**inputs, "hired_tiles": [[2, 2, 0]]})
    with pytest.raises(
        ValueError, match=r"hired: input_ids: expected 33 image placeholders .* got"
    ):
        model(**{**inputs, "input_ids": inputs["input_ids"][:, 3:]})


def test_tiles_that_lie_otherwise_are_another_picture():
    """Six tiles may be 2 x 3 or 3 x 2: the same pixels, and the same number of tokens."""
    _, model, inputs = switched(sizes=[(168, 252)], budget=0.3)
    assert inputs["hired_tiles"].tolist() == [[2, 3, 0]]
    turned = {**inputs, "hired_tiles": torch.tensor([[3, 2, 0]])}
    given = inputs["pixel_values"]
    ours = model.get_image_features(given, hired_tiles=inputs["hired_tiles"])
    other = model.get_image_features(given, hired_tiles=turned["hired_tiles"])
    assert len(ours.indices) == len(other.indices)
    assert ours.counts.tolist() != other.counts.tolist()


@torch.no_grad()
def test_batches_that_are_put_together_by_hand():
    _, model, _ = switched(sizes=THREE, budget=0.3)
    processor = hired.apply_hired(model, make()[1], budget=0.3)[1]
    each = [
        processor(images=[image], text="what <IMG_CONTEXT>", return_tensors="pt")
        for image in pictures([SIZES[1], SIZES[2]])
    ]
    assert each[0]["input_ids"].shape == each[1]["input_ids"].shape
    both = {name: torch.cat([one[name] for one in each]) for name in each[0]}
    expected = torch.cat([logits_of(model, one) for one in each])
    torch.testing.assert_close(logits_of(model, both), expected, **CLOSE)
