"""Other data for a candidate of a trial, made of the batches that come next: `zero-inputs` and its like.

These tell where a fault is: a model that does no worse without its inputs ignores them; one that cannot learn a
single batch by heart will not learn many. The batches that wait for training are not touched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from client_callback.steering.training import Refused

LEAST_DEVIATION = 1e-7
"""Of a feature that is standardised; one that is constant becomes 0."""


def altered(batches: Sequence[Any], kind: str, model: Any) -> Sequence[Any]:
    """As many batches of the same form.

    Args:
        batches: what comes next.
        kind: `zero-inputs`, `standard-inputs` or `one-batch`.
        model: the Keras model that is to train on them.

    Raises:
        Refused: they have no inputs that could be told from the rest, or none of a fitting kind.
    """
    return _KINDS[kind](batches, model)


def _one_batch(batches: Sequence[Any], _: Any) -> Sequence[Any]:
    return [batches[0]] * len(batches)


def _zero_inputs(batches: Sequence[Any], _: Any) -> Sequence[Any]:
    return [
        _with_inputs(batch, keras.tree.map_structure(ops.zeros_like, _inputs(batch))) for batch in batches
    ]


def _standard_inputs(batches: Sequence[Any], model: Any) -> Sequence[Any]:
    """Each feature with the mean and deviation that it has over all these batches; whole numbers become floats."""
    flat = [keras.tree.flatten(_inputs(batch)) for batch in batches]
    moments = []
    for arrays in zip(*flat, strict=True):
        dtype = _dtype_standardised(keras.backend.standardize_dtype(arrays[0].dtype), model)
        values = np.concatenate([ops.convert_to_numpy(array).astype(np.float64) for array in arrays])
        deviation = values.std(axis=0)
        moments.append((values.mean(axis=0), np.where(deviation > LEAST_DEVIATION, deviation, np.inf), dtype))

    def standard(array: Any, mean: Any, deviation: Any, dtype: str) -> Any:
        return ops.cast((ops.cast(array, dtype) - ops.cast(mean, dtype)) / ops.cast(deviation, dtype), dtype)

    made = []
    for batch, arrays in zip(batches, flat, strict=True):
        parts = [standard(array, *known) for array, known in zip(arrays, moments, strict=True)]
        made.append(_with_inputs(batch, keras.tree.pack_sequence_as(_inputs(batch), parts)))
    return made


def _dtype_standardised(dtype: str, model: Any) -> str:
    if "float" in dtype:
        return dtype
    if "int" not in dtype:
        raise Refused(f"inputs of type {dtype} cannot be standardised")
    if any(isinstance(layer, keras.layers.Embedding) for layer in model._flatten_layers()):
        raise Refused(
            f"inputs of type {dtype} may be the names an Embedding looks up: these cannot be standardised"
        )
    return str(keras.config.floatx())


def _inputs(batch: Any) -> Any:
    if not isinstance(batch, tuple | list) or len(batch) < 2:
        raise Refused(f"a batch here is {type(batch).__name__}, not inputs with targets")
    return batch[0]


def _with_inputs(batch: Any, inputs: Any) -> Any:
    return type(batch)([inputs, *batch[1:]])


_KINDS: dict[str, Callable[[Sequence[Any], Any], Sequence[Any]]] = {
    "zero-inputs": _zero_inputs,
    "standard-inputs": _standard_inputs,
    "one-batch": _one_batch,
}
