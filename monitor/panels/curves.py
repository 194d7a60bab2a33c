"""The curves: the loss, and a metric beside it, over steps.

Drawn by `monitor.charts`; here it is decided what goes into a chart, and what the mouse on it asks for.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from typing import ClassVar, Final

import numpy as np
from textual import events

from client_callback.wire import commands as c
from client_callback.wire.protocol import Reply
from monitor.charts import Curve, Mark, Row, draw_curves
from monitor.messages import CursorMoved, Panned, Zoomed
from monitor.panels.panel import Panel
from monitor.session import Session
from monitor.view import View

ZOOM_FACTOR: Final = 0.8
"""Of one notch of the mouse wheel."""

DECADES: Final = 30.0
"""How far the highest value lies above the usual one where a linear axis hides the usual one."""
_PARTS: Final = 64

_LOWERED: Final = "▼"
_RAISED: Final = "▲"
"""In place of the sign of `lr`, where the rate rose."""
_BACK: Final = "↶"
_SIGNS: Final[dict[type[object], str]] = {
    **dict.fromkeys((c.SetRate, c.ScaleRate), _LOWERED),
    **dict.fromkeys((c.SwitchOptimizer, c.SetSchedule), "◆"),
    **dict.fromkeys((c.SetHyperparameters, c.Accumulate, c.Freeze, c.Unfreeze, c.Reinitialise), "◇"),
    **dict.fromkeys((c.SetClassWeight, c.SetLossWeight), "◇"),
    **dict.fromkeys((c.Undo, c.Rollback), _BACK),
    **{c.Redo: "↷", c.Pause: "‖", c.Stop: "■", c.Note: "•", c.UserAction: "•"},
}
"""Kind of command → its sign on the curves; one that is not here leaves no mark."""
_NO_METRICS: Final = ("loss", "learning_rate")


def metric_names(session: Session) -> list[str]:
    """What can be drawn beside the loss: metrics, then those that only validation has, then gradient norms."""
    dense = [name for name in session.metric_series() if name not in _NO_METRICS]
    validated = [name.removeprefix("val_") for name in session.validation]
    names = dict.fromkeys([n for n in dense if n != "grad_norm"] + [n for n in validated if n != "loss"])
    return [*names, *(n for n in dense if n == "grad_norm")]


def shown_metric(session: Session, view: View) -> str | None:
    """The one beside the loss. `None`: there is none."""
    names = metric_names(session)
    return view.metric if view.metric in names else (names[0] if names else None)


def next_metric(session: Session, view: View, *, with_loss: bool) -> View:
    """Shows the next metric; `with_loss` makes the loss one of them, after the last."""
    names, shown = metric_names(session), shown_metric(session, view)
    if shown is None:
        return view
    if with_loss and view.chart == "loss":
        return replace(view, chart="metric", metric=names[0])
    if with_loss and shown == names[-1]:
        return replace(view, chart="loss")
    return replace(view, metric=names[(names.index(shown) + 1) % len(names)])


def log_axis(session: Session, view: View, name: str) -> bool:
    """Whether a series has a logarithmic axis: as asked, or because a linear one would show its peaks alone."""
    if name in view.log or name in view.linear:
        return name in view.log
    column = session.series.get(name)
    if column is None or not len(column):
        return False
    lows, highs = column.envelope(*view.window(len(session.times)), _PARTS)
    usual = np.nanmedian(highs) if np.isfinite(highs).any() else np.nan
    return bool(np.nanmin(lows, initial=np.inf) > 0 and np.nanmax(highs, initial=0.0) > DECADES * usual)


def marks(session: Session) -> list[Mark]:
    """A vertical line for every intervention; of two at a step, the later one's sign."""
    return [mark for reply in session.replies if (mark := _mark(session, reply))]


