"""A recording, played back at the pace of the training or faster; also one that is still being written.

The position is a number of completed steps; what is delivered is what had happened by then. Everything is
read when the file is opened (columns, so a million steps take a fraction of a second). Nothing here draws.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np

from client_callback.wire import commands, protocol, runs
from client_callback.wire.protocol import AnyEvent, Float64, Int64, Overhead, Resources, Samples, Steps
from client_callback.wire.recording import JournalReader
from monitor.sources.asides import Asides
from monitor.sources.source import Order, Update, slice_samples, slice_steps

LONGEST_WAIT_S = 3.0
"""Nobody watches a pause of the training in full: playing skips ahead to this long before the next event."""
_FOLLOW_S = 0.5
_STILL_WRITTEN_S = 60.0
"""A recording of another machine that has no end and has not grown for so long was left by a killed process."""
_EVENTS_TO_JUMP_TO = (
    protocol.Reply,
    protocol.OptimizerChanged,
    protocol.ControlChanged,
    protocol.TrialEnded,
    protocol.Evaluated,
    protocol.Problem,
    protocol.RunStarted,
    protocol.RunEnded,
)
"""Besides pauses. Not the ends of epochs: there can be thousands, and nobody looks for one of them."""


class RecordedSource:
    """Plays the recording at `path`. Raises RecordingError when it is none.

    `start_step` None: from the beginning; beyond the last step: all of it at once.
    `clock` counts seconds; tests bring their own.
    """

    live = False
    client = ""

    def __init__(
        self,
        path: Path,
        speed: float = 1.0,
        start_step: int | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not 0 < speed < math.inf:
            raise ValueError(f"speed={speed} is not possible; it is a positive number such as 10")
        self.path = path
        self._clock = clock
        self._speed = speed
        self._playing = True
        self._reader = JournalReader(path)
        self._order = Order()
        self._events: list[AnyEvent] = []
        self._rows: list[Float64 | Int64 | None] = []
        """Beside each event: the times of its steps, the steps of its samples, or None."""
        self._asides: dict[type[AnyEvent], Asides] = {Resources: Asides(), Overhead: Asides()}
        """What stands in no order to the other events: delivered when its moment has come."""
        self._jumps: set[int] = set()
        self._last_step = 0
        self._complete = False
        self._reset = False
        self._time = 0.0
        """The moment of the recording that playing has reached."""
        self._target: int | None = None
        self._followed_at = self._ticked_at = self._grew_at = clock()
        self._read_on()
        self._rewind()
        if start_step is not None:
            self._target = min(start_step, self._last_step)

    # ── What the controls show and change ─────────────────────────────────────────────────────────

    @property
    def run(self) -> protocol.RunDescription:
        """What is played."""
        return self._reader.run

    @property
    def connection(self) -> str:
        """What is wrong with the file; empty when nothing is."""
        missing = self.missing
        if not missing:
            return ""
        return missing[0] if len(missing) == 1 else f"{missing[0]}; and {len(missing) - 1} more damages"

    @property
    def missing(self) -> list[str]:
        """What of the recording could not be read, one sentence each."""
        undecodable = self._order.undecodable
        return self._reader.missing + ([f"{undecodable} frames hold no valid event"] if undecodable else [])

    @property
    def playing(self) -> bool:
        """Whether the position moves by itself."""
        return self._playing

    @property
    def speed(self) -> float:
        """Seconds of the training per second of watching."""
        return self._speed

    @speed.setter
    def speed(self, speed: float) -> None:
        if not 0 < speed < math.inf:
            raise ValueError(f"speed={speed} is not possible; it is a positive number such as 10")
        self._advance_clock()
        self._speed = speed

    @property
    def position(self) -> int:
        """How many steps had been completed at the moment shown."""
        return self._position if self._target is None else self._target

    @property
    def last_step(self) -> int:
        """How many steps the recording holds so far."""
        return self._last_step

    @property
    def event_steps(self) -> list[int]:
        """The positions worth a visit: both ends, replies, trials, pauses, other optimizers, problems; sorted."""
        return sorted(self._jumps)

    @property
    def at_end(self) -> bool:
        """Whether everything there is has been delivered."""
        everything = self._next == len(self._events) and all(a.over for a in self._asides.values())
        return everything and self._target is None

    def play(self) -> None:
        """Lets the position move; from the start when it was at the end."""
        if self.at_end and not self._still_written():
            self.seek(0)
        self._ticked_at = self._clock()
        self._playing = True

    def pause(self) -> None:
        """Holds the position."""
        self._playing = False

    def seek(self, step: int) -> None:
        """Goes to where `step` steps had been completed, within what there is."""
        step = max(0, min(step, self._last_step))
        if step < self._position:
            self._rewind()
            self._reset = True
        self._target = step

    def step_by(self, n: int) -> None:
        """Goes `n` steps on, or back when negative."""
        self.seek(self.position + n)

    # ── Source ────────────────────────────────────────────────────────────────────────────────────

    def poll(self) -> Update:
        """What happened up to the position since the last call. Never waits."""
        self._follow()
        events: list[AnyEvent] = []
        if self._target is not None:
            target, self._target = self._target, None
            self._deliver(events, math.inf, target if target < self._last_step else math.inf)
            self._time = max(self._time, self._shown)
            self._deliver_asides(events)
            self._ticked_at = self._clock()
        elif self._playing:
            self._advance_clock()
            self._deliver(events, self._time, math.inf)
            self._deliver_asides(events)
            self._skip_idle()
            if self.at_end and not self._still_written():
                self._playing = False
        reset, self._reset = self._reset, False
        return Update(reset, events)

    def send(self, text: str) -> str:
        """Raises CommandError: what has been trained cannot be steered."""
        commands.parse(text, self.run.actions)
        raise commands.CommandError("a recording cannot be steered; it only replays what was done")

    def close(self) -> None:
        """Lets go of the file. May be called twice."""
        self._reader.close()
        self._complete = True

    # ── Reading ───────────────────────────────────────────────────────────────────────────────────

    def _follow(self) -> None:
        now = self._clock()
        if not self._complete and now - self._followed_at >= _FOLLOW_S:
            self._followed_at = now
            self._read_on()

    def _still_written(self) -> bool:
        if self._complete:
            return False
        if self.run.host == runs.host_name():
            return runs.process_lives(self.run.pid)
        return self._clock() - self._grew_at < _STILL_WRITTEN_S

    def _read_on(self) -> None:
        for frame in self._reader.frames(self._order.last_seq):
            self._grew_at = self._clock()
            event = self._order.take(frame)
            if isinstance(event, Resources | Overhead):
                self._asides[type(event)].add(event)
            elif event is not None and not (isinstance(event, Steps) and event.count == 0):
                self._add(event)
        self._complete = bool(self._events) and isinstance(self._events[-1], protocol.RunEnded)

    def _add(self, event: AnyEvent) -> None:
        if not self._events and not isinstance(event, protocol.RunStarted):
            # Its first frame is damaged; the description has been kept a second time.
            run = self._reader.run
            self._add(protocol.RunStarted(run=run, time=run.started_at))
        rows: Float64 | Int64 | None = None
        if isinstance(event, Steps):
            # Never decreasing, although the machine's clock may have been set back.
            rows = np.maximum.accumulate(protocol.step_times(event))
            self._last_step = max(self._last_step, event.first + event.count)
        elif isinstance(event, Samples):
            rows = protocol.sample_steps(event)
        elif isinstance(event, _EVENTS_TO_JUMP_TO) or _is_pause(event):
            self._jumps.add(event.step)
        self._events.append(event)
        self._rows.append(rows)

    # ── Delivering ────────────────────────────────────────────────────────────────────────────────

    def _rewind(self) -> None:
        self._next = 0
        """Everything before has been delivered."""
        self._delivered: dict[int, int] = {}
        """Rows delivered of the events from `_next` on."""
        for asides in self._asides.values():
            asides.rewind()
        self._position = 0
        self._time = self._events[0].time if self._events else 0.0
        self._shown = self._time
        """Time of what was delivered last."""

    def _deliver(self, events: list[AnyEvent], until: float, target: float) -> None:
        """Delivers what had happened by the time `until` and before step `target` was taken."""
        waiting: set[type[AnyEvent]] = set()
        for index in range(self._next, len(self._events)):
            event = self._events[index]
            if isinstance(event, Steps | Samples):
                # Folded steps and samples overlap in time; whatever else happened stands between them.
                if type(event) not in waiting and not self._deliver_rows(events, index, until, target):
                    waiting.add(type(event))
            elif waiting or event.time > until or event.step > target:
                return
            else:
                events.append(event)
                self._shown = event.time
            if not waiting:
                self._next = index + 1
                self._delivered.pop(index, None)

    def _deliver_rows(self, events: list[AnyEvent], index: int, until: float, target: float) -> bool:
        """Delivers the rows that are due of one event of steps or samples; whether it is through."""
        event, rows = self._events[index], self._rows[index]
        assert rows is not None  # noqa: S101  (only called for events that have rows)
        done = self._delivered.get(index, 0)
        part: AnyEvent | None = None
        if isinstance(event, Steps):
            due = int(np.searchsorted(rows, until, "right")) if until < rows[-1] else len(rows)
            due = int(min(due, max(0, target - event.first)))
            part = slice_steps(event, done, due)
            if part:
                self._position = max(self._position, event.first + due)
                self._shown = part.time
        elif isinstance(event, Samples):
            # With the step they belong to; by time where that step is not in the recording.
            reached = target if event.time <= until else min(self._position, target)
            due = int(np.searchsorted(rows, reached, "left"))
            part = slice_samples(event, done, due)
            if part and due < len(rows):
                part = msgspec.structs.replace(part, time=min(event.time, self._shown))
        if part:
            events.append(part)
            self._delivered[index] = done = due
        return done == len(rows)

    def _deliver_asides(self, events: list[AnyEvent]) -> None:
        """Delivers readings and overheads up to the moment shown; at the end of the recording the rest."""
        until = math.inf if self._next == len(self._events) else self._time
        for asides in self._asides.values():
            events += asides.due(until)

    def _advance_clock(self) -> None:
        now = self._clock()
        if self._playing:
            self._time += (now - self._ticked_at) * self._speed
        self._ticked_at = now

    def _skip_idle(self) -> None:
        """Moves the time on where nothing would happen for long."""
        if self._next < len(self._events):
            earliest = self._due_next() - LONGEST_WAIT_S * self._speed
            self._time = max(self._time, earliest)

    def _due_next(self) -> float:
        event, rows = self._events[self._next], self._rows[self._next]
        if isinstance(event, Steps) and rows is not None:
            return float(rows[self._delivered.get(self._next, 0)])
        return event.time


def _is_pause(event: AnyEvent) -> bool:
    return isinstance(event, protocol.StateChanged) and event.state == "paused"
