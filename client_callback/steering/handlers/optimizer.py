"""`optimizer`, `set`, `accumulate`: which optimizer trains, and with which settings."""

from __future__ import annotations

from typing import Any

import keras

from client_callback.steering.backends import current_backend
from client_callback.steering.describe import described_settings
from client_callback.steering.handlers.shared import announce_optimizer, used_optimizer, what_else_decides
from client_callback.steering.handling import Handling, Handlings
from client_callback.steering.learning_rate import read_rates
from client_callback.steering.optimizers import checked_arguments, command_name, optimizer_class
from client_callback.steering.rate_control import rated_optimizers
from client_callback.steering.switch import build_replacement, exchange
from client_callback.steering.training import Outcome, Refused, Training, announce_resting_state
from client_callback.wire import commands
from client_callback.wire.protocol import PlanLine, Scalar, StateChanged


def switch_optimizer(training: Training, instruction: commands.SwitchOptimizer, time: float) -> Outcome:
    """`optimizer sgd learning_rate=0.01`."""
    old = used_optimizer(training)
    model = training.model
    cls = optimizer_class(instruction.name)
    arguments = checked_arguments(cls, instruction.arguments)
    with current_backend().state(model):
        before = _identity(old)
        replacement = build_replacement(model, old, cls, arguments)
        _check_averages(training, replacement.new)
        training.emit(StateChanged(step=training.step, time=time, state="recompiling", reason=cls.__name__))
        try:
            exchange(training, replacement)
        except BaseException:
            announce_resting_state(training, time)
            raise
        after = _identity(replacement.new)
    announce_optimizer(training, time)
    if training.paused:
        announce_resting_state(training, time)
    notes = [*replacement.notes, *what_else_decides(training, replacement.new)]
    before, after = _differences(before, after)
    return Outcome(before=before, after=after, reason="; ".join(notes))


def plan_switch(training: Training, instruction: commands.SwitchOptimizer) -> list[PlanLine]:
    """Raises Refused for what cannot be."""
    used_optimizer(training)
    checked_arguments(optimizer_class(instruction.name), instruction.arguments)
    return []


def _check_averages(training: Training, new: Any) -> None:
    swaps = [c for c in training.callbacks if isinstance(c, keras.callbacks.SwapEMAWeights)]
    if swaps and not rated_optimizers(new)[0].use_ema:
        raise Refused("SwapEMAWeights in this fit needs moving averages; leave use_ema=false out")


def _identity(optimizer: Any) -> dict[str, Scalar]:
    """Name, rate as a number, and every setting."""
    name = command_name(rated_optimizers(optimizer)[0])
    return {"optimizer": name, **described_settings(optimizer), **read_rates(optimizer)}


def _differences(
    before: dict[str, Scalar], after: dict[str, Scalar]
) -> tuple[dict[str, Scalar], dict[str, Scalar]]:
    """Name and rate always, of the settings those that are not the same on both sides."""
    missing = object()
    same = {
        key
        for key, value in before.items()
        if value == after.get(key, missing) and key not in {"optimizer", "learning_rate"}
    }
    return (
        {key: value for key, value in before.items() if key not in same},
        {key: value for key, value in after.items() if key not in same},
    )


HANDLINGS: Handlings = {
    commands.SwitchOptimizer: Handling(
        carry_out=switch_optimizer,
        plan=plan_switch,
        subjects=frozenset({"optimizer", "rate"}),
        steps_weights=True,
        of_optimizer=True,
    ),
}
