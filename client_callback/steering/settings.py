"""Everything a command can set that is no variable's value: which optimizer trains, which layers, by what loss.

A `Setting` reads and writes one of these; `settings_of` lists all that a model has. What a command changed is the
difference of two readings, and taking it back is writing the earlier one. Weights, moments, metrics and seeds are
variables; `state` keeps those. To add a setting: a class here and a line in `settings_of`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from client_callback.steering.backends import current_backend
from client_callback.steering.carrying import go_on_with
from client_callback.steering.describe import current_optimizer, described_settings
from client_callback.steering.layer_values import values_of
from client_callback.steering.learning_rate import rate_goal, read_rates
from client_callback.steering.loss_control import ClassWeightSetting, LossWeightSetting, loss_weights_of
from client_callback.steering.named_layers import named_layers
from client_callback.steering.optimizers import command_name
from client_callback.steering.plateau import NAME as PLATEAU
from client_callback.steering.plateau import Standing, plateau_rule, put_rule
from client_callback.steering.rate_control import (
    VARIABLE_DECIDES,
    RateControl,
    control_of,
    exact,
    is_variable,
    rated_optimizers,
    schedule_name,
    updates,
)
from client_callback.steering.trained_variables import follow, trained_variables
from client_callback.wire.protocol import Scalar

Settings = dict[str, Any]
"""Name → a reading, as `Setting.read` gives it. Readings are compared with ==."""


class Setting(Protocol):
    """One thing that can be set."""

    @property
    def traced(self) -> bool:
        """Whether the compiled step holds it, so that it has to be traced anew when it changes."""

    def read(self) -> Any:
        """As it is now, as a value that does not change by itself."""

    def write(self, value: Any) -> None:
        """As it was read before."""

    def told(self) -> dict[str, Scalar]:
        """As it is now, in words and numbers for an answer."""


@dataclass(frozen=True)
class Optimizers:
    """Which optimizer trains, who decides its rate, and with which the model would be saved. Compared by identity."""

    optimizer: Any
    compiled: Any
    """In the arguments of `compile`, from which a saved file is compiled again."""
    controls: tuple[RateControl | None, ...]
    """Of each rated optimizer."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Optimizers) and self._parts == other._parts

    def __hash__(self) -> int:
        return hash(self._parts)

    @property
    def _parts(self) -> tuple[int, ...]:
        return tuple(map(id, (self.optimizer, self.compiled, *self.controls)))


class OptimizerSetting:
    """The optimizer itself, with the controls of its rate."""

    traced = True

    def __init__(self, model: Any) -> None:
        self._model = model

    def read(self) -> Optimizers:
        """The objects as they are."""
        optimizer = self._model.optimizer
        controls = tuple(control_of(rated) for rated in rated_optimizers(optimizer))
        return Optimizers(optimizer, compile_arguments(self._model).get("optimizer"), controls)

    def told(self) -> dict[str, Scalar]:
        """Its name and every argument."""
        optimizer = self._model.optimizer
        return {"optimizer": command_name(rated_optimizers(optimizer)[0]), **described_settings(optimizer)}

    def write(self, value: Optimizers) -> None:
        """The model trains with that optimizer from its next trace on, and is saved with it.

        It goes on with what the present one has gathered, as far as that fits: to be as it was, its variables have to
        be set after this.
        """
        present, present_controls = self._model.optimizer, self.read().controls
        go_on_with(present, value.optimizer)
        alike = type(rated_optimizers(present)[0]) is type(rated_optimizers(value.optimizer)[0])
        for control, before in zip(value.controls, present_controls, strict=False):
            if control is not None and before is not None:
                control.go_on_from(before, numbers=alike)
        for control in present_controls:
            if control is not None:
                control.detach()
        self._model.optimizer = value.optimizer
        for control in value.controls:
            if control is not None:
                control.attach()
        arguments = compile_arguments(self._model)
        if "optimizer" in arguments:
            arguments["optimizer"] = value.compiled
        current_backend().forget_trace(self._model)


