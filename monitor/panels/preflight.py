"""The card before a risky command: what it does, keeps and resets, as the training itself foretells it.

The app sends a risky command as a dry run first and opens this with the plan that comes back; a key sends the
command, another leaves it. What a plan says is decided in the training; here it is laid out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Final

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Static

from client_callback.wire import commands as c
from client_callback.wire.protocol import PlanLine
from monitor.panels.panel import plain
from monitor.panels.screens import PlainScrollBar
from monitor.panels.text import cut, spelled, wrapped

RISKY: Final = (
    *(c.SwitchOptimizer, c.SetHyperparameters, c.Accumulate, c.SetSchedule),
    *(c.Freeze, c.Unfreeze, c.Reinitialise, c.SetClassWeight, c.SetLossWeight, c.Rollback),
)
"""What changes more than one number, or cannot be seen through at once. A trial joins them where it adopts, and all
that goes back to an earlier state first."""

TOPICS: Final = ("does", "warning", "rate", "resets", "keeps", "recompiles", "cost")
"""In the order in which a card tells them."""
_LOOKS: Final = {"does": "bold", "resets": "$warning", "warning": "bold $warning"}
_MARGIN: Final = 12
_WIDEST: Final = 76
_FRAME: Final = 6
"""Cells that border and padding take at the sides."""
_AROUND: Final = 5
"""Lines that border, padding and keys take."""


def needs_preflight(order: c.Order) -> bool:
    """Whether to ask first what a command would do; a dry run is nothing else."""
    adopts = isinstance(order.instruction, c.Trial) and order.instruction.adopt
    return order.dry_run or bool(order.origin) or adopts or isinstance(order.instruction, RISKY)


class PreflightScreen(ModalScreen[bool]):
    """The plan of one command, by topic; `True` sends it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y,enter", "answer(True)", "Send", show=False),
        Binding("n,escape,q", "answer(False)", "Leave", show=False),
        Binding("down,j,pagedown,space", "scroll(1)", show=False),
        Binding("up,k,pageup", "scroll(-1)", show=False),
    ]

    def __init__(self, command: str, plan: Sequence[PlanLine], *, ascii_only: bool) -> None:
        super().__init__()
        self._command = command
        self._plan = plan
        self._ascii_only = ascii_only

    def compose(self) -> ComposeResult:
        """The command as title, its plan, and the two keys as buttons."""
        with Vertical(id="preflight") as card:
            card.border_title = Content(self._plain(cut(self._command, _WIDEST - 8)))
            with VerticalScroll(id="preflight-plan", can_focus=False) as scroll:
                if self._ascii_only:
                    scroll.vertical_scrollbar.renderer = PlainScrollBar  # type: ignore[misc]
                yield Static(id="preflight-text")
            with Horizontal(id="preflight-keys"):
                yield _Button("enter", "send it", "-send", answer=True)
                yield _Button("esc", "leave it", "-leave", answer=False)

    def on_resize(self, event: events.Resize) -> None:
        """Breaks the lines anew, and leaves room for the keys below them."""
        self.query_one("#preflight-plan").styles.max_height = max(1, event.size.height - _AROUND)
        width = min(event.size.width, _WIDEST) - _FRAME - _MARGIN - 1  # and the scroll bar
        self.query_one("#preflight-text", Static).update(self._laid_out(max(10, width)))
        self.call_after_refresh(self._say_if_there_is_more)

    def action_answer(self, answer: bool) -> None:
        """Hands the answer back."""
        self.dismiss(answer)

    def action_scroll(self, pages: int) -> None:
        """Scrolls where the plan is longer than the screen."""
        self.query_one("#preflight-plan", VerticalScroll).scroll_relative(y=3 * pages, animate=False)

    def _say_if_there_is_more(self) -> None:
        longer = self.query_one("#preflight-plan").max_scroll_y > 0
        self.query_one("#preflight").border_subtitle = Content("page down: more") if longer else None

    def _laid_out(self, width: int) -> Content:
        parts: list[tuple[str, str]] = []
        if not self._plan:
            parts.append(("The training foretells nothing worth knowing.", "$text-muted"))
        for topic in TOPICS:
            texts = [line.text for line in self._plan if line.topic == topic]
            for number, text in enumerate(texts):
                label = topic if number == 0 else ""
                sign = "· " if len(texts) > 1 else ""
                lines = wrapped(sign + spelled(text, ascii_only=self._ascii_only), width, " " * len(sign))
                parts.append(("\n" if parts else "", ""))
                parts.append((f"{label:<{_MARGIN}}", "bold $warning" if topic == "warning" else "$primary"))
                parts.append((self._plain(f"\n{' ' * _MARGIN}".join(lines)), _LOOKS.get(topic, "")))
        return Content.assemble(*parts)

    def _plain(self, text: str) -> str:
        return "\n".join(plain(line, self._ascii_only) for line in text.split("\n"))


class _Button(Static):
    """A key, and what it does; a click does it too."""

    def __init__(self, key: str, text: str, look: str, *, answer: bool) -> None:
        super().__init__(Content.assemble((f" {key} ", "bold"), (f" {text} ", "")), classes=f"button {look}")
        self._answer = answer

    def on_click(self) -> None:
        """Answers."""
        screen = self.screen
        if isinstance(screen, PreflightScreen):
            screen.action_answer(self._answer)
