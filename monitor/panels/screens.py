"""The two screens that cover the dashboard for a moment: all keys, and a question before training is stopped."""

from __future__ import annotations

from typing import ClassVar

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.scrollbar import ScrollBarRender
from textual.widgets import Static

from client_callback.wire.commands import COMMANDS
from monitor.keys import KEYS
from monitor.panels.panel import plain
from monitor.panels.text import wrapped

_KEY_WIDTH = 11
_TEXT_WIDTH = 54
_TWO_COLUMNS = 140
"""Cells in which both columns have room for keys and texts."""


class PlainScrollBar(ScrollBarRender):
    """Of whole cells only: the parts of cells are no ASCII."""

    VERTICAL_BARS: ClassVar[list[str]] = [" "] * 8


class HelpScreen(ModalScreen[None]):
    """Every key, by group, and every command; what concerns the training first."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,question_mark,q,f1,enter,space", "dismiss", "Close", show=False),
        Binding("down,j,pagedown", "down", show=False),
        Binding("up,k,pageup", "up", show=False),
    ]

    def __init__(self, *, live: bool, ascii_only: bool) -> None:
        super().__init__()
        self._live = live
        self._ascii_only = ascii_only

    def compose(self) -> ComposeResult:
        """Two columns, or one where there is no room for two; scrolls where it is too long."""
        with VerticalScroll(id="help") as scroll:
            scroll.border_title = "keys and commands"
            scroll.border_subtitle = "esc closes"
            if self._ascii_only:
                scroll.vertical_scrollbar.renderer = PlainScrollBar  # type: ignore[misc]
            first = ("Training", "Commands", "Program") if self._live else ("Replay", "Program")
            with Vertical(id="help-columns"):
                for groups in (first, ("Curves", "Panels")):
                    with Vertical(classes="help-column"):
                        for group in groups:
                            yield Static(self._group(group), classes="help-group")

    def on_resize(self, event: events.Resize) -> None:
        """Columns side by side where there is room."""
        self.set_class(event.size.width >= _TWO_COLUMNS, "-wide")

    def action_down(self) -> None:
        """Scrolls."""
        self.query_one("#help", VerticalScroll).scroll_down(animate=False)

    def action_up(self) -> None:
        """Scrolls."""
        self.query_one("#help", VerticalScroll).scroll_up(animate=False)

    def _group(self, group: str) -> Content:
        parts: list[Content | tuple[str, str]] = [(group, "bold $accent")]
        indent = " " * (_KEY_WIDTH + 2)
        room = min(_TEXT_WIDTH, self.app.size.width - len(indent) - 4)
        for shown, text in help_lines(group, live=self._live):
            key = plain(shown, self._ascii_only)
            lines = wrapped(plain(text, self._ascii_only), room)
            parts += [("\n", ""), (f"{key:>{_KEY_WIDTH}}  ", "bold"), (f"\n{indent}".join(lines), "")]
        return Content.assemble(*parts)


class ConfirmScreen(ModalScreen[bool]):
    """A question with two answers; everything but `y` is no."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "answer(True)", "Yes", show=False),
        Binding("n,escape,enter,q", "answer(False)", "No", show=False),
    ]

    def __init__(self, question: str) -> None:
        super().__init__()
        self._question = question

    def compose(self) -> ComposeResult:
        """The question and the two keys."""
        with Vertical(id="confirm"):
            yield Static(Content(self._question))
            yield Static(
                Content.assemble(
                    ("y", "bold $error"),
                    ("  yes, stop it       ", ""),
                    ("n", "bold $success"),
                    ("  no, go on training", ""),
                ),
                id="confirm-keys",
            )

    def action_answer(self, answer: bool) -> None:
        """Hands the answer back."""
        self.dismiss(answer)


def help_lines(group: str, *, live: bool) -> list[tuple[str, str]]:
    """What the help says: (key, what it does) of one group; of `Commands`, (usage, what it does)."""
    if group == "Commands":
        return [(spec.name, f"{spec.summary}: {spec.usage}") for spec in COMMANDS.values()] if live else []
    source = "live" if live else "recorded"
    lines: dict[str, tuple[str, str]] = {}
    for key in KEYS:
        if key.group != group or key.only not in ("", source):
            continue
        if key.action.startswith("remedy("):
            lines["remedy"] = ("1 … 9", "Put that remedy of the findings on the command line")
        elif key.action in lines:
            lines[key.action] = (f"{lines[key.action][0]} or {key.shown}", key.text)
        else:
            lines[key.action] = (key.shown, key.text)
    return list(lines.values())
