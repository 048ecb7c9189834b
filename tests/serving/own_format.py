# SPDX-License-Identifier: Apache-2.0
"""A tiny InternVL written to a folder in OpenGVLab's own format, as vLLM reads it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import internvl_models
import safetensors.torch
import torch

IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


@dataclass(frozen=True)
class Kind:
    """How a checkpoint calls itself, its language model's configuration and that one's model."""

    model_type: str
    architecture: str
    language: str
    language_model: str


_INTERNVL = Kind("internvl_chat", "InternVLChatModel", "llm_config", "Qwen2ForCausalLM")
KINDS = {
    "internvl-own": _INTERNVL,
    "internvl-own-26b": _INTERNVL,
    "qianfan-ocr": Kind(
        "qianfan_ocr", "QianfanOCRForConditionalGeneration", "text_config", "Qwen3ForCausalLM"
    ),
}


def save(
    kind: str, model: Any, processor: Any, folder: Path, chat_template: str
) -> tuple[Any, Any]:
    """Write what a twin in transformers' format says in the other; returns the twin.

    vLLM has the configuration's class of one kind; of the other it is in the folder.
    """
    processor.image_processor.image_mean = IMAGENET_MEAN  # vLLM's own processor has no others
    processor.image_processor.image_std = IMAGENET_STD
    processor.tokenizer.chat_template = chat_template
    processor.tokenizer.save_pretrained(folder)
    config = _configuration(KINDS[kind], model.config)
    if KINDS[kind].model_type == "internvl_chat":
        config["auto_map"] = {"AutoConfig": "configuration_internvl_chat.InternVLChatConfig"}
        (folder / "configuration_internvl_chat.py").write_text(_CLASS)
    (folder / "config.json").write_text(json.dumps(config))
    weights = renamed(model.state_dict(), model.config.vision_config.num_hidden_layers)
    safetensors.torch.save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return model, processor


def _configuration(kind: Kind, config: Any) -> dict[str, Any]:
    vision, text = config.vision_config, config.text_config.to_dict()
    same = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
            "hidden_act", "layer_norm_eps", "norm_type", "num_channels")  # fmt: skip
    return {
        "model_type": kind.model_type,
        "architectures": [kind.architecture],
        "vision_config": {
            **{name: getattr(vision, name) for name in same},
            "image_size": internvl_models.TILE,
            "patch_size": internvl_models.PATCH,
            "qkv_bias": vision.attention_bias,
            "qk_normalization": vision.use_qk_norm,
            "initializer_factor": 1.0,
        },
        kind.language: {**text, "architectures": [kind.language_model]},
        "downsample_ratio": 0.5,
        "dynamic_image_size": True,
        "force_image_size": internvl_models.TILE,
        "min_dynamic_patch": 1,
        "max_dynamic_patch": 6,
        "ps_version": "v2",
        "select_layer": -1,
        "use_thumbnail": True,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
    }


# What a checkpoint of OpenGVLab's brings along, as far as vLLM reads it.
_CLASS = """
from transformers import AutoConfig, PretrainedConfig


class InternVisionConfig(PretrainedConfig):
    model_type = "intern_vit_6b"


class InternVLChatConfig(PretrainedConfig):
    model_type = "internvl_chat"

    def __init__(self, vision_config=None, llm_config=None, **kwargs):
        super().__init__(**kwargs)
        self.vision_config = InternVisionConfig(**(vision_config or {}))
        llm_config = dict(llm_config or {"model_type": "qwen2"})
        self.llm_config = AutoConfig.for_model(llm_config.pop("model_type"), **llm_config)
"""

_TOWER, _EMBEDDINGS = "model.vision_tower", "vision_model.embeddings"
_NAMES = {
    f"{_TOWER}.embeddings.cls_token": f"{_EMBEDDINGS}.class_embedding",
    f"{_TOWER}.embeddings.patch_embeddings.projection": f"{_EMBEDDINGS}.patch_embedding",
    f"{_TOWER}.embeddings.position_embeddings": f"{_EMBEDDINGS}.position_embedding",
    f"{_TOWER}.encoder.layer.": "vision_model.encoder.layers.",
    "model.multi_modal_projector.layer_norm": "mlp1.0",
    "model.multi_modal_projector.linear_1": "mlp1.1",
    "model.multi_modal_projector.linear_2": "mlp1.3",
    "model.language_model.": "language_model.model.",
    "lm_head.": "language_model.lm_head.",
    ".attention.projection_layer": ".attn.proj",
    ".attention.": ".attn.",
    ".layernorm_before": ".norm1",
    ".layernorm_after": ".norm2",
    ".lambda_": ".ls",
}


def renamed(weights: dict[str, torch.Tensor], layers: int) -> dict[str, torch.Tensor]:
    """A model's weights by the names of OpenGVLab's format, queries, keys and values together."""
    own = {}
    for name, weight in weights.items():
        for theirs, ours in _NAMES.items():
            name = name.replace(theirs, ours)
        own[name] = weight.detach().clone()
    for layer in range(layers):
        for kind in ("weight", "bias"):
            prefix = f"vision_model.encoder.layers.{layer}.attn"
            parts = [own.pop(f"{prefix}.{one}_proj.{kind}", None) for one in "qkv"]
            if parts[0] is not None:
                own[f"{prefix}.qkv.{kind}"] = torch.cat(parts)
    return own
