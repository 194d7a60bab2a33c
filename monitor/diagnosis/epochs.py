"""What the model had in training and in validation at the same moments: at the ends of epochs.

Keras reports of training the mean over the whole epoch, which lags behind a validation at its end: while a model
improves quickly, its validation looks better for that reason alone. So the steps on both sides of the epoch's end are
taken, or the means of the epochs on both sides where there is no more. Rules that compare the two sides ask here.
"""

from __future__ import annotations

import functools
import math
from typing import Final, NamedTuple

import numpy as np

from client_callback.wire.protocol import Float64, Int64
from monitor.diagnosis.case import Case, per_case

MOST_EPOCHS: Final = 32
"""Looked at: of more, evenly spaced ones, the newest always among them. Bounds the cost."""
WIDEST: Final = 32
"""Steps on either side of an epoch's end."""
NEWEST: Final = 3
"""Validations that count as now; their median bears one that is off."""


class Sides(NamedTuple):
    """One entry per epoch looked at, in order; at least one."""

    steps: Int64
    """The last step before each validation."""
    training: Float64
    """NaN: not known at that moment."""
    validation: Float64

    @property
    def now(self) -> tuple[float, float]:
        """The newest of both: training, validation."""
        return _newest(self.training), _newest(self.validation)


@per_case
def validated_accuracy(case: Case) -> str | None:
    """Name of the accuracy that both sides report. `None`: there is none."""
    names = (name.removeprefix("val_") for name in case.session.validation)
    return next((name for name in names if "acc" in name and name in case.session.epoch_logs), None)


@per_case
def sides(case: Case, name: str = "loss") -> Sides | None:
    """Both sides since the training was last changed by a command. `None`: it is not validated."""
    points = case.session.validation.get(f"val_{name}")
    if points is None:
        return None
    known = np.flatnonzero((points.steps >= case.changed_at) & np.isfinite(points.values))
    if not len(known):
        return None
    if len(known) > MOST_EPOCHS:
        known = known[_spread(len(known))]
    steps = points.steps[known]
    return Sides(steps, _training_at(case, name, steps), np.asarray(points.values[known], np.float64))


def lacks_validations(case: Case, fewest: int) -> str:
    """Why a rule that takes so many validations cannot tell anything. Empty: there are enough."""
    both = sides(case)
    if both is None:
        return "the training is not validated"
    count = len(both.steps)
    return f"only {count} of the {fewest} validations it takes are done" if count < fewest else ""


@per_case
def reached(case: Case) -> float | None:
    """The better of the lifts in training and in validation. `None`: not known.

    Dropout and noise, which act in training only, make training look worse than the model is.
    """
    lifts = [lift for lift in (case.lift, validated_lift(case)) if lift is not None]
    return max(lifts, default=None)


def come(lift: float) -> str:
    """What a lift means, as the end of a sentence."""
    return (
        f"{lift:.0%} of the way from guessing to perfect"
        if lift > 0
        else "no further than guessing, or worse"
    )


@per_case
def validated_lift(case: Case) -> float | None:
    """As `Case.lift`, of the newest validations since the last change. `None`: not known."""
    base, name = case.baseline, validated_accuracy(case)
    if base is None:
        return None
    if base.classes > 1:
        both = sides(case, name) if name else None
        return None if both is None else (both.now[1] - base.majority) / max(1.0 - base.majority, 1e-9)
    loss = case.output.loss if case.output else ""
    squared = ["mse", "mean_squared_error", *(["loss"] if loss in ("mean_squared_error", "mse") else [])]
    for both in (sides(case, one) for one in squared):
        if both is not None and base.variance > 0:
            return 1.0 - both.now[1] / base.variance
    return None


@functools.lru_cache(maxsize=2)
def _spread(count: int) -> Int64:
    """Places of `MOST_EPOCHS` epochs among so many."""
    return np.linspace(0, count - 1, MOST_EPOCHS).round().astype(np.int64)


def _training_at(case: Case, name: str, steps: Int64) -> Float64:
    """Of training at the end of these steps, float64 `[n]`."""
    column = case.per_step(name)
    if column is None:
        return _between_epochs(case, name, steps)
    width = min(WIDEST, max(2, (case.session.steps_per_epoch or 4) // 2))
    places = steps[:, None] + np.arange(1 - width, 1 + width)[None]
    inside = (places >= 0) & (places < len(column))
    values = column.values.take(places, mode="clip")
    known = inside & np.isfinite(values)
    number = known.sum(axis=1)
    total = np.where(known, values, 0.0).sum(axis=1, dtype=np.float64)
    return np.asarray(np.divide(total, number, out=np.full(len(steps), math.nan), where=number > 0))


def _between_epochs(case: Case, name: str, steps: Int64) -> Float64:
    """Halfway between the means of the epoch before and of the one after; of the last, its own."""
    points = case.session.epoch_logs.get(name)
    if points is None or not len(points):
        return np.full(len(steps), math.nan)
    place = np.searchsorted(points.steps, steps, "right") - 1
    own = np.where(place >= 0, points.values[place.clip(0)], math.nan)
    after = points.values[(place + 1).clip(0, len(points) - 1)]
    return np.asarray((own + after) / 2, np.float64)


def _newest(values: Float64) -> float:
    known = sorted(filter(math.isfinite, values[-NEWEST:].tolist()))
    return (known[(len(known) - 1) // 2] + known[len(known) // 2]) / 2 if known else math.nan
