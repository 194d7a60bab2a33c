"""How predictions, targets and inputs are distributed, over the last sampled batches in view."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from typing import Final, NamedTuple

import numpy as np

from client_callback.wire.protocol import Float64, Statistic
from monitor.charts import Row, Segment, draw_histogram, draw_table, format_number
from monitor.panels.panel import Panel
from monitor.panels.text import cut
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
CONFUSION: Final = "confusion"
_CELL: Final = (7, 9)
"""Cells that a number of an input's feature takes, at least and at most."""
_WORST: Final = 20
"""Confusions listed where there is no room for their matrix."""


def distribution_names(session: Session) -> list[str]:
    """What this run can show."""
    found = [d.name for d in DISTRIBUTIONS if any(part[0] in session.statistics for part in d.parts)]
    confusion = [CONFUSION] if CONFUSION in session.statistics and CONFUSION in session.layouts else []
    return [*dict.fromkeys(found), *confusion, *([INPUTS] if _inputs(session) else [])]


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
    scrolls = True

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
            return _input_rows(session, until, width)
        if name == CONFUSION:
            return _confusion_rows(session, until, width, height, ascii_only=view.ascii_only)
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
    if name == CONFUSION:
        return [CONFUSION]
    return [part[0] for part in _distribution(session, name).parts if part[0] in session.statistics]


def _inputs(session: Session) -> list[str]:
    """The statistics on the model's inputs: `input`, or one per input."""
    named = [name for name in session.statistics if name.startswith("input")]
    return [
        name
        for name in named
        if name in session.layouts and session.layouts[name].of in ("values", "features")
    ]


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


def _confusion_rows(session: Session, until: int, width: int, height: int, *, ascii_only: bool) -> list[Row]:
    """True classes down, predicted ones across; the worst confusions in words where the matrix has no room."""
    layout = session.layouts[CONFUSION]
    _, matrix = _last(session, CONFUSION, until)
    if not len(matrix) or matrix.shape[1] != layout.width or not layout.columns:
        return [[Segment("No confusions have been sampled.", "dim")]]
    counts = matrix.sum(axis=0).reshape(len(layout.labels), len(layout.columns))
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros_like(counts), where=totals > 0)
    margin = max(map(len, layout.labels)) + 1
    digits = len(format_number(float(counts.max()))) + 1
    if margin + digits * len(layout.columns) <= width and len(layout.labels) + 2 <= height:
        head: Row = [Segment("true ", "val"), Segment("down, ", "dim"), Segment("predicted", "loss")]
        table = draw_table(
            layout.labels,
            layout.columns,
            counts,
            width=width,
            height=height - 1,
            shades=shares,
            ascii_only=ascii_only,
        )
        return [[*head, Segment(" across", "dim")], *table]
    return _worst_confusions(layout, counts, shares)


def _worst_confusions(layout: Statistic, counts: Float64, shares: Float64) -> list[Row]:
    """`7 as 9   12   34 % of 7`, the most frequent first."""
    wrong = counts.copy()
    for i, label in enumerate(layout.labels):
        wrong[i, [column == label for column in layout.columns]] = 0.0
    right = 1.0 - wrong.sum() / counts.sum() if counts.sum() else 0.0
    rows: list[Row] = [[Segment(f"{100 * right:.0f} % right; most often wrong:", "dim")]]
    for place in np.argsort(-wrong, axis=None, kind="stable")[:_WORST].tolist():
        i, j = divmod(place, len(layout.columns))
        if wrong[i, j] <= 0:
            break
        label = layout.labels[i]
        said = f"{format_number(float(wrong[i, j]))}, {100 * shares[i, j]:.0f} % of {label}"
        rows.append(
            [
                *(Segment(label, "val"), Segment(" as ", "dim"), Segment(layout.columns[j], "loss")),
                Segment(f"  {said}", "text"),
            ]
        )
    if len(rows) == 1:
        rows.append([Segment("nothing", "good")])
    return rows


def _input_rows(session: Session, until: int, width: int) -> list[Row]:
    """One block per input: its numbers in the last sampled batch."""
    rows: list[Row] = []
    for name in _inputs(session):
        _, matrix = _last(session, name, until)
        if not len(matrix):
            continue
        if session.layouts[name].columns:
            rows += _feature_rows(session.layouts[name], matrix[-1], width)
            continue
        rows.append([Segment(name, "strong")])
        for label, value in zip(session.layouts[name].labels, matrix[-1].tolist(), strict=False):
            wrong = label == "non_finite" and value > 0
            look = "bad" if wrong else "text"
            rows.append([Segment(f"  {label:<11}", "dim"), Segment(format_number(value), look)])
    return rows or [[Segment("No inputs have been sampled.", "dim")]]


def _feature_rows(layout: Statistic, row: Float64, width: int) -> list[Row]:
    """A line per feature, those with values that are not finite first, then those that never change."""
    table = row[: layout.width].reshape(-1, len(layout.columns))
    if len(table) != len(layout.labels):
        return []
    broken = table[:, layout.columns.index("non_finite")] > 0 if "non_finite" in layout.columns else None
    still = table[:, layout.columns.index("std")] == 0 if "std" in layout.columns else None
    keys = [key for key in (still, broken) if key is not None]
    order = np.lexsort([np.arange(len(table)), *(~key for key in keys)]).tolist()
    margin = min(max(map(len, layout.labels), default=0), max(4, width // 3)) + 1
    cell = max(_CELL[0], min(_CELL[1], (width - margin) // len(layout.columns)))
    shown = max(1, min(len(layout.columns), (width - margin) // cell))
    head = "".join(f"{column[: cell - 1]:>{cell}}" for column in layout.columns[:shown])
    rows: list[Row] = [[Segment(f"{layout.name[: margin - 1]:<{margin}}", "strong"), Segment(head, "dim")]]
    for i in order:
        look = (
            "bad"
            if broken is not None and broken[i]
            else "warn"
            if still is not None and still[i]
            else "text"
        )
        cells = "".join(f"{format_number(value, 3):>{cell}}" for value in table[i, :shown].tolist())
        rows.append([Segment(f"{cut(layout.labels[i], margin - 1):<{margin}}", "dim"), Segment(cells, look)])
    return rows
