"""The commands that were sent from here: which are not answered yet, and which wait for a plan.

The app notes here what it sends and hands in every answer. Nothing is sent or drawn here.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from client_callback.wire.protocol import PlanLine, Reply


class Card(NamedTuple):
    """A command, and what the training says that it would do."""

    command: str
    plan: tuple[PlanLine, ...]


class UnderWay:
    """Commands by the id that they were sent with."""

    def __init__(self) -> None:
        self._sent: set[str] = set()
        self._pending: dict[str, str] = {}
        self._checking: dict[str, str] = {}
        self._cards: deque[Card] = deque()

    def add(self, command_id: str, text: str, *, check: bool) -> None:
        """Notes what was sent; with `check`, `text` is the command of which the sent one is the dry run."""
        self._sent.add(command_id)
        (self._checking if check else self._pending)[command_id] = text

    def take(self, reply: Reply) -> bool:
        """Notes an answer; whether it is to a command from here. A plan becomes a card."""
        self._pending.pop(reply.id, None)
        checked = self._checking.pop(reply.id, None)
        if checked is not None and reply.status == "planned":
            self._cards.append(Card(checked, reply.plan))
        return reply.id in self._sent

    def next_card(self) -> Card | None:
        """The next one to show, once. `None`: there is none."""
        return self._cards.popleft() if self._cards else None

    def shown(self) -> dict[str, tuple[str, ...]]:
        """What a view shows of them, by its fields."""
        return {"pending": tuple(self._pending.values()), "checking": tuple(self._checking.values())}
