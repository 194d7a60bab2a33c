"""The newest frames, kept in memory while there is no journal to keep them.

`client_callback.link` takes it when a run is not recorded, or no longer. The oldest steps go first; what
tells the run's story (its start, epochs, replies) stays, up to many thousands of events.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence
from typing import Protocol

from client_callback.wire import protocol
from client_callback.wire.protocol import Columnar, Event, Frame

TAIL_BYTES = 64 << 20
_MAX_OTHERS = 20_000


class Earlier(Protocol):
    """Frames from before the tail began."""

    def frames(self, after: int, limit_bytes: int) -> list[Frame]:
        """As `Tail.frames`."""

    def close(self) -> None:
        """Lets go of them."""


class Tail:
    """Frames after `last_seq`, at most about `TAIL_BYTES` of steps, statistics and resources."""

    def __init__(self, last_seq: int, earlier: Earlier | None = None) -> None:
        self.last_seq = last_seq
        self._begins_after = last_seq
        self._earlier = earlier
        self._steps: deque[Frame] = deque()
        self._steps_bytes = 0
        self._others: deque[Frame] = deque()

    def append(self, events: Sequence[Event]) -> list[Frame]:
        """Keeps the events; the frames they became, numbered on from `last_seq`."""
        frames = []
        for event in events:
            self.last_seq += 1
            frame = Frame(seq=self.last_seq, first_seq=self.last_seq, payload=protocol.encode(event))
            frames.append(frame)
            if isinstance(event, Columnar):
                self._steps.append(frame)
                self._steps_bytes += len(frame.payload)
            else:
                self._others.append(frame)
        while self._steps_bytes > TAIL_BYTES:
            self._steps_bytes -= len(self._steps.popleft().payload)
        while len(self._others) > _MAX_OTHERS:
            del self._others[1]  # the first is RunStarted
        return frames

    def frames(self, after: int, limit_bytes: int) -> list[Frame]:
        """The frames after `after`, in order, as far as `limit_bytes` go; at least one if there is any."""
        if self._earlier and after < self._begins_after:
            earlier = self._earlier.frames(after, limit_bytes)
            if earlier:
                return earlier
        found: list[Frame] = []
        size = 0
        for frame in heapq.merge(self._steps, self._others, key=lambda frame: frame.seq):
            if frame.seq <= after:
                continue
            size += len(frame.payload)
            if found and size > limit_bytes:
                break
            found.append(frame)
        return found

    def close(self) -> None:
        """Lets go of what came before."""
        if self._earlier:
            self._earlier.close()
