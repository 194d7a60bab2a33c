"""How often things occur: histograms of values, tables of classes."""

from __future__ import annotations

import keras
from keras import ops

from client_callback.instrument.statistics.tensors import Tensor, count_true, is_float

CONFIDENCE_BINS = 20
VALUE_BINS = 30
MAX_CLASSES = 100
"""Classes counted one by one. With more, a row per class would outgrow what a screen or a frame should hold."""
TOP_CLASSES = 20
"""With more classes, only the most frequent ones are named."""
MAX_PREDICTIONS = 65_536
"""Of a batch, so that dense predictions (segmentation) do not make a sampled step slow."""


def counts(indices: Tensor, size: int) -> Tensor:
    """How often each of 0 … size − 1 occurs in `indices`; others, NaN among them, are left out. float32[size].

    Args:
        indices: integers, booleans, or floats whose fraction is dropped; any shape.
        size: at most 2²⁴ − 2.
    """
    return occurrences(_positions(indices, size) + 1.0, size + 2)[1 : size + 1]


def confusion_counts(targets: Tensor, predictions: Tensor, classes: int) -> Tensor:
    """How often each true class was predicted as each class: float32[classes, classes], rows true.

    Args:
        targets: true classes, any shape.
        predictions: predicted classes, of as many entries.
        classes: few, as MAX_CLASSES; a pair with a class outside 0 … classes − 1 is left out.
    """
    true, predicted = _positions(targets, classes), _positions(predictions, classes)
    inside = ops.logical_and(_inside(true, classes), _inside(predicted, classes))
    cells = counts(ops.where(inside, true * classes + predicted, -1.0), classes * classes)
    return ops.reshape(cells, (classes, classes))


def number_correct(targets: Tensor, predictions: Tensor) -> Tensor:
    """How many predicted classes are the true ones, a float32 scalar. Class numbers up to 2²⁴."""
    true, predicted = (ops.cast(ops.reshape(side, (-1,)), "float32") for side in (targets, predictions))
    return count_true(ops.equal(true, predicted))


def top_counts(indices: Tensor, classes: int, top: int = TOP_CLASSES) -> Tensor:
    """The most frequent classes, where there are too many to count each.

    Returns:
        float32[top, 2], rows of (class, count), most frequent first and ties in any order. Rows beyond the classes
        that occur are (−1, 0).
    """
    number, classes_found = ops.top_k(counts(indices, classes), min(top, classes))
    named = ops.where(number > 0, ops.cast(classes_found, "float32"), -1.0)
    rows = ops.stack([named, ops.cast(number, "float32")], axis=-1)
    if classes >= top:
        return rows
    nothing = ops.tile(ops.convert_to_tensor([[-1.0, 0.0]], "float32"), (top - classes, 1))
    return ops.concatenate([rows, nothing])


def histogram(values: Tensor, low: Tensor, high: Tensor, bins: int) -> Tensor:
    """Counts over equal bins between `low` and `high`, both ends included; non-finite values are left out.

    Returns:
        float32[bins].
    """
    values = ops.cast(ops.reshape(values, (-1,)), "float32")
    width = ops.maximum(high - low, 1e-30)
    position = ops.floor((values - low) / width * bins)
    return counts(ops.where(values <= high, ops.minimum(position, bins - 1), float(bins)), bins)


def moving_histogram(values: Tensor, bins: int = VALUE_BINS) -> tuple[Tensor, Tensor]:
    """A histogram between the smallest and the largest finite value.

    Returns:
        float32[bins] counts, float32[2] the range. Without any finite value: zeros.
    """
    values = ops.cast(ops.reshape(values, (-1,)), "float32")
    finite = ops.isfinite(values)
    largest = 3.0e38
    low = ops.min(ops.where(finite, values, largest), initial=largest)
    high = ops.max(ops.where(finite, values, -largest), initial=-largest)
    some = low <= high
    low, high = ops.where(some, low, 0.0), ops.where(some, high, 0.0)
    return histogram(values, low, high, bins), ops.stack([low, high])


def occurrences(indices: Tensor, size: int) -> Tensor:
    """How often each of 0 … size − 1 occurs in a vector that holds nothing else. float32[size].

    Each backend's own counting is 2 to 40 times as fast as `ops.segment_sum`, which also waits for the GPU on torch.
    """
    indices = ops.cast(indices, "int32")
    match keras.backend.backend():
        case "tensorflow":
            return _occurrences_tensorflow(indices, size)
        case "jax":
            import jax.numpy as jnp  # noqa: PLC0415 (only where JAX is the backend)

            return jnp.bincount(indices, length=size).astype("float32")
        case "torch":
            return _occurrences_torch(indices, size)
    return ops.segment_sum(ops.ones_like(indices, dtype="float32"), indices, num_segments=size)


def _occurrences_tensorflow(indices: Tensor, size: int) -> Tensor:
    import tensorflow as tf  # noqa: PLC0415 (only where TensorFlow is the backend)
    from tensorflow.python.framework import config  # noqa: PLC0415 (only where TensorFlow is the backend)

    if config.is_op_determinism_enabled():  # On a GPU the counting kernel then refuses to run.
        return tf.math.unsorted_segment_sum(tf.ones_like(indices, tf.float32), indices, size)
    nothing = tf.zeros([0], tf.float32)
    return tf.raw_ops.DenseBincount(input=indices, size=size, weights=nothing, binary_output=False)


def _occurrences_torch(indices: Tensor, size: int) -> Tensor:
    import torch  # noqa: PLC0415 (only where torch is the backend)

    if indices.device.type == "cpu" and not torch.compiler.is_compiling():
        return torch.bincount(indices, minlength=size).to(torch.float32)
    # Elsewhere `bincount` waits for the device, to learn how long its result is.
    zeros = torch.zeros(size, dtype=torch.float32, device=indices.device)
    return zeros.index_add(0, indices, torch.ones_like(indices, dtype=torch.float32))


def _positions(indices: Tensor, size: int) -> Tensor:
    """As whole float32 in a vector, −1 or `size` for what is outside.

    Floats, because TensorFlow computes with int32 on the host, even of tensors that are on a GPU.
    """
    flat = ops.reshape(indices, (-1,))
    if is_float(flat):
        flat = ops.cast(flat, "float32")
        flat = ops.where(ops.isfinite(flat), ops.trunc(flat), -1.0)
    return ops.clip(ops.cast(flat, "float32"), -1.0, float(size))


def _inside(positions: Tensor, size: int) -> Tensor:
    return ops.logical_and(positions >= 0, positions < size)
