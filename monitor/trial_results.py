"""The columns in a trial's event as numbers. What a range test says of them stands in `client_callback.wire`."""

from __future__ import annotations

import numpy as np

from client_callback.wire.protocol import Float32, TrialEnded, TrialResult
from client_callback.wire.range_test import RangeTest, read_range_test


def losses_of(result: TrialResult) -> Float32:
    """float32 `[steps]`, read-only; fewer than the trial was to have where it was given up."""
    return np.frombuffer(result.losses, "<f4")


def range_test_of(trial: TrialEnded) -> RangeTest | None:
    """The range test that a trial was. `None`: it compared candidates, or has no losses."""
    rates = np.frombuffer(trial.rates, "<f4").astype(np.float64)
    losses = losses_of(trial.results[0]).astype(np.float64) if trial.results else np.empty(0)
    count = min(len(rates), len(losses))
    if not count:
        return None
    return read_range_test(rates[:count], losses[:count], given_up=len(losses) < len(rates))
