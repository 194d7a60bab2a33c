"""From what accumulated during a training to the events that tell it: steps, samples, their layout, their cost.

`run.Run` counts calls and logged values into a `StepRecorder`, which costs the training no more than an entry in a
list. The sender's thread drains it many times a second; the training itself does so where a frame must be complete:
at the end of an epoch, before a command, at the end. It knows no socket and no command.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np

from client_callback.budget import Budget
from client_callback.instrument.clock import CallTimes
from client_callback.instrument.instrument import Instrument
from client_callback.instrument.probe import READY_MODULUS, Drained
from client_callback.recent import RecentSteps
from client_callback.wire.protocol import (
    Event,
    Float32,
    Float64,
    Instrumented,
    Int64,
    Measured,
    Overhead,
    Problem,
    Series,
    samples_event,
    steps_event,
)

DRAIN_INTERVAL_S = 0.1
"""What a killed process loses at most, together with the link's own delay. Shorter costs more."""
OVERHEAD_INTERVAL_S = 1.0
"""How often the cost of watching is judged."""
OVERHEAD_TOLD_S = 10.0
"""How often it is told when nothing changes."""
MOST_CALLS = 4096
"""Calls kept between two drains, so that memory stays bounded whatever the sender does."""

_LABELS = "target_counts"
"""The statistic with the labels of a sampled batch, one count for each class."""

TIMINGS = ("step_time", "input_wait", "callback_time")
"""Series in seconds: in the train step, waiting for its batch, between two calls of the train function."""


class _Call(NamedTuple):
    """One call of the train function."""

    end: float
    steps: int
    times: CallTimes | None
    logged: Mapping[str, float] | None


_UNKNOWN = CallTimes(math.nan, math.nan, math.nan, math.nan)


