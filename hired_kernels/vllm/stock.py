# SPDX-License-Identifier: Apache-2.0
"""What the plugin takes of vLLM's own models: the one place that names it.

    from .stock import LlavaForConditionalGeneration

imports vLLM's module at that moment. vLLM's models are no stable interface: what another version
has moved or dropped is found here, by name, and costs the families that need it and no others.
"""

from __future__ import annotations

import importlib
from typing import Any

# The versions that `make test-vllm` has passed with; docs/vllm.md has the table.
TRIED = ("0.32",)
INSTALL = 'pip install "vllm>=0.32,<0.33"'

_MODELS = "model_executor.models"
_UTILS = {f"{_MODELS}.utils": ("WeightsMapper",)}
_INTERNVL = f"{_MODELS}.internvl"
_OWN_PROCESSORS = "transformers_utils.processors.internvl"

# By family, a module of `families`: vLLM's modules, and what is needed of each.
NEEDED: dict[str, dict[str, tuple[str, ...]]] = {
    "llava": {
        **_UTILS,
        f"{_MODELS}.llava": (
            "BaseLlavaProcessingInfo",
            "LlavaDummyInputsBuilder",
            "LlavaForConditionalGeneration",
            "LlavaMultiModalProcessor",
            "LlavaProcessingInfo",
            "PixtralHFMultiModalProcessor",
            "PixtralHFProcessingInfo",
        ),
    },
    "llava_next": {
        **_UTILS,
        f"{_MODELS}.llava": ("LlavaDummyInputsBuilder",),
        f"{_MODELS}.llava_next": (
            "LlavaNextForConditionalGeneration",
            "LlavaNextMultiModalProcessor",
            "LlavaNextProcessingInfo",
        ),
    },
    "llava_onevision": {
        **_UTILS,
        f"{_MODELS}.llava_onevision": (
            "LlavaOnevisionDummyInputsBuilder",
            "LlavaOnevisionForConditionalGeneration",
            "LlavaOnevisionMultiModalProcessor",
            "LlavaOnevisionProcessingInfo",
        ),
    },
    "internvl_hf": {
        f"{_MODELS}.interns1": (
            "InternS1DummyInputsBuilder",
            "InternS1ForConditionalGeneration",
            "InternS1MultiModalProcessor",
            "InternS1ProcessingInfo",
        ),
    },
    "internvl": {
        _OWN_PROCESSORS: ("calculate_internvl_targets",),
        _INTERNVL: (
            "InternVLChatModel",
            "InternVLDummyInputsBuilder",
            "InternVLMultiModalProcessor",
            "InternVLProcessingInfo",
        ),
    },
    "qianfan_ocr": {
        _OWN_PROCESSORS: ("calculate_internvl_targets",),
        _INTERNVL: ("BaseInternVLDummyInputsBuilder", "BaseInternVLMultiModalProcessor"),
        f"{_MODELS}.qianfan_ocr": (
            "QianfanOCRForConditionalGeneration",
            "QianfanOCRProcessingInfo",
        ),
    },
}


def __getattr__(name: str) -> Any:
    for modules in NEEDED.values():
        for module, names in modules.items():
            if name in names:
                return getattr(importlib.import_module(f"vllm.{module}"), name)
    raise AttributeError(f"{__name__} has no {name}")


def missing(family: str) -> list[str]:
    """What a family needs and this vLLM has not: modules, or names in them."""
    absent = []
    for path, names in NEEDED[family].items():
        try:
            module = importlib.import_module(f"vllm.{path}")
        except ImportError:
            absent.append(f"vllm.{path}")
            continue
        absent += [f"vllm.{path}.{name}" for name in names if not hasattr(module, name)]
    return absent


def was_tried(version: str) -> bool:
    """Whether this is a version, or a patch of one, that the plugin was tried with."""
    return any(version == each or version.startswith(f"{each}.") for each in TRIED)
