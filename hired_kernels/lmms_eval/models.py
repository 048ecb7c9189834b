# SPDX-License-Identifier: Apache-2.0
"""lmms-eval's models of transformers' classes, which call `apply_hired` once they are loaded.

How prompts are written, pictures handed over and answers read is lmms-eval's, untouched.
"""

from __future__ import annotations

import inspect
from typing import Any

from accelerate import PartialState
from lmms_eval.models.chat.internvl_hf import InternVLHf
from lmms_eval.models.chat.llava_hf import LlavaHf as LlavaHfChat
from lmms_eval.models.simple.llava_hf import LlavaHf
from loguru import logger

import hired_kernels

# HiRED's options by name: all that `apply_hired` takes besides model and processor.
OPTIONS = tuple(inspect.signature(hired_kernels.apply_hired).parameters)[2:]


class Hired:
    """Stands before a model of lmms-eval: `--model_args` are its and those of `apply_hired`."""

    _hired_processor: str  # the attribute of lmms-eval's model that holds the processor

    def __init__(self, **arguments: Any) -> None:
        """Loads the model as lmms-eval does, and switches HiRED on.

        Raises ValueError where an argument is neither the stock model's nor `apply_hired`'s, and
        what these two raise.
        """
        options = {name: arguments.pop(name) for name in OPTIONS if name in arguments}
        stock = _defaults_behind(type(self))
        if unknown := [name for name in arguments if name not in stock]:
            raise ValueError(
                f"hired: model_args: expected some of {', '.join(OPTIONS)} (HiRED's) and "
                f"{', '.join(stock)} (lmms-eval's), got {', '.join(unknown)}"
            )
        # LlavaHf's default, which transformers refuses (lmms-eval's issue 438). Where there are
        # several processes, LlavaHf puts another in its place.
        if stock["device_map"] == "" and PartialState().num_processes == 1:
            arguments.setdefault("device_map", arguments.get("device", stock["device"]))
        super().__init__(**arguments)
        # lmms-eval makes numbers and booleans of the words of --model_args, but not None.
        options = {name: None if value == "None" else value for name, value in options.items()}
        model = self.model  # type: ignore[attr-defined]
        hired_kernels.apply_hired(model, getattr(self, self._hired_processor), **options)
        logger.info(f"HiRED is on: {model.hired.settings}")


class HiredLlavaHf(Hired, LlavaHf):
    """LLaVA-NeXT, LLaVA-1.5, LLaVA-OneVision; `--force_simple`: prompts as tasks write them."""

    _hired_processor = "_image_processor"


class HiredLlavaHfChat(Hired, LlavaHfChat):
    """The same with prompts by the processor's chat template."""

    _hired_processor = "_image_processor"


class HiredInternVLHf(Hired, InternVLHf):
    """InternVL in transformers' format."""

    _hired_processor = "processor"


def _defaults_behind(kind: type) -> dict[str, Any]:
    """What the model of lmms-eval behind one of ours takes, by name, with its defaults."""
    behind = kind.__mro__[kind.__mro__.index(Hired) + 1]
    taken = inspect.signature(behind).parameters.values()
    return {each.name: each.default for each in taken if each.kind != each.VAR_KEYWORD}