class StepRecorder:
    """Collects the steps of one training and sends them as frames.

    Args:
        emit: takes each event.
        wall_clock_offset: seconds to add to `time.perf_counter()` for seconds since 1970.
        budget: what watching may cost.
    """

    def __init__(self, emit: Callable[[Event], None], wall_clock_offset: float, budget: Budget) -> None:
        self._emit = emit
        self._offset = wall_clock_offset
        self._budget = budget
        self.lock = threading.RLock()
        """Held while draining, and by whoever puts another instrument in place."""
        self._calls: deque[_Call] = deque()
        self._rows: list[Float32] = []
        """Measured, of calls that have not returned yet."""
        self._samples: list[tuple[int, dict[str, Float32]]] = []
        self._logged_names: dict[str, None] = {}
        self._announced = 0
        self._drained_at = self._judged_at = self._last_end = time.perf_counter()
        self._told_at = -math.inf
        self._skip_calls = 1
        self._lost = 0
        """Overwritten steps whose calls are still to be left out."""
        self._limit = MOST_CALLS
        """Steps that may wait: half of what is kept, so that a late drain still finds everything."""
        self.hook_seconds = 0.0
        """Spent in the callback's hooks; added to by whoever has them."""
        self._judged_hook_seconds = 0.0
        self._calls_drained = self._judged_calls = 0
        self._sender_cpu = self._judged_sender_cpu = 0.0
        self.instrument: Instrument | None = None
        """`None`: only logged values are recorded."""
        self.own_values = False
        """Whether logged values are the caller's own of that very step, not Keras' running means."""
        self.step = 0
        """Steps sent so far. After `drain`: steps completed."""
        self.completed = 0
        """Steps of all calls that have returned."""
        self.recent = RecentSteps()
        self.label_counts: dict[int, float] = {}
        """Class → how often it was seen among the labels of sampled steps, where each class is counted."""
        self.last_values: dict[str, float] = {}
        """Of the last step that was measured and sent, by series."""
        self.sampled_update: Measured | None = None
        """‖Δw‖/‖w‖ of the last sampled step, over all trainable variables. `None`: not measured yet."""

    def restart_clock(self) -> None:
        """What passed since the last call was no training (a pause, validation, the start of an epoch)."""
        self._last_end = time.perf_counter()

    def forget_next_call(self) -> None:
        """The next call traces the train step: how long it takes tells nothing."""
        self._skip_calls = 1

    def count_call(
        self, logged: Mapping[str, Any] | None, steps: int = 1, times: CallTimes | None = None
    ) -> None:
        """One call of the train function is over.

        Args:
            logged: values to record for it beside or instead of what is measured inside the step.
            steps: how many steps it ran; logged values stand for each of them.
            times: where its time went, if known.
        """
        found = None if logged is None else numbers(logged)
        self.completed += steps
        self._calls.append(_Call(time.perf_counter() if times is None else times.end, steps, times, found))
        if len(self._calls) * steps >= self._limit:
            self.drain()

    def count_measured(self, times: CallTimes, steps: int) -> bool:
        """One call of the train function is over whose values were measured; whether it is time to drain."""
        self._calls.append(_Call(times.end, steps, times, None))
        self.completed += steps
        return len(self._calls) * steps >= self._limit

    def tick(self) -> None:
        """Called from the sender's thread, often: sends the steps that are complete."""
        self._sender_cpu = time.thread_time()
        if self._calls and time.perf_counter() - self._drained_at >= DRAIN_INTERVAL_S:
            with self.lock:
                self._drain(everything=False)

    def drain(self) -> None:
        """Sends what accumulated since the last time. Called while no step is under way."""
        with self.lock:
            self._drain(everything=True)

    def _drain(self, *, everything: bool) -> None:
        drained_before, self._drained_at = self._drained_at, time.perf_counter()
        if self.instrument is not None:
            self._limit = min(MOST_CALLS, self.instrument.drain_within // 2)
        calls = [self._calls.popleft() for _ in range(len(self._calls))]
        self._calls_drained += len(calls)
        drained = None if self.instrument is None else self.instrument.drain()
        if drained is not None:
            self._take_measured(drained)
            self._budget.note_pace(self._drained_at - drained_before, len(drained.rows))
        calls = self._without_lost(calls)
        if self._rows:
            self._send_measured(calls, everything=everything)
        elif calls:
            self._send_logged(calls)
        self._judge_overhead()

    def _without_lost(self, calls: list[_Call]) -> list[_Call]:
        """Steps that were overwritten have no rows, so their calls have nothing to tell."""
        while calls and self._lost >= calls[0].steps:
            self._lost -= calls.pop(0).steps
        return calls

    # ── Measured inside the step ────────────────────────────────────────────────────────────────────

    def _take_measured(self, drained: Drained) -> None:
        waiting = sum(map(len, self._rows))
        if drained.lost:
            what = f"{drained.lost} steps from step {self.step} on were overwritten before they could be read"
            self._emit(Problem(step=self.step, time=self._now, what=what))
            self.step += drained.lost
            self._lost += drained.lost
        shift = self.step + waiting - drained.first
        if len(drained.rows):
            self._rows.append(drained.rows)
        for place, step in enumerate(drained.sample_steps.tolist()):
            row = {name: values[place] for name, values in drained.samples.items()}
            self._samples.append((step + shift, row))

    def _send_measured(self, calls: Sequence[_Call], *, everything: bool) -> None:
        rows = np.concatenate(self._rows)
        known = len(rows) if everything else min(len(rows), sum(call.steps for call in calls))
        self._rows = [rows[known:]] if known < len(rows) else []
        if not known:
            self._calls.extendleft(reversed(calls))
            return
        assert self.instrument is not None  # noqa: S101 (it is where the rows came from)
        names = self.instrument.series_names
        ready = rows[:known, len(names)] if rows.shape[1] > len(names) else None
        timings = self._timings(calls, known, ready)
        logged = self._logged_columns(calls, known)
        extra = {name: values for name, values in logged.items() if name not in names}
        self._announce_measured(timings, extra)
        columns = {name: rows[:known, place] for place, name in enumerate(names)} | timings | extra
        self.last_values = dict(zip(names, rows[known - 1].tolist(), strict=False))
        first = self.step
        self.step += known
        self._emit(steps_event(first, self._step_ends(calls, known), columns, time=self._now))
        self.recent.add(first, columns)
        self._send_samples(calls, first, timings)

    def _send_samples(self, calls: Sequence[_Call], first: int, timings: Mapping[str, Float32]) -> None:
        ready = [sample for sample in self._samples if sample[0] < self.step]
        self._samples = self._samples[len(ready) :]
        if ready:
            steps = np.array([step for step, _ in ready], np.int64)
            columns = {name: np.stack([row[name] for _, row in ready]) for name in ready[0][1]}
            self._emit(samples_event(steps, columns, time=self._now))
            self.sampled_update = _update_share(*ready[-1]) or self.sampled_update
            for label, count in enumerate(columns.get(_LABELS, np.zeros((1, 0))).sum(axis=0).tolist()):
                self.label_counts[label] = self.label_counts.get(label, 0.0) + count
        if "step_time" in timings:
            self._note_durations(calls, timings["step_time"], np.array([step for step, _ in ready]) - first)

    def _note_durations(self, calls: Sequence[_Call], durations: Float32, sampled: Int64) -> None:
        """Tells the budget how long each call took, and with how many samples. `sampled`: rows, ascending."""
        ends = np.cumsum([call.steps for call in calls])
        starts = np.concatenate([[0], ends[:-1]])
        begun = int(np.searchsorted(starts, len(durations)))
        totals = np.add.reduceat(durations.astype(np.float64), starts[:begun]).tolist()
        samples = np.diff(np.searchsorted(sampled, np.concatenate([starts, ends[-1:]]))).tolist()
        for call, total, count in zip(calls, totals, samples, strict=False):
            if self._skip_calls:
                self._skip_calls -= 1
            elif call.times is not None:
                self._budget.note_call(total, call.steps, count)

    def _announce_measured(self, timings: Mapping[str, Float32], extra: Mapping[str, Float32]) -> None:
        assert self.instrument is not None  # noqa: S101 (the caller's condition)
        layout = self.instrument.take_layout(step=self.step, time=self._now)
        added = len(timings) + len(extra)
        if layout is None and added != self._announced:
            layout = self.instrument.layout(step=self.step, time=self._now)
        if layout is not None:
            self._announced = added
            series = [Series(name=name, kind="timing") for name in timings] + [
                Series(name=name) for name in extra
            ]
            self._emit(msgspec.structs.replace(layout, series=(*layout.series, *series)))

    def _timings(self, calls: Sequence[_Call], rows: int, ready: Float32 | None) -> dict[str, Float32]:
        """Seconds of each step, float32[rows]; of a call that ran several, their even shares.

        `ready`: when each step's batch was there, on the wall clock modulo READY_MODULUS, where the graph told.
        """
        if not any(call.times for call in calls):
            return {}
        owner, _ = _owners(calls, rows)
        ends, callbacks, waits, steps = np.array([call.times or _UNKNOWN for call in calls])[owner].T
        if ready is not None:
            begins = ends - steps + self._offset
            told = (ready[: len(owner)] - begins) % READY_MODULUS
            told = np.where(told > steps, 0.0, told)  # the two clocks differ by microseconds
            waits, steps = told, steps - told
        parts = np.array([call.steps for call in calls])[owner]
        table = np.full((len(TIMINGS), rows), np.nan, np.float32)
        table[:, : len(owner)] = np.stack([steps, waits, callbacks]) / parts
        return dict(zip(TIMINGS, table, strict=True))

    def _step_ends(self, calls: Sequence[_Call], rows: int) -> Float64:
        """When each of the steps ended, float64[rows]: of a call that ran several, spread evenly over it."""
        found = np.full(rows, self._last_end)
        if calls:
            owner, passed = _owners(calls, rows)
            ends = np.array([call.end for call in calls])
            begins = np.concatenate([[self._last_end], ends[:-1]])
            self._last_end = calls[-1].end
            found[len(owner) :] = self._last_end
            found[: len(owner)] = begins[owner] + (ends - begins)[owner] * passed
        return found + self._offset

    # ── Logged ──────────────────────────────────────────────────────────────────────────────────────

    def _send_logged(self, calls: Sequence[_Call]) -> None:
        rows = sum(call.steps for call in calls if call.logged is not None)
        columns = self._logged_columns(calls, rows)
        if not columns:
            return
        self._announce_logged()
        logging = [call for call in calls if call.logged is not None]
        first = self.step
        self.step += rows
        self._emit(steps_event(first, self._step_ends(logging, rows), columns, time=self._now))
        self.recent.add(first, columns, () if self.own_values else columns)

    def _logged_columns(self, calls: Sequence[_Call], rows: int) -> dict[str, Float32]:
        """Name → float32[rows]. When fewer values were logged than steps measured, each stands for its share."""
        chosen = [call.logged for call in calls if call.logged is not None for _ in range(call.steps)]
        for found in chosen:
            self._logged_names.update(dict.fromkeys(found))
        if not chosen or not rows or not self._logged_names:
            return {}
        places = np.ceil(np.arange(1, rows + 1) * (len(chosen) / rows)).astype(int) - 1
        return {
            name: np.array([chosen[place].get(name, math.nan) for place in places], dtype=np.float32)
            for name in self._logged_names
        }

    def _announce_logged(self) -> None:
        if len(self._logged_names) == self._announced:
            return
        self._announced = len(self._logged_names)
        kind: Literal["batch", "running"] = "batch" if self.own_values else "running"
        series = tuple(Series(name=name, kind=kind) for name in self._logged_names)
        missing = ("per-variable statistics and predictions: nothing is measured inside the train step",)
        self._emit(Instrumented(step=self.step, time=self._now, series=series, missing=missing))

    # ── What it costs ───────────────────────────────────────────────────────────────────────────────

    def _judge_overhead(self) -> None:
        if self._drained_at - self._judged_at < OVERHEAD_INTERVAL_S or self.instrument is None:
            return
        budget = self._budget
        budget.note_sender(self._sender_cpu - self._judged_sender_cpu, self._drained_at - self._judged_at)
        self._judged_at, self._judged_sender_cpu = self._drained_at, self._sender_cpu
        seconds, calls = self.hook_seconds, self._calls_drained
        budget.note_hooks(seconds - self._judged_hook_seconds, calls - self._judged_calls)
        self._judged_hook_seconds, self._judged_calls = seconds, calls
        budget.note_sample_costs(self.instrument.take_sample_costs())
        before = budget.every
        if budget.choose(steps=self.step, sample_bytes=self.instrument.sample_bytes) != before:
            self.instrument.set_interval(budget.every)
        late = self._drained_at - self._told_at >= OVERHEAD_TOLD_S
        if (late or budget.every != before) and not math.isnan(budget.overhead):
            self._told_at = self._drained_at
            self._emit(
                Overhead(
                    step=self.step,
                    time=self._now,
                    share=budget.overhead,
                    hooks=budget.hooks,
                    sampling=budget.sampling,
                    sender=budget.sender,
                    every=budget.every,
                    budget=budget.share,
                )
            )

    @property
    def _now(self) -> float:
        return self._drained_at + self._offset


def _update_share(step: int, row: Mapping[str, Float32]) -> Measured | None:
    """‖Δw‖/‖w‖ of a sampled step. `None`: its norms were not measured."""
    if "update_norm" not in row or "weight_norm" not in row:
        return None
    moved, size = (
        float(np.linalg.norm(row[name].astype(np.float64))) for name in ("update_norm", "weight_norm")
    )
    return Measured(value=moved / size, step=step) if size and math.isfinite(moved / size) else None


def _owners(calls: Sequence[_Call], rows: int) -> tuple[Int64, Float64]:
    """For each of at most `rows` steps: the place of its call, and how much of that call is over at its end."""
    steps = np.array([call.steps for call in calls], np.int64)
    owner = np.repeat(np.arange(len(calls)), steps)[:rows]
    passed = np.arange(1, len(owner) + 1) - (np.cumsum(steps) - steps)[owner]
    return owner, passed / steps[owner]


def numbers(logs: Mapping[str, Any]) -> dict[str, float]:
    """The entries that are single numbers, as floats. Device scalars are read, which waits for them."""
    found: dict[str, float] = {}
    for name, value in logs.items():
        try:
            found[str(name)] = float(value)
        except (TypeError, ValueError):
            continue
    return found
