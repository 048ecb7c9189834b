# SPDX-License-Identifier: Apache-2.0
"""HiRED is switched on for one model and one processor, and off again without a trace."""

import copy
import io
import pickle
import subprocess
import sys

import pytest
import torch
import transformers
from accelerate import cpu_offload, disk_offload, dispatch_model
from llava_models import KINDS, SIZES, make, pictures, twin
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    SiglipVisionConfig,
)

import hired_kernels as hired


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    pass


def inputs_of(processor, sizes=SIZES[:2]):
    text = ["what is <image> this", "<image>"]
    return processor(images=pictures(sizes), text=text, padding=True, return_tensors="pt")


@torch.no_grad()
def logits_of(model, inputs):
    return model(**inputs).logits


def classes(*parts):
    return [type(part) for part in parts]


@pytest.mark.parametrize("kind", KINDS)
def test_on_and_off_leaves_no_trace(kind):
    model, processor = make(kind)
    parts = model, model.model, processor
    stock = inputs_of(processor)
    expected = logits_of(model, stock)
    before = classes(*parts), [dict(vars(part)) for part in parts]
    modules = {name: dict(vars(module)) for name, module in model.model.named_modules()}
    assert hired.apply_hired(model, processor) == (model, processor)
    assert len(inputs_of(processor)["input_ids"][0]) < len(stock["input_ids"][0])
    logits_of(model, inputs_of(processor))
    assert isinstance(model, before[0][0])
    assert type(model).__name__ == before[0][0].__name__
    assert hired.remove_hired(model, processor) == (model, processor)
    assert classes(*parts) == before[0]
    assert [dict(vars(part)) for part in parts] == before[1]
    assert modules == {name: dict(vars(module)) for name, module in model.model.named_modules()}
    assert torch.equal(inputs_of(processor)["input_ids"], stock["input_ids"])
    assert torch.equal(logits_of(model, stock), expected)
    hired.remove_hired(model, processor)


def test_other_models_of_the_class_see_nothing():
    model, processor = make()
    other, other_processor = twin(model), copy.deepcopy(processor)
    stock = inputs_of(processor)
    expected = logits_of(model, stock)
    hired.apply_hired(model, processor)
    assert torch.equal(inputs_of(other_processor)["input_ids"], stock["input_ids"])
    assert torch.equal(logits_of(other, stock), expected)


def test_a_second_call_replaces_the_settings():
    model, processor = make()
    hired.apply_hired(model, processor, budget=0.5, policy="published")
    hired.apply_hired(model, processor, budget=0.1)
    assert model.hired.settings.budget == 0.1
    assert model.hired.settings.policy == "exact"
    assert model.hired is model.model.hired is processor.hired
    stock_model, stock_processor = make()
    hired.apply_hired(stock_model, stock_processor, budget=0.1)
    assert classes(model, processor) == classes(stock_model, stock_processor)
    inputs = inputs_of(processor)
    assert torch.equal(logits_of(model, inputs), logits_of(stock_model, inputs))


def test_a_failed_call_changes_nothing():
    model, processor = hired.apply_hired(*make(), budget=0.1)
    inputs = inputs_of(processor)
    with pytest.raises(ValueError, match="policy"):
        hired.apply_hired(model, processor, policy="best")
    with pytest.raises(ValueError, match="processor"):
        hired.apply_hired(model, make("llava")[1])
    assert torch.equal(inputs_of(processor)["input_ids"], inputs["input_ids"])
    assert logits_of(model, inputs).isfinite().all()


def test_the_model_without_its_head():
    model, processor = make()
    expected_model, _ = hired.apply_hired(twin(model), None)
    inner, processor = hired.apply_hired(model.model, processor)
    inputs = inputs_of(processor)
    with torch.no_grad():
        hidden = inner(**inputs)[0]
    assert torch.equal(model.lm_head(hidden), logits_of(expected_model, inputs))
    assert inner.hired.settings.budget == 0.2


@pytest.mark.parametrize("kind", ["llava-next-llama", "llava", "vipllava"])
@pytest.mark.parametrize("settings", [{}, {"policy": "published"}], ids=str)
def test_copies_and_pickles_are_switched_on(kind, settings):
    model, processor = hired.apply_hired(*make(kind), **settings)
    inputs = inputs_of(processor)
    expected = logits_of(model, inputs)
    for again in (copy.deepcopy, lambda part: pickle.loads(pickle.dumps(part))):
        other, other_processor = again(model), again(processor)
        assert torch.equal(inputs_of(other_processor)["input_ids"], inputs["input_ids"])
        assert torch.equal(logits_of(other, inputs), expected)
        assert other.hired is other.model.hired is not model.hired
        hired.remove_hired(other, other_processor)
        assert type(other) is type(make(kind)[0])
        assert model.hired.on
        assert processor.hired.on
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert torch.equal(logits_of(loaded, inputs), expected)


