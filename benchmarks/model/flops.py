# SPDX-License-Identifier: Apache-2.0
"""Floating-point operations of a vision tower's matrix products, with and without the early exit.

A multiplication and its addition are two. Normalisation, softmax and activations are left out, as
is usual: they are a few thousandths.
"""

from __future__ import annotations

from typing import Any

from hired_kernels.models import judges, kept_rows
from hired_kernels.models.accounting import Plan, one_side
from hired_kernels.models.towers import family_of_type
from hired_kernels.models.vision_tower import FeatureLayer, selection_layer


def tower(
    config: Any,
    partitions: int,
    *,
    feature_layer: FeatureLayer | None = None,
    todo: Plan | None = None,
) -> int:
    """Operations of a tower of this configuration on so many partitions.

    All of its layers without `feature_layer`; with it, those up to the feature layer. With `todo`
    that last layer computes for kept tokens alone what it can: the keys and values are of all, the
    queries of the default judges and of the kept patches, and attention runs for as many rows as
    there is room for. The scores are not counted: no matrix is made of them.
    """
    family = family_of_type(config.model_type)
    assert family is not None
    D, mlp, patch = config.hidden_size, config.intermediate_size, one_side(config.patch_size)
    side = one_side(config.image_size) // patch
    T = side**2
    N = T + family.prefix
    embedding = 2 * partitions * T * D * config.num_channels * patch**2
    layer = partitions * N * (8 * D * D + 4 * N * D + 4 * D * mlp)
    if feature_layer is None:
        return embedding + config.num_hidden_layers * layer
    last = selection_layer(config.num_hidden_layers, feature_layer)
    if todo is None:
        return embedding + (last + 1) * layer
    lines, merged = judges.lines("auto", family, side), todo.anatomy.merge**2
    kept = sum(todo.rows) * merged
    size, blocks = kept_rows.block_size(kept, partitions, todo.most * merged)
    keys_and_values = 4 * partitions * N * D * D
    queries = 2 * partitions * (1 if lines is None else len(lines) ** 2) * D * D
    attention = 4 * size * blocks * N * D
    rest = kept * (4 * D * D + 4 * D * mlp)
    return embedding + last * layer + keys_and_values + queries + attention + rest


def projector(width: int, text_width: int, tokens: int) -> int:
    """Operations of LLaVA's projector, two matrices, on so many tokens."""
    return 2 * tokens * text_width * (width + text_width)
