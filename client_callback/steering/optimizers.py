"""The optimizers a command can name, their arguments, and whether the values given fit.

Names are class names in lower case: Keras' own, and those registered with
`keras.saving.register_keras_serializable`. Nothing here touches a model.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

import keras

from client_callback.steering.learning_rate import check_rate
from client_callback.steering.training import Refused
from client_callback.wire.protocol import Scalar

_WRAPPERS = {"Optimizer", "LossScaleOptimizer", "MultiOptimizer"}
"""Neither can be built from a name and numbers."""

_OPTIONAL_FLOATS = {
    "weight_decay",
    "clipnorm",
    "clipvalue",
    "global_clipnorm",
    "loss_scale_factor",
    "adam_weight_decay",
    "rms_rate",
}
_OPTIONAL_INTS = {"gradient_accumulation_steps", "ema_overwrite_frequency"}
_FLOATS = {"learning_rate", "adam_lr_ratio"}
"""Floats by meaning, whatever the default's type."""

_POSITIVE = {"clipnorm", "clipvalue", "global_clipnorm", "loss_scale_factor"}
"""Keras ignores clipping by 0 or less, and divides by the loss scale."""

CLIPPING = ("clipnorm", "clipvalue", "global_clipnorm")
"""Of which Keras takes one."""

_ONLY_WHEN_MADE = {"initial_accumulator_value", "exclude_embeddings"}
"""Read when an optimizer gets its slots; those at work keep theirs."""

_BELOW_ONE = {"beta_1", "beta_2", "adam_beta_1", "adam_beta_2", "rho"}
"""Decay rates of running averages: at 1 the bias correction divides by 0."""


def optimizer_catalogue() -> dict[str, tuple[str, ...]]:
    """Every optimizer a command can name, with the arguments it takes."""
    return {name: tuple(_parameters(cls)) for name, cls in sorted(_classes().items())}


def optimizer_class(name: str) -> type:
    """The class a command names, in any case.

    Raises:
        Refused: there is none of that name.
    """
    classes = _classes()
    if name.lower() not in classes:
        raise Refused(f"no optimizer {name!r}; possible: {', '.join(sorted(classes))}")
    return classes[name.lower()]


def command_name(optimizer: Any) -> str:
    """As a command names this optimizer."""
    return type(optimizer).__name__.lower()


