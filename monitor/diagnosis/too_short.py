"""Sees that a training ended, or is about to end, while it was still clearly improving.

Sees: the last tenth of the planned steps has begun (or the run is over); the loss still falls beyond its noise (of a
run of ten epochs or fewer, too short to see that in its newest half: since its first quarter), and from the third to
the last quarter of the steps by an eighth or more of all that it fell since the first quarter (a fall that dies away
exponentially does so until it has come 95 % of its way); validation, where there is any, is at its best; and there is
something left to learn: less was learned than a plain model reaches on the same data, or than half of the way from
guessing to perfect. Where there were five epochs at most, and noise hides whether it still falls, being far behind a
plain model is enough.

A training that the script's own callbacks ended before its time is told of where its last validation was the best:
then what EarlyStopping watches is the wrong number or the wrong way round.

Hurts because the time spent so far buys a model that a little more would make much better. Train for more epochs,
with early stopping in place of a fixed number. Source: Prechelt (1998) for stopping by validation instead of by the
clock; DeepFD (2022) has too few epochs among its five kinds of fault.

Wrong when the rate is what is too low: then more epochs help as well, but a higher rate helps sooner; the rule is
less sure where updates are tiny. After more than ten epochs, one that has come half as far as a plain model is no
more than a note. Silent until the last tenth of the planned steps, where their number is not known and the run has
not ended, and when somebody stopped it before.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from client_callback.wire.protocol import Float64, SignalProbe
from client_callback.wire.trends import trends
from monitor.diagnosis.case import FEWEST_STEPS, Case
from monitor.diagnosis.epochs import come, reached, sides
from monitor.diagnosis.examples import Sampled, dense, falling, flat, noisy, session_of, trained_on
from monitor.diagnosis.finding import Evidence, Finding, Remedy, Rule
from monitor.diagnosis.learning_rate_low import crawling
from monitor.diagnosis.progress import Z_SURE
from monitor.session import Session

NEARLY_OVER: Final = 0.9
"""Of the planned steps. Earlier, a training that improves is as it should be."""
LATELY: Final = 0.12
"""Of the fall from the first to the last quarter, what came after the third; exp(−k·done) has it for k ≤ 3.2."""
SECOND_COUNTS: Final = 3.0
"""The whole fall is taken for no more than so many times that from the second quarter on, as for k = 4: a start from
far off says nothing about the end."""
LEFT: Final = 0.1
"""Lift still to be had, at least: below, more epochs polish."""
HALFWAY: Final = 0.5
"""A lift that is taken for attainable at least. A plain model is a lower bound only."""
GOOD: Final = 0.9
"""The same where no plain model tells: as `Case.solved` has it. A guess, so that only a lift below HALFWAY is
worth a warning then."""
FALLS_STEEPLY: Final = 0.25
"""As LATELY, where it is not known how good the model is: nearly straight down."""
TINY_UPDATES: Final = 1e-4
"""‖Δw‖/‖w‖ of a typical variable; 1e-3 is usual (FAULTS: below 1e-5 certainly too low)."""
FEW_EPOCHS: Final = 10
"""Keras' examples train for 10 to 50."""
HARDLY_ANY_EPOCHS: Final = 5
FAR: Final = 0.25
"""Lift behind a plain model that no noise makes."""


def lacks(case: Case) -> str:
    """The end in sight, and enough losses to see a trend in."""
    session = case.session
    total = session.total_steps
    early = session.ended is not None and total is not None and case.step < NEARLY_OVER * total
    if early and (not _ended_by_callback(case) or sides(case) is None):
        return f"it was stopped after {case.step:,} of the {total:,} planned steps"
    if session.ended is None or session.ended.outcome != "finished":
        if total is None:
            return "how many steps are planned is not known"
        if case.step < NEARLY_OVER * total:
            return f"only {case.step:,} of the {total:,} planned steps are done"
    if case.progress.trend == "unknown":
        return f"fewer than {FEWEST_STEPS} losses are known since the last change"
    return ""


class _Improving(NamedTuple):
    """How the loss still falls."""

    lately: float
    """From the third to the last quarter of the steps."""
    fallen: float
    z: float
    """Of the trend test."""
    clearly: bool
    """Whether the newest half alone shows it."""