@pytest.mark.parametrize("kind", ["llava-next-llama", "llava", "vipllava"])
def test_what_is_saved_is_stock(kind, tmp_path):
    model, processor = make(kind)
    stock = inputs_of(processor)
    model.save_pretrained(tmp_path / "before")
    processor.save_pretrained(tmp_path / "before")
    expected = logits_of(model, stock)
    hired.apply_hired(model, processor)
    model.save_pretrained(tmp_path / "after")
    processor.save_pretrained(tmp_path / "after")
    names = sorted(file.name for file in (tmp_path / "before").iterdir())
    assert names == sorted(file.name for file in (tmp_path / "after").iterdir())
    for name in names:
        before, after = (tmp_path / folder / name for folder in ("before", "after"))
        assert before.read_bytes() == after.read_bytes(), name
    again = type(model).from_pretrained(tmp_path / "after")
    again_processor = transformers.AutoProcessor.from_pretrained(tmp_path / "after", backend="pil")
    assert torch.equal(inputs_of(again_processor)["input_ids"], stock["input_ids"])
    assert torch.equal(logits_of(again.eval(), stock), expected)
    ours = logits_of(model, inputs_of(processor))
    hired.apply_hired(again, again_processor)
    assert torch.equal(logits_of(again, inputs_of(again_processor)), ours)


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("how", ["map", "layers", "cpu offload", "disk offload"])
@pytest.mark.parametrize("settings", [{}, {"policy": "published"}], ids=str)
def test_accelerate_places_and_offloads(how, order, settings, tmp_path):
    model, processor = make()
    expected_model, processor = hired.apply_hired(twin(model), processor, **settings)
    inputs = inputs_of(processor)
    expected = logits_of(expected_model, inputs)
    sequences = expected_model.generate(**inputs, max_new_tokens=3, do_sample=False)
    if order == "before":
        hired.apply_hired(model, None, **settings)
    if how == "cpu offload":
        cpu_offload(model, execution_device="cpu")
    elif how == "disk offload":
        disk_offload(model, str(tmp_path), execution_device="cpu")
    else:
        tower = {"model.vision_tower": "cpu"}
        if how == "layers":
            layers = {f"encoder.layers.{number}": "cpu" for number in range(4)}
            parts = {"embeddings": "cpu", "pre_layrnorm": "cpu", "post_layernorm": "cpu", **layers}
            tower = {f"model.vision_tower.{name}": device for name, device in parts.items()}
        others = ("model.multi_modal_projector", "model.image_newline", "model.language_model")
        placed = {**tower, **dict.fromkeys((*others, "lm_head"), "cpu")}
        placed["lm_head"] = "disk"  # with something offloaded, accelerate puts its hooks in
        placed["model.vision_tower.encoder.layers.2" if how == "layers" else "lm_head"] = "disk"
        dispatch_model(
            model, placed, main_device="cpu", offload_dir=str(tmp_path), force_hooks=True
        )
    if order == "after":
        hired.apply_hired(model, None, **settings)
    ours = logits_of(model, inputs)
    torch.testing.assert_close(ours, expected)
    generated = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert torch.equal(generated, sequences)
    hired.remove_hired(model)
    assert "hired" not in vars(model)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            {"budget": 0.0},
            "budget: expected a float in (0, 1] or an integer of at least 0, got 0.0",
        ),
        ({"budget": 1.5}, "budget: expected a float in (0, 1]"),
        ({"budget": -1}, "budget: expected a float in (0, 1]"),
        ({"budget": True}, "budget: expected a float in (0, 1]"),
        ({"budget": [1, 2]}, "budget: expected a float in (0, 1]"),
        ({"budget": float("nan")}, "budget: expected a float in (0, 1]"),
        ({"alpha": 1.1}, "alpha: expected a number in [0, 1], got 1.1"),
        ({"alpha": "half"}, "alpha: expected a number in [0, 1], got 'half'"),
        ({"policy": "best"}, "policy: expected exact, pooled or published, got 'best'"),
        ({"newlines": 1}, "newlines: expected True or False, got 1"),
        (
            {"newlines": True, "policy": "published"},
            "newlines: expected False under the published policy, which has none, got True",
        ),
    ],
    ids=str,
)
def test_bad_settings(settings, expected):
    model, processor = make()
    with pytest.raises(ValueError, match="hired: ") as raised:
        hired.apply_hired(model, processor, **settings)
    assert str(raised.value).startswith(f"hired: {expected}")
    assert type(model) is transformers.LlavaNextForConditionalGeneration


def siglip():
    vision = SiglipVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        image_size=28, patch_size=14,
    )  # fmt: skip
    text = LlamaConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        vocab_size=8,
    )  # fmt: skip
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=4)
    return LlavaForConditionalGeneration(config)


