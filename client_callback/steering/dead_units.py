"""Units that are 0 whatever they are shown, and another start for them.

A unit behind a ReLU whose output is 0 for every example gets no gradient and stays so. Sokar et al. 2023 ("The
Dormant Neuron Phenomenon in Deep Reinforcement Learning", arXiv:2302.12902) recycle such units (ReDo): incoming
weights from the layer's own initializer, outgoing weights 0, so that the model computes what it did before, and
moments as at the start. Here a unit is dead when it is exactly 0 (their τ = 0) on a few batches of the training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import ops

from client_callback.instrument.hooks import InstanceHooks
from client_callback.steering.backends import current_backend
from client_callback.steering.named_layers import named_layers
from client_callback.steering.reinitialisation import Fresh, fresh_layer

_Mask = npt.NDArray[np.bool_]

_WITH_UNITS = (keras.layers.Dense, keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
_CUTTING = {"relu", "relu6"}
"""Activations whose output and gradient are 0 over a whole range."""
_PASSING = (
    keras.layers.Dropout,
    keras.layers.BatchNormalization,
    keras.layers.Activation,
    keras.layers.ReLU,
    keras.layers.MaxPooling1D,
    keras.layers.MaxPooling2D,
    keras.layers.MaxPooling3D,
    keras.layers.AveragePooling1D,
    keras.layers.AveragePooling2D,
    keras.layers.AveragePooling3D,
    keras.layers.GlobalMaxPooling1D,
    keras.layers.GlobalMaxPooling2D,
    keras.layers.GlobalMaxPooling3D,
    keras.layers.GlobalAveragePooling1D,
    keras.layers.GlobalAveragePooling2D,
    keras.layers.GlobalAveragePooling3D,
    keras.layers.Flatten,
)
"""What may stand between a unit and the weights that read it: each unit stays apart from the others."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """A layer some of whose units may be dead."""

    name: str
    layer: Any
    looked_at: Any
    """Whose output tells: the layer itself, or the activation after it."""
    normalising: tuple[Any, ...]
    """BatchNormalization between the two."""
    reader: Any | None
    """The layer whose kernel reads the units. `None`: not one alone, or it cannot be told."""
    flattened: bool
    """Whether the reader sees the positions of an image one after the other."""


@dataclass(frozen=True, eq=False)
class DeadUnits:
    """The dead units of one layer."""

    of: Candidate
    dead: _Mask
    """bool[units]."""

    @property
    def count(self) -> int:
        """How many."""
        return int(self.dead.sum())


def candidates(model: Any) -> list[Candidate]:
    """Trained layers of units behind a ReLU, inside the layer or as what comes next."""
    trained = {id(v) for v in model.trainable_variables}
    next_of = _successors(model)
    found = []
    for name, layer in named_layers(model).items():
        if not isinstance(layer, _WITH_UNITS) or id(layer.kernel) not in trained:
            continue
        after = list(_chain(layer, next_of))
        reader = after.pop() if after and isinstance(after[-1], _WITH_UNITS) else None
        chain = [layer, *after]
        cut = next((place for place, one in enumerate(chain) if _cuts(one)), None)
        if cut is None or not all(_leaves_it_to_a_relu(one) for one in chain[:cut]):
            continue
        flattened = any(isinstance(one, keras.layers.Flatten) for one in after)
        if reader is not None and not _reads_units(reader, layer, flattened=flattened):
            reader = None
        between = tuple(one for one in chain[1:cut] if isinstance(one, keras.layers.BatchNormalization))
        found.append(Candidate(name, layer, chain[cut], between, reader, flattened))
    return found


def inputs_of(batch: Any) -> list[Any]:
    """What the model is shown of a batch; where that is shared out over replicas, each one's part."""
    inputs = keras.utils.unpack_x_y_sample_weight(batch)[0]
    shared = [one for one in keras.tree.flatten(inputs) if type(one).__name__ == "PerReplica"]
    if not shared:
        return [inputs]
    parts = range(len(shared[0].values))
    return [keras.tree.map_structure(lambda one, part=part: one.values[part], inputs) for part in parts]


