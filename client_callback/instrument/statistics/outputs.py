"""How far a model's predictions differ from example to example, and what targets look like."""

from __future__ import annotations

from keras import ops

from client_callback.instrument.statistics.batches import FEATURE_COLUMNS, input_statistics
from client_callback.instrument.statistics.tensors import (
    Tensor,
    coprime_stride,
    example_size,
    first_examples,
    is_float,
    limits,
)

TARGET_COLUMNS = (*FEATURE_COLUMNS, "integral", "unit_rows")
SPREAD_LABELS = ("between", "mean_abs", "low", "high", "row_sum")
MAX_PREDICTED = 8_192
"""Entries of one example's prediction that are looked at, or one row of units if that is longer."""


def target_statistics(values: Tensor) -> Tensor:
    """The five numbers of `input_statistics`, and what kind of numbers these are.

    Args:
        values: [N, …, units], numbers of any kind; of the leading examples up to MAX_INPUT_ELEMENTS entries are
            looked at.

    Returns:
        float32[7] as TARGET_COLUMNS: then the share of whole numbers, and that of rows along the last axis without a
        negative entry whose sum is 1 ± 0.001; NaN where a row is of one entry, or of a length not known in advance.
    """
    values = first_examples(values)
    numbers = ops.cast(values, "float32")
    whole = ops.ones((), "float32")
    if is_float(values):
        there = ops.logical_and(ops.isfinite(numbers), ops.equal(numbers, ops.floor(numbers)))
        whole = ops.mean(ops.cast(there, "float32"))
    units = values.shape[-1] if len(values.shape) > 1 else 1
    unit_rows = ops.convert_to_tensor(float("nan"), "float32")
    if units is not None and units > 1:
        rows = ops.reshape(numbers, (-1, units))
        near = ops.abs(ops.sum(rows, axis=-1) - 1.0) <= 1e-3
        unit_rows = ops.mean(ops.cast(ops.logical_and(near, ops.min(rows, axis=-1) >= 0.0), "float32"))
    return ops.concatenate([input_statistics(values), ops.stack([whole, unit_rows])])


def prediction_spread(predictions: Tensor) -> Tensor:
    """Whether predictions differ at all, and between which bounds they lie.

    Of the leading examples up to MAX_INPUT_ELEMENTS entries; in each of them every so many places where one example
    has more than MAX_PREDICTED entries.

    Args:
        predictions: [N, …, units].

    Returns:
        float32[5] as SPREAD_LABELS: the standard deviation (divisor n) over the examples, averaged over the entries
        of an example; the mean of |prediction|; the least and the greatest finite one; the mean over examples and
        places of the sum over units. Where a prediction is not finite, neither are the first two and the last.
    """
    values = first_examples(ops.cast(_some_places(predictions), "float32"))
    apart = values - values[:1]  # or the mean of equal values, which is rounded, would set them apart
    apart = apart - ops.mean(apart, axis=0, keepdims=True)
    between = ops.mean(ops.sqrt(ops.mean(ops.square(apart), axis=0)))
    low, high = limits(ops.reshape(values, (-1,)))
    row_sum = ops.mean(ops.sum(values, axis=-1))
    return ops.stack([between, ops.mean(ops.abs(values)), low, high, row_sum])


def _some_places(predictions: Tensor) -> Tensor:
    """[N, places, units]."""
    units = predictions.shape[-1] if len(predictions.shape) > 1 else 1
    size = example_size(predictions)
    if units is None:
        return ops.reshape(predictions, (ops.shape(predictions)[0], 1, -1))
    if size is None:
        return ops.reshape(predictions, (ops.shape(predictions)[0], -1, units))
    places = size // max(1, units)
    values = ops.reshape(predictions, (-1, places, units))
    most = max(1, MAX_PREDICTED // max(1, units))
    return values if places <= most else values[:, :: coprime_stride(places, most)]
