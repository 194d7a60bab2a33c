"""The statistics of a batch's inputs, and what tells one batch from another."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

from client_callback.instrument import statistics
from client_callback.instrument.statistics import Tensor
from client_callback.instrument.table import Table
from client_callback.wire.protocol import Float32, Statistic


def target_tables(target: Tensor) -> list[Table]:
    """Of the first target of the batch, [N, …]."""
    if not _numeric(target):
        return []
    layout = Statistic(
        name="target",
        of="values",
        labels=statistics.TARGET_COLUMNS,
        doc="Of the batch's targets; shares of whole numbers, and of rows without a negative entry that sum to 1",
    )
    return [Table(layout, lambda: statistics.target_statistics(target), _joined_target)]


def tables(inputs: list[Tensor], targets: list[Tensor], miss: Callable[[str], None]) -> list[Table]:
    """Of each input as a whole and of its features, and of the batch.

    Args:
        inputs: of the batch, [N, …] each.
        targets: likewise.
        miss: told what cannot be described.
    """
    made: list[Table] = []
    numbers = []
    for number, values in enumerate(inputs):
        name = "input" if len(inputs) == 1 else f"input_{number}"
        if not _numeric(values):
            miss(f"statistics of input {number}: it holds no numbers")
            continue
        numbers.append(values)
        made += _input_tables(name, values, miss)
    if numbers:
        layout = Statistic(
            name="fingerprint",
            of="values",
            labels=statistics.FINGERPRINT_LABELS,
            doc="Two numbers that are equal for equal batches; the share of examples equal to the first",
        )
        labels = [values for values in targets if _numeric(values)]
        made.append(Table(layout, lambda: statistics.batch_fingerprint(numbers, labels)))
    return made


def _input_tables(name: str, values: Tensor, miss: Callable[[str], None]) -> list[Table]:
    layout = Statistic(
        name=name, of="values", labels=statistics.FEATURE_COLUMNS, doc="Of the batch's input values"
    )

    def whole() -> Tensor:
        return statistics.input_statistics(statistics.first_examples(values))

    made = [Table(layout, whole, _joined)]
    features = statistics.example_size(values)
    if features is None:
        miss(f"statistics of each feature of {name}: their number changes from batch to batch")
        return made
    labels = statistics.feature_labels(features)
    if len(labels) < features:
        miss(f"statistics of each feature of {name}: its {features} features are pooled into {len(labels)}")
    if len(labels) > 1:
        layout = Statistic(
            name=f"{name}_features",
            of="features",
            labels=labels,
            columns=statistics.FEATURE_COLUMNS,
            doc="Of each feature over the batch",
        )
        made.append(Table(layout, functools.partial(statistics.feature_statistics, values), _joined))
    return made


def _joined(parts: Float32) -> Float32:
    """float32[replicas, n, k·5] → float32[n, k·5]: of parts of equal size, nearly so of others."""
    columns = parts.reshape(*parts.shape[:2], -1, len(statistics.FEATURE_COLUMNS)).astype(np.float64)
    mean, std, low, high, skipped = np.moveaxis(columns, -1, 0)
    middle = mean.mean(axis=0)
    spread = np.sqrt((std**2 + (mean - middle) ** 2).mean(axis=0))
    joined = np.stack([middle, spread, low.min(axis=0), high.max(axis=0), skipped.sum(axis=0)], axis=-1)
    return joined.reshape(parts.shape[1:]).astype(np.float32)


def _joined_target(parts: Float32) -> Float32:
    """float32[replicas, n, 7] → float32[n, 7]: likewise, the shares being means."""
    numbers = len(statistics.FEATURE_COLUMNS)
    shares = parts[..., numbers:].mean(axis=0, dtype=np.float64).astype(np.float32)
    return np.concatenate([_joined(parts[..., :numbers]), shares], axis=-1)


def _numeric(values: Tensor) -> bool:
    return hasattr(values, "dtype") and "string" not in str(values.dtype)
