"""The learning rate of a running training: reading it, setting it, scaling it, and what computes it.

A rate held in a plain variable is assigned. A schedule or a callable is part of the compiled step, so
`install_controls` puts a `RateControl` on the optimizer before the first trace; assigning its variables takes
effect on the next step without a retrace. The optimizer's own `_learning_rate`, its configuration, its variables
and what is saved stay untouched. Called by the handlers and by `switch`; knows nothing of commands.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from client_callback.steering.backends import current_backend
from client_callback.steering.training import Refused

_METHOD = "_get_current_learning_rate"
"""Where every Keras optimizer looks its rate up, inside the step and outside."""

_NO_OVERRIDE = -1.0


class RateControl:
    """Decides the rate of one optimizer whose own rate is a schedule or a callable.

    The rate is `override` where that is positive, else the schedule at `iterations + offset`, times `multiplier`.
    """

    def __init__(self, optimizer: Any, *, offset: int = 0, multiplier: float = 1.0) -> None:
        self.optimizer = optimizer
        # Not attributes of the optimizer: Keras would track them, and saved files would hold them.
        self.override = _variable(_NO_OVERRIDE, keras.backend.floatx(), "unstuck_rate_override")
        self.multiplier = _variable(multiplier, keras.backend.floatx(), "unstuck_rate_multiplier")
        self.offset = _variable(offset, "int", "unstuck_schedule_offset")
        self._asked = False
        self._iterations_before = self._iterations

    @property
    def overridden(self) -> bool:
        """Whether a set rate decides, and no longer the schedule."""
        return _number(self.override) > 0

    @property
    def factor(self) -> float:
        """What the schedule is multiplied by."""
        return _number(self.multiplier)

    @property
    def position(self) -> int:
        """The step of the schedule that comes next."""
        return self._iterations + int(ops.convert_to_numpy(self.offset))

    @property
    def bypassed(self) -> bool:
        """Whether the optimizer has updated the model without asking here: its step was compiled before."""
        return not self._asked and self._iterations > self._iterations_before

    def attach(self) -> None:
        """From the next trace on, this decides the rate."""
        # Past the optimizer's __setattr__, which would try to track what it is given.
        self.optimizer.__dict__[_METHOD] = self._rate_of_step

    def detach(self) -> None:
        """From the next trace on, the optimizer is as it was before `attach`."""
        if control_of(self.optimizer) is self:
            del self.optimizer.__dict__[_METHOD]

    def _rate_of_step(self) -> Any:
        """What the optimizer calls, mostly while its step is traced."""
        self._asked = True
        return self.rate()

    @property
    def _iterations(self) -> int:
        return int(ops.convert_to_numpy(self.optimizer._iterations))

    def rate(self) -> Any:
        """The rate of the step at hand, as a floating-point scalar tensor."""
        own = self._own_rate()
        multiplied = own * ops.cast(self.multiplier, own.dtype)
        return ops.where(self.override > 0, ops.cast(self.override, own.dtype), multiplied)

    def _own_rate(self) -> Any:
        schedule = self.optimizer._learning_rate
        if isinstance(schedule, LearningRateSchedule):
            rate = schedule(ops.add(self.optimizer._iterations, self.offset))
        else:
            rate = getattr(type(self.optimizer), _METHOD)(self.optimizer)
        rate = ops.convert_to_tensor(rate)
        is_float = "float" in keras.backend.standardize_dtype(rate.dtype)
        return rate if is_float else ops.cast(rate, keras.backend.floatx())


@dataclass(frozen=True)
class _Assignment:
    """One variable that is to change, and the rate that must be read back then."""

    optimizer: Any
    variable: Any
    old: float
    new: float
    rate: float


def rated_optimizers(optimizer: Any) -> list[Any]:
    """The optimizers that hold a rate: the one inside a loss scaler, or each of a `MultiOptimizer`'s."""
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return rated_optimizers(optimizer.inner_optimizer)
    if isinstance(optimizer, keras.optimizers.MultiOptimizer):
        return list(optimizer.optimizers)
    return [optimizer]


def control_of(optimizer: Any) -> RateControl | None:
    """The control on this very optimizer, if one is attached."""
    control = getattr(vars(optimizer).get(_METHOD), "__self__", None)
    return control if isinstance(control, RateControl) else None


def is_computed(optimizer: Any) -> bool:
    """Whether the optimizer was given a schedule or a callable instead of a number."""
    rate = optimizer._learning_rate
    return isinstance(rate, LearningRateSchedule) or (callable(rate) and not _is_variable(rate))


def schedule_name(optimizer: Any) -> str | None:
    """What computes the rate now: a schedule's or a callable's name. `None`: a number decides."""
    control = control_of(optimizer)
    if not is_computed(optimizer) or (control is not None and control.overridden):
        return None
    schedule = optimizer._learning_rate
    return getattr(schedule, "__name__", None) or type(schedule).__name__


def install_controls(model: Any, optimizer: Any) -> list[RateControl]:
    """Puts a control on every optimizer whose rate is computed; must come before the first trace."""
    controls = []
    for rated in rated_optimizers(optimizer):
        if is_computed(rated) and control_of(rated) is None:
            with current_backend().scope(model):
                controls.append(RateControl(rated))
            controls[-1].attach()
    return controls


def remove_controls(optimizer: Any) -> bool:
    """Takes every control off again; returns whether there was one."""
    controls = [control for rated in rated_optimizers(optimizer) if (control := control_of(rated))]
    for control in controls:
        control.detach()
    return bool(controls)


def read_rate(optimizer: Any) -> float:
    """The rate the next step would use: the shortest decimal that is the same float32."""
    control = control_of(optimizer)
    return _number(optimizer.learning_rate if control is None else control.rate())


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
    return _Assignment(optimizer, variable, _number(variable), value, rate=value)


def _scale_one(optimizer: Any, factor: float) -> _Assignment:
    rate = read_rate(optimizer) * factor
    if not rate:
        raise Refused("the learning rate is 0, and times anything it stays 0; `lr VALUE` sets another")
    variable = _plain_variable(optimizer)
    if variable is None:
        control = _control(optimizer)
        variable = control.override if control.overridden else control.multiplier
        if not control.overridden:
            check_rate(_number(variable) * factor, variable.dtype, "the schedule's multiplier")
    check_rate(rate, variable.dtype)
    old = _number(variable)
    return _Assignment(optimizer, variable, old, old * factor, rate)


def _plain_variable(optimizer: Any) -> Any | None:
    """The variable that holds the rate. `None`: it is computed, and a control decides."""
    rate = optimizer._learning_rate
    if _is_variable(rate):
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


def _variable(value: float, dtype: str, name: str) -> Any:
    return keras.Variable(value, dtype=dtype, trainable=False, aggregation="only_first_replica", name=name)


def _is_variable(rate: Any) -> bool:
    return isinstance(rate, keras.Variable)


def _number(value: Any) -> float:
    return float(str(np.float32(ops.convert_to_numpy(value))))
