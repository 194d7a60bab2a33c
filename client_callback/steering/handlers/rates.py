"""`lr` and `schedule`: who decides the learning rate, and what it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from client_callback.steering.backends import current_backend
from client_callback.steering.handlers.shared import announce_optimizer, used_optimizer, what_else_decides
from client_callback.steering.handling import Handling, Handlings
from client_callback.steering.learning_rate import read_rates, scale_rates, set_rates
from client_callback.steering.rate_control import (
    control_of,
    install_controls,
    is_computed,
    rated_optimizers,
    schedule_name,
    uncontrolled,
)
from client_callback.steering.training import Outcome, Training, retrace
from client_callback.wire import commands
from client_callback.wire.protocol import PlanLine


def set_rate(training: Training, instruction: commands.SetRate, time: float) -> Outcome:
    """`lr 3e-4`."""
    return _change_rate(training, time, lambda optimizer: set_rates(optimizer, instruction.value))


def scale_rate(training: Training, instruction: commands.ScaleRate, time: float) -> Outcome:
    """`lr x0.5`."""
    return _change_rate(training, time, lambda optimizer: scale_rates(optimizer, instruction.factor))


def _change_rate(training: Training, time: float, change: Callable[[Any], None]) -> Outcome:
    optimizer = used_optimizer(training)
    with current_backend().state(training.model):
        before = read_rates(optimizer)
        schedules = [schedule_name(one) for one in rated_optimizers(optimizer)]
        _take_control(training, optimizer, time)
        change(optimizer)
        after = read_rates(optimizer)
        notes = _about_schedules(optimizer, schedules)
    if notes:
        announce_optimizer(training, time)
    reason = "; ".join([*notes, *what_else_decides(training, optimizer)])
    return Outcome(before=before, after=after, reason=reason)


def _take_control(training: Training, optimizer: Any, time: float) -> None:
    """Puts a control on what has none yet: a schedule of a loop of one's own, or one assigned since."""
    backend = current_backend()
    if backend.late_control == "impossible" or not uncontrolled(optimizer):
        return

    def install() -> None:
        install_controls(training.model, optimizer)

    if backend.late_control == "at once":
        install()
        return
    retrace(training, install, time, "learning rate")


def _about_schedules(optimizer: Any, schedules: list[str | None]) -> list[str]:
    """What became of each schedule that decided a rate before."""
    notes = []
    for name, rated in zip(schedules, rated_optimizers(optimizer), strict=True):
        control = control_of(rated)
        if name is None or control is None or not is_computed(rated):
            continue
        kept = f"{name} keeps its shape, times {control.factor:g}"
        notes.append(f"{name} no longer decides the rate" if control.overridden else kept)
    return list(dict.fromkeys(notes))


def plan_rate(training: Training, instruction: commands.SetRate | commands.ScaleRate) -> list[PlanLine]:
    """What else decides the rate."""
    optimizer = used_optimizer(training)
    return [PlanLine(topic="rate", text=text) for text in what_else_decides(training, optimizer)]


_OF_THE_RATE: dict[str, Any] = {
    "plan": plan_rate,
    "subjects": frozenset({"rate"}),
    "steps_weights": True,
    "of_optimizer": True,
}

HANDLINGS: Handlings = {
    commands.SetRate: Handling(carry_out=set_rate, **_OF_THE_RATE),
    commands.ScaleRate: Handling(carry_out=scale_rate, **_OF_THE_RATE),
}