@dataclass(frozen=True)
class Rates:
    """What the rate was set to, apart from where a schedule or a ramp has got to."""

    numbers: tuple[dict[str, float], ...]
    """Of each rated optimizer its variable `rate`, and its control's by their names."""
    held: tuple[bool, ...]
    """Of each rated optimizer."""
    plateau: Standing | None
    """The rule that reduces the rate between epochs."""
    goal: tuple[object, ...] = field(default=(), compare=False)
    """Where all this leads to without another command: the same while a ramp is under way and after, and for a rule
    whatever it reduces."""
    begun: tuple[tuple[Any, int, int], ...] = field(default=(), compare=False)
    """Each rated optimizer, the step of its own at which its ramp began, and its step then. Not compared: an
    optimizer that takes over counts otherwise, and the ramp goes on where it is."""


class RateSetting:
    """The numbers that decide the rate, and who may change them."""

    traced = False

    def __init__(self, model: Any) -> None:
        self._model = model

    def read(self) -> Rates:
        """As they are."""
        rated = rated_optimizers(self._model.optimizer)
        numbers = tuple({name: exact(v) for name, v in _rate_variables(one).items()} for one in rated)
        controls = [control_of(one) for one in rated]
        held = tuple(control is not None and control.held for control in controls)
        begun = tuple(
            (one, int(exact(control.ramp_begin)) if control and control.ramps else 0, updates(one))
            for one, control in zip(rated, controls, strict=True)
        )
        rule = plateau_rule(self._model)
        goal = tuple(map(rate_goal, rated)) if rule is None else (rule,)
        return Rates(numbers, held, None if rule is None else rule.standing(), goal, begun)

    def write(self, value: Rates) -> None:
        """Assigns those variables; of a control that was not there then, so that the optimizer's own rate decides."""
        rated = rated_optimizers(self._model.optimizer)
        for one, numbers, held, begun in zip(rated, value.numbers, value.held, value.begun, strict=False):
            _write_rate(one, numbers, begun)
            control = control_of(one)
            if control is not None:
                control.held = held
        put_rule(self._model, None if value.plateau is None else value.plateau.rule)
        if value.plateau is not None:
            value.plateau.rule.restore(value.plateau)

    def told(self) -> dict[str, Scalar]:
        """The rate of the next step as a number, and who decides it."""
        optimizer = self._model.optimizer
        names = sorted({name for one in rated_optimizers(optimizer) if (name := schedule_name(one))})
        rule = plateau_rule(self._model)
        found: dict[str, Scalar] = dict(read_rates(optimizer))
        found["schedule"] = ", ".join(names) or None
        found["hold"] = any(control.held for control in self._controls())
        found[PLATEAU] = None if rule is None else str(rule)
        return found

    def _controls(self) -> Iterator[RateControl]:
        for rated in rated_optimizers(self._model.optimizer):
            control = control_of(rated)
            if control is not None:
                yield control


def _rate_variables(rated: Any) -> dict[str, Any]:
    """What decides the rate of one optimizer, by name, apart from when its ramp began."""
    control = control_of(rated)
    found = {"rate": rated._learning_rate} if is_variable(rated._learning_rate) else {}
    if control is not None:
        found |= {"override": control.override, "multiplier": control.multiplier}
        if control.ramps:
            found |= {"start": control.ramp_start, "steps": control.ramp_steps}
    return found


def _write_rate(rated: Any, numbers: Mapping[str, float], begun: tuple[Any, int, int]) -> None:
    """Sets one optimizer's rate as it was read, there or of another optimizer and with another control."""
    variables, control = _rate_variables(rated), control_of(rated)
    if "rate" in variables and "override" not in variables and numbers.get("override", 0) > 0:
        numbers = {"rate": numbers["override"]}
    absent = {"override": VARIABLE_DECIDES, "multiplier": 1.0, "steps": 0}
    for name, variable in variables.items():
        if name in numbers or name in absent:
            variable.assign(numbers.get(name, absent.get(name)))
    if control is not None and control.ramps and "steps" in numbers:
        of, begin, then = begun
        control.ramp_begin.assign(begin if of is rated else begin - then + updates(rated))