def checked_arguments(cls: type, arguments: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """The arguments with whole numbers made floats where floats belong.

    Raises:
        Refused: an unknown argument, or a value of another type than the argument's.
    """
    parameters = _parameters(cls)
    unknown = [name for name in arguments if name not in parameters]
    if unknown:
        raise Refused(
            f"{cls.__name__.lower()} has no argument {unknown[0]!r}; possible: {', '.join(parameters)}"
        )
    return {name: _checked(name, value, parameters[name].default) for name, value in arguments.items()}


def checked_settings(optimizer: Any, values: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Of new settings of an optimizer at work, those that are others than now; with numbers made floats.

    Args:
        optimizer: without loss scaling.
        values: name of a constructor's argument → value.

    Raises:
        Refused: a name or a value that is not possible here.
    """
    possible = settings(optimizer)
    for name in values:
        if name == "learning_rate":
            raise Refused("the learning rate is set by `lr VALUE`, `lr xFACTOR` or `schedule`")
        if name in _ONLY_WHEN_MADE & possible.keys():
            made = f"optimizer {command_name(optimizer)} {name}={values[name]}"
            raise Refused(f"{name} counts only when the optimizer is made; `{made}` makes it anew")
        if name not in possible:
            names = ", ".join(one for one in possible if one not in _ONLY_WHEN_MADE)
            raise Refused(
                f"{command_name(optimizer)} has no setting {name!r}; possible: {names}, or LAYER.NAME"
            )
    checked = checked_arguments(type(optimizer), values)
    changes = {name: value for name, value in checked.items() if value != possible[name]}
    _check_clipping({**possible, **checked}, changes)
    return changes


def _check_clipping(wanted: Mapping[str, Scalar], changes: Mapping[str, Scalar]) -> None:
    clipped = [name for name in CLIPPING if wanted.get(name) is not None]
    kept = [name for name in clipped if name not in changes]
    if len(clipped) > 1 and kept:
        new = next(name for name in clipped if name in changes)
        instead = " ".join([*(f"{name}=none" for name in kept), f"{new}={wanted[new]:g}"])
        raise Refused(
            f"{kept[0]}={wanted[kept[0]]:g} is set, and Keras takes one kind of clipping; write `set {instead}`"
        )


def settings(optimizer: Any) -> dict[str, Scalar]:
    """The constructor's arguments as they are now, except the rate and the name."""
    names = [name for name in _parameters(type(optimizer)) if name not in {"learning_rate", "name"}]
    values = {name: getattr(optimizer, name, None) for name in names}
    return {name: v for name, v in values.items() if v is None or isinstance(v, bool | int | float | str)}


def default_settings(cls: type) -> dict[str, Scalar]:
    """The constructor's arguments as they are when none is given."""
    return {name: parameter.default for name, parameter in _parameters(cls).items()}


def _classes() -> dict[str, type]:
    registered = keras.saving.get_custom_objects().values()
    candidates = [*vars(keras.optimizers).values(), *registered]
    return {
        cls.__name__.lower(): cls
        for cls in candidates
        if inspect.isclass(cls)
        and issubclass(cls, keras.optimizers.Optimizer)
        and cls.__name__ not in _WRAPPERS
    }


def _parameters(cls: type) -> dict[str, inspect.Parameter]:
    """What a command may give: lists, as Muon's `exclude_layers`, it cannot."""
    found: dict[str, inspect.Parameter] = {}
    for base in cls.__mro__:
        if "__init__" not in vars(base):
            continue
        parameters = inspect.signature(base.__init__).parameters  # type: ignore[misc]
        found = {**found, **{name: p for name, p in parameters.items() if name not in found}}
        if all(p.kind is not p.VAR_KEYWORD for p in parameters.values()):
            break
    fitting = {n: p for n, p in found.items() if p.kind in _NAMED and _type_of(n, p.default) is not None}
    return (
        {"learning_rate": fitting.pop("learning_rate"), **fitting} if "learning_rate" in fitting else fitting
    )


_NAMED = {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY}


def _type_of(name: str, default: Any) -> tuple[type, bool] | None:
    """(type, whether `none` is possible) of an argument. `None`: no value of a command fits it."""
    if name in _FLOATS:
        return float, False
    if name in _OPTIONAL_FLOATS:
        return float, True
    if name in _OPTIONAL_INTS:
        return int, True
    if name == "name":
        return str, True
    if isinstance(default, bool | int | float | str):
        return type(default), False
    return None


def _checked(name: str, value: Scalar, default: Any) -> Scalar:
    expected = _type_of(name, default)
    assert expected is not None, name  # noqa: S101 (only such names pass `_parameters`)
    kind, optional = expected
    if value is None and optional:
        return None
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < 1 << 1000 else math.inf
    if type(value) is not kind:
        none = " or none" if optional else ""
        raise Refused(f"{name} must be {_KINDS[kind]}{none}, received {value!r}")
    if isinstance(value, float):
        _check_number(name, value)
    elif isinstance(value, int) and abs(value) >= _BEYOND_COUNTING:
        raise Refused(f"{name} must be below 2^53, received {value}")
    return value


_BEYOND_COUNTING = 1 << 53
_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def _check_number(name: str, value: float) -> None:
    if name == "learning_rate":
        check_rate(value, keras.backend.floatx())
    if not math.isfinite(value):
        raise Refused(f"{name} must be finite, received {value}")
    if name in _POSITIVE and value <= 0:
        raise Refused(f"{name} must be positive, received {value:g}; `{name}=none` turns it off")
    if name in _BELOW_ONE and not 0 <= value < 1:
        raise Refused(f"{name} must be at least 0 and below 1, received {value:g}")
