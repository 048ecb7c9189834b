# SPDX-License-Identifier: Apache-2.0
"""A plugin for lmms-eval: its own models of transformers' classes, with HiRED switched on.

    python -m lmms_eval --model hired_llava_hf \
        --model_args pretrained=llava-hf/llava-v1.6-vicuna-7b-hf,budget=0.2 --tasks textvqa_val

lmms-eval finds `manifests` by the entry point of the group `lmms_eval.models`. A model has the
name of lmms-eval's with `hired_` before it. docs/accuracy.md says how it is used.
"""

from __future__ import annotations

from typing import Any

# lmms-eval's name of a model: our class on its simple one, and on the one that uses chat templates.
MODELS = {
    "llava_hf": ("HiredLlavaHf", "HiredLlavaHfChat"),
    "internvl_hf": (None, "HiredInternVLHf"),
}


def manifests() -> list[Any]:
    """What lmms-eval asks for: a ModelManifest for each model. Imports none of their classes."""
    from lmms_eval.models.registry_v2 import ModelManifest

    def path(name: str | None) -> str | None:
        return name and f"{__name__}.models.{name}"

    return [
        ModelManifest(f"hired_{name}", simple_class_path=path(simple), chat_class_path=path(chat))
        for name, (simple, chat) in MODELS.items()
    ]
