"""Who decides a rate that is no plain variable: a schedule, a callable, or a control that we put before it.

A computed rate is part of the compiled step, so `install_controls` puts a `RateControl` on the optimizer before the
first trace; assigning its variables takes effect on the next step without a retrace. `put_controls` puts one on
later, with a schedule or with ramps, and the step is traced anew. The optimizer's own `_learning_rate`, its
configuration and what is saved stay untouched. `learning_rate` assigns; this knows nothing of commands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
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

SCHEDULE_DECIDES = -1.0
VARIABLE_DECIDES = 0.0
"""Values of `override` that are no rate. The second: the optimizer's own variable, and no longer our schedule."""

RAMP = "ramp"
"""What decides the rate while it goes from one number to another, as `schedule_name` tells it."""


class RateControl:
    """Decides the rate of one optimizer.

    The rate is `override` where that is positive, else the schedule at `iterations + offset`, times `multiplier`.
    Steps are Keras' `iterations`, one per batch even while gradients are accumulated.

    With `ramps`, whichever of the two numbers counts goes there in a straight line: from `ramp_start` at
    `ramp_begin` over `ramp_steps` steps, `start + (number - start) · k / steps` at the k-th.

    Args:
        optimizer: whose rate it is.
        compiled: the model's optimizer, which `optimizer` is or is inside of.
        schedule: what decides instead of the optimizer's own rate. `None`: that.
        offset: steps of the schedule that were taken before this optimizer's first.
        multiplier: of the schedule.
        ramps: whether the step can follow ramps; it costs every step some scalar operations.
    """

    def __init__(
        self,
        optimizer: Any,
        compiled: Any,
        *,
        schedule: LearningRateSchedule | None = None,
        offset: int = 0,
        multiplier: float = 1.0,
        ramps: bool = False,
    ) -> None:
        self.optimizer = optimizer
        self.compiled = compiled
        self.schedule = schedule
        self.ramps = ramps
        self.held = False
        """Whether the rate stays what it was set to, whatever callbacks assign."""
        # Not attributes of the optimizer: Keras would track them, and saved files would hold them.
        floats = keras.backend.floatx()
        self.override = _variable(SCHEDULE_DECIDES, floats, "unstuck_rate_override")
        self.multiplier = _variable(multiplier, floats, "unstuck_rate_multiplier")
        self.offset = _variable(offset, "int", "unstuck_schedule_offset")
        self.variables: tuple[Any, ...] = (self.override, self.multiplier, self.offset)
        if ramps:
            self.ramp_start = _variable(1.0, floats, "unstuck_ramp_start")
            self.ramp_begin = _variable(0, "int", "unstuck_ramp_begin")
            self.ramp_steps = _variable(0, "int", "unstuck_ramp_steps")
            self.variables += (self.ramp_start, self.ramp_begin, self.ramp_steps)
        self._asked = False
        self._iterations_before = self.iterations

    @property
    def overridden(self) -> bool:
        """Whether a set rate decides, and no schedule."""
        return number(self.override) > 0

    @property
    def scheduled(self) -> bool:
        """Whether a schedule decides: the one given here, or the optimizer's own."""
        override = number(self.override)
        if is_variable(self.optimizer._learning_rate):
            return self.schedule is not None and override < 0
        return override <= 0

    @property
    def decides(self) -> bool:
        """Whether what is assigned to the optimizer's own variable has no effect."""
        return is_variable(self.optimizer._learning_rate) and (self.overridden or self.scheduled)

    @property
    def factor(self) -> float:
        """What the schedule is multiplied by."""
        return number(self.multiplier)

    @property
    def position(self) -> int:
        """The step of the schedule that comes next."""
        return self.iterations + int(_host(self.offset))

    @property
    def iterations(self) -> int:
        """Steps that the optimizer has taken, as Keras counts them."""
        return int(_host(self.optimizer._iterations))

    @property
    def ramp_left(self) -> int:
        """Steps until the ramp is over. 0: there is none."""
        if not self.ramps:
            return 0
        return max(0, int(_host(self.ramp_begin)) + int(_host(self.ramp_steps)) - self.iterations)

    @property
    def bypassed(self) -> bool:
        """Whether the optimizer has updated the model without asking here: its step was compiled before."""
        return not self._asked and self.iterations > self._iterations_before

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

    def carried_to(self, optimizer: Any, compiled: Any, *, ramps: bool | None = None) -> RateControl:
        """A control that goes on where this one is, for another optimizer with its own `iterations` or for the same.

        `ramps`: whether it can follow ramps. `None`: if this one can.
        """
        begun = updates(optimizer)
        other = RateControl(
            optimizer,
            compiled,
            schedule=self.schedule,
            offset=self.position - begun,
            multiplier=self.factor,
            ramps=self.ramps if ramps is None else ramps,
        )
        other.held = self.held
        copy = current_backend().copy
        copy([(other.override, self.override)])
        if self.ramps:
            copy([(other.ramp_start, self.ramp_start), (other.ramp_steps, self.ramp_steps)])
            other.ramp_begin.assign(int(_host(self.ramp_begin)) - self.iterations + begun)
        return other

    def go_on_from(self, other: RateControl, *, numbers: bool) -> None:
        """Takes the place of another control of the same schedule.

        `numbers`: whether also at what the rate was set to there.
        """
        if self is other or self.schedule is not other.schedule:
            return
        self.offset.assign(other.position - self.iterations)
        if not numbers:
            return
        current_backend().copy([(self.override, other.override), (self.multiplier, other.multiplier)])
        self.held = other.held
        if self.ramps and other.ramps:
            current_backend().copy([(self.ramp_start, other.ramp_start), (self.ramp_steps, other.ramp_steps)])
            self.ramp_begin.assign(int(_host(other.ramp_begin)) - other.iterations + self.iterations)

    def _rate_of_step(self) -> Any:
        """What the optimizer calls, mostly while its step is traced."""
        self._asked = True
        own = self.optimizer._learning_rate
        return _RateInEffect(own, self.rate) if is_variable(own) else self.rate()

    def rate(self, step: int | None = None) -> Any:
        """The rate of a step of the optimizer's as a floating-point scalar tensor. `None`: of the one at hand."""
        iterations = self.optimizer._iterations if step is None else step
        own = self._own_rate(iterations)
        override, multiplier = self.override, self.multiplier
        if self.ramps:
            override = multiplier = self.ramped(iterations)
        multiplied = own * ops.cast(multiplier, own.dtype)
        return ops.where(self.override > 0, ops.cast(override, own.dtype), multiplied)

    def ramped(self, iterations: Any) -> Any:
        """Override or multiplier, whichever counts, on its way there."""
        override, multiplier, start, begin, steps = map(
            ops.convert_to_tensor,
            (self.override, self.multiplier, self.ramp_start, self.ramp_begin, self.ramp_steps),
        )
        target = ops.where(override > 0, override, multiplier)
        taken = ops.maximum(ops.subtract(iterations, begin), 0)
        share = ops.cast(taken, target.dtype) / ops.cast(ops.maximum(steps, 1), target.dtype)
        return ops.where(taken >= steps, target, start + (target - start) * share)

    def _own_rate(self, iterations: Any) -> Any:
        own = self.optimizer._learning_rate
        schedule = own if self.schedule is None else self.schedule
        if isinstance(schedule, LearningRateSchedule):
            rate = _floating(schedule(ops.add(iterations, self.offset)))
        else:
            rate = _floating(getattr(type(self.optimizer), _METHOD)(self.optimizer))
        if self.schedule is None or not is_variable(own):
            return rate
        return ops.where(ops.equal(self.override, VARIABLE_DECIDES), ops.cast(own, rate.dtype), rate)


