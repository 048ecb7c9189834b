# SPDX-License-Identifier: Apache-2.0
"""lmms-eval with the plugin: what it writes down is what the switched model answers."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import asked as asking
import lmms_eval.models
import pytest
import torch
from lmms_eval.api.instance import Instance

import hired_kernels as hired
from hired_kernels.lmms_eval import MODELS
from hired_kernels.models.accounting import Anatomy, Settings


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    pass


def made(asked: asking.Asked, options: str, model: str = "hired_llava_hf", simple: bool = False):
    """A model as `--model` and `--model_args` make it, in this process."""
    kind = lmms_eval.models.get_model(model, force_simple=simple)
    folder = asked.folder / "models" / ("signs" if "llava" in model else "internvl")
    arguments = f"pretrained={folder},{options}"
    return kind.create_from_arg_string(arguments, {"batch_size": 1, "device": "cpu"})


def test_the_command(asked: asking.Asked) -> None:
    """As docs/accuracy.md has it."""
    model = f"pretrained={asked.folder}/models/signs,dtype=float32,budget=0.1"
    out = asked.folder / "out" / "command"
    said, run = asked.command(out, "--model", "hired_llava_hf", "--model_args", model)
    assert run.answers == asked.directly("signs", torch.float32, {"budget": 0.1})
    right = [a == row["answer"] for a, row in zip(run.answers, asked.rows, strict=True)]
    assert sum(right) / len(right) >= 0.8  # at random: a tenth
    assert run.results["results"]["signs"]["exact_match,none"] == sum(right) / len(right)
    assert f"HiRED is on: {Settings(0.1)}" in said


@pytest.mark.parametrize("name", asking.RUNS)
def test_answers_are_the_switched_models(
    asked: asking.Asked, run: Callable[[str], asking.Run], name: str
) -> None:
    folder, _, _, options = asking.RUNS[name]
    dtype = torch.bfloat16 if name == "internvl" else torch.float32
    images = {"min_patches": 1, "max_patches": 12} if name == "internvl" else {}
    assert run(name).answers == asked.directly(folder, dtype, options, **images)
    # And with another budget others, or nothing would have been compared.
    other = {**(options or {}), "budget": 1}
    assert run(name).answers != asked.directly(folder, dtype, other, **images)


@pytest.mark.parametrize("simple", [False, True], ids=["chat", "simple"])
@pytest.mark.parametrize("budget", [0.2, 16])
def test_as_many_tokens_are_kept_as_the_budget_says(
    asked: asking.Asked, monkeypatch: pytest.MonkeyPatch, budget: float, simple: bool
) -> None:
    """The prompts that reach `generate` have as many placeholders."""
    lm = made(asked, f"dtype=float32,budget={budget}", simple=simple)
    seen, generate = [], lm.model.generate

    def watched(**inputs: Any) -> torch.Tensor:
        placeholder = lm.model.config.image_token_index
        seen.append(int((inputs["input_ids"] == placeholder).sum()))
        return generate(**inputs)

    monkeypatch.setattr(lm.model, "generate", watched)
    lm.task_dict["signs"] = {"test": asked.rows}
    requests = []
    for number, row in enumerate(asked.rows):
        parts = [{"type": "image", "url": row["image"]}, {"type": "text", "text": row["question"]}]
        chat = [{"role": "user", "content": parts}]
        given: dict[str, Any] = {"max_new_tokens": 1}
        arguments = (
            (row["question"], given, lambda doc: [doc["image"]], number, "signs", "test")
            if simple
            else (row["question"], lambda doc, chat=chat: chat, given, number, "signs", "test")
        )
        instance = Instance(
            "generate_until", arguments, 0, {"task": "signs", "doc_id": number, "repeats": 1}
        )
        requests.append(instance)
    answers = lm.generate_until(requests)
    anatomy = Anatomy.of(lm.model.config)
    sizes = [row["image"].size[::-1] for row in asked.rows]
    layouts = [anatomy.layout(*size) for size in sizes]
    whole = isinstance(budget, int)
    expected = [budget if whole else layout.budget(budget) for layout in layouts]
    assert sorted(seen) == sorted(expected)  # the simple model asks in an order of its own
    assert whole or len(set(expected)) > 1
    texts = [getattr(answer, "text", answer) for answer in answers]
    assert texts == asked.directly("signs", torch.float32, {"budget": budget})


def test_every_option_is_passed_on(asked: asking.Asked) -> None:
    given = {"budget": 32, "alpha": 0.25, "policy": "exact", "newlines": True, "judge": 16,
             "video_budget": None, "positions": "original"}  # fmt: skip
    assert list(given) == list(inspect.signature(hired.apply_hired).parameters)[2:]
    lm = made(asked, ",".join(f"{name}={value}" for name, value in given.items()))
    assert lm.model.hired.settings == Settings(**given)
    assert lm._image_processor.hired is lm.model.hired


def test_without_options_they_are_those_of_apply_hired(asked: asking.Asked) -> None:
    lm = made(asked, "dtype=float32")
    model, processor = asked.loaded("signs", torch.float32)
    assert lm.model.hired.settings == hired.apply_hired(model, processor)[0].hired.settings
    assert lm.model.dtype == torch.float32


@pytest.mark.parametrize("model", [f"hired_{name}" for name in MODELS])
def test_an_unknown_option_is_named(asked: asking.Asked, model: str) -> None:
    with pytest.raises(ValueError, match=r"expected some of budget, alpha, policy, .*pretrained"):
        made(asked, "bugdet=0.2", model)
    with pytest.raises(ValueError, match=r"got bugdet, polici$"):
        made(asked, "bugdet=0.2,budget=0.2,polici=exact", model)


def test_what_apply_hired_refuses_is_refused(asked: asking.Asked) -> None:
    with pytest.raises(ValueError, match=r"hired: budget: expected .*, got 2.0"):
        made(asked, "budget=2.0")
    with pytest.raises(ValueError, match="hired: policy: expected"):
        made(asked, "policy=None")


@pytest.mark.parametrize("name", MODELS)
def test_lmms_eval_has_the_models_beside_its_own(name: str) -> None:
    assert {name, f"hired_{name}"} <= set(lmms_eval.models.list_available_models())
    for simple in (False, True):
        ours = lmms_eval.models.get_model(f"hired_{name}", force_simple=simple)
        theirs = lmms_eval.models.get_model(name, force_simple=simple)
        assert issubclass(ours, theirs)
        assert ours.is_simple == theirs.is_simple
