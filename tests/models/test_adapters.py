# SPDX-License-Identifier: Apache-2.0
"""PEFT's adapters and torchao's quantisers on and under a switched model, where they are installed.

`make test-around` installs them. An adapted model is held to the model that the adapters were
merged into, a quantised one to the stock model with the same quantised weights.
"""

import importlib.util

import internvl_oracle
import pytest
import torch
from llava_models import SIZES, make, twin
from llava_oracle import (
    CLOSE,
    features_of,
    logits_of,
    logits_with_features,
    partitions_of,
    switched,
    text_of,
)

import hired_kernels as hired


def where(name):
    found = importlib.util.find_spec(name)
    return pytest.mark.skipif(found is None, reason=f"{name} is not installed")


SETTINGS = [{}, {"policy": "published"}]
LINEAR = r".*(q_proj|k_proj|v_proj|out_proj|fc1|fc2|o_proj|up_proj|down_proj|linear_1|linear_2)"
LANGUAGE = r".*language_model.*(q_proj|v_proj)"
ADAPTERS = {
    "all-linear": {"target_modules": "all-linear"},
    "tower, projector and language model": {"target_modules": LINEAR},
    "a projector of its own": {
        "target_modules": LANGUAGE,
        "modules_to_save": ["multi_modal_projector"],
    },
    "a tower of its own": {"target_modules": LANGUAGE, "modules_to_save": ["vision_tower"]},
    "DoRA": {"target_modules": LINEAR, "use_dora": True},
}


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    pass


def adapted(model, how):
    """The model with adapters that do something."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    wrapped = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, **ADAPTERS[how]))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, weight in sorted(wrapped.named_parameters()):
            if weight.requires_grad:
                weight.add_(0.05 * torch.randn(weight.shape, generator=generator))
    return wrapped


def check_adapted(stock, plain, inputs, how, order, settings):
    """An adapted model, after it was held to the one that its adapters were merged into."""
    merged = adapted(twin(stock), how).merge_and_unload()
    hired.apply_hired(merged, None, 0.3, **settings)
    expected = logits_of(merged, inputs)
    assert not torch.allclose(expected, logits_of(plain, inputs), atol=0.1)
    model = twin(stock)
    if order == "before":
        hired.apply_hired(model, None, 0.3, **settings)
    wrapped = adapted(model, how)
    if order == "after":
        hired.apply_hired(model, None, 0.3, **settings)
    torch.testing.assert_close(logits_of(wrapped, inputs), expected, **CLOSE)
    assert model.hired.why_full is None
    with wrapped.disable_adapter():
        assert torch.equal(logits_of(wrapped, inputs), logits_of(plain, inputs))
    wrapped(**inputs, labels=inputs["input_ids"]).loss.backward()
    more = {"max_new_tokens": 2, "do_sample": False}
    assert torch.equal(wrapped.generate(**inputs, **more), merged.generate(**inputs, **more))
    return wrapped, expected


@where("peft")
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("how", ADAPTERS)
def test_adapters(how, order, settings):
    stock, plain, inputs = switched(budget=0.3, padding_side="right", **settings)
    wrapped, expected = check_adapted(stock, plain, inputs, how, order, settings)
    # The last layer of the tower computes nothing that is read, in the stock model neither.
    idle = {
        name for name, one in wrapped.named_parameters() if one.requires_grad and one.grad is None
    }
    assert all("layers.3" in name or "post_layernorm" in name for name in idle)
    torch.testing.assert_close(logits_of(wrapped.merge_and_unload(), inputs), expected, **CLOSE)


@where("peft")
@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("how", ["all-linear", "DoRA", "a tower of its own"])
@pytest.mark.parametrize("kind", ["internvl", "llava-onevision"])
def test_adapters_of_other_families(kind, how, order):
    """With the positions of the stock prompt, for which pictures are encoded beforehand."""
    settings = {"policy": "pooled", "positions": "original"}
    if kind == "internvl":
        found = internvl_oracle.switched(
            "2-26b", sizes=SIZES[:3], padding_side="right", budget=0.3, **settings
        )
    else:
        found = switched(kind, budget=0.3, padding_side="right", **settings)
    check_adapted(*found, how, order, settings)


@where("peft")
def test_labels_and_wrappers():
    """PEFT calls `forward` by name; what it wraps around a model cannot be switched."""
    _, model, inputs = switched(padding_side="right", policy="published")
    expected = model(**inputs, labels=inputs["input_ids"]).loss
    wrapped = adapted(model, "all-linear")
    with wrapped.disable_adapter():
        torch.testing.assert_close(wrapped(**inputs, labels=inputs["input_ids"]).loss, expected)
    with pytest.raises(ValueError, match=r"before anything is wrapped.*got PeftModel"):
        hired.apply_hired(wrapped, None)


@where("peft")
@pytest.mark.parametrize("settings", [{}, {"policy": "published"}, {"newlines": True}], ids=str)
@torch.no_grad()
def test_prompt_tuning(settings):
    """`generate` begins as a call does, though the prompt gets tokens that it was not given."""
    from peft import PromptTuningConfig, get_peft_model

    _, model, inputs = switched(**settings)
    shape = {"num_layers": 2, "num_attention_heads": 2, "token_dim": 32}
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, **shape)
    tuned = get_peft_model(model, config).eval()
    how = {"max_new_tokens": 1, "return_dict_in_generate": True, "output_logits": True}
    ours = tuned.generate(**inputs, **how, do_sample=False).logits[0]
    torch.testing.assert_close(ours, tuned(**inputs).logits[:, -1], **CLOSE)


@where("torchao")
@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("kind", ["llava-next-llama", "llava"])
def test_quantised_weights(kind, order):
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    stock, _, inputs = switched(kind, budget=0.3)
    plain = features_of(stock, inputs, budget=0.3)
    model = make(kind)[0]
    quantize_(stock, Int8WeightOnlyConfig())
    if order == "before":
        hired.apply_hired(model, None, 0.3)
    quantize_(model, Int8WeightOnlyConfig())
    if order == "after":
        hired.apply_hired(model, None, 0.3)
    with torch.no_grad():
        pictures = {k: v for k, v in inputs.items() if k in ("pixel_values", "image_sizes")}
        kept = model.get_image_features(**pictures)
        pixels = partitions_of(stock.config, inputs["pixel_values"], SIZES[:3])
        states = stock.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-2]
        rows = states[:, 1:].flatten(0, 1)[kept.indices]
        features = stock.model.multi_modal_projector(rows)
    counts = [int((row == 4).sum()) for row in inputs["input_ids"]]
    assert not torch.equal(features, torch.cat(plain))
    expected = logits_with_features(stock, list(features.split(counts)), **text_of(inputs))
    torch.testing.assert_close(logits_of(model, inputs), expected, **CLOSE)
