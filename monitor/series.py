"""The series a session keeps: numbers indexed by training step.

A `Column` has a value for every step (losses, norms), `Points` a value now and then (validation), `Rows` a
vector now and then (sampled per-layer statistics). `monitor.session` fills them, the diagnosis rules and
`monitor.charts` read them. Applying the same frame twice, or frames in another order, gives the same series.
No drawing and no I/O here.
"""

from __future__ import annotations

from copy import copy, deepcopy

import numpy as np
import numpy.typing as npt

from monitor.pyramid import HIGH, LOW, TOTAL, Array, Growing, Pyramid, Steps


class Column:
    """A value for every step, starting with step 0.

    A step that was never received is *missing*: it reads NaN and lies in one of the `missing` ranges. A NaN
    outside those ranges was measured.
    """

    __slots__ = ("_missing", "_positive", "_pyramid", "_values")

    def __init__(self, dtype: npt.DTypeLike = np.float32) -> None:
        self._values = Growing(dtype)
        self._missing: list[tuple[int, int]] = []
        self._pyramid = Pyramid(dtype, log=False)
        self._positive = Pyramid(dtype, log=True)

    def __len__(self) -> int:
        return len(self._values)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Column):
            return NotImplemented
        return self._missing == other._missing and _same(self._values.view, other._values.view)

    __hash__ = None  # type: ignore[assignment]

    @property
    def values(self) -> Array:
        """Read-only view of all values so far; take it anew after `extend`."""
        return _read_only(self._values.view)

    def still(self) -> Column:
        """The column as it is now, for another thread; costs nothing that grows with its length.

        Values that were missing may yet come.
        """
        self._summary(log=False)
        same = copy(self)
        same._values, same._missing = self._values.still(), list(self._missing)
        same._pyramid = self._pyramid.still()
        same._positive = Pyramid(same._values.view.dtype, log=True)
        return same

    @property
    def missing(self) -> list[tuple[int, int]]:
        """Half-open step ranges that were never received, in order."""
        return list(self._missing)

    def extend(self, first: int, values: Array) -> None:
        """Take the values of steps `first`, `first + 1`, …; steps already measured keep theirs."""
        if first < 0:
            raise ValueError(f"A column starts with step 0, and these values start with step {first}.")
        length = len(self)
        if first > length and len(values):
            self._missing.append((length, first))
            self._values.extend(np.full(first - length, np.nan))
        elif first < length:
            self._fill(first, values[: length - first])
        self._values.extend(values[max(0, length - first) :])

    def envelope(self, start: int, stop: int, buckets: int, *, log: bool = False) -> tuple[Array, Array]:
        """Least and greatest value in each of `buckets` equal parts of `[start, stop)`, float64 `[buckets]`.

        Part `i` begins at step `start + i * (stop - start) // buckets`. Values that are not finite do not
        count, nor, with `log`, those not above zero; NaN where nothing counts.
        """
        edges = start + np.arange(max(0, buckets) + 1, dtype=np.int64) * max(0, stop - start) // max(
            1, buckets
        )
        edges = edges.clip(0, len(self))
        values, pyramid = self._summary(log)
        lows, highs = pyramid.over(values, edges[:-1], edges[1:], (LOW, HIGH))
        empty = lows > highs
        lows[empty] = highs[empty] = np.nan
        return lows, highs

    def non_finite(self, start: int, stop: int) -> Steps:
        """Steps in `[start, stop)` whose measured value is NaN or infinite."""
        _, pyramid = self._summary(log=False)
        steps = pyramid.skipped(start, stop)
        if not self._missing:
            return _read_only(steps)
        starts, stops = np.array(self._missing, np.int64).T
        hole = np.searchsorted(starts, steps, side="right") - 1
        measured: Steps = steps[(hole < 0) | (steps >= stops[hole])]
        return measured

    def smoothed(
        self, start: int, stop: int, points: int, window: int, *, log: bool = False
    ) -> tuple[Steps, npt.NDArray[np.float64]]:
        """Centred moving mean over `window` steps, at `points` steps spread over `[start, stop)`.

        The window of step `s` is `[s - window // 2, s - window // 2 + window)`, cut off at both ends of the
        column. Only finite values count (with `log`, the mean is geometric and only values above zero do);
        NaN where none does. All steps are answered for if they are fewer than `points`.
        """
        steps = _spread(max(0, start), min(stop, len(self)), points)
        window = max(1, window)
        firsts = steps - window // 2
        lasts = (firsts + window).clip(0, len(self))
        firsts = firsts.clip(0, len(self))
        values, pyramid = self._summary(log)
        (totals,) = pyramid.over(values, firsts, lasts, (TOTAL,))
        counts = pyramid.counts(firsts, lasts)
        means = np.divide(totals, counts, out=np.full(len(steps), np.nan), where=counts > 0)
        return steps, np.power(10.0, means) if log else means

    def block_means(self, first: int, length: int, count: int) -> npt.NDArray[np.float64]:
        """Means of `count` blocks of `length` steps, one after another from step `first` on; float64 `[count]`.

        The column must reach that far. Only finite values count; NaN where a block has none.
        """
        values, pyramid = self._summary(log=False)
        totals = pyramid.totals(values, first, length, count)
        starts = first + length * np.arange(count, dtype=np.int64)
        counts = pyramid.counts(starts, starts + length)
        return np.asarray(np.divide(totals, counts, out=np.full(count, np.nan), where=counts > 0))

    def _summary(self, log: bool) -> tuple[Array, Pyramid]:
        pyramid, values = self._positive if log else self._pyramid, self._values.view
        pyramid.update(values)
        return values, pyramid

    def _fill(self, first: int, values: Array) -> None:
        """Put `values` where steps are missing, and only there."""
        stop = first + len(values)
        remaining: list[tuple[int, int]] = []
        for hole in self._missing:
            low, high = max(hole[0], first), min(hole[1], stop)
            if low >= high:
                remaining.append(hole)
                continue
            self._values.view[low:high] = values[low - first : high - first]
            self._pyramid.changed_from(low)
            self._positive.changed_from(low)
            remaining += [rest for rest in ((hole[0], low), (high, hole[1])) if rest[0] < rest[1]]
        self._missing = remaining


