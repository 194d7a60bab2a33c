"""Whether inputs tell anything of their targets at all, asked of the plainest of models."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from client_callback.inspection.arrays import real_numbers
from client_callback.inspection.copies import Array, evenly
from client_callback.wire.protocol import Float32, SignalProbe

MAX_FEATURES = 1_024
LEAST_EXAMPLES = 20
NEIGHBOURS = 5
LEAST_PER_CLASS = 25
"""Examples of a class on average, or of five neighbours too few could be of one's own class: one is asked then."""
MAX_TARGET_NUMBERS = 64
_ROWS, _DEPTH = 32, 256
"""Products of matrices no larger than 32 × 256 and 256 × 32 are computed by numpy's library in the thread that asks;
larger ones it shares out among the CPUs, which the training needs."""


def probe_classes(inputs: list[Array], classes: npt.NDArray[Any]) -> SignalProbe | None:
    """How often the majority of an example's nearest others has its class; of several, the nearest one's.

    Weak where distances between plain numbers mean little: words as numbers, images of things that move about. What
    it finds is there; what it does not find may be.

    Args:
        inputs: [n, …] each.
        classes: int64[n].
    """
    _, numbers, counts = np.unique(classes, return_inverse=True, return_counts=True)
    rows = _standardised(inputs)
    if len(numbers) < LEAST_EXAMPLES or rows is None:
        return None
    asked = NEIGHBOURS if len(numbers) >= LEAST_PER_CLASS * len(counts) else 1
    near = numbers[_nearest(rows, asked)]
    votes = np.zeros((len(near), len(counts)))
    for rank in range(asked):
        votes[np.arange(len(near)), near[:, rank]] += 1.0 - rank / 100
    right = votes.argmax(axis=1) == numbers
    return SignalProbe(
        kind="accuracy",
        score=float(right.mean()),
        chance=float(counts.max() / len(numbers)),
        examples=len(numbers),
    )


def probe_values(inputs: list[Array], targets: Array) -> SignalProbe | None:
    """R² of the mean of the nearest others' targets; of several numbers, of all their squared errors together.

    As weak as the other, and below 0 where there is nothing to find: five neighbours scatter more than the mean.

    Args:
        inputs: [n, …] each.
        targets: [n, numbers].
    """
    rows = _standardised(inputs)
    values = real_numbers(targets).astype(np.float64)
    values = values[:, evenly(values.shape[1], MAX_TARGET_NUMBERS)]
    if len(values) < LEAST_EXAMPLES or rows is None or not np.isfinite(values).all():
        return None
    spread = float(((values - values.mean(axis=0)) ** 2).sum())
    if not spread:
        return None
    guessed = values[_nearest(rows, NEIGHBOURS)].mean(axis=1)
    score = 1.0 - float(((values - guessed) ** 2).sum()) / spread
    return SignalProbe(kind="r2", score=score, chance=0.0, examples=len(values))


def _standardised(inputs: list[Array]) -> Float32 | None:
    """float32[n, features]: mean 0, deviation 1, evenly spaced ones of too many. `None`: all are constant."""
    rows = [real_numbers(examples) for examples in inputs]
    ends = np.cumsum([part.shape[1] for part in rows])
    chosen = evenly(int(ends[-1]), MAX_FEATURES)
    starts = ends - [part.shape[1] for part in rows]
    columns = [
        part[:, chosen[(chosen >= start) & (chosen < end)] - start].astype(np.float64)
        for part, start, end in zip(rows, starts, ends, strict=True)
    ]
    values = np.concatenate(columns, axis=1)
    there = np.isfinite(values)
    number = np.maximum(there.sum(axis=0), 1)
    with np.errstate(over="ignore", invalid="ignore"):
        values = np.where(there, values, 0.0)
        apart = np.where(there, values - values.sum(axis=0) / number, 0.0)
        deviation = np.sqrt((apart**2).sum(axis=0) / number)
    varies = np.isfinite(deviation) & (deviation > 1e-12 * np.abs(values).max(axis=0, initial=0.0))
    if not varies.any():
        return None
    return np.asarray(apart[:, varies] / deviation[varies], np.float32)


def _nearest(rows: Float32, number: int) -> npt.NDArray[np.int64]:
    """int64[n, number]: the nearest others of each example, nearest first."""
    distances = _squared_distances(rows)
    np.fill_diagonal(distances, np.inf)
    some = np.argpartition(distances, number - 1, axis=1)[:, :number]
    order = np.argsort(np.take_along_axis(distances, some, axis=1), axis=1, kind="stable")
    return np.take_along_axis(some, order, axis=1)


def _squared_distances(rows: Float32) -> Float32:
    """float32[n, n]: ‖a‖² + ‖b‖² − 2ab, block by block."""
    products = np.zeros((len(rows), len(rows)), np.float32)
    turned = np.ascontiguousarray(rows.T)
    for at in range(0, len(rows), _ROWS):
        for other in range(at, len(rows), _ROWS):
            block = products[at : at + _ROWS, other : other + _ROWS]
            for depth in range(0, rows.shape[1], _DEPTH):
                part = slice(depth, depth + _DEPTH)
                block += rows[at : at + _ROWS, part] @ turned[part, other : other + _ROWS]
            if other > at:
                products[other : other + _ROWS, at : at + _ROWS] = block.T
    squares = np.einsum("ij,ij->i", rows, rows)
    return np.asarray(squares[:, None] + squares[None] - 2 * products, np.float32)
