"""What the command line answers when something asked for cannot be done."""

from __future__ import annotations


class Mistake(Exception):  # noqa: N818  (not the program's error)
    """Ends the program: one line for the person, and the exit code."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code
