"""Events of a recording that stand in no order to the others: readings of the machine, and measured overheads.

A recording folds a reading with later ones across whatever happened between them, so playing cannot wait for one
at its place in the file. `RecordedSource` keeps a queue of each kind and asks for what is due.
"""

from __future__ import annotations

import numpy as np

from client_callback.wire import protocol
from client_callback.wire.protocol import AnyEvent, Float64, Overhead, Resources
from monitor.sources.source import slice_resources

Aside = Resources | Overhead


class Asides:
    """Those of one kind, in the order of their times."""

    def __init__(self) -> None:
        self._events: list[Aside] = []
        self._times: list[Float64] = []
        self._next = self._rows = 0
        """All before have been delivered, and so many readings of that one."""

    @property
    def over(self) -> bool:
        """Whether all there are have been delivered."""
        return self._next == len(self._events)

    def add(self, event: Aside) -> None:
        """Queues one more."""
        times = protocol.resource_times(event) if isinstance(event, Resources) else np.array([event.time])
        if not len(times):
            return
        self._events.append(event)
        # Never decreasing, although the machine's clock may have been set back.
        self._times.append(np.maximum.accumulate(times))

    def rewind(self) -> None:
        """Delivers all of them again."""
        self._next = self._rows = 0

    def due(self, until: float) -> list[AnyEvent]:
        """What had happened by the time `until` and was not delivered before."""
        found: list[AnyEvent] = []
        while self._next < len(self._events):
            event, times = self._events[self._next], self._times[self._next]
            rows = int(np.searchsorted(times, until, "right"))
            part = slice_resources(event, self._rows, rows) if isinstance(event, Resources) else event
            if part is not None and rows > self._rows:
                found.append(part)
            self._rows = max(self._rows, rows)
            if self._rows < len(times):
                break
            self._next, self._rows = self._next + 1, 0
        return found
