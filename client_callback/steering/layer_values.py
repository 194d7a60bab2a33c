"""Numbers of layers that a command can set: dropout rates, noise, momenta, slopes, strengths of regularisation.

Only what the layer reads anew in each call, and writes into its configuration, so that a saved model has it too. They
are constants of the compiled step, so a new value takes effect with a new trace.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import keras

from client_callback.steering.backends import current_backend
from client_callback.steering.named_layers import brief, chosen_layers, named_layers
from client_callback.steering.training import Refused
from client_callback.wire.protocol import Scalar

_Strength = Literal["l1", "l2"]


@dataclass(frozen=True)
class _Range:
    """What a value may be."""

    low: float
    high: float
    open: bool
    """Whether `high` itself is out of it."""

    def check(self, name: str, value: Scalar) -> float:
        """The value as a float. Raises Refused when it is none, or out of range."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise Refused(f"{name} must be a number, received {value!r}")
        fits = self.low <= value < self.high or (value == self.high and not self.open)
        if not fits or not math.isfinite(value):
            raise Refused(f"{name} must be {self}, received {value:g}")
        return float(value)

    def __str__(self) -> str:
        if self.high == math.inf:
            return f"a finite number from {self.low:g} on"
        return f"at least {self.low:g} and {'below' if self.open else 'at most'} {self.high:g}"


_SHARE = _Range(0.0, 1.0, open=True)
_UP_TO_ONE = _Range(0.0, 1.0, open=False)
_FROM_ZERO = _Range(0.0, math.inf, open=True)

_ATTRIBUTES: tuple[tuple[type, str, _Range], ...] = (
    (keras.layers.Dropout, "rate", _SHARE),
    (keras.layers.SpatialDropout1D, "rate", _SHARE),
    (keras.layers.SpatialDropout2D, "rate", _SHARE),
    (keras.layers.SpatialDropout3D, "rate", _SHARE),
    (keras.layers.AlphaDropout, "rate", _SHARE),
    (keras.layers.GaussianDropout, "rate", _SHARE),
    (keras.layers.GaussianNoise, "stddev", _UP_TO_ONE),
    (keras.layers.BatchNormalization, "momentum", _UP_TO_ONE),
    (keras.layers.LeakyReLU, "negative_slope", _FROM_ZERO),
    (keras.layers.ReLU, "negative_slope", _FROM_ZERO),
)
_RANDOM = {"rate", "stddev"}
"""A layer made with 0 of these has no random generator, so that it could not use another value."""

_STRENGTHS: tuple[_Strength, ...] = ("l1", "l2")
_KERNEL_REGULARIZER = "kernel_regularizer"


@dataclass(frozen=True, eq=False)
class _Regularizer:
    """A layer's regularizer with its strengths. Compared by these; of a class of the user's own by identity."""

    regularizer: Any
    strengths: tuple[float, float] | None
    """l1 and l2. `None`: it has others."""

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Regularizer):
            return NotImplemented
        if self.strengths is None or other.strengths is None:
            return self.regularizer is other.regularizer
        return self.strengths == other.strengths

    def __hash__(self) -> int:
        return hash(self.strengths)


class LayerValueSetting:
    """One number of a layer.

    Args:
        model: the layer's.
        layer: that holds it.
        layer_name: as commands name the layer.
        name: of the number: an attribute, or `l1` or `l2` of the kernel's regularizer.
    """

    traced = True

    def __init__(self, model: Any, layer: Any, layer_name: str, name: str) -> None:
        self._model, self._layer, self._name = model, layer, name
        self.key = f"{layer_name}.{name}"

    def read(self) -> Any:
        """The number; where the regularizer holds it, that."""
        return _regularizer_of(self._layer) if self._name in _STRENGTHS else getattr(self._layer, self._name)

    def write(self, value: Any) -> None:
        """From the next trace on."""
        if self._name in _STRENGTHS:
            self._layer.kernel_regularizer = value.regularizer
            kernel: Any = _kernel(self._layer)
            kernel.regularizer = value.regularizer
        else:
            setattr(self._layer, self._name, value)
        current_backend().forget_trace(self._model)
        current_backend().forget_evaluation(self._model)

    def told(self) -> dict[str, Scalar]:
        """Strengths of a regularizer of one's own cannot be told."""
        value = self.number
        return {} if value is None else {self.key: value}

    @property
    def number(self) -> float | None:
        """As it is now. `None`: a regularizer of another class has none such."""
        if self._name not in _STRENGTHS:
            return float(getattr(self._layer, self._name))
        strengths = _regularizer_of(self._layer).strengths
        return None if strengths is None else strengths[_STRENGTHS.index(self._name)]

    def with_number(self, value: Scalar) -> Any:
        """What to write for a value that was asked for.

        Raises:
            Refused: the value is out of range, or the layer could not use it.
        """
        if self._name in _STRENGTHS:
            return self._with_strength(_FROM_ZERO.check(self.key, value))
        limits = next(
            r for kind, name, r in _ATTRIBUTES if isinstance(self._layer, kind) and name == self._name
        )
        number = limits.check(self.key, value)
        if self._name in _RANDOM and number and getattr(self._layer, "seed_generator", None) is None:
            raise Refused(
                f"{self.key}: the layer was made with {self._name} 0 and so without a random generator; make it with "
                f"a small {self._name} to turn it up later"
            )
        return number

    def _with_strength(self, number: float) -> _Regularizer:
        layer = self._layer
        if getattr(layer, "lora_enabled", False) or getattr(layer, "quantization_mode", None):
            raise Refused(
                f"{self.key}: the layer's kernel is quantized or held by LoRA, and not trained itself"
            )
        present = _regularizer_of(layer)
        if present.strengths is None:
            kind = type(present.regularizer).__name__
            raise Refused(f"{self.key}: the kernel has a regularizer of another kind ({kind})")
        strengths = tuple(
            number if name == self._name else kept
            for name, kept in zip(_STRENGTHS, present.strengths, strict=True)
        )
        return _Regularizer(_regularizer(*strengths), (strengths[0], strengths[1]))


