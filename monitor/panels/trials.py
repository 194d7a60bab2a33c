"""Trials in the list of interventions: candidates ranked in a table, and the loss over the rate of a range test."""

from __future__ import annotations

import math

import numpy as np

from client_callback.wire.protocol import TrialEnded, TrialResult
from client_callback.wire.range_test import RangeTest
from monitor.charts import Curve, Mark, Row, Segment, draw_curves, format_number, small_curve
from monitor.panels.text import both_ends, cut, rate, spelled, wrapped
from monitor.series import Column
from monitor.trial_results import losses_of, range_test_of

_ROOMY = 60
"""Cells from which on curves may be long, and all of them fit into a chart."""
_WIDEST = 84
"""Cells; beyond, eyes lose the line."""
_TALL = 16
"""Lines from which on a chart is not all there is to see."""
_CURVE = 8
"""Cells of a small curve."""
_CHART_LINES = 10
_FEW_LINES = 7
_HEADROOM = 0.2
"""Of the height, above where all candidates began."""
_STYLES = ("loss", "val", "metric", "other", "rate")


def trial_rows(trial: TrialEnded, width: int, height: int, *, told: str = "", ascii_only: bool) -> list[Row]:
    """What came out of it.

    `height`: lines that can be seen at once, which decides on charts. `told`: what stands below anyway.
    """
    width, roomy = min(width, _WIDEST), height >= _TALL
    test = range_test_of(trial)
    rows = (
        _range_rows(test, width, roomy=roomy, told=bool(told), ascii_only=ascii_only)
        if test
        else _ranking(trial, width, roomy=roomy, ascii_only=ascii_only)
    )
    return [*rows, *_notes(trial, width, told)]


# ── Candidates ────────────────────────────────────────────────────────────────────────────────────


def _ranking(trial: TrialEnded, width: int, *, roomy: bool, ascii_only: bool) -> list[Row]:
    curves = [losses_of(result) for result in trial.results]
    low, high = _extent(curves)
    longest = max(map(len, curves), default=1)
    names = max((len(result.text) for result in trial.results), default=0)
    rows: list[Row] = []
    for number, (result, losses) in enumerate(zip(trial.results, curves, strict=True), 1):
        best = number == 1 and trial.tells and math.isfinite(result.score)
        adopted = bool(trial.adopted) and result.text == trial.adopted
        look = "accent" if adopted else "good" if best else "text"
        room = _CURVE * (2 if width >= _ROOMY else 1)
        curve = small_curve(
            losses, room, low=low, high=high, share=len(losses) / longest, ascii_only=ascii_only
        )
        score = spelled(_score(result), ascii_only=ascii_only)
        measured = [Segment(f"{score}  ", look), Segment(curve, _STYLES[(number - 1) % len(_STYLES)])]
        head = [Segment(f"{number} ", "dim"), Segment(cut(result.text, width - 2), look)]
        one_line = both_ends(
            [head[0], Segment(cut(result.text, names).ljust(min(names, 40)), look)], measured, width
        )
        if len(one_line) > len(head):
            rows.append(one_line)
        else:
            rows += [head, both_ends([Segment("  ", "")], measured, width)]
    if roomy and width >= _ROOMY and len(curves) > 1:
        rows += _all_curves(trial, curves, width, ascii_only=ascii_only)
    return rows


