"""What kind of task a model solves, and the tables of its predictions that fit it.

`probe` calls this while the train step is traced. Multi-output models: the first output is described.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import keras
import numpy as np
from keras import ops

from client_callback.instrument import statistics
from client_callback.instrument.statistics import Tensor
from client_callback.instrument.table import Table, total
from client_callback.wire.protocol import Float32, Statistic

TaskKind = Literal["classification", "binary", "regression", "unknown"]

_CATEGORICAL = {
    "categorical_crossentropy",
    "sparse_categorical_crossentropy",
    "categorical_focal_crossentropy",
    "categorical_hinge",
    "categorical_generalized_cross_entropy",
}
_BINARY = {"binary_crossentropy", "binary_focal_crossentropy", "hinge", "squared_hinge"}
_SIGNED = {"hinge", "squared_hinge"}
"""Losses whose scores are unbounded, with the decision at 0."""
REGRESSION = {
    "mean_squared_error",
    "mean_absolute_error",
    "mean_absolute_percentage_error",
    "mean_squared_logarithmic_error",
    "huber",
    "log_cosh",
    "poisson",
    "kl_divergence",
    "cosine_similarity",
    "mse",
    "mae",
    "mape",
    "msle",
}


class Task(NamedTuple):
    """How predictions are to be read."""

    kind: TaskKind
    classes: int
    """Number of classes; 0 for regression."""
    from_logits: bool
    """Whether predictions are logits rather than probabilities."""
    units: int = 1
    """Of the output."""


def infer_task(loss: Any, targets: Tensor, predictions: Tensor) -> Task:
    """The task, from the compiled loss and, where that says nothing, from shapes and dtypes.

    Args:
        loss: what `compile(loss=…)` received for this output: a name, a Loss, a function or None.
        targets: of one batch, any shape.
        predictions: of one batch, [N, …].
    """
    name, from_logits = describe_loss(loss)
    units = predictions.shape[-1] if len(predictions.shape) > 1 else 1
    units = 1 if units is None else int(units)
    integers = "int" in keras.backend.standardize_dtype(targets.dtype)
    if name in _CATEGORICAL or (name in ("crossentropy", "ce") and units > 1):
        return Task("binary" if units == 2 else "classification", units, from_logits, units)
    if name in _BINARY or name in ("crossentropy", "ce"):
        return Task("binary", 2, from_logits)
    if name in REGRESSION or not integers:
        return Task("regression" if name in REGRESSION else "unknown", 0, False)
    if units == 1:
        return Task("binary", 2, from_logits)
    return Task("binary" if units == 2 else "classification", units, from_logits, units)


def tables(task: Task, targets: Tensor, predictions: Tensor, miss: Callable[[str], None]) -> list[Table]:
    """The tables that describe one batch of predictions for this kind of task. `miss`: told what is cut."""
    spread = _spread_table(predictions)
    if task.kind == "classification":
        return [spread, *_classification_tables(task, targets, predictions, miss)]
    if task.kind == "binary":
        of_kind = _two_class_tables if task.units == 2 else _one_unit_tables
        return [spread, *of_kind(task, targets, predictions)]
    return [spread, *_value_tables(targets, predictions)]


def _classification_tables(
    task: Task, targets: Tensor, predictions: Tensor, miss: Callable[[str], None]
) -> list[Table]:
    scores, labels = _scores_and_labels(task, targets, predictions)

    def confidence() -> Tensor:
        scaled = ops.softmax(ops.cast(scores, "float32")) if task.from_logits else scores
        return statistics.histogram(ops.max(scaled, axis=-1), 0.0, 1.0, statistics.CONFIDENCE_BINS)

    made = [Table(_confidence("confidence", "Probability of the predicted class"), confidence, total)]
    predicted = functools.cache(lambda: ops.argmax(scores, axis=-1))
    if task.classes <= statistics.MAX_CLASSES:
        names = tuple(str(index) for index in range(task.classes))
        return [*_count_tables(names, labels, predicted), *made]
    miss(f"counts of each of {task.classes} classes: the {statistics.TOP_CLASSES} most frequent are named")
    return [*_top_tables(task.classes, labels, predicted), *made]


def _two_class_tables(task: Task, targets: Tensor, predictions: Tensor) -> list[Table]:
    """Two units under a softmax tell the same as one under a sigmoid."""
    scores, labels = _scores_and_labels(task, targets, predictions)
    probabilities = ops.softmax(ops.cast(scores, "float32")) if task.from_logits else scores
    return _binary_tables(ops.equal(labels, 1), ops.cast(probabilities[:, 1], "float32"))


def _one_unit_tables(task: Task, targets: Tensor, predictions: Tensor) -> list[Table]:
    scores = ops.cast(ops.reshape(predictions, (-1,))[: statistics.MAX_PREDICTIONS], "float32")
    positive = ops.reshape(targets, (-1,))[: statistics.MAX_PREDICTIONS] > 0
    return _binary_tables(positive, ops.sigmoid(scores) if task.from_logits else scores)


def _binary_tables(positive: Tensor, probabilities: Tensor) -> list[Table]:
    def confidence_of(true_class: bool) -> Tensor:
        chosen = positive if true_class else ops.logical_not(positive)
        kept = ops.where(chosen, probabilities, float("nan"))
        return statistics.histogram(kept, 0.0, 1.0, statistics.CONFIDENCE_BINS)

    confidences = [
        Table(
            _confidence(f"confidence_{number}", f"Probability of class 1 where the true class is {number}"),
            functools.partial(confidence_of, bool(number)),
            total,
        )
        for number in (0, 1)
    ]
    return [*_count_tables(("0", "1"), positive, lambda: probabilities > 0.5), *confidences]


def _count_tables(names: tuple[str, ...], labels: Tensor, predicted: Callable[[], Tensor]) -> list[Table]:
    """Class numbers of labels and predictions, [N] each."""
    confusion = functools.cache(lambda: statistics.confusion_counts(labels, predicted(), len(names)))
    doc = "How often each true class (label) was predicted as each class (column) in the batch"
    layout = Statistic(name="confusion", of="classes", labels=names, columns=names, unit="count", doc=doc)
    return [
        Table(
            _class_counts("predicted_counts", "Predictions per class in the batch", names),
            lambda: ops.sum(confusion(), axis=0),
            total,
        ),
        Table(
            _class_counts("target_counts", "True labels per class in the batch", names),
            lambda: ops.sum(confusion(), axis=1),
            total,
        ),
        Table(layout, confusion, total),
    ]


def _top_tables(classes: int, labels: Tensor, predicted: Callable[[], Tensor]) -> list[Table]:
    """Where there are too many classes for a row each. Of the first replica's part, where there are several."""
    ranks = tuple(str(rank) for rank in range(1, statistics.TOP_CLASSES + 1))
    columns = ("class", "count")
    doc = "The most frequent classes among the batch's"
    return [
        Table(
            Statistic(
                name="top_predicted", of="values", labels=ranks, columns=columns, doc=f"{doc} predictions"
            ),
            lambda: statistics.top_counts(predicted(), classes),
        ),
        Table(
            Statistic(
                name="top_targets", of="values", labels=ranks, columns=columns, doc=f"{doc} true labels"
            ),
            lambda: statistics.top_counts(labels, classes),
        ),
        Table(
            Statistic(
                name="correct", of="values", labels=("correct",), unit="count", doc="Right predictions"
            ),
            lambda: statistics.number_correct(labels, predicted()),
            total,
        ),
    ]


