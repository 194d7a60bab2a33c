"""The commands of a recording, sent ahead to a live run: what `unstuck replay-commands` does.

Each is sent with the step before which it is to be carried out, so that the run repeats it at the very same step by
itself, whether or not anybody is connected by then. What the commands are, `client_callback.wire.replay` knows.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from client_callback.wire.protocol import Reply
from client_callback.wire.replay import read_replay
from client_callback.wire.runs import RunFile
from monitor import sending
from monitor.outgoing import sender


class Repetition(NamedTuple):
    """What became of one command."""

    step: int
    """At which it was carried out in the recording."""
    command: str
    """As sent; as recorded where it was not."""
    reply: Reply | None
    """The run's answer. `None`: it was not sent."""
    reason: str
    """Why it was not sent."""

    @property
    def succeeded(self) -> bool:
        """Whether the run has carried it out, or will."""
        return self.reply is not None and self.reply.status not in ("refused", "failed")


class Repetitions(NamedTuple):
    """A recording's commands, for one run."""

    left_out: tuple[str, ...]
    """What cannot be repeated, each with the reason."""
    answers: Iterator[Repetition]
    """Sends the next and waits for its answer."""


def repeat(recording: Path, run: RunFile, *, wait_s: float = 10.0, take_control: bool = False) -> Repetitions:
    """Sends the recording's commands one after the other.

    Raises:
        RecordingError: `recording` is none.
        NoAnswer: while going through `answers`: the run did not answer; it is not asked further.
    """
    replay = read_replay(recording)
    who = sender(f"replay of {replay.name}")

    def answers() -> Iterator[Repetition]:
        take = take_control
        for command in replay.commands:
            if command.ahead is None:
                if command.why:
                    yield Repetition(command.step, command.text or "", None, command.why)
                continue
            try:
                reply = sending.send_to(run, command.ahead, wait_s=wait_s, who=who, take_control=take)
            except sending.CommandError as error:
                yield Repetition(command.step, command.ahead, None, str(error))
                continue
            take = False
            yield Repetition(command.step, command.ahead, reply, "")

    return Repetitions(replay.left_out, answers())
