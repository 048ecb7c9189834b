# SPDX-License-Identifier: Apache-2.0
"""`positions="original"`: every token where it stands in the stock prompt (`stock_prompts`).

The stock model is fed with the kept features at these positions, in forward passes, while
generating in all modes, from caches and in chat turns.
"""

import pytest
import torch
from llava_models import SIZES, make, pictures
from llava_oracle import CLOSE, layouts_of, logits_of, names_of
from stock_prompts import case
from transformers import CompileConfig, StaticCache

import hired_kernels as hired
from hired_kernels.models.accounting import Anatomy, Settings, plan
from hired_kernels.models.stock_order import stock_lengths, stock_places

KINDS = ["llava", "llava-next-llama", "granite-vision", "llava-onevision", "internvl"]
TEXT = ["what <image> this", "<image>", "is <image> shown what is this"]
THREE = SIZES[:3]


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    pass


@torch.no_grad()
def stock_logits(stock, row, *more):
    """Of a stock model fed with a prompt, and with further tokens after it."""
    embeds, positions = row.embeds, row.positions
    if more:
        ids = torch.cat([torch.as_tensor(each) for each in more])
        embeds = torch.cat((embeds, stock.get_input_embeddings()(ids)))
        positions = torch.cat((positions, row.length + torch.arange(len(ids))))
    mask = torch.ones(1, len(embeds), dtype=torch.int64)
    inputs = {"inputs_embeds": embeds[None], "position_ids": positions[None]}
    return stock(**inputs, attention_mask=mask).logits[0]


@torch.no_grad()
def greedy(stock, row, count):
    """The tokens that the stock model goes on with, all of it computed anew for each."""
    said = []
    for _ in range(count):
        said.append(
            int(stock_logits(stock, row, said)[-1].argmax())
            if said
            else int(stock_logits(stock, row)[-1].argmax())
        )
    return said


