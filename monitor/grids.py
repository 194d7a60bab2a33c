"""Cells as rows of styled text: heatmaps, histograms and sparklines; numbers in, text out.

Reached through `monitor.charts`. Nothing here keeps state or knows Textual or Rich.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from monitor.canvas import (
    ASCII,
    BRAILLE,
    Canvas,
    Row,
    Segment,
    cell_width,
    connected,
    fit,
    pad,
    printable,
)
from monitor.pyramid import Array, Steps
from monitor.scales import Floats, axis, coordinates, format_number, step_ticks

AXIS_STYLE: Final = "dim"
NON_FINITE_STYLE: Final = "bold white on #b00020"

_BARS: Final = " ▁▂▃▄▅▆▇█"
_ASCII_BARS: Final = " ._-=+*%#"
_LONG: Final = " ▏▎▍▌▋▊▉█"
_RAMP: Final = ".:-=+*#%@"
_FILLS: Final = "█▒░"
_ASCII_FILLS: Final = "#o:"
"""A full cell of each group of a histogram, so that groups can be told apart without colour."""

# Dark violet, blue, green, yellow: brightness grows evenly, so that it still reads without colour vision.
_COLOUR_STOPS: Final = (
    (0x2B, 0x0B, 0x3F),
    (0x45, 0x32, 0x7F),
    (0x36, 0x5C, 0x8D),
    (0x25, 0x82, 0x8E),
    (0x2A, 0xA8, 0x7F),
    (0x77, 0xCB, 0x57),
    (0xFA, 0xE6, 0x25),
)
LEVELS: Final = 36
BLANK: Final = -1
BROKEN: Final = -2


def _colours() -> tuple[str, ...]:
    at = np.linspace(0, len(_COLOUR_STOPS) - 1, LEVELS)
    stops = np.array(_COLOUR_STOPS, np.float64).T
    channels = [np.interp(at, np.arange(len(_COLOUR_STOPS)), stop).round().astype(int) for stop in stops]
    return tuple(f"on #{r:02x}{g:02x}{b:02x}" for r, g, b in zip(*channels, strict=True))


COLOURS: Final = _colours()


_SHOWN_PERCENT: Final = (2.0, 98.0)
"""Of the cells that a heat map's scale spans: a few outliers would leave all others one colour."""


class _Shades(NamedTuple):
    """Levels of cells, `BLANK` or `BROKEN` among them, and the values at the ends of the scale."""

    levels: npt.NDArray[np.int64]
    low: float
    high: float
    cut: tuple[bool, bool]
    """Whether there are values below and above the scale."""


