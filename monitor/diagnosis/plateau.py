"""Finds stretches in which the loss made no progress beyond its noise.

Sees: the losses of single steps, averaged over 32 blocks of a window that is a quarter to a half of the run
(256 steps at least). A window is flat when both hold:

- its trend is no significant fall: Mann-Kendall's test on the block means, one-sided;
- a fall worth having would have been noticed: the upper confidence bound of Theil-Sen's slope, times the
  window, stays below a share of the loss. Without this, noise alone would pass for a plateau.

The definition itself is in `client_callback.wire.plateau`: `when plateau` waits for the same in the training.

Hurts because compute is spent on nothing. Try another rate or optimizer. Wrong when the loss has reached what
the data allow (the finding says "converged or stuck" where the loss is tiny), and in warm-ups longer than the
window. Silent when the loss of single steps is not known.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from client_callback.wire.plateau import BLOCKS, SHORTEST_BLOCK, block_steps, judge_windows
from client_callback.wire.protocol import Float64
from monitor.diagnosis.case import Case
from monitor.diagnosis.examples import noisy, session_of
from monitor.diagnosis.finding import Evidence, Finding, Remedy, Rule, Severity
from monitor.series import Column
from monitor.session import Session
from monitor.trends import block_means

CONVERGED_SHARE: Final = 0.02
"""Of the first losses. Below, a flat loss may as well be the end of the road."""
CONVERGED_ACCURACY: Final = 0.9
"""A loss that began very high may have fallen far and still be that of guessing; accuracy tells."""
MOST_SHOWN: Final = 8


class _Flat(NamedTuple):
    """One stretch of the run without progress."""

    start: int
    stop: int
    level: float
    """Median of the block means: a spike within the stretch is not its level."""
    fall: float
    """By how much the loss fell over the last window, by Theil-Sen. Negative: it rose."""
    fall_at_most: float
    """The upper confidence bound of that."""


def lacks(case: Case) -> str:
    """Enough losses of single steps."""
    loss = case.per_step("loss")
    if loss is None:
        return "the loss of single steps is not known"
    needed = BLOCKS * SHORTEST_BLOCK
    return f"only {len(loss)} of the {needed} steps it takes have been done" if len(loss) < needed else ""


def check(case: Case) -> list[Finding]:
    """One finding per flat stretch, the newest first; those that are over are notes."""
    loss = case.session.series["loss"]
    block = block_steps(len(loss))
    means = _block_means(loss, block)
    if len(means) < BLOCKS:
        return []
    reached = len(means) * block
    return [
        _finding(case, flat, first_level=float(means[0]), over=flat.stop < reached)
        for flat in reversed(_flat_stretches(means, block)[-MOST_SHOWN:])
    ]


def _finding(case: Case, flat: _Flat, *, first_level: float, over: bool) -> Finding:
    session = case.session
    evidence = [_of_loss(session, flat)]
    accuracy = _accuracy(session, flat)
    if accuracy is not None:
        evidence.append(
            Evidence(f"{accuracy[0]} {accuracy[1]:.3g}", flat.stop - 1, {accuracy[0]: accuracy[1]})
        )
    severity: Severity = "note"
    remedies: tuple[Remedy, ...] = ()
    good = accuracy is None or accuracy[1] >= CONVERGED_ACCURACY
    if over:
        title, confidence = "Plateau, over now", 0.2
    elif (case.lift is not None and case.solved) or (
        good and abs(flat.level) < CONVERGED_SHARE * abs(first_level)
    ):
        title, confidence = "Converged or stuck", 0.3
        evidence.append(Evidence(f"it began at {first_level:.4g}", 0, {"loss": first_level}))
        remedies = (Remedy("Nothing more to gain here, if validation agrees: stop", "stop"),)
    else:
        title, severity, confidence = "Stuck: no progress beyond noise", "warning", 0.5
        remedies = _remedies(session)
    return Finding(
        rule="plateau",
        title=title,
        severity=severity,
        confidence=confidence,
        start=flat.start,
        stop=flat.stop,
        evidence=tuple(evidence),
        explanation="The loss has stopped falling: whatever happened in these steps, the model learned nothing from "
        "them that shows above the noise from batch to batch.",
        remedies=remedies,
        shaded=True,
    )


def _of_loss(session: Session, flat: _Flat) -> Evidence:
    steps = flat.stop - flat.start
    losses = _newest(session.series["loss"], flat)
    # The median absolute deviation, scaled to equal a normal noise's standard deviation; spikes do not count.
    noise = 1.4826 * float(np.median(np.abs(losses - np.median(losses))))
    text = (
        f"loss {flat.level:.4g} ± {noise:.2g} over steps {flat.start:,} to {flat.stop - 1:,}: "
        f"it {_changed(flat)} in the last {min(steps, _window(session)):,} of them"
    )
    return Evidence(text, flat.start, {"loss": flat.level, "noise": noise, "fall": flat.fall})


def _accuracy(session: Session, flat: _Flat) -> tuple[str, float] | None:
    """Name and mean of an accuracy over the last steps of a stretch. `None`: none is known per batch."""
    for name, column in session.series.items():
        if "acc" in name and session.series_kinds.get(name) == "batch" and len(_newest(column, flat)):
            return name, float(np.mean(_newest(column, flat)))
    return None


def _newest(column: Column, flat: _Flat) -> npt.NDArray[np.float32]:
    """The finite values of the last steps of a stretch, at most 4,096 of them."""
    values = column.values[max(flat.start, flat.stop - 4_096) : flat.stop]
    return np.asarray(values[np.isfinite(values)])


def _changed(flat: _Flat) -> str:
    percent = 100 / abs(flat.level) if flat.level else math.inf
    if not math.isfinite(percent):
        return f"changed by {-flat.fall:.2g}"
    word = "fell" if flat.fall >= 0 else "rose"
    bound = max(0.0, flat.fall_at_most * percent)
    return f"{word} {abs(flat.fall) * percent:.1f} % (a fall beyond {bound:.1f} % is ruled out)"


def _remedies(session: Session) -> tuple[Remedy, ...]:
    adaptive = session.optimizer is not None and not session.optimizer.name.startswith("sgd")
    switch = (
        Remedy("Try plain momentum", "optimizer sgd learning_rate=0.01 momentum=0.9")
        if adaptive
        else Remedy("Try an adaptive optimizer", "optimizer adam learning_rate=0.001")
    )
    return (
        Remedy("Lower the learning rate", "lr /10"),
        Remedy("Or raise it, to leave a flat region", "lr x3"),
        switch,
        Remedy(
            "If units have died, no rate helps from here: back to the start, with a lower one",
            "lr /100 from start",
        ),
    )


def _window(session: Session) -> int:
    return BLOCKS * block_steps(len(session.series["loss"]))


def _block_means(loss: Column, block: int) -> Float64:
    """Mean of each whole block; NaN where no loss in it was finite."""
    count = len(loss) // block
    return block_means(loss, 0, block, count) if count >= BLOCKS else np.empty(0)


def _flat_stretches(means: Float64, block: int) -> list[_Flat]:
    """The unions of all flat windows of `BLOCKS` blocks, in order."""
    windows = judge_windows(means, float(means[0]))
    spans: list[tuple[int, int]] = []
    """First and last window of each."""
    for window in np.flatnonzero(windows.flat).tolist():
        joins = spans and window <= spans[-1][1] + BLOCKS
        first = spans.pop()[0] if joins else window
        spans.append((first, window))
    return [
        _Flat(
            first * block,
            (last + BLOCKS) * block,
            float(np.median(means[first : last + BLOCKS])),
            float(windows.falls[last]),
            float(windows.falls_at_most[last]),
        )
        for first, last in spans
    ]


def _steps(count: int) -> Float64:
    return np.arange(count, dtype=np.float64)


def _falls_then_stays(until: int, count: int) -> Float64:
    return np.maximum(2.3 * np.exp(-_steps(count) / 150), 2.3 * math.exp(-until / 150))


HEALTHY = {
    "the loss falls like 1 / sqrt(step)": lambda: session_of(
        {"loss": noisy(2.3 / np.sqrt(1 + _steps(3_000) / 50), 0.05)}
    ),
    "the loss falls exponentially": lambda: session_of(
        {"loss": noisy(2.3 * np.exp(-_steps(900) / 400), 0.02)}
    ),
    "the loss falls slowly under much noise": lambda: session_of(
        {"loss": noisy(0.69 - 0.15 * _steps(2_000) / 2_000, 0.1)}
    ),
    "the first steps are flat": lambda: session_of({"loss": noisy(np.full(200, 0.693), 0.02)}),
    "only running means are known": lambda: session_of(
        {"loss": noisy(np.full(2_000, 0.693), 0.02)}, running=("loss",)
    ),
}
AILING = {
    "the loss sits at ln 2": lambda: session_of({"loss": noisy(np.full(600, 0.693), 0.03)}),
    "the loss is constant": lambda: session_of({"loss": np.full(400, 8.06)}),
    "the loss is flat under much noise": lambda: session_of({"loss": noisy(np.full(3_000, 0.69), 0.1)}),
    "the loss falls and then stays": lambda: session_of({"loss": noisy(_falls_then_stays(200, 2_000), 0.03)}),
    "the loss has spikes on a plateau": lambda: session_of(
        {"loss": noisy(np.where(_steps(1_000) % 317 == 5, 20.0, 0.7), 0.02)}
    ),
    "the loss explodes first and then sits at ln 2": lambda: session_of(
        {
            "loss": noisy(np.where(_steps(3_000) < 40, 900.0, 0.69), 0.03),
            "accuracy": noisy(np.full(3_000, 0.55), 0.1),
        }
    ),
    "the loss has come close to zero": lambda: session_of(
        {"loss": noisy(np.maximum(2.3 * np.exp(-_steps(4_000) / 100), 0.004), 0.0005)}
    ),
}

RULE = Rule("plateau", check, lacks, frozenset(), HEALTHY, AILING)
