"""What every source offers, and the order in which each event is delivered exactly once."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import msgspec
import numpy as np

from client_callback.wire import protocol
from client_callback.wire.protocol import AnyEvent, Frame, Resources, Samples, Steps


class Update(NamedTuple):
    """What is new since the last poll."""

    reset: bool
    """Whether everything before is void: begin a new session and apply `events` to it."""
    events: list[AnyEvent]


class Source(Protocol):
    """One run's events, however they come."""

    live: bool
    """Whether commands can be sent."""
    client: str
    """This monitor's own id, as `ControlChanged.client` names whoever steers. Empty: it never steers."""

    @property
    def connection(self) -> str:
        """What is wrong with the connection or the file; empty when nothing is."""

    def poll(self) -> Update:
        """What came since the last call. Never blocks."""

    def send(self, text: str) -> str:
        """Sends a command and returns its id; the Reply comes as an event. Raises CommandError."""

    def close(self) -> None:
        """Ends whatever runs behind it. May be called twice."""


class Order:
    """Turns frames into events, each step once.

    A recording folds frames as it grows, so one that is asked for later may hold steps that came before.
    """

    def __init__(self) -> None:
        self.last_seq = 0
        """All events up to this number have been delivered."""
        self.undecodable = 0
        """Frames that held no valid event."""
        self._next_step = 0
        self._last_sample = -1
        self._next_reading = 0

    def take(self, frame: Frame) -> AnyEvent | None:
        """The event, without what was delivered before; None when nothing of it is new."""
        if frame.seq <= self.last_seq:
            return None
        overlaps = frame.first_seq <= self.last_seq
        self.last_seq = frame.seq
        try:
            event: AnyEvent | None = protocol.decode_event(frame.payload)
        except protocol.ProtocolError:
            self.undecodable += 1
            return None
        if isinstance(event, Steps):
            if overlaps:
                event = slice_steps(event, max(0, self._next_step - event.first), event.count)
            if event:
                self._next_step = event.first + event.count
        elif isinstance(event, Samples):
            steps = protocol.sample_steps(event)
            if overlaps:
                event = slice_samples(
                    event, int(np.searchsorted(steps, self._last_sample, "right")), len(steps)
                )
            self._last_sample = max(self._last_sample, int(steps[-1]))
        elif isinstance(event, Resources):
            if overlaps:
                event = slice_resources(event, max(0, self._next_reading - event.first), event.count)
            if event:
                self._next_reading = event.first + event.count
        return event


def slice_steps(event: Steps, start: int, stop: int) -> Steps | None:
    """Rows `start` to `stop` (exclusive) of the event; None when there are none."""
    if start >= stop:
        return None
    if start == 0 and stop == event.count:
        return event
    whole = stop == event.count
    return msgspec.structs.replace(
        event,
        first=event.first + start,
        count=stop - start,
        step=event.first + stop,
        time=event.time if whole else float(protocol.step_times(event)[stop - 1]),
        times=event.times[8 * start : 8 * stop],
        columns={name: values[4 * start : 4 * stop] for name, values in event.columns.items()},
    )


def slice_samples(event: Samples, start: int, stop: int) -> Samples | None:
    """Rows `start` to `stop` (exclusive) of the event; None when there are none."""
    rows = len(event.steps) // 8
    if start >= stop:
        return None
    if start == 0 and stop == rows:
        return event
    width = {name: len(values) // rows for name, values in event.columns.items()}
    return msgspec.structs.replace(
        event,
        step=int(protocol.sample_steps(event)[stop - 1]) + 1,
        steps=event.steps[8 * start : 8 * stop],
        columns={n: v[width[n] * start : width[n] * stop] for n, v in event.columns.items()},
    )


def slice_resources(event: Resources, start: int, stop: int) -> Resources | None:
    """Readings `start` to `stop` (exclusive) of the event; None when there are none."""
    if start >= stop:
        return None
    if start == 0 and stop == event.count:
        return event
    return msgspec.structs.replace(
        event,
        first=event.first + start,
        count=stop - start,
        step=int(protocol.resource_steps(event)[stop - 1]),
        time=float(protocol.resource_times(event)[stop - 1]),
        times=event.times[8 * start : 8 * stop],
        steps=event.steps[8 * start : 8 * stop],
        columns={name: values[4 * start : 4 * stop] for name, values in event.columns.items()},
    )
