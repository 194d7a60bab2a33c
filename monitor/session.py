"""The one state of a run, as its events tell it.

`Session.apply` is all there is to writing it; sources deliver the events, diagnosis, panels and exports read.
It looks at no clock, socket, file or random number: the same events give an equal session, live or replayed,
however the kinds of event are interleaved and even if some arrive twice. No drawing here.

Steps are counted from 0 over the whole run; times are seconds since 1970.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from copy import copy
from functools import lru_cache
from operator import itemgetter
from typing import Any, Final, Literal, NamedTuple

import msgspec
import numpy as np

from client_callback.wire import commands
from client_callback.wire.commands import CommandError, Order
from client_callback.wire.protocol import (
    AnyEvent,
    ControlChanged,
    DataDescribed,
    EpochBegan,
    EpochEnded,
    Evaluated,
    Event,
    Float64,
    Instrumented,
    ModelBuilt,
    Optimizer,
    OptimizerChanged,
    Overhead,
    Problem,
    Reply,
    Resources,
    RunDescription,
    RunEnded,
    RunStarted,
    Samples,
    SnapshotsChanged,
    StateChanged,
    Statistic,
    Steps,
    Timer,
    TimersChanged,
    TrialEnded,
    encode,
    resource_columns,
    resource_steps,
    resource_times,
    sample_columns,
    sample_steps,
    step_columns,
    step_times,
)
from monitor.series import Column, Points, Rows

State = Literal[
    "waiting",
    "running",
    "paused",
    "recompiling",
    "validating",
    "trial",
    "finished",
    "stopped",
    "interrupted",
    "failed",
]
Task = Literal["classification", "binary", "regression", "unknown"]

ENDED: Final = frozenset({"finished", "stopped", "interrupted", "failed"})
"""States after which nothing more comes."""

LONGEST_GAP: Final = 10_000_000
"""Steps that may be missing before a frame of steps. More than that is no gap but a damaged frame."""

_number, _first_step = itemgetter(0), itemgetter(1)
"""Of an entry of `epochs`."""

_RECENT_STEPS = 2_000
_RECENT_S = 20.0
_FEWEST_DURATIONS = 16
_STALL_FACTOR = 20.0
"""A step that took so many times the median was held up by something outside the training."""


class TimeShares(NamedTuple):
    """Where the time of recent steps went, each from 0 to 1; together 1."""

    input_wait: float | None
    """Waiting for the next batch. `None`: cannot be told apart from the step, and is counted there."""
    step_time: float
    """In the train step."""
    callback_time: float
    """In callbacks, this program's among them."""


