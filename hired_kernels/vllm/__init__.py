# SPDX-License-Identifier: Apache-2.0
"""HiRED inside vLLM: a plugin that serves LLaVA-NeXT and LLaVA-1.5 with a token budget.

vLLM finds `register` through the entry point `vllm.general_plugins` in each of its processes. It
adds two architectures and changes none of vLLM's own; vLLM's code is imported when a model of them
is asked for. docs/vllm.md says how to serve with it.
"""

from __future__ import annotations

_ARCHITECTURES = ("HiredLlavaForConditionalGeneration", "HiredLlavaNextForConditionalGeneration")


def register() -> None:
    """Make the architectures known to vLLM; more than once is as good as once."""
    from vllm import ModelRegistry

    known = ModelRegistry.get_supported_archs()
    for name in _ARCHITECTURES:
        if name not in known:
            ModelRegistry.register_model(name, f"{__name__}.models:{name}")
