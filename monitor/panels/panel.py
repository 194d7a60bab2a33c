"""What all panels have in common: one door in, rows of styled text out, and little sent to the terminal.

`show` is called by the dashboard for every change; a panel draws only when its own `stamp` differs, and sends
only the cells that did change. A panel's `draw` is a function of session, view and size; it knows no
widget. The colours behind the style names stand in `app.tcss`.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Hashable, Iterable
from typing import ClassVar, Final

from rich.color import Color, blend_rgb
from rich.segment import Segment as RichSegment
from rich.style import Style
from textual import events
from textual.content import Content
from textual.geometry import Region
from textual.strip import Strip
from textual.widget import Widget

from monitor.canvas import joins
from monitor.charts import Row, Segment
from monitor.messages import PanelChosen, Scrolled
from monitor.panels.text import scrolled
from monitor.session import Session
from monitor.view import View

STYLES: Final = (
    *("text", "dim", "faint", "strong", "good", "warn", "bad", "accent", "key", "state"),
    *("loss", "val", "metric", "other", "rate", "band", "over", "cursor"),
)
"""Names that rows use for their styles; each is the class `panel--NAME` in `app.tcss`."""

_PLAIN_SIGNS: Final = str.maketrans(
    {
        **dict.fromkeys("▸▶›", ">"),
        **dict.fromkeys("←◂‹", "<"),
        **dict.fromkeys("─━╸╺", "-"),
        **dict.fromkeys("│┃▏▕", "|"),
        **dict.fromkeys("█■", "#"),
        **dict.fromkeys("●•", "*"),
        **{
            "…": ".",
            "▾": "v",
            "·": "-",
            "×": "x",
            "÷": "/",
            "±": "+-",
            "→": "->",
            "–": "-",
            "−": "-",
            "≤": "<",
            "≥": ">",
            "′": "'",
            "‖": "|",
            "Δ": "d",
            "○": "o",
            "↶": "<",
            "↷": ">",
            "↳": "`",
            "⏸": "=",
            "▼": "v",
            "▲": "^",
        },
        **{"✓": "+", "✗": "x", "↑": "^", "↓": "v", "↵": "<", "“": '"', "”": '"', "’": "'"},
    }
)
"""One sign for one sign, so that nothing moves; those of two are spelled before lines are laid out (`spelled`)."""


class Panel(Widget):
    """A rectangle of rows drawn from a session and a view."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {f"panel--{name}" for name in STYLES}
    ALLOW_SELECT = False

    name_: ClassVar[str] = ""
    """Its id, and the name that Tab and the palette know it by."""
    title: ClassVar[str] = ""
    short: ClassVar[str] = ""
    """Its title where titles stand side by side and there is little room. Empty: the title itself."""
    zone: ClassVar[str] = ""
    """Which row of the dashboard it stands in: `charts`, `middle` or `lower`."""
    scrolls: ClassVar[bool] = False
    """Whether rows beyond its height can be scrolled to."""

    def __init__(self) -> None:
        super().__init__(id=self.name_)
        self.spare = 0
        """Lines there are beyond those that can be seen at once."""
        self._strips: list[Strip] = []
        self._stamp: Hashable = None
        self._looks: dict[str, Style] = {}
        self._heading = ""
        self._shown: tuple[Session, View] | None = None

    # ── What a panel is ───────────────────────────────────────────────────────────────────────────

    def stamp(self, session: Session, view: View) -> Hashable:
        """Everything the drawing depends on, cheap to compute and to compare."""
        raise NotImplementedError

    def draw(self, session: Session, view: View, width: int, height: int) -> list[Row]:
        """Rows, cut and filled up to `width`; of more than `height` those are shown that it is scrolled to."""
        raise NotImplementedError

    def heading(self, session: Session, view: View) -> str:
        """What the border says."""
        return self.title

    def badge(self, session: Session, view: View) -> str:
        """A word beside its title where titles stand side by side, such as a count."""
        return ""

    # ── The one door ──────────────────────────────────────────────────────────────────────────────

    def show(self, session: Session, view: View) -> None:
        """Draws what is new. Costs next to nothing when nothing is, or when it is not displayed."""
        self._shown = (session, view)
        width, height = self.content_size
        if not self.display or not width or not height:
            return
        down = self.scrolled_down(view)
        stamp = (width, height, view.ascii_only, down, self.stamp(session, view))
        if stamp == self._stamp:
            return
        self._stamp = stamp
        self._set_heading(plain(self.heading(session, view), view.ascii_only))
        rows = self.draw(session, view, width, height)
        self.spare = max(0, len(rows) - height)
        rows = scrolled(rows, height, down) if self.scrolls else rows[:height]
        strips = [self._strip(row, width, view.ascii_only) for row in rows]
        strips += [Strip.blank(width, self._base)] * (height - len(strips))
        regions = changed_regions(self._strips, strips)
        self._strips = strips
        if regions:
            self.refresh(*regions)

    def scrolled_down(self, view: View) -> int:
        """Lines that its first row lies above the first that is shown."""
        return view.scrolled if self.scrolls and view.selected == self.name_ else 0

    def render_line(self, y: int) -> Strip:
        """One row, as last drawn."""
        return self._strips[y] if y < len(self._strips) else Strip.blank(self.content_size.width, self._base)

    def on_resize(self) -> None:
        """Draws again for the new size."""
        self._redraw()

    def on_show(self) -> None:
        """Catches up on what happened while it was hidden."""
        self._redraw()

    def notify_style_update(self) -> None:
        """Takes over the colours of another theme."""
        super().notify_style_update()
        self._looks.clear()
        self._stamp = None
        self.call_later(self._redraw)

    # Textual calls an `on_…` of every class of a panel, so panels replace these and not the handlers.

    def clicked(self, x: int, y: int) -> None:
        """Makes it the selected panel; `x` and `y` count cells from the corner of what is drawn."""
        self.post_message(PanelChosen(self.name_))

    def wheeled(self, up: bool, event: events.MouseEvent) -> None:
        """Scrolls its lines."""
        self.post_message(Scrolled(self.name_, 1 if up else -1))

    def on_click(self, event: events.Click) -> None:
        """Passes a click on."""
        event.stop()
        self.clicked(event.x - self.gutter.left, event.y - self.gutter.top)

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        """Passes a notch of the wheel on."""
        event.stop()
        self.wheeled(True, event)

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        """Passes a notch of the wheel on."""
        event.stop()
        self.wheeled(False, event)

    def _redraw(self) -> None:
        if self._shown is not None:
            self.show(*self._shown)

    def _set_heading(self, heading: str) -> None:
        if heading != self._heading:
            self._heading = heading
            # Literal text, never markup: names come from outside.
            self.border_title = Content(heading)

    def _strip(self, row: Iterable[Segment], width: int, ascii_only: bool) -> Strip:
        segments = [RichSegment(plain(text, ascii_only), self._look(style)) for text, style in row if text]
        return Strip(segments).adjust_cell_length(width).apply_style(self._base)

    @property
    def _base(self) -> Style:
        look = self._looks.get("")
        if look is None:
            look = self._looks[""] = self.rich_style
        return look

    def _look(self, name: str) -> Style:
        """The style that the words of a style name make: names of ours, and words of Rich's own."""
        look = self._looks.get(name) if name else Style()
        if look is None:
            look, ours = Style(), [word for word in name.split() if word in STYLES]
            for word in ours:
                if word == "dim" and look.color is not None:
                    look += Style(color=self._towards_background(look.color))
                else:
                    look += self._named_look(word)
            look += Style.parse(" ".join(word for word in name.split() if word not in STYLES))
            self._looks[name] = look
        return look

    def _named_look(self, name: str) -> Style:
        """A style name's rules, see-through colours laid over the panel's background."""
        styles = self.get_component_styles(f"panel--{name}")
        paper = self.background_colors[1]
        look = styles.text_style
        if styles.has_rule("background"):
            paper += styles.background
            look += Style(bgcolor=paper.rich_color)
        if styles.has_rule("color"):
            look += Style(color=(paper + styles.color).rich_color)
        return look

    def _towards_background(self, color: Color) -> Color:
        background = self.background_colors[1].rich_color
        return Color.from_triplet(blend_rgb(color.get_truecolor(), background.get_truecolor(), 0.55))