class Points:
    """A value at some steps, in step order: one per epoch, as a rule."""

    __slots__ = ("_steps", "_values")

    def __init__(self) -> None:
        self._steps = Growing(np.int64)
        self._values = Growing(np.float64)

    def __len__(self) -> int:
        return len(self._steps)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Points):
            return NotImplemented
        return _same(self.steps, other.steps) and _same(self.values, other.values)

    __hash__ = None  # type: ignore[assignment]

    @property
    def steps(self) -> Steps:
        """Sorted and unique, int64 `[n]`."""
        return _read_only(self._steps.view)

    @property
    def values(self) -> npt.NDArray[np.float64]:
        """float64 `[n]`; NaN was measured."""
        return _read_only(self._values.view)

    def still(self) -> Points:
        """A copy."""
        return deepcopy(self)

    def append(self, step: int, value: float) -> None:
        """Put `value` at `step`, in place of the one there if there is one."""
        steps = self._steps.view
        position = int(np.searchsorted(steps, step))
        if position < len(steps) and steps[position] == step:
            self._values.view[position] = value
        else:
            self._steps.insert(position, step)
            self._values.insert(position, value)


class Rows:
    """A vector of `width` numbers at some steps, in step order: one number per layer, as a rule."""

    __slots__ = ("_matrix", "_steps", "width")

    def __init__(self, width: int) -> None:
        self.width = width
        self._steps = Growing(np.int64)
        self._matrix = Growing(np.float32, width)

    def __len__(self) -> int:
        return len(self._steps)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Rows):
            return NotImplemented
        return _same(self.steps, other.steps) and _same(self.matrix, other.matrix)

    __hash__ = None  # type: ignore[assignment]

    @property
    def steps(self) -> Steps:
        """Sorted and unique, int64 `[n]`."""
        return _read_only(self._steps.view)

    @property
    def matrix(self) -> npt.NDArray[np.float32]:
        """float32 `[n, width]`, one row per step."""
        return _read_only(self._matrix.view)

    def still(self) -> Rows:
        """The rows there are now, for another thread, without a copy."""
        same = copy(self)
        same._steps, same._matrix = self._steps.still(), self._matrix.still()
        return same

    def extend(self, steps: npt.ArrayLike, matrix: npt.ArrayLike) -> None:
        """Take one row per step; steps already here keep the row they have."""
        new_steps, new_rows = np.asarray(steps, np.int64), np.asarray(matrix, np.float32)
        if new_rows.shape != (len(new_steps), self.width):
            raise ValueError(
                f"A matrix of shape {new_rows.shape} came for {len(new_steps)} steps of {self.width} columns."
            )
        new_steps, order = np.unique(new_steps, return_index=True)
        new_rows = new_rows[order]
        known = np.isin(new_steps, self._steps.view, assume_unique=True)
        new_steps, new_rows = new_steps[~known], new_rows[~known]
        in_order = not len(self) or not len(new_steps) or new_steps[0] > self._steps.view[-1]
        self._steps.extend(new_steps)
        self._matrix.extend(new_rows)
        if not in_order:
            order = np.argsort(self._steps.view)
            sorted_steps, sorted_rows = self._steps.view[order], self._matrix.view[order]
            # In new arrays: a still one may look at the old.
            self._steps, self._matrix = Growing(np.int64), Growing(np.float32, self.width)
            self._steps.extend(sorted_steps)
            self._matrix.extend(sorted_rows)

    def between(self, start: int, stop: int) -> tuple[Steps, npt.NDArray[np.float32]]:
        """The steps in `[start, stop)` and their rows."""
        first, last = np.searchsorted(self._steps.view, (start, stop))
        return self.steps[first:last], self.matrix[first:last]


def _read_only(array: Array) -> Array:
    view = array.view()
    view.flags.writeable = False
    return view


def _same(a: Array, b: Array) -> bool:
    return np.array_equal(a, b, equal_nan=True)


def _spread(start: int, stop: int, points: int) -> Steps:
    """`points` steps over `[start, stop)`, the first and the last among them; all steps if they are fewer."""
    count = max(0, stop - start)
    if count <= points:
        return np.arange(start, start + count, dtype=np.int64)
    if points <= 1:
        return np.full(max(0, points), start, np.int64)
    return start + np.arange(points, dtype=np.int64) * (count - 1) // (points - 1)
