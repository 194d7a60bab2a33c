"""What copied examples tell of inputs and targets."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from client_callback.inspection.copies import Array, Input, Target
from client_callback.summary import summary_of
from client_callback.wire.protocol import Float64, InputData, Summary, TargetData

MAX_CLASSES = 1_000
BLOCK_NUMBERS = 262_144
"""Described at a time, so that little memory is taken and all of it is near."""
_UNKNOWN = Summary(mean=math.nan, std=math.nan, low=math.nan, high=math.nan)


class _Features(NamedTuple):
    """Of each of some features over the examples, float64[F]; NaN where no entry is finite."""

    number: Float64
    """Finite entries."""
    mean: Float64
    std: Float64
    low: Float64
    high: Float64
    distance: Float64
    """Of the entry farthest from the median, in distances between the 10 % and 90 % quantile. 0: there is none."""


def describe_input(source: Input) -> InputData:
    """Of the examples copied from one array."""
    if source.examples is None or not source.examples.size:
        return InputData(dtype=source.dtype, shape=source.shape, values=_UNKNOWN)
    rows = real_numbers(source.examples)
    found = _features(rows)
    varies = (found.high > found.low) & (found.std > 0)
    deviations = found.std[varies]
    incomplete = np.flatnonzero(found.number < len(rows))
    return InputData(
        dtype=source.dtype,
        shape=source.shape,
        values=_whole(found, rows.size),
        features=rows.shape[1],
        constant_features=int((found.high == found.low).sum()),
        std_low=float(deviations.min(initial=math.inf)) if len(deviations) else 0.0,
        std_high=float(deviations.max(initial=0.0)),
        offset=float((np.abs(found.mean[varies]) / deviations).max(initial=0.0)),
        farthest=float(found.distance.max(initial=0.0)),
        farthest_feature=int(found.distance.argmax()),
        non_finite_feature=int(incomplete[0]) if len(incomplete) else None,
        repeated=_repeated(rows),
    )


def describe_target(source: Target) -> TargetData:
    """Of the labels copied from one array."""
    labels = source.labels
    if labels is None or not labels.size:
        return TargetData(dtype=source.dtype, shape=source.shape, values=_UNKNOWN)
    values = real_numbers(labels)
    integral, one_hot = _whole_numbers(values), _one_hot(labels)
    numbers = _class_numbers(values, one_hot=one_hot, integral=integral, shape=source.shape)
    classes = Counter[str]() if numbers is None else _counted(numbers)
    in_order = None
    if numbers is not None and classes and source.stretch is not None:
        in_order = _in_order(_as_classes(real_numbers(source.stretch), one_hot=one_hot))
    return TargetData(
        dtype=source.dtype,
        shape=source.shape,
        values=summary_of(labels),
        integral=integral,
        one_hot=one_hot,
        classes=dict(classes),
        in_order=in_order,
    )


def real_numbers(examples: Array) -> Array:
    """[n, features], of a type that numpy computes with quickly; complex ones by their magnitude."""
    rows = examples.reshape(len(examples), -1)
    if rows.dtype.kind == "c":
        rows = np.abs(rows)
    if rows.dtype.kind == "f" and rows.dtype not in (np.float32, np.float64):
        rows = rows.astype(np.float32)
    return rows.view(np.uint8) if rows.dtype == np.bool_ else rows


# ── Inputs ──────────────────────────────────────────────────────────────────────────────────────────


def _features(rows: Array) -> _Features:
    width = max(1, BLOCK_NUMBERS // len(rows))
    blocks = [_features_of(rows[:, at : at + width]) for at in range(0, rows.shape[1], width)]
    return _Features(*(np.concatenate(parts) for parts in zip(*blocks, strict=True)))


def _features_of(rows: Array) -> _Features:
    # Small integers are exact as float32, which numpy sorts several times faster.
    ordered = np.array(rows.T, np.float32 if rows.dtype.itemsize <= 2 else rows.dtype, order="C")
    if ordered.dtype.kind == "f":
        ordered[~np.isfinite(ordered)] = np.nan  # which are last when sorted
    ordered.sort(axis=1)
    there = ~np.isnan(ordered) if ordered.dtype.kind == "f" else np.ones(ordered.shape, bool)
    number = there.sum(axis=1)
    low, tenth, middle, most, high = (_quantile(ordered, number, share) for share in (0, 0.1, 0.5, 0.9, 1))
    # About the median, or all digits would be lost where the mean is large.
    apart = np.where(there, ordered - middle[:, None], 0.0)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        shift = apart.sum(axis=1) / number
        variance = (apart**2).sum(axis=1) / number - shift**2
        distance = np.maximum(high - middle, middle - low) / (most - tenth)
    distance[~(most > tenth)] = 0.0
    return _Features(
        number.astype(np.float64), middle + shift, np.sqrt(np.maximum(variance, 0)), low, high, distance
    )


def _quantile(ordered: Array, number: npt.NDArray[np.int64], share: float) -> Float64:
    """Of the first `number` entries of each row, between the two nearest in proportion."""
    place = np.maximum(number - 1, 0) * share
    below = np.floor(place).astype(np.int64)
    above = np.minimum(below + 1, np.maximum(number - 1, 0))
    rows = np.arange(len(ordered))
    lower, upper = ordered[rows, below].astype(np.float64), ordered[rows, above].astype(np.float64)
    return np.asarray(lower + (upper - lower) * (place - below))


def _whole(found: _Features, entries: int) -> Summary:
    """Of all features together."""
    total = float(found.number.sum())
    if not total:
        return Summary(mean=math.nan, std=math.nan, low=math.nan, high=math.nan, non_finite=1.0)
    some = found.number > 0
    share = found.number[some] / total
    with np.errstate(over="ignore", invalid="ignore"):
        mean = float((share * found.mean[some]).sum())
        variance = float((share * (found.std[some] ** 2 + (found.mean[some] - mean) ** 2)).sum())
    return Summary(
        mean=mean,
        std=math.sqrt(variance) if variance >= 0 else math.nan,
        low=float(found.low[some].min()),
        high=float(found.high[some].max()),
        non_finite=1.0 - total / entries,
    )


def _repeated(rows: Array) -> float:
    seen = Counter(hash(row.tobytes()) for row in rows)
    return sum(count for count in seen.values() if count > 1) / len(rows)


# ── Targets ─────────────────────────────────────────────────────────────────────────────────────────


def _whole_numbers(values: Array) -> bool:
    if values.dtype.kind in "biu":
        return True
    finite = values[np.isfinite(values)]
    return bool(finite.size) and bool((finite == np.rint(finite)).all())


def _one_hot(labels: Array) -> bool:
    if labels.ndim < 2 or labels.shape[-1] < 2:
        return False
    rows = labels.reshape(-1, labels.shape[-1])
    return bool(((rows == 0) | (rows == 1)).all() and (rows.sum(axis=1) == 1).all())


def _class_numbers(
    values: Array, *, one_hot: bool, integral: bool, shape: tuple[int, ...]
) -> npt.NDArray[np.int64] | None:
    """Of each example. `None`: these are no classes.

    Whole numbers are if they are few for so many examples: two, or one for 50 examples, or up to 200 in a row from 0
    or 1 for 5 examples each. A count or an age seldom is.
    """
    if one_hot and len(shape) == 1:
        return _as_classes(values, one_hot=True)
    if not integral or math.prod(shape) != 1 or not np.isfinite(values).all():
        return None
    if np.abs(values.astype(np.float64)).max() >= 1 << 53:
        return None
    numbers = _as_classes(values, one_hot=False)
    distinct = np.unique(numbers)
    in_a_row = distinct[0] in (0, 1) and distinct[-1] - distinct[0] < 2 * len(distinct)
    few = len(distinct) <= 2 or 50 * len(distinct) <= len(numbers)
    few = few or (in_a_row and len(distinct) <= 200 and 5 * len(distinct) <= len(numbers))
    return numbers if few and len(distinct) <= MAX_CLASSES else None


def _as_classes(values: Array, *, one_hot: bool) -> npt.NDArray[np.int64]:
    if one_hot:
        return np.asarray(values.argmax(axis=1))
    return values.reshape(-1).astype(np.int64)


def _counted(numbers: npt.NDArray[np.int64]) -> Counter[str]:
    """Empty where there are too many."""
    found, counts = np.unique(numbers, return_counts=True)
    if len(found) > MAX_CLASSES:
        return Counter()
    return Counter({str(label): int(count) for label, count in zip(found.tolist(), counts, strict=True)})


def _in_order(numbers: npt.NDArray[np.int64]) -> float | None:
    return float((numbers[1:] == numbers[:-1]).mean()) if len(numbers) > 1 else None


def class_numbers(pairs: Array, *, one_hot: bool) -> npt.NDArray[Any]:
    """Of targets that are classes, [n, 1] or one-hot."""
    return _as_classes(real_numbers(pairs), one_hot=one_hot)