class Session:
    """Everything known of one run. Read its attributes freely; write only through `apply`."""

    def __init__(self) -> None:
        self.run: RunDescription | None = None
        """`None`: its first event has not arrived."""
        self.step = 0
        """How many steps are known to be completed."""
        self.time = 0.0
        """When the newest event happened. 0: none has."""
        self.states: list[StateChanged] = []
        self.ended: RunEnded | None = None
        """`None`: the run goes on, or its process was killed."""
        self.series: dict[str, Column] = {}
        """Series name → float32, one value per step. NaN: measured and not a number, or `missing`."""
        self.series_kinds: dict[str, Literal["batch", "running", "timing"]] = {}
        self.times = Column(np.float64)
        """When each step ended."""
        self.validation: dict[str, Points] = {}
        """Keras' name, as `val_loss` → its value at the last step of each epoch, and wherever it was asked for."""
        self.epoch_logs: dict[str, Points] = {}
        """Keras' name, as `loss` → what it reported at the last step of each epoch, validation left out."""
        self.data: DataDescribed | None = None
        """`None`: nothing is known of what it is trained on but what its steps tell."""
        self.epochs: list[tuple[int, int]] = []
        """(epoch, its first step) of every epoch begun, in order."""
        self.epoch_ends: dict[int, int] = {}
        """Epoch → how many steps were completed at its end."""
        self.statistics: dict[str, Rows] = {}
        self.layouts: dict[str, Statistic] = {}
        """What the columns of each statistic stand for."""
        self.resources: dict[str, Column] = {}
        """Name, as in `wire.resources` → float32, one value per reading. NaN: could not be read, or `missing`."""
        self.resource_times = Column(np.float64)
        """When each reading was taken."""
        self.resource_steps = Column(np.float64)
        """How many steps had been completed by then."""
        self.overhead: Overhead | None = None
        """The newest. `None`: not measured yet."""
        self.task: Task = "unknown"
        self.replies: list[Reply] = []
        """The newest to each command, in the order of their arrival; those of dry runs are among them."""
        self.trials: list[TrialEnded] = []
        self.timers: TimersChanged | None = None
        """`None`: there never was any."""
        self.snapshots: SnapshotsChanged | None = None
        """`None`: none was ever told of."""
        self.control: ControlChanged | None = None
        """`None`: nobody has taken control."""
        self.problems: list[Problem] = []
        self.missing: tuple[str, ...] = ()
        """What cannot be recorded of this run, each with its reason."""
        self.switched: Optimizer | None = None
        """`None`: the optimizer is still the one the run began with."""

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Session):
            return NotImplemented
        return _same(vars(self), vars(other))

    __hash__ = None  # type: ignore[assignment]

    def apply(self, event: AnyEvent) -> None:
        """Takes in what happened. An event that is known already changes nothing."""
        if isinstance(event, Steps | Resources):
            what, known = (
                ("steps", self.times) if isinstance(event, Steps) else ("readings", self.resource_times)
            )
            if event.first > len(known) + LONGEST_GAP:
                what = f"{what} from {event.first} on were received where {len(known)} was next; not shown"
                self._take_problem(Problem(step=self.step, time=event.time, what=what))
                return
        _TAKERS[type(event)](self, event)
        self.step = max(self.step, event.step)
        self.time = max(self.time, event.time)

    def still(self) -> Session:
        """The session as it is now, for another thread to look at while this one goes on. Copies next to nothing."""
        same = copy(self)
        for name, value in vars(self).items():
            setattr(same, name, _still(value))
        return same

    # ── What follows from it ──────────────────────────────────────────────────────────────────────

    @property
    def state(self) -> State:
        """What the training is busy with, or how it ended."""
        if self.ended:
            return self.ended.outcome
        if self.states:
            return self.states[-1].state
        return "running" if self.run else "waiting"

    @property
    def state_reason(self) -> str:
        """Why it is in this state. Empty: nothing is known beyond the state."""
        if self.ended:
            return self.ended.reason
        return self.states[-1].reason if self.states else ""

    @property
    def epoch(self) -> int | None:
        """The epoch being trained, counted from 0. `None`: none has begun."""
        return self.epochs[-1][0] if self.epochs else None

    @property
    def epoch_count(self) -> int | None:
        """How many epochs this `fit` was asked for. `None`: not known."""
        return self.run.epochs if self.run else None

    @property
    def steps_per_epoch(self) -> int | None:
        """As the run said, else as its first whole epoch had. `None`: neither yet."""
        if self.run and self.run.steps_per_epoch:
            return self.run.steps_per_epoch
        for epoch, first in self.epochs:
            length = self.epoch_ends.get(epoch, first) - first
            if length > 0:
                return length
        return None

    @property
    def total_steps(self) -> int | None:
        """Steps this `fit` will have done in the end. `None`: not known."""
        if not self.epoch_count or not self.steps_per_epoch:
            return None
        begun_with = self.epochs[0][0] if self.epochs else 0
        return max(0, self.epoch_count - begun_with) * self.steps_per_epoch

    @property
    def optimizer(self) -> Optimizer | None:
        """The one at work. `None`: the run has none that unstuck knows."""
        return self.switched or (self.run.optimizer if self.run else None)

    @property
    def learning_rate(self) -> float | None:
        """What the last step was taken with, as measured. `None`: no step has been recorded."""
        rates = self.series.get("learning_rate")
        return float(rates.values[-1]) if rates and len(rates) else None

    @property
    def requested_learning_rate(self) -> float | None:
        """The rate that the last applied command on rates named. `None`: none did, or another has the say.

        Only `lr VALUE` and `optimizer … learning_rate=VALUE` name one, and the first with `over N steps` not before
        these are over. `lr x0.5` scales what there is, a schedule means no rate to stay, and after going back to an
        earlier state nobody has named the rate there is. With `for N steps` or `unless …` it counts as long as the
        timer for that is active.
        """
        if self.optimizer and self.optimizer.schedule:
            return None
        for reply in reversed(self.replies):
            if reply.status not in ("applied", "ineffective"):
                continue
            order = self.order(reply)
            if order is None:  # of another version, or said by a timer
                if "learning_rate" in reply.after:
                    return None
                continue
            namer = _RATE_NAMERS.get(type(order.instruction))
            if namer is None:
                continue
            timed = order.lasts is not None or order.unless is not None
            if timed and not any(timer.number == reply.timer for timer in self.active_timers):
                return None
            return namer(order.instruction, self.step - reply.step)
        return None

    @property
    def active_timers(self) -> tuple[Timer, ...]:
        """Of what is in effect now and may be taken back."""
        timers = self.timers.timers if self.timers else ()
        return tuple(timer for timer in timers if timer.state == "active")

    @property
    def actions(self) -> tuple[str, ...]:
        """Commands that the training's script defined itself."""
        return self.run.actions if self.run else ()

    def order(self, reply: Reply) -> Order | None:
        """What its command asked for. `None`: it was recorded by another version, and is not understood."""
        return _understood(reply.text, self.actions)

    def answered(self) -> list[Reply]:
        """The answers that say what became of a command; those that only say what would are left out."""
        return [reply for reply in self.replies if not _only_plans(reply)]

    def taken_back(self) -> set[str]:
        """Ids of the commands whose effect `undo` took back, and no `redo` brought again."""
        undone: dict[str, None] = {}
        for reply in self.replies:
            if reply.status != "applied":
                continue
            order = self.order(reply)
            if reply.undoes:
                undone[reply.undoes] = None
            elif order is not None and isinstance(order.instruction, commands.Redo) and undone:
                undone.popitem()
        return set(undone)

    def progress(self) -> float | None:
        """Share of all steps that is done, 0 to 1. `None`: their number is not known."""
        total = self.total_steps
        return min(1.0, self.step / total) if total else None

    def steps_per_second(self) -> float | None:
        """Steps per second of training proper, over the last seconds. `None`: too little to say.

        Counts no step during which the training was paused, recompiling or validating, no first step of an
        epoch, and none that something outside held up.
        """
        durations = self._durations()
        if len(durations) < 2:
            return None
        durations = durations[durations <= _STALL_FACTOR * max(float(np.median(durations)), 1e-9)]
        total_s = float(durations.sum())
        return len(durations) / total_s if total_s > 0 else None

    def examples_per_second(self) -> float | None:
        """As `steps_per_second`, in examples. `None`: it is not known how many a step takes."""
        speed = self.steps_per_second()
        batches = self._recent("examples")
        batches = batches[np.isfinite(batches)]
        return speed * float(batches.mean()) if speed is not None and len(batches) else None

    def time_shares(self) -> TimeShares | None:
        """Over the last seconds. `None`: not measured, or it cannot be told apart in this run."""
        parts = np.array([self._recent(name) for name in TimeShares._fields])
        told_apart = bool(np.isfinite(parts[0]).any())
        if not told_apart:
            parts[0] = 0.0
        totals = parts[:, np.isfinite(parts).all(axis=0)].sum(axis=1)
        if not totals.sum() > 0:
            return None
        wait, step, callbacks = (totals / totals.sum()).tolist()
        return TimeShares(wait if told_apart else None, step, callbacks)

    def metric_series(self) -> list[str]:
        """Names of the series that tell what the model learns, and not how its steps ran."""
        return [name for name in self.series if self.series_kinds.get(name) != "timing"]

    def reading_at(self, step: int | None) -> int | None:
        """Number of the last reading by the end of that step, or of the newest. `None`: there is none."""
        if not len(self.resource_times):
            return None
        if step is None:
            return len(self.resource_times) - 1
        return max(0, int(np.searchsorted(self.resource_steps.values, step + 1, "right")) - 1)

    def eta_s(self) -> float | None:
        """Seconds of training and validation still to come. `None`: not known. 0: the run has ended."""
        if self.ended:
            return 0.0
        rate, total, per_epoch = self.steps_per_second(), self.total_steps, self.steps_per_epoch
        if rate is None or total is None or not per_epoch:
            return None
        remaining = max(0, total - self.step)
        return remaining / rate + remaining / per_epoch * self._between_epochs_s()

    # ── One taker per kind of event ───────────────────────────────────────────────────────────────

    def _take_run(self, event: RunStarted) -> None:
        if self.run is None or self.run.run_id != event.run.run_id:
            self.run = event.run

    def _take_model(self, event: ModelBuilt) -> None:
        if self.run:
            told = {name: getattr(event, name) for name in ("parameters", "layers", "variables", "outputs")}
            self.run = msgspec.structs.replace(self.run, **told)

    def _take_instrumented(self, event: Instrumented) -> None:
        self.series_kinds.update({series.name: series.kind for series in event.series})
        self.layouts.update({statistic.name: statistic for statistic in event.statistics})
        self.missing = event.missing
        self.task = event.task

    def _take_steps(self, event: Steps) -> None:
        self.times.extend(event.first, step_times(event))
        for name, values in step_columns(event).items():
            if name not in self.series:
                self.series[name] = Column()
            self.series[name].extend(event.first, values)

    def _take_samples(self, event: Samples) -> None:
        steps = sample_steps(event)
        for name, matrix in sample_columns(event).items():
            width = matrix.shape[1]
            rows = self.statistics.get(name)
            if rows is None or rows.width != width:
                # Another layout after a new trace: rows of different meaning do not belong in one table.
                rows = self.statistics[name] = Rows(width)
            rows.extend(steps, matrix)

    def _take_resources(self, event: Resources) -> None:
        self.resource_times.extend(event.first, resource_times(event))
        self.resource_steps.extend(event.first, resource_steps(event).astype(np.float64))
        for name, values in resource_columns(event).items():
            if name not in self.resources:
                self.resources[name] = Column()
            self.resources[name].extend(event.first, values)

    def _take_overhead(self, event: Overhead) -> None:
        if self.overhead is None or event.time >= self.overhead.time:
            self.overhead = event

    def _take_epoch_began(self, event: EpochBegan) -> None:
        # By bisection: a run of short epochs has tens of thousands of them.
        place = bisect_left(self.epochs, event.epoch, key=_number)
        if place == len(self.epochs) or self.epochs[place][0] != event.epoch:
            self.epochs.insert(place, (event.epoch, event.step))

    def _take_epoch_ended(self, event: EpochEnded) -> None:
        self.epoch_ends[event.epoch] = event.step
        for name, value in event.logs.items():
            into = self.validation if name.startswith("val_") else self.epoch_logs
            _put(into, name, event.step, value)

    def _take_evaluated(self, event: Evaluated) -> None:
        for name, value in event.logs.items():
            if name.startswith("val_"):
                _put(self.validation, name, event.step, value)

    def _take_data(self, event: DataDescribed) -> None:
        self.data = event

    def _take_state(self, event: StateChanged) -> None:
        if event not in self.states[-100:]:
            self.states.append(event)

    def _take_optimizer(self, event: OptimizerChanged) -> None:
        self.switched = event.optimizer

    def _take_reply(self, event: Reply) -> None:
        known = next((reply for reply in self.replies if reply.id == event.id), None)
        if known is not None:
            if known == event or event.time < known.time:
                return
            self.replies.remove(known)
        self.replies.append(event)

    def _take_trial(self, event: TrialEnded) -> None:
        if all(trial.id != event.id for trial in self.trials):
            self.trials.append(event)

    def _take_timers(self, event: TimersChanged) -> None:
        if self.timers is None or event.time >= self.timers.time:
            self.timers = event

    def _take_snapshots(self, event: SnapshotsChanged) -> None:
        if self.snapshots is None or event.time >= self.snapshots.time:
            self.snapshots = event

    def _take_control(self, event: ControlChanged) -> None:
        if self.control is None or event.time >= self.control.time:
            self.control = event

    def _take_problem(self, event: Problem) -> None:
        if event not in self.problems[-100:]:
            self.problems.append(event)

    def _take_end(self, event: RunEnded) -> None:
        self.ended = event

    # ── Throughput ────────────────────────────────────────────────────────────────────────────────

    def _durations(self) -> Float64:
        """Seconds that recent steps took, those of training proper only; float64 `[n]`."""
        first = max(0, len(self.times) - _RECENT_STEPS)
        times = self.times.values[first:]
        if len(times) < 2:
            return np.empty(0)
        recent = int(np.searchsorted(times, times[-1] - _RECENT_S))
        cut = max(0, min(recent, len(times) - 1 - _FEWEST_DURATIONS))
        first, times = first + cut, times[cut:]
        begins, ends = times[:-1], times[1:]
        durations = ends - begins
        counted = np.isfinite(durations) & (durations >= 0)
        begun = bisect_right(self.epochs, first, key=_first_step)
        for _, epoch_first in self.epochs[begun:]:
            if epoch_first >= first + len(times):
                break
            counted[epoch_first - first - 1] = False
        for busy_from, busy_to in self._busy(float(times[0])):
            counted &= (ends <= busy_from) | (begins >= busy_to)
        return np.asarray(durations[counted], np.float64)

    def _recent(self, name: str) -> Float64:
        """Values of a series over the last seconds, float64 `[n]`; NaN where it has none."""
        times = self.times.values[-_RECENT_STEPS:]
        count = len(times) - int(np.searchsorted(times, times[-1] - _RECENT_S)) if len(times) else 0
        first = len(self.times) - count
        values = np.full(count, np.nan)
        if (column := self.series.get(name)) is not None:
            known = column.values[first:]
            values[: len(known)] = known
        return values

    def _busy(self, since: float) -> list[tuple[float, float]]:
        """When, after `since`, the training was doing something else than stepping."""
        spans = []
        until = math.inf
        for change in reversed(self.states):
            if change.state != "running":
                spans.append((change.time, until))
            until = change.time
            if until < since:
                break
        return spans

    def _between_epochs_s(self) -> float:
        """Median seconds between the last step of an epoch and the first of the next, over recent ones."""
        times = self.times.values
        firsts = [first for _, first in self.epochs[-9:] if 0 < first < len(times)]
        gaps = [float(times[first] - times[first - 1]) for first in firsts]
        gaps = [gap for gap in gaps if gap >= 0]
        return float(np.median(gaps)) if gaps else 0.0


