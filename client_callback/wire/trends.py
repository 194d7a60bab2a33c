"""Robust trends of noisy series: Theil-Sen's slope, its confidence interval, and Mann-Kendall's test.

Who asks whether a loss falls asks here: what waits for a plateau in the training, and in the terminal the plateau
rule and the impact of interventions. All take the variance of Kendall's S, enlarged by the lag-1 correlation of the
residuals (Bayley & Hammersley 1946), and so need no normal noise and bear a few spikes. Sources: Theil (1950), Sen
(1968), Mann (1945), Kendall (1954). Pure functions of numbers: nothing here knows a training or a session.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from client_callback.wire.protocol import Float64

MOST_CORRELATED: Final = 0.9
"""Lag-1 correlation is taken for no more than that: beyond, a short window cannot tell it from a trend."""


class Trends(NamedTuple):
    """One number per window, float64 `[w]`; slopes are changes from one value of a window to the next."""

    slopes: Float64
    """Theil-Sen's: the median over all pairs of values."""
    lows: Float64
    highs: Float64
    """Bounds of Sen's confidence interval."""
    z: Float64
    """Mann-Kendall's, in standard deviations of S: negative when the values fall."""
    inflation: Float64
    """How many times the memory of the noise enlarges variances; 1 for independent values."""


def trends(windows: npt.NDArray[np.float64], bound_z: float) -> Trends:
    """The trend of every window, float64 `[w, n]`; bounds lie `bound_z` standard deviations off, one-sided."""
    count = windows.shape[1]
    firsts, seconds = _pairs(count)
    changes = windows[:, seconds] - windows[:, firsts]
    slopes = np.sort(changes / (seconds - firsts), axis=1)
    last = slopes.shape[1] - 1
    median = (slopes[:, last // 2] + slopes[:, (last + 1) // 2]) / 2
    inflation = variance_inflation(windows - median[:, None] * np.arange(count))
    spread = np.sqrt(count * (count - 1) * (2 * count + 5) / 18 * inflation)
    # Sen's confidence bounds: the slopes whose ranks lie bound_z standard deviations of S from the middle.
    rank = (np.rint((last + 1 - bound_z * spread) / 2).astype(np.int64) - 1).clip(0)[:, None]
    lows = np.take_along_axis(slopes, rank, axis=1)[:, 0]
    highs = np.take_along_axis(slopes, last - rank, axis=1)[:, 0]
    return Trends(median, lows, highs, np.sign(changes).sum(axis=1) / spread, inflation)


def variance_inflation(residuals: npt.NDArray[np.float64]) -> Float64:
    """(1 + r) / (1 - r) for every row, r being the lag-1 correlation: 1 when the values are independent."""
    count = residuals.shape[1]
    centred = residuals - residuals.mean(axis=1, keepdims=True)
    power = (centred**2).sum(axis=1)
    lagged = (centred[:, 1:] * centred[:, :-1]).sum(axis=1)
    correlation = np.divide(lagged, power, out=np.zeros_like(power), where=power > 0)
    # Estimated from so few values it comes out too low, by (1 + 3 r) / n (Kendall 1954).
    correlation = (correlation + (1 + 3 * correlation) / count).clip(0.0, MOST_CORRELATED)
    return np.asarray((1 + correlation) / (1 - correlation))


@lru_cache(maxsize=8)
def _pairs(count: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    return np.triu_indices(count, 1)
