"""Whether a loss still falls: its trend against its own noise, by rank tests.

Mann-Kendall's test and Theil-Sen's slope on the newest half of up to 64 block means (`client_callback.wire.trends`).
Pure functions of numbers; `monitor.diagnosis.case` asks for the session's.
"""

from __future__ import annotations

import functools
import math
from typing import Final, Literal, NamedTuple

import numpy as np

from client_callback.wire.protocol import Float64
from client_callback.wire.trends import trends
from monitor.diagnosis.medians import finite, median, medians

BLOCKS: Final = 64
"""Over the steps looked at; the newest half of them tells whether the loss still falls."""
Z_SURE: Final = 2.33
"""One-sided 1 %."""
Z_LIKELY: Final = 1.645
"""One-sided 5 %."""
NOTHING_SHARE: Final = 0.05
"""A fall that is certainly smaller than this share of the loss, over half the steps looked at, is none."""

Trend = Literal["unknown", "falling", "unclear", "flat", "rising"]


class Progress(NamedTuple):
    """How the loss of single steps (or of epochs, where no more is known) has moved since `start`."""

    trend: Trend
    """`flat`: a fall worth having is ruled out. `unclear`: neither that nor a fall is certain. `unknown`: too few
    values."""
    start: int
    """The first step looked at: 0, or where the training was last changed by a command."""
    steps: int
    """Steps looked at."""
    first: float
    """Loss of the first block."""
    level: float
    """Median over the newest eighth of the blocks."""
    best: float
    """The lowest level that eight neighbouring blocks had."""
    noise: float
    """Standard deviation of the loss about its trend, robust, per value (step or epoch)."""
    fall: float
    """By how much the loss fell over the newest half, by Theil-Sen. Negative: it rose."""
    fall_at_most: float
    """The one-sided 99 % bound of that."""
    z: float
    """Mann-Kendall's over the newest half, negative when the loss falls."""
    by_epoch: bool
    """Whether values are those of epochs."""


def unknown(start: int, steps: int, *, by_epoch: bool) -> Progress:
    """Too few values to say."""
    return Progress("unknown", start, steps, *(math.nan,) * 7, by_epoch=by_epoch)


def judge(means: Float64, start: int, steps: int, block: int, *, by_epoch: bool) -> Progress:
    """How the loss moved, by its means over blocks of `block` values.

    Args:
        means: float64 `[blocks]`; those that are not finite do not count.
        start: the first step looked at.
        steps: steps looked at.
        block: values in each mean.
        by_epoch: whether these are epochs' values.
    """
    return _judged(means.tobytes(), start, steps, block, by_epoch=by_epoch)


@functools.lru_cache(maxsize=8)  # whole blocks of a long run stay the same from one look to the next
def _judged(of_blocks: bytes, start: int, steps: int, block: int, *, by_epoch: bool) -> Progress:
    """As `judge`, of the means as float64."""
    known = finite(np.frombuffer(of_blocks))
    if len(known) < 6:
        return unknown(start, steps, by_epoch=by_epoch)
    half = known[len(known) // 2 :] if len(known) >= 24 else known[len(known) // 4 :]
    found = trends(half[None], Z_SURE)
    eighth = max(1, len(known) // 8)
    level = median(known[-eighth:])
    windows = np.arange(len(known) - eighth + 1) + np.arange(eighth)[:, None]
    smooth = medians(known[windows])
    fall, at_most = float(-found.slopes[0] * len(half)), float(-found.lows[0] * len(half))
    residuals = half + found.slopes[0] * -np.arange(len(half))
    noise = 1.4826 * median(np.abs(residuals - median(residuals))) * math.sqrt(block)
    z = float(found.z[0])
    worthwhile = NOTHING_SHARE * abs(level)
    trend: Trend
    if z <= -Z_LIKELY:
        trend = "falling"
    elif z >= Z_SURE and -fall > worthwhile:
        trend = "rising"
    elif at_most <= worthwhile:
        trend = "flat"
    else:
        trend = "unclear"
    return Progress(
        trend, start, steps, float(known[0]), level, float(smooth.min()), noise, fall, at_most, z, by_epoch
    )
