"""Block summaries that make a long column quick to look at.

`Growing` is the array every series is stored in; `Pyramid` keeps the least, the greatest and the sum of a
column in blocks of 16, 256, 4096, … steps, so that a question about any range touches a few dozen numbers and
not the whole range. `monitor.series` is the only caller. Nothing here knows of missing steps or of drawing.
"""

from __future__ import annotations

from copy import copy
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
Steps: TypeAlias = npt.NDArray[np.int64]

FACTOR: Final = 16
FEW: Final = 8_192
"""So many items are added up at a stroke: looking at whole blocks of them would take longer."""
_OFFSETS: Final = np.arange(FACTOR, dtype=np.int64)[:, None]


class Growing:
    """An array that grows along its first axis at an amortised constant cost per row."""

    __slots__ = ("_buffer", "_length")

    def __init__(self, dtype: npt.DTypeLike, width: int | None = None) -> None:
        self._buffer: Array = np.empty(0 if width is None else (0, width), dtype)
        self._length = 0

    def __len__(self) -> int:
        return self._length

    @property
    def view(self) -> Array:
        """What is stored, writable; stale after the next growth."""
        return self._buffer[: self._length]

    def still(self) -> Growing:
        """What is stored now, without a copy: what is added to this one later lies beyond its end."""
        same = copy(self)
        same._buffer = self._buffer[: self._length]
        return same

    def extend(self, rows: Array) -> None:
        """Put `rows` at the end."""
        length = self._length + len(rows)
        self._reserve(length)
        self._buffer[self._length : length] = rows
        self._length = length

    def insert(self, position: int, row: object) -> None:
        """Put one row at `position` and move what follows."""
        self._reserve(self._length + 1)
        self._buffer[position + 1 : self._length + 1] = self._buffer[position : self._length]
        self._buffer[position] = row
        self._length += 1

    def truncate(self, length: int) -> None:
        """Forget the rows from `length` on."""
        self._length = min(self._length, length)

    def _reserve(self, length: int) -> None:
        if length > len(self._buffer):
            grown = np.empty((max(length, length * 3 // 2, 64), *self._buffer.shape[1:]), self._buffer.dtype)
            grown[: self._length] = self.view
            self._buffer = grown


class Reduction(NamedTuple):
    """How a block is summarised: `identity` stands for steps that do not count."""

    ufunc: np.ufunc
    identity: float


LOW: Final = 0
HIGH: Final = 1
TOTAL: Final = 2
_REDUCTIONS: Final = (
    Reduction(np.minimum, np.inf),
    Reduction(np.maximum, -np.inf),
    Reduction(np.add, 0.0),
)


class Pyramid:
    """Least, greatest and sum of a column, by block.

    Only finite values count; with `log`, only finite values above zero, and the sum is that of their log10.
    Sums are kept per block in float64 and never as one running total, so a spike of 1e30 leaves the means
    after it exact.
    """

    def __init__(self, dtype: npt.DTypeLike, *, log: bool) -> None:
        self._dtype = dtype
        self._log = log
        self._levels: list[tuple[Growing, Growing, Growing]] = []
        self._skipped = Growing(np.int64)
        self._changed = 0

    def still(self) -> Pyramid:
        """As it is now, without a copy: whole blocks stay what they are."""
        same = copy(self)
        same._levels = [(low.still(), high.still(), total.still()) for low, high, total in self._levels]
        same._skipped = self._skipped.still()
        return same

    def changed_from(self, step: int) -> None:
        """Steps from `step` on hold other values than when last summarised."""
        self._changed = min(self._changed, step)

    def update(self, values: Array) -> None:
        """Summarise what was added or changed since the last call."""
        if self._changed < len(values):
            with np.errstate(over="ignore", invalid="ignore"):
                self._summarise(values)
            self._changed = len(values)

    def skipped(self, start: int, stop: int) -> Steps:
        """Steps in `[start, stop)` that do not count, in order."""
        if not len(self._skipped):
            return self._skipped.view
        first, last = np.searchsorted(self._skipped.view, (start, stop))
        return self._skipped.view[first:last]

    def counts(self, starts: Steps, stops: Steps) -> Steps:
        """How many steps count in each `[start, stop)`."""
        if not len(self._skipped):
            return stops - starts
        skipped = np.searchsorted(self._skipped.view, stops) - np.searchsorted(self._skipped.view, starts)
        return np.asarray(stops - starts - skipped, np.int64)

    def over(self, values: Array, starts: Steps, stops: Steps, kinds: tuple[int, ...]) -> list[Array]:
        """The reductions named by `kinds` over each `[start, stop)`, all within the column.

        Every range is cut into ragged ends of under 16 items on each level and whole blocks of the next one.
        """
        results = [np.full(len(starts), _REDUCTIONS[kind].identity) for kind in kinds]
        depth = -1
        while np.any(starts < stops):
            up, down = -(-starts // FACTOR) * FACTOR, stops // FACTOR * FACTOR
            apart = up <= down
            firsts = np.concatenate([starts, np.where(apart, down, stops)])
            lasts = np.concatenate([np.where(apart, up, stops), stops])
            index = firsts + _OFFSETS
            inside = index < lasts
            for i, kind in enumerate(kinds):
                ufunc, identity = _REDUCTIONS[kind]
                if depth < 0:
                    ends = self._leaves(values.take(index, mode="clip"), kind)
                else:
                    ends = self._levels[depth][kind].view.take(index, mode="clip")
                with np.errstate(over="ignore", invalid="ignore"):
                    parts = ufunc.reduce(np.where(inside, ends, identity), axis=0)
                    results[i] = ufunc(ufunc(results[i], parts[: len(starts)]), parts[len(starts) :])
            starts, stops = np.where(apart, up // FACTOR, 0), np.where(apart, down // FACTOR, 0)
            depth += 1
        return results

    def totals(self, values: Array, first: int, length: int, count: int) -> npt.NDArray[np.float64]:
        """The sums over `count` parts of `length` steps, one after another from step `first` on, all in the column.

        On each level the blocks that an edge cuts in two are looked into, once for the two parts that meet there,
        until few whole blocks are left.
        """
        edges = first + length * np.arange(count + 1, dtype=np.int64)
        before, after = np.zeros(count + 1), np.zeros(count + 1)
        """In the block that holds an edge: what comes before it, and from it on."""
        depth, cut = -1, False  # whether items of this level have edges inside
        while length * count > FEW and length >= 2 * FACTOR:  # no two edges in one block
            if cut or (edges % FACTOR).any():
                index = (edges // FACTOR * FACTOR)[:, None] + np.arange(FACTOR)
                if depth < 0:
                    items = self._leaves(values.take(index, mode="clip"), TOTAL)
                else:
                    items = self._levels[depth][TOTAL].view.take(index, mode="clip")
                apart = index - edges[:, None]
                before += np.where(apart < 0, items, 0.0).sum(axis=1)
                after += np.where(apart > 0 if cut else apart >= 0, items, 0.0).sum(axis=1)
                cut = True
            edges //= FACTOR
            length //= FACTOR
            depth += 1
        inside, starts = slice(edges[0], edges[-1]), edges[:-1] - edges[0]
        items = self._leaves(values[inside], TOTAL) if depth < 0 else self._levels[depth][TOTAL].view[inside]
        if cut:
            items = items.copy()
            items[starts] = after[:-1]
        return np.asarray(np.add.reduceat(items, starts) + before[1:])

    def _summarise(self, values: Array) -> None:
        self._skipped.truncate(int(np.searchsorted(self._skipped.view, self._changed)))
        self._skipped.extend(np.flatnonzero(~self._counted(values[self._changed :])) + self._changed)
        start = self._changed // FACTOR
        leaves = values[start * FACTOR : len(values) // FACTOR * FACTOR]
        children = tuple(self._leaves(leaves, kind) for kind in (LOW, HIGH, TOTAL))
        depth = 0
        while len(children[0]):
            level = self._level(depth)
            for blocks, reduction, child in zip(level, _REDUCTIONS, children, strict=True):
                blocks.truncate(start)
                blocks.extend(reduction.ufunc.reduce(child.reshape(-1, FACTOR), axis=1))
            start //= FACTOR
            whole = len(level[0]) // FACTOR * FACTOR
            children = tuple(blocks.view[start * FACTOR : whole] for blocks in level)
            depth += 1

    def _counted(self, values: Array) -> npt.NDArray[np.bool_]:
        finite = np.isfinite(values)
        return finite & (values > 0) if self._log else finite

    def _leaves(self, values: Array, kind: int) -> Array:
        """The column itself as the lowest level: what counts, and the identity elsewhere."""
        counted = self._counted(values)
        if kind != TOTAL:
            return values if counted.all() else np.where(counted, values, _REDUCTIONS[kind].identity)
        if self._log:
            return np.log10(np.where(counted, values, 1.0), dtype=np.float64)
        return np.where(counted, values, 0.0).astype(np.float64, copy=False)

    def _level(self, depth: int) -> tuple[Growing, Growing, Growing]:
        if depth == len(self._levels):
            self._levels.append((Growing(self._dtype), Growing(self._dtype), Growing(np.float64)))
        return self._levels[depth]
