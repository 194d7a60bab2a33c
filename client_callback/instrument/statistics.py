"""The maths of the sampled statistics: tensors in, float32 vectors out, written with `keras.ops` alone.

Called while the train step is traced (`instrument.probe`), so everything here becomes part of the compiled step
on every backend. Nothing here knows of models, optimizers or buffers.
"""

from __future__ import annotations

from typing import Any

from keras import ops

Tensor = Any
"""A tensor of whatever backend Keras runs on."""

CONFIDENCE_BINS = 20
VALUE_BINS = 30
MAX_CLASSES = 100
"""Classes counted one by one. With more, a row per class would outgrow what a screen or a frame should hold."""
MAX_PREDICTIONS = 65_536
MAX_INPUT_ELEMENTS = 1_000_000
"""Of a batch, so that dense predictions (segmentation) and large inputs do not make a sampled step slow."""


def gradient_statistics(values: Tensor, size: int) -> list[Tensor]:
    """Four scalars of one variable's gradient g with `size` entries.

    Args:
        values: the gradient, float of any shape; of a sparse gradient, the rows present, each once.
        size: how many entries the whole gradient has; those not in `values` are zero.

    Returns:
        mean |g| = Σ|gᵢ| / size; max |g|; the share of entries that are exactly zero, in [0, 1]; the count of
        entries that are NaN or infinite. The first two are NaN or infinite when an entry is.
    """
    values = ops.cast(values, "float32")
    magnitude = ops.abs(values)
    nonzero = count_true(ops.not_equal(values, 0.0))
    return [
        ops.sum(magnitude) / size,
        ops.max(magnitude, initial=0.0),
        1.0 - nonzero / size,
        count_true(ops.logical_not(ops.isfinite(values))),
    ]


def norm(values: Tensor) -> Tensor:
    """√Σvᵢ², a float32 scalar."""
    return ops.sqrt(ops.sum(ops.square(ops.cast(values, "float32"))))


def count_true(mask: Tensor) -> Tensor:
    """How many entries are true, as a float32 scalar (exact to 2²⁴)."""
    return ops.sum(ops.cast(mask, "float32"))


def counts(indices: Tensor, size: int) -> Tensor:
    """How often each of 0 … size − 1 occurs in the integer tensor `indices`; others are left out. float32[size]."""
    indices = ops.cast(ops.reshape(indices, (-1,)), "int32")
    inside = ops.logical_and(indices >= 0, indices < size)
    spare = ops.where(inside, indices, ops.full_like(indices, size))
    ones = ops.ones_like(spare, dtype="float32")
    return ops.segment_sum(ones, spare, num_segments=size + 1)[:size]


def histogram(values: Tensor, low: Tensor, high: Tensor, bins: int) -> Tensor:
    """Counts over equal bins between `low` and `high`, both ends included; non-finite values are left out.

    Returns:
        float32[bins].
    """
    values = ops.cast(ops.reshape(values, (-1,)), "float32")
    width = ops.maximum(high - low, 1e-30)
    finite = ops.isfinite(values)
    position = ops.where(finite, (values - low) / width * bins, -1.0)
    clipped = ops.clip(ops.floor(position), -1, bins)
    index = ops.cast(clipped, "int32")
    index = ops.where(ops.logical_and(position >= bins, values <= high), bins - 1, index)
    return counts(index, bins)


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


def input_statistics(values: Tensor) -> Tensor:
    """Mean, standard deviation, minimum and maximum of the finite entries, and the count of the others.

    Returns:
        float32[5]. Standard deviation with divisor n. Without any finite entry the first four are NaN.
    """
    values = ops.cast(ops.reshape(values, (-1,)), "float32")
    finite = ops.isfinite(values)
    number = count_true(finite)
    empty = number < 1
    kept = ops.where(finite, values, 0.0)
    mean = ops.sum(kept) / number
    deviation = ops.where(finite, values - mean, 0.0)
    low = ops.min(ops.where(finite, values, float("inf")), initial=float("inf"))
    high = ops.max(ops.where(finite, values, float("-inf")), initial=float("-inf"))
    nan = ops.full_like(low, float("nan"))
    return ops.stack(
        [
            mean,
            ops.sqrt(ops.sum(ops.square(deviation)) / number),
            ops.where(empty, nan, low),
            ops.where(empty, nan, high),
            count_true(ops.logical_not(finite)),
        ]
    )
