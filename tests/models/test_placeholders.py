# SPDX-License-Identifier: Apache-2.0
"""Placeholders of the processor and features of the model agree, for pictures of every shape.

And the selection inside the model is the published code's, token for token, where that is asked.
"""

import re

import pytest
import torch
from llava_models import KINDS, PINPOINTS, make, picture, pictures
from torch._subclasses.fake_tensor import FakeTensorMode
from vectors import T, cases, packed

import hired_kernels as hired
from hired_kernels import geometry, published
from hired_kernels.cli import taken_apart
from hired_kernels.models import hired_tower
from hired_kernels.models.accounting import Anatomy, Settings, placeholders, plan
from hired_kernels.models.surplus import hidden_columns, hide

EXTREME = [(1, 1), (1, 400), (400, 1), (3, 900), (84, 84), (83, 85), (17, 40), (1000, 30)]
GRIDS = [*PINPOINTS, (1, 1), (4, 1), (2, 3)]
FINE = [case for case in cases() if case.crash is None]


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    pass


def counts_of(inputs):
    return (inputs["input_ids"] == 4).sum(dim=1).tolist()


@torch.no_grad()
def features_of(model, inputs):
    arguments = [inputs["pixel_values"]]
    if "image_sizes" in inputs:
        arguments.append(inputs["image_sizes"])
    return model.get_image_features(*arguments)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("budget", [0.2, 1.0, 7])
def test_placeholders_are_as_many_as_features(kind, budget):
    model, processor = hired.apply_hired(*make(kind), budget=budget)
    inputs = processor(
        images=pictures(EXTREME), text=["<image>"] * len(EXTREME), padding=True, return_tensors="pt"
    )
    output = features_of(model, inputs)
    assert counts_of(inputs) == [len(one) for one in output.pooler_output]
    assert int(output.counts.sum()) == len(output.indices) == sum(counts_of(inputs))
    assert model(**inputs).logits.isfinite().all()


@pytest.mark.parametrize("settings", [{"newlines": True}, {"policy": "published"}], ids=str)
def test_placeholders_have_room_for_what_the_device_decides(settings):
    sizes = [size for size in EXTREME if size != (3, 900)] if "policy" in settings else EXTREME
    pinpoints = [(1, 2), (2, 1), (2, 2)] if "policy" in settings else PINPOINTS
    model, processor = hired.apply_hired(*make(pinpoints=pinpoints), **settings)
    text = ["<image>"] * len(sizes)
    inputs = processor(images=pictures(sizes), text=text, padding=True, return_tensors="pt")
    output = features_of(model, inputs)
    counts = counts_of(inputs)
    assert counts == [len(one) for one in output.pooler_output]
    surplus = output.surplus.split(counts)
    for one in surplus:  # what is left over comes first: a prompt may end with the picture
        assert one.tolist() == sorted(one.tolist(), reverse=True)
        assert not one[-1]
    assert model(**inputs).logits.isfinite().all()


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_every_grid_of_a_pinpoint_list(grid):
    """One resolution to choose from: every picture gets this grid."""
    model, processor = hired.apply_hired(*make(pinpoints=(grid,)), budget=0.5)
    sizes = [(60, 60), (30, 200), (200, 30)]
    inputs = processor(
        images=pictures(sizes), text=["<image>"] * 3, padding=True, return_tensors="pt"
    )
    layouts = [model.hired.anatomy.layout(*size) for size in sizes]
    assert all(layout.grid == grid for layout in layouts)
    output = features_of(model, inputs)
    assert counts_of(inputs) == [layout.kept(layout.budget(0.5)) for layout in layouts]
    assert counts_of(inputs) == [len(one) for one in output.pooler_output]


def test_counts_are_known_before_anything_is_encoded():
    """As engines ask: from the size alone, at LLaVA-NeXT's own shape."""
    anatomy = Anatomy(336, 14, geometry.LLAVA_NEXT_PINPOINTS)
    settings = Settings(0.2)
    assert placeholders(settings, anatomy, 672, 672) == 576
    assert placeholders(settings, anatomy, 336, 672) == int(3 * 576 * 0.2)
    assert placeholders(Settings(100), anatomy, 768, 1024) == 100
    assert placeholders(Settings(1.0, newlines=True), anatomy, 672, 672) == 2880 + 48
    assert placeholders(Settings(0.2, policy="published"), anatomy, 1080, 1920) == 576


@pytest.mark.parametrize("kind", ["llava-next-llama", "llava"])
def test_processors_answer_engines(kind):
    """`_get_num_multimodal_tokens`, which vLLM asks, gives the switched counts."""
    _, processor = hired.apply_hired(*make(kind), budget=0.25)
    sizes = [(168, 168), (84, 168)]
    text = ["<image>"] * 2
    inputs = processor(images=pictures(sizes), text=text, padding=True, return_tensors="pt")
    expected = counts_of(inputs)
    assert processor._get_num_multimodal_tokens(sizes)["num_image_tokens"] == expected


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_of_another_processor_say_what_to_call(kind):
    stock, processor = make(kind)
    image, text = picture((168, 168)), "what <image>"
    unpatched = processor(images=image, text=text, return_tensors="pt")
    model, processor = hired.apply_hired(stock, processor, budget=0.25)
    patched = processor(images=image, text=text, return_tensors="pt")
    expected, found = counts_of(patched)[0], counts_of(unpatched)[0]
    said = (
        rf"hired: input_ids: expected {expected} image placeholders for these pictures, got {found}"
        r".*apply_hired\(model, processor, budget=0.25\)"
    )
    for call in (model, model.generate):
        with pytest.raises(ValueError, match=said):
            call(**unpatched)
    other = hired.apply_hired(make(kind)[0], processor, budget=0.5)[1]
    with pytest.raises(ValueError, match=rf"expected {expected} image placeholders"):
        model(**other(images=image, text=text, return_tensors="pt"))


