"""Finds the first NaN or infinity of a run.

Sees: a measured value that is not finite in a series of every step, or in a sampled gradient. Hurts because
one such gradient makes the weights NaN, and no later step can bring them back. Source: IEEE 754; Keras' own
`TerminateOnNaN` stops at the same sign. Wrong when a metric is undefined by nature (a ratio with nothing
below the line), and when a loss scale is being searched for in mixed precision, where single steps with
infinite gradients are skipped on purpose: then later steps are finite again, and the finding says so.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from client_callback.wire.protocol import Float64
from monitor.diagnosis.case import Case
from monitor.diagnosis.examples import Sampled, noisy, session_of, with_value
from monitor.diagnosis.finding import Evidence, Finding, Remedy, Rule
from monitor.session import Session


class _Sign(NamedTuple):
    step: int
    what: str
    """Which series or variable, and what was measured."""
    lasting: bool
    """Whether its newest value is not finite either."""


def lacks(case: Case) -> str:
    """Nothing, once there is a step."""
    return "" if case.session.metric_series() else "no step was recorded yet"


def check(case: Case) -> list[Finding]:
    """One finding on the first values that are not finite, or none."""
    session = case.session
    signs = sorted([*_in_series(session), *_in_gradients(session)])
    if not signs:
        return []
    first, end = signs[0].step, len(session.times)
    evidence = [Evidence(f"{sign.what} first at step {sign.step:,}", sign.step) for sign in signs[:3]]
    if len(signs) > 3:
        evidence.append(Evidence(f"and {len(signs) - 3} more"))
    if before := _last_finite_loss(session, first):
        evidence.append(before)
    lasting = any(sign.lasting for sign in signs)
    if not lasting:
        evidence.append(Evidence("later steps are finite again"))
    return [
        Finding(
            rule="non-finite",
            title="Values are not finite" if lasting else "Some values were not finite",
            severity="critical" if lasting else "note",
            confidence=0.9 if lasting else 0.3,
            start=first,
            stop=end,
            evidence=tuple(evidence),
            explanation="A NaN or infinity has entered the calculation; once it is in the weights, every later step "
            "is NaN too, so training on is wasted.",
            remedies=() if not lasting else _REMEDIES if first > 0 else _OF_THE_FIRST_STEP,
        )
    ]


_CHECK = Remedy("Check inputs and targets for NaN, and logarithms or divisions of your own for zeros")
_OF_THE_FIRST_STEP = (
    Remedy(
        "No rate has done this: before the first update the calculation itself gave it",
        code="# keep what goes into these away from 0 and below\n"
        "keras.ops.log(x + 1e-7), keras.ops.sqrt(x + 1e-7), a / (b + 1e-7)",
    ),
    _CHECK,
    Remedy("Stop it", "stop"),
)
_REMEDIES = (
    Remedy("Weights that are NaN stay NaN: back to the start, with a tenth of the rate", "lr /10 from start"),
    Remedy("Hold the training while you look", "pause"),
    Remedy("Stop it", "stop"),
    Remedy(
        "Next run: clip the gradients", code="keras.optimizers.Adam(learning_rate=1e-4, global_clipnorm=1.0)"
    ),
    _CHECK,
)


def _in_series(session: Session) -> list[_Sign]:
    signs = []
    for name in session.metric_series():  # a time of a step is NaN where it cannot be told
        column = session.series[name]
        steps = column.non_finite(0, len(column))
        if len(steps):
            value = float(column.values[steps[0]])
            signs.append(_Sign(int(steps[0]), f"{name} was {value}", int(steps[-1]) == len(column) - 1))
    return signs


def _in_gradients(session: Session) -> list[_Sign]:
    rows, layout = session.statistics.get("gradient_non_finite"), session.layouts.get("gradient_non_finite")
    if rows is None or layout is None or len(layout.labels) != rows.width:
        return []
    counts = rows.matrix
    if not np.fmax.reduce(counts, axis=None, initial=0) > 0:
        return []
    hit = np.flatnonzero((counts > 0).any(axis=1))
    row = counts[hit[0]]
    variable = int(np.argmax(row > 0))
    others = int(np.count_nonzero(row > 0)) - 1
    what = f"the gradient of {layout.labels[variable]} had {row[variable]:,.0f} entries that are not finite"
    if others:
        what += f" (and {others} more variables)"
    return [_Sign(int(rows.steps[hit[0]]), what, bool(hit[-1] == len(counts) - 1))]


def _last_finite_loss(session: Session, step: int) -> Evidence | None:
    loss = session.series.get("loss")
    if loss is None or step == 0 or step > len(loss):
        return None
    value = float(loss.values[step - 1])
    if not math.isfinite(value):
        return None
    return Evidence(f"the loss was {value:.4g} one step before", step - 1, {"loss": value})


def _falling() -> Float64:
    return noisy(2.3 * np.exp(-np.arange(400) / 150), 0.02)


HEALTHY = {
    "all values are finite": lambda: session_of({"loss": _falling(), "accuracy": 1 - _falling() / 3}),
    "the time spent waiting for data cannot be told apart": lambda: session_of(
        {"loss": _falling(), "input_wait": np.full(400, math.nan)}, timing=("input_wait",)
    ),
    "gradients are sampled and finite": lambda: session_of(
        {"loss": _falling()}, tables={"gradient_non_finite": Sampled((0, 10), {"dense/kernel": 0})}
    ),
}
AILING = {
    "the loss becomes NaN": lambda: session_of({"loss": with_value(_falling(), 120, math.nan)}),
    "the loss becomes infinite": lambda: session_of({"loss": with_value(_falling(), 120, math.inf)}),
    "a gradient is not finite before the loss is": lambda: session_of(
        {"loss": with_value(_falling(), 121, math.nan)},
        tables={"gradient_non_finite": Sampled((110, 120), {"dense/kernel": (0, 64)})},
    ),
}

EXPLAINS = frozenset({"plateau", "oscillation", "input-ignored", "dead-units", "underfitting"})

RULE = Rule("non-finite", check, lacks, EXPLAINS, HEALTHY, AILING)
