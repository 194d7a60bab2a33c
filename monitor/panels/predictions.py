"""How predictions, targets and inputs are distributed, over the last sampled batches in view."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from typing import Final, NamedTuple

import numpy as np

from client_callback.wire.protocol import Float64
from monitor.charts import Row, Segment, draw_histogram, format_number
from monitor.panels.panel import Panel
from monitor.session import Session
from monitor.view import View

_BATCHES: Final = 10
"""Sampled batches that are added up: one alone says little about rare classes."""

Group = tuple[str, str, Float64]
"""Label, style, counts `[n]`."""


class Distribution(NamedTuple):
    """One picture this panel can show."""

    name: str
    parts: tuple[tuple[str, str, str], ...]
    """(statistic, label, style) of what stands side by side."""
    moving: bool = False
    """Whether the bins span the range in `<statistic>_range` of the same step."""


DISTRIBUTIONS: Final = (
    Distribution("classes", (("target_counts", "true", "val"), ("predicted_counts", "predicted", "loss"))),
    Distribution("confidence", (("confidence_0", "true 0", "val"), ("confidence_1", "true 1", "loss"))),
    Distribution("confidence", (("confidence", "confidence", "loss"),)),
    Distribution("values", (("targets", "true", "val"), ("predictions", "predicted", "loss")), moving=True),
    Distribution("residuals", (("residuals", "true − predicted", "other"),), moving=True),
)
INPUTS: Final = "inputs"


def distribution_names(session: Session) -> list[str]:
    """What this run can show."""
    found = [d.name for d in DISTRIBUTIONS if any(part[0] in session.statistics for part in d.parts)]
    return [*dict.fromkeys(found), *([INPUTS] if _inputs(session) else [])]


def shown_distribution(session: Session, view: View) -> str | None:
    """The one in the panel. `None`: nothing of the kind is sampled."""
    names = distribution_names(session)
    return view.distribution if view.distribution in names else (names[0] if names else None)


def next_distribution(session: Session, view: View) -> View:
    """Shows the next one."""
    names, shown = distribution_names(session), shown_distribution(session, view)
    return replace(view, distribution=names[(names.index(shown) + 1) % len(names)]) if shown else view


class PredictionsPanel(Panel):
    """One distribution at a time; `d` shows the next."""

    name_ = "predictions"
    title = "predictions"
    zone = "lower"

    def stamp(self, session: Session, view: View) -> Hashable:
        """A new sampled batch up to the last step in view."""
        name = shown_distribution(session, view)
        until = _until(session, view)
        counts = {
            statistic: int(np.searchsorted(rows.steps, until))
            for statistic, rows in session.statistics.items()
        }
        return (name, tuple(counts[part] for part in _parts(session, name)))

    def draw(self, session: Session, view: View, width: int, height: int) -> list[Row]:
        """Bars, or a table of the inputs."""
        name = shown_distribution(session, view)
        if name is None:
            return [[Segment("No predictions have been sampled.", "dim")]]
        until = _until(session, view)
        if name == INPUTS:
            return _input_rows(session, until)
        distribution = _distribution(session, name)
        groups, edges = (_moving if distribution.moving else _fixed)(session, distribution, until)
        return draw_histogram(groups, edges, width=width, height=height, ascii_only=view.ascii_only)

    def heading(self, session: Session, view: View) -> str:
        """What is shown, and of which steps."""
        name = shown_distribution(session, view)
        parts = _parts(session, name)
        if name is None or not parts:
            return self.title
        steps = _last(session, parts[0], _until(session, view))[0]
        if name == INPUTS and steps:
            return f"{name} · step {steps[-1]:,}"
        span = f" · steps {steps[0]:,}–{steps[-1]:,}" if steps else ""
        return f"{self.title if name == 'classes' else name}{span}"


def _until(session: Session, view: View) -> int:
    """The step that the newest sampled batch shown must lie before."""
    return view.cursor + 1 if view.cursor is not None else view.window(len(session.times))[1]


def _distribution(session: Session, name: str) -> Distribution:
    return next(
        d for d in DISTRIBUTIONS if d.name == name and any(part[0] in session.statistics for part in d.parts)
    )


def _parts(session: Session, name: str | None) -> list[str]:
    if name is None:
        return []
    if name == INPUTS:
        return _inputs(session)
    return [part[0] for part in _distribution(session, name).parts if part[0] in session.statistics]


def _inputs(session: Session) -> list[str]:
    """The statistics on the model's inputs: `input`, or one per input."""
    return [name for name in session.statistics if name.startswith("input") and name in session.layouts]


