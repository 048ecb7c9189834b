# SPDX-License-Identifier: Apache-2.0
"""`demo --model`: a whole model is loaded once, seen with and asked, by its own prompt.

The models are small ones with random weights, saved as transformers saves them. What they say is
what `generate` says, stock and switched on.
"""

from __future__ import annotations

import re

import llava_models
import pytest
import torch
from PIL import Image
from transformers import (
    CLIPVisionConfig,
    LlavaConfig,
    SiglipVisionConfig,
)

import hired_kernels as hired
from hired_kernels import cli
from hired_kernels.cli import checkpoint, demo, question

WORDS = [*llava_models.WORDS, "in", "picture", "?", "USER", ":", "ASSISTANT", "leaf", "green"]
TEMPLATE = (
    "{% for turn in messages %}<s> USER: {% for part in turn.content %}"
    "{% if part.type == 'image' %}<image> {% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)
PLAIN = "USER: <image>\n{} ASSISTANT:"
TEMPLATED = "<s> USER: <image> {} ASSISTANT:"


def save(kind, folder, template=None, **changes):
    """Model and processor, saved; of a model for videos the processor is returned alone."""
    model, processor = llava_models.make(kind, words=WORDS, **changes)
    processor.chat_template = template
    model.save_pretrained(folder)
    if kind != "llava-next-video":
        processor.save_pretrained(folder)
    return model, processor


def picture(folder):
    path = folder / "picture.png"
    llava_models.picture((200, 260)).save(path)
    return path


def expected(model, processor, path, prompt, longest=20, **switched):
    """What the model says, and with how many visual tokens."""
    if switched:
        hired.apply_hired(model, processor, **switched)
    inputs = processor(images=Image.open(path).convert("RGB"), text=prompt, return_tensors="pt")
    length = inputs["input_ids"].shape[1]
    output = model.generate(**inputs, max_new_tokens=longest, do_sample=False)
    hired.remove_hired(model, processor)
    said = processor.tokenizer.decode(output[0, length:], skip_special_tokens=True).strip()
    return said or "(nothing)", int((inputs["input_ids"] == 4).sum())


@pytest.mark.parametrize(
    ("kind", "template", "prompt"),
    [
        ("llava-next-llama", None, PLAIN),
        ("llava-next-mistral", TEMPLATE, TEMPLATED),
        ("llava", None, PLAIN),
        ("sharegpt4v", TEMPLATE, TEMPLATED),
        ("llava-layers", None, PLAIN),
        ("vipllava", TEMPLATE, TEMPLATED),
        ("llava-next-video", None, PLAIN),
    ],
)
def test_a_model_is_asked_with_all_tokens_and_with_the_kept_ones(
    kind, template, prompt, tmp_path, capsys, monkeypatch
):
    model, processor = save(kind, tmp_path / "model", template)
    if kind == "llava-next-video":  # its processor takes torchvision to load

        def load(name, **options):
            return processor

        monkeypatch.setattr(checkpoint.AutoProcessor, "from_pretrained", load)
    path = picture(tmp_path)
    out = tmp_path / "demo.png"
    capsys.readouterr()
    arguments = [str(path), "--model", str(tmp_path / "model"), "--out", str(out)]
    assert cli.main(["demo", *arguments, "--question", "what is shown ?", "--budget", "0.3"]) == 0
    said = capsys.readouterr().out
    asked = prompt.format("what is shown ?")
    for name, switched in (("all tokens", {}), ("kept tokens", {"budget": 0.3})):
        text, tokens = expected(model, processor, path, asked, **switched)
        assert f"{name}: {text}; {tokens:,} visual tokens, " in said
    assert "question    what is shown ?\n" in said
    assert "on cpu, float32" in said
    assert "andom weights" not in said
    *_, kept = re.findall(r"^(?:full image|the picture) .*$", said, re.MULTILINE)
    assert kept.split()[-3] == str(tokens)
    assert Image.open(out).format == "PNG"
    assert "what is shown ?" in out.with_suffix(".html").read_text()


def test_the_photograph_and_a_question_come_along(tmp_path, capsys):
    save("llava-next-llama", tmp_path / "model")
    capsys.readouterr()
    arguments = ["--model", str(tmp_path / "model"), "--out", str(tmp_path / "demo.png")]
    assert cli.main(["demo", *arguments, "--new-tokens", "3"]) == 0
    said = capsys.readouterr().out
    assert "picture     the photograph that comes along, 1024 x 768 pixels" in said
    assert f"question    {question.DEFAULT}" in said
    every = re.search(r"all tokens: (.*); ", said)
    assert every
    assert len(every[1].split()) <= 3


def test_a_model_is_loaded_once(tmp_path):
    save("llava-next-llama", tmp_path / "model")
    whole = checkpoint.load(str(tmp_path / "model"))
    assert whole.vision.tower is whole.model.model.vision_tower
    assert whole.vision.projector is whole.model.model.multi_modal_projector
    assert whole.image_token == 4


def test_what_is_drawn_is_what_the_model_keeps(tmp_path):
    model, processor = save("llava-next-llama", tmp_path / "model")
    path = picture(tmp_path)
    outcome = demo.run(
        str(path),
        model=str(tmp_path / "model"),
        longest=2,
        out=str(tmp_path / "demo.png"),
        say=lambda line: None,
    )
    hired.apply_hired(model, processor, budget=0.2)
    inputs = processor(images=Image.open(path).convert("RGB"), text="<image>", return_tensors="pt")
    with torch.no_grad():
        found = model.get_image_features(
            pixel_values=inputs["pixel_values"], image_sizes=inputs["image_sizes"]
        )
    mask = torch.zeros_like(outcome.kept).view(-1)
    mask[found.indices] = True
    assert torch.equal(mask.view_as(outcome.kept), outcome.kept)


def test_a_model_stays_stock_after_its_answers(tmp_path):
    save("llava", tmp_path / "model")
    whole = checkpoint.load(str(tmp_path / "model"))
    asked = question.general(whole, None, 2)
    kind = type(whole.model)
    first = question.answers(whole, Image.new("RGB", (90, 90)), asked, [None, 0.5, 3])
    assert [answer.tokens for answer in first] == [36, 18, 3]
    assert all(0 < answer.first <= answer.whole for answer in first)
    assert type(whole.model) is kind
    assert "hired" not in vars(whole.model)


def refusal(capsys):
    said = capsys.readouterr().err
    assert re.fullmatch(r"hired demo: [^\n]+\n", said), said
    return said


def test_a_model_without_room_is_one_line(tmp_path, capsys, monkeypatch):
    model, _ = save("llava", tmp_path / "model")
    count = sum(weight.numel() for weight in model.parameters())
    name, out = str(tmp_path / "model"), str(tmp_path / "demo.png")
    monkeypatch.setattr(checkpoint, "_free_memory", lambda: 4 * count)
    assert checkpoint.load(name).model.dtype == torch.bfloat16
    assert cli.main(["demo", "--model", name, "--out", out, "--new-tokens", "2"]) == 0
    assert "on cpu, bfloat16" in capsys.readouterr().out
    monkeypatch.setattr(checkpoint, "_free_memory", lambda: 5 * count)
    assert checkpoint.load(name).model.dtype == torch.float32
    monkeypatch.setattr(checkpoint, "_free_memory", lambda: 2 * count)
    capsys.readouterr()
    assert cli.main(["demo", "--model", name, "--out", out]) == 2
    assert "GB of free memory, got" in refusal(capsys)


def test_memory_is_read_where_the_system_says_it(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "_MEMORY", tmp_path / "meminfo")
    assert checkpoint._free_memory() is None
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:    3 kB\n")
    assert checkpoint._free_memory() == 3072


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory")])
def test_what_fails_while_answering_is_one_line(error, tmp_path, capsys, monkeypatch):
    def fail(*arguments, **options):
        raise error

    save("llava", tmp_path / "model")
    monkeypatch.setattr("transformers.LlavaForConditionalGeneration.generate", fail)
    capsys.readouterr()
    arguments = ["--model", str(tmp_path / "model"), "--out", str(tmp_path / "demo.png")]
    assert cli.main(["demo", *arguments]) == 2
    assert f"model {tmp_path / 'model'}: {str(error) or 'MemoryError'}" in refusal(capsys)


def test_a_broken_chat_template_is_one_line(tmp_path, capsys):
    save("llava", tmp_path / "model", "{{ raise_exception('no such role') }}")
    capsys.readouterr()
    arguments = ["--model", str(tmp_path / "model"), "--out", str(tmp_path / "demo.png")]
    assert cli.main(["demo", *arguments]) == 2
    assert "no such role" in refusal(capsys)


def test_a_model_without_a_tokenizer_is_not_asked(tmp_path, capsys):
    _, processor = save("llava", tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json", "processor_config.json"):
        (tmp_path / "model" / name).unlink()
    processor.image_processor.save_pretrained(tmp_path / "model")
    capsys.readouterr()
    arguments = ["--model", str(tmp_path / "model"), "--out", str(tmp_path / "demo.png")]
    assert cli.main(["demo", *arguments]) == 2
    assert "its processor does not load: " in refusal(capsys)
    assert cli.main(["demo", *arguments, "--new-tokens", "0"]) == 0
    assert "question" not in capsys.readouterr().out


@pytest.mark.parametrize("longest", ["0", "5"])
def test_other_models_are_refused(longest, tmp_path, capsys):
    LlavaConfig(vision_config=SiglipVisionConfig()).save_pretrained(tmp_path / "siglip")
    tower = CLIPVisionConfig(num_hidden_layers=4)
    LlavaConfig(vision_config=tower, vision_feature_select_strategy="full").save_pretrained(
        tmp_path / "full"
    )
    LlavaConfig(vision_config=tower, vision_feature_layer=-9).save_pretrained(tmp_path / "layer")
    for name, reason in (
        (
            "siglip",
            "expected LLaVA-1.5, .* or VipLLaVA with CLIP, got llava with siglip_vision_model",
        ),
        ("full", "expected features without CLS, got them with it"),
        ("layer", "expected the output of one of 4 layers, got -9"),
    ):
        arguments = ["--model", str(tmp_path / name), "--out", str(tmp_path / "demo.png")]
        assert cli.main(["demo", *arguments, "--new-tokens", longest]) == 2
        assert re.search(reason, refusal(capsys))


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--question", "Which dog barks?"], "'dog' is not among those it knows; it can be asked"),
        (["--question", "  "], "it is empty; it can be asked: which digit stands next to the"),
        (["--tower", "tiny", "--question", "What?"], "random weights cannot answer: give --model"),
        (["{picture}", "--question", "What?"], "random weights cannot answer: give --model"),
        (["--model", "any", "--new-tokens", "0", "--question", "What?"], "got 0 new tokens"),
    ],
)
def test_questions_that_nobody_can_answer_are_one_line(arguments, reason, tmp_path, capsys):
    arguments = [each.format(picture=picture(tmp_path)) for each in arguments]
    assert cli.main(["demo", *arguments, "--out", str(tmp_path / "demo.png")]) == 2
    said = refusal(capsys)
    assert said.startswith("hired demo: question: ")
    assert reason in said


@pytest.mark.parametrize("asked", ["Which SHAPE stands next to the 4?", "how many circle shapes"])
def test_the_model_that_comes_along_can_be_asked(asked, tmp_path, capsys):
    out = ["--out", str(tmp_path / "demo.png")]
    assert cli.main(["demo", *out, "--question", asked]) == 0
    said = capsys.readouterr().out
    if asked.startswith("Which"):
        assert "question    Which shape stands next to the 4? (it is square)" in said
        assert re.search(r"all tokens: \w+; 320 visual", said)
    else:
        assert "question    How many circle shapes?\n" in said  # nobody has the right answer


@pytest.mark.parametrize("count", ["-1", "1.5", "many", ""])
def test_new_tokens_are_a_count(count, capsys):
    with pytest.raises(SystemExit):
        cli.main(["demo", "--new-tokens", count])
    assert f"expected a count, got {count!r}" in refusal(capsys)