def plain(text: str, ascii_only: bool) -> str:
    """`text` without control characters, which could move the cursor; in ASCII if asked, sign for sign."""
    if text.isascii() and text.isprintable():
        return text
    if ascii_only:
        text = text.translate(_PLAIN_SIGNS)
        return "".join(c if c.isascii() and c.isprintable() else "?" for c in text)
    return "".join(c for c in text if c.isprintable() and not joins(c))


def changed_regions(before: list[Strip], after: list[Strip]) -> list[Region]:
    """For each row that differs, the cells from the first to the last difference."""
    regions = []
    for y, strip in enumerate(after):
        old = before[y] if y < len(before) else None
        if old is None or old.cell_length != strip.cell_length:
            regions.append(Region(0, y, strip.cell_length, 1))
        elif old != strip:
            first, last = _difference(_cells(old), _cells(strip))
            regions.append(Region(first, y, last - first, 1))
    return regions


def _cells(strip: Strip) -> list[tuple[str, Style | None]]:
    return [(sign, segment.style) for segment in strip for sign in segment.text]


def _difference(old: list[tuple[str, Style | None]], new: list[tuple[str, Style | None]]) -> tuple[int, int]:
    """The cells [first, last) outside which both are equal; all of them where signs are not one cell wide."""
    if len(old) != len(new) or not all(sign.isascii() or _narrow(sign) for sign, _ in new + old):
        return 0, max(len(old), len(new)) * 2
    places = [i for i, (a, b) in enumerate(zip(old, new, strict=True)) if a != b]
    return (places[0], places[-1] + 1) if places else (0, 0)


def _narrow(sign: str) -> bool:
    return unicodedata.east_asian_width(sign) not in "WF"
