"""The session of a recording as it stood at any step: `session_at`, for whoever looks once and does not play.

`unstuck diagnose`, benchmarks and tests call it. It stands above `monitor.sources` and not in it, since sources
know of events only, never of the session that these make. Nothing here draws or decides.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from client_callback.wire import protocol
from client_callback.wire.protocol import AnyEvent, Resources, Samples, Steps
from monitor.session import Session
from monitor.sources.recorded import RecordedSource
from monitor.sources.source import slice_resources, slice_samples, slice_steps


class Recorded(NamedTuple):
    """All that a recording holds."""

    events: list[AnyEvent]
    missing: list[str]
    """What of it could not be read, one sentence each."""


def read(path: Path) -> Recorded:
    """Reads a recording, which may still be written. Raises RecordingError when it is none."""
    with contextlib.closing(RecordedSource(path, start_step=sys.maxsize)) as source:
        return Recorded(source.poll().events, source.missing)


def session_at(path: Path, step: int | None = None) -> Session:
    """Everything a recording holds up to and including where `step` steps had been completed; None: all of it.

    Beyond its last step that is all of it too. Raises RecordingError when it is none.
    """
    return session_of(read(path).events, step)


def session_of(events: Iterable[AnyEvent], step: int | None = None) -> Session:
    """The session that the events make, as far as they happened by the time `step` steps had been completed."""
    session = Session()
    for event in events:
        by_then = event if step is None else _until(event, step)
        if by_then is not None:
            session.apply(by_then)
    return session


def _until(event: AnyEvent, step: int) -> AnyEvent | None:
    """The part of the event that had happened by then. `None`: none of it."""
    if isinstance(event, Steps):
        return slice_steps(event, 0, min(step - event.first, event.count))
    if isinstance(event, Samples):
        return slice_samples(event, 0, int(np.searchsorted(protocol.sample_steps(event), step, "left")))
    if isinstance(event, Resources):
        return slice_resources(event, 0, int(np.searchsorted(protocol.resource_steps(event), step, "right")))
    return event if event.step <= step else None