class _RateInEffect(keras.Variable):  # type: ignore[misc] # Keras has no types
    """An optimizer's rate variable to whoever reads or assigns it, with the value that a control decides.

    Callbacks may assign `optimizer.learning_rate`, and a tensor could not be: their error would end the training.
    """

    def __init__(self, own: Any, rate: Callable[[], Any]) -> None:
        # Not Keras' own, which would make a variable and count it.
        self.__dict__.update(vars(own))
        self.__dict__["_unstuck_own"] = own
        self.__dict__["_unstuck_rate"] = rate

    @property
    def value(self) -> Any:
        """The rate in effect, as a tensor."""
        return self._unstuck_rate()

    def assign(self, value: Any) -> Any:
        """Assigns the optimizer's own variable, which may not decide."""
        return self._unstuck_own.assign(value)


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


def deciding_schedule(optimizer: Any) -> Any | None:
    """The schedule or callable that decides the rate now. `None`: a number does."""
    control = control_of(optimizer)
    if control is None:
        return optimizer._learning_rate if is_computed(optimizer) else None
    if not control.scheduled:
        return None
    return optimizer._learning_rate if control.schedule is None else control.schedule


def schedule_name(optimizer: Any) -> str | None:
    """What computes the rate now: a schedule's or a callable's name, or `RAMP`. `None`: a number decides."""
    schedule = deciding_schedule(optimizer)
    if schedule is not None:
        return getattr(schedule, "__name__", None) or type(schedule).__name__
    control = control_of(optimizer)
    return RAMP if control is not None and control.overridden and control.ramp_left else None


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


def put_controls(model: Any, optimizer: Any, make: Callable[[Any], RateControl | None]) -> None:
    """Puts `make(rated)` on each rated optimizer in the place of what it has; the step must be traced anew then.

    Where `make` says `None`, the optimizer keeps what it has.
    """
    for rated in rated_optimizers(optimizer):
        with current_backend().scope(model):
            control = make(rated)
        if control is None:
            continue
        old = control_of(rated)
        if old is not None:
            old.detach()
        control.attach()
    current_backend().forget_trace(model)


def remove_controls(optimizer: Any) -> bool:
    """Takes every control off again; returns whether there was one."""
    controls = [control for rated in rated_optimizers(optimizer) if (control := control_of(rated))]
    for control in controls:
        control.detach()
    return bool(controls)


def number(value: Any) -> float:
    """A scalar tensor or variable as the shortest decimal that is the same float32."""
    return float(str(np.float32(_host(value))))


def exact(value: Any) -> float:
    """A scalar tensor or variable as it is; of replicas' copies the first."""
    return float(_host(value).item())


def is_variable(rate: Any) -> bool:
    """Whether a rate is held in a plain variable."""
    return isinstance(rate, keras.Variable)


def _floating(rate: Any) -> Any:
    rate = ops.convert_to_tensor(rate)
    is_float = "float" in keras.backend.standardize_dtype(rate.dtype)
    return rate if is_float else ops.cast(rate, keras.backend.floatx())


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
