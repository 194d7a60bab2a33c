"""Five numbers about an array, on the host. `description` and `inspection` make them of weights and of data."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from client_callback.wire.protocol import Summary


def summary_of(values: npt.NDArray[Any]) -> Summary:
    """Of an array of numbers or truth values, any shape; complex ones count by their magnitude."""
    flat = np.abs(values).reshape(-1) if np.iscomplexobj(values) else values.reshape(-1)
    # Half floats and those of other libraries are widened first: numpy sums them slowly, or not at all.
    flat = flat if flat.dtype.kind in "biu" or flat.dtype in (np.float32, np.float64) else flat.astype("f4")
    finite = flat if flat.dtype.kind in "biu" else flat[np.isfinite(flat)]
    skipped = 1.0 - len(finite) / len(flat) if len(flat) else 0.0
    if not len(finite):
        nan = math.nan
        return Summary(mean=nan, std=nan, low=nan, high=nan, non_finite=skipped)
    with np.errstate(over="ignore"):  # where squares outgrow float64, so does the deviation
        mean, std = float(finite.mean(dtype=np.float64)), float(finite.std(dtype=np.float64))
    return Summary(mean=mean, std=std, low=float(finite.min()), high=float(finite.max()), non_finite=skipped)
