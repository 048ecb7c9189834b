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
TRIED = ("0.31", "0.32")
INSTALL = 'pip install "vllm>=0.31,<0.33"'

_MODELS = "model_executor.models"
# What the plugin overrides: under another name nobody would call it, and the model would be stock.
_PROCESSING = {
    "multimodal.processing": (
        "BaseMultiModalProcessor._apply_hf_processor_main",
        "BaseMultiModalProcessor._get_mm_fields_config",
        "BaseMultiModalProcessor._get_prompt_updates",
        "BaseMultiModalProcessor.apply",
        "BaseMultiModalProcessor.get_dummy_inputs",
        "BaseMultiModalProcessor.get_dummy_mm_inputs",
        "BaseProcessingInfo.model_id",
    )
}
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
    absent: list[str] = []
    for path, names in {**_PROCESSING, **NEEDED[family]}.items():
        try:
            module = importlib.import_module(f"vllm.{path}")
        except Exception:  # whatever another version's module does
            absent.append(f"vllm.{path}")
            continue
        absent += [f"vllm.{path}.{name}" for name in names if not _has(module, name)]
    return absent


def _has(module: Any, name: str) -> bool:
    for part in name.split("."):
        if not hasattr(module, part):
            return False
        module = getattr(module, part)
    return True


def why_not(family: str) -> str | None:
    """Why a family cannot be served with this vLLM, or None: it lacks what is needed, or what was
    made of it cannot be imported."""
    if absent := missing(family):
        return f"it lacks {', '.join(absent)}"
    try:
        importlib.import_module(f"{__package__}.families.{family}")
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def was_tried(version: str) -> bool:
    """Whether this is a version, or a patch of one, that the plugin was tried with."""
    return any(version == each or version.startswith(f"{each}.") for each in TRIED)
