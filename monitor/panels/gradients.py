"""What the layers' gradients, weights and updates do over time, as a map of colours.

A statistic with one number per variable or layer fills the map by itself; of one with several, each number is a map
of its own, such as `activations/dead`. A histogram by layer is a table of its newest samples, and what is told
of all gradients together is a curve per number.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from typing import Final

import numpy as np

from client_callback.wire.protocol import Float64, Int64
from monitor.charts import Row, Segment, draw_heatmap, draw_table, format_number, sparkline
from monitor.panels.panel import Panel
from monitor.series import Rows
from monitor.session import Session
from monitor.view import View

_LINEAR: Final = frozenset(
    {
        *("gradient_zero_share", "gradient_non_finite", "dead_units"),
        *("activations/zeros", "activations/saturated", "activations/mean", "activations/dead"),
    }
)
"""Statistics whose colours are not on a log scale."""
_HISTOGRAMS: Final = frozenset({"gradient_histogram"})
"""Statistics whose columns are the bins of one distribution per layer."""
_CURVES: Final = frozenset({"gradient_pair"})
"""Statistics of all gradients together, each number on a scale of its own."""
_BATCHES: Final = 10
"""Sampled steps that a histogram adds up."""
_SAMPLES_PER_CELL: Final = 4
"""Of more than that, every n-th is taken, so that a long run costs no more than a short one."""


def layer_statistics(session: Session) -> list[str]:
    """What can be shown of layers, in the order in which it was announced: `gradient_norm`, `activations/dead`."""
    names: list[str] = []
    for name, layout in session.layouts.items():
        if name in _HISTOGRAMS or name in _CURVES:
            names.append(name)
        elif layout.of in ("variables", "layers"):
            names += [f"{name}/{column}" for column in layout.columns] or [name]
    return names


def shown_statistic(session: Session, view: View) -> str | None:
    """The one in the map. `None`: none is sampled."""
    names = layer_statistics(session)
    if view.statistic in names:
        return view.statistic
    return "gradient_norm" if "gradient_norm" in names else (names[0] if names else None)


def next_statistic(session: Session, view: View) -> View:
    """Shows the next one."""
    names, shown = layer_statistics(session), shown_statistic(session, view)
    return replace(view, statistic=names[(names.index(shown) + 1) % len(names)]) if shown else view


class GradientsPanel(Panel):
    """One line per layer, one column per stretch of steps."""

    name_ = "gradients"
    title = "gradients by layer"
    short = "layers"
    zone = "middle"

    def stamp(self, session: Session, view: View) -> Hashable:
        """New rows count only while their place is in view."""
        name = shown_statistic(session, view)
        window = view.window(len(session.times))
        if name is None or (rows := _rows(session, name)) is None:
            return (name, window, session.missing)
        if name in _HISTOGRAMS or name in _CURVES:
            return (name, window, int(np.searchsorted(rows.steps, _until(session, view))))
        count = int(np.searchsorted(rows.steps, window[1]))
        return (name, window, count // self._stride(rows, window))

    def draw(self, session: Session, view: View, width: int, height: int) -> list[Row]:
        """The map with its scale and its steps, or why there is none."""
        name = shown_statistic(session, view)
        if name is None or (rows := _rows(session, name)) is None:
            return _nothing(session)
        if name in _HISTOGRAMS:
            until = _until(session, view)
            return _histogram_rows(
                session, name, until, width=width, height=height, ascii_only=view.ascii_only
            )
        if name in _CURVES:
            return _curve_rows(session, name, _until(session, view), width, view.ascii_only)
        window = view.window(len(session.times))
        steps, matrix = rows.between(*window)
        stride = self._stride(rows, window)
        if stride > 1:
            # By step and not by place, so that the same rows are taken while the run grows.
            due = int(np.median(np.diff(rows.steps[:100]))) or 1
            taken = steps // due % stride == 0
            steps, matrix = steps[taken], matrix[taken]
        labels, layers = by_layer(session, name, np.asarray(matrix, np.float64))
        labels, layers = _thick(labels, layers.T, height - 2)
        return draw_heatmap(
            labels,
            layers.T,
            steps,
            width=width,
            height=height,
            start=window[0],
            stop=window[1],
            log=name not in _LINEAR,
            ascii_only=view.ascii_only,
        )

    def heading(self, session: Session, view: View) -> str:
        """The statistic in words."""
        name = shown_statistic(session, view)
        if name in _CURVES:
            return _words(name)
        return f"{_words(name)} by layer" if name else self.title

    def _stride(self, rows: Rows, window: tuple[int, int]) -> int:
        first, last = np.searchsorted(rows.steps, window)
        return max(1, int(last - first) // (_SAMPLES_PER_CELL * max(1, self.content_size.width)))


def by_layer(session: Session, name: str, matrix: Float64) -> tuple[list[str], Float64]:
    """Labels `[L]` and values `[n, L]` of layers from values `[n, V]` of variables.

    Norms are joined as norms are (root of the sum of squares), counts added, extremes kept, shares and means
    averaged by the variables' sizes; a ratio is that of the largest variable, which a bias must not hide. With
    `NAME/COLUMN`, values are those of that column.
    """
    statistic, _, column = name.partition("/")
    layout = session.layouts.get(statistic)
    width = matrix.shape[1]
    if layout is None or layout.width != width:
        return [str(i) for i in range(width)], matrix
    if column:
        matrix = matrix[:, layout.columns.index(column) :: len(layout.columns)]
    paths = list(layout.labels)
    if layout.of == "layers":
        return _short(paths), matrix
    layers = [path.rpartition("/")[0] or path for path in paths]
    order = list(dict.fromkeys(layers))
    place = np.array([order.index(layer) for layer in layers], np.int64)
    return _short(order), _joined(name, matrix, place, len(order), _sizes(session, paths))


def _joined(name: str, matrix: Float64, place: Int64, count: int, sizes: Float64) -> Float64:
    joined = np.zeros((len(matrix), count))
    if name.endswith("_norm"):
        np.add.at(joined.T, place, (matrix**2).T)
        return np.asarray(np.sqrt(joined))
    if "ratio" in name:
        largest = [max(np.flatnonzero(place == i), key=lambda v: sizes[v]) for i in range(count)]
        return matrix[:, largest]
    if "max" in name:
        np.maximum.at(joined.T, place, matrix.T)
        return joined
    if "share" in name or "mean" in name:
        np.add.at(joined.T, place, (matrix * sizes).T)
        return joined / np.bincount(place, sizes, count)
    np.add.at(joined.T, place, matrix.T)
    return joined


def _sizes(session: Session, paths: list[str]) -> Float64:
    """Entries of each variable; 1 where the shape is not known."""
    known = (
        {v.path: float(np.prod(v.shape, dtype=np.float64)) for v in session.run.variables}
        if session.run
        else {}
    )
    return np.array([known.get(path, 1.0) or 1.0 for path in paths])


def _short(layers: list[str]) -> list[str]:
    """The last part of each path where that is enough to tell the layers apart."""
    ends = [layer.rpartition("/")[2] for layer in layers]
    return [end if ends.count(end) == 1 else layer for end, layer in zip(ends, layers, strict=True)]


def _rows(session: Session, name: str) -> Rows | None:
    return session.statistics.get(name.partition("/")[0])


def _words(name: str) -> str:
    return name.replace("_", " ").replace("/", ": ")


def _until(session: Session, view: View) -> int:
    """The step that the newest sample shown must lie before."""
    return view.cursor + 1 if view.cursor is not None else view.window(len(session.times))[1]


def _histogram_rows(
    session: Session, name: str, until: int, *, width: int, height: int, ascii_only: bool
) -> list[Row]:
    """A strip of colours per layer: the share of its entries in each bin, over the last sampled steps."""
    layout, rows = session.layouts[name], session.statistics[name]
    if layout.width != rows.width or not layout.columns:
        return _nothing(session)
    steps, matrix = rows.between(0, until)
    counts = np.asarray(matrix[-_BATCHES:], np.float64).sum(axis=0).reshape(len(layout.labels), -1)
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.full_like(counts, np.nan), where=totals > 0)
    span = steps[-_BATCHES:].tolist()
    said = f"log2 of |gradient|, steps {span[0]:,}–{span[-1]:,}" if span else "waiting for samples"
    labels, shares = _thick(_short(list(layout.labels)), shares, height - 2)
    table = draw_table(
        labels,
        layout.columns,
        shares,
        width=width,
        height=max(1, height - 1),
        numbers=False,
        ascii_only=ascii_only,
    )
    return [[Segment(said, "dim")], *table]


def _thick(labels: list[str], lines: Float64, height: int) -> tuple[list[str], Float64]:
    """Labels and values `[L, …]` repeated, so that thick lines fill the height where there is room."""
    thick = max(1, height // max(1, len(labels)))
    return [label for name in labels for label in (name, *[""] * (thick - 1))], np.repeat(
        lines, thick, axis=0
    )


def _curve_rows(session: Session, name: str, until: int, width: int, ascii_only: bool) -> list[Row]:
    """A line per number: its name, its newest value and a small curve of what led to it."""
    layout, rows = session.layouts[name], session.statistics[name]
    if layout.width != rows.width:
        return _nothing(session)
    _, matrix = rows.between(0, until)
    labels = (
        layout.labels if not layout.columns else [f"{a} {b}" for a in layout.labels for b in layout.columns]
    )
    longest = max(map(len, labels), default=0)
    found: list[Row] = []
    for label, values in zip(labels, np.asarray(matrix, np.float64).T, strict=True):
        newest = format_number(float(values[-1])) if len(values) else ""
        room = max(0, width - longest - 12)
        curve = sparkline(values[-4 * max(1, room) :], room, ascii_only)
        row = [Segment(f"{label.replace('_', ' '):<{longest}} ", "dim"), Segment(f"{newest:>10} ", "text")]
        found.append([*row, Segment(curve, "metric")])
    return found


def _nothing(session: Session) -> list[Row]:
    if session.run is not None and not session.run.statistics_every:
        return [[Segment("Not sampled in this run (statistics_every=0).", "dim")]]
    return [[Segment("No statistics of layers have arrived.", "dim")]]