def test_models_that_it_does_not_serve():
    processor = make("llava")[1]
    model = siglip()
    with pytest.raises(ValueError, match="select_strategy: expected full for SigLIP, which has no"):
        hired.apply_hired(model, processor)
    model.config.vision_config.model_type = "pixtral"
    with pytest.raises(ValueError, match=r"CLIP or SigLIP vision tower for LLaVA-1.*got pixtral"):
        hired.apply_hired(model, processor)
    with pytest.raises(ValueError, match="hired: model: expected a transformers model"):
        hired.apply_hired(torch.nn.Linear(1, 1), processor)
    tower = transformers.CLIPVisionModel(CLIPVisionConfig(**vars(make()[0].config.vision_config)))
    with pytest.raises(ValueError, match="hired: model: expected a transformers model"):
        hired.apply_hired(tower, processor)
    model, processor = make(vision_feature_select_strategy="full")
    with pytest.raises(
        ValueError, match="vision_feature_select_strategy: expected default, got fu"
    ):
        hired.apply_hired(model, processor)
    model, processor = make(vision_feature_layer=0)
    with pytest.raises(ValueError, match="feature_layer: expected the output of one of 4 layers"):
        hired.apply_hired(model, processor)


def test_processors_of_another_model():
    model, _ = make()
    with pytest.raises(ValueError, match=r"processor: expected a LlavaNextProcessor"):
        hired.apply_hired(model, make("llava")[1])
    with pytest.raises(ValueError, match="processor: expected the model's image_grid_pinpoints"):
        hired.apply_hired(model, make(pinpoints=((1, 2),))[1])
    with pytest.raises(ValueError, match="crop_size 84, the model's image_size, got 112"):
        hired.apply_hired(make("llava")[0], make("sharegpt4v")[1])
    with pytest.raises(ValueError, match="newlines: expected False for llava, which has no sep"):
        hired.apply_hired(*make("llava"), newlines=True)


def test_wrapped_models_are_refused():
    """What passes for a model but is not one would be switched by halves."""
    model, processor = make()
    inner = make()[0]
    inner.model = torch.compile(inner.model, backend="eager")
    for wrapped, name in (
        (torch.compile(model, backend="eager"), "OptimizedModule"),
        (inner, "OptimizedModule"),
        (torch.nn.DataParallel(model), "DataParallel"),
    ):
        with pytest.raises(ValueError, match=rf"before anything is wrapped.* got {name}"):
            hired.apply_hired(wrapped, processor)
    assert classes(model, processor) == classes(*make())


def test_a_model_compiled_in_place_is_switched():
    settings = {"policy": "published"}
    model, processor = hired.apply_hired(*make(), **settings)
    inputs = inputs_of(processor)
    expected = logits_of(model, inputs)
    compiled = make()[0]
    compiled.compile(backend="eager")
    hired.apply_hired(compiled, processor, **settings)
    torch.testing.assert_close(logits_of(compiled, inputs_of(processor)), expected)


class Double(torch.nn.Module):
    def forward(self, x):
        return 2 * x


def test_a_class_that_comes_later_stays(tmp_path):
    """FSDP 2 and parametrizations give objects a class, as switching does."""
    model, processor = hired.apply_hired(*make(), newlines=True)
    inputs = inputs_of(processor)
    torch.nn.utils.parametrize.register_parametrization(model.model, "image_newline", Double())
    expected = logits_of(model, inputs)
    hired.apply_hired(model, processor, budget=0.5)
    hired.apply_hired(model, processor, newlines=True)
    assert torch.equal(logits_of(model, inputs), expected)
    hired.remove_hired(model, processor)
    twice = 2 * model.model.parametrizations.image_newline.original
    assert torch.equal(model.model.image_newline, twice)
    stock, stock_processor = make()
    stock.model.image_newline.data.mul_(2)
    inputs = inputs_of(stock_processor)
    assert torch.equal(logits_of(model, inputs), logits_of(stock, inputs))
    torch.nn.utils.parametrize.remove_parametrizations(model.model, "image_newline")
    hired.remove_hired(model)
    assert classes(model, model.model) == classes(stock, stock.model)

    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/init", rank=0, world_size=1
    )
    try:
        model, processor = hired.apply_hired(*make())
        for part in (*model.model.vision_tower.encoder.layers, model):
            torch.distributed.fsdp.fully_shard(part)
        hired.apply_hired(model, processor, budget=0.5)
        other, other_processor = hired.apply_hired(*make(), budget=0.5)
        inputs = inputs_of(other_processor)
        torch.testing.assert_close(logits_of(model, inputs), logits_of(other, inputs))
        hired.remove_hired(model, processor)
        torch.testing.assert_close(
            logits_of(model, inputs_of(processor)), logits_of(make()[0], inputs_of(processor))
        )
        model.unshard()
    finally:
        torch.distributed.destroy_process_group()


def test_parametrized_models_are_switched_first():
    model, processor = make()
    torch.nn.utils.parametrize.register_parametrization(model.model, "image_newline", Double())
    with pytest.raises(ValueError, match="hired: model: expected no parametrization"):
        hired.apply_hired(model, processor)


def test_importing_the_package_does_not_import_transformers():
    code = (
        "import sys, hired_kernels\n"
        "assert 'transformers' not in sys.modules\n"
        "assert {'apply_hired', 'remove_hired', 'HiredTower'} <= set(dir(hired_kernels))\n"
        "from hired_kernels import apply_hired, remove_hired, HiredTower\n"
        "assert 'transformers' in sys.modules\n"
        "try: hired_kernels.no_such_name\n"
        "except AttributeError as error: assert 'no_such_name' in str(error)\n"
        "else: raise SystemExit('no error')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
