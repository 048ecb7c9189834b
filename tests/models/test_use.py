# SPDX-License-Identifier: Apache-2.0
"""A switched model in use: generating, training, compiled, on several threads.

Under every option, so also where placeholders turn out to stand for nothing and are hidden.
"""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from llava_models import SIZES
from llava_oracle import CLOSE, logits_of, names_of, switched, without_surplus
from transformers import CompileConfig, StaticCache

import hired_kernels as hired
from hired_kernels.models.surplus import hidden_columns, hide


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    pass


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
        if "mm_encoder_outputs" not in names_of(model.forward):
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


@pytest.mark.parametrize("settings", [{}, {"newlines": True}], ids=str)
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


@pytest.mark.parametrize("way", ["called", "forward", "replaced before"])
def test_labels_on_placeholders_are_ignored(way):
    """Which of them will be hidden is not known beforehand."""
    stock, model, inputs = switched(padding_side="right", policy="published")
    if way == "replaced before":  # as accelerate's mixed precision does
        model, forward = stock, stock.forward
        model.forward = lambda *args, **kwargs: forward(*args, **kwargs)
        hired.apply_hired(model, None, policy="published")
    labels, seen = inputs["input_ids"].clone(), []

    def loss(logits, labels, vocab_size, **kwargs):
        seen.append((labels, kwargs.get("shift_labels")))
        return logits.sum()

    model.loss_function = loss
    ahead = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
    call = model.forward if way == "forward" else model
    call(**inputs, labels=labels, shift_labels=ahead)
    assert torch.equal(labels, inputs["input_ids"])
    assert torch.equal(seen[0][0], labels.masked_fill(labels == 4, -100))
    assert torch.equal(seen[0][1], ahead.masked_fill(ahead == 4, -100))


def test_hidden_placeholders_are_masked():
    _, model, inputs = switched(padding_side="right", policy="published")
    features = model.get_image_features(inputs["pixel_values"], inputs["image_sizes"])
    arguments = dict(inputs)
    hidden = hidden_columns(model, arguments, features)
    hide(arguments, hidden)
    assert int(hidden.sum()) == int(features.surplus.sum()) > 0
    assert (inputs["input_ids"][hidden] == 4).all()
    assert torch.equal(arguments["attention_mask"] == 0, (inputs["attention_mask"] == 0) | hidden)
