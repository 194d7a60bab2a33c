"""The commands of a recording, given to this training at the steps at which they were given to that one.

A `Run` asks between two batches; what the recording's commands are, `wire.replay` knows.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from client_callback.wire import runs
from client_callback.wire.protocol import Command
from client_callback.wire.recording import RecordingError
from client_callback.wire.replay import Replay, read_replay

NEVER = sys.maxsize


def checked_replay(replay: object, *, control: bool) -> Replay | None:
    """What the argument `replay` stands for: a recording's path, or what has been read from one.

    Raises:
        ValueError: it is no recording, or the run would refuse what it holds.
    """
    if replay is None or isinstance(replay, Replay):
        return replay
    if not isinstance(replay, str | os.PathLike):
        raise ValueError(f"replay: received {replay!r}; possible are a recording's path and None")
    if not control:
        raise ValueError("replay: a run with control=False refuses all commands; possible is control=True")
    try:
        return read_replay(Path(replay).expanduser())
    except RecordingError as error:
        raise ValueError(f"replay: {error}") from error


class Replayed:
    """Hands out each command when its step has come."""

    def __init__(self, replay: Replay | None) -> None:
        self.left_out = replay.left_out if replay else ()
        """What cannot be repeated, each with the reason."""
        who = f"{runs.user_name()}@{runs.host_name()} replay of {replay.name}" if replay else ""
        self._waiting = [
            (step, Command(id=f"replay-{number}", text=text, who=who[:1_000]))
            for number, (step, text, *_) in enumerate(replay.commands if replay else (), 1)
            if text is not None
        ]
        self.next_step = NEVER
        """How many steps must have been completed for the next one."""
        self._look()

    def due(self, completed: int) -> list[Command]:
        """Those whose step has come; each once."""
        found = [command for step, command in self._waiting if step <= completed]
        del self._waiting[: len(found)]
        self._look()
        return found

    def _look(self) -> None:
        self.next_step = self._waiting[0][0] if self._waiting else NEVER