def _scores_and_labels(task: Task, targets: Tensor, predictions: Tensor) -> tuple[Tensor, Tensor]:
    """Scores [N, classes] and class numbers [N], whether labels come as numbers or one-hot."""
    scores = ops.reshape(predictions, (-1, task.classes))[: statistics.MAX_PREDICTIONS]
    if len(targets.shape) == len(predictions.shape) and targets.shape[-1] == task.classes:
        targets = ops.argmax(ops.reshape(targets, (-1, task.classes)), axis=-1)
    return scores, ops.reshape(targets, (-1,))[: statistics.MAX_PREDICTIONS]


def _value_tables(targets: Tensor, predictions: Tensor) -> list[Table]:
    predicted = ops.cast(ops.reshape(predictions, (-1,))[: statistics.MAX_PREDICTIONS], "float32")
    true = ops.cast(ops.reshape(targets, (-1,))[: statistics.MAX_PREDICTIONS], "float32")
    made: list[Table] = []
    made += _moving("predictions", "Predicted values of the batch", lambda: predicted)
    made += _moving("targets", "True values of the batch", lambda: true)
    sizes = [_static_size(values) for values in (targets, predictions)]
    if sizes[0] == sizes[1]:
        made += _moving("residuals", "True minus predicted values of the batch", lambda: true - predicted)
    return made


