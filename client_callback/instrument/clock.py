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
    """Told by the train function's guard when a call begins and ends, and by a driver when its batch was there.

    `fetched_between`: Keras fetches a batch before it calls the train function (torch), so that the wait for it lies
    between the hooks of two batches.
    """

    def __init__(self, *, fetched_between: bool = False) -> None:
        self.fetched_between = fetched_between
        self._begin = self._ready = self._end = math.nan
        self._hooks_over = self._waited = math.nan
        self.last = CallTimes(math.nan, math.nan, math.nan, math.nan)

    def batch_begins(self) -> None:
        """The hooks before a batch are called."""
        self._waited = time.perf_counter() - self._hooks_over

    def batch_ends(self) -> None:
        """The hooks after it have been called."""
        self._hooks_over = time.perf_counter()

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
        between = self._begin - self._end
        if self.fetched_between:
            self.last = CallTimes(now, between - self._waited, self._waited, now - self._begin)
        else:
            step = now - (self._begin if math.isnan(self._ready) else self._ready)
            self.last = CallTimes(now, between, self._ready - self._begin, step)
        self._end = now

    def restart(self) -> None:
        """What passed since the last call was no training (a pause, validation, the start of an epoch)."""
        self._end = self._hooks_over = math.nan
