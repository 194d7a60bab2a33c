"""Words and numbers as panels write them.

Panels call these to build rows. Pure functions of text and numbers; no widget and no session here.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Sequence
from typing import Final, NamedTuple

from monitor.canvas import cell_width, fit, printable
from monitor.charts import Row, Segment, format_number

_NO_BREAK: Final = "\u00a0"
_JOINED: Final = re.compile(r"(?<=\d) (?=(?:%|ms|s|steps)(?!\w))|(?<=\d) (?=(?:±|\+-) )|(?<=±) |(?<=\+-) ")


class Item(NamedTuple):
    """Part of a line that may have to give way."""

    rank: int
    """The greatest goes first when there is too little room. 0: stays."""
    row: Row


def line(items: Sequence[Item], width: int, gap: str = "   ") -> Row:
    """As many of the items as fit in `width` cells, in their order."""
    kept = [item for item in items if item.row]
    while len(kept) > 1 and _length(kept, len(gap)) > width and max(item.rank for item in kept) > 0:
        kept.remove(max(kept, key=lambda item: item.rank))
    row: Row = []
    for item in kept:
        row += ([Segment(gap, "")] if row else []) + item.row
    return row


def both_ends(left: Row, right: Row, width: int) -> Row:
    """`left` at the left edge and `right` at the right one; without room for both, only `left`."""
    space = width - row_width(left) - row_width(right)
    return [*left, Segment(" " * space, ""), *right] if space >= 1 else left


def row_width(row: Row) -> int:
    """Cells that the row takes up."""
    return sum(cell_width(printable(text)) for text, _ in row)


def wrapped(text: str, width: int, indent: str = "") -> list[str]:
    """`text` in lines of at most `width` cells, the later ones indented; long words are broken.

    A number stays in one line with its unit, and with its error.
    """
    if width <= len(indent) + 1:
        return [fit(text, max(0, width))]
    words = " ".join(printable(text.replace("\n", " ")).split())
    words = _JOINED.sub(_NO_BREAK, words)
    lines = textwrap.wrap(words, width, subsequent_indent=indent, break_long_words=True) or [""]
    return [line.replace(_NO_BREAK, " ") for line in lines]


def spelled(text: str, *, ascii_only: bool) -> str:
    """`text` with the signs spelled out that ASCII has no single sign for; to be done before laying it out."""
    return text.replace("→", "->").replace("±", "+-") if ascii_only else text


def cut(text: str, width: int) -> str:
    """`text` without its end where it is longer than `width` cells."""
    text = printable(text)
    if cell_width(text) <= width:
        return text
    kept = text[: max(0, width)]
    while kept and cell_width(kept) > width - 1:
        kept = kept[:-1]
    return f"{kept}…" if width > 0 else ""


def rate(value: float | None) -> str:
    """A learning rate: 1e-3, 3.2e-4, 0.05."""
    if value is None:
        return "–"
    if value and abs(value) < 0.00995:  # a float32 of 0.01 lies just below it
        mantissa, _, exponent = f"{value:.2e}".partition("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return format_number(value, 3)


def duration(seconds: float | None) -> str:
    """Hours, minutes and seconds as 1:02:03 or 2:03; days as 3d 4h."""
    if seconds is None or not 0 <= seconds < math.inf:
        return "–"
    whole = round(seconds)
    if whole >= 48 * 3600:
        return f"{whole // 86400}d {whole % 86400 // 3600}h"
    minutes, second = divmod(whole, 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def bar(share: float, width: int) -> Row:
    """A progress bar of `width` cells."""
    done = max(0, min(width, round(share * width)))
    return [Segment("━" * done, "accent"), Segment("─" * (width - done), "faint")]


def scrolled(rows: list[Row], height: int, down: int) -> list[Row]:
    """The `height` rows to show when scrolled `down` lines; says so when there are more below."""
    down = max(0, min(down, len(rows) - height))
    shown = rows[down : down + height]
    below = len(rows) - down - height
    if below > 0 and height > 1:
        shown[-1] = [Segment(f"▾ {below + 1} more lines", "dim")]
    return shown


def _length(items: Sequence[Item], gap: int) -> int:
    return sum(row_width(item.row) for item in items) + gap * (len(items) - 1)