def _spread_table(predictions: Tensor) -> Table:
    layout = Statistic(
        name="prediction_spread",
        of="values",
        labels=statistics.SPREAD_LABELS,
        doc="Of the model's output: standard deviation over the batch's examples, mean of all units; mean "
        "|prediction|; the least and the greatest; mean sum over units",
    )
    return Table(layout, lambda: statistics.prediction_spread(predictions), _joined_spread)


def _joined_spread(parts: Float32) -> Float32:
    """float32[replicas, n, 5] → float32[n, 5]: of parts of equal size, nearly so of others.

    How far the parts' means of each unit are apart is not known, so the deviation is a lower bound.
    """
    between, mean_abs, low, high, row_sum = np.moveaxis(parts.astype(np.float64), -1, 0)
    joined = [
        between.mean(axis=0),
        mean_abs.mean(axis=0),
        low.min(axis=0),
        high.max(axis=0),
        row_sum.mean(axis=0),
    ]
    return np.stack(joined, axis=-1).astype(np.float32)


def _moving(name: str, doc: str, values: Callable[[], Tensor]) -> list[Table]:
    bins = tuple(str(index) for index in range(statistics.VALUE_BINS))
    histogram = functools.cache(lambda: statistics.moving_histogram(values()))
    return [
        Table(
            Statistic(
                name=name, of="histogram", labels=bins, unit="count", doc=f"{doc}; bins span {name}_range"
            ),
            lambda: histogram()[0],
        ),
        Table(
            Statistic(name=f"{name}_range", of="values", labels=("low", "high"), doc=f"Range of {name}"),
            lambda: histogram()[1],
        ),
    ]


def _class_counts(name: str, doc: str, labels: tuple[str, ...]) -> Statistic:
    return Statistic(name=name, of="histogram", labels=labels, unit="count", doc=doc)


def _confidence(name: str, doc: str) -> Statistic:
    bins = statistics.CONFIDENCE_BINS
    edges = tuple(index / bins for index in range(bins + 1))
    labels = tuple(f"{edge:.2f}" for edge in edges[:-1])
    return Statistic(name=name, of="histogram", labels=labels, unit="count", edges=edges, doc=doc)


def _static_size(values: Tensor) -> int | None:
    """Entries per example, as far as the shape tells."""
    size = 1
    for length in values.shape[1:]:
        if length is None:
            return None
        size *= int(length)
    return size


def describe_loss(loss: Any) -> tuple[str, bool]:
    """A loss's name in snake case, and whether it expects logits (hinge losses count: unbounded scores)."""
    if loss is None:
        return "", False
    if isinstance(loss, str):
        if loss in ("crossentropy", "ce"):
            return loss, False
        loss = keras.losses.get(loss)
    if isinstance(loss, keras.losses.Loss):
        config = loss.get_config()
        name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(loss).__name__).lower()
        return name, bool(config.get("from_logits")) or name in _SIGNED
    name = getattr(loss, "__name__", "")
    return name, name in _SIGNED