_TAKERS: dict[type[Event], Callable[[Session, Any], None]] = {
    RunStarted: Session._take_run,
    Instrumented: Session._take_instrumented,
    ModelBuilt: Session._take_model,
    DataDescribed: Session._take_data,
    Steps: Session._take_steps,
    Samples: Session._take_samples,
    Resources: Session._take_resources,
    Overhead: Session._take_overhead,
    EpochBegan: Session._take_epoch_began,
    EpochEnded: Session._take_epoch_ended,
    StateChanged: Session._take_state,
    OptimizerChanged: Session._take_optimizer,
    Reply: Session._take_reply,
    TimersChanged: Session._take_timers,
    SnapshotsChanged: Session._take_snapshots,
    Evaluated: Session._take_evaluated,
    TrialEnded: Session._take_trial,
    ControlChanged: Session._take_control,
    Problem: Session._take_problem,
    RunEnded: Session._take_end,
}


def _still(value: object) -> object:
    if isinstance(value, dict):
        return {key: _still(one) for key, one in value.items()}
    if isinstance(value, list):
        return list(value)
    return value.still() if isinstance(value, Column | Points | Rows) else value


def _put(points: dict[str, Points], name: str, steps_completed: int, value: float) -> None:
    if name not in points:
        points[name] = Points()
    points[name].append(max(0, steps_completed - 1), value)


