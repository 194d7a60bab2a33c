"""Finds stretches in which the loss made no progress beyond its noise.

Sees: the losses of single steps, averaged over 32 blocks of a window that is a quarter to a half of the run
(256 steps at least). A window is flat when both hold:

- its trend is no significant fall: Mann-Kendall's test on the block means, one-sided;
- a fall worth having would have been noticed: the upper confidence bound of Theil-Sen's slope, times the
  window, stays below a share of the loss. Without this, noise alone would pass for a plateau.

Of a shorter run, and where only the values of epochs are known, the newest half (of less than 24 values the newest
three quarters) is judged in the same way, once the training has had 3 epochs or 200 steps. Under noise that hides any
trend, it takes that the model is certainly no better than one that ignores its inputs, and does not clearly improve.
How Keras smooths its numbers does not matter: running means within an epoch are not used.

The definition itself is in `client_callback.wire.plateau`: `when plateau` waits for the same in the training.

False alarms: of trainings whose loss goes on falling by a fifth and more with each doubling of the steps, at most one
in twenty is ever called stuck, however often it is asked while they run. Tests hold it for noise of 10 % of the loss
with a memory, from step to step, of up to 0.9 (0.5 while there are fewer than 256 steps).

Hurts because compute is spent on nothing. Try another rate or optimizer, in a trial from the very state, which tells
chance from gain. Wrong when the loss has reached what the data allow (the finding says "converged or stuck" where it
knows), and in warm-ups longer than the window. Silent with fewer than 24 losses of steps or 6 of epochs.
"""

from __future__ import annotations

import functools
import math
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from client_callback.wire.plateau import BLOCKS, SHORTEST_BLOCK, block_steps, judge_windows
from client_callback.wire.protocol import Float64
from monitor.diagnosis import experiments
from monitor.diagnosis.case import BARELY, FEWEST_STEPS, Case
from monitor.diagnosis.epochs import come
from monitor.diagnosis.examples import noisy, session_of
from monitor.diagnosis.finding import Evidence, Finding, Remedy, Rule, Severity
from monitor.diagnosis.medians import finite, median
from monitor.series import Column
from monitor.session import Session

FALSE_ALARMS: Final = 0.05
"""Share of trainings with a loss that falls as the docstring has it that may ever be called stuck; tests hold it."""
CONVERGED_SHARE: Final = 0.02
"""Of the first losses. Below, a flat loss may as well be the end of the road."""
CONVERGED_ACCURACY: Final = 0.9
"""A loss that began very high may have fallen far and still be that of guessing; accuracy tells."""
MOST_SHOWN: Final = 8
EARLY: Final = 1 / 2
"""Of the planned steps."""
EARLY_EPOCHS: Final = 10
"""However many are planned, so many are long enough to wait."""
TRIAL_STEPS: Final = 100
"""Of each candidate: enough for a mean of the last quarter. An epoch where that is shorter, but not below 20."""


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
    """Enough losses, of single steps or of epochs."""
    loss = case.per_step("loss")
    if loss is not None and len(loss) >= BLOCKS * SHORTEST_BLOCK:
        return ""
    if case.progress.trend == "unknown":
        if loss is None:
            ends = case.session.epoch_logs.get("loss")
            return f"the loss is known of {0 if ends is None else len(ends)} epochs only, of 6 it takes"
        return f"only {len(loss) - case.changed_at} of the {FEWEST_STEPS} steps it takes have been done"
    return "" if case.progress.by_epoch else case.too_early


def check(case: Case) -> list[Finding]:
    """One finding per flat stretch, the newest first; those that are over are notes."""
    loss = case.per_step("loss")
    if loss is None or len(loss) < BLOCKS * SHORTEST_BLOCK:
        found = _of_newest_half(case) if case.progress.trend in ("flat", "rising") else []
    else:
        found = _of_windows(case, loss)
    goes_on = any(one.stop >= case.step - block_steps(case.step) for one in found)
    guesses = case.guessing and case.stuck and case.non_finite_from is None
    return found if goes_on or not guesses else [*_of_newest_half(case), *found]


def _of_windows(case: Case, loss: Column) -> list[Finding]:
    """All flat stretches of a long run, the newest first."""
    block = block_steps(len(loss))
    means = _block_means(loss, block)
    if len(means) < BLOCKS:
        return []
    reached = len(means) * block
    return [
        _finding(case, flat, first_level=float(means[0]), over=flat.stop < reached)
        for flat in reversed(_flat_stretches(means.tobytes(), block)[-MOST_SHOWN:])
    ]


