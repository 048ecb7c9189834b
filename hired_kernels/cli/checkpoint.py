# SPDX-License-Identifier: Apache-2.0
"""A whole LLaVA model with its processor, loaded once: to see, and to answer.

It goes to the GPU if there is one with room, in the type of its weights; else to the CPU, in
float32, or in bfloat16 where float32 has no room.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, PreTrainedConfig

from . import loading
from .files import first_line
from .loading import ModelError, VisionModel

_SPARE = 1.2  # memory beyond the weights, as a factor
_MEMORY = Path("/proc/meminfo")


@dataclass(frozen=True)
class Checkpoint:
    """`vision` is a part of `model`: not loaded twice."""

    model: Any
    processor: Any
    vision: VisionModel

    @property
    def image_token(self) -> int:
        """What stands in a prompt for each visual token."""
        config = self.model.config
        token = getattr(config, "image_token_id", None)
        return config.image_token_index if token is None else token


def load(name: str, *, gpu: bool = True) -> Checkpoint:
    """A LLaVA model from a folder or a hub name, with all that it takes to ask it.

    Raises ModelError, with one line, for whatever goes wrong.
    """
    return loading.had(name, lambda name: _load(name, gpu))


def _load(name: str, gpu: bool) -> Checkpoint:
    config = AutoConfig.from_pretrained(name)
    loading.check(name, config)
    try:
        processor = AutoProcessor.from_pretrained(name, backend="pil")
    except Exception as error:
        # A tokenizer or a part of the processor may be missing, for any of a dozen reasons.
        raise ModelError(
            f"model {name!r}: it cannot be asked, since its processor does not load: "
            f"{first_line(error)} (--new-tokens 0 asks nothing)"
        ) from error
    device, dtype = _place(name, config, gpu)
    model, report = AutoModelForImageTextToText.from_pretrained(
        name, dtype=dtype, output_loading_info=True
    )
    loading.check_weights(name, report)
    model = model.to(device).eval()
    vision = loading.seeing_part(name, model.model, processor.image_processor)
    return Checkpoint(model, processor, vision)


def _place(name: str, config: PreTrainedConfig, gpu: bool) -> tuple[str, torch.dtype | str]:
    """Device and type that a model has room in. Raises ModelError where there is no room."""
    with torch.device("meta"):
        count = sum(weight.numel() for weight in _unloaded(config).parameters())
    if gpu and torch.cuda.is_available():
        size = (getattr(config, "dtype", None) or torch.float32).itemsize
        if _SPARE * count * size <= torch.cuda.mem_get_info()[0]:
            return "cuda", "auto"
    free = _free_memory()
    if free is None:
        return "cpu", torch.float32
    for dtype in (torch.float32, torch.bfloat16):
        need = _SPARE * count * dtype.itemsize
        if need <= free:
            return "cpu", dtype
    raise ModelError(
        f"model {name!r}: expected {need / 1e9:.1f} GB of free memory, got {free / 1e9:.1f} GB "
        "(--new-tokens 0 loads only the part that sees)"
    )


def _unloaded(config: PreTrainedConfig) -> Any:
    return AutoModelForImageTextToText.from_config(config)


def _free_memory() -> int | None:
    """Bytes that programs may still have; None where the system does not say."""
    try:
        lines = _MEMORY.read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return 1024 * int(found[0]) if found else None
