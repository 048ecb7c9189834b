# SPDX-License-Identifier: Apache-2.0
"""A vision tower with its image processor and projector: loaded, or built with random weights.

Of a LLaVA-NeXT or LLaVA checkpoint only the part that sees is read, not the language model. The
random towers have the shape of CLIP ViT-L/14 at 336 pixels, or fewer and narrower layers of it:
the same 576 patches a partition, so that pictures, grids and budgets are those of LLaVA-NeXT.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub.utils.logging as hub_logging
import torch
import transformers.utils.logging as transformers_logging
from PIL import Image
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlavaModel,
    LlavaNextConfig,
    LlavaNextModel,
    LlavaNextVideoModel,
    PreTrainedConfig,
    VipLlavaModel,
)
from transformers.models.llava_next.image_processing_pil_llava_next import (
    LlavaNextImageProcessorPil,
)
from transformers.models.llava_next.modeling_llava_next import LlavaNextMultiModalProjector

from .. import geometry
from ..models import support
from ..models.vision_tower import FeatureLayer, encoder_layers, selection_layer

# name: D, width of the MLP, layers, heads, width of the language model behind the projector
TOWERS = {
    "large": (1024, 4096, 24, 16, 4096),
    "small": (384, 1536, 12, 6, 2048),
    "tiny": (64, 128, 4, 2, 64),
}
_TILE, _PATCH = 336, 14
_MODELS = {
    "llava": LlavaModel,
    "llava_next": LlavaNextModel,
    "llava_next_video": LlavaNextVideoModel,
    "vipllava": VipLlavaModel,
}


class ModelError(ValueError):
    """A model that cannot be had, in one line."""


@dataclass(frozen=True)
class VisionModel:
    """The part of a LLaVA model that sees.

    `feature_layer` is LLaVA's `vision_feature_layer`, one or several; `pinpoints` its grid
    pinpoints, None without sub-images; `random` says that nobody trained the weights.
    """

    name: str
    tower: nn.Module
    projector: nn.Module
    processor: Any
    feature_layer: FeatureLayer
    pinpoints: list[list[int]] | None
    random: bool

    @property
    def tile(self) -> int:
        """Pixels a side of a partition."""
        return self.tower.config.image_size

    @property
    def patch(self) -> int:
        """Pixels a side of a patch."""
        return self.tower.config.patch_size

    @property
    def layers(self) -> tuple[int, int]:
        """Layers to run, up to the feature layer, and layers there are."""
        count = len(encoder_layers(self.tower))
        return selection_layer(count, self.feature_layer) + 1, count

    @property
    def device(self) -> torch.device:
        return next(self.tower.parameters()).device

    def layout(self, height: int, width: int) -> geometry.Layout:
        """How a picture of height x width pixels is cut up for this model."""
        if self.pinpoints is None:
            return geometry.Layout(height, width, (0, 0), None, self.tile // self.patch)
        pinpoints = [tuple(pinpoint) for pinpoint in self.pinpoints]
        return geometry.layout(height, width, pinpoints=pinpoints, tile=self.tile, patch=self.patch)

    def pixels(self, picture: Image.Image) -> Tensor:
        """The picture's partitions, full image first, as the tower takes them: (P, 3, tile, tile),
        normalised."""
        values = self.processor(images=picture, return_tensors="pt")["pixel_values"]
        weight = next(self.tower.parameters())
        return values.flatten(0, -4).to(weight.device, weight.dtype)

    def colours(self, pixels: Tensor) -> Tensor:
        """`pixels` as colours again: (P, tile, tile, 3) uint8."""
        mean = torch.tensor(self.processor.image_mean).view(3, 1, 1)
        spread = torch.tensor(self.processor.image_std).view(3, 1, 1)
        values = (pixels.float().cpu() * spread + mean).clamp(0, 1) * 255
        return values.round().to(torch.uint8).permute(0, 2, 3, 1)


def random_model(size: str, seed: int = 0) -> VisionModel:
    """A tower of `TOWERS` with seeded random weights, LLaVA-NeXT's processor and projector."""
    D, mlp, layers, heads, text = TOWERS[size]
    with torch.device("meta"):
        tower = CLIPVisionModel(_tower_config(D, mlp, layers, heads))
        config = LlavaNextConfig(
            vision_config=_tower_config(D, mlp, layers, heads),
            text_config=LlamaConfig(hidden_size=text, num_attention_heads=1, num_hidden_layers=1),
        )
        projector = LlavaNextMultiModalProjector(config)
    generator = torch.Generator().manual_seed(seed)
    _fill(tower, generator)
    _fill(projector, generator)
    processor = LlavaNextImageProcessorPil(
        size={"shortest_edge": _TILE}, crop_size={"height": _TILE, "width": _TILE}
    )
    name = f"{layers} layers of width {D}, {heads} heads"
    pinpoints = [list(pinpoint) for pinpoint in geometry.LLAVA_NEXT_PINPOINTS]
    return VisionModel(name, tower.eval(), projector.eval(), processor, -2, pinpoints, True)