def _of_newest_half(case: Case) -> list[Finding]:
    """Of a run that is too short for windows, known by its epochs only, or that guesses under much noise."""
    progress = case.progress
    flat = _Flat(
        min(progress.start + progress.steps // 2, case.step - 1),
        case.step,
        progress.level,
        progress.fall,
        progress.fall_at_most,
    )
    return [_finding(case, flat, first_level=progress.first, over=False)]


def _finding(case: Case, flat: _Flat, *, first_level: float, over: bool) -> Finding:
    evidence = [_of_loss(case, flat)]
    accuracy = _accuracy(case.session, flat)
    if accuracy is not None:
        evidence.append(
            Evidence(f"{accuracy[0]} {accuracy[1]:.3g}", flat.stop - 1, {accuracy[0]: accuracy[1]})
        )
    tried = experiments.one_batch(case)
    if tried is not None and not over:
        evidence.append(tried[1])
    severity: Severity = "note"
    remedies: tuple[Remedy, ...] = ()
    good = accuracy is None or accuracy[1] >= CONVERGED_ACCURACY
    if over:
        title, confidence = "Plateau, over now", 0.2
    elif case.level_with_plain_model or (
        case.solved
        if case.lift is not None
        else good and abs(flat.level) < CONVERGED_SHARE * abs(first_level)
    ):
        title, confidence = "Converged or stuck", 0.3
        if case.level_with_plain_model and not case.solved:
            evidence.append(
                Evidence(
                    f"it has come {come(case.lift or 0.0)}, {case.plain_model} {case.attainable or 0:.0%}",
                    flat.stop - 1,
                )
            )
        evidence.append(Evidence(f"it began at {first_level:.4g}", 0, {"loss": first_level}))
        remedies = (Remedy("Nothing more to gain here, if validation agrees: stop", "stop"),)
    elif case.progress.trend == "falling":
        # It is one beside a first loss that was huge, or a while ago.
        title, confidence = "Hardly any progress", 0.2
    elif _may_still_begin(case, flat, first_level):
        title, confidence = "No progress yet", 0.3
        evidence.append(
            Evidence(f"{case.step:,} of {case.session.total_steps:,} planned steps are done", case.step - 1)
        )
    else:
        title, severity, confidence = "Stuck: no progress beyond noise", "warning", 0.5
        remedies = _remedies(case, flat)
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


def _may_still_begin(case: Case, flat: _Flat, first_level: float) -> bool:
    """Whether it is early in the plan, and nothing was learned that could have come to an end.

    Sound networks, deep and recurrent ones above all, may rest at the loss of guessing before they take off (Saxe et
    al. 2014, arXiv 1312.6120); a training that fell and then stopped has no such excuse.
    """
    total, epochs = case.session.total_steps, len(case.session.epoch_ends)
    if total is None or case.step >= EARLY * total or epochs >= EARLY_EPOCHS or case.changed_at:
        return False
    if case.lift is not None:
        return case.lift < 2 * BARELY
    return flat.level > (1 - BARELY) * first_level > 0


def _of_loss(case: Case, flat: _Flat) -> Evidence:
    steps = flat.stop - flat.start
    column = case.per_step("loss")
    if column is None:
        noise, looked_at = case.progress.noise, "them, by the means of epochs"
    else:
        losses = _newest(column, flat)
        # The median absolute deviation, scaled to equal a normal noise's standard deviation; spikes do not count.
        noise = 1.4826 * median(np.abs(losses - median(losses)))
        looked_at = f"the last {min(steps, BLOCKS * block_steps(len(column))):,} of them"
    text = (
        f"loss {flat.level:.4g} ± {noise:.2g} over steps {flat.start:,} to {flat.stop - 1:,}: "
        f"it {_changed(flat)} in {looked_at}"
    )
    return Evidence(text, flat.start, {"loss": flat.level, "noise": noise, "fall": flat.fall})


def _accuracy(session: Session, flat: _Flat) -> tuple[str, float] | None:
    """Name and mean of an accuracy over the last steps of a stretch. `None`: none is known there."""
    for name, column in session.series.items():
        if "acc" in name and session.series_kinds.get(name) == "batch":
            newest = _newest(column, flat)
            if len(newest):
                return name, float(newest.mean())
    for name, points in session.epoch_logs.items():
        inside = points.values[(points.steps >= flat.start) & (points.steps < flat.stop)][-1:]
        if "acc" in name and len(inside):
            return name, float(inside[0])
    return None


def _newest(column: Column, flat: _Flat) -> npt.NDArray[np.float32]:
    """The finite values of the last steps of a stretch, at most 1,024 of them."""
    values = column.values[max(flat.start, flat.stop - 1_024) : flat.stop]
    return finite(values)


def _changed(flat: _Flat) -> str:
    percent = 100 / abs(flat.level) if flat.level else math.inf
    if not math.isfinite(percent):
        return f"changed by {-flat.fall:.2g}"
    word = "fell" if flat.fall >= 0 else "rose"
    bound = max(0.0, flat.fall_at_most * percent)
    return f"{word} {abs(flat.fall) * percent:.1f} % (a fall beyond {bound:.1f} % is ruled out)"


def _remedies(case: Case, flat: _Flat) -> tuple[Remedy, ...]:
    """What the optimizer at work allows, a trial first: which of them helps cannot be told from the loss alone."""
    name = case.optimizer.name if case.optimizer else ""
    other = "adam 0.001" if name in ("", "sgd") else "sgd 0.05 momentum=0.9"
    switch = (
        Remedy("Try an adaptive optimizer", "optimizer adam learning_rate=0.001")
        if name in ("", "sgd")
        else Remedy("Try plain momentum", "optimizer sgd learning_rate=0.01 momentum=0.9")
    )
    steps = max(20, min(TRIAL_STEPS, case.session.steps_per_epoch or TRIAL_STEPS))
    # What guesses still may have been spoilt by its first steps: nothing helps from there.
    back = " from start" if case.guessing else ""
    trial = Remedy(
        "Try a lower rate and another optimizer on the same batches; a clear winner goes on",
        f'trial keep "lr x0.1" "{other}" for {steps} steps{back} --adopt',
    )
    return (
        *_tried(case, flat),
        trial,
        *([experiments.FIND_OUT] if case.guessing and experiments.one_batch(case) is None else []),
        Remedy("Lower the learning rate", f"lr /10{back}"),
        Remedy("Or raise it, to leave a flat region", "lr x3"),
        switch,
        *(
            [Remedy("If units have died: back to the start, with a far lower rate", "lr /100 from start")]
            if name != "sgd" or back
            else []
        ),
    )


def _tried(case: Case, flat: _Flat) -> list[Remedy]:
    """What a trial within the stretch has found to be better than going on as it is."""
    for trial, best, instruction in experiments.winners(case):
        if trial.start < flat.start or instruction is None:
            continue
        steps = len(best.losses) // 4
        text = f"The trial at step {trial.start:,} found it better than the others: loss {best.score:.4g}"
        return [Remedy(text, f'trial keep "{best.text}" for {steps} steps --adopt')]
    return []


def _block_means(loss: Column, block: int) -> Float64:
    """Mean of each whole block; NaN where no loss in it was finite."""
    count = len(loss) // block
    return loss.block_means(0, block, count) if count >= BLOCKS else np.empty(0)


@functools.lru_cache(maxsize=8)  # whole blocks of a long run stay the same from one look to the next
def _flat_stretches(of_blocks: bytes, block: int) -> list[_Flat]:
    """The unions of all flat windows of `BLOCKS` blocks, in order.

    Args:
        of_blocks: their means, float64.
        block: their length in steps.
    """
    means = np.frombuffer(of_blocks)
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


def _by_epoch(losses: Float64, noise: float = 0.002) -> Session:
    """Of a training that tells running means only; 50 steps an epoch."""
    values = noisy(losses, noise, seed=3)
    logs = [{"loss": value} for value in values.tolist()]
    return session_of({"loss": np.repeat(values, 50)}, running=("loss",), epochs=logs)


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
    "the first steps are flat": lambda: session_of({"loss": noisy(np.full(150, 0.693), 0.02)}),
    "only running means within an epoch are known": lambda: session_of(
        {"loss": noisy(np.full(2_000, 0.693), 0.02)}, running=("loss",)
    ),
    "the losses of epochs fall": lambda: _by_epoch(2.3 / np.sqrt(1 + _steps(20) / 3)),
    "a short run falls": lambda: session_of(
        {"loss": noisy(0.7 / np.sqrt(1 + _steps(100) / 40), 0.03)}, epochs=[{}] * 10
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
    "the losses of epochs stay, nothing else is known": lambda: _by_epoch(np.full(16, 0.693)),
    "a run of five steps an epoch stays": lambda: session_of(
        {"loss": noisy(np.full(100, 0.693), 0.01)}, epochs=[{"loss": 0.693}] * 20
    ),
    "the loss has come close to zero": lambda: session_of(
        {"loss": noisy(np.maximum(2.3 * np.exp(-_steps(4_000) / 100), 0.004), 0.0005)}
    ),
}

RULE = Rule("plateau", check, lacks, frozenset(), HEALTHY, AILING)
