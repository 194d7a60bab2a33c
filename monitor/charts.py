"""Curves over training steps as rows of styled text: numbers in, text out.

Panels call `draw_curves` (and, through this module, the heatmap and the histogram) with what a session holds,
and turn the segments into strips. Nothing here keeps state, reads a clock, or knows Textual or Rich.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import numpy as np

from monitor.canvas import ASCII, BRAILLE, Canvas, Row, Segment, cell_width, connected, fit, pad, printable
from monitor.curves import Curve, Layer, View, layers_of, measured, non_finite_steps, value_axis
from monitor.grids import bar_sign, draw_heatmap, draw_histogram, small_curve, sparkline, stacked_bar
from monitor.scales import Axis, coordinates, format_number, format_step, step_ticks
from monitor.tables import draw_table

__all__ = [
    "Curve",
    "Mark",
    "Row",
    "Segment",
    "bar_sign",
    "draw_curves",
    "draw_heatmap",
    "draw_histogram",
    "draw_table",
    "format_number",
    "format_step",
    "small_curve",
    "sparkline",
    "stacked_bar",
]

NON_FINITE_STYLE: Final = "bold red"
NOTE_STYLE: Final = "dim italic"
CURSOR_STYLE: Final = "bold"
EPOCH_STYLE: Final = "dim"

_CELLS_PER_EPOCH: Final = 3
"""Where epochs are shorter than that, their lines would hide the curves and say nothing."""
_ASCII_GLYPHS: Final = {"▲": "^", "↶": "<", "↷": ">"}
"""Glyphs whose meaning is their direction."""

# What a legend tries, widest first: the longest label, and whether values are shown.
_LEGENDS: Final = ((60, True), (20, True), (12, True), (8, True), (12, False), (5, False), (2, False))


class Mark(NamedTuple):
    """A vertical line at a step, with a one-cell glyph at its top."""

    step: int
    glyph: str
    style: str


class _Signs(NamedTuple):
    """The characters beside the dots."""

    corner: str
    floor: str
    floor_tick: str
    wall: str
    wall_tick: str
    line: str
    dotted: str
    dashed: str
    point: str
    non_finite: str
    glyph: str
    up: str
    down: str
    none: str
    ellipsis: str


_UNICODE: Final = _Signs("└", "─", "┬", "│", "┤", "━", "┊", "╎", "●", "✗", "▼", "↑", "↓", "–", "…")
_ASCII: Final = _Signs("+", "-", "+", "|", "+", "-", ":", "!", "o", "x", "v", "^", "v", "-", "...")


def draw_curves(
    curves: Sequence[Curve],
    *,
    width: int,
    height: int,
    start: int,
    stop: int,
    log: bool = False,
    smoothing: int = 0,
    bands: Iterable[tuple[int, int, str]] = (),
    marks: Iterable[Mark] = (),
    epochs: Sequence[int] = (),
    ascii_only: bool = False,
    cursor: int | None = None,
    clip_outliers: bool = True,
    highest: float | None = None,
    axis_style: str = "dim",
    ticks: Sequence[tuple[int, str]] | None = None,
) -> list[Row]:
    """Curves over the steps `[start, stop)`: exactly `height` rows of exactly `width` cells.

    Args:
        curves: What to draw; later ones lie over earlier ones.
        width: Cells across, everything included.
        height: Cells down, everything included; axes and legend make way when there is little.
        start: First step shown.
        stop: First step no longer shown.
        log: Log value axis; values not above zero are left out.
        smoothing: Steps of the moving mean, at least those under one dot; 0 or 1 for none.
        bands: Step ranges `(start, stop, style)` that get a background.
        marks: Vertical lines with a glyph.
        epochs: First steps of epochs, drawn as faint dotted lines unless they are dense.
        ascii_only: Printable ASCII instead of braille and box drawing.
        cursor: A step to point at; the legend then shows the values there and not the last ones.
        clip_outliers: Let the few values that squeeze all others run out of the picture; the legend says so.
        highest: The value that the axis does not go beyond; what lies there runs along the top. Linear axes only.
        axis_style: Style of axes, ticks and their labels.
        ticks: What is written at which steps, for an axis that counts something else; by default, round steps.

    Returns:
        Rows of segments. Styles that meet in a cell are joined by a space: a curve's first, then a band's.
    """
    width, height = max(0, width), max(0, height)
    view = View(start, stop, log, smoothing if smoothing > 1 else 0)
    signs = _ASCII if ascii_only else _UNICODE
    roomy = width >= 16
    head, foot = int(height >= 3), (height >= 5) + (height >= 8) if roomy else 0
    lines = max(0, height - head - foot)

    raster = ASCII if ascii_only else BRAILLE
    gutter = min(6, width // 8) + 1 if roomy else 0  # the same for most charts, so that they line up
    layers = layers_of(curves, view, (width - gutter) * raster.across)
    scale, cut = value_axis(layers, clip=clip_outliers, log=log, highest=highest)
    labels = _row_labels(scale, lines, raster.down) if roomy and scale else {}
    longest = max(map(len, labels.values()), default=0)
    if longest > width // 3:
        labels = {}
    elif longest >= gutter and labels:
        gutter = longest + 1
        layers = layers_of(curves, view, (width - gutter) * raster.across)

    canvas = Canvas(width - gutter, lines, raster)
    _draw_layers(canvas, layers, view, scale)
    _draw_verticals(canvas, view, signs, cursor=cursor, marks=marks, epochs=epochs)
    _draw_bands(canvas, view, bands)
    _draw_points(canvas, curves, view, scale, signs)
    _draw_non_finite(canvas, curves, view, signs)
    if scale is None:
        canvas.write(lines // 2, _why_empty(curves, view, signs), axis_style)

    rows: list[Row] = []
    if head:
        rows.append(_legend(curves, view, signs, width=width, cut=cut, cursor=cursor))
    for y, row in enumerate(canvas.rows()):
        wall = signs.wall_tick if y in labels else signs.wall
        edge = [Segment(labels.get(y, "").rjust(gutter - 1) + wall, axis_style)] if gutter else []
        rows.append([*edge, *row])
    if foot:
        ticks = step_ticks(max(0, start), stop, (width - gutter) // 10) if ticks is None else ticks
        rows += _floor(view, width, gutter, signs, style=axis_style, ticks=ticks)[2 - foot :]
    return rows


def _draw_layers(canvas: Canvas, layers: Iterable[Layer], view: View, scale: Axis | None) -> None:
    if scale is None:
        return
    bottom = canvas.dots_down - 1
    for layer in layers:
        highs, lows = scale.heights(layer.highs), scale.heights(layer.lows)
        tops, bottoms = connected((1 - highs) * bottom, (1 - lows) * bottom)
        canvas.spans(tops, bottoms, layer.style, over=bool(view.smoothing) and not layer.faint)


def _draw_verticals(
    canvas: Canvas,
    view: View,
    signs: _Signs,
    *,
    cursor: int | None,
    marks: Iterable[Mark],
    epochs: Sequence[int],
) -> None:
    """Lines behind the curves; of two in one column the one drawn first stays."""
    if cursor is not None and view.start <= cursor < view.stop:
        canvas.rule(_cell(canvas, view, cursor), signs.wall, CURSOR_STYLE)
    for mark in marks:
        if view.start <= mark.step < view.stop:
            column = _cell(canvas, view, mark.step)
            canvas.rule(column, signs.dashed, mark.style)
            glyph = _ASCII_GLYPHS.get(mark.glyph, mark.glyph) if signs is _ASCII else mark.glyph
            usable = glyph.isascii() or signs is _UNICODE
            usable = usable and len(glyph) == len(printable(glyph)) == cell_width(glyph) == 1
            canvas.put(0, column, glyph if usable else signs.glyph, mark.style)
    visible = epochs[bisect.bisect_right(epochs, view.start) : bisect.bisect_left(epochs, view.stop)]
    if len(visible) * _CELLS_PER_EPOCH <= canvas.width:
        for step in visible:
            canvas.rule(_cell(canvas, view, step), signs.dotted, EPOCH_STYLE)


def _draw_bands(canvas: Canvas, view: View, bands: Iterable[tuple[int, int, str]]) -> None:
    for first, last, style in bands:
        if first < last and view.start < last and first < view.stop:
            shown = max(first, view.start), min(last, view.stop) - 1
            left, right = np.rint(view.dots(shown, canvas.width)).astype(int).tolist()
            canvas.shade(left, right, style)


def _why_empty(curves: Sequence[Curve], view: View, signs: _Signs) -> str:
    if not any(measured(curve, view.start, view.stop) for curve in curves):
        return f"waiting for steps{signs.ellipsis}"
    return "nothing finite above zero here" if view.log else "no finite values here"


def _draw_points(
    canvas: Canvas, curves: Sequence[Curve], view: View, scale: Axis | None, signs: _Signs
) -> None:
    for curve in curves:
        if curve.points is None or scale is None:
            continue
        first, last = np.searchsorted(curve.points.steps, (view.start, view.stop))
        places = coordinates(curve.points.values[first:last], log=view.log)
        if last - first > canvas.width // 3:
            continue
        dots = np.rint((1 - scale.heights(places)) * (canvas.dots_down - 1))
        for step, dot in zip(curve.points.steps[first:last].tolist(), dots.tolist(), strict=True):
            if not math.isnan(dot):
                canvas.put(
                    int(dot) // canvas.raster.down, _cell(canvas, view, step), signs.point, curve.style
                )


def _draw_non_finite(canvas: Canvas, curves: Sequence[Curve], view: View, signs: _Signs) -> None:
    """A cross on top of every column of cells with a measured value that is not finite."""
    span = max(1, view.stop - 1 - view.start)
    dots = np.arange(canvas.width + 1) * canvas.raster.across - 0.5
    edges = view.start + np.ceil(dots * (span / max(1, canvas.dots_across - 1)))
    for curve in curves:
        found = np.diff(np.searchsorted(non_finite_steps(curve, view.start, view.stop), edges))
        for column in np.flatnonzero(found).tolist():
            canvas.put(0, column, signs.non_finite, NON_FINITE_STYLE)


def _cell(canvas: Canvas, view: View, step: int) -> int:
    return round(float(view.dots(step, canvas.dots_across))) // canvas.raster.across


def _row_labels(scale: Axis, lines: int, down: int) -> dict[int, str]:
    """Tick labels by row of the canvas."""
    last = lines * down - 1
    labels: dict[int, str] = {}
    for count in range(max(2, lines // 4), max(2, lines // 2) + 1 if lines > 1 else 0):
        labels = {}
        for position, label in scale.ticks(count):
            height = (position - scale.low) / (scale.high - scale.low)
            labels.setdefault(round((1 - height) * last) // down, label)
        if len(labels) > 1:
            break
    return {row: label for row, label in labels.items() if 0 <= row < lines}


def _floor(
    view: View, width: int, gutter: int, signs: _Signs, *, style: str, ticks: Sequence[tuple[int, str]]
) -> list[Row]:
    """The step axis: its line, then its labels."""
    columns = width - gutter
    line, text = [signs.floor] * columns, [" "] * width
    free = 0
    for step, label in ticks:
        column = round(float(view.dots(step, columns)))
        begin = min(max(gutter + column - len(label) // 2, 0), width - len(label))
        if begin < free or not 0 <= column < columns:
            continue
        line[column] = signs.floor_tick
        text[begin : begin + len(label)] = label
        free = begin + len(label) + 1
    return [
        [Segment(" " * (gutter - 1) + signs.corner + "".join(line), style)],
        [Segment("".join(text), style)],
    ]


def _legend(
    curves: Sequence[Curve],
    view: View,
    signs: _Signs,
    *,
    width: int,
    cut: tuple[bool, bool],
    cursor: int | None,
) -> Row:
    """Swatch, label and value of every curve at the left, what else one must know at the right."""
    at = [Segment(f"step {cursor:,}  ", CURSOR_STYLE)] if cursor is not None else []
    values = [_readout(curve, view, cursor, signs) for curve in curves]
    arrows = (signs.up if cut[0] else "") + (signs.down if cut[1] else "")
    notes = [f"mean of {view.smoothing:,}"] if view.smoothing else []
    notes += ["log"] if view.log else []
    notes += [f"{arrows}clipped"] if arrows else []
    row: Row = []
    for longest, valued in _LEGENDS:
        row = list(at)
        for curve, value in zip(curves, values, strict=True):
            row += _entry(curve, value if valued else "", longest, signs)
        if _length(row) + (len(notes[-1]) + 1 if arrows else 0) <= width:
            break
    while len(notes) > bool(arrows) and _length(row) + len(" ".join(notes)) + 2 > width:
        notes.pop(0)
    note = Segment(" ".join(notes), NOTE_STYLE)
    return [*pad(row, max(0, width - len(note.text))), *pad([note], min(width, len(note.text)))]


def _entry(curve: Curve, value: str, longest: int, signs: _Signs) -> Row:
    ascii_only = signs is _ASCII
    label = fit(printable(curve.label, ascii_only=ascii_only), longest, ascii_only=ascii_only)
    swatch = signs.line + (signs.line if curve.points is None else signs.point)
    return [Segment(swatch, curve.style), Segment(f" {label} {value}".rstrip() + "  ", "")]


def _readout(curve: Curve, view: View, cursor: int | None, signs: _Signs) -> str:
    """The value at the cursor, or else the last one in view; of points, the latest up to there."""
    column, points = curve.column, curve.points
    if column is not None and len(column):
        step = min(view.stop, len(column)) - 1 if cursor is None else cursor
        if max(0, view.start) <= step < len(column) and not any(a <= step < b for a, b in column.missing):
            return format_number(float(column.values[step])).ljust(6)
    if points is not None and len(points):
        last = int(np.searchsorted(points.steps, view.stop if cursor is None else cursor + 1)) - 1
        if last >= 0:
            return format_number(float(points.values[last])).ljust(6)
    return signs.none


def _length(row: Row) -> int:
    """Cells up to the last sign."""
    return cell_width("".join(text for text, _ in row).rstrip())
