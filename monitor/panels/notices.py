"""Answers and warnings, shown for a few seconds below the status line.

Not Textual's own toasts: those pile up over the command line. What is worth saying is decided by the app.
"""

from __future__ import annotations

import time
from typing import Final, Literal

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.widgets import Static

Severity = Literal["information", "warning", "error"]

SHOWN_S: Final = 6.0
MOST: Final = 2
"""At once; more would cover the curves."""


class Notices(Vertical):
    """The newest ones, the last at the bottom; a click takes them away."""

    def __init__(self) -> None:
        super().__init__(id="notices")
        self._kept: list[tuple[float, str, Severity]] = []

    def compose(self) -> ComposeResult:
        """As many lines as are shown at once."""
        for _ in range(MOST):
            yield Static(classes="notice")

    def on_mount(self) -> None:
        """Begins with nothing to say."""
        self._show_kept()

    def say(self, text: str, severity: Severity, *, again: bool = True) -> None:
        """Shows literal text, never markup; unless `again`, not what can be read there already."""
        self._forget_old()
        if again or all(text != shown for _, shown, _ in self._kept):
            self._kept = [*self._kept, (time.monotonic() + SHOWN_S, text, severity)][-MOST:]
            self.set_timer(SHOWN_S, self._show_kept)
        self._show_kept()

    def on_click(self) -> None:
        """Takes them away."""
        self._kept.clear()
        self._show_kept()

    def _forget_old(self) -> None:
        now = time.monotonic()
        self._kept = [notice for notice in self._kept if notice[0] > now]

    def _show_kept(self) -> None:
        self._forget_old()
        self.display = bool(self._kept)
        for i, line in enumerate(self.query(Static)):
            line.display = i < len(self._kept)
            if line.display:
                _, text, severity = self._kept[i]
                line.update(Content(text))
                line.set_classes(f"notice -{severity}")
