"""What of a curve can be seen: values over steps become least and greatest coordinates per dot column.

`monitor.charts` calls it and draws what comes out. Nothing here knows cells, signs or colours.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from monitor.pyramid import Array, Steps
from monitor.scales import Axis, Floats, axis, coordinates
from monitor.series import Column, Points

# Outliers are cut off only when they squeeze the rest into less than a third of the height.
_CLIPPED_SHARE: Final = 0.02
_SQUEEZE: Final = 2.0
_FEWEST_TO_CLIP: Final = 50


class Curve(NamedTuple):
    """One line: a dense `column`, sparse `points`, or both.

    With smoothing on, a column is drawn as its moving mean, and if `raw` its range faintly behind it.
    """

    label: str
    style: str
    column: Column | None = None
    points: Points | None = None
    raw: bool = True


class View(NamedTuple):
    """What is looked at: steps `[start, stop)`, on a log axis or not, averaged over `smoothing` steps."""

    start: int
    stop: int
    log: bool
    smoothing: int

    def dots(self, steps: npt.ArrayLike, columns: int) -> Floats:
        """Dot columns of steps, fractional; the first visible step lies on 0, the last on `columns - 1`."""
        span = max(1, self.stop - 1 - self.start)
        return (np.asarray(steps, np.float64) - self.start) * ((columns - 1) / span)


class Layer(NamedTuple):
    """Least and greatest coordinate in every dot column, NaN where nothing is drawn."""

    lows: Floats
    highs: Floats
    style: str
    faint: bool = False


def layers_of(curves: Sequence[Curve], view: View, columns: int) -> list[Layer]:
    """Everything to draw, back to front."""
    if columns < 1 or view.stop <= view.start:
        return []
    layers = [layer for curve in curves for layer in _curve_layers(curve, view, columns)]
    return sorted(layers, key=lambda layer: not layer.faint)


def _curve_layers(curve: Curve, view: View, columns: int) -> Iterable[Layer]:
    if curve.column is not None and len(curve.column):
        if not view.smoothing:
            yield Layer(*_dense(curve.column, view, columns), curve.style)
        else:
            if curve.raw:
                yield Layer(*_dense(curve.column, view, columns), f"{curve.style} dim", faint=True)
            window = max(view.smoothing, (view.stop - view.start) // columns)
            steps, means = curve.column.smoothed(view.start, view.stop, columns, window, log=view.log)
            yield Layer(*_polyline(view, steps, means, columns), curve.style)
    if curve.points is not None and len(curve.points):
        first, last = np.searchsorted(curve.points.steps, (view.start, view.stop))
        around = slice(
            max(0, first - 1), last + 1
        )  # the line comes in from, and leaves to, points out of view
        line = _polyline(view, curve.points.steps[around], curve.points.values[around], columns)
        yield Layer(*line, curve.style)


def _dense(column: Column, view: View, columns: int) -> tuple[Floats, Floats]:
    if view.stop - view.start >= columns:
        lows, highs = column.envelope(view.start, view.stop, columns, log=view.log)
        return coordinates(lows, log=view.log), coordinates(highs, log=view.log)
    first, last = max(0, view.start), min(view.stop, len(column))
    return _polyline(view, np.arange(first, last), column.values[first:last], columns)


def _polyline(view: View, steps: Steps, values: Array, columns: int) -> tuple[Floats, Floats]:
    """The line through the points: its height in the middle of every dot column, and every point on it."""
    if not len(steps):
        return np.full(columns, np.nan), np.full(columns, np.nan)
    x, y = view.dots(steps, columns), coordinates(values, log=view.log)
    lows = np.interp(np.arange(columns), x, y, left=np.nan, right=np.nan)
    highs = lows.copy()
    nearest = np.rint(x).astype(np.int64)
    inside = (nearest >= 0) & (nearest < columns) & ~np.isnan(y)
    np.fmin.at(lows, nearest[inside], y[inside])
    np.fmax.at(highs, nearest[inside], y[inside])
    return lows, highs


def value_axis(
    layers: Iterable[Layer], *, clip: bool, log: bool, highest: float | None = None
) -> tuple[Axis | None, tuple[bool, bool]]:
    """The value axis, and whether something lies above and below it; no axis when there is nothing finite.

    `highest`: a coordinate that it does not go beyond, unless all lies there.
    """
    extents = [_extent(layer, clip=clip) for layer in layers if not np.isnan(layer.lows).all()]
    if not extents:
        return None, (False, False)
    low, high, least, greatest = np.array(extents).T
    top = float(high.max())
    if highest is not None and float(low.min()) < highest < top:
        top = highest
    scale = axis(float(low.min()), top, log=log)
    return scale, (bool(greatest.max() > scale.high), bool(least.min() < scale.low))


def _extent(layer: Layer, *, clip: bool) -> tuple[float, float, float, float]:
    """Lowest and highest coordinate worth showing, and the lowest and highest there are."""
    drawn = ~np.isnan(layer.lows)
    lows, highs = np.sort(layer.lows[drawn]), np.sort(layer.highs[drawn])
    least, greatest = float(lows[0]), float(highs[-1])
    if not clip or len(lows) < _FEWEST_TO_CLIP:
        return least, greatest, least, greatest
    spare = int(len(lows) * _CLIPPED_SHARE)
    low, high = float(lows[spare // 2]), float(highs[-1 - (spare + 1) // 2])
    reach = _SQUEEZE * (high - low)
    return (
        low if reach and low - least > reach else least,
        high if reach and greatest - high > reach else greatest,
        least,
        greatest,
    )


def non_finite_steps(curve: Curve, start: int, stop: int) -> Steps:
    """Steps in `[start, stop)` with a measured value that is NaN or infinite, in order."""
    found = [np.empty(0, np.int64) if curve.column is None else curve.column.non_finite(start, stop)]
    if curve.points is not None:
        steps = curve.points.steps[~np.isfinite(curve.points.values)]
        found.append(steps[(steps >= start) & (steps < stop)])
    return np.sort(np.concatenate(found)) if len(found) > 1 else found[0]


def measured(curve: Curve, start: int, stop: int) -> bool:
    """Whether any step in `[start, stop)` was reached, whatever was measured there."""
    seen = curve.column is not None and max(0, start) < min(stop, len(curve.column))
    if curve.points is None:
        return seen
    first, last = np.searchsorted(curve.points.steps, (start, stop))
    return seen or bool(first < last)
