# SPDX-License-Identifier: Apache-2.0
"""HiRED: keep only the visual tokens that a ViT's CLS token attends to, within a fixed budget.

    import hired_kernels as hired

    kept = hired.select(features, attn_init, attn_final, grids=[(2, 2)], budget=0.2)
    kept = hired.select_qk(features, q0, k0, q22, k22, grids=[(2, 2)], budget=0.2)

Importing it loads `torch.ops.hired.select` and `torch.ops.hired.select_qk`; Triton and transformers
are imported by what needs them.
"""

from . import geometry
from .backends import backend
from .ops import Selection, select, select_qk

__all__ = ["Selection", "backend", "geometry", "select", "select_qk"]