@dataclass(frozen=True)
class LayerChange:
    """One number that is to be set, checked."""

    setting: LayerValueSetting
    value: Any
    layer: Any
    number: float

    def run(self) -> None:
        """Sets it; to be run where the step is traced anew afterwards."""
        self.setting.write(self.value)

    @property
    def needed(self) -> bool:
        """Whether it is another than now."""
        return bool(self.setting.read() != self.value)


def values_of(model: Any) -> dict[str, LayerValueSetting]:
    """Every number of the model's layers that can be set, by `LAYER.NAME`."""
    return {
        f"{layer_name}.{name}": LayerValueSetting(model, layer, layer_name, name)
        for layer_name, layer in named_layers(model).items()
        for name in _names(layer)
    }


def checked_layer_changes(model: Any, values: Mapping[str, Scalar]) -> list[LayerChange]:
    """The changes that `LAYER.NAME=VALUE` ask for; a layer may be named with `*` and `?`.

    Raises:
        Refused: a layer or a number of it does not exist, or cannot have that value.
    """
    found: dict[str, LayerChange] = {}
    for key, value in values.items():
        pattern, _, name = key.rpartition(".")
        layers = chosen_layers(model, [pattern])
        fitting = {layer_name: layer for layer_name, layer in layers.items() if name in _names(layer)}
        if not fitting:
            raise Refused(_no_such_value(model, layers, name))
        for layer_name, layer in fitting.items():
            setting = LayerValueSetting(model, layer, layer_name, name)
            if setting.key in found:
                raise Refused(f"{setting.key} is given twice")
            _combine(found, setting, layer, value)
    return list(found.values())


def notes_on(model: Any, changes: list[LayerChange]) -> list[str]:
    """What is worth knowing beyond the values."""
    still = [change.setting.key for change in changes if _regularises_nothing(model, change)]
    return [f"{brief(still)}: frozen weights are not regularised"] if still else []


def _combine(found: dict[str, LayerChange], setting: LayerValueSetting, layer: Any, value: Scalar) -> None:
    """Adds a change; one of l1 and one of l2 of the same layer are written with both strengths."""
    wanted = setting.with_number(value)
    number = float(value) if isinstance(value, int | float) else math.nan
    for key, other in list(found.items()):
        if (
            other.layer is layer
            and isinstance(wanted, _Regularizer)
            and isinstance(other.value, _Regularizer)
        ):
            name = setting.key.rpartition(".")[2]
            l1, l2 = (
                one if mine == name else two
                for mine, one, two in zip(
                    _STRENGTHS, wanted.strengths or (), other.value.strengths or (), strict=True
                )
            )
            wanted = _Regularizer(_regularizer(l1, l2), (l1, l2))
            found[key] = LayerChange(other.setting, wanted, layer, other.number)
    found[setting.key] = LayerChange(setting, wanted, layer, number)


def _names(layer: Any) -> list[str]:
    names = [name for kind, name, _ in _ATTRIBUTES if isinstance(layer, kind)]
    return [*dict.fromkeys(names), *(_STRENGTHS if _kernel(layer) is not None else ())]


def _no_such_value(model: Any, layers: Mapping[str, Any], name: str) -> str:
    own = sorted({possible for layer in layers.values() for possible in _names(layer)})
    if own:
        return f"{brief(layers)} has no {name!r} that can be set; possible: {', '.join(own)}"
    every = values_of(model)
    possible = f"possible: {brief(every)}" if every else "no layer of this model has one"
    return f"{brief(layers)} has no {name!r} that can be set; {possible}"


def _regularises_nothing(model: Any, change: LayerChange) -> bool:
    kernel = _kernel(change.layer)
    trained = any(variable is kernel for variable in model.trainable_variables)
    return isinstance(change.value, _Regularizer) and not trained


def _kernel(layer: Any) -> Any | None:
    """The variable that `kernel_regularizer` is on. `None`: this layer has none of its own."""
    if _KERNEL_REGULARIZER not in vars(layer):
        return None
    for name in ("_kernel", "kernel"):
        variable = vars(layer).get(name)
        if isinstance(variable, keras.Variable):
            return variable
    return None


def _regularizer_of(layer: Any) -> _Regularizer:
    regularizer = layer.kernel_regularizer
    kinds = {keras.regularizers.L1, keras.regularizers.L2, keras.regularizers.L1L2}
    if regularizer is None:
        return _Regularizer(None, (0.0, 0.0))
    if type(regularizer) not in kinds:
        return _Regularizer(regularizer, None)
    config = regularizer.get_config()
    return _Regularizer(regularizer, (float(config.get("l1", 0.0)), float(config.get("l2", 0.0))))


def _regularizer(l1: float, l2: float) -> Any:
    if not l1:
        return keras.regularizers.L2(l2) if l2 else None
    # Keras' L1 would round to the backend's float.
    return keras.regularizers.L1L2(l1, l2)