def _last(session: Session, statistic: str, until: int) -> tuple[list[int], Float64]:
    """The last sampled steps before `until` and their rows, float64 `[n, width]`."""
    steps, matrix = session.statistics[statistic].between(0, until)
    return steps[-_BATCHES:].tolist(), np.asarray(matrix[-_BATCHES:], np.float64)


def _fixed(
    session: Session, distribution: Distribution, until: int
) -> tuple[list[Group], Float64 | list[str]]:
    """Bins that never move: their counts are added up."""
    groups: list[Group] = []
    edges: Float64 | list[str] = []
    for statistic, label, style in distribution.parts:
        if statistic not in session.statistics:
            continue
        counts = _last(session, statistic, until)[1].sum(axis=0)
        groups.append((label, style, counts))
        layout = session.layouts.get(statistic)
        if layout and layout.edges and len(layout.edges) == len(counts) + 1:
            edges = np.array(layout.edges)
        elif layout and len(layout.labels) == len(counts):
            edges = list(layout.labels)
        else:
            edges = [str(i) for i in range(len(counts))]
    return groups, edges


def _moving(
    session: Session, distribution: Distribution, until: int
) -> tuple[list[Group], Float64 | list[str]]:
    """Bins that span another range at every step: spread over one common range, then added up."""
    found = []
    for statistic, label, style in distribution.parts:
        ranges = session.statistics.get(f"{statistic}_range")
        if statistic in session.statistics and ranges is not None:
            counts = _last(session, statistic, until)[1]
            spans = _last(session, f"{statistic}_range", until)[1]
            shared = min(len(counts), len(spans))
            found.append((label, style, counts[len(counts) - shared :], spans[len(spans) - shared :]))
    finite = [spans[np.isfinite(spans).all(axis=1)] for *_, spans in found if len(spans)]
    if not finite or not any(len(spans) for spans in finite):
        return [], []
    low = min(float(spans[:, 0].min()) for spans in finite if len(spans))
    high = max(float(spans[:, 1].max()) for spans in finite if len(spans))
    edges = np.linspace(low, high if high > low else low + 1.0, found[0][2].shape[1] + 1)
    return [(label, style, _spread(counts, spans, edges)) for label, style, counts, spans in found], edges


def _spread(counts: Float64, spans: Float64, edges: Float64) -> Float64:
    """Counts `[n, bins]` over ranges `[n, 2]` → counts over common edges, evenly within each old bin."""
    total = np.zeros(len(edges) - 1)
    for row, (low, high) in zip(counts, spans, strict=True):
        if not np.isfinite([low, high]).all():
            continue
        if high <= low:
            total[min(len(total) - 1, int(np.searchsorted(edges, low, side="right")) - 1)] += row.sum()
            continue
        below = np.concatenate([[0.0], np.cumsum(row)])
        total += np.diff(np.interp(edges, np.linspace(low, high, len(row) + 1), below))
    return total


def _input_rows(session: Session, until: int) -> list[Row]:
    """One block per input: its numbers in the last sampled batch."""
    rows: list[Row] = []
    for name in _inputs(session):
        _, matrix = _last(session, name, until)
        if not len(matrix):
            continue
        rows.append([Segment(name, "strong")])
        for label, value in zip(session.layouts[name].labels, matrix[-1].tolist(), strict=False):
            wrong = label == "non_finite" and value > 0
            look = "bad" if wrong else "text"
            rows.append([Segment(f"  {label:<11}", "dim"), Segment(format_number(value), look)])
    return rows or [[Segment("No inputs have been sampled.", "dim")]]
