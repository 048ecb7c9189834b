# SPDX-License-Identifier: Apache-2.0
"""InternVL and LLaVA-OneVision with the processors that `AutoProcessor` loads, where torchvision is
installed (`make test-vllm`): image processors, chat templates, videos."""

import re
from pathlib import Path

import internvl_models
import llava_models
import numpy as np
import pytest
import torch
import transformers
from torchvision_processors import internvl, onevision

import hired_kernels as hired

pytest.importorskip("torchvision")

FILM = np.random.default_rng(0).integers(0, 255, (4, 60, 90, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    pass


def turn(*parts):
    return [{"role": "user", "content": [*parts, {"type": "text", "text": "what is this"}]}]


def image(picture):
    return {"type": "image", "image": picture}


@torch.no_grad()
def test_internvl(tmp_path):
    model, processor, plain = internvl(tmp_path)
    assert "Pil" not in type(processor.image_processor).__name__
    pictures = llava_models.pictures(internvl_models.SIZES)
    given = {"text": ["<IMG_CONTEXT> what"] * len(pictures), "padding": True}
    given |= {"images": pictures, "return_tensors": "pt"}
    whole = processor(**given)
    model, processor = hired.apply_hired(model, processor, budget=0.3)
    inputs = processor(**given)
    assert torch.equal(inputs["pixel_values"], whole["pixel_values"])
    plain = hired.apply_hired(model, plain, budget=0.3)[1]
    assert torch.equal(inputs["hired_tiles"], plain(**given)["hired_tiles"])
    hired.apply_hired(model, processor, budget=0.3)
    assert model.generate(**inputs, max_new_tokens=2).shape[0] == len(pictures)
    chat = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    inputs = processor.apply_chat_template(turn(*map(image, pictures[:2])), **chat)
    assert inputs["hired_tiles"].tolist() == [[2, 2, 0], [1, 3, 0]]
    assert model.generate(**inputs, max_new_tokens=2).shape[0] == 1
    for budget, tokens in ((None, 9), (0.5, 4)):
        hired.apply_hired(model, processor, budget=0.3, video_budget=budget)
        inputs = processor(videos=[FILM], text="<video> what", return_tensors="pt")
        assert inputs["hired_tiles"].tolist() == [[0, 0, 1]] * 4
        placeholder = inputs["input_ids"] == internvl_models.IMAGE
        assert int(placeholder.sum()) == 4 * tokens
        assert model(**inputs).logits.isfinite().all()
    hired.remove_hired(model, processor)
    assert type(processor.image_processor) is transformers.GotOcr2ImageProcessor


@torch.no_grad()
def test_onevision(tmp_path):
    model, processor, plain = onevision(tmp_path)
    pictures = llava_models.pictures(llava_models.SIZES)
    model, processor = hired.apply_hired(model, processor, budget=0.3)
    given = {"text": ["<image> what"] * len(pictures), "padding": True}
    inputs = processor(images=pictures, return_tensors="pt", **given)
    plain = hired.apply_hired(model, plain, budget=0.3)[1]
    theirs = plain(images=pictures, return_tensors="pt", **given)
    assert torch.equal(inputs["input_ids"], theirs["input_ids"])
    hired.apply_hired(model, processor, budget=0.3)
    assert model.generate(**inputs, max_new_tokens=2).shape[0] == len(pictures)
    chat = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    inputs = processor.apply_chat_template(turn(*map(image, pictures[:2])), **chat)
    assert inputs["batch_num_images"].tolist() == [2]
    assert int((inputs["input_ids"] == 4).sum()) == 2 * int(36 * 0.3)
    assert model.generate(**inputs, max_new_tokens=2).shape[0] == 1
    for positions in ("kept", "original"):
        hired.apply_hired(model, processor, budget=0.3, positions=positions)
        inputs = processor(
            videos=[FILM], images=pictures[:1], text="<video> what <image>", return_tensors="pt"
        )
        assert model.generate(**inputs, max_new_tokens=2).shape[0] == 1


def test_the_example_of_the_docs(tmp_path):
    model, *_ = internvl(tmp_path)
    model.save_pretrained(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
    snippets = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (text,) = [one for one in snippets if "apply_chat_template" in one]
    text, replaced = re.subn(r'name = "[\w./-]+"', f"name = {str(tmp_path)!r}", text)
    assert replaced == 1
    names = {
        "hired": hired,
        "AutoModelForImageTextToText": transformers.AutoModelForImageTextToText,
        "AutoProcessor": transformers.AutoProcessor,
        "image": llava_models.picture((160, 250)),
    }
    text = text.replace(', device_map="auto"', "")  # which needs accelerate
    exec(compile(text, "docs", "exec"), names)
    assert names["model"].hired.settings.budget == 0.2
    assert names["answer"].shape[1] > names["inputs"]["input_ids"].shape[1]
