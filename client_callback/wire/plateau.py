"""What a plateau is, for the training that waits for one and for the terminal that shows it.

A window of 32 blocks of losses is flat when both hold:

- its trend is no significant fall: Mann-Kendall's test on the block means, one-sided;
- a fall worth having would have been noticed: the upper confidence bound of Theil-Sen's slope, times the window,
  stays below a share of the loss. Without this, noise alone would pass for a plateau.

Pure functions of numbers; `client_callback.wire.trends` says how both bear spikes and noise with a memory.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from client_callback.wire.protocol import Float64
from client_callback.wire.trends import trends

BLOCKS: Final = 32
"""Blocks in a window: enough for a rank test, few enough that blocks outlast the noise's memory."""
SHORTEST_BLOCK: Final = 8
"""Steps. A window is thus 256 steps at least."""
MOST_BLOCKS: Final = 128
"""Over the whole run; block length doubles when there would be more. Bounds the cost at any length."""
FALL_Z: Final = 1.645
"""One-sided 5 %: from here on a fall counts as progress."""
POWER_Z: Final = 2.33
"""One-sided 1 %: how sure to be that no worthwhile fall was missed."""
WORTHWHILE_SHARE: Final = 0.05
"""Of the loss itself, over the window. ReduceLROnPlateau's default asks for less and is fooled by noise."""
ACHIEVED_SHARE: Final = 0.01
"""Of what the loss has fallen since the start; what counts near convergence, where the loss is tiny."""


class Windows(NamedTuple):
    """One entry per window of `BLOCKS` blocks, in order; each `[w]`."""

    flat: npt.NDArray[np.bool_]
    falls: Float64
    """By how much the loss fell over the window, by Theil-Sen. Negative: it rose."""
    falls_at_most: Float64
    """The upper confidence bound of that."""


def block_steps(steps: int) -> int:
    """Steps per block of a run so long: a power of two, so that blocks stay where they are while the run grows."""
    block = SHORTEST_BLOCK
    while steps // block > MOST_BLOCKS:
        block *= 2
    return block


def judge_windows(means: Float64, first: float) -> Windows:
    """Every window of `BLOCKS` blocks among their mean losses, float64 `[blocks]`, at least one window.

    `first`: the mean loss of the run's first block.
    """
    windows = np.lib.stride_tricks.sliding_window_view(means, BLOCKS)
    found = trends(windows, POWER_Z)
    at_most = -found.lows * BLOCKS
    levels = np.median(windows, axis=1)
    worthwhile = np.maximum(
        WORTHWHILE_SHARE * np.abs(levels), ACHIEVED_SHARE * np.maximum(first - levels, 0.0)
    )
    with np.errstate(invalid="ignore"):
        flat = (found.z > -FALL_Z) & (at_most <= worthwhile)
    return Windows(flat, -found.slopes * BLOCKS, at_most)
