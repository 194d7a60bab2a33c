"""The learning rate of a running training: reading it, setting it, scaling it, and letting it ramp.

A rate held in a plain variable is assigned. One that is computed, ramps, or is held has a `RateControl` before it,
whose variables are. Called by the handlers and by `switch`, inside the backend's `state`; knows nothing of commands.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from client_callback.steering.backends import current_backend
from client_callback.steering.rate_control import (
    VARIABLE_DECIDES,
    RateControl,
    control_of,
    deciding_schedule,
    exact,
    is_computed,
    is_variable,
    number,
    rated_optimizers,
    schedule_name,
)
from client_callback.steering.training import Refused


@dataclass(frozen=True)
class _Assignment:
    """Variables that are to change together, and the rate that must be read back then."""

    optimizer: Any
    writes: Sequence[tuple[Any, float]]
    rate: float
    held: bool = False


def read_rate(optimizer: Any) -> float:
    """The rate the next step would use: the shortest decimal that is the same float32."""
    control = control_of(optimizer)
    return number(optimizer.learning_rate if control is None else control.rate())


def read_rates(optimizer: Any) -> dict[str, float]:
    """`learning_rate`, or one `learning_rate_NAME` per optimizer inside a `MultiOptimizer`."""
    rated = rated_optimizers(optimizer)
    if not isinstance(optimizer, keras.optimizers.MultiOptimizer):
        return {"learning_rate": read_rate(rated[0])}
    return {f"learning_rate_{one.name}": read_rate(one) for one in rated}


def rate_goal(optimizer: Any) -> tuple[object, ...]:
    """What decides the rate once its ramp is over: a number, or a schedule with what it is multiplied by."""
    control, schedule = control_of(optimizer), deciding_schedule(optimizer)
    if schedule is not None:
        return (schedule, 1.0 if control is None else control.factor)
    if control is not None and control.overridden:
        return (number(control.override),)
    return (number(optimizer._learning_rate),)


def used_rate(optimizer: Any) -> float:
    """The rate that the last step used, as far as it is decided here."""
    control = control_of(optimizer)
    if control is None:
        return read_rate(optimizer)
    last = control.iterations - 1
    began = control.schedule is not None and control.position < 1
    return number(control.rate(None if began or last < 0 else last))


def set_rates(optimizer: Any, value: float, *, hold: bool = False) -> None:
    """From the next step on the rate is `value`, whatever a schedule says.

    Args:
        optimizer: the model's.
        value: the rate.
        hold: whether a control decides it, so that nothing else can change it; there must be one.

    Raises:
        Refused: float32 cannot hold the rate, or it cannot be changed here; nothing was changed.
    """
    _assign([_set_one(rated, value, hold) for rated in rated_optimizers(optimizer)])


def scale_rates(optimizer: Any, factor: float, *, hold: bool = False) -> None:
    """From the next step on the rate is `factor` times as large; a schedule or a ramp keeps its shape.

    Raises:
        Refused: float32 cannot hold the rate, or it cannot be changed here; nothing was changed.
    """
    _assign([_scale_one(rated, factor, hold) for rated in rated_optimizers(optimizer)])


def ramp_rates(
    optimizer: Any, steps: int, *, value: float | None = None, factor: float = 1.0, hold: bool = False
) -> None:
    """The rate goes in a straight line, over `steps` steps, to `value`, or to `factor` times what it is.

    A schedule keeps its shape when it is scaled: then its multiplier goes there. Every optimizer must have a control
    with ramps.

    Raises:
        Refused: float32 cannot hold the rate, or it cannot be changed here; nothing was changed.
    """
    _assign([_ramp_one(rated, steps, value, factor, hold) for rated in rated_optimizers(optimizer)])


def settle_ramps(optimizer: Any) -> bool:
    """Ends the ramps that have arrived, so that plain variables decide again; returns whether one had.

    A variable whose rate is held still does not decide.
    """
    settled = False
    for rated in rated_optimizers(optimizer):
        control = control_of(rated)
        if control is None or not control.ramps or control.ramp_left or not number(control.ramp_steps):
            continue
        settled = True
        if control.overridden and is_variable(rated._learning_rate) and not control.held:
            _assign([_set_one(rated, number(control.override), hold=False)])
        else:
            control.ramp_steps.assign(0)
    return settled


def reassert_rates(optimizer: Any) -> dict[str, float]:
    """Gives variables whose rate is held their value again; returns what they had been changed to, by optimizer."""
    found = {}
    for rated in rated_optimizers(optimizer):
        control = control_of(rated)
        variable = rated._learning_rate
        if control is None or not control.held or not control.overridden or not is_variable(variable):
            continue
        value = number(variable)
        if value != number(control.override):
            found[rated.name] = value
            current_backend().copy([(variable, control.override)])
    return found


def leave_rates(optimizer: Any) -> None:
    """Before the controls come off: plain variables hold the rates used last, where they did not decide."""
    for rated in rated_optimizers(optimizer):
        control = control_of(rated)
        if control is not None and control.decides:
            rated._learning_rate.assign(used_rate(rated))


def check_rate(value: float, dtype: str = "float32", what: str = "the learning rate") -> None:
    """Refuses what a variable of `dtype` would round to 0 or to infinity."""
    limits = np.finfo(np.float16 if dtype == "float16" else np.float32)
    if not float(limits.tiny) <= value <= float(limits.max):
        raise Refused(
            f"{what} would be {value:g}; {dtype} holds {float(limits.tiny):.3g} to {float(limits.max):.3g}"
        )


def _set_one(optimizer: Any, value: float, hold: bool) -> _Assignment:
    variable = _plain_variable(optimizer)
    control = control_of(optimizer) if variable is not None else _control(optimizer)
    writes: list[tuple[Any, float]] = []
    if variable is not None:
        check_rate(value, variable.dtype)
        writes.append((variable, value))
    if control is not None:
        check_rate(value, control.override.dtype)
        released = variable is not None and not hold
        writes.append((control.override, VARIABLE_DECIDES if released else value))
        writes += _standing_still(control)
        if variable is not None:
            writes.append((control.multiplier, 1.0))
    return _Assignment(optimizer, writes, rate=value, held=hold)


def _scale_one(optimizer: Any, factor: float, hold: bool) -> _Assignment:
    rate = _scaled(optimizer, factor)
    control = control_of(optimizer)
    if control is None or not (control.scheduled or control.ramp_left):
        if _plain_variable(optimizer) is None:
            _control(optimizer)
        return _set_one(optimizer, rate, hold)
    _control(optimizer)
    target = control.multiplier if control.scheduled else control.override
    _check_target(control, number(target) * factor)
    check_rate(rate, target.dtype)
    writes = [(target, number(target) * factor)]
    if control.ramp_left:
        writes.append((control.ramp_start, number(control.ramp_start) * factor))
    return _Assignment(optimizer, writes, rate, held=hold)


def _ramp_one(optimizer: Any, steps: int, value: float | None, factor: float, hold: bool) -> _Assignment:
    control = _control(optimizer)
    present = read_rate(optimizer)
    if value is None and control.scheduled:
        start = number(control.ramped(control.iterations)) if control.ramps else control.factor
        target = control.factor * factor
        _check_target(control, target)
        writes = [(control.multiplier, target)]
    else:
        start = present
        target = _scaled(optimizer, factor) if value is None else value
        check_rate(target, control.override.dtype)
        writes = [(control.override, target)]
        variable = _plain_variable(optimizer)
        if hold and variable is not None:
            writes.append((variable, target))
    writes += [
        (control.ramp_start, start),
        (control.ramp_begin, control.iterations),
        (control.ramp_steps, steps),
    ]
    return _Assignment(optimizer, writes, present, held=hold)


def _scaled(optimizer: Any, factor: float) -> float:
    rate = read_rate(optimizer) * factor
    if not rate:
        raise Refused("the learning rate is 0, and times anything it stays 0; `lr VALUE` sets another")
    return rate


def _check_target(control: RateControl, target: float) -> None:
    what = "the schedule's multiplier" if control.scheduled else "the learning rate"
    check_rate(target, control.multiplier.dtype, what)


def _standing_still(control: RateControl) -> list[tuple[Any, float]]:
    return [(control.ramp_steps, 0)] if control.ramps else []


def _plain_variable(optimizer: Any) -> Any | None:
    """The variable that holds the rate. `None`: it is computed, and a control decides."""
    rate = optimizer._learning_rate
    if is_variable(rate):
        return rate
    if not is_computed(optimizer):
        raise Refused(f"the rate of {optimizer.name} is a {type(rate).__name__}, which cannot be assigned")
    return None


def _control(optimizer: Any) -> RateControl:
    control = control_of(optimizer)
    if control is None:
        raise Refused(f"the rate of {optimizer.name} is a schedule that nothing controls")
    if control.bypassed:
        name = schedule_name(optimizer) or "its rate"
        raise Refused(f"the step of this training was compiled before the run began, with {name} in it")
    return control


def _assign(assignments: Sequence[_Assignment]) -> None:
    """Assigns all and reads all back; when one is not what it should be, all are as before."""
    old = [(variable, exact(variable)) for one in assignments for variable, _ in one.writes]
    holds = [(control, control.held) for one in assignments if (control := control_of(one.optimizer))]
    try:
        for one in assignments:
            for variable, value in one.writes:
                variable.assign(value)
            control = control_of(one.optimizer)
            if control is not None:
                control.held = one.held
        for one in assignments:
            _verify(one)
    except BaseException:
        for variable, value in old:
            variable.assign(value)
        for control, held in holds:
            control.held = held
        raise


def _verify(assignment: _Assignment) -> None:
    found = read_rate(assignment.optimizer)
    tolerance = 1e-5 if keras.backend.floatx() in {"float32", "float64"} else 1e-2
    if not abs(found - assignment.rate) <= tolerance * assignment.rate:
        raise RuntimeError(
            f"the learning rate was set to {assignment.rate:g} and reads {found:g}; the old one is back"
        )
