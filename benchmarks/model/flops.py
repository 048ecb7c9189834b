# SPDX-License-Identifier: Apache-2.0
"""Floating-point operations of a vision tower's matrix products, with and without the early exit.

A multiplication and its addition are two. Normalisation, softmax and activations are left out, as
is usual: they are a few thousandths.
"""

from __future__ import annotations

from typing import Any

from hired_kernels.models.vision_tower import FeatureLayer, selection_layer


def tower(
    config: Any,
    partitions: int,
    *,
    feature_layer: FeatureLayer | None = None,
    kept: int | None = None,
    most: int = 0,
) -> int:
    """Operations of a CLIP tower of this configuration on so many partitions.

    All of its layers without `feature_layer`; with it, those up to the feature layer. `kept` is K:
    that last layer then computes for kept tokens alone what it can, its attention for `most` rows
    of each partition.
    """
    D, mlp = config.hidden_size, config.intermediate_size
    T = (config.image_size // config.patch_size) ** 2
    N = T + 1
    embedding = 2 * partitions * T * D * config.num_channels * config.patch_size**2
    layer = partitions * N * (8 * D * D + 4 * N * D + 4 * D * mlp)
    if feature_layer is None:
        return embedding + config.num_hidden_layers * layer
    last = selection_layer(config.num_hidden_layers, feature_layer)
    if kept is None:
        return embedding + (last + 1) * layer
    keys_and_values, cls_query = 4 * partitions * N * D * D, 2 * partitions * D * D
    attention = 4 * partitions * most * N * D
    rest = kept * (4 * D * D + 4 * D * mlp)
    return embedding + last * layer + keys_and_values + cls_query + attention + rest


def projector(width: int, text_width: int, tokens: int) -> int:
    """Operations of LLaVA's projector, two matrices, on so many tokens."""
    return 2 * tokens * text_width * (width + text_width)
