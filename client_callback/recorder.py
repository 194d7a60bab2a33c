"""From what accumulated during a training to the events that tell it: steps, samples, their layout.

`run.Run` counts calls and logged values into a `StepRecorder` and drains it between batches. It knows no socket and
no command.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

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
        self._lock = threading.RLock()
        self._logged: list[Mapping[str, float]] = []
        self._logged_names: dict[str, None] = {}
        self._announced = 0
        self._call_ends: list[float] = []
        self._interval_start = self._last_end = self._drained_at = time.perf_counter()
        self.instrument: Instrument | None = None
        """`None`: only logged values are recorded."""
        self.own_values = False
        """Whether logged values are the caller's own of that very step, not Keras' running means."""
        self.steps_per_call = 1
        self.step = 0
        """Steps sent so far. After `drain`: steps completed."""

    def restart_clock(self) -> None:
        """What passed since the last call was no training (a pause, validation, the start of an epoch)."""
        self._last_end = time.perf_counter()
        if not self._call_ends:
            self._interval_start = self._last_end

    def count_call(self, logged: Mapping[str, Any] | None, steps: int = 1) -> None:
        """One call of the train function is over. Drains when the next call might end too late for it.

        Args:
            logged: values to record for it beside or instead of what is measured inside the step.
            steps: how many steps it ran; logged values stand for each of them.
        """
        now = time.perf_counter()
        with self._lock:
            duration, self._last_end = now - self._last_end, now
            self._call_ends.append(now)
            if logged is not None:
                found = numbers(logged)
                self._logged_names.update(dict.fromkeys(found))
                self._logged.extend([found] * steps)
            late = now + duration - self._drained_at > DRAIN_INTERVAL_S
            if late or len(self._call_ends) >= self._calls_that_fit:
                self.drain()

    def drain_if_stalled(self) -> None:
        """Called from the sender's thread: sends finished steps while the training waits for its data.

        Reading the device's buffers while a step runs is safe: a step is counted only after its row is written.
        """
        if self._call_ends and time.perf_counter() - self._drained_at > 1.5 * DRAIN_INTERVAL_S:
            self.drain()

    def drain(self) -> None:
        """Sends what accumulated since the last time, as one frame of steps and one of samples."""
        with self._lock:
            self._drain()

    def _drain(self) -> None:
        self._drained_at = time.perf_counter()
        drained = None if self.instrument is None else self.instrument.drain()
        if drained is not None:
            columns = self._measured_columns(drained)
        else:
            columns = self._logged_columns(len(self._logged))
            if columns:
                self._announce_logged()
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

    def _measured_columns(self, drained: Drained) -> dict[str, Float32]:
        assert self.instrument is not None  # noqa: S101 (it is where `drained` came from)
        at = self._drained_at + self._offset
        if drained.lost:
            what = f"{drained.lost} steps from step {self.step} on were overwritten before they could be read"
            self._emit(Problem(step=self.step, time=at, what=what))
            self.step += drained.lost
        names = self.instrument.series_names
        extra = {name: None for name in self._logged_names if name not in names}
        layout = self.instrument.take_layout(step=self.step, time=at)
        if layout is None and len(extra) != self._announced:
            layout = self.instrument.layout(step=self.step, time=at)
        if layout is not None:
            series = tuple(Series(name=name) for name in extra)
            self._announced = len(extra)
            self._emit(msgspec.structs.replace(layout, series=layout.series + series))
        columns = {name: drained.rows[:, index] for index, name in enumerate(names)}
        logged = self._logged_columns(len(drained.rows))
        return columns | {name: values for name, values in logged.items() if name in extra}

    def _logged_columns(self, rows: int) -> dict[str, Float32]:
        """Name → float32[rows]. When fewer values were logged than steps measured, each stands for its share."""
        if not self._logged or not rows:
            return {}
        places = np.ceil(np.arange(1, rows + 1) * (len(self._logged) / rows)).astype(int) - 1
        chosen = [self._logged[place] for place in places]
        return {
            name: np.array([row.get(name, float("nan")) for row in chosen], dtype=np.float32)
            for name in self._logged_names
        }

    def _announce_logged(self) -> None:
        if len(self._logged_names) == self._announced:
            return
        self._announced = len(self._logged_names)
        kind: Literal["batch", "running"] = "batch" if self.own_values else "running"
        series = tuple(Series(name=name, kind=kind) for name in self._logged_names)
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


def _step_times(start: float, call_ends: Sequence[float], steps: int) -> Float64:
    """When each of `steps` steps ended, float64[steps]: of a call that ran several, spread evenly over it."""
    if len(call_ends) == steps:
        return np.array(call_ends)
    known = np.array([start, *call_ends])
    position = np.linspace(0, len(call_ends), steps + 1)[1:]
    return np.asarray(np.interp(position, np.arange(len(known)), known), dtype=np.float64)
