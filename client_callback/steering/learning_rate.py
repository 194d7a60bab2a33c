"""The learning rate of a running training: reading it, setting it and scaling it.

A rate held in a plain variable is assigned; one that is computed has a `RateControl` before it, whose variables are.
Called by the handlers and by `switch`, inside the backend's `state`; knows nothing of commands.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from client_callback.steering.rate_control import (
    RateControl,
    control_of,
    is_computed,
    is_variable,
    number,
    rated_optimizers,
    schedule_name,
)
from client_callback.steering.training import Refused


@dataclass(frozen=True)
class _Assignment:
    """One variable that is to change, and the rate that must be read back then."""

    optimizer: Any
    variable: Any
    old: float
    new: float
    rate: float


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


def set_rates(optimizer: Any, value: float) -> None:
    """From the next step on the rate is `value`, whatever a schedule says.

    Raises:
        Refused: float32 cannot hold the rate, or it cannot be changed here; nothing was changed.
    """
    _assign([_set_one(rated, value) for rated in rated_optimizers(optimizer)])


def scale_rates(optimizer: Any, factor: float) -> None:
    """From the next step on the rate is `factor` times as large; a schedule keeps its shape.

    Raises:
        Refused: float32 cannot hold the rate, or it cannot be changed here; nothing was changed.
    """
    _assign([_scale_one(rated, factor) for rated in rated_optimizers(optimizer)])


def check_rate(value: float, dtype: str = "float32", what: str = "the learning rate") -> None:
    """Refuses what a variable of `dtype` would round to 0 or to infinity."""
    limits = np.finfo(np.float16 if dtype == "float16" else np.float32)
    if not float(limits.tiny) <= value <= float(limits.max):
        raise Refused(
            f"{what} would be {value:g}; {dtype} holds {float(limits.tiny):.3g} to {float(limits.max):.3g}"
        )


def _set_one(optimizer: Any, value: float) -> _Assignment:
    variable = _plain_variable(optimizer)
    if variable is None:
        variable = _control(optimizer).override
    check_rate(value, variable.dtype)
    return _Assignment(optimizer, variable, number(variable), value, rate=value)


def _scale_one(optimizer: Any, factor: float) -> _Assignment:
    rate = read_rate(optimizer) * factor
    if not rate:
        raise Refused("the learning rate is 0, and times anything it stays 0; `lr VALUE` sets another")
    variable = _plain_variable(optimizer)
    if variable is None:
        control = _control(optimizer)
        variable = control.override if control.overridden else control.multiplier
        if not control.overridden:
            check_rate(number(variable) * factor, variable.dtype, "the schedule's multiplier")
    check_rate(rate, variable.dtype)
    old = number(variable)
    return _Assignment(optimizer, variable, old, old * factor, rate)


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
        raise Refused(
            f"the rate of {optimizer.name} became a schedule after the train step had been compiled; "
            "`optimizer NAME learning_rate=VALUE` replaces it"
        )
    if control.bypassed:
        raise Refused(
            f"the step of this training was compiled before the run began, with {schedule_name(optimizer)} in it"
        )
    return control


def _assign(assignments: Sequence[_Assignment]) -> None:
    """Assigns all and reads all back; when one is not what it should be, all are as before."""
    try:
        for one in assignments:
            one.variable.assign(one.new)
        for one in assignments:
            _verify(one)
    except BaseException:
        for one in assignments:
            one.variable.assign(one.old)
        raise


def _verify(assignment: _Assignment) -> None:
    found = read_rate(assignment.optimizer)
    tolerance = 1e-5 if assignment.variable.dtype in {"float32", "float64"} else 1e-2
    if not abs(found - assignment.rate) <= tolerance * assignment.rate:
        raise RuntimeError(
            f"the learning rate was set to {assignment.rate:g} and reads {found:g}; the old one is back"
        )