def _all_curves(trial: TrialEnded, curves: list[np.ndarray], width: int, *, ascii_only: bool) -> list[Row]:
    drawn = []
    for number, (result, losses) in enumerate(zip(trial.results, curves, strict=True)):
        column = Column()
        column.extend(0, losses)
        drawn.append(Curve(result.text, _STYLES[number % len(_STYLES)], column=column, raw=False))
    longest = max(map(len, curves))
    low, high = _extent(curves)
    return draw_curves(
        drawn[::-1],
        width=width,
        height=_CHART_LINES,
        start=0,
        stop=longest,
        smoothing=max(3, longest // 10),
        highest=high + _HEADROOM * (high - low),
        ascii_only=ascii_only,
    )


def _extent(curves: list[np.ndarray]) -> tuple[float, float]:
    """From the lowest smoothed loss to where they all began: what diverges runs along the top."""
    finite = [curve[np.isfinite(curve)] for curve in curves]
    tenths = [(max(1, len(curve) // 10), curve) for curve in finite if len(curve)]
    if not tenths:
        return 0.0, 1.0
    ends = [float(np.mean(part)) for tenth, curve in tenths for part in (curve[:tenth], curve[-tenth:])]
    low, high = min(ends), max(ends[::2])
    return low, high if high > low else low + max(abs(low), 1e-9) * 0.1


def _score(result: TrialResult) -> str:
    """`0.412 ±0.021`: the interval's half, or what became of it."""
    if not math.isfinite(result.score):
        return "diverged"
    half = (result.high - result.low) / 2
    error = f" ±{format_number(half, 2)}" if math.isfinite(half) else ""
    return f"{format_number(result.score, 3)}{error}"


def _notes(trial: TrialEnded, width: int, told: str) -> list[Row]:
    notes = [result for result in trial.results if result.note and result.note not in told]
    texts = [(f"{result.text}: {result.note}", "dim") for result in notes]
    if trial.adopted:
        texts.append((f"training goes on with {trial.adopted}", "accent"))
    if not trial.rates and len(trial.results) > 1 and not trial.tells:
        texts.append(("the best cannot be told from the others", "warn"))
    return [[Segment(line, look)] for text, look in texts for line in wrapped(text, width)]


# ── A range test ──────────────────────────────────────────────────────────────────────────────────


def _range_rows(test: RangeTest, width: int, *, roomy: bool, told: bool, ascii_only: bool) -> list[Row]:
    column = Column()
    column.extend(0, test.losses.astype(np.float32))
    count = len(test.rates)
    marks = [Mark(_at(test, test.suggested), "▼", "cursor")] if test.suggested is not None else []
    broken = _at(test, test.diverges_at) if test.diverges_at is not None else count
    chart = draw_curves(
        [Curve("loss", "loss", column=column)],
        width=width,
        height=_CHART_LINES if roomy else _FEW_LINES,
        start=0,
        stop=max(2, count),
        smoothing=max(3, count // 8),
        highest=_highest(test),
        bands=[(broken, count, "band")],
        marks=marks,
        ascii_only=ascii_only,
        ticks=_decades(test),
    )
    words = "the loss falls at none of these rates" if test.suggested is None else ""
    rows: list[Row] = [*chart]
    if test.suggested is not None and test.steepest is not None:
        rows.append([Segment("try ", "dim"), Segment(f"lr {rate(_rounded(test.suggested))}", "key")])
        words = f"falls fastest at {rate(_rounded(test.steepest))}"
    end = (
        f"diverges at {rate(_rounded(test.diverges_at))}"
        if test.diverges_at is not None
        else "never diverges"
    )
    return rows + [[Segment(line, "dim")] for line in (() if told else wrapped(f"{words}; {end}", width))]


def _highest(test: RangeTest) -> float:
    """As far above where the loss began as it fell below: beyond, it diverges and hides the rest."""
    finite = test.losses[np.isfinite(test.losses)]
    if not len(finite):
        return math.inf
    began = float(finite[: max(1, len(finite) // 10)].mean())
    return began + max(began - float(finite.min()), 0.05 * abs(began))


def _at(test: RangeTest, value: float) -> int:
    """The step whose rate is nearest to `value`."""
    return int(np.argmin(np.abs(np.log(test.rates) - math.log(value))))


def _decades(test: RangeTest) -> list[tuple[int, str]]:
    """Powers of ten among the rates, each at its step."""
    low, high = (math.log10(value) for value in (test.rates[0], test.rates[-1]))
    powers = range(math.ceil(low - 1e-6), math.floor(high + 1e-6) + 1)
    return [(_at(test, 10.0**power), f"1e{power}") for power in powers]


def _rounded(value: float) -> float:
    """Two digits: a range test tells no more."""
    return float(f"{value:.1e}")
