"""Which layers are described by statistics, and what is known of each before the first step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras

MAX_LAYERS = 128
"""More are thinned out evenly: a row per layer and sample would outgrow a screen and a frame."""

_ACTIVATION_LAYERS = {
    "ReLU": "relu",
    "LeakyReLU": "leaky_relu",
    "PReLU": "prelu",
    "ELU": "elu",
    "Softmax": "softmax",
}


@dataclass(frozen=True)
class DescribedLayer:
    """One layer of the model."""

    name: str
    """Its path, numbered where paths repeat."""
    layer: Any
    activation: str | None
    """Name of its activation function, `linear` for none. `None`: its output is no activation."""


def described_layers(model: keras.Model) -> tuple[list[DescribedLayer], str]:
    """Those with an activation or trainable variables of their own, and what was left out, if anything."""
    found = [
        layer
        for layer in model._flatten_layers(include_self=False)
        if not isinstance(layer, keras.Model) and (activation_of(layer) or layer._trainable_variables)
    ]
    cut = ""
    if len(found) > MAX_LAYERS:
        left_out = len(found) - MAX_LAYERS
        cut = (
            f"statistics of {left_out} of {len(found)} layers: {MAX_LAYERS} evenly spaced ones are described"
        )
        found = [found[place * (len(found) - 1) // (MAX_LAYERS - 1)] for place in range(MAX_LAYERS)]
    seen: dict[str, int] = {}
    described = []
    for layer in found:
        path = str(getattr(layer, "path", None) or layer.name)
        number = seen[path] = seen.get(path, -1) + 1
        described.append(DescribedLayer(f"{path}:{number}" if number else path, layer, activation_of(layer)))
    return described, cut


def activation_of(layer: Any) -> str | None:
    """Name of its activation function, `linear` for none. `None`: its output is no activation."""
    kind = type(layer).__name__
    if kind in _ACTIVATION_LAYERS:
        return _ACTIVATION_LAYERS[kind]
    try:
        activation = getattr(layer, "activation", None)
    except Exception:  # noqa: BLE001 (a property of a user's own layer)
        return None
    if not callable(activation):
        return None
    kind = type(activation).__name__
    return _ACTIVATION_LAYERS.get(kind) or str(getattr(activation, "__name__", kind))