def find_dead(model: Any, looked_for: Sequence[Candidate], inputs: Iterable[Any]) -> list[DeadUnits]:
    """The layers among those with units that are 0 for all inputs. Runs the model as a train step does.

    Inside the backend's `state`, with the state of layers set aside. `inputs`: of each batch.
    """
    alive: dict[int, _Mask] = {}
    hooks = InstanceHooks()
    for one in looked_for:
        hooks.wrap(one.looked_at, "call", _observing(one, alive))
    try:
        for batch in inputs:
            with current_backend().inference():
                model(batch, training=True)
    finally:
        hooks.remove()
    return [
        DeadUnits(one, ~alive[id(one.layer)])
        for one in looked_for
        if id(one.layer) in alive and not alive[id(one.layer)].all()
    ]


def restarted(units: DeadUnits, step: int) -> list[Fresh]:
    """New incoming weights for the dead units, and 0 for those that read them.

    Raises:
        Refused: the layer cannot be made once more.
    """
    dead = units.dead
    fresh = [
        Fresh(one.variable, one.value, (..., dead))
        for layer in (units.of.layer, *units.of.normalising)
        for one in fresh_layer(layer, step)
    ]
    reader = units.of.reader
    if reader is not None:
        shape = tuple(reader.kernel.shape)
        rows = np.tile(dead, shape[-2] // len(dead)) if units.of.flattened else dead
        fresh.append(Fresh(reader.kernel, _zeros_like(reader.kernel), (..., rows, slice(None))))
    return fresh


def _zeros_like(variable: Any) -> npt.NDArray[Any]:
    value = current_backend().host(variable)
    return np.zeros(tuple(variable.shape), value.dtype)


def _observing(
    candidate: Candidate, alive: dict[int, _Mask]
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def wrap(call: Callable[..., Any]) -> Callable[..., Any]:
        def observed_call(*args: Any, **kwargs: Any) -> Any:
            outputs = call(*args, **kwargs)
            values = ops.convert_to_numpy(ops.not_equal(outputs, 0))
            axis = _unit_axis(candidate.layer, values.ndim)
            seen = values.any(axis=tuple(place for place in range(values.ndim) if place != axis))
            before = alive.get(id(candidate.layer))
            alive[id(candidate.layer)] = seen if before is None else before | seen
            return outputs

        return observed_call

    return wrap


def _unit_axis(layer: Any, ndim: int) -> int:
    return 1 if getattr(layer, "data_format", None) == "channels_first" else ndim - 1


def _cuts(layer: Any) -> bool:
    if isinstance(layer, keras.layers.ReLU):
        return not layer.negative_slope
    return getattr(getattr(layer, "activation", None), "__name__", "") in _CUTTING


def _leaves_it_to_a_relu(layer: Any) -> bool:
    """Whether a ReLU further on decides of each unit whether it is 0."""
    if isinstance(layer, keras.layers.BatchNormalization):
        return True
    return isinstance(layer, _WITH_UNITS) and layer.activation is keras.activations.linear


def _reads_units(reader: Any, layer: Any, *, flattened: bool) -> bool:
    """Whether each unit has rows of its own in the reader's kernel."""
    units, rows = layer.kernel.shape[-1], reader.kernel.shape[-2]
    if reader is layer or getattr(reader, "groups", 1) != 1:
        return False
    return bool(rows % units == 0 if flattened else rows == units)


def _chain(layer: Any, next_of: dict[int, list[Any]]) -> Iterator[Any]:
    """What comes after, as long as it is one thing alone and keeps units apart, and then what reads them."""
    positions_apart = getattr(layer, "data_format", "channels_last") == "channels_last"
    while len(next_of.get(id(layer), [])) == 1:
        layer = next_of[id(layer)][0]
        if isinstance(layer, keras.layers.Flatten) and not positions_apart:
            return
        if isinstance(layer, (*_PASSING, *_WITH_UNITS)):
            yield layer
        if not isinstance(layer, _PASSING):
            return


def _successors(model: Any) -> dict[int, list[Any]]:
    """Id of a layer → what takes its output, in models whose graph is known."""
    found: dict[int, list[Any]] = {}
    models = [one for one in model._flatten_layers() if isinstance(one, keras.Model)]
    graphs = {id(graph): graph for one in models if hasattr(graph := _graph(one), "_nodes_by_depth")}
    for graph in graphs.values():
        for node in (node for nodes in graph._nodes_by_depth.values() for node in nodes):
            for parent in node.parent_nodes:
                found.setdefault(id(parent.operation), []).append(node.operation)
        for tensor in graph._outputs:
            # An output of the model is read by the loss, or by whoever holds the model.
            found.setdefault(id(tensor._keras_history.operation), []).append(None)
    return found


def _graph(model: Any) -> Any:
    return getattr(model, "_functional", None) or model
