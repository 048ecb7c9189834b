# SPDX-License-Identifier: Apache-2.0
"""How far a mean over several models and many pictures may be from that over all there could be."""

from __future__ import annotations

import math

import numpy as np


def half_width(values: np.ndarray) -> float:
    """Half of the 95 % interval of the mean of values (models, pictures).

    Every model was asked about the same pictures, and both are a sample: a two-way layout with
    random effects and one observation a cell. The variance of the mean is `(MS_models + MS_pictures
    - MS_rest) / (models * pictures)`, its degrees of freedom are Satterthwaite's. Of one model only
    the pictures count.
    """
    M, P = values.shape
    models, pictures = values.mean(axis=1), values.mean(axis=0)
    if M == 1:
        return student(P - 1) * float((pictures.var(ddof=1) / P) ** 0.5)
    rest = values - models[:, None] - pictures + values.mean()
    of_models, of_pictures = P * models.var(ddof=1), M * pictures.var(ddof=1)
    of_rest = (rest**2).sum() / ((M - 1) * (P - 1))
    # Never less than if these models were all there are.
    total = max(of_models + of_pictures - of_rest, of_pictures)
    if total == 0:
        return 0.0
    spread = of_models**2 / (M - 1) + of_pictures**2 / (P - 1) + of_rest**2 / ((M - 1) * (P - 1))
    freedom = total**2 / spread
    return student(freedom) * float((total / (M * P)) ** 0.5)


def student(freedom: float, inside: float = 0.95) -> float:
    """How many standard errors to either side hold this share of Student's distribution."""
    scale = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)
    scale = math.exp(scale) / (math.pi * freedom) ** 0.5
    low, high = 0.0, 1000.0
    for _ in range(60):
        middle = (low + high) / 2
        # With x = tan(u) * sqrt(freedom) the density is cos(u) ** (freedom - 1).
        u = np.linspace(0, math.atan(middle / freedom**0.5), 2001)
        density = np.cos(u) ** (freedom - 1)
        area = (density[1:] + density[:-1]).sum() / 2 * (u[1] - u[0])
        share = 2 * scale * freedom**0.5 * area
        low, high = (middle, high) if share < inside else (low, middle)
    return high