def check(case: Case) -> list[Finding]:
    """One finding, or none."""
    lift = reached(case)
    attainable = GOOD if case.attainable is None else max(case.attainable, HALFWAY)
    by_callback = _ended_by_callback(case)
    if by_callback and not _at_best(case):
        return []
    if case.solved or _past_best(case) or (lift is not None and attainable - lift < LEFT):
        return []
    improving = _improving(case)
    epochs = case.session.epoch_count or len(case.session.epoch_ends)
    if improving is None and not _hardly_begun(case, lift, epochs):
        return []
    sure = _sure(case, improving, lift, epochs)
    tiny = crawling(case) or _typical_update(case) < TINY_UPDATES
    title, explanation = _told(by_callback=by_callback, improves=improving is not None)
    evidence = [*_fall(case, improving), *_how_far(case, lift)]
    if epochs:
        evidence.append(Evidence(f"{epochs} epochs, {case.step:,} steps", None, {"epochs": epochs}))
    return [
        Finding(
            rule="too-short",
            title=title,
            severity="warning" if sure else "note",
            confidence=_confidence(improving, epochs, doubtful=tiny or not sure),
            start=max(0, min(case.step - 1, case.step - case.progress.steps // 2)),
            stop=case.step,
            evidence=tuple(evidence),
            explanation=explanation,
            remedies=(_WATCH,) if by_callback else _remedies(epochs, tiny=tiny),
        )
    ]


def _told(*, by_callback: bool, improves: bool) -> tuple[str, str]:
    """Title and explanation."""
    if by_callback:
        return (
            "Stopped by a callback while it still improves",
            "Something in the script ended it, as EarlyStopping does, in the epoch with the best validation so far: "
            "what it watches may be the wrong number, or the wrong way round.",
        )
    if improves:
        return (
            "Ends too early: it is still improving",
            "The training stops at a fixed number of epochs although each of the last ones still made the model "
            "better.",
        )
    return (
        "Ends early, far from what can be had",
        "So few passes over the data are seldom enough, and the noise of so few steps hides whether it still "
        "improves.",
    )


def _improving(case: Case) -> _Improving | None:
    """`None`: it does not, beyond noise, or hardly any more."""
    progress = case.progress
    clearly = progress.trend == "falling"
    z = progress.z if clearly else _z_on_the_whole(case)
    if not clearly and z > -Z_SURE:
        return None
    quarters = _quarters(case)
    lately = float(quarters[2] - quarters[3])
    fallen = float(min(quarters[0] - quarters[3], SECOND_COUNTS * (quarters[1] - quarters[3])))
    return _Improving(lately, fallen, z, clearly) if fallen > 0 and lately >= LATELY * fallen else None


def _hardly_begun(case: Case, lift: float | None, epochs: int) -> bool:
    """Whether it had so few epochs that being far from what a plain model reaches says nothing else."""
    if lift is None or case.attainable is None or not 0 < epochs <= HARDLY_ANY_EPOCHS:
        return False
    return case.progress.trend in ("falling", "unclear") and case.attainable - lift >= FAR


def _sure(case: Case, improving: _Improving | None, lift: float | None, epochs: int) -> bool:
    """Whether it is worth acting on."""
    if lift is None:
        return improving is not None and improving.lately >= FALLS_STEEPLY * improving.fallen
    if case.attainable is None:
        return lift < HALFWAY
    return 0 < epochs <= FEW_EPOCHS or lift < HALFWAY * case.attainable


def _confidence(improving: _Improving | None, epochs: int, *, doubtful: bool) -> float:
    if doubtful or improving is None:
        return 0.4
    if not improving.clearly:
        return 0.55
    return 0.75 if 0 < epochs <= FEW_EPOCHS else 0.65


def _fall(case: Case, improving: _Improving | None) -> list[Evidence]:
    level = case.progress.level
    if improving is None:
        return [Evidence(f"loss {level:.4g} at the end", case.step, {"loss": level})]
    text = (
        f"loss {level:.4g} at the end; from the third to the last quarter of the steps it fell by "
        f"{improving.lately:.3g}, {improving.lately / improving.fallen:.0%} of its whole fall (trend: "
        f"{abs(improving.z):.1f} deviations)"
    )
    numbers = {"loss": level, "fell_lately": improving.lately, "fell": improving.fallen, "z": improving.z}
    return [Evidence(text, case.step, numbers)]


def _z_on_the_whole(case: Case) -> float:
    """Mann-Kendall's of a run of few epochs since its first quarter; 0 where its newest half must tell."""
    found, epochs = case.blocks("loss"), len(case.session.epoch_ends)
    if found is None or case.progress.trend != "unclear" or not 0 < epochs <= FEW_EPOCHS:
        return 0.0
    means = found.means[len(found.means) // 4 :]
    means = means[np.isfinite(means)]
    return float(trends(means[None], Z_SURE).z[0]) if len(means) >= FEWEST_STEPS // 2 else 0.0


def _quarters(case: Case) -> Float64:
    """Mean loss of each quarter since the last change, float64 `[4]`."""
    found, start = case.blocks("loss"), case.progress.start
    if found is not None:
        values = found.means
    else:
        points = case.session.epoch_logs["loss"]
        values = points.values[points.steps >= start]
    return np.array([part[~np.isnan(part)].mean() for part in np.array_split(values, 4)])


def _how_far(case: Case, lift: float | None) -> list[Evidence]:
    if lift is None:
        return []
    text, numbers = f"it has come {come(lift)}", {"lift": lift}
    if case.attainable is not None:
        text += f", {case.plain_model} {case.attainable:.0%}"
        numbers["attainable"] = case.attainable
    return [Evidence(text, case.step, numbers)]


def _ended_by_callback(case: Case) -> bool:
    """Whether the script itself ended it before its time: no error, and no command."""
    session, total = case.session, case.session.total_steps
    if session.ended is None or session.ended.outcome != "finished" or total is None:
        return False
    return case.step < NEARLY_OVER * total


def _at_best(case: Case) -> bool:
    """Whether no validation was better than the last one."""
    both = sides(case)
    return both is not None and len(both.steps) >= 2 and bool(both.validation[-1] <= both.validation.min())


def _past_best(case: Case) -> bool:
    """Whether validation was better before: more epochs would make it worse."""
    both = sides(case)
    if both is None or len(both.steps) < 3:
        return False
    best = int(np.argmin(both.validation))
    worse = both.now[1] - float(both.validation[best])
    return best < len(both.steps) - 2 and worse > 0.02 * abs(both.now[1])


def _typical_update(case: Case) -> float:
    """Median over variables of ‖Δw‖/‖w‖; infinite where it is not measured."""
    table = case.table("update_ratio")
    if table is None:
        return math.inf
    ratios = table.recent()
    ratios = ratios[np.isfinite(ratios)]
    return float(np.median(ratios)) if len(ratios) else math.inf


def _remedies(epochs: int, *, tiny: bool) -> tuple[Remedy, ...]:
    longer = Remedy(
        "Train for longer, and let validation say when to stop",
        code=f"model.fit(..., epochs={max(20, 4 * epochs)}, validation_split=0.2, callbacks=[\n"
        "    keras.callbacks.EarlyStopping(patience=5, restore_best_weights=True)])",
    )
    faster = Remedy("Or with larger steps", code="learning_rate = 3 * learning_rate")
    return (faster, longer) if tiny else (longer, faster)


_WATCH: Final = Remedy(
    "Let it watch the validation loss, which must fall",
    code='keras.callbacks.EarlyStopping(monitor="val_loss", mode="min", patience=5, restore_best_weights=True)',
)


# ── Examples ──────────────────────────────────────────────────────────────────────────────────────

_TEN = (100,) * 10


def _signal(score: float) -> SignalProbe:
    return SignalProbe(kind="accuracy", score=score, chance=0.1, examples=1_000)


def _run(
    losses: Float64,
    accuracy: Float64,
    *,
    epochs: int = 3,
    planned: int | None = None,
    ended: bool | None = None,
    validation: Sequence[float] = (),
    signal: float | None = None,
    updates: float = 2e-3,
) -> Session:
    logs = [{"loss": 1.0, **({"val_loss": validation[i]} if validation else {})} for i in range(epochs)]
    return session_of(
        {"loss": losses, "accuracy": accuracy},
        epochs=logs,
        planned_epochs=planned or epochs,
        ended=planned is None if ended is None else ended,
        task="classification",
        layers=(dense("hidden", 32), dense("out", 10, "softmax", inputs=32)),
        data=trained_on(classes=_TEN, signal=_signal(signal) if signal else None),
        tables={"update_ratio": Sampled((0, 20, 40), {"hidden/kernel": updates, "out/kernel": updates})},
    )


def _rising(count: int, to: float) -> Float64:
    return noisy(np.linspace(0.1, to, count), 0.05)


HEALTHY = {
    "it still falls, and has learned nearly all": lambda: _run(falling(300, rate=80), _rising(300, 1.2)),
    "it still falls, and half of the epochs are to come": lambda: _run(
        falling(150), _rising(150, 0.5), planned=6
    ),
    "it has stopped falling": lambda: _run(flat(1.2, 300), np.full(300, 0.6)),
    "it falls, and validation was better before": lambda: _run(
        falling(300), _rising(300, 0.7), epochs=6, validation=(2.0, 1.7, 1.5, 1.6, 1.8, 2.1)
    ),
    "EarlyStopping ended it after its best": lambda: _run(
        falling(200), _rising(200, 0.6), epochs=4, planned=20, ended=True, validation=(2.0, 1.6, 1.7, 1.8)
    ),
    "it has passed what a plain model reaches": lambda: _run(falling(300), _rising(300, 0.75), signal=0.6),
}
AILING = {
    "three epochs end in the middle of the fall": lambda: _run(falling(120), _rising(120, 0.6)),
    "EarlyStopping ended it at its best": lambda: _run(
        falling(200), _rising(200, 0.6), epochs=4, planned=20, ended=True, validation=(2.0, 1.7, 1.5, 1.2)
    ),
    "the last of three epochs is nearly over": lambda: _run(falling(96), _rising(96, 0.5), planned=3),
    "a plain model reaches more": lambda: _run(falling(200), _rising(200, 0.7), signal=0.97),
    "validation is at its best": lambda: _run(
        falling(200), _rising(200, 0.6), epochs=5, validation=(2.2, 2.0, 1.8, 1.6, 1.5)
    ),
}

RULE = Rule("too-short", check, lacks, frozenset({"plateau"}), HEALTHY, AILING)
