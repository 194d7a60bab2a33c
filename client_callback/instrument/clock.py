"""Where the time of a training goes between two batches: into waiting for data, the step, and other callbacks."""

from __future__ import annotations

import math
import time
from typing import NamedTuple


class CallTimes(NamedTuple):
    """One call of the train function. Seconds; NaN where it cannot be told apart."""

    end: float
    """By `time.perf_counter`."""
    callbacks: float
    """From the end of the call before to the begin of this one: callbacks and Keras' own loop."""
    input_wait: float
    step: float


class CallClock:
    """Told by the train function's guard when a call begins and ends, and by a driver when its batch was there."""

    def __init__(self) -> None:
        self._begin = self._ready = self._end = math.nan
        self.last = CallTimes(math.nan, math.nan, math.nan, math.nan)

    def begin(self) -> None:
        """The train function is called."""
        self._begin = time.perf_counter()
        self._ready = math.nan

    def data_ready(self) -> None:
        """It has its (first) batch."""
        if math.isnan(self._ready):
            self._ready = time.perf_counter()

    def end(self) -> None:
        """It has returned."""
        now = time.perf_counter()
        step = now - (self._begin if math.isnan(self._ready) else self._ready)
        self.last = CallTimes(now, self._begin - self._end, self._ready - self._begin, step)
        self._end = now

    def restart(self) -> None:
        """What passed since the last call was no training (a pause, validation, the start of an epoch)."""
        self._end = math.nan
