"""What a learning rate range test says: where the loss falls fastest, where it diverges, which rate to try.

Smith (2017), "Cyclical Learning Rates for Training Neural Networks", arXiv:1506.01186, section 3.3: the rate grows
from step to step, and one reads off where the loss begins to fall and where it becomes ragged or rises. As is usual,
the suggestion is the rate of the steepest descent of the smoothed loss, and at most a tenth of the rate at which it
diverges. Without a fall beyond noise nothing is suggested. Pure functions of numbers, for the training's answer and
the terminal's chart alike.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from client_callback.wire.protocol import Float64

SAFETY: Final = 10.0
"""How far below the rate of divergence a suggestion stays at least."""
_SMOOTHED: Final = 8
"""Parts of the test, over one of which the loss is averaged."""
_CERTAIN: Final = 4.0
"""Standard errors by which a fall or a rise must exceed the noise: it is the greatest of many."""


class RangeTest(NamedTuple):
    """The loss at each rate, float64 `[n]`, and what follows from it."""

    rates: Float64
    losses: Float64
    suggested: float | None
    """`None`: the loss fell at no rate."""
    steepest: float | None
    """The rate at which it fell fastest. `None`: at none."""
    diverges_at: float | None
    """From which rate after its minimum on it stays above where it began, or is not finite. `None`: from none."""


def read_range_test(rates: Float64, losses: Float64, *, given_up: bool) -> RangeTest:
    """What the losses at growing rates say, both `[n]`; `given_up`: there were higher rates that were not tried."""
    finite = np.isfinite(losses)
    count = len(losses) if finite.all() else int(np.argmin(finite))
    window = max(3, len(losses) // _SMOOTHED)
    broken = float(rates[min(count, len(rates) - 1)]) if count < len(losses) or given_up else None
    if count < window:
        return RangeTest(rates, losses, None, None, broken)
    smooth = _smoothed(losses[:count], window)
    error = _noise(losses[:count]) / np.sqrt(window)
    began = float(losses[:window].mean())
    lowest = int(np.argmin(smooth))
    # A single batch that is harder than others raises the mean for a while; what diverges does not come back.
    below = np.flatnonzero(smooth[lowest:] <= began + _CERTAIN * error)
    risen = lowest + int(below[-1]) + 1 if len(below) else lowest
    diverges_at = float(rates[risen]) if risen < count else broken
    # Both means have an error.
    if began - smooth[lowest] <= _CERTAIN * np.sqrt(2) * error or lowest == 0:
        return RangeTest(rates, losses, None, None, diverges_at)
    slopes = np.gradient(smooth, np.log(rates[:count]))
    steepest = float(rates[int(np.argmin(slopes[: lowest + 1]))])
    suggested = steepest if diverges_at is None else min(steepest, diverges_at / SAFETY)
    return RangeTest(rates, losses, suggested, steepest, diverges_at)


def _smoothed(values: Float64, window: int) -> Float64:
    """Centred means over `window` values, fewer at both ends."""
    kernel = np.ones(window)
    return np.asarray(np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same"))


def _noise(values: Float64) -> float:
    """Standard deviation of the noise alone: of the differences between neighbours, by their median (robust)."""
    differences = np.diff(values)
    return float(1.4826 * np.median(np.abs(differences - np.median(differences))) / np.sqrt(2))