class TrainableSetting:
    """Whether gradients train a layer: its own flag, and those of its variables."""

    traced = True

    def __init__(self, model: Any, layer: Any, name: str) -> None:
        self._model, self._layer, self._name = model, layer, name

    def told(self) -> dict[str, Scalar]:
        """Of layers without weights there is nothing to tell."""
        return {f"{self._name}.trainable": bool(self._layer._trainable)} if self._layer.weights else {}

    def read(self) -> tuple[bool, ...]:
        """The layer's flag first."""
        return (bool(self._layer._trainable), *(bool(v.trainable) for v in self._variables))

    def write(self, value: tuple[bool, ...]) -> None:
        """Sets each flag alone: the layer's own setter would set those of all layers inside it."""
        self._layer._trainable = value[0]
        for variable, flag in zip(self._variables, value[1:], strict=True):
            if variable.trainable != flag:
                variable.trainable = flag
        current_backend().forget_trace(self._model)
        current_backend().forget_evaluation(self._model)

    @property
    def _variables(self) -> list[Any]:
        return list(self._layer._trainable_variables)


class TrainedSetting:
    """Which variables the optimizer updates. Follows from the optimizer and the layers, and so is written last."""

    traced = True

    def __init__(self, model: Any) -> None:
        self._model = model

    def read(self) -> tuple[int, ...]:
        """Ids of the optimizer, which another may replace, and of its variables."""
        optimizer = self._model.optimizer
        return (id(optimizer), *map(id, trained_variables(optimizer)))

    def write(self, value: tuple[int, ...]) -> None:
        """Whatever was read: those that are trainable now."""
        follow(self._model)
        current_backend().forget_trace(self._model)

    def told(self) -> dict[str, Scalar]:
        """The layers tell it."""
        return {}


def compile_arguments(model: Any) -> dict[str, Any]:
    """The arguments of `compile`, from which a saved file is compiled again; changes to it count."""
    config = getattr(model, "_compile_config", None)
    found: dict[str, Any] = getattr(config, "config", {})
    return found


def settings_of(model: Any) -> dict[str, Setting]:
    """Every setting of the model by its name, in the order in which they are to be written."""
    found: dict[str, Setting] = {}
    if current_optimizer(model) is not None:
        found["optimizer"] = OptimizerSetting(model)
        found["learning_rate"] = RateSetting(model)
    for name, layer in named_layers(model).items():
        found[f"{name}.trainable"] = TrainableSetting(model, layer, name)
    found.update(values_of(model))
    if getattr(model, "_compile_loss", None) is not None:
        found["class_weight"] = ClassWeightSetting(model)
        if loss_weights_of(model):
            found["loss_weights"] = LossWeightSetting(model)
    if current_optimizer(model) is not None:
        found["trained variables"] = TrainedSetting(model)
    return found


def read_settings(model: Any) -> Settings:
    """All of them as they are now; inside the backend's `state`."""
    return {name: setting.read() for name, setting in settings_of(model).items()}


def tell_settings(model: Any) -> dict[str, Scalar]:
    """All of them in words and numbers; inside the backend's `state`."""
    found: dict[str, Scalar] = {}
    for setting in settings_of(model).values():
        found.update(setting.told())
    return found


def differences(
    before: Mapping[str, Scalar], after: Mapping[str, Scalar]
) -> tuple[dict[str, Scalar], dict[str, Scalar]]:
    """Of two tellings what is not the same on both sides."""
    missing = object()
    same = {name for name, value in before.items() if value == after.get(name, missing)}
    return (
        {name: value for name, value in before.items() if name not in same},
        {name: value for name, value in after.items() if name not in same},
    )


def changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of `before` that are others in `after`."""
    return {name: value for name, value in before.items() if name in after and after[name] != value}
