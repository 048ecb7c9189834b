# SPDX-License-Identifier: Apache-2.0
"""Surplus placeholders stay hidden however a conversation goes on, or the call is refused.

What is right is the same conversation in one call without a cache, which `test_use.py` holds
to the stock model with the shorter prompt.
"""

import copy
import itertools

import pytest
import torch
from llava_models import SIZES, make, picture
from llava_oracle import CLOSE, logits_of, names_of
from transformers import DynamicCache, LogitsProcessorList, StaticCache, StoppingCriteriaList

import hired_kernels as hired

SURPLUS = [{"newlines": True}, {"policy": "published"}]
HOW = {
    "max_new_tokens": 4,
    "do_sample": False,
    "eos_token_id": None,
    "return_dict_in_generate": True,
    "output_logits": True,
}
ENCODED = "mm_encoder_outputs" in names_of(make()[0].forward)
CACHE = "cache" if "cache" in names_of(make()[0].forward) else "past_key_values"
PICTURES = ("pixel_values", "image_sizes")


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    pass


@pytest.fixture(params=SURPLUS, ids=str, scope="module")
def both(request):
    return hired.apply_hired(*make(), budget=0.3, **request.param)


def prompt(processor, text="what <image> is", size=SIZES[1], seed=0):
    return dict(processor(images=picture(size, seed), text=text, return_tensors="pt"))


def empty_cache(model, how):
    if how == "static":
        return StaticCache(config=model.config.text_config, max_cache_len=128)
    return DynamicCache(config=model.config)


def same(ours, expected):
    for one, other in zip(ours.logits, expected.logits, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


@torch.no_grad()
def second_turn(model, first, cache):
    """A conversation of two turns, the first of which is in the cache: ids, and what is right."""
    said = model.generate(**first, **HOW, **{CACHE: cache}).sequences
    ids = torch.cat((said, torch.tensor([[7, 8, 9]])), dim=1)
    pictures = {name: first[name] for name in PICTURES}
    return ids, model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), **pictures, **HOW
    )


@pytest.mark.parametrize("how", ["all", "the new ones", "a copy", "two answers", "static"])
def test_generate_goes_on_from_a_cache_with_text(both, how):
    model, processor = both
    cache = empty_cache(model, how)
    ids, expected = second_turn(model, prompt(processor), cache)
    mask = torch.ones_like(ids)
    if how == "the new ones":
        ids = ids[:, cache.get_seq_length() :]
    if how == "a copy":
        cache = copy.deepcopy(cache)
    if how == "two answers":
        cache.batch_repeat_interleave(2)
        ids, mask = ids.repeat(2, 1), mask.repeat(2, 1)
    ours = model.generate(input_ids=ids, attention_mask=mask, **HOW, **{CACHE: cache})
    for step, wanted in zip(ours.logits, expected.logits, strict=True):
        torch.testing.assert_close(step, wanted.expand_as(step), **CLOSE)


@pytest.mark.parametrize("how", ["no mask", "ones", "positions", "by position", "inner", "static"])
@torch.no_grad()
def test_a_call_by_hand_goes_on_from_a_cache(both, how):
    model, processor = both
    cache = empty_cache(model, how)
    ids, expected = second_turn(model, prompt(processor), cache)
    past = int(cache.get_seq_length())
    new, mask = ids[:, past:], torch.ones_like(ids)
    more = {} if how == "no mask" else {"attention_mask": mask}
    if how == "positions":
        more["position_ids"] = torch.arange(past, ids.shape[1])[None]
    if how == "by position":
        ours = model(new, None, None, mask, None, cache).logits
    elif how == "inner":
        ours = model.lm_head(model.model(new, **more, **{CACHE: cache})[0])
    else:
        ours = model(input_ids=new, **more, **{CACHE: cache}).logits
    torch.testing.assert_close(ours[:, -1], expected.logits[0], **CLOSE)


