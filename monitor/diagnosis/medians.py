"""Medians of the few numbers that rules look at, over the finite ones; numpy's own take ten times as long for so few.

Pure functions of numbers.
"""

from __future__ import annotations

import math
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from client_callback.wire.protocol import Float64

_Real = TypeVar("_Real", bound=np.floating[Any])


def finite(values: npt.NDArray[_Real]) -> npt.NDArray[_Real]:
    """Those that are, `[n]`; the array itself where all are."""
    known = np.isfinite(values)
    return values if known.all() else values[known]


def median(values: npt.NDArray[np.floating[Any]]) -> float:
    """Of finite numbers, `[n]`; NaN where there is none."""
    if not len(values):
        return math.nan
    in_order, count = np.sort(values), len(values)
    return float((in_order[(count - 1) // 2] + in_order[count // 2]) / 2)


def medians(values: npt.NDArray[np.floating[Any]], axis: int = 0) -> Float64:
    """Along an axis, over the finite values only; NaN where there is none."""
    known, size = np.isfinite(values), values.shape[axis]
    if known.all():
        in_order = np.sort(values.astype(np.float64), axis=axis)
        return np.asarray((in_order.take((size - 1) // 2, axis) + in_order.take(size // 2, axis)) / 2)
    in_order = np.sort(np.where(known, values, np.nan).astype(np.float64), axis=axis)  # NaN comes last
    number = known.sum(axis=axis, keepdims=True)
    low = np.take_along_axis(in_order, np.maximum(number - 1, 0) // 2, axis)
    high = np.take_along_axis(in_order, np.minimum(number // 2, size - 1), axis)
    middle: Float64 = ((low + high) / 2).squeeze(axis)
    return middle
