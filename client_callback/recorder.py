"""From what accumulated during a training to the events that tell it: steps, samples, their layout.

`run.Run` counts calls and logged values into a `StepRecorder` and drains it between batches. It knows no socket and
no command.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from client_callback.instrument.instrument import Instrument
from client_callback.instrument.probe import Drained
from client_callback.wire.protocol import (
    Event,
    Float32,
    Float64,
    Instrumented,
    Problem,
    Series,
    samples_event,
    steps_event,
)

DRAIN_INTERVAL_S = 0.08
"""What a killed process loses at most, together with the link's own delay. Shorter: more waits for the device."""
MOST_CALLS = 4096
"""Calls kept between two drains, so that memory stays bounded whatever the clock says."""


class StepRecorder:
    """Collects the steps of one training and sends them as frames.

    Args:
        emit: takes each event.
        wall_clock_offset: seconds to add to `time.perf_counter()` for seconds since 1970.
    """

    def __init__(self, emit: Callable[[Event], None], wall_clock_offset: float) -> None:
        self._emit = emit
        self._offset = wall_clock_offset
        self._logged: list[Mapping[str, float]] = []
        self._logged_series: tuple[Series, ...] = ()
        self._call_ends: list[float] = []
        self._interval_start = self._last_end = self._drained_at = time.perf_counter()
        self.instrument: Instrument | None = None
        """`None`: only logged values are recorded."""
        self.steps_per_call = 1
        self.step = 0
        """Steps sent so far. After `drain`: steps completed."""

    def restart_clock(self) -> None:
        """What passed since the last call was no training (a pause, validation, the start of an epoch)."""
        self._last_end = time.perf_counter()
        if not self._call_ends:
            self._interval_start = self._last_end

    def count_call(self, logged: Mapping[str, Any] | None) -> None:
        """One call of the train function is over. Drains when the next call might end too late for it.

        Args:
            logged: values to record for it beside or instead of what is measured inside the step.
        """
        now = time.perf_counter()
        duration, self._last_end = now - self._last_end, now
        self._call_ends.append(now)
        if logged is not None:
            self._logged.append(numbers(logged))
        if (
            now + duration - self._drained_at > DRAIN_INTERVAL_S
            or len(self._call_ends) >= self._calls_that_fit
        ):
            self.drain()

    def drain(self) -> None:
        """Sends what accumulated since the last time, as one frame of steps and one of samples."""
        self._drained_at = time.perf_counter()
        drained = None if self.instrument is None else self.instrument.drain()
        columns = _logged_columns(self._logged)
        if drained is not None:
            columns = self._measured_columns(drained, columns)
        elif columns:
            self._announce_logged(columns)
        rows = len(next(iter(columns.values()), ()))
        now = self._drained_at + self._offset
        if rows:
            ends = _step_times(self._interval_start, self._call_ends, rows) + self._offset
            self._emit(steps_event(self.step, ends, columns, time=now))
        if drained is not None and len(drained.sample_steps):
            steps = drained.sample_steps + (self.step - drained.first)
            self._emit(samples_event(steps, drained.samples, time=now))
        self.step += rows
        self._call_ends.clear()
        self._logged.clear()
        self._interval_start = self._last_end

    @property
    def _calls_that_fit(self) -> int:
        """Half of what the device keeps, so that a late drain still finds everything."""
        if self.instrument is None:
            return MOST_CALLS
        return max(1, min(self.instrument.drain_within // self.steps_per_call // 2, MOST_CALLS))

    def _measured_columns(self, drained: Drained, logged: dict[str, Float32]) -> dict[str, Float32]:
        assert self.instrument is not None  # noqa: S101 (it is where `drained` came from)
        layout = self.instrument.take_layout(step=self.step, time=self._drained_at + self._offset)
        names = self.instrument.series_names
        if layout is not None:
            extra = tuple(Series(name=name) for name in logged if name not in names)
            self._emit(msgspec.structs.replace(layout, series=layout.series + extra))
        if drained.lost:
            what = f"{drained.lost} steps before step {self.step} were overwritten before they could be read"
            self._emit(Problem(step=self.step, time=self._drained_at + self._offset, what=what))
        columns = {name: drained.rows[:, index] for index, name in enumerate(names)}
        return columns | {
            name: values
            for name, values in logged.items()
            if name not in columns and len(values) == len(drained.rows)
        }

    def _announce_logged(self, columns: Mapping[str, Float32]) -> None:
        measured_by_caller = self.instrument is None
        series = tuple(
            Series(name=name, kind="batch" if measured_by_caller else "running") for name in columns
        )
        if series == self._logged_series:
            return
        self._logged_series = series
        missing = ("per-variable statistics and predictions: nothing is measured inside the train step",)
        at = self._drained_at + self._offset
        self._emit(Instrumented(step=self.step, time=at, series=series, missing=missing))


def numbers(logs: Mapping[str, Any]) -> dict[str, float]:
    """The entries that are single numbers, as floats. Device scalars are read, which waits for them."""
    found: dict[str, float] = {}
    for name, value in logs.items():
        try:
            found[str(name)] = float(value)
        except (TypeError, ValueError):
            continue
    return found


def _logged_columns(logged: Sequence[Mapping[str, float]]) -> dict[str, Float32]:
    names = dict.fromkeys(name for row in logged for name in row)
    return {
        name: np.array([row.get(name, float("nan")) for row in logged], dtype=np.float32) for name in names
    }


def _step_times(start: float, call_ends: Sequence[float], steps: int) -> Float64:
    """When each of `steps` steps ended, float64[steps]: of a call that ran several, spread evenly over it."""
    if len(call_ends) == steps:
        return np.array(call_ends)
    known = np.array([start, *call_ends])
    position = np.linspace(0, len(call_ends), steps + 1)[1:]
    return np.asarray(np.interp(position, np.arange(len(known)), known), dtype=np.float64)