@lru_cache(maxsize=4_096)
def _understood(text: str, actions: tuple[str, ...]) -> Order | None:
    try:
        return commands.parse(text, actions)
    except CommandError:
        return None


def _only_plans(reply: Reply) -> bool:
    """Whether it is the answer to a dry run: nothing was changed, and no timer waits."""
    return reply.status == "planned" and reply.timer is None


def _set_rate(instruction: commands.SetRate, steps_since: int) -> float | None:
    return instruction.value if steps_since > instruction.over or not instruction.over else None


def _switch_rate(instruction: commands.SwitchOptimizer, steps_since: int) -> float | None:
    named = instruction.arguments.get("learning_rate")
    return float(named) if isinstance(named, int | float) else None


def _no_rate(instruction: object, steps_since: int) -> None:
    return None


_RATE_NAMERS: dict[type[object], Callable[[Any, int], float | None]] = {
    commands.SetRate: _set_rate,
    commands.SwitchOptimizer: _switch_rate,
    **dict.fromkeys(
        (
            *(commands.ScaleRate, commands.SetSchedule, commands.SetHyperparameters, commands.UserAction),
            *(commands.Rollback, commands.Undo, commands.Redo),
        ),
        _no_rate,
    ),
}
"""Instruction → (it, steps since) → the rate that it named, for all that may have changed the rate."""


def _same(a: object, b: object) -> bool:
    """Equal, where NaN equals NaN."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, msgspec.Struct) and isinstance(b, msgspec.Struct):
        return type(a) is type(b) and encode(a) == encode(b)
    if isinstance(a, float) and isinstance(b, float):
        return a == b or (math.isnan(a) and math.isnan(b))
    return a == b
