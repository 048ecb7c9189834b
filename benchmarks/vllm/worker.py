# SPDX-License-Identifier: Apache-2.0
"""What the benchmark adds to vLLM's worker: random weights, and marks around the encoder's steps.

Importing this registers the load format "random". `Marks` becomes part of the worker
(`worker_extension_cls`). On a GPU its marks are events on the stream of the step, read when the
load is over: nothing waits for them. What the encoder's step is: `embed_multimodal` of the model,
which is the tower, the projector and, with a budget, selection.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from vllm.config import ModelConfig
from vllm.model_executor.model_loader import register_model_loader
from vllm.model_executor.model_loader.dummy_loader import DummyModelLoader

from hired_kernels import ops

from ..shared.marks import elapsed, mark

LOAD_FORMAT = "random"


@register_model_loader(LOAD_FORMAT)
class RandomLoader(DummyModelLoader):
    """Seeded normal weights that keep activations' scale; scales of norms and of layers are 1.

    vLLM's own dummy weights are all but zero, norms included, and attention with them uniform.
    """

    @torch.no_grad()
    def load_weights(self, model: nn.Module, model_config: ModelConfig) -> None:
        for seed, (name, weight) in enumerate(model.named_parameters()):
            generator = torch.Generator(weight.device).manual_seed(seed)
            if weight.dim() > 1:
                weight.normal_(std=_fan_in(weight) ** -0.5, generator=generator)
            elif "norm" in name or "lambda" in name:
                weight.fill_(float(not name.endswith("bias")))
            else:
                weight.normal_(std=0.02, generator=generator)


def _fan_in(weight: Tensor) -> int:
    """Numbers of a row or of an output channel; InternViT has tables of (1, rows, width)."""
    table = weight[0] if weight.dim() == 3 and len(weight) == 1 else weight
    return table[0].numel()


class Marks:
    """Two methods for `collective_rpc`."""

    def start_marks(self) -> None:
        """Mark each of the encoder's steps, and each selection, from now on."""
        self.steps: list[tuple[int, Any, Any]] = []
        self.selections: list[tuple[int, Any, Any]] = []
        model = self.model_runner.model
        model.embed_multimodal = _marked(model.embed_multimodal, self.steps)
        ops.select_qk = _marked(ops.select_qk, self.selections)

    def take_marks(self) -> dict[str, float]:
        """Of what was done since the last call: steps, pictures, and seconds."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        taken = {
            "steps": len(self.steps),
            "pictures": sum(pictures for pictures, _, _ in self.steps),
            "most_pictures": max((pictures for pictures, _, _ in self.steps), default=0),
            "seconds": sum(elapsed(begin, end) for _, begin, end in self.steps),
            "selecting": sum(elapsed(begin, end) for _, begin, end in self.selections),
        }
        self.steps.clear()
        self.selections.clear()
        return taken


def _marked(function: Callable[..., Any], marks: list[tuple[int, Any, Any]]) -> Callable[..., Any]:
    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        on_gpu = torch.cuda.is_available()
        begin = mark(on_gpu)
        result = function(*args, **kwargs)
        marks.append((_pictures(kwargs), begin, mark(on_gpu)))
        return result

    return call


def _pictures(given: dict[str, Any]) -> int:
    """How many a step has; InternVL's pixels are the tiles of all of them."""
    return len(given.get("image_num_patches", given.get("pixel_values", ())))