class ChartPanel(Panel):
    """Curves over the steps in view."""

    smooths: ClassVar[bool] = True
    """Whether smoothing and the shading of plateaus concern it."""

    def series_name(self, session: Session, view: View) -> str | None:
        """Whose axis is toggled between linear and logarithmic, and whose running mean is marked as such."""
        raise NotImplementedError

    def curves(self, session: Session, view: View) -> list[Curve]:
        """What is drawn, back to front."""
        raise NotImplementedError

    def stamp(self, session: Session, view: View) -> Hashable:
        """New steps count only while their place is in view."""
        start, stop = view.window(len(session.times))
        curves = self.curves(session, view)
        steps = tuple(min(stop, len(curve.column)) if curve.column is not None else 0 for curve in curves)
        points = tuple(len(curve.points) if curve.points is not None else 0 for curve in curves)
        bands = tuple((f.start, f.stop, f.severity) for f in view.findings if f.shaded)
        what = (self.series_name(session, view), self._log(session, view), view.smoothing, view.cursor)
        return (
            start,
            stop,
            what,
            steps,
            points,
            bands,
            len(session.replies),
            len(session.trials),
            len(session.epochs),
        )

    def draw(self, session: Session, view: View, width: int, height: int) -> list[Row]:
        """Axes, curves, shaded plateaus, marks, legend."""
        start, stop = view.window(len(session.times))
        return draw_curves(
            self.curves(session, view),
            width=width,
            height=height,
            start=start,
            stop=stop,
            log=self._log(session, view),
            smoothing=view.smoothing if self.smooths else 0,
            bands=[
                (f.start, f.stop, "over" if f.severity == "note" else "band")
                for f in view.findings
                if f.shaded and self.smooths
            ],
            marks=marks(session),
            epochs=[first for _, first in session.epochs if first > 0],
            ascii_only=view.ascii_only,
            cursor=view.cursor,
        )

    def heading(self, session: Session, view: View) -> str:
        """The series, and whether Keras' running mean is all there is of it."""
        name = self.series_name(session, view)
        running = name is not None and session.series_kinds.get(name) == "running"
        return f"{name or self.title}{' (running mean)' if running else ''}"

    def on_mouse_move(self, event: events.MouseMove) -> None:
        """Reads out values under the pointer; drags with a button held."""
        offset = event.get_content_offset(self)
        if event.button and event.delta_x:
            self.post_message(Panned(-round(event.delta_x * self._steps_per_cell())))
        elif not event.button:
            self.post_message(CursorMoved(self._step_at(offset.x) if offset else None))

    def on_mouse_down(self, event: events.MouseDown) -> None:
        """Begins to drag."""
        self.capture_mouse()

    def on_mouse_up(self, event: events.MouseUp) -> None:
        """Ends dragging."""
        self.release_mouse()

    def on_leave(self, event: events.Leave) -> None:
        """Reads out the newest values again."""
        self.post_message(CursorMoved(None))

    def wheeled(self, up: bool, event: events.MouseEvent) -> None:
        """Zooms where the pointer is."""
        offset = event.get_content_offset(self)
        step = self._step_at(offset.x) if offset else None
        if step is not None:
            self.post_message(Zoomed(ZOOM_FACTOR if up else 1 / ZOOM_FACTOR, step))

    def _log(self, session: Session, view: View) -> bool:
        name = self.series_name(session, view)
        return name is not None and log_axis(session, view, name)

    def _step_at(self, x: int) -> int | None:
        """The step drawn in that column of cells. `None`: beside the plot, or not there yet."""
        if self._shown is None:
            return None
        session, view = self._shown
        start, _ = view.window(len(session.times))
        column = x - self._gutter()
        step = start + round((column + 0.5) * self._steps_per_cell())
        return step if column >= 0 and step < len(session.times) else None

    def _steps_per_cell(self) -> float:
        if self._shown is None:
            return 0.0
        session, view = self._shown
        start, stop = view.window(len(session.times))
        return (stop - start) / max(1, self.content_size.width - self._gutter())

    def _gutter(self) -> int:
        """Cells that the value axis takes: the first segment of a row below the legend."""
        segments = list(self._strips[1]) if len(self._strips) > 1 else []
        return segments[0].cell_length if segments else 0


class LossPanel(ChartPanel):
    """The loss of each step and its validation."""

    name_ = "loss"
    title = "loss"
    zone = "charts"

    def series_name(self, session: Session, view: View) -> str | None:
        """Always the loss."""
        return "loss"

    def curves(self, session: Session, view: View) -> list[Curve]:
        """Training under validation."""
        return train_and_validation(session, view, "loss", "loss")


class MetricPanel(ChartPanel):
    """One metric of each step and its validation."""

    name_ = "metric"
    title = "metrics"
    zone = "charts"

    def series_name(self, session: Session, view: View) -> str | None:
        """The metric that `m` has come to."""
        return shown_metric(session, view)

    def curves(self, session: Session, view: View) -> list[Curve]:
        """Training under validation."""
        name = self.series_name(session, view)
        return train_and_validation(session, view, name, "metric") if name else []


def train_and_validation(session: Session, view: View, name: str, style: str) -> list[Curve]:
    """The curves of one series. Where no border says its name, the legend does."""
    train, validation = (name, f"val_{name}") if view.compact else ("train", "validation")
    curves = []
    if (column := session.series.get(name)) is not None:
        curves.append(Curve(train, style, column=column))
    if (points := session.validation.get(f"val_{name}")) is not None:
        curves.append(Curve(validation, "val", points=points))
    return curves


def _mark(session: Session, reply: Reply) -> Mark | None:
    if reply.status != "applied":
        return None
    order = session.order(reply)
    sign = _SIGNS.get(type(order.instruction)) if order else None
    if order is None and reply.timer is not None:
        sign = _BACK  # a timer has set something back
    if sign == _LOWERED and _raised(reply):
        sign = _RAISED
    return Mark(reply.step, sign, "cursor") if sign else None


def _raised(reply: Reply) -> bool:
    before, after = reply.before.get("learning_rate"), reply.after.get("learning_rate")
    return isinstance(before, int | float) and isinstance(after, int | float) and after > before
