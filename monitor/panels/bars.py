"""The two lines that are there to be clicked: the names of the panels, and the keys."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

from monitor.charts import Row, Segment
from monitor.keys import KEYS, Key
from monitor.messages import ActionChosen, PanelChosen
from monitor.panels.panel import Panel
from monitor.panels.text import row_width
from monitor.session import Session
from monitor.view import View


class _Tab(NamedTuple):
    name: str
    title: str
    badge: str

    @property
    def width(self) -> int:
        return len(self.title) + 2 + (len(self.badge) + 1 if self.badge else 0)


class TabsBar(Panel):
    """Which panel is shown where there is room for one."""

    name_ = "tabs"

    def __init__(self, panels: Sequence[Panel]) -> None:
        super().__init__()
        self._panels = panels

    def stamp(self, session: Session, view: View) -> Hashable:
        """The selection and the counts."""
        return (view.selected, *(panel.badge(session, view) for panel in self._panels))

    def draw(self, session: Session, view: View, width: int, height: int) -> list[Row]:
        """All names, the selected one standing out."""
        row: Row = []
        for name, title, count in self._tabs(session, view, width):
            selected = name == view.selected
            row.append(Segment(f" {title} ", "state" if selected else "dim"))
            row.append(Segment(f"{count} " if count else "", "state warn" if selected else "warn"))
        return [row]

    def clicked(self, x: int, y: int) -> None:
        """Shows the panel whose name was clicked."""
        if self._shown is None:
            return
        cells = 0
        for tab in self._tabs(*self._shown, self.content_size.width):
            cells += tab.width
            if x < cells:
                self.post_message(PanelChosen(tab.name))
                return

    def _tabs(self, session: Session, view: View, width: int) -> list[_Tab]:
        """Short titles where the full ones do not fit; the first ones go where the selected one would be cut."""
        badges = [panel.badge(session, view) for panel in self._panels]
        full = [_Tab(p.name_, p.title, b) for p, b in zip(self._panels, badges, strict=True)]
        short = [_Tab(p.name_, p.short or p.title, b) for p, b in zip(self._panels, badges, strict=True)]
        tabs = full if sum(tab.width for tab in full) <= width else short
        selected = next((i for i, tab in enumerate(tabs) if tab.name == view.selected), 0)
        first = 0
        while first < selected and sum(tab.width for tab in tabs[first : selected + 1]) > width:
            first += 1
        return tabs[first:]


class HintsBar(Panel):
    """The keys that are worth knowing now, as many as there is room for."""

    name_ = "hints"

    def stamp(self, session: Session, view: View) -> Hashable:
        """Keys depend on the kind of source and on freezing."""
        return (view.link.live, view.mode)

    def draw(self, session: Session, view: View, width: int, height: int) -> list[Row]:
        """Key and word, again and again."""
        row: Row = []
        for key in shown_hints(view, width):
            row += [Segment(" ", ""), Segment(key.shown, "key"), Segment(f" {key.hint} ", "dim")]
        return [row]

    def clicked(self, x: int, y: int) -> None:
        """Does what the hint says."""
        if self._shown is None:
            return
        cells = 0
        for key in shown_hints(self._shown[1], self.content_size.width):
            cells += len(key.shown) + len(key.hint) + 3
            if x < cells:
                self.post_message(ActionChosen(key.action))
                return


def shown_hints(view: View, width: int) -> list[Key]:
    """The best hints that fit side by side, in the order of the table."""
    source = "live" if view.link.live else "recorded"
    fitting = [key for key in KEYS if key.rank and key.only in ("", source)]
    while sum(row_width([Segment(f" {key.shown} {key.hint} ", "")]) for key in fitting) > width:
        fitting.remove(max(fitting, key=lambda key: key.rank))
    return fitting
