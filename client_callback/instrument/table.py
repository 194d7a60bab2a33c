"""One statistic of a sampled step: what it is called, how it is computed, how replicas' parts are joined."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from client_callback.instrument.statistics import Tensor
from client_callback.wire.protocol import Float32, Statistic

Join = Callable[[Float32], Float32]
"""float32[replicas, n, width] → float32[n, width]."""


def first(parts: Float32) -> Float32:
    """All replicas computed the same: what concerns weights and the whole batch's gradient."""
    part: Float32 = parts[0]
    return part


def total(parts: Float32) -> Float32:
    """Counts add up."""
    summed: Float32 = parts.sum(axis=0, dtype=np.float32)
    return summed


class Table(NamedTuple):
    """A statistic and how to compute one row of it, float32[statistic.width] of any shape."""

    statistic: Statistic
    compute: Callable[[], Tensor]
    join: Join = first
