"""What the layers' gradients, weights and updates do over time, as a map of colours."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from typing import Final

import numpy as np

from client_callback.wire.protocol import Float64, Int64
from monitor.charts import Row, Segment, draw_heatmap
from monitor.panels.panel import Panel
from monitor.series import Rows
from monitor.session import Session
from monitor.view import View

_LINEAR: Final = frozenset({"gradient_zero_share", "gradient_non_finite"})
"""Statistics whose colours are not on a log scale."""
_SAMPLES_PER_CELL: Final = 4
"""Of more than that, every n-th is taken, so that a long run costs no more than a short one."""


def layer_statistics(session: Session) -> list[str]:
    """The statistics that have one value per variable, in the order in which they were announced."""
    return [name for name, layout in session.layouts.items() if layout.of == "variables"]


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
        if name is None or (rows := session.statistics.get(name)) is None:
            return (name, window, session.missing)
        count = int(np.searchsorted(rows.steps, window[1]))
        return (name, window, count // self._stride(rows, window))

    def draw(self, session: Session, view: View, width: int, height: int) -> list[Row]:
        """The map with its scale and its steps, or why there is none."""
        name = shown_statistic(session, view)
        if name is None or (rows := session.statistics.get(name)) is None:
            return _nothing(session)
        window = view.window(len(session.times))
        steps, matrix = rows.between(*window)
        stride = self._stride(rows, window)
        if stride > 1:
            # By step and not by place, so that the same rows are taken while the run grows.
            due = int(np.median(np.diff(rows.steps[:100]))) or 1
            taken = steps // due % stride == 0
            steps, matrix = steps[taken], matrix[taken]
        labels, layers = by_layer(session, name, np.asarray(matrix, np.float64))
        # Thick lines where there is room; two lines are for the scale and the steps.
        thick = max(1, (height - 2) // max(1, len(labels)))
        labels = [label for name in labels for label in (name, *[""] * (thick - 1))]
        layers = np.repeat(layers, thick, axis=1)
        return draw_heatmap(
            labels,
            layers,
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
        return f"{name.replace('_', ' ')} by layer" if name else self.title

    def _stride(self, rows: Rows, window: tuple[int, int]) -> int:
        first, last = np.searchsorted(rows.steps, window)
        return max(1, int(last - first) // (_SAMPLES_PER_CELL * max(1, self.content_size.width)))


def by_layer(session: Session, name: str, matrix: Float64) -> tuple[list[str], Float64]:
    """Labels `[L]` and values `[n, L]` of layers from values `[n, V]` of variables.

    Norms are joined as norms are (root of the sum of squares), counts added, extremes kept, shares and means
    averaged by the variables' sizes.
    """
    layout = session.layouts.get(name)
    width = matrix.shape[1]
    paths = list(layout.labels) if layout and len(layout.labels) == width else [str(i) for i in range(width)]
    layers = [path.rpartition("/")[0] or path for path in paths]
    order = list(dict.fromkeys(layers))
    place = np.array([order.index(layer) for layer in layers], np.int64)
    return _short(order), _joined(name, matrix, place, len(order), _sizes(session, paths))


def _joined(name: str, matrix: Float64, place: Int64, count: int, sizes: Float64) -> Float64:
    joined = np.zeros((len(matrix), count))
    if name.endswith("_norm"):
        np.add.at(joined.T, place, (matrix**2).T)
        return np.asarray(np.sqrt(joined))
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


def _nothing(session: Session) -> list[Row]:
    if session.run is not None and not session.run.statistics_every:
        return [[Segment("Not sampled in this run (statistics_every=0).", "dim")]]
    return [[Segment("No statistics of layers have arrived.", "dim")]]