@pytest.mark.parametrize("settings", [{"newlines": True}, {"policy": "published"}], ids=str)
def test_inputs_of_another_processor_where_counts_are_the_devices(settings):
    stock, processor = make()
    inputs = processor(images=picture((168, 168)), text="<image>", return_tensors="pt")
    model, _ = hired.apply_hired(stock, processor, **settings)
    for call in (model, model.generate):
        with pytest.raises(ValueError, match="hired: input_ids: expected"):
            call(**inputs)


def test_a_processor_left_behind_says_so():
    model, processor = hired.apply_hired(*make())
    hired.remove_hired(model)
    with pytest.raises(ValueError, match=re.escape("Call remove_hired(model, processor)")):
        processor(images=picture((168, 168)), text="<image>", return_tensors="pt")
    hired.remove_hired(None, processor)
    inputs = processor(images=picture((168, 168)), text="<image>", return_tensors="pt")
    assert model(**inputs).logits.isfinite().all()


@pytest.mark.parametrize("settings", [{}, {"newlines": True}, {"policy": "published"}], ids=str)
@torch.no_grad()
def test_features_and_prompts_are_made_without_a_value(settings):
    """Nothing waits for the device: tensors without values run through it all."""
    sizes = [(168, 168), (100, 200)]
    model, processor = hired.apply_hired(*make(), **settings)
    text = ["what <image>", "<image> is this"]
    inputs = processor(images=pictures(sizes), text=text, padding=True, return_tensors="pt")
    expected = features_of(model, inputs)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        output = model.get_image_features(mode.from_tensor(inputs["pixel_values"]), sizes)
        if output.surplus is not None:
            names = ("input_ids", "attention_mask")
            arguments = {name: mode.from_tensor(inputs[name]) for name in names}
            hide(arguments, hidden_columns(model, arguments, output))
            assert arguments["position_ids"].shape == inputs["input_ids"].shape
    shapes = [one.shape for one in output.pooler_output]
    assert shapes == [one.shape for one in expected.pooler_output]


def test_pixels_that_do_not_fit_their_sizes():
    model, processor = hired.apply_hired(*make())
    inputs = processor(images=picture((168, 168)), text="<image>", return_tensors="pt")
    pixels, sizes = inputs["pixel_values"], inputs["image_sizes"]
    with pytest.raises(ValueError, match=r"pixel_values: expected 5 partitions .* got 4"):
        model.get_image_features(pixels[0, :4], sizes)
    with pytest.raises(ValueError, match="pixel_values: expected rank 4 or 5, got rank 3"):
        model.get_image_features(pixels[0, 0], sizes)
    with pytest.raises(ValueError, match="a row for each picture, got 1 for 2 image_sizes"):
        model.get_image_features(pixels, sizes.repeat(2, 1))
    with torch.no_grad():
        flat = model.get_image_features(pixels[0], sizes)
        assert torch.equal(flat.indices, features_of(model, inputs).indices)


@pytest.mark.parametrize("case", FINE[::6], ids=lambda case: case.id)
def test_published_is_what_was_recorded(case, monkeypatch):
    """The pictures of the recorded cases, their attention put in: the recorded tokens in order."""
    settings = Settings(case.rate, case.alpha, "published")
    anatomy = Anatomy(336, 14, geometry.LLAVA_NEXT_PINPOINTS)
    todo = plan(settings, anatomy, case.sizes)
    assert todo.partitions == case.num_partitions
    rows = torch.from_numpy(case.attn_init), torch.from_numpy(case.attn_final)

    def with_recorded_rows(features, *scores, scale, **options):
        return hired.select(features, *rows, **options)

    monkeypatch.setattr(hired_tower, "select_qk", with_recorded_rows)
    features = torch.zeros(sum(todo.partitions), T, 1)
    kept = hired_tower._select(features, (), 1.0, todo, settings)
    assert kept.compact().indices.tolist() == case.order.tolist()
    assert int(kept.counts.max()) <= todo.most
    order, lengths = packed(case, todo.grids, todo.crops)
    assert order == kept.compact().indices.tolist()
    assert lengths == case.feature_lens == [
        int((one >= 0).sum()) for one in kept.indices.split(todo.rows)
    ]  # fmt: skip


@pytest.mark.parametrize("size", [(672, 672), (300, 900), (900, 340), (1080, 1920)], ids=str)
@torch.no_grad()
def test_published_is_the_published_pipeline(size):
    """Stage by stage as its code does it, the projector before the drop, at LLaVA-NeXT's shape."""
    stock, processor = make(tile=336, layers=3)
    image = picture(size)
    pixels = processor.image_processor(image, return_tensors="pt")["pixel_values"][0]
    layout = Anatomy.of(stock.config).layout(*size)
    tower = stock.model.vision_tower
    states = tower(pixels, output_hidden_states=True).hidden_states
    init, final = (taken_apart.queries_and_keys(tower, n, states[n]) for n in (0, 1))
    kept = published.select(
        stock.model.multi_modal_projector(states[-2][:, 1:]),
        *init, *final, grids=[layout.grid], sizes=[size], rate=0.2, alpha=0.5,
    )  # fmt: skip
    model, processor = hired.apply_hired(stock, processor, policy="published")
    inputs = processor(images=image, text="<image>", return_tensors="pt")
    assert counts_of(inputs) == [published.token_budget(layout.partitions, T, 0.2)]
    output = features_of(model, inputs)
    ours = output.pooler_output[0][~output.surplus]
    assert len(ours) == kept.lengths[0]
    torch.testing.assert_close(ours, kept.tokens, rtol=1e-4, atol=1e-4)
