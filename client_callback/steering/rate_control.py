"""Who decides a rate that is computed: a schedule or a callable, and a control that we put before it.

Such a rate is part of the compiled step, so `install_controls` puts a `RateControl` on the optimizer before the first
trace; assigning its variables takes effect on the next step without a retrace. The optimizer's own `_learning_rate`,
its configuration and what is saved stay untouched. `learning_rate` assigns; this knows nothing of commands.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import keras
import numpy as np
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from client_callback.steering.backends import current_backend

_METHOD = "_get_current_learning_rate"
"""Where every Keras optimizer looks its rate up, inside the step and outside."""

_STORING = ("save_own_variables", "load_own_variables")
"""How Keras writes an optimizer's variables to a file and reads them back."""

_NO_OVERRIDE = -1.0


class RateControl:
    """Decides the rate of one optimizer whose own rate is a schedule or a callable.

    The rate is `override` where that is positive, else the schedule at `iterations + offset`, times `multiplier`.

    Args:
        optimizer: whose rate it is.
        compiled: the model's optimizer, which `optimizer` is or is inside of.
        offset: steps of the schedule that were taken before this optimizer's first.
        multiplier: of the schedule.
    """

    def __init__(self, optimizer: Any, compiled: Any, *, offset: int = 0, multiplier: float = 1.0) -> None:
        self.optimizer = optimizer
        self.compiled = compiled
        # Not attributes of the optimizer: Keras would track them, and saved files would hold them.
        self.override = _variable(_NO_OVERRIDE, keras.backend.floatx(), "unstuck_rate_override")
        self.multiplier = _variable(multiplier, keras.backend.floatx(), "unstuck_rate_multiplier")
        self.offset = _variable(offset, "int", "unstuck_schedule_offset")
        self.variables = (self.override, self.multiplier, self.offset)
        self._asked = False
        self._iterations_before = self._iterations

    @property
    def overridden(self) -> bool:
        """Whether a set rate decides, and no longer the schedule."""
        return number(self.override) > 0

    @property
    def factor(self) -> float:
        """What the schedule is multiplied by."""
        return number(self.multiplier)

    @property
    def position(self) -> int:
        """The step of the schedule that comes next."""
        return self._iterations + int(_host(self.offset))

    @property
    def bypassed(self) -> bool:
        """Whether the optimizer has updated the model without asking here: its step was compiled before."""
        return not self._asked and self._iterations > self._iterations_before

    def attach(self) -> None:
        """From the next trace on, this decides the rate."""
        # Past the optimizer's __setattr__, which would try to track what it is given.
        self.optimizer.__dict__[_METHOD] = self._rate_of_step
        if current_backend().reads_only_listed_variables:
            self.optimizer._variables.extend(self.variables)
            for owner in (self.optimizer, self.compiled):
                owner.__dict__.update({name: partial(_without_controls, owner, name) for name in _STORING})

    def detach(self) -> None:
        """From the next trace on, the optimizer is as it was before `attach`."""
        if control_of(self.optimizer) is not self:
            return
        del self.optimizer.__dict__[_METHOD]
        if not current_backend().reads_only_listed_variables:
            return
        self.optimizer._variables[:] = self.not_mine(self.optimizer._variables)
        for owner in (self.optimizer, self.compiled):
            if not any(control_of(rated) for rated in rated_optimizers(owner)):
                for name in _STORING:
                    owner.__dict__.pop(name, None)

    def not_mine(self, variables: list[Any]) -> list[Any]:
        """Those of the variables that are not this control's."""
        mine = {id(variable) for variable in self.variables}
        return [variable for variable in variables if id(variable) not in mine]

    def _rate_of_step(self) -> Any:
        """What the optimizer calls, mostly while its step is traced."""
        self._asked = True
        return self.rate()

    @property
    def _iterations(self) -> int:
        return int(_host(self.optimizer._iterations))

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


def rated_optimizers(optimizer: Any) -> list[Any]:
    """The optimizers that hold a rate: the one inside a loss scaler, or each of a `MultiOptimizer`'s."""
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return rated_optimizers(optimizer.inner_optimizer)
    if isinstance(optimizer, keras.optimizers.MultiOptimizer):
        return list(optimizer.optimizers)
    return [optimizer]


def updates(optimizer: Any) -> int:
    """How many gradients the optimizer was given so far, as its variables say."""
    return sum(int(_host(rated._iterations)) for rated in rated_optimizers(optimizer))


def control_of(optimizer: Any) -> RateControl | None:
    """The control on this very optimizer, if one is attached."""
    control = getattr(vars(optimizer).get(_METHOD), "__self__", None)
    return control if isinstance(control, RateControl) else None


def is_computed(optimizer: Any) -> bool:
    """Whether the optimizer was given a schedule or a callable instead of a number."""
    rate = optimizer._learning_rate
    return isinstance(rate, LearningRateSchedule) or (callable(rate) and not is_variable(rate))


def schedule_name(optimizer: Any) -> str | None:
    """What computes the rate now: a schedule's or a callable's name. `None`: a number decides."""
    control = control_of(optimizer)
    if not is_computed(optimizer) or (control is not None and control.overridden):
        return None
    schedule = optimizer._learning_rate
    return getattr(schedule, "__name__", None) or type(schedule).__name__


def uncontrolled(optimizer: Any) -> list[Any]:
    """The optimizers whose rate is computed, and decided by no control."""
    return [one for one in rated_optimizers(optimizer) if is_computed(one) and control_of(one) is None]


def install_controls(model: Any, optimizer: Any) -> list[RateControl]:
    """Puts a control on every optimizer whose rate is computed; must come before the trace that is to ask it."""
    controls = []
    for rated in uncontrolled(optimizer):
        with current_backend().scope(model):
            controls.append(RateControl(rated, optimizer))
        controls[-1].attach()
    if controls:
        current_backend().forget_trace(model)
    return controls


def remove_controls(optimizer: Any) -> bool:
    """Takes every control off again; returns whether there was one."""
    controls = [control for rated in rated_optimizers(optimizer) if (control := control_of(rated))]
    for control in controls:
        control.detach()
    return bool(controls)


def number(value: Any) -> float:
    """A scalar tensor or variable as the shortest decimal that is the same float32."""
    return float(str(np.float32(_host(value))))


def is_variable(rate: Any) -> bool:
    """Whether a rate is held in a plain variable."""
    return isinstance(rate, keras.Variable)


def _host(value: Any) -> Any:
    """In host memory. As a tensor first: numpy warns of Keras' variables, and warnings can be errors."""
    return ops.convert_to_numpy(ops.convert_to_tensor(value))


def _without_controls(owner: Any, method: str, store: Any) -> None:
    """Writes or reads the variables as if there were no controls: other models know none."""
    with _controls_hidden(owner):
        getattr(type(owner), method)(owner, store)


@contextmanager
def _controls_hidden(owner: Any) -> Iterator[None]:
    """Inside, no control's variables are among those of the optimizer."""
    hidden = [(rated, list(rated._variables)) for rated in rated_optimizers(owner)]
    try:
        for rated, listed in hidden:
            control = control_of(rated)
            rated._variables[:] = control.not_mine(listed) if control else listed
        yield
    finally:
        for rated, listed in hidden:
            rated._variables[:] = listed


def _variable(value: float, dtype: str, name: str) -> Any:
    return keras.Variable(value, dtype=dtype, trainable=False, aggregation="only_first_replica", name=name)
