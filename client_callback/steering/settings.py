"""Everything a command can set that is no variable's value: which optimizer trains, which layers, by what loss.

A `Setting` reads and writes one of these; `settings_of` lists all that a model has. What a command changed is the
difference of two readings, and taking it back is writing the earlier one. Weights, moments, metrics and seeds are
variables; `state` keeps those. To add a setting: a class here and a line in `settings_of`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import keras

from client_callback.steering.backends import current_backend
from client_callback.steering.describe import current_optimizer, described_settings
from client_callback.steering.learning_rate import read_rates
from client_callback.steering.optimizers import command_name
from client_callback.steering.rate_control import RateControl, control_of, is_variable, rated_optimizers
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
        """The model trains with that optimizer from its next trace on, and is saved with it."""
        for control in self.read().controls:
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


class RateSetting:
    """What the rate was set to, apart from where a schedule has got to."""

    traced = False

    def __init__(self, model: Any) -> None:
        self._model = model

    def read(self) -> tuple[float, ...]:
        """Of each rated optimizer its variable, or its control's override and multiplier."""
        return tuple(float(current_backend().host(v).item()) for v in self._variables())

    def write(self, value: tuple[float, ...]) -> None:
        """Assigns those variables; another optimizer's stay as they are."""
        variables = list(self._variables())
        if len(variables) == len(value):
            for variable, number in zip(variables, value, strict=True):
                variable.assign(number)

    def told(self) -> dict[str, Scalar]:
        """The rate of the next step, as a number."""
        return dict(read_rates(self._model.optimizer))

    def _variables(self) -> Iterator[Any]:
        for rated in rated_optimizers(self._model.optimizer):
            control = control_of(rated)
            if is_variable(rated._learning_rate):
                yield rated._learning_rate
            if control is not None:
                yield control.override
                yield control.multiplier


class TrainableSetting:
    """Whether gradients train a layer: its own flag, and those of its variables."""

    traced = True

    def __init__(self, layer: Any, name: str) -> None:
        self._layer, self._name = layer, name

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

    @property
    def _variables(self) -> list[Any]:
        return list(self._layer._trainable_variables)


def compile_arguments(model: Any) -> dict[str, Any]:
    """The arguments of `compile`, from which a saved file is compiled again; changes to it count."""
    config = getattr(model, "_compile_config", None)
    found: dict[str, Any] = getattr(config, "config", {})
    return found


def settings_of(model: Any) -> dict[str, Setting]:
    """Every setting of the model by its name. The optimizer comes first: others belong to the one at work."""
    found: dict[str, Setting] = {}
    if current_optimizer(model) is not None:
        found["optimizer"] = OptimizerSetting(model)
        found["learning_rate"] = RateSetting(model)
    for name, layer in named_layers(model).items():
        found[f"{name}.trainable"] = TrainableSetting(layer, name)
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


def named_layers(model: Any) -> dict[str, Any]:
    """Every layer by its name; one inside a model whose name is not its own alone, as `outer/inner`."""
    found: dict[str, Any] = {}

    def walk(layers: list[Any], path: str) -> None:
        for layer in layers:
            name = layer.name if layer.name not in found else f"{path}{layer.name}"
            found[name] = layer
            walk(_inner_layers(layer), f"{name}/")

    walk(_inner_layers(model), "")
    return found


def _inner_layers(layer: Any) -> list[Any]:
    """Directly inside; metrics are kept among them and train nothing."""
    inner = layer._flatten_layers(include_self=False, recursive=False)
    return [one for one in inner if isinstance(one, keras.layers.Layer)]
