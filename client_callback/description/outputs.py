"""What a model computes, and the loss each output is trained with: read from its graph, walked from the end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import keras

from client_callback.description.layers import activation_name, last_axis, settings_of, units_of
from client_callback.instrument.predictions import describe_loss
from client_callback.instrument.sampler import losses_of_outputs
from client_callback.wire.protocol import Output

_SAME_TENSOR = {"Identity"}
_SAME_VALUES = {
    *("Flatten", "Reshape", "Permute", "RepeatVector", "Squeeze", "ExpandDims", "Transpose", "Cast"),
    *("Cropping1D", "Cropping2D", "Cropping3D", "GetItem"),
    *("Dropout", "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D", "AlphaDropout"),
    *("GaussianDropout", "GaussianNoise", "ActivityRegularization"),
}
"""Layers and operations that reshape, or that do something in training alone."""
_OPERATIONS = {"Softmax": "softmax", "Sigmoid": "sigmoid", "Relu": "relu", "Tanh": "tanh"}
"""Of `keras.ops`, those that are activations."""

_FROM_LOGITS = {
    "categorical_crossentropy",
    "sparse_categorical_crossentropy",
    "binary_crossentropy",
    "binary_focal_crossentropy",
}
"""Losses that ask TensorFlow's tensor for the logits it was made from, whichever of the two activations made it."""


class _End(NamedTuple):
    """Where the values of an output come from."""

    layer: str
    activation: str
    units: int
    direct: bool
    """Whether the tensor that the loss takes is the very one the activation made."""


def describe_outputs(model: keras.Model) -> tuple[Output, ...]:
    """One for each output, in Keras' order."""
    tensors, structure = _graph_outputs(model)
    if not tensors:
        return _outputs_without_graph(model)
    losses = losses_of_outputs(getattr(model, "loss", None), structure, model)
    names = _names(model, structure, tensors)
    return tuple(
        _described(name, _end_of(tensor), losses[place] if place < len(losses) else None)
        for place, (name, tensor) in enumerate(zip(names, tensors, strict=True))
    )


def _described(name: str, end: _End, loss: Any) -> Output:
    loss = None if loss is False else loss
    loss_name, from_logits = describe_loss(loss)
    return Output(
        name=name,
        layer=end.layer,
        activation=end.activation,
        units=end.units,
        loss=loss_name,
        from_logits=from_logits,
        logits_found=end.direct
        and end.activation in ("softmax", "sigmoid")
        and keras.backend.backend() == "tensorflow"
        and loss_name in _FROM_LOGITS
        and _of_keras(loss),
    )


def _outputs_without_graph(model: keras.Model) -> tuple[Output, ...]:
    """Of a model with a `call` of its own: its single loss, and the layer with weights that was made last."""
    loss = getattr(model, "loss", None)
    if isinstance(loss, dict):
        return tuple(_described(name, _End("", "", 0, False), part) for name, part in loss.items())
    if isinstance(loss, list | tuple) and len(loss) != 1:
        return tuple(_described(f"output_{at}", _End("", "", 0, False), part) for at, part in enumerate(loss))
    last = None
    for layer in _in_order(model):
        if layer._trainable_variables or layer._non_trainable_variables:
            last = layer
    if last is None:
        return ()
    end = _End(last.name, activation_name(last), units_of(last, settings_of(last)), _keeps_dtype(last))
    return (_described("output", end, loss[0] if isinstance(loss, list | tuple) else loss),)


def _in_order(layer: keras.layers.Layer) -> Iterator[keras.layers.Layer]:
    """All layers inside, in the order in which each was given them."""
    for part in layer._flatten_layers(include_self=False, recursive=False):
        yield part
        yield from _in_order(part)


def _graph_outputs(model: keras.Model) -> tuple[list[Any], Any]:
    """Its symbolic outputs, flat and as the model returns them."""
    functional = getattr(model, "_functional", None) or model
    structure = getattr(functional, "_outputs_struct", None)
    return ([] if structure is None else keras.tree.flatten(structure)), structure


def _names(model: keras.Model, structure: Any, tensors: list[Any]) -> list[str]:
    if isinstance(structure, dict) and len(structure) == len(tensors):
        return [str(name) for name in sorted(structure)]
    functional = getattr(model, "_functional", None) or model
    known = [str(name) for name in getattr(functional, "output_names", None) or ()]
    return known if len(known) == len(tensors) else [f"output_{place}" for place in range(len(tensors))]


def _end_of(output: Any) -> _End:
    """Walks back to what gave the values."""
    units, tensor = last_axis(output), output
    direct = str(output.dtype) == keras.config.floatx()
    while True:
        history = getattr(tensor, "_keras_history", None)
        if history is None:
            return _End("", "", units, False)
        operation, kind = history.operation, type(history.operation).__name__
        if isinstance(operation, keras.Model):
            inside, _ = _graph_outputs(operation)
            if history.tensor_index >= len(inside):
                return _End(operation.name, "", units, False)
            tensor = inside[history.tensor_index]
            continue
        linear = isinstance(operation, keras.layers.Activation) and activation_name(operation) == "linear"
        given = operation._inbound_nodes[history.node_index].input_tensors
        passes = kind in _SAME_TENSOR | _SAME_VALUES or linear
        if not passes or len(given) != 1:
            break
        direct = direct and (linear or kind in _SAME_TENSOR)
        tensor = given[0]
    if not isinstance(operation, keras.layers.Layer):
        return _End("", _OPERATIONS.get(kind, ""), units, direct)
    wrapped = isinstance(operation, keras.layers.TimeDistributed)
    activation = activation_name(operation)
    return _End(
        operation.name, activation, units, direct and not wrapped and str(tensor.dtype) == str(output.dtype)
    )


def _keeps_dtype(layer: keras.layers.Layer) -> bool:
    return bool(layer.compute_dtype == keras.config.floatx())


def _of_keras(loss: Any) -> bool:
    """Whether it is Keras' own rather than a user's of the same name."""
    if isinstance(loss, str):
        return True
    owner = type(loss) if isinstance(loss, keras.losses.Loss) else loss
    return str(getattr(owner, "__module__", "")).startswith("keras.")
