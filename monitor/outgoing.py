"""A command on its way to a training: checked, given an id and a name.

Both ways of sending build it here: the terminal's live source, and `unstuck send`. Nothing is sent here.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence

import msgspec

from client_callback.wire import commands, runs
from client_callback.wire.protocol import Command


def new_id() -> str:
    """16 hexadecimal digits."""
    return uuid.uuid4().hex[:16]


def sender(by: str) -> str:
    """This user on this machine, and by what means: `ada@box terminal`."""
    return f"{runs.user_name()}@{runs.host_name()} {by}"


def new_command(text: str, who: str, *, client: str = "", actions: Sequence[str] = ()) -> Command:
    """The command `text` with an id of its own.

    Args:
        text: as typed.
        who: sends it, as `sender` says.
        client: of the monitor that sends it; empty when none stays.
        actions: commands that the training's script defined itself.

    Raises:
        CommandError: it cannot be understood, or is too long.
    """
    commands.parse(text, actions)
    try:
        return msgspec.convert(
            {"kind": "command", "id": new_id(), "text": text, "who": who, "client": client}, Command
        )
    except msgspec.ValidationError as error:
        raise commands.CommandError(f"the command is too long: {error}") from None


def takes_long(command: Command) -> bool:
    """Whether the training may be busy for long with carrying it out, and answers only then."""
    return command.text.split(maxsplit=1)[0].lower() in _LONG


_LONG = frozenset({"trial", "evaluate", "checkpoint"})
