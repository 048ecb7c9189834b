# SPDX-License-Identifier: Apache-2.0
"""What goes into a switched model: served to the end, or refused by the name of the argument."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from llava_models import SIZES, make, pictures

import hired_kernels as hired


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    pass


def inputs_of(processor, sizes=SIZES[3:4], **more):
    text = ["what <image>"] * len(sizes)
    more = {"return_tensors": "pt", "padding": True, **more}
    return processor(images=pictures(sizes), text=text, **more)


@pytest.mark.parametrize(
    ("number", "python"),
    [(Fraction(1, 5), 0.2), (np.float16(0.2), 0.2), (np.float32(0.35), 0.35), (np.uint64(7), 7)],
    ids=str,
)
def test_numbers_of_every_kind(number, python):
    model, processor = hired.apply_hired(*make(), budget=number, alpha=Fraction(1, 2))
    assert model.hired.settings.budget == python
    assert type(model.hired.settings.budget) is type(python)
    other, other_processor = hired.apply_hired(*make(), budget=python)
    ours, theirs = inputs_of(processor), inputs_of(other_processor)
    assert torch.equal(ours["input_ids"], theirs["input_ids"])
    assert torch.equal(model(**ours).logits, other(**theirs).logits)


@pytest.mark.parametrize(
    "share",
    [Fraction(1, 10**400), Fraction(10**400, 3), np.float64(0.0), Fraction(0)],
    ids=["tiny", "huge", "zero", "no part"],
)
def test_shares_out_of_range(share):
    with pytest.raises(ValueError, match=r"hired: budget: expected a float in \(0, 1\]"):
        hired.apply_hired(*make(), budget=share)


@pytest.mark.parametrize("settings", [{}, {"newlines": True}, {"policy": "published"}], ids=str)
def test_sizes_the_wrong_way_round(settings):
    """The stock model finds them by the newlines that they come to; so does the switched one."""
    stock, processor = make()
    inputs = inputs_of(processor)
    wrong = {**inputs, "image_sizes": inputs["image_sizes"].flip(1)}
    with pytest.raises(ValueError, match="do not match"):
        stock(**wrong)
    model, processor = hired.apply_hired(stock, processor, budget=0.3, **settings)
    inputs = inputs_of(processor)
    assert inputs["hired_rows"].tolist() == [6]
    wrong = {**inputs, "image_sizes": inputs["image_sizes"].flip(1)}
    said = r"hired: image_sizes: expected \(height, width\).* \[6\] rows .* got \[\[250, 90\]\]"
    for call in (model, model.generate, model.model):
        with pytest.raises(ValueError, match=said):
            call(**wrong)
    with pytest.raises(ValueError, match="hired_rows: expected an integer for each of 1 picture"):
        model(**{**inputs, "hired_rows": torch.tensor([6, 6])})
    with pytest.raises(ValueError, match=r"hired_rows: expected \[6\] rows of .*got \[9\] from"):
        model(**{**inputs, "hired_rows": [9]})
    # Nothing that the model needs: sizes of one's own go without.
    del inputs["hired_rows"]
    assert model(**inputs).logits.isfinite().all()
    assert model.generate(**inputs, max_new_tokens=1).shape[0] == 1


@pytest.mark.parametrize("kind", [None, "np"])
def test_rows_come_as_the_sizes_do(kind):
    _, processor = hired.apply_hired(*make())
    inputs = inputs_of(processor, SIZES, return_tensors=kind)
    counts = [processor.hired.anatomy.layout(*size).crop for size in SIZES]
    assert type(inputs["hired_rows"]) is type(inputs["image_sizes"])
    assert list(inputs["hired_rows"]) == [bottom - top for top, bottom, *_ in counts]
    hired.remove_hired(None, processor)
    assert "hired_rows" not in inputs_of(processor)


BAD_SIZES = [None, [90, 250], torch.tensor([[90, 250, 3]]), [(0, 5)], [(9, float("inf"))]]


@pytest.mark.parametrize("sizes", BAD_SIZES, ids=str)
def test_sizes_that_are_none(sizes):
    model, processor = hired.apply_hired(*make(), newlines=True)
    inputs = inputs_of(processor)
    del inputs["hired_rows"]
    for call in (model, model.get_image_features):
        given = inputs if call is model else {"pixel_values": inputs["pixel_values"]}
        with pytest.raises(ValueError, match=r"hired: image_sizes: expected \(height, width\)"):
            call(**{**given, "image_sizes": sizes})


def test_pixels_of_more_tiles_than_a_picture_has():
    model, processor = hired.apply_hired(*make("llava"))
    pixels = inputs_of(processor)["pixel_values"]
    with pytest.raises(ValueError, match="hired: pixel_values: expected rank 4, got rank 5"):
        model.get_image_features(pixels[:, None].repeat(1, 2, 1, 1, 1))


@pytest.mark.parametrize("settings", [{}, {"newlines": True}], ids=str)
def test_pictures_without_a_prompt(settings):
    model, processor = hired.apply_hired(*make(), **settings)
    inputs = inputs_of(processor)
    del inputs["input_ids"]
    with pytest.raises(ValueError, match="exactly one of input_ids or inputs_embeds"):
        model(**inputs)


def test_a_strategy_or_a_layer_in_a_call():
    model, processor = hired.apply_hired(*make())
    inputs = inputs_of(processor)
    strategy = {"vision_feature_select_strategy": "full"}
    said = "hired: vision_feature_select_strategy: expected default, got full"
    for call in (model, model.generate):
        with pytest.raises(ValueError, match=said):
            call(**inputs, **strategy)
    other, other_processor = hired.apply_hired(*make("llava"))
    with pytest.raises(ValueError, match=said):
        other(**inputs_of(other_processor), **strategy)
    with pytest.raises(ValueError, match="hired: vision_feature_layer: expected the output of one"):
        model(**inputs, vision_feature_layer=9)
    expected, processor = hired.apply_hired(*make(vision_feature_layer=-1))
    ours = model(**inputs, vision_feature_layer=-1).logits
    assert torch.equal(ours, expected(**inputs).logits)


def test_a_placeholder_that_the_language_model_says():
    model, processor = hired.apply_hired(*make())
    inputs = inputs_of(processor)
    ids = torch.cat((inputs["input_ids"], torch.tensor([[4]])), dim=1)
    with pytest.raises(ValueError, match="If the language model has generated one"):
        model(**{**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)})


def test_pinpoints_that_change_later():
    """As in the stock model, the configuration and the processor say which there are."""
    model, processor = hired.apply_hired(*make())
    other, other_processor = hired.apply_hired(*make(pinpoints=((1, 2),)))
    pinpoints = other.config.image_grid_pinpoints
    model.config.image_grid_pinpoints = pinpoints
    processor.image_processor.image_grid_pinpoints = pinpoints
    ours, theirs = inputs_of(processor), inputs_of(other_processor)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert torch.equal(model(**ours).logits, other(**theirs).logits)


def test_a_processor_that_does_not_crop():
    """What it does not use may say what it likes."""
    model, processor = make("llava")
    images = processor.image_processor
    images.do_center_crop, images.crop_size = False, {"height": 224, "width": 224}
    images.size = {"height": 84, "width": 84}
    expected, kept = hired.apply_hired(*make("llava"))[0], inputs_of
    hired.apply_hired(model, processor)
    inputs = kept(processor)
    assert torch.equal(model(**inputs).logits, expected(**inputs).logits)
    del images.crop_size  # not every image processor has one
    hired.apply_hired(model, processor)
    images.size = {"height": 84, "width": 112}
    with pytest.raises(ValueError, match=r"processor: expected size 84, .*, got \(84, 112\)"):
        hired.apply_hired(model, processor)


def test_the_tower_names_its_own_arguments():
    model, _ = make()
    tower = hired.HiredTower(model.model.vision_tower, pinpoints=model.config.image_grid_pinpoints)
    pixels = torch.zeros(4, 3, 84, 84)
    with pytest.raises(ValueError, match=r"hired: pixels: expected \(5, 3, .*got \(4, 3, 84, 84\)"):
        tower(pixels, [(168, 168)])
    with pytest.raises(ValueError, match="hired: pixels: expected"):
        tower(pixels[None], [(168, 168)])
    for sizes in BAD_SIZES[:2] + BAD_SIZES[3:]:
        with pytest.raises(ValueError, match=r"hired: sizes: expected \(height, width\) in pixels"):
            tower(pixels, sizes)
    with pytest.raises(ValueError, match="hired: pixels: expected"):
        tower(pixels[:0], [])
    for layer in (0, "a", None, -2.0):
        with pytest.raises(ValueError, match="hired: feature_layer: expected the output of one of"):
            hired.HiredTower(tower.tower, feature_layer=layer)
    for other in (torch.nn.Linear(1, 1), None, model, tower):
        with pytest.raises(
            ValueError, match=r"hired: tower: expected a CLIP, SigLIP or InternViT vision"
        ):
            hired.HiredTower(other)
    with pytest.raises(ValueError, match="hired: pinpoints: expected"):
        hired.HiredTower(tower.tower, pinpoints=[84, 168])
