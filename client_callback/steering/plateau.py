"""`schedule reduce-on-plateau …`: Keras' own `ReduceLROnPlateau`, put into a running training and taken out again.

It acts on what an epoch reports, so `rate_keeping` asks it when one has ended. Which model has such a rule is kept
here; the rule with its counters is part of the rate's setting, so `undo` and `rollback` set it back.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import keras

from client_callback.steering.learning_rate import read_rate, read_rates, set_rates
from client_callback.steering.rate_control import rated_optimizers
from client_callback.steering.schedules import Argument, a_count, a_rate, checked
from client_callback.steering.training import Refused
from client_callback.wire.protocol import Scalar

NAME = "reduce-on-plateau"

_NOT_NEGATIVE = Argument("0 or a number above", lambda v: v >= 0)

ARGUMENTS: dict[str, Argument] = {
    "monitor": Argument("a name such as val_loss", lambda v: True, kind=str),
    "factor": Argument("a number above 0 and below 1", lambda v: 0 < v < 1),
    "patience": a_count(required=False, least=0),
    "mode": Argument("auto, min or max", lambda v: v in ("auto", "min", "max"), kind=str),
    "min_delta": _NOT_NEGATIVE,
    "cooldown": a_count(required=False, least=0),
    "min_lr": a_rate(zero=True),
}
"""Those of `ReduceLROnPlateau`."""


@dataclass(frozen=True)
class Standing:
    """A rule as it stands between two batches."""

    rule: PlateauRule
    best: float | None
    wait: int
    cooldown: int
    reductions: int


@dataclass(frozen=True)
class Reduction:
    """What a rule did at the end of an epoch."""

    number: int
    """From 1."""
    before: Mapping[str, float]
    after: Mapping[str, float]
    reason: str


class PlateauRule:
    """Reduces the rate of one model when an epoch's value stops improving.

    Args:
        model: its metrics tell in which direction a value improves.
        arguments: as a command gave them.

    Raises:
        Refused: an argument is not what it may be, or the direction is not known.
    """

    def __init__(self, model: Any, arguments: Mapping[str, Scalar]) -> None:
        values = checked(arguments, ARGUMENTS, f"schedule {NAME}")
        self._callback = keras.callbacks.ReduceLROnPlateau(**values)
        self.monitor: str = self._callback.monitor
        self._check_direction(model, values)
        self.reductions = 0
        self.told_missing = False
        """Whether it has been said that an epoch has no such value."""
        self.id = self.who = ""
        """Of the command that put it in, once that is known."""

    def standing(self) -> Standing:
        """To come back to."""
        one = self._callback
        return Standing(self, one.best, one.wait, one.cooldown_counter, self.reductions)

    def restore(self, standing: Standing) -> None:
        """As it stood."""
        one = self._callback
        one.best, one.wait, one.cooldown_counter = standing.best, standing.wait, standing.cooldown
        self.reductions = standing.reductions

    def epoch_ended(self, model: Any, epoch: int, logs: Mapping[str, float]) -> Reduction | None:
        """Takes an epoch's values into account; inside the backend's `state`. They must hold `monitor`.

        Raises:
            Refused: the rate cannot be reduced any further.
        """
        one = self._callback
        before, best, waited = read_rates(model.optimizer), one.best, one.wait
        one.set_model(_Stand(model))
        try:
            one.on_epoch_end(epoch, dict(logs))
        finally:
            one.set_model(None)
        after = read_rates(model.optimizer)
        if after == before:
            return None
        self.reductions += 1
        reason = (
            f"{self.monitor} {logs[self.monitor]:.6g} is no better than {best:.6g}, {waited + 1} epochs long"
        )
        return Reduction(self.reductions, before, after, reason)

    def __str__(self) -> str:
        one = self._callback
        return (
            f"the rate times {one.factor:g} whenever {self.monitor} has not improved for {one.patience} epochs, "
            f"down to {one.min_lr:g}"
        )

    def _check_direction(self, model: Any, values: Mapping[str, Any]) -> None:
        """On a twin, which is shown one epoch and has no rate to change."""
        twin = keras.callbacks.ReduceLROnPlateau(**values)
        twin.set_model(_Stand(model))
        try:
            twin.on_epoch_end(0, {self.monitor: 0.0})
        except ValueError:
            raise Refused(
                f"schedule {NAME}: Keras does not know whether {self.monitor} should rise or fall; "
                "add mode=min or mode=max"
            ) from None


class _Rate:
    """One optimizer's rate, as `ReduceLROnPlateau` reads and sets it."""

    def __init__(self, optimizer: Any) -> None:
        self.name = optimizer.name
        self._optimizer = optimizer

    @property
    def learning_rate(self) -> float:
        """Of the next step."""
        return read_rate(self._optimizer)

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        set_rates(self._optimizer, value)


class _Several:
    """A `MultiOptimizer`'s."""

    def __init__(self, optimizers: list[Any]) -> None:
        self.optimizers = [_Rate(one) for one in optimizers]


class _Stand:
    """What `ReduceLROnPlateau` needs of a model. Held by nothing, it keeps no model alive."""

    def __init__(self, model: Any) -> None:
        self.metrics = model.metrics
        rated = rated_optimizers(model.optimizer)
        several = isinstance(model.optimizer, keras.optimizers.MultiOptimizer)
        self.optimizer = _Several(rated) if several else _Rate(rated[0])


_RULES: weakref.WeakKeyDictionary[Any, PlateauRule] = weakref.WeakKeyDictionary()


def plateau_rule(model: Any) -> PlateauRule | None:
    """The rule at work on this model."""
    return _RULES.get(model)


def put_rule(model: Any, rule: PlateauRule | None) -> None:
    """From the end of this epoch on, this rule is at work, and no other."""
    _RULES.pop(model, None)
    if rule is not None:
        _RULES[model] = rule
