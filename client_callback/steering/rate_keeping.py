"""What happens to the rate without a command: ramps arrive, held rates are looked after, plateaus are acted on.

`Steering` asks between batches and at the ends of epochs; nothing here costs a step anything while there is nothing
to keep.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from client_callback.steering.backends import current_backend
from client_callback.steering.describe import current_optimizer
from client_callback.steering.handlers.shared import announce_optimizer
from client_callback.steering.learning_rate import reassert_rates, settle_ramps
from client_callback.steering.plateau import NAME, PlateauRule, Reduction, plateau_rule, put_rule
from client_callback.steering.rate_control import RateControl, control_of, rated_optimizers
from client_callback.steering.rate_owners import rate_owners
from client_callback.steering.training import Refused, Training
from client_callback.wire.protocol import Problem, Reply

NEVER = sys.maxsize


class RateKeeping:
    """Keeps the rate of one training."""

    def __init__(self, training: Training) -> None:
        self._training = training
        self._look = False
        self.attention_at = NEVER
        """The step before which `tick` wants to be called."""

    def commanded(self, reply: Reply) -> None:
        """A command was carried out: a rule that it put in acts in its name."""
        rule = self._rule()
        if rule is not None and not rule.id:
            rule.id, rule.who = reply.id, reply.who
        self.attention_at = 0

    def epoch_began(self) -> None:
        """Callbacks may just have set a rate that is held."""
        if any(control.held for control in self._controls()):
            self._look = True
            self.attention_at = 0

    def tick(self, time: float) -> None:
        """Between two batches."""
        self.attention_at = NEVER
        controls = list(self._controls())
        if not any(control.ramps or control.held for control in controls):
            return
        try:
            self._keep(controls, time)
        except Exception as error:  # noqa: BLE001 (foreign optimizers; training goes on without this)
            what = f"the learning rate is not looked after: {type(error).__name__}: {error}"
            self._training.emit(Problem(step=self._training.step, time=time, what=what))

    def _keep(self, controls: Sequence[RateControl], time: float) -> None:
        training = self._training
        with current_backend().state(training.model):
            optimizer = current_optimizer(training.model)
            if self._look:
                self._look = False
                self._tell_changed(reassert_rates(optimizer), time)
            settled = settle_ramps(optimizer)
            left = [control.ramp_left for control in controls if control.ramps]
        if settled:
            announce_optimizer(training, time)
        if any(left):
            self.attention_at = training.step + min(steps for steps in left if steps)

    def epoch_ended(self, epoch: int, logs: Mapping[str, float], time: float) -> list[Reply]:
        """An epoch's values are known; returns what was done because of them, as answers."""
        rule, training = self._rule(), self._training
        if rule is None:
            return []
        if rule.monitor not in logs:
            self._tell_missing(rule, logs, time)
            return []
        try:
            with current_backend().state(training.model):
                reduction = rule.epoch_ended(training.model, epoch, logs)
        except Exception as error:  # noqa: BLE001 (values of foreign metrics; training goes on without the rule)
            put_rule(training.model, None)
            said = str(error) if isinstance(error, Refused) else f"{type(error).__name__}: {error}"
            what = f"{NAME} has ended: {said}"
            training.emit(Problem(step=training.step, time=time, what=what))
            announce_optimizer(training, time)
            return []
        return [] if reduction is None else [self._reply(rule, reduction, time)]

    def end(self) -> None:
        """The training is over."""
        if self._training.model is not None:
            put_rule(self._training.model, None)

    def _tell_missing(self, rule: PlateauRule, logs: Mapping[str, float], time: float) -> None:
        """Once: with `validation_freq`, some epochs have no `val_…`."""
        if rule.told_missing:
            return
        rule.told_missing = True
        possible = ", ".join(sorted(logs)) or "nothing"
        what = f"{NAME} waits: there is no {rule.monitor} in this epoch's values, only {possible}"
        self._training.emit(Problem(step=self._training.step, time=time, what=what))

    def _reply(self, rule: PlateauRule, reduction: Reduction, time: float) -> Reply:
        """As a command that did the same would be answered."""
        old, new = next(zip(reduction.before.values(), reduction.after.values(), strict=True))
        return Reply(
            step=self._training.step,
            time=time,
            id=f"{rule.id}-{reduction.number}",
            text=f"lr {new!r}" if len(reduction.after) == 1 else f"lr x{new / old:g}",
            who=f"{NAME} of {rule.who}",
            status="applied",
            before=dict(reduction.before),
            after=dict(reduction.after),
            reason=reduction.reason,
        )

    def _tell_changed(self, changed: Mapping[str, float], time: float) -> None:
        training = self._training
        names = ", ".join(owner.name for owner in rate_owners(training.callbacks)) or "something in this fit"
        for name, value in changed.items():
            what = f"{names} set the rate of {name} to {value:g}; it is held, so that has no effect"
            training.emit(Problem(step=training.step, time=time, what=what))

    def _rule(self) -> PlateauRule | None:
        model = self._training.model
        return None if model is None else plateau_rule(model)

    def _controls(self) -> Iterator[RateControl]:
        optimizer: Any | None = current_optimizer(self._training.model)
        for rated in [] if optimizer is None else rated_optimizers(optimizer):
            control = control_of(rated)
            if control is not None:
                yield control
