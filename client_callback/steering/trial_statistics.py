"""What the losses of a trial say: how well each candidate did, whether chance explains it, and which rate to try.

Losses of consecutive batches are neither equally hard nor independent. All candidates see the same batches, so that
what sets two of them apart is the mean of their differences, batch by batch; and a mean of correlated values is
known as well as one of fewer independent ones: n (1 - r) / (1 + r), r being their lag-1 correlation (Bayley &
Hammersley 1946). Intervals are Student's with as many values. Pure functions of numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np

from client_callback.wire.protocol import Float64
from client_callback.wire.trends import variance_inflation

CONFIDENCE: Final = 0.95
SCORED_SHARE: Final = 0.25
"""Of the steps, the last: how far a candidate has come counts, not how it got there."""
FEWEST_SCORED: Final = 5
"""Steps: a correlation cannot be told from fewer."""
_FEWEST_INDEPENDENT: Final = 2.0
_ANGLES: Final = 20_001


class Interval(NamedTuple):
    """A mean with the bounds of its 95 % confidence interval; these are NaN where too few values tell nothing."""

    mean: float
    low: float
    high: float


def scored_steps(steps: int) -> int:
    """How many of so many steps are scored, the last ones."""
    return min(steps, max(FEWEST_SCORED, round(steps * SCORED_SHARE)))


def mean_interval(values: Float64) -> Interval:
    """The mean of correlated values, float64 `[n]`, and how well it is known.

    With s² = Σ (x - x̄)² and m effective values, the variance of the mean is s² / (n (m - 1)): of correlated values
    s² comes out too small, by (m - 1) / m.
    """
    mean = float(values.mean())
    if len(values) < FEWEST_SCORED:
        return Interval(mean, math.nan, math.nan)
    effective = max(_FEWEST_INDEPENDENT, len(values) / float(variance_inflation(values[np.newaxis])[0]))
    squares = float(np.square(values - mean).sum())
    error = math.sqrt(squares / (len(values) * (effective - 1)))
    reach = student_quantile(effective - 1) * error
    return Interval(mean, mean - reach, mean + reach)


def better_beyond_chance(best: Float64, others: Sequence[Float64]) -> bool:
    """Whether `best` is below each of the others by more than chance explains: losses of the same steps, `[n]`.

    Each is compared at the full level: that the best was chosen among several makes a false claim no likelier than
    one comparison does, for it must then be far from all of them.
    """
    return bool(others) and all(mean_interval(other - best).low > 0 for other in others)


@lru_cache(maxsize=256)
def student_quantile(freedom: float) -> float:
    """The `CONFIDENCE` quantile of |t|, Student's with `freedom` degrees of freedom, which need not be whole.

    With t = √freedom tan θ the density of θ is proportional to cos(θ) ** (freedom - 1), which is integrated.
    """
    angles = np.linspace(0.0, math.pi / 2, _ANGLES)
    density = np.cos(angles).clip(0.0) ** (freedom - 1)
    mass = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return math.sqrt(freedom) * math.tan(float(np.interp(CONFIDENCE * mass[-1], mass, angles)))
