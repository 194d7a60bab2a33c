"""What all statistics share: sums, bit patterns, and looking at a part of a large tensor."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import keras
from keras import ops

Tensor = Any
"""A tensor of whatever backend Keras runs on."""

MAX_INPUT_ELEMENTS = 1_000_000
"""Of a batch, so that large inputs do not make a sampled step slow."""


def norm(values: Tensor) -> Tensor:
    """√Σvᵢ², a float32 scalar."""
    values = ops.cast(values, "float32")
    match keras.backend.backend():
        case "tensorflow":  # One pass without a temporary.
            import tensorflow as tf  # noqa: PLC0415 (only where TensorFlow is the backend)

            return ops.sqrt(2.0 * tf.nn.l2_loss(values))
        case "torch":
            import torch  # noqa: PLC0415 (only where torch is the backend)

            return torch.linalg.vector_norm(values)
    return ops.sqrt(ops.sum(ops.square(values)))


def count_true(mask: Tensor) -> Tensor:
    """How many entries are true, as a float32 scalar (exact to 2²⁴)."""
    return ops.sum(ops.cast(mask, "float32"))


def is_float(values: Tensor) -> bool:
    """Whether entries can be NaN or infinite at all."""
    return "float" in keras.backend.standardize_dtype(values.dtype)


def bit_patterns(values: Tensor) -> Tensor:
    """The bits of a float32 tensor, read as int32."""
    if keras.backend.backend() == "tensorflow":
        # `ops.view` looks at the last axis' length, which TensorFlow may not know yet.
        import tensorflow as tf  # noqa: PLC0415 (only where TensorFlow is the backend)

        return tf.bitcast(values, tf.int32)
    return ops.view(values, "int32")


def example_size(values: Tensor) -> int | None:
    """Entries per example; the first axis is the batch. `None`: the shape does not tell."""
    lengths = tuple(values.shape)[1:]
    return None if any(length is None for length in lengths) else math.prod(int(n) for n in lengths)


def first_examples(values: Tensor, most: int = MAX_INPUT_ELEMENTS) -> Tensor:
    """The leading examples of a batch that hold at most `most` entries together; at least one example."""
    if not tuple(values.shape):
        return values
    size: Any = example_size(values)
    if size is not None and values.shape[0] is not None and size * values.shape[0] <= most:
        return values
    if size is None:
        size = math.prod(ops.shape(values)[1:])
    return values[: _at_least_one(most // _at_least_one(size))]


def evenly(values: Tensor, most: int) -> tuple[Tensor, Any, Any]:
    """At most `most` entries, one from every so many.

    The distance between two of them has no divisor in common with the tensor's size, or they would all be of the
    same few rows or columns.

    Returns:
        the entries, a vector; how many they are; how many there were: integers, or scalars where only the graph
        knows them.
    """
    flat = ops.reshape(values, (-1,))
    number = ops.shape(flat)[0]
    if not isinstance(number, int):
        stride = _at_least_one((number + most - 1) // most)
        stride = stride + (1 - stride % 2)
    else:
        stride = coprime_stride(number, most)
    if isinstance(stride, int):
        part = flat if stride == 1 else flat[::stride]
    else:
        part = ops.reshape(
            flat[::stride], (-1,)
        )  # TensorFlow forgets the rank over a stride it does not know
    return part, ops.shape(part)[0], number


def coprime_stride(number: int, most: int) -> int:
    """The smallest stride that takes at most `most` of `number` entries and shares no divisor with `number`."""
    stride = max(1, -(-number // most))
    while stride > 1 and math.gcd(stride, number) > 1:
        stride += 1
    return stride


class Moments(NamedTuple):
    """Of the finite entries along the first axis; each float32 of the remaining shape."""

    number: Tensor
    total: Tensor
    squares: Tensor
    """Σ(x − mean)²."""
    skipped: Tensor
    """Entries that are NaN or infinite."""


def moments(values: Tensor) -> Moments:
    """Sums and spread along the first axis.

    The spread is taken about the mean, in a second pass: E[x²] − E[x]² loses all digits where the mean is large.
    """
    number = ops.cast(ops.shape(values)[0], "float32")
    exact = not is_float(values)
    values = ops.cast(values, "float32")
    if exact:
        total = ops.sum(values, axis=0)
        counted = ops.ones_like(total) * number
        skipped = ops.zeros_like(total)
    else:
        finite = ops.isfinite(values)
        counted = ops.sum(ops.cast(finite, "float32"), axis=0)
        skipped = number - counted
        total = ops.sum(ops.where(finite, values, 0.0), axis=0)
    mean = total / counted
    if not exact:
        values = ops.where(finite, values, mean)  # which does not change the spread
    return Moments(counted, total, ops.sum(ops.square(values - mean), axis=0), skipped)


def limits(values: Tensor) -> tuple[Tensor, Tensor]:
    """The smallest and the largest finite entry along the first axis, float32; NaN where there is none."""
    exact = not is_float(values)
    values = ops.cast(values, "float32")
    if exact:
        return ops.min(values, axis=0), ops.max(values, axis=0)
    finite = ops.isfinite(values)
    low = ops.min(ops.where(finite, values, math.inf), axis=0)
    high = ops.max(ops.where(finite, values, -math.inf), axis=0)
    some = ops.isfinite(low)
    return ops.where(some, low, math.nan), ops.where(some, high, math.nan)


def _at_least_one(number: Any) -> Any:
    return max(1, number) if isinstance(number, int) else ops.maximum(number, 1)