def check(found, logits):
    for row, ours in zip(found.rows, logits, strict=True):
        expected = stock_logits(found.stock, row)
        torch.testing.assert_close(ours[row.seen], expected, **CLOSE)


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("settings", [{}, {"policy": "pooled"}, {"newlines": True}], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_the_stock_models_at_these_positions(kind, settings, padding_side):
    if settings.get("newlines") and kind in ("llava", "internvl"):
        pytest.skip("has no newlines")
    found = case(kind, sizes=THREE, text=TEXT, padding_side=padding_side, budget=0.3, **settings)
    logits = logits_of(found.model, found.inputs)
    check(found, logits)
    hired.apply_hired(found.model, None, budget=0.3, **settings)
    kept = logits_of(found.model, found.inputs)
    assert not torch.allclose(kept[0, -1], logits[0, -1], atol=1e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_several_pictures_and_none(kind):
    text = ["what", "<image> <image> is <image>", "this"]
    found = case(kind, sizes=THREE, text=text, budget=0.3)
    check(found, logits_of(found.model, found.inputs))


@pytest.mark.parametrize("kind", KINDS)
def test_the_whole_budget_is_the_stock_model_with_newlines(kind):
    """Nothing is left out, so every token stands where it stands anyway."""
    newlines = kind not in ("llava", "internvl")
    found = case(kind, sizes=THREE, text=TEXT, budget=1.0, newlines=newlines)
    for row in found.rows:
        assert row.positions.tolist() == list(range(row.length))
    kept = logits_of(found.model, found.inputs)
    hired.apply_hired(found.model, None, budget=1.0, newlines=newlines)
    torch.testing.assert_close(kept, logits_of(found.model, found.inputs), **CLOSE)


def test_a_full_strategy_counts_cls():
    stock, processor = make("llava", vision_feature_select_strategy="full")
    model, processor = hired.apply_hired(stock, processor, budget=7, positions="original")
    inputs = processor(images=pictures(SIZES[:1]), text="what <image> is", return_tensors="pt")
    output = model.get_image_features(inputs["pixel_values"])
    assert output.places.tolist() == [0, *(output.indices + 1).tolist()]
    assert output.stock == [(8, 37)]
    assert logits_of(model, inputs).isfinite().all()


@pytest.mark.parametrize("settings", [{}, {"newlines": True}, {"policy": "pooled"}], ids=str)
@pytest.mark.parametrize("kind", ["llava-next-llama", "llava-onevision", "internvl"])
@torch.no_grad()
def test_generate_goes_on_where_the_stock_prompt_ends(kind, settings):
    """One prompt of the batch ends with its picture."""
    if settings.get("newlines") and kind == "internvl":
        pytest.skip("has no newlines")
    found = case(kind, sizes=THREE, text=TEXT, budget=0.3, **settings)
    how = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    said = found.model.generate(**found.inputs, **how)[:, found.inputs["input_ids"].shape[1] :]
    assert said.tolist() == [greedy(found.stock, row, 5) for row in found.rows]


WAYS = {
    "beams": {"num_beams": 3},
    "several": {"num_beams": 2, "num_return_sequences": 2},
    "no cache": {"use_cache": False},
    "chunked": {"prefill_chunk_size": 7},
    "lookup": {"prompt_lookup_num_tokens": 3},
    "static": {"cache_implementation": "static"},
    "compiled": {
        "cache_implementation": "static",
        "compile_config": CompileConfig(backend="eager", mode=None, fullgraph=True),
    },
}
# transformers compiles on GPUs alone, unless it is told otherwise.
WAYS["compiled"]["compile_config"]._compile_all_devices = True


@pytest.mark.parametrize("settings", [{}, {"newlines": True}], ids=str)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["llava-next-llama", "internvl"])
@torch.no_grad()
def test_ways_of_generating(kind, way, settings):
    if settings and kind == "internvl":
        pytest.skip("has no newlines")
    found = case(kind, sizes=SIZES[:1], text=["what <image> is this"], budget=0.3, **settings)
    old = "mm_encoder_outputs" not in names_of(found.model.forward)
    if old and (way in ("chunked", "lookup") or (kind == "internvl" and "num_beams" in WAYS[way])):
        pytest.skip("this transformers does not do that with pictures")
    how = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    (row,) = found.rows
    ours = found.model.generate(**found.inputs, **how, **WAYS[way])
    ours = ours[:, found.inputs["input_ids"].shape[1] :]
    if "num_beams" in WAYS[way]:
        mask = torch.ones(1, len(row.embeds), dtype=torch.int64)
        expected = found.stock.generate(
            inputs_embeds=row.embeds[None], position_ids=row.positions[None], attention_mask=mask,
            **how, **WAYS[way],
        )  # fmt: skip
    else:
        expected = torch.tensor([greedy(found.stock, row, 5)])
    assert ours.tolist() == expected.tolist()


def name_and_cache(output):
    name = "cache" if "cache" in output else "past_key_values"
    return {name: output[name]}


@pytest.mark.parametrize("settings", [{}, {"newlines": True}], ids=str)
@pytest.mark.parametrize("mask", [True, False], ids=["mask", "no mask"])
@pytest.mark.parametrize("kind", ["llava-next-llama", "internvl"])
@torch.no_grad()
def test_decoding_by_hand_and_rows_of_a_cache_that_move(kind, mask, settings):
    if settings and kind == "internvl":
        pytest.skip("has no newlines")
    text = ["what <image> is", "this <image> is"]
    sizes = [SIZES[0], SIZES[0]]
    found = case(kind, sizes=sizes, text=text, budget=0.3, **settings)
    out = found.model(**found.inputs, use_cache=True)
    cache = name_and_cache(out)
    more = torch.tensor([[7, 8], [9, 7]])
    L = found.inputs["input_ids"].shape[1]
    given = {"attention_mask": torch.ones(2, L + 2, dtype=torch.int64)} if mask else {}
    next(iter(cache.values())).reorder_cache(torch.tensor([1, 0]))
    logits = found.model(input_ids=more, **cache, **given).logits
    for ours, row, ids in zip(logits, found.rows[::-1], more, strict=True):
        torch.testing.assert_close(ours, stock_logits(found.stock, row, ids)[-2:], **CLOSE)
    step = torch.tensor([[9], [9]])
    logits = found.model(input_ids=step, **cache).logits
    for ours, row, ids in zip(logits, found.rows[::-1], more, strict=True):
        expected = stock_logits(found.stock, row, ids, [9])[-1:]
        torch.testing.assert_close(ours, expected, **CLOSE)


@pytest.mark.parametrize("kind", ["llava-next-llama", "llava", "internvl"])
@torch.no_grad()
def test_chat_turns(kind):
    """Text, another picture, text: turn by turn from a cache, as all of it at once."""
    text = "what <image> is this <image> shown what"
    found = case(kind, sizes=SIZES[:2], text=[text], budget=0.3)
    expected = logits_of(found.model, found.inputs)
    check(found, expected)
    ids = found.inputs["input_ids"]
    this = found.stock.config.image_token_id
    split = int((ids[0] == ids[0, -1]).nonzero()[0]) + 1  # behind the first "what"
    second = int((ids[0] == this).nonzero()[:, 0].diff().argmax())
    places = (ids[0] == this).nonzero()[:, 0]
    between = int(places[second]) + 2
    pixels, parts = found.inputs["pixel_values"], {}
    for name in ("image_sizes", "hired_rows", "hired_tiles"):
        if name in found.inputs:
            parts[name] = found.inputs[name]
    first = pixels[:1]
    rest = pixels[1:]
    if kind == "internvl":
        R, C, _ = parts["hired_tiles"][0].tolist()
        first, rest = pixels[: 1 + R * C], pixels[1 + R * C :]
    one = {name: value[:1] for name, value in parts.items()}
    two = {name: value[1:] for name, value in parts.items()}
    out = found.model(input_ids=ids[:, :split], use_cache=True)
    logits = [out.logits]
    turns = [
        (ids[:, split:between], {"pixel_values": first, **one}),
        (ids[:, between : between + 1], {}),
        (ids[:, between + 1 :], {"pixel_values": rest, **two}),
    ]
    for turn, given in turns:
        out = found.model(input_ids=turn, **given, **name_and_cache(out))
        logits.append(out.logits)
    torch.testing.assert_close(torch.cat(logits, dim=1), expected, **CLOSE)


@pytest.mark.parametrize("settings", [{}, {"newlines": True}], ids=str)
@pytest.mark.parametrize("left", ["text", "a picture"])
@torch.no_grad()
def test_a_cache_that_was_cropped(left, settings):
    """It goes on as one that was never longer: with text, or with the pictures that follow."""
    text = ["what <image> is this <image>"]
    found = case("llava-next-llama", sizes=SIZES[:2], text=text, budget=0.3, **settings)
    ids, model = found.inputs["input_ids"], found.model
    places = (ids[0] == 4).nonzero()[:, 0]
    # Behind "<s> what" or so, or behind the first word that follows the first picture.
    length = int(places[0]) if left == "text" else int(places[int(places.diff().argmax())]) + 2
    pictures = {name: found.inputs[name] for name in ("pixel_values", "image_sizes", "hired_rows")}
    seen = int(left == "a picture")
    inside = {name: value[:seen] for name, value in pictures.items()} if seen else {}
    behind = {name: value[seen:] for name, value in pictures.items()}
    whole = model(input_ids=ids, **pictures, use_cache=True)
    cache = name_and_cache(whole)
    (kept,) = cache.values()
    kept.crop(length - ids.shape[1])
    more = torch.tensor([[7, 8, 9]])
    fresh = model(input_ids=torch.cat((ids[:, :length], more), dim=1), **inside).logits
    ours = model(input_ids=more, **cache).logits
    torch.testing.assert_close(ours, fresh[:, length:], **CLOSE)
    kept.crop(-3)
    ours = model(input_ids=ids[:, length:], **behind, **cache).logits
    torch.testing.assert_close(ours, whole.logits[:, length:], **CLOSE)


@torch.no_grad()
def test_flash_attention_from_a_cache_is_refused():
    """It takes gaps between positions for ends of sequences."""
    found = case("llava-next-llama", sizes=SIZES[:1], text=["what <image> is"], budget=0.3)
    cache = name_and_cache(found.model(**found.inputs, use_cache=True))
    text = found.model.config.get_text_config()
    implementation, text._attn_implementation = text._attn_implementation, "flash_attention_2"
    with pytest.raises(ValueError, match="hired: positions: expected kept where a prompt goes on"):
        found.model(input_ids=torch.tensor([[7, 8]]), **cache)
    text._attn_implementation = implementation
    assert found.model(input_ids=torch.tensor([[7, 8]]), **cache).logits.isfinite().all()


@torch.no_grad()
def test_a_static_cache_of_ones_own_and_positions_given():
    found = case("llava-next-llama", sizes=SIZES[:1], text=["what <image> is"], budget=0.3)
    how = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
    said = found.model.generate(**found.inputs, **how)
    cache = StaticCache(config=found.model.config.get_text_config(), max_cache_len=128)
    name = "cache" if "cache" in names_of(found.model.forward) else "past_key_values"
    assert torch.equal(found.model.generate(**found.inputs, **how, **{name: cache}), said)
    positions = torch.arange(found.inputs["input_ids"].shape[1])[None]
    again = found.model.generate(**found.inputs, **how, position_ids=positions)
    assert torch.equal(again, said)
    logits = logits_of(found.model, found.inputs)
    moved = logits_of(found.model, found.inputs, position_ids=positions + 5)
    torch.testing.assert_close(moved, logits, **CLOSE)


@torch.no_grad()
def test_maps_that_the_stock_model_shrinks():
    """A token gets the place of the shrunk cell that holds its centre; two may share one."""
    many = ((4, 3), (1, 2))
    stock, processor = make("llava-onevision", pinpoints=many)
    sizes = [(360, 260), (300, 270), (90, 180)]
    text = ["<image> what"] * 3
    given = {"images": pictures(sizes), "text": text, "padding": True, "return_tensors": "pt"}
    stock_counts = (processor(**given)["input_ids"] == 4).sum(dim=1).tolist()
    anatomy = Anatomy.of(stock.config)
    todo = plan(Settings(1.0, positions="original"), anatomy, sizes)
    assert stock_lengths(todo) == stock_counts
    for picture, layout in enumerate(layouts_of(stock.config, sizes)):
        (_, C), (top, bottom, left, right) = layout.grid, layout.crop
        rows, cols = bottom - top, right - left
        ratio = (rows * cols / (9 * 36)) ** 0.5
        h, w = (int(rows // ratio), int(cols // ratio)) if ratio > 1.1 else (rows, cols)
        assert (ratio > 1.1) == (picture == 0)
        tokens = [(0, 0, t, t) for t in range(36)]
        for y in range(top, bottom):
            for x in range(left, right):
                p, t = 1 + y // 6 * C + x // 6, y % 6 * 6 + x % 6
                cell = int((y - top + 0.5) * h / rows) * (w + 1) + int((x - left + 0.5) * w / cols)
                tokens.append((y, p, t, 36 + cell))
        index = torch.tensor([p * 36 + t for _, p, t, _ in tokens])
        places, lines = stock_places(index, todo, picture)
        assert places.tolist() == [place for *_, place in tokens]
        assert int(places.max()) < stock_counts[picture]
        assert (lines - places)[36:].ge(1).all()
    model, processor = hired.apply_hired(stock, processor, budget=0.3, positions="original")
    assert logits_of(model, processor(**given)).isfinite().all()


def test_bad_settings():
    for settings, said in [
        ({"positions": "all"}, "hired: positions: expected kept or original, got 'all'"),
        ({"positions": "original", "policy": "published"}, "positions: expected kept under the"),
    ]:
        with pytest.raises(ValueError, match=said):
            hired.apply_hired(*make(), **settings)
