"""Labelled tables of numbers as grids of colours: confusion matrices, distributions by layer.

Reached through `monitor.charts`; the colours are those of the heat maps in `monitor.grids`. Numbers in, text out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from monitor.canvas import Row, Segment, cell_width, fit, pad, printable
from monitor.grids import AXIS_STYLE, BLANK, BROKEN, COLOURS, LEVELS, runs_of, shaded_cells
from monitor.scales import Floats, format_number

_WIDEST_CELL: Final = 7


def draw_table(
    labels: Sequence[str],
    columns: Sequence[str],
    matrix: npt.ArrayLike,
    *,
    width: int,
    height: int,
    shades: npt.ArrayLike | None = None,
    numbers: bool = True,
    ascii_only: bool = False,
) -> list[Row]:
    """One line per label and one column per number, value as colour: at most `height` rows of `width` cells.

    Args:
        labels: `[R]`, at the left; where there are too few lines, neighbours share one (maximum).
        columns: `[C]`, on top as far as they fit; neighbours share a cell as labels share a line.
        matrix: `[R, C]`. NaN is blank, infinity is `!`.
        width: Cells across, labels included.
        height: Lines, the columns' names included.
        shades: `[R, C]`: what the colours show, from 0 to 1. `None`: the matrix, from its least to its greatest.
        numbers: Whether the numbers stand in their cells, where there is room for all of them.
        ascii_only: A ramp of signs instead of colours.
    """
    values = np.asarray(matrix, np.float64)
    head = int(height >= 2)
    lines = runs_of(len(labels), max(0, height - head))
    names = [printable(label, ascii_only=ascii_only) for label in labels]
    names = [f"{names[a]} +{b - a - 1}" if b - a > 1 else names[a] for a, b in lines]
    margin = min(max(map(cell_width, names), default=0) + 1, max(1, width // 3))
    room = max(0, width - margin)
    texts = [
        ["" if math.isnan(value) else format_number(value, 3) for value in row] for row in values.tolist()
    ]
    widest = 1 + max((len(text) for row in texts for text in row), default=0)
    numbers = numbers and len(lines) == len(labels) and widest * len(columns) <= room
    parts = runs_of(len(columns), room // widest if numbers else room)
    cell = min(_WIDEST_CELL, room // len(parts)) if parts else 0
    levels = _levels(
        values if shades is None else np.asarray(shades, np.float64), values, scaled=shades is None
    )

    rows: list[Row] = [_heads(columns, parts, margin, cell, width, ascii_only=ascii_only)] if head else []
    for name, (a, b) in zip(names, lines, strict=True):
        row = pad([Segment(fit(name, max(0, margin - 1), ascii_only=ascii_only), "")], margin)
        for first, last in parts:
            text = texts[a][first].rjust(cell - 1).ljust(cell) if numbers else ""
            row.append(_cell(_brightest(levels[a:b, first:last]), text, cell, ascii_only=ascii_only))
        rows.append(pad(row, width))
    return rows


def _levels(shades: Floats, values: Floats, *, scaled: bool) -> npt.NDArray[np.int64]:
    """Levels of colour, `BLANK` or `BROKEN` among them, `[R, C]`."""
    known = np.where(np.isfinite(shades), shades, np.nan)
    finite = known[~np.isnan(known)]
    low, high = (finite.min(), finite.max()) if scaled and len(finite) else (0.0, 1.0)
    share = np.nan_to_num((known - low) / ((high - low) or 1.0)).clip(0.0, 1.0)
    levels = (share * (LEVELS - 1)).round().astype(np.int64)
    levels[np.isnan(known)] = BLANK
    levels[np.isinf(values)] = BROKEN
    return levels


def _brightest(levels: npt.NDArray[np.int64]) -> int:
    return BROKEN if (levels == BROKEN).any() else int(levels.max(initial=BLANK))


def _cell(level: int, text: str, width: int, *, ascii_only: bool) -> Segment:
    """A cell with its number on its colour, in letters that can be read there."""
    if level < 0 or not text.strip():
        return shaded_cells(level, width, ascii_only=ascii_only)
    if ascii_only:
        return Segment(text, "")
    return Segment(text, f"{'#000000' if level > LEVELS // 2 else '#ffffff'} {COLOURS[level]}")


def _heads(
    columns: Sequence[str],
    parts: Sequence[tuple[int, int]],
    margin: int,
    cell: int,
    width: int,
    *,
    ascii_only: bool,
) -> Row:
    """The columns' names, each over its cell where it fits; those that would run into another are left out."""
    text, free = [" "] * width, 0
    for i, (first, _) in enumerate(parts):
        name = printable(columns[first], ascii_only=ascii_only)
        begin = margin + i * cell + max(0, (cell - cell_width(name)) // 2)
        if begin >= free and begin + len(name) <= width and name:
            text[begin : begin + len(name)] = name
            free = begin + len(name) + 1
    return pad([Segment("".join(text), AXIS_STYLE)], width)
