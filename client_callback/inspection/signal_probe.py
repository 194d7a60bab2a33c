"""Whether inputs tell anything of their targets at all, asked of a plain model: ridge regression with a kernel.

Each example looked at is predicted from all others, features standardised, by kernel ridge regression with the
Gaussian kernel exp(−‖a − b‖² / median of ‖a − b‖²); classes as one-hot targets, of which the largest prediction
counts. What it would predict had an example been left out follows from one inverse: rᵢ = (G y)ᵢ / Gᵢᵢ with
G = (K + λI)⁻¹ (Rasmussen & Williams, "Gaussian Processes for Machine Learning" (2006), 5.4.2). λ is the one of
`RIDGES` whose squared error is least. The trace of K (K + λI)⁻¹ counts the weights that this takes (Hastie et al.,
"The Elements of Statistical Learning" (2009), 5.4.1).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from client_callback.inspection.arrays import real_numbers
from client_callback.inspection.copies import Array, evenly
from client_callback.wire.protocol import Float32, Float64, SignalProbe

NAME: Final = "kernel ridge regression"
MAX_FEATURES = 1_024
LEAST_EXAMPLES = 20
RIDGES: Final = (0.01, 0.1, 1.0, 10.0)
"""From nearly exact to nearly the mean; the kernel is 1 at most."""
MAX_TARGET_NUMBERS = 64
_SIDE, _DEPTH = 32, 256
_MOST_PRODUCTS = 32 * 256 * 32
"""Products of matrices that take no more multiplications are computed by numpy's library in the thread that asks;
larger ones it shares out among the CPUs, which the training needs."""


class _LeftOut(NamedTuple):
    """Predictions of each example from all others."""

    predicted: Float64
    """[n, numbers]."""
    error: float
    """Sum of their squared errors."""
    freedom: float
    """The trace of what turns targets into predictions, K (K + λI)⁻¹."""


def probe_classes(inputs: list[Array], classes: npt.NDArray[Any]) -> SignalProbe | None:
    """How often an example's class is told right from the others.

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
    left_out = _left_out(rows, (numbers[:, None] == np.arange(len(counts))).astype(np.float64))
    return SignalProbe(
        model=NAME,
        kind="accuracy",
        score=float((left_out.predicted.argmax(axis=1) == numbers).mean()),
        chance=float(counts.max() / len(numbers)),
        examples=len(numbers),
        freedom=left_out.freedom,
    )


def probe_values(inputs: list[Array], targets: Array) -> SignalProbe | None:
    """R² of the predictions from the others; of several numbers, of all their squared errors together.

    As weak as the other, and about 0 where there is nothing to find.

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
    left_out = _left_out(rows, values)
    return SignalProbe(
        model=NAME,
        kind="r2",
        score=1.0 - left_out.error / spread,
        chance=0.0,
        examples=len(values),
        freedom=left_out.freedom,
    )


def _left_out(rows: Float32, values: Float64) -> _LeftOut:
    distances = np.maximum(_squared_distances(rows), 0)
    apart = distances[distances > 0]
    kernel = np.exp(-distances / np.median(apart)) if len(apart) else np.ones_like(distances)
    off = values - values.mean(axis=0)
    scale = float(np.abs(off).max()) or 1.0  # they are computed with in float32, which holds less
    scaled = (off / scale).astype(np.float32)
    errors, freedom = _ridge(kernel, RIDGES[0], scaled)
    for ridge in RIDGES[1:]:
        others, its_freedom = _ridge(kernel, ridge, scaled)
        if (others**2).sum() > (errors**2).sum():
            break  # they fall with the ridge, and then rise
        errors, freedom = others, its_freedom
    errors *= scale
    return _LeftOut(values - errors, float((errors**2).sum()), freedom)


def _ridge(kernel: Float32, ridge: float, values: Float32) -> tuple[Float64, float]:
    """Errors of what is predicted of each from the others, [n, numbers], and degrees of freedom."""
    solved = kernel.copy()
    np.fill_diagonal(solved, kernel.diagonal() + np.float32(ridge))
    solved = _inverse(solved)
    of_each = solved.diagonal().astype(np.float64)
    errors = _product(solved, values).astype(np.float64) / of_each[:, None]
    return errors, len(solved) - ridge * float(of_each.sum())


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


def _squared_distances(rows: Float32) -> Float32:
    """float32[n, n]: ‖a‖² + ‖b‖² − 2ab."""
    squares = np.einsum("ij,ij->i", rows, rows)
    return np.asarray(
        squares[:, None] + squares[None] - 2 * _product(rows, np.ascontiguousarray(rows.T)), np.float32
    )


def _inverse(matrix: Float32) -> Float32:
    """Of a symmetric positive definite matrix [n, n], which it overwrites: Gauss-Jordan elimination by blocks."""
    for block in _blocks(len(matrix), _SIDE):
        pivot = np.linalg.inv(matrix[block, block])
        row = _product(pivot, matrix[block])
        row[:, block] = pivot
        column = matrix[:, block].copy()
        column[block] = 0.0
        matrix[:, block] = 0.0
        matrix -= _product(column, row)
        matrix[block] = row
    return matrix


def _product(left: npt.NDArray[Any], right: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """`left @ right`, block by block."""
    depth = min(_DEPTH, len(right))
    found = np.empty((len(left), right.shape[1]), left.dtype)
    first, *further = _blocks(len(right), depth)
    for rows in _blocks(len(left), _SIDE):
        for columns in _blocks(right.shape[1], _MOST_PRODUCTS // (_SIDE * depth)):
            found[rows, columns] = left[rows, first] @ right[first, columns]
            for part in further:
                found[rows, columns] += left[rows, part] @ right[part, columns]
    return found


def _blocks(length: int, size: int) -> Iterator[slice]:
    return (slice(at, min(at + size, length)) for at in range(0, length, size))
