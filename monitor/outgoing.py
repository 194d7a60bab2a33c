"""A command on its way to a training: checked, given an id and a name.

Both ways of sending build it here: the terminal's live source, and `unstuck send`. Nothing is sent here.
"""

from __future__ import annotations

import uuid

import msgspec

from client_callback.wire import commands, runs
from client_callback.wire.protocol import Command


def new_command(text: str, who: str, *, by: str) -> Command:
    """The command `text` with an id of its own; `who` sends it, by default this user `by` that means.

    Raises:
        CommandError: it cannot be understood, or is too long.
    """
    commands.parse(text)
    try:
        return msgspec.convert(
            {
                "kind": "command",
                "id": uuid.uuid4().hex[:16],
                "text": text,
                "who": who or f"{runs.user_name()}@{runs.host_name()} {by}",
            },
            Command,
        )
    except msgspec.ValidationError as error:
        raise commands.CommandError(f"the command is too long: {error}") from None
