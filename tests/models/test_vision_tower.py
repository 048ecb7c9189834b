# SPDX-License-Identifier: Apache-2.0
"""The vision tower yields what a plain forward pass computes, as views in the operators' shapes.

Queries and keys are held to transformers' own eager attention; models are loaded from folders that
transformers itself wrote, and refused, in one line, where they are not what is needed.
"""

import pytest
import torch
from PIL import Image
from saved_models import MODELS, VISION, save
from transformers import AutoConfig, CLIPVisionConfig, CLIPVisionModel

from hired_kernels import published
from hired_kernels.cli import loading, taken_apart
from hired_kernels.models import vision_tower

PICTURE = Image.radial_gradient("L").convert("RGB").resize((500, 400))


@pytest.mark.parametrize(
    ("layers", "feature_layer", "expected"),
    [(24, -2, 22), (24, -1, 23), (24, 1, 0), (24, 24, 23), (24, -24, 0), (2, -2, 0)],
)
def test_selection_layer_makes_the_feature_layers_output(layers, feature_layer, expected):
    assert vision_tower.selection_layer(layers, feature_layer) == expected


@pytest.mark.parametrize("feature_layer", [0, 25, -25, -26])
def test_embeddings_are_no_layers_output(feature_layer):
    with pytest.raises(ValueError, match="feature_layer: expected the output of one of 24 layers"):
        vision_tower.selection_layer(24, feature_layer)


@pytest.mark.parametrize("feature_layer", [-2, -1, 1])
@torch.no_grad()
def test_begin_and_finish_all_are_a_forward_pass_with_two_layers_laid_open(feature_layer):
    model = loading.random_model("tiny")
    pixels = model.pixels(PICTURE)
    encoded = taken_apart.begin(model.tower, pixels, feature_layer)
    plain = model.tower(pixels, output_hidden_states=True)
    final = vision_tower.selection_layer(4, feature_layer)
    same = {"rtol": 0, "atol": 0}
    torch.testing.assert_close(encoded.hidden, plain.hidden_states[final], **same)
    hidden = taken_apart.finish_all(model.tower, encoded)
    torch.testing.assert_close(hidden, plain.hidden_states[feature_layer], **same)
    rest = taken_apart.run_remaining_layers(model.tower, hidden, feature_layer)
    torch.testing.assert_close(rest, plain.pooler_output, **same)

    model.tower.set_attn_implementation("eager")
    attentions = model.tower(pixels, output_attentions=True).attentions
    for layer, query, key in (
        (0, encoded.query_init, encoded.key_init),
        (final, encoded.query_final, encoded.key_final),
    ):
        rows = published.attention_rows(query[:, None], key, 576)
        torch.testing.assert_close(rows, attentions[layer][:, :, 0, 1:])


@torch.no_grad()
def test_begin_gives_the_operators_shapes():
    model = loading.random_model("tiny")
    encoded = taken_apart.begin(model.tower, model.pixels(PICTURE), full_images=[0])
    assert encoded.features.shape == (5, 576, 64)
    assert encoded.query_init.shape == (1, 2, 32)
    assert encoded.query_final.shape == (5, 2, 32)
    assert encoded.key_init.shape == (1, 577, 2, 32)
    assert encoded.key_final.shape == encoded.value.shape == (5, 577, 2, 32)
    for tensor in (encoded.features, *encoded.scores()):
        assert tensor.stride(-1) == 1
    assert encoded.features.data_ptr() == encoded.hidden[:, 1:].data_ptr()


@torch.no_grad()
def test_running_the_tower_leaves_it_as_it_was():
    tower = loading.random_model("tiny").tower
    tower.set_attn_implementation("eager")
    before = {name: dict(vars(module)) for name, module in tower.named_modules()}
    with pytest.raises(RuntimeError, match="channels"):
        taken_apart.begin(tower, torch.zeros(1, 2, 336, 336))
    taken_apart.begin(tower, torch.zeros(1, 3, 336, 336))
    assert tower.config._attn_implementation == "eager"
    assert before == {name: dict(vars(module)) for name, module in tower.named_modules()}


def test_random_weights_are_the_same_every_time():
    first, second, other = (loading.random_model("tiny", seed) for seed in (0, 0, 1))
    weights = [model.tower.encoder.layers[2].mlp.fc1.weight for model in (first, second, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("kind", MODELS)
def test_a_saved_model_is_loaded_without_its_language_model(kind, tmp_path, capfd):
    saved = save(kind, tmp_path)
    capfd.readouterr()
    model = loading.load_model(str(tmp_path))
    assert "hired" not in capfd.readouterr().out
    for ours, theirs in (
        (model.tower, saved.model.vision_tower),
        (model.projector, saved.model.multi_modal_projector),
    ):
        weights = ours.state_dict()
        assert weights.keys() == theirs.state_dict().keys()
        assert all(torch.equal(weights[key], value) for key, value in theirs.state_dict().items())
    assert not model.random
    assert model.layers == (3, 4)
    layout = model.layout(PICTURE.height, PICTURE.width)
    assert layout.grid == ((0, 0) if kind == "llava" else (2, 2))
    pixels = model.pixels(PICTURE)
    assert pixels.shape == (layout.partitions, 3, 336, 336)
    assert model.colours(pixels).shape == (layout.partitions, 336, 336, 3)


def test_colours_undo_the_normalisation():
    model = loading.random_model("tiny")
    flat = Image.new("RGB", (672, 672), (200, 100, 50))
    colours = model.colours(model.pixels(flat))
    assert torch.equal(colours, torch.tensor([200, 100, 50], dtype=torch.uint8).expand_as(colours))


def test_models_of_another_kind_are_refused(tmp_path):
    CLIPVisionModel(CLIPVisionConfig(**VISION)).save_pretrained(tmp_path / "clip")
    save("llava-next", tmp_path / "full", vision_feature_select_strategy="full")
    save("llava-next", tmp_path / "two", vision_feature_layer=[-2, -9])
    save("llava-next", tmp_path / "none")
    (tmp_path / "none" / "preprocessor_config.json").unlink()
    (tmp_path / "empty").mkdir()
    for folder, expected in (
        ("clip", "expected LLaVA-1.5, .* or VipLLaVA with CLIP, got clip_vision_model"),
        ("full", "expected features without CLS"),
        ("two", r"expected the output of one of 4 layers, got \[-2, -9\]"),
        ("none", "processor"),
        ("empty", "model_type"),
        ("absent", "neither a folder nor a hub name"),
    ):
        with pytest.raises(loading.ModelError, match=expected) as raised:
            loading.load_model(str(tmp_path / folder))
        assert "\n" not in str(raised.value)


def test_missing_weights_are_no_weights(tmp_path):
    save("llava-next", tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    config.vision_config.num_hidden_layers = 5
    config.save_pretrained(tmp_path)
    with pytest.raises(loading.ModelError, match="weights are missing: vision_tower"):
        loading.load_model(str(tmp_path))
