"""The controls of a recording: play, speed, steps, events, a step that was typed.

The app calls these for its keys and shows what they refuse. The source does the playing.
"""

from __future__ import annotations

import re

from client_callback.wire.protocol import ControlChanged
from monitor.sources import RecordedSource, Source
from monitor.view import SPEEDS, Link


class RefusedError(ValueError):
    """What was asked for is not possible. The text says why."""


class Playback:
    """The controls, over one recording."""

    def __init__(self, source: RecordedSource) -> None:
        self._source = source

    def toggle(self) -> None:
        """Plays, or holds."""
        if self._source.playing:
            self._source.pause()
        else:
            self._source.play()

    def step_by(self, by: int) -> None:
        """Goes so many steps on or back, and holds there."""
        self._source.pause()
        self._source.step_by(by)

    def jump(self, direction: int) -> None:
        """Goes to the next (1) or previous (-1) event, and holds there. Raises RefusedError."""
        here = self._source.position
        steps = [step for step in self._source.event_steps if (step - here) * direction > 0]
        if not steps:
            raise RefusedError(f"No event lies further {'on' if direction > 0 else 'back'}.")
        self._source.pause()
        self._source.seek(min(steps) if direction > 0 else max(steps))

    def change_speed(self, by: int) -> None:
        """Plays at the next (1) or previous (-1) of `SPEEDS`; at either end it stays."""
        others = [speed for speed in SPEEDS if (speed - self._source.speed) * by > 0]
        if others:
            self._source.speed = min(others) if by > 0 else max(others)

    def seek_to(self, text: str) -> None:
        """Goes to a step as typed: `1200`, or `+50` and `-50` from here. Raises RefusedError."""
        match = re.fullmatch(r"([+-]?)(\d[\d,_]*)", text.replace(" ", ""))
        if match is None:
            raise RefusedError(f"{text!r} is no step; write a number such as 1200, or +50 and -50 from here.")
        step = int(re.sub(r"\D", "", match[2]))
        here = self._source.position
        step = {"": step, "+": here + step, "-": here - step}[match[1]]
        self._source.seek(max(0, min(step, self._source.last_step)))


def link_of(source: Source, note: str, *, ended: bool, control: ControlChanged | None) -> Link:
    """What the status line says of a source; a live one that has ended has nothing to complain about."""
    if isinstance(source, RecordedSource):
        return Link(
            live=False,
            connection=source.connection,
            note=note,
            playing=source.playing,
            speed=source.speed,
            position=source.position,
            last_step=source.last_step,
        )
    elsewhere = not ended and control is not None and control.client != source.client
    return Link(
        live=source.live,
        connection="" if ended else source.connection,
        steered_by=control.who if control and elsewhere else "",
        note=note,
    )
