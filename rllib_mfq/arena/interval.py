"""Intervals over seeds."""

from __future__ import annotations

import math

import numpy as np
from scipy import stats

from rllib_mfq.population.population import Array


def t_interval(values: Array) -> tuple[Array, Array]:
    """Mean over the first axis, and half the width of its 95 % t interval; NaN for one value."""
    n = len(values)
    if n == 1:
        return values[0], np.full(values.shape[1:], np.nan)
    half = stats.t.ppf(0.975, n - 1) * values.std(axis=0, ddof=1) / math.sqrt(n)
    return values.mean(axis=0), half
