# SPDX-License-Identifier: Apache-2.0
"""A tiny model on disk, asked in transformers and, in a process of its own, in vLLM."""

from __future__ import annotations

import base64
import io
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

import folders
import llava_models

import hired_kernels as hired

NEW_TOKENS = 8
# Where the best two logits are closer than this, rounding decides; those of the tiny models lie
# some units apart.
CLOSE = 1e-3
# What no request may ask for, whatever its pictures.
NO_BUDGETS = [2.0, 0.0, float("nan"), -1, 0, 2**31, 10**30, True, "0.1", [0.1], {"a": 1}]


@dataclass(frozen=True)
class Request:
    """Pictures by (height, width) and a budget for them: "server" for none of the request's own."""

    sizes: tuple[tuple[int, int], ...]
    budget: Any = "server"
    seed: int = 0

    @property
    def pictures(self) -> list:
        numbered = enumerate(self.sizes, self.seed)
        return [llava_models.picture(size, number) for number, size in numbered]

    @property
    def text(self) -> str:
        return f"<s> {'<image> ' * len(self.sizes)}what is this"

    @property
    def processor_kwargs(self) -> dict[str, Any]:
        return {} if self.budget == "server" else {"hired_budget": self.budget}


def png_url(picture: Any) -> str:
    """A picture as a client sends it."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


@dataclass(frozen=True)
class Answer:
    """Tokens of the prompt, and new ones. `sure` of the latter do not hang on rounding."""

    prompt: int
    tokens: list[int]
    sure: int = NEW_TOKENS

    def agrees(self, other: Answer) -> bool:
        sure = min(self.sure, other.sure)
        return self.prompt == other.prompt and self.tokens[:sure] == other.tokens[:sure]


@dataclass(frozen=True)
class Model:
    """A model in a folder, with its transformers twin."""

    kind: str
    folder: Path
    model: Any = field(repr=False)
    processor: Any = field(repr=False)

    @classmethod
    def make(cls, kind: str, folder: Path, **changes: Any) -> Model:
        return cls(kind, folder, *folders.save(kind, folder, **changes))

    @property
    def architecture(self) -> str:
        return folders.architecture(self.kind, self.model)

    def engine(self, **hired_options: Any) -> dict[str, Any]:
        """Arguments of `vllm.LLM` that serve it with the plugin."""
        overrides: dict[str, Any] = {"architectures": [self.architecture]}
        if hired_options:
            overrides["hired"] = hired_options
        return {
            "model": str(self.folder),
            "trust_remote_code": (self.folder / "configuration_internvl_chat.py").exists(),
            "hf_overrides": overrides,
            "dtype": "float32",
            "enforce_eager": True,
            "kv_cache_memory_bytes": 64 << 20,
            "max_model_len": 2048,
            "limit_mm_per_prompt": {"image": 4},
        }

    @torch.inference_mode()
    def ask(self, request: Request, **rules: Any) -> Answer:
        """What transformers says, with `apply_hired` by these rules, or without where budget is
        None."""
        hired.remove_hired(self.model, self.processor)
        if rules.get("budget") is not None:
            hired.apply_hired(self.model, self.processor, **rules)
        inputs = self.inputs(request)
        try:
            return self.generate(inputs["input_ids"].shape[1], **inputs)
        finally:
            hired.remove_hired(self.model, self.processor)

    def inputs(self, request: Request) -> Any:
        """What transformers' processor makes of a request."""
        token = getattr(self.processor, "image_token", "<image>")
        return self.processor(
            images=request.pictures or None,
            text=request.text.replace("<image>", token),
            return_tensors="pt",
            add_special_tokens=False,
        )

    @torch.inference_mode()
    def generate(self, prompt: int, **inputs: Any) -> Answer:
        """Greedy tokens of the model as it is, given a prompt of so many tokens."""
        output = self.model.generate(
            **inputs,
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=1,
            output_logits=True,
            return_dict_in_generate=True,
        )
        best = torch.stack(output.logits)[:, 0].topk(2).values
        gaps = (best[:, 0] - best[:, 1]).tolist()
        sure = next((step for step, gap in enumerate(gaps) if gap < CLOSE), NEW_TOKENS)
        return Answer(prompt, output.sequences[0, -NEW_TOKENS:].tolist(), sure)


def in_vllm(
    engine: dict[str, Any], requests: Sequence[Request], environment: dict[str, str] | None = None
) -> list[Answer]:
    """What vLLM says to all requests at once."""
    return call(_answers, engine, list(requests), environment=environment)


def call(function: Callable, *arguments: Any, environment: dict[str, str] | None = None) -> Any:
    """Call a function in a new process, with vLLM's engine inside it unless told otherwise.

    The process is forked off one that has imported vLLM and done nothing else.
    """
    settings = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", **(environment or {})}
    os.environ["HF_HUB_OFFLINE"] = "1"  # read by the import
    forked = multiprocessing.get_context("forkserver")
    forked.set_forkserver_preload(["vllm.entrypoints.llm", "vllm.v1.worker.cpu_worker"])
    with ProcessPoolExecutor(1, mp_context=forked) as pool:
        return pool.submit(_call, function, arguments, settings).result()


def _call(function: Callable, arguments: tuple, settings: dict[str, str]) -> Any:
    os.environ.update(settings)
    return function(*arguments)


def _answers(engine: dict[str, Any], requests: list[Request]) -> list[Answer]:
    with started(engine) as llm:
        return generate(llm, requests)


@contextmanager
def started(engine: dict[str, Any]) -> Iterator[Any]:
    """A `vllm.LLM` that is shut down afterwards: its processes would keep this one alive."""
    from vllm import LLM

    llm = LLM(**engine)
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()


def generate(llm: Any, requests: Sequence[Request], **options: Any) -> list[Answer]:
    """Greedy tokens for all requests at once."""
    from vllm import SamplingParams

    prompts = [
        {
            "prompt": request.text,
            "multi_modal_data": {"image": request.pictures},
            "mm_processor_kwargs": request.processor_kwargs,
        }
        for request in requests
    ]
    greedy = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True)
    outputs = llm.generate(prompts, greedy, use_tqdm=False, **options)
    return [
        Answer(len(output.prompt_token_ids), list(output.outputs[0].token_ids))
        for output in outputs
    ]