@pytest.mark.parametrize("wrapped", [False, True], ids=["", "forward replaced"])
@torch.no_grad()
def test_a_decoding_loop_by_hand_with_a_mask_of_ones(both, wrapped):
    model, processor = both
    inputs = prompt(processor)
    expected = model.generate(**inputs, **HOW).logits
    if wrapped:  # by something without a signature
        model = copy.deepcopy(model)
        forward = model.forward
        model.forward = lambda *args, **kwargs: forward(*args, **kwargs)
    output, mask = model(**inputs, use_cache=True), inputs["attention_mask"]
    for before, wanted in itertools.pairwise(expected):
        mask = torch.cat((mask, mask.new_ones(1, 1)), dim=1)
        more = {"attention_mask": mask, "use_cache": True, CACHE: output[CACHE]}
        output = model(input_ids=before.argmax(-1, keepdim=True), **more)
        torch.testing.assert_close(output.logits[:, -1], wanted, **CLOSE)


@torch.no_grad()
def test_a_cache_in_a_tuple(both):
    model, processor = both
    ids, expected = second_turn(model, prompt(processor), DynamicCache(config=model.config))
    inputs = prompt(processor)
    found = model.model(**inputs, use_cache=True, return_dict=False)
    (cache,) = (each for each in found if isinstance(each, DynamicCache))
    new = ids[:, inputs["input_ids"].shape[1] :]
    ours = model(input_ids=new, **{CACHE: cache}).logits
    torch.testing.assert_close(ours[:, -1], expected.logits[0], **CLOSE)


@torch.no_grad()
def test_a_picture_after_cached_text(both):
    model, processor = both
    inputs = prompt(processor)
    pictures = {name: inputs[name] for name in PICTURES}
    before = torch.tensor([[6, 7, 8]])
    whole = model(input_ids=torch.cat((before, inputs["input_ids"]), dim=1), **pictures).logits
    first = model(input_ids=before, use_cache=True)[CACHE]
    seen = inputs["input_ids"][0] != 4
    for name in {CACHE, "past_key_values"}:
        ours = model(
            input_ids=inputs["input_ids"], **pictures, **{name: copy.deepcopy(first)}
        ).logits
        torch.testing.assert_close(ours[0, seen], whole[0, 3:][seen], **CLOSE)


def test_another_picture_in_the_next_turn(both):
    model, processor = both
    cache = DynamicCache(config=model.config)
    said = model.generate(**prompt(processor), **HOW, **{CACHE: cache}).sequences
    second = prompt(processor, "this <image> shown", SIZES[2], seed=1)
    images = [picture(SIZES[1]), picture(SIZES[2], 1)]
    both_pictures = processor(images=images, text="<image> <image>", return_tensors="pt")
    ids = torch.cat((said, second["input_ids"]), dim=1)
    mask = torch.ones_like(ids)
    given = ({name: one[name] for name in PICTURES} for one in (both_pictures, second))
    expected, ours = (
        model.generate(input_ids=ids, attention_mask=mask, **pictures, **HOW, **more)
        for pictures, more in zip(given, ({}, {CACHE: cache}), strict=True)
    )
    same(ours, expected)


@torch.no_grad()
def test_a_model_that_is_called_while_it_generates(both):
    """By a logits processor, with another picture of the same shape; and `generate` itself."""
    model, processor = both
    inputs = prompt(processor)
    other = {**inputs, "pixel_values": inputs["pixel_values"].flip(-1)}
    expected, alone = logits_of(model, other), model.generate(**inputs, **HOW)
    answer = model.generate(**other, **HOW)
    found = []

    def contrast(ids, scores):
        found.append(logits_of(model, other))
        return scores

    cache = DynamicCache(config=model.config)

    def check(ids, scores, **kwargs):
        same(model.generate(**other, **HOW), answer)
        # What comes next, by a copy of the cache that is being filled.
        step = len(ids[0]) - inputs["input_ids"].shape[1]
        if step < len(alone.logits):
            ours = model(input_ids=ids[:, -1:], **{CACHE: copy.deepcopy(cache)}).logits
            torch.testing.assert_close(ours[:, -1], alone.logits[step], **CLOSE)
        return torch.zeros(len(ids), dtype=torch.bool)

    ours = model.generate(
        **inputs,
        **HOW,
        **{CACHE: cache},
        logits_processor=LogitsProcessorList([contrast]),
        stopping_criteria=StoppingCriteriaList([check]),
    )
    same(ours, alone)
    assert len(found) == 4
    for logits in found:
        assert torch.equal(logits, expected)


