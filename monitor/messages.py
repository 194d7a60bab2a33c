"""What panels tell the app: what a hand on the mouse or the keyboard asked for.

Posted by panels and the command line, handled in `monitor.app`. Nothing here acts.
"""

from __future__ import annotations

from dataclasses import dataclass

from textual.message import Message


@dataclass
class Zoomed(Message):
    """Show `factor` times as many steps, `anchor` staying where it is."""

    factor: float
    anchor: int


@dataclass
class Panned(Message):
    """Move the view by so many steps."""

    by: int


@dataclass
class CursorMoved(Message):
    """Read out the values at a step. `None`: at the newest."""

    step: int | None

    def can_replace(self, message: Message) -> bool:
        """Only the newest position counts."""
        return isinstance(message, CursorMoved)


@dataclass
class PanelChosen(Message):
    """A panel was clicked."""

    name: str


@dataclass
class Scrolled(Message):
    """Move the lines of the panel, upwards when positive."""

    name: str
    by: int


@dataclass
class ActionChosen(Message):
    """A hint was clicked; `action` is as in the table of keys."""

    action: str


@dataclass
class LineEntered(Message):
    """The command line was finished with Enter."""

    purpose: str
    """`command` or `seek`."""
    text: str
