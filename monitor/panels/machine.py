"""How fast the training runs, where its time goes, what watching costs, and what the machine does.

Readings are those of the steps in view; at the right of each line stands the one under the cursor, or the newest.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Final, NamedTuple

import numpy as np

from client_callback.wire.protocol import Float64, Overhead
from client_callback.wire.resources import gpu_number, quantity
from monitor.charts import Row, Segment, bar_sign, format_number, sparkline, stacked_bar
from monitor.panels.panel import Panel
from monitor.panels.text import Item, line, row_width
from monitor.series import Column
from monitor.session import Session, TimeShares
from monitor.view import View

_PARTS: Final = (
    ("input_wait", "val", "input", "input"),
    ("step_time", "loss", "step", "step"),
    ("callback_time", "other", "callbacks", "cb"),
)
"""(share, style, word, word where there is little room) of the bar."""
_SPARK: Final = 40
"""Cells of a small curve at most; more say nothing more."""
_SHORTEST_SPARK: Final = 3
_LABEL: Final = 7
_STYLES: Final = {"cpu": "accent", "memory": "accent"}
_FAR_OVER: Final = 2.0
"""Times the budget from which on the overhead counts as bad."""


class _Line(NamedTuple):
    """One resource: its curve, and numbers beside it."""

    label: str
    curve: str
    """The name whose readings are drawn."""
    others: tuple[tuple[str, str], ...]
    """(name, word before its value) of what stands behind; the last goes first where there is little room."""


class MachinePanel(Panel):
    """Throughput, shares of time, overhead, then a line per resource."""

    name_ = "machine"
    title = "machine"
    zone = "middle"
    scrolls = True

    def stamp(self, session: Session, view: View) -> Hashable:
        """Whole seconds: throughput changes with every step, and nobody reads it faster."""
        window = view.window(len(session.times))
        known = (int(session.time), len(session.resource_times), session.overhead, session.state)
        return (*known, window, view.cursor)

    def draw(self, session: Session, view: View, width: int, height: int) -> list[Row]:
        """One line each; without the lines of what this run does not tell."""
        rows: list[Row] = []
        if speed := _speed(session, width):
            rows.append(speed)
        if (shares := session.time_shares()) is not None:
            rows += _time_rows(shares, width, ascii_only=view.ascii_only)
        if session.overhead is not None:
            rows.append(overhead_row(session.overhead, width))
        rows += [row for entry in _lines(session) if (row := _resource_row(entry, session, view, width))]
        return rows or [[Segment("Nothing measured yet.", "dim")]]


def overhead_row(overhead: Overhead, width: int) -> Row:
    """What watching costs of what it may: `overhead 0.6 % of 1 % · statistics every 37 steps`."""
    budget = overhead.budget
    of = f" of {_percent(budget)}" if budget is not None else ""
    if overhead.every:
        often, fixed = f"every {overhead.every:,} steps", " (fixed)" if budget is None else ""
        longer, shorter = f" · statistics {often}{fixed}", f" · {often}{fixed}"
    else:
        longer = shorter = " · no statistics"
    row = [Segment("overhead ", "dim"), Segment(_percent(overhead.share), overhead_style(overhead))]
    row.append(Segment(of, "dim"))
    for more in (longer, shorter, shorter.replace(" steps", "")):
        if row_width(row) + len(more) <= width:
            return [*row, Segment(more, "dim")]
    return row


def overhead_style(overhead: Overhead) -> str:
    """`warn` over the budget, `bad` far over it."""
    if overhead.budget is None or not overhead.share > overhead.budget:
        return "text"
    return "bad" if overhead.share > _FAR_OVER * overhead.budget else "warn"


def _speed(session: Session, width: int) -> Row:
    speed = session.steps_per_second()
    if speed is None or session.ended or session.state == "paused":
        return []
    row = [Segment(_short(speed), "text"), Segment(" steps/s", "dim")]
    examples = session.examples_per_second()
    more = [] if examples is None else [Segment(_short(examples), "text"), Segment(" examples/s", "dim")]
    return line([Item(0, row), Item(1, more)], width)


def _time_rows(shares: TimeShares, width: int, *, ascii_only: bool) -> list[Row]:
    """The bar, and below it what its parts are."""
    together = shares.input_wait is None
    parts = [(style, getattr(shares, name) or 0.0) for name, style, _, _ in _PARTS]
    bar = stacked_bar(parts, width, ascii_only=ascii_only)
    legend: Row = []
    for short in (False, True):
        legend = []
        for i, (name, style, word, brief) in enumerate(_PARTS):
            if (share := getattr(shares, name)) is None:
                continue
            percent = _percent(share)
            called = "input + step" if together and name == "step_time" else brief if short else word
            legend += [
                Segment(f"{bar_sign(i, ascii_only=ascii_only)} ", style),
                Segment(f"{called} ", "dim"),
                Segment(f"{percent.replace(' ', '')} " if short else f"{percent}  ", "text"),
            ]
        if row_width(legend) - 2 <= width:
            break
    return [bar, legend]


def _lines(session: Session) -> list[_Line]:
    """The process, the machine, then each GPU that readings speak of."""
    known = session.resources
    numbers = sorted({number for name in known if (number := gpu_number(name)) is not None})
    lines = [
        _Line("cpu", "cpu", (("cpu_machine", "machine "),)),
        _Line("memory", "memory", (("memory_machine", "machine "),)),
    ]
    for number in numbers:
        gpu, label = f"gpu{number}", "gpu" if numbers == [0] else f"gpu {number}"
        others = ((f"{gpu}_temperature", ""), (f"{gpu}_power", ""))
        lines.append(_Line(label, f"{gpu}_utilisation", others))
        lines.append(_Line("  mem", f"{gpu}_memory", ((f"{gpu}_memory_share", ""),)))
    return [
        entry for entry in lines if entry.curve in known or any(name in known for name, _ in entry.others)
    ]


def _resource_row(entry: _Line, session: Session, view: View, width: int) -> Row:
    """`cpu       34 % ▂▃▅▆▇  machine 41 %`."""
    start, stop = view.window(len(session.times))
    at = session.reading_at(
        min(stop - 1, view.cursor) if view.cursor is not None else _last_in_view(stop, session)
    )
    if at is None:
        return []
    value = _value(entry.curve, session, at)
    row = [Segment(f"{entry.label:<{_LABEL}}", "dim"), Segment(f"{value:>7} ", "text")]
    items = [Item(0, row)]
    for rank, (name, word) in enumerate(entry.others, 1):
        if text := _value(name, session, at):
            items.append(Item(rank, [Segment(word, "dim"), Segment(text, "text")]))
    said = line(items, width, " ")
    column = session.resources.get(entry.curve)
    room = min(_SPARK, width - row_width(said) - 1)
    if column is None or room < _SHORTEST_SPARK:
        return said
    first = session.reading_at(start - 1) if start > 0 else 0
    values = _drawn(column, first or 0, at + 1, room)
    unit = quantity(entry.curve)
    high = 1.0 if unit is not None and unit.unit == "share" else float(np.nanmax(values, initial=0.0))
    curve = sparkline(values, room, view.ascii_only, low=0.0, high=high or 1.0)
    gap = len(row)
    return [*said[:gap], Segment(f"{curve} ", _STYLES.get(entry.curve, "metric")), *said[gap:]]


def _last_in_view(stop: int, session: Session) -> int | None:
    """The last step in view, or `None` when that is the newest, so that a pause goes on being read."""
    return stop - 1 if stop < len(session.times) else None


def _drawn(column: Column, first: int, stop: int, cells: int) -> Float64:
    """Means of the readings `[first, stop)` for so many cells; each alone where they are few."""
    stop = min(stop, len(column))
    count = max(0, stop - first)
    if count <= cells:
        return np.asarray(column.values[first:stop], np.float64)
    return column.smoothed(first, stop, cells, max(1, count // cells))[1]


def _value(name: str, session: Session, at: int) -> str:
    """A reading in words; empty when there is none."""
    column = session.resources.get(name)
    if column is None or at >= len(column) or math.isnan(value := float(column.values[at])):
        return ""
    what = quantity(name)
    unit = what.unit if what is not None else ""
    if unit == "share":
        return _percent(value)
    if unit == "bytes":
        return _bytes(value)
    return f"{value:.0f} {unit}".strip()


def _percent(share: float) -> str:
    """`34 %`, and below ten with a digit more: `0.6 %`."""
    percent = 100.0 * share
    return f"{percent:.0f} %" if percent >= 9.95 else f"{percent:.1f}".removesuffix(".0") + " %"


def _bytes(count: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{format_number(count / size, 3)} {unit}"
    return f"{count / 1e3:.0f} kB"


def _short(value: float) -> str:
    """`4.2`, `412`, `13.2k`."""
    if value >= 99_950:
        return f"{value / 1e6:.2f}M" if value >= 999_500 else f"{value / 1e3:.0f}k"
    if value >= 10_000:
        return f"{value / 1e3:.1f}k"
    return f"{value:,.0f}" if value >= 20 else f"{value:.1f}"