@pytest.mark.parametrize("way", ["static", "no cache", "chunks", "embeddings", "positions", "pad"])
def test_ways_of_generating(both, way):
    model, processor = both
    inputs = prompt(processor)
    expected, more = model.generate(**inputs, **HOW), {}
    if way == "static":
        more = {"cache_implementation": "static", "disable_compile": True}
    elif way == "no cache":
        more = {"use_cache": False}
    elif way == "chunks":
        if not ENCODED:
            pytest.skip("this transformers cuts pictures in chunks as well")
        more = {"prefill_chunk_size": 7}
    elif way == "embeddings":
        inputs["inputs_embeds"] = model.get_input_embeddings()(inputs.pop("input_ids"))
    elif way == "positions":
        more = {"position_ids": torch.arange(inputs["input_ids"].shape[1])[None]}
    else:  # padding by a token that the call alone names, and no mask to tell
        del inputs["attention_mask"]
        padding = torch.zeros(1, 2, dtype=torch.int64)
        inputs["input_ids"] = torch.cat((padding, inputs["input_ids"]), dim=1)
        more = {"pad_token_id": 0}
    same(model.generate(**inputs, **HOW, **more), expected)


def test_an_assistant(both):
    if not ENCODED:
        pytest.skip("this transformers hands assistants no pictures")
    model, processor = both
    inputs = prompt(processor)
    expected = model.generate(**inputs, **HOW).sequences
    ours = model.generate(**inputs, assistant_model=copy.deepcopy(model), **HOW).sequences
    assert torch.equal(ours, expected)


@pytest.mark.parametrize("settings", [{}, *SURPLUS], ids=str)
@pytest.mark.parametrize("budget", [0, 1e-9])
def test_pictures_of_no_rows(settings, budget):
    model, processor = hired.apply_hired(*make(), budget=budget, **settings)
    inputs = prompt(processor)
    assert not (inputs["input_ids"] == 4).any()
    expected = logits_of(model, {"input_ids": inputs["input_ids"]})
    torch.testing.assert_close(logits_of(model, inputs), expected, **CLOSE)
    model.generate(**inputs, **HOW)


def test_no_pictures(both):
    if not ENCODED:
        pytest.skip("this transformers takes no empty batch of pictures")
    model, processor = both
    inputs = prompt(processor)
    ids = torch.tensor([[6, 7, 8]])
    none = {name: inputs[name][:0] for name in PICTURES}
    assert torch.equal(
        logits_of(model, {"input_ids": ids, **none}), logits_of(model, {"input_ids": ids})
    )


@torch.no_grad()
def test_what_is_refused(both):
    model, processor = both
    inputs = prompt(processor)
    cache = model(**inputs, use_cache=True)[CACHE]
    token = torch.tensor([[7]])
    length = inputs["input_ids"].shape[1]
    with pytest.raises(ValueError, match=rf"attention_mask: expected \(1, {length + 1}\).*, 5\)"):
        model(input_ids=token, attention_mask=torch.ones(1, 5), **{CACHE: cache})
    with pytest.raises(ValueError, match="hired: attention_mask: expected"):
        model(input_ids=token, attention_mask=torch.ones(1, 1, 1, length + 1), **{CACHE: cache})
    square = torch.ones(1, 1, length, length).tril()
    with pytest.raises(ValueError, match="hired: attention_mask: expected"):
        model(**{**inputs, "attention_mask": square})
    cache.batch_repeat_interleave(2)
    other = DynamicCache(config=model.config)
    model(**inputs, use_cache=True, **{CACHE: other})
    other.layers = cache.layers  # by hand, past what remembers
    with pytest.raises(ValueError, match=r"hired: cache: expected a batch of 1.* got 2"):
        model(input_ids=torch.cat((token, token)), **{CACHE: other})
    packed = {name: torch.cat((value, value)) for name, value in inputs.items()}
    for name in ("input_ids", "attention_mask"):
        packed[name] = packed[name].view(1, -1)
    del packed["attention_mask"]
    positions = torch.arange(length).repeat(2)[None]
    with pytest.raises(ValueError, match=r"hired: position_ids: expected one sequence in a row"):
        model(**packed, position_ids=positions, use_cache=False)