def draw_heatmap(
    labels: Sequence[str],
    matrix: npt.NDArray[np.floating],
    steps: npt.ArrayLike,
    *,
    width: int,
    height: int,
    start: int,
    stop: int,
    log: bool = True,
    ascii_only: bool = False,
    measured: npt.NDArray[np.bool_] | None = None,
) -> list[Row]:
    """One line per label, time across, value as colour: exactly `height` rows of exactly `width` cells.

    Args:
        labels: `[n_labels]`; where there are too few lines, neighbours share one (maximum).
        matrix: `[n_time, n_labels]`. NaN is blank, infinity is `!`; of several samples in a cell the greatest.
        steps: `[n_time]`, sorted. A sample holds until the next one is due.
        width: Cells across, labels included.
        height: Cells down, legend and step axis included.
        start: First step shown.
        stop: First step no longer shown.
        log: Log colour scale; on it, zero and less have the lowest colour. Linear or not, the scale spans the
            2nd to the 98th percentile, and what lies beyond has the colour of that end.
        ascii_only: A ramp of signs instead of colours.
        measured: `[n_time, n_labels]`; where true, NaN too is `!`.
    """
    width, height = max(0, width), max(0, height)
    head, foot = int(height >= 3), int(height >= 4)
    lines = max(0, height - head - foot)
    names = [printable(label, ascii_only=ascii_only) for label in labels]
    groups = runs_of(len(names), lines)
    names = [f"{names[a]} +{b - a - 1}" if b - a > 1 else names[a] for a, b in groups]
    margin = min(max(map(cell_width, names), default=0) + 1, width // 3)
    columns = width - margin
    cells, broken = _cells(matrix, np.asarray(steps, np.int64), _View(start, stop, columns), measured)
    shades = _shades(_pooled(cells, groups), _pooled(broken, groups) > 0, log=log)

    rows = [_scale_legend(shades, width, log=log, ascii_only=ascii_only)] if head else []
    for name, levels in zip(names, shades.levels, strict=True):
        label = Segment(fit(name, max(0, margin - 1), ascii_only=ascii_only), "")
        rows.append([*pad([label], margin), *_shaded(levels, ascii_only=ascii_only)])
    if foot:
        rows.append(_step_axis(start, stop, margin, columns))
    return rows + [pad([], width) for _ in range(height - len(rows))]


def draw_histogram(
    groups: Sequence[tuple[str, str, npt.ArrayLike]],
    edges: npt.ArrayLike | Sequence[str],
    *,
    width: int,
    height: int,
    ascii_only: bool = False,
) -> list[Row]:
    """Counts as bars, groups side by side: exactly `height` rows of exactly `width` cells.

    Args:
        groups: `(label, style, counts [n])` each.
        edges: `n + 1` numbers for upright bars over a number axis, or `n` labels. Labelled bars lie down when
            there is a line for each, else they stand up.
        width: Cells across.
        height: Cells down, legend and labels included.
        ascii_only: Printable ASCII instead of eighth blocks.
    """
    width, height = max(0, width), max(0, height)
    bins = np.size(groups[0][2]) if groups else 0
    counts = np.array([count for _, _, count in groups], np.float64).reshape(len(groups), bins)
    counts = np.where(np.isfinite(counts), counts, 0.0).clip(0, None)
    head = int(height >= 3)
    lines = height - head
    edges = list(np.asarray(edges).tolist())
    rows = [_groups_legend(groups, counts, width, ascii_only=ascii_only)] if head else []
    if not counts.size or not counts.any():
        words = fit("nothing counted yet", width, ascii_only=ascii_only)
        body: list[Row] = [[] for _ in range(lines)]
        if lines:
            body[lines // 2] = [Segment(" " * ((width - len(words)) // 2), ""), Segment(words, AXIS_STYLE)]
    elif len(edges) == counts.shape[1] and counts.size <= lines:
        names = [printable(str(name), ascii_only=ascii_only) for name in edges]
        body = _lying(groups, counts, names, width, ascii_only=ascii_only)
    else:
        body = _standing(groups, counts, edges, width, lines, ascii_only=ascii_only)
    rows += body
    rows += [[] for _ in range(height - len(rows))]
    return [pad(row, width) for row in rows[:height]]


def sparkline(
    values: npt.ArrayLike,
    width: int,
    ascii_only: bool = False,
    *,
    low: float | None = None,
    high: float | None = None,
) -> str:
    """`width` cells of bars, latest at the right; means where there are more values than cells.

    NaN is blank and so is the room before the first value; a cell with an infinite value shows `!`. The lowest bar
    stands for `low` and the highest for `high`; for the least and the greatest mean where they are not given.
    """
    series = np.asarray(values, np.float64).ravel()
    width = max(0, width)
    if not len(series) or not width:
        return " " * width
    bars = (_ASCII_BARS if ascii_only else _BARS)[1:]
    cells = min(width, len(series))
    parts = [series[a:b] for a, b in runs_of(len(series), cells)]
    places = [coordinates(part[np.isfinite(part)], log=False) for part in parts]
    means = np.array([part.mean() if len(part) else np.nan for part in places])
    known = means[np.isfinite(means)]
    bottom = (known.min() if len(known) else 0.0) if low is None else low
    span = ((known.max() if len(known) else 0.0) if high is None else high) - bottom
    signs = []
    for part, mean in zip(parts, means.tolist(), strict=True):
        if np.isinf(part).any():
            signs.append("!")
        elif math.isnan(mean):
            signs.append(" ")
        else:
            share = min(1.0, max(0.0, (mean - bottom) / span)) if span > 0 else 0.0
            signs.append(bars[int(share * (len(bars) - 1) + 0.5)])
    return "".join(signs).rjust(width)


def small_curve(
    values: npt.ArrayLike,
    width: int,
    *,
    low: float,
    high: float,
    share: float = 1.0,
    ascii_only: bool = False,
) -> str:
    """A line through the values in one row of `width` cells: means per dot column where there are more values.

    `low` and `high` are the bottom and the top of the row, the same for curves to be compared; what lies beyond runs
    along the edge. `share`: how much of the width the values take up. What is not finite leaves a gap.
    """
    raster = ASCII if ascii_only else BRAILLE
    series = np.asarray(values, np.float64).ravel()
    canvas = Canvas(max(0, width), 1, raster)
    columns = min(canvas.dots_across, round(canvas.dots_across * share))
    if not len(series) or columns < 1:
        return " " * canvas.width
    parts = [series[a:b] for a, b in runs_of(len(series), columns)]
    means = np.array(
        [part[np.isfinite(part)].mean() if np.isfinite(part).any() else np.nan for part in parts]
    )
    if len(means) < columns:
        means = np.interp(np.linspace(0, len(means) - 1, columns), np.arange(len(means)), means)
    heights = ((means - low) / ((high - low) or 1.0)).clip(0.0, 1.0)
    rows = np.full(canvas.dots_across, np.nan)
    rows[:columns] = (1 - heights) * (canvas.dots_down - 1)
    tops, bottoms = connected(rows, rows)
    canvas.spans(tops, bottoms, "")
    return "".join(segment.text for segment in canvas.rows()[0])


def stacked_bar(shares: Sequence[tuple[str, float]], width: int, *, ascii_only: bool = False) -> Row:
    """One line of `width` cells, divided among `(style, share)`; shares add up to 1.

    Cells go to the largest remainders, so that each is off by less than one.
    """
    exact = [share * width for _, share in shares]
    cells = [math.floor(part) for part in exact]
    behind = sorted(range(len(cells)), key=lambda i: cells[i] - exact[i])
    for i in behind[: max(0, width - sum(cells))]:
        cells[i] += 1
    return [
        Segment(_fill(i, ascii_only=ascii_only) * count, style)
        for i, ((style, _), count) in enumerate(zip(shares, cells, strict=True))
    ]


def bar_sign(position: int, *, ascii_only: bool = False) -> str:
    """The sign that a stacked bar's part consists of, for its legend."""
    return _fill(position, ascii_only=ascii_only)


class _View(NamedTuple):
    """The steps `[start, stop)` spread over `columns` cells."""

    start: int
    stop: int
    columns: int

    def column(self, steps: Steps) -> Steps:
        """The cell of each step; below 0 or past the last for what is not in view."""
        span = max(1, self.stop - 1 - self.start)
        return np.asarray(np.floor_divide((steps - self.start) * max(0, self.columns - 1) + span // 2, span))


def runs_of(count: int, most: int) -> list[tuple[int, int]]:
    """`count` items in `most` runs of neighbours, or each on its own if they are fewer."""
    runs = min(count, max(0, most))
    return list(pairwise([i * count // runs for i in range(runs + 1)])) if runs else []


def _cells(
    matrix: Array, steps: Steps, view: _View, measured: npt.NDArray[np.bool_] | None
) -> tuple[Floats, Floats]:
    """Greatest finite value (NaN: none) and whether one was not finite, both `[n_labels, columns]`."""
    values = np.asarray(matrix, np.float64)
    infinite = np.isinf(values) | (np.isnan(values) & measured if measured is not None else False)
    finite = np.where(np.isfinite(values), values, np.nan)
    cells = np.full((view.columns, values.shape[1]), np.nan)
    broken = np.zeros((view.columns, values.shape[1]))
    if not len(steps) or view.stop <= view.start:
        return cells.T, broken.T
    at = view.column(steps)
    due = float(np.median(np.diff(at))) if len(at) > 1 else 0.0
    source = np.searchsorted(at, np.arange(view.columns), side="right") - 1
    first = np.searchsorted(at, np.arange(view.columns), side="left")
    held = (source >= 0) & (np.arange(view.columns) - at[source] <= 1.5 * due)
    cells[held], broken[held] = finite[source[held]], infinite[source[held]]
    for column in np.flatnonzero(source > first).tolist():
        several = slice(first[column], source[column] + 1)
        cells[column] = np.fmax.reduce(finite[several], axis=0)
        broken[column] = infinite[several].any(axis=0)
    return cells.T, broken.T


def _pooled(cells: Floats, groups: Iterable[tuple[int, int]]) -> Floats:
    """The greatest of every group of lines."""
    pooled = [np.fmax.reduce(cells[a:b], axis=0) for a, b in groups]
    return np.array(pooled) if pooled else cells[:0]


def _shades(cells: Floats, broken: npt.NDArray[np.bool_], *, log: bool) -> _Shades:
    places = coordinates(cells, log=log)
    known = places[~np.isnan(places)]
    low, high = (
        map(float, np.percentile(known, _SHOWN_PERCENT, method="nearest")) if len(known) else (0.0, 0.0)
    )
    if log and len(known):
        low, high = float(np.floor(low)), float(np.ceil(high))
    span = (high - low) or 1.0
    with np.errstate(over="ignore"):  # what lies far beyond a tiny span is at its end
        share = np.where(np.isnan(places), 0.0, (places - low) / span).clip(0.0, 1.0)
    levels = (share * (LEVELS - 1)).round().astype(np.int64)
    levels[np.isnan(cells)] = BLANK
    levels[broken] = BROKEN
    cut = bool((known < low).any()), bool((known > high).any())
    return _Shades(levels, 10.0**low if log else low, 10.0**high if log else high, cut)


def _shaded(levels: npt.NDArray[np.int64], *, ascii_only: bool) -> Row:
    """Cells of one line; neighbours of one level share a segment."""
    edges = [0, *(np.flatnonzero(np.diff(levels)) + 1).tolist(), len(levels)]
    return [shaded_cells(int(levels[a]), b - a, ascii_only=ascii_only) for a, b in pairwise(edges) if a < b]


def shaded_cells(level: int, cells: int, *, ascii_only: bool) -> Segment:
    """So many cells of one level; neither `BLANK` nor `BROKEN` has a colour of the scale."""
    if level == BROKEN:
        return Segment("!" * cells, NON_FINITE_STYLE)
    if level == BLANK:
        return Segment(" " * cells, "")
    if ascii_only:
        return Segment(_RAMP[level * len(_RAMP) // LEVELS] * cells, "")
    return Segment(" " * cells, COLOURS[level])


def _scale_legend(shades: _Shades, width: int, *, log: bool, ascii_only: bool) -> Row:
    if (shades.levels == BLANK).all():
        return pad([Segment(fit("waiting for samples", width, ascii_only=ascii_only), AXIS_STYLE)], width)
    bar = _shaded(np.linspace(0, LEVELS - 1, 18).round().astype(np.int64), ascii_only=ascii_only)
    beyond = ("<", ">") if ascii_only else ("≤", "≥")
    low, high = (
        Segment((sign if cut else "") + format_number(value, 3), "")
        for sign, cut, value in zip(beyond, shades.cut, (shades.low, shades.high), strict=True)
    )
    gap = Segment(" ", "")
    row = [low, gap, *bar, gap, high, Segment("  log" if log else "", AXIS_STYLE)]
    if (shades.levels == BROKEN).any():
        row += [Segment("  ", ""), Segment("!", NON_FINITE_STYLE), Segment(" not finite", AXIS_STYLE)]
    return pad(row, width)


def _step_axis(start: int, stop: int, margin: int, columns: int) -> Row:
    text = [" "] * (margin + columns)
    view, free = _View(start, stop, columns), 0
    for step, label in step_ticks(max(0, start), stop, columns // 10):
        middle = margin + int(view.column(np.array(step)))
        begin = max(free, min(middle - len(label) // 2, len(text) - len(label)))
        if begin <= middle < begin + len(label) <= len(text):
            text[begin : begin + len(label)] = label
            free = begin + len(label) + 1
    return pad([Segment("".join(text), AXIS_STYLE)], margin + columns)


def _groups_legend(
    groups: Sequence[tuple[str, str, npt.ArrayLike]], counts: Floats, width: int, *, ascii_only: bool
) -> Row:
    row: Row = []
    for i, ((label, style, _), count) in enumerate(zip(groups, counts, strict=True)):
        name = fit(printable(label, ascii_only=ascii_only), max(4, width // 2), ascii_only=ascii_only)
        row += [Segment(_fill(i, ascii_only=ascii_only), style), Segment(f" {name} ", "")]
        row += [Segment(f"n={count.sum():,.0f}  ", AXIS_STYLE)]
    return pad(row, width)


def _lying(
    groups: Sequence[tuple[str, str, npt.ArrayLike]],
    counts: Floats,
    names: list[str],
    width: int,
    *,
    ascii_only: bool,
) -> list[Row]:
    """Bars that lie, one line each, with their counts behind them."""
    margin = min(max(map(cell_width, names), default=0), width // 3) + 1
    numbers = [[format_number(float(count)) for count in line] for line in counts]
    room = max(0, width - margin - max(len(number) for line in numbers for number in line) - 1)
    most = counts.max()
    rows: list[Row] = []
    for i, name in enumerate(names):
        for group, (_, style, _) in enumerate(groups):
            label = pad([Segment("" if group else fit(name, margin - 1, ascii_only=ascii_only), "")], margin)
            bar = _bar(counts[group, i] / most * room, group, ascii_only=ascii_only)
            rows.append([*label, Segment(bar, style), Segment(f" {numbers[group][i]}", AXIS_STYLE)])
    return rows


def _bar(length: float, group: int, *, ascii_only: bool) -> str:
    """A lying bar; anything above nothing can be seen."""
    fill = _fill(group, ascii_only=ascii_only)
    if ascii_only:
        return fill * int(length) + ("-" if length % 1 >= 0.5 or 0 < length < 0.5 else "")
    eighths = max(int(length * 8 + 0.5), int(length > 0))
    return fill * (eighths // 8) + _LONG[eighths % 8].strip()


def _fill(group: int, *, ascii_only: bool) -> str:
    fills = _ASCII_FILLS if ascii_only else _FILLS
    return fills[group % len(fills)]


def _standing(
    groups: Sequence[tuple[str, str, npt.ArrayLike]],
    counts: Floats,
    edges: list[float | str],
    width: int,
    lines: int,
    *,
    ascii_only: bool,
) -> list[Row]:
    """Bars that stand, those of one bin side by side; neighbouring bins are added when there is no room."""
    foot = int(lines >= 2)
    wide = len(groups) + (len(groups) > 1)  # bins of several groups are kept apart by a blank
    runs = runs_of(counts.shape[1], max(1, width // wide))
    pooled = np.array([[line[a:b].sum() for a, b in runs] for line in counts])
    bin_width = width // len(runs) if runs else 0
    thick = max(1, (bin_width - (wide - len(groups))) // len(groups)) if bin_width else 0
    eighths = np.rint(pooled / pooled.max() * (lines - foot) * 8).astype(int)
    eighths[(pooled > 0) & (eighths == 0)] = 1
    parts = (_ASCII_BARS if ascii_only else _BARS)[:-1]
    signs = [parts + _fill(group, ascii_only=ascii_only) for group in range(len(groups))]
    rows: list[Row] = []
    for y in range(lines - foot):
        filled = (eighths - (lines - foot - 1 - y) * 8).clip(0, 8)
        row: Row = []
        for i in range(len(runs)):
            row += [Segment(signs[g][filled[g, i]] * thick, style) for g, (_, style, _) in enumerate(groups)]
            row.append(Segment(" " * (bin_width - thick * len(groups)), ""))
        rows.append([segment for segment in row if segment.text])
    return rows + [_bin_axis(edges, runs, width, ascii_only=ascii_only)] * foot


def _bin_axis(edges: list[float | str], runs: list[tuple[int, int]], width: int, *, ascii_only: bool) -> Row:
    """What the bins stand for: names under their bins, or round numbers along an axis, as they find room."""
    bin_width = width // len(runs)
    numbers = [edge for edge in edges if not isinstance(edge, str)]
    if numbers and len(numbers) > runs[-1][1]:
        places = np.linspace(0, len(runs) * bin_width, len(numbers))
        ticks = axis(numbers[0], numbers[-1], log=False).ticks(max(2, len(runs) * bin_width // 10))
        signs = [(round(float(np.interp(tick, numbers, places))), label) for tick, label in ticks]
    else:
        names = [printable(str(edges[a]), ascii_only=ascii_only) for a, _ in runs if a < len(edges)]
        room = max(bin_width - 1, 4)
        signs = [(i * bin_width, fit(name, room, ascii_only=ascii_only)) for i, name in enumerate(names)]
    text = ""
    for place, sign in signs:
        begin = min(max(0, place - len(sign) // 2), width - len(sign)) if numbers else place
        if begin >= cell_width(text) + bool(text):
            text += " " * (begin - cell_width(text)) + sign
    return [Segment(text, AXIS_STYLE)]
