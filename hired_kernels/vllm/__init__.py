# SPDX-License-Identifier: Apache-2.0
"""HiRED inside vLLM: a plugin that serves LLaVA and InternVL models with a token budget.

vLLM finds `register` through the entry point `vllm.general_plugins` in each of its processes. It
adds architectures and changes none of vLLM's own; vLLM's code is imported when a model of them is
asked for. docs/vllm.md says how to serve with it.
"""

from __future__ import annotations

import logging

from . import stock

# By module of `families`.
ARCHITECTURES = {
    "llava": "HiredLlavaForConditionalGeneration",
    "llava_next": "HiredLlavaNextForConditionalGeneration",
    "llava_onevision": "HiredLlavaOnevisionForConditionalGeneration",
    "internvl_hf": "HiredInternVLForConditionalGeneration",
    "internvl": "HiredInternVLChatModel",
    "qianfan_ocr": "HiredQianfanOCRForConditionalGeneration",
}

_log = logging.getLogger(__name__)


def register() -> None:
    """Make the architectures known to vLLM; more than once is as good as once.

    With a version of vLLM that was not tried, says so in a line, and leaves out what cannot be. An
    error here would end every process of vLLM's, whatever it serves.
    """
    import vllm

    known, version = vllm.ModelRegistry.get_supported_archs(), vllm.__version__
    tried = stock.was_tried(version)
    if not tried:
        _log.warning(
            "hired: expected vLLM %s, which was tried, got %s: see docs/vllm.md, or %s",
            " or ".join(stock.TRIED),
            version,
            stock.INSTALL,
        )
    for family, name in ARCHITECTURES.items():
        why_not = None if tried else stock.why_not(family)
        if why_not is not None:
            _log.error("hired: no %s with vLLM %s: %s", name, version, why_not)
        elif name not in known:
            path = f"{__name__}.families.{family}:{name}"
            vllm.ModelRegistry.register_model(name, path)
