# SPDX-License-Identifier: Apache-2.0
"""What LLaVA's weights are called, which transformers and vLLM do not agree on."""

from __future__ import annotations

from typing import Any

from ..stock import WeightsMapper

# transformers 5 saves the tower's weights without the name that vLLM has for its inside.
_TOWER_PARTS = ("embeddings.", "encoder.", "pre_layrnorm.", "post_layernorm.")


def without_core(stock: type) -> Any:
    """The names of a stock class, and those of a tower without `vision_model`."""
    own: Any = stock
    names = {f"vision_tower.{part}": f"vision_tower.vision_model.{part}" for part in _TOWER_PARTS}
    return own.hf_to_vllm_mapper | WeightsMapper(orig_to_new_prefix=names)