@torch.no_grad()
def seconds_for(size: str, partitions: int) -> float:
    """How long such a tower would take to build and run here: by one layer and one partition."""
    D, mlp, layers, heads, _ = TOWERS[size]
    start = time.perf_counter()
    with torch.device("meta"):
        tower = CLIPVisionModel(_tower_config(D, mlp, 1, heads))
    _fill(tower, torch.Generator().manual_seed(0))
    built = time.perf_counter() - start
    hidden = torch.zeros(1, (_TILE // _PATCH) ** 2 + 1, D)
    layer = encoder_layers(tower)[0]
    layer(hidden, None)
    start = time.perf_counter()
    layer(hidden, None)
    return layers * (built + partitions * (time.perf_counter() - start))


def load_model(name: str) -> VisionModel:
    """The seeing part of a LLaVA model, float32, from a folder or a hub name.

    Raises ModelError where there is none of that name, or where it is of another kind.
    """
    return had(name, _load)


def load_config(name: str) -> PreTrainedConfig:
    """The configuration of a model, from a folder or a hub name. Raises ModelError likewise."""
    return had(name, lambda name: AutoConfig.from_pretrained(name, trust_remote_code=False))


def had(name: str, load: Callable[[str], Any]) -> Any:
    """What `load` makes of a folder or hub name; ModelError for whatever goes wrong."""
    if not Path(name).is_dir() and (Path(name).exists() or not _is_hub_name(name)):
        raise ModelError(f"model {name!r}: neither a folder nor a hub name (owner/name)")
    try:
        with quiet():
            return load(name)
    except ModelError:
        raise
    except Exception as error:
        # What a broken folder raises is the business of five libraries: no list is complete.
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        where = "" if Path(name).is_dir() else "no such folder, and from the hub: "
        raise ModelError(f"model {name!r}: {where}{reason}") from error


def check(name: str, config: PreTrainedConfig) -> None:
    """Raise ModelError unless the demo can draw what HiRED keeps for such a model."""
    vision = getattr(config, "vision_config", None)
    kind = f"{config.model_type} with {getattr(vision, 'model_type', 'no vision tower')}"
    if config.model_type not in _MODELS or vision.model_type != "clip_vision_model":
        *served, last = (support.MODEL_TYPES[kind] for kind in _MODELS)
        expected = f"{', '.join(served)} or {last} with CLIP"
        raise ModelError(f"model {name!r}: expected {expected}, got {kind}")
    if support.strategy_of(config) != "default":
        raise ModelError(f"model {name!r}: expected features without CLS, got them with it")
    support.feature_states(config, support.feature_layer_of(config))


def seeing_part(name: str, model: Any, image_processor: Any) -> VisionModel:
    """The part that sees of a model without its head, which is checked."""
    return VisionModel(
        name=name,
        tower=model.vision_tower.eval(),
        projector=model.multi_modal_projector.eval(),
        processor=image_processor,
        feature_layer=support.feature_layer_of(model.config),
        pinpoints=getattr(model.config, "image_grid_pinpoints", None),
        random=False,
    )


def check_weights(name: str, report: dict[str, Any]) -> None:
    """Raise ModelError where transformers' loading report names weights that are missing."""
    missing = list(report["missing_keys"])
    if missing:
        raise ModelError(f"model {name!r}: {len(missing)} weights are missing: {missing[0]}, ...")


def _load(name: str) -> VisionModel:
    config = AutoConfig.from_pretrained(name)
    check(name, config)
    processor = AutoImageProcessor.from_pretrained(name, backend="pil")
    config = copy.deepcopy(config)
    # A language model without layers leaves its weights in the file.
    config.text_config.num_hidden_layers = 0
    if getattr(config.text_config, "layer_types", None):
        config.text_config.layer_types = []
    model, report = _MODELS[config.model_type].from_pretrained(
        name, config=config, dtype=torch.float32, output_loading_info=True
    )
    missing = [key for key in report["missing_keys"] if "language_model" not in key]
    check_weights(name, {"missing_keys": missing})
    return seeing_part(name, model, processor)


def _is_hub_name(name: str) -> bool:
    parts = name.split("/")
    return len(parts) == 2 and all(part[:1].isalnum() for part in parts)


def _tower_config(D: int, mlp: int, layers: int, heads: int) -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=D,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        image_size=_TILE,
        patch_size=_PATCH,
    )


@torch.no_grad()
def _fill(module: nn.Module, generator: torch.Generator) -> None:
    """Give a module made on the meta device memory and random weights.

    Matrices are uniform with variance 1 / fan-in, so that queries and keys have unit spread; the
    normal ones that CLIP starts from take six times as long to draw.
    """
    module.to_empty(device="cpu")
    for name, weight in module.named_parameters():
        if weight.dim() > 1:
            bound = (3 / weight[0].numel()) ** 0.5
            weight.uniform_(-bound, bound, generator=generator)
        elif name.endswith("class_embedding"):
            weight.normal_(generator=generator)
        else:
            weight.fill_(0.0 if name.endswith("bias") else 1.0)
    for name, buffer in module.named_buffers():
        # The one buffer there is; a module made on the meta device has lost its values.
        assert name.endswith("position_ids"), name
        buffer.copy_(torch.arange(buffer.numel()).view_as(buffer))


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings or bars of transformers and the hub: what goes wrong is raised, and said once."""
    before = {log: log.get_verbosity() for log in (transformers_logging, hub_logging)}
    bars = transformers_logging.is_progress_bar_enabled()
    try:
        transformers_logging.disable_progress_bar()
        for log in before:
            log.set_verbosity(logging.CRITICAL)
        yield
    finally:
        for log, level in before.items():
            log.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
