"""What is known of each layer before the first step: its activation, its settings, its weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import keras

from client_callback.host_view import host_view, outside_graphs
from client_callback.instrument.layers import activation_of
from client_callback.summary import summary_of
from client_callback.wire.protocol import Layer, Scalar, Summary

MAX_KERNEL_ENTRIES = 65_536
"""Of a layer's kernel that are read: their standard deviation is then off by 0.3 %."""
MAX_TEXT = 200
"""Longer settings are data, such as a vocabulary or a function's code."""
_OF_EVERY_LAYER = {"name", "trainable", "activation", "dtype"}
_WIDTHS = ("units", "filters", "output_dim")
"""Settings that tell how long the last axis of the output is."""


def describe_layers(model: keras.Model) -> Iterator[Layer]:
    """The layers in call order, those of nested models in place of the model."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from describe_layers(layer)
        else:
            yield _described(layer)


def activation_name(layer: keras.layers.Layer) -> str:
    """Name of its activation function, `linear` for none; of a wrapper, that of the layer it applies at each place.

    Empty: its output is no activation.
    """
    if isinstance(layer, keras.layers.TimeDistributed):
        layer = layer.layer
    return activation_of(layer) or ""


def settings_of(layer: keras.layers.Layer) -> dict[str, Scalar]:
    """What is plain in its configuration, as Keras' own part of its class tells it.

    Initializers and the like stand as their class's name, the factors of a kernel's regularizer as `l1` and `l2`.
    """
    found: dict[str, Scalar] = {"dtype": layer.dtype_policy.name}
    for name, value in _configuration(layer).items():
        if name not in _OF_EVERY_LAYER:
            found.update(_plain(name, value))
    return found


def _described(layer: keras.layers.Layer) -> Layer:
    name, class_name = layer.name, type(layer).__name__
    try:
        settings = settings_of(layer)
    except Exception:  # noqa: BLE001 (a user's own class may have any configuration, or none)
        settings = {}
    shape, kernel = _kernel(layer)
    return Layer(
        name=name,
        class_name=class_name,
        parameters=layer.count_params() if layer.built else 0,
        trainable=bool(layer.trainable),
        activation=activation_name(layer),
        units=units_of(layer, settings),
        settings=settings,
        kernel_shape=shape,
        kernel=kernel,
    )


def units_of(layer: keras.layers.Layer, settings: Mapping[str, Scalar]) -> int:
    """Length of its output's last axis. 0: not known."""
    try:
        return last_axis(keras.tree.flatten(layer.output)[0])
    except (
        AttributeError,
        ValueError,
        IndexError,
    ):  # called with no symbolic tensor: in a `call` of the user's
        width = next((settings[name] for name in _WIDTHS if name in settings), 0)
        return width if type(width) is int and width > 0 else 0


def last_axis(output: Any) -> int:
    """Of a symbolic tensor `[N, …, units]`: units. 0: not known."""
    shape = output.shape
    return int(shape[-1] or 0) if len(shape) > 1 else 0


def _configuration(layer: keras.layers.Layer) -> Mapping[str, Any]:
    """As the nearest of Keras' own classes knows it: `get_config` of a user's class is the user's code."""
    if isinstance(layer, keras.layers.Lambda):
        return {}  # its configuration is the function's code
    for kind in type(layer).__mro__:
        own = vars(kind).get("get_config")
        if own is not None and str(own.__module__).startswith("keras."):
            found: Mapping[str, Any] = own(layer)
            return found
    return {}


def _plain(name: str, value: Any) -> dict[str, Scalar]:
    if isinstance(value, Mapping) and "class_name" in value:
        known = value.get("config")
        config = known if isinstance(known, Mapping) else {}
        factors = {
            factor: float(config[factor])
            for factor in ("l1", "l2")
            if name == "kernel_regularizer" and isinstance(config.get(factor), int | float)
        }
        return {name: str(value["class_name"])[:MAX_TEXT], **factors}
    if isinstance(value, bool):
        return {name: value}
    if isinstance(value, int):
        return {name: int(value)} if abs(value) < 1 << 53 else {}
    if isinstance(value, float):
        return {name: float(value)}
    return {name: str(value)} if isinstance(value, str) and len(value) <= MAX_TEXT else {}


def _kernel(layer: keras.layers.Layer) -> tuple[tuple[int, ...], Summary | None]:
    for variable in layer.weights:
        shape = tuple(map(int, variable.shape))
        if len(shape) >= 2:
            try:
                return shape, summary_of(_rows(variable, shape)) if all(shape) else None
            except Exception:  # noqa: BLE001 (on another machine, of a type of its own, not made yet)
                return shape, None
    return (), None


def _rows(variable: keras.Variable, shape: tuple[int, ...]) -> Any:
    """Its values; of many, those of evenly spaced rows, which are along the last axis but one."""
    stride = min(-(-math.prod(shape) // MAX_KERNEL_ENTRIES), shape[-2])
    with outside_graphs():
        # Inside a graph of JAX's, `value` is the graph's.
        value = variable.value if variable._value is None else variable._value
        view = host_view(value)
        if view is not None:
            return view[..., ::stride, :]
        return keras.ops.convert_to_numpy(value if stride == 1 else value[..., ::stride, :])
