"""The screen: which panels stand where, at which size.

`show` hands the session and the view to every panel that is displayed. What a key means is decided in
`monitor.app`; what a panel shows, in `monitor.panels`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Final

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.geometry import Size
from textual.screen import Screen

from monitor.keys import KEYS
from monitor.panels import PANELS
from monitor.panels.bars import HintsBar, TabsBar
from monitor.panels.command_line import CommandLine
from monitor.panels.notices import Notices
from monitor.panels.panel import Panel
from monitor.panels.status import StatusPanel
from monitor.session import Session
from monitor.view import View

ROOMY: Final = Size(100, 34)
"""From this size on all panels are shown at once."""

CHARTS: Final = tuple(panel.name_ for panel in PANELS if panel.zone == "charts")
OTHERS: Final = tuple(panel.name_ for panel in PANELS if panel.zone != "charts")


class Dashboard(Screen[None]):
    """Status, charts, the other panels, keys."""

    # Here and not on the app, so that they go before the screen's own Tab and do not reach into dialogs.
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(key.keys, f"app.{key.action}", key.text, show=False) for key in KEYS
    ]
    AUTO_FOCUS = ""

    def __init__(self) -> None:
        super().__init__(id="dashboard")
        self.panels: dict[str, Panel] = {panel.name_: panel() for panel in PANELS}
        self._status = StatusPanel()
        self._tabs = TabsBar([self.panels[name] for name in OTHERS])
        self._hints = HintsBar()
        self.notices = Notices()
        self.command_line = CommandLine()
        self._maximised: str | None = None
        self._arranged: tuple[object, ...] = ()
        self._shown: tuple[Session, View] | None = None

    def compose(self) -> ComposeResult:
        """One row of panels per zone."""
        yield self._status
        with Vertical(id="body"):
            for zone in dict.fromkeys(panel.zone for panel in PANELS):
                if zone == "middle":
                    yield self._tabs
                with Horizontal(id=zone, classes="zone"):
                    for panel in self.panels.values():
                        if panel.zone == zone:
                            yield panel
        yield self._hints
        yield self.command_line
        yield self.notices

    @property
    def compact(self) -> bool:
        """Whether there is room for one chart and one panel only."""
        return self.size.width < ROOMY.width or self.size.height < ROOMY.height

    @property
    def maximised(self) -> str | None:
        """The panel that has the screen for itself. `None`: none has."""
        return self._maximised

    def maximise(self, name: str | None) -> None:
        """Gives the screen to one panel, or to all again."""
        self._maximised = name

    def next_maximised(self, view: View) -> str | None:
        """What gets the screen next: the selected panel, or none; in a small terminal first the chart."""
        if not self.compact:
            return None if self._maximised else self.selected(view)
        if self._maximised is None:
            return view.chart
        return self.selected(view) if self._maximised in CHARTS else None

    def selectable(self) -> tuple[str, ...]:
        """What Tab goes through."""
        return OTHERS if self.compact else CHARTS + OTHERS

    def selected(self, view: View) -> str:
        """The panel that keys act on."""
        names = self.selectable()
        return view.selected if view.selected in names else names[0]

    def chart(self, view: View) -> str:
        """The chart that keys act on."""
        if self.compact:
            return view.chart
        selected = self.selected(view)
        return selected if selected in (*CHARTS, "learning-rate") else CHARTS[0]

    def show(self, session: Session, view: View) -> None:
        """Brings everything on the screen up to date."""
        self._shown = (session, view)
        view = replace(view, compact=self.compact, selected=self.selected(view))
        self._arrange(view)
        for panel in (self._status, self._tabs, *self.panels.values(), self._hints):
            panel.show(session, view)

    def on_resize(self) -> None:
        """Arranges for the new size."""
        if self._shown is not None:
            self.show(*self._shown)

    def _arrange(self, view: View) -> None:
        arranged = (view.compact, view.selected, view.chart, self._maximised, view.ascii_only)
        if arranged == self._arranged:
            return
        self._arranged = arranged
        self.set_class(view.compact, "-compact")
        self.set_class(view.ascii_only, "-ascii")
        self._tabs.display = view.compact and self._maximised is None
        for name, panel in self.panels.items():
            panel.display = self._displayed(name, view)
            panel.set_class(name == view.selected and not view.compact, "-selected")
        for zone in self.query(".zone"):
            zone.display = any(panel.display for panel in self.panels.values() if panel.zone == zone.id)

    def _displayed(self, name: str, view: View) -> bool:
        if self._maximised in CHARTS and view.compact:
            return name == view.chart
        if self._maximised is not None:
            return name == self._maximised
        if not view.compact:
            return True
        return name == (view.chart if name in CHARTS else view.selected)