@pytest.mark.parametrize("how", ["reset", "crop", "static"])
@torch.no_grad()
def test_an_emptied_cache_remembers_nothing(both, how):
    model, processor = both
    cache = empty_cache(model, how)
    model(**prompt(processor), use_cache=True, **{CACHE: cache})
    length = int(cache.get_seq_length())
    cache.crop(-length if ENCODED else 0) if how == "crop" else cache.reset()
    if cache.get_seq_length() != 0:
        pytest.skip("this transformers keeps the length of a cache that it resets")
    ids, token = torch.randint(6, 10, (1, 30)), torch.tensor([[7]])
    expected = model(input_ids=torch.cat((ids, token), dim=1)).logits[:, -1]
    model(input_ids=ids, use_cache=True, **{CACHE: cache})
    ours = model(input_ids=token, use_cache=True, **{CACHE: cache}).logits[:, -1]
    torch.testing.assert_close(ours, expected, **CLOSE)
    length = int(cache.get_seq_length())
    cache.crop(-length if ENCODED else 0) if how == "crop" else cache.reset()
    again = model.generate(input_ids=ids, **HOW, **{CACHE: cache})
    same(again, model.generate(input_ids=ids, **HOW))


@pytest.mark.parametrize("how", ["reorder", "select", "repeat"])
@torch.no_grad()
def test_rows_of_a_cache_that_move(both, how):
    model, processor = both
    images = [picture(SIZES[0]), picture(SIZES[1])]
    text = ["what <image> is", "this is <image> shown what"]
    inputs = dict(processor(images=images, text=text, padding=True, return_tensors="pt"))
    cache, rows = model(**inputs, use_cache=True)[CACHE], torch.tensor([1, 0])
    mask = torch.cat((inputs["attention_mask"], torch.ones(2, 1, dtype=torch.int64)), dim=1)
    tokens, moved = torch.tensor([[7], [8]]), copy.deepcopy(cache)
    expected = model(input_ids=tokens, attention_mask=mask, **{CACHE: cache}).logits
    if how == "reorder":
        moved.reorder_cache(rows)
    elif how == "select":
        rows = torch.tensor([1, 0, 1])
        moved.batch_select_indices(rows)
    else:
        rows = torch.tensor([0, 0, 1, 1])
        moved.batch_repeat_interleave(2)
    ours = model(input_ids=tokens[rows], attention_mask=mask[rows], **{CACHE: moved}).logits
    torch.testing.assert_close(ours, expected[rows], **CLOSE)


def test_the_cache_that_generate_is_filling(both):
    model, processor = both
    cache, found = DynamicCache(config=model.config), []

    def look(ids, scores):
        ours = model(input_ids=scores.argmax(-1, keepdim=True), **{CACHE: cache})
        found.append(ours.logits[:, -1])
        cache.crop(-1 if ENCODED else int(cache.get_seq_length()) - 1)
        return scores

    processors = LogitsProcessorList([look])
    output = model.generate(
        **prompt(processor), **HOW, logits_processor=processors, **{CACHE: cache}
    )
    for ours, wanted in zip(found, output.logits[1:], strict=False):
        torch.testing.assert_close(ours, wanted, **CLOSE)


def test_a_picture_and_a_video():
    if not ENCODED:
        pytest.skip("this transformers encodes videos in the forward pass")
    model, processor = hired.apply_hired(*make("llava-next-video"), budget=0.3, newlines=True)
    inputs = prompt(processor)
    video = torch.tensor([[*[5] * 18, 7]])
    inputs["input_ids"] = torch.cat((inputs["input_ids"], video), dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    inputs["pixel_values_videos"] = torch.randn(1, 2, 3, 84, 84)
    for more in ({}, {"use_cache": False}):
        output = model.generate(**inputs, **HOW, **more)
        assert torch.equal(output.sequences[:, : video.shape[1]], inputs["input_ids"][:, :19])
        assert output.sequences.shape[1] == inputs["input_ids"].shape[1] + 4
        with torch.no_grad():
            torch.testing.assert_close(output.logits[0], model(**inputs).logits[:, -1], **CLOSE)
